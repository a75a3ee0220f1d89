"""A node's account of one release: the record in its ledger, read strictly, and compared with the entry that went out.

The record is JSON in the bytes that were chained (`node.records.ledger`). What can be compared needs no key: that the
entry is the one that the record names, under the same terms, with exactly the parts in exactly the forms that the
record lists. Who signed what is for others to check.

A part is found in the entry without any label file: a disclosure that holds nothing but digests is a container, an
entry of `labels` is a raised category, every other is a part. Only whether a value is generalised is read from the
label file, as everywhere (`federation.elements`).
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from federation import entries, merkle, sdjwt, strictjson
from federation.checkpoint import parse_origin_line
from federation.entries import Delivery
from federation.errors import MalformedError, SignatureError
from federation.labels import LabelSet
from federation.limits import HASH_BYTES, MAX_PROOF_BYTES
from federation.marking import LABELS
from federation.model import (
    Attribution,
    Form,
    JsonObject,
    NodeId,
    Onward,
    Purpose,
    Terms,
    country,
    instant,
    node_id,
)
from federation.sdjwt import Node, UnverifiedCore
from federation.sdjwt.disclosure import ELLIPSIS, SD

RELEASE: Final = "release"
GENESIS: Final = bytes(HASH_BYTES)  # stands before the first row of a ledger
_HEX = re.compile(r"[0-9a-f]{64}")
_MEMBERS: Final = frozenset(
    (
        "row",
        "at",
        "by",
        "act",
        "peer",
        "feed",
        "seq",
        "origin",
        "name",
        "revision",
        "core_digest",
        "leaf_hash",
        "agreement",
        "purposes",
        "retain_until",
        "storage",
        "onward",
        "attribution",
        "elements",
    )
)
_CARRIED: Final = "carried_from_schema"  # beside them, in a row from before rows were chained


@dataclass(frozen=True, slots=True)
class Part:
    """What went, or did not go, of one part: its JSON pointer in the signed payload, its form, ids of the rules."""

    path: str
    form: Form
    rules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Account:
    """What a record says of a release. `terms` is None where they were not known any more when it was written.

    `sender` and `peer` are those of the feed; `row` counts from 1; digests and `leaf_hash` are 32 bytes.
    """

    row: int
    at: datetime
    by: str
    sender: NodeId
    peer: NodeId
    feed: str
    seq: int
    origin: NodeId
    name: str
    revision: int
    core_digest: bytes
    leaf_hash: bytes
    agreement: bytes
    terms: Terms | None
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Delivered:
    """The entry of a release, taken apart. The signature of the core is not verified; what it discloses belongs to it.

    `claims` has the disclosed values in place.
    """

    delivery: Delivery
    core: UnverifiedCore
    claims: JsonObject


def chained(before: bytes, record: bytes) -> bytes:
    """The digest of a row, 32 bytes: SHA-256 over the digest of the row before and its own record."""
    return hashlib.sha256(before + record).digest()


def read(record: bytes) -> Account:
    """The account of a release in a record of the ledger.

    Raises MalformedError for anything but exactly the members of one, each well formed.
    """
    data = strictjson.decode_object(record, max_bytes=MAX_PROOF_BYTES, what="ledger record")
    if data.keys() - {_CARRIED} != _MEMBERS or data["act"] != RELEASE:
        raise MalformedError("ledger record: not exactly the members of a release")
    numbers, texts = (data["row"], data["seq"], data["revision"]), (data["by"], data["name"], data["feed"])
    if any(type(n) is not int or n < 0 for n in numbers) or not all(isinstance(text, str) for text in texts):
        raise MalformedError("ledger record: a member is not of its kind")
    sender, peer, _ = parse_origin_line(data["feed"])
    if data["peer"] != peer:
        raise MalformedError("ledger record: the feed is not one to the peer that it names")
    terms = None if _CARRIED in data and data["purposes"] is None else _terms(data, peer)
    return Account(
        row=data["row"],
        at=instant(data["at"]),
        by=data["by"],
        sender=sender,
        peer=peer,
        feed=data["feed"],
        seq=data["seq"],
        origin=node_id(data["origin"]),
        name=data["name"],
        revision=data["revision"],
        core_digest=digest(data["core_digest"]),
        leaf_hash=digest(data["leaf_hash"]),
        agreement=digest(data["agreement"]),
        terms=terms,
        parts=_parts(data["elements"]),
    )


def compare(account: Account, data: bytes, labels: LabelSet) -> Delivered:
    """The entry `data`, if it is the one that the account tells of.

    (1) its leaf hash is the one in the account; (2) it is well formed, stands at that place of that feed, and is a
    presentation; (3) its terms are the same; (4) its core is the one named, of that origin, name and revision; (5) what
    it discloses are exactly the parts of the account, each in its form.
    Raises SignatureError for what does not agree, MalformedError or TooLargeError for what is no such entry.
    """
    if merkle.leaf_hash(data) != account.leaf_hash:  # (1)
        raise SignatureError("its leaf hash is another one than the ledger says")
    envelope = entries.read(data)  # (2)
    body = envelope.body
    if (envelope.feed, envelope.seq) != (account.feed, account.seq) or not isinstance(body, Delivery):
        raise SignatureError("the entry is no advisory at that place of that feed")
    if body.terms != account.terms:  # (3)
        raise SignatureError("the entry has other terms than the ledger says")
    core = sdjwt.read_header_and_payload(body.presentation.core)  # (4)
    jti = f"{account.origin}/{account.name}/{account.revision}"
    if core.iss != account.origin or core.payload.get("jti") != jti:
        raise SignatureError("the core is another advisory or revision than the ledger says")
    if hashlib.sha256(core.core).digest() != account.core_digest:
        raise SignatureError("the core has another digest than the ledger says")
    processed = sdjwt.process(core.payload, body.presentation.disclosures)
    _compare_parts(account.parts, processed.nodes, labels)  # (5)
    return Delivered(body, core, processed.claims)


def digest(text: object) -> bytes:
    """The 32 bytes that 64 hexadecimal digits spell. Raises MalformedError."""
    if not isinstance(text, str) or not _HEX.fullmatch(text):
        raise MalformedError("not a digest of 64 hexadecimal digits in lower case")
    return bytes.fromhex(text)


def _compare_parts(parts: Sequence[Part], nodes: Sequence[Node], labels: LabelSet) -> None:
    """(a) every part that is said to have gone is there, once; (b) none that is said to be withheld; (c) nothing else
    but containers and raised categories; (d) what is said to be generalised is."""
    going = {part.path: part.form for part in parts if part.form is not Form.WITHHELD}
    seen: set[str] = set()
    for node in nodes:
        if node.path in going:
            if node.path in seen:
                raise SignatureError("a part is disclosed twice")  # (a)
            seen.add(node.path)
            if going[node.path] is Form.GENERALISED and not _is_general(node, labels):  # (d)
                raise SignatureError("a part that the ledger calls generalised is disclosed in full")
        elif not (holds_only_digests(node.disclosure.value) or node.path.startswith(f"/{LABELS}/")):  # (b) (c)
            raise SignatureError("a part is disclosed that the ledger does not say was shared")
    if seen != going.keys():  # (a)
        raise SignatureError("a part that the ledger says was shared is not disclosed")


def holds_only_digests(value: Any) -> bool:
    """Whether a disclosed value is a container: it tells nothing but which digests hang below it."""
    if isinstance(value, dict):
        return value.keys() <= {SD}
    return isinstance(value, list) and all(isinstance(item, dict) and item.keys() == {ELLIPSIS} for item in value)


def _is_general(node: Node, labels: LabelSet) -> bool:
    value = node.disclosure.value
    rule = labels.match(node.path, value)
    return rule is not None and rule.generaliser is not None and rule.generalise(value) == value


def _parts(listed: object) -> tuple[Part, ...]:
    if not isinstance(listed, list):
        raise MalformedError("ledger record: the elements are no list")
    parts = tuple(map(_part, listed))
    if len({part.path for part in parts}) != len(parts):
        raise MalformedError("ledger record: an element stands twice")
    return parts


def _part(item: object) -> Part:
    if not isinstance(item, list) or len(item) != 3 or not isinstance(item[0], str) or not isinstance(item[2], list):
        raise MalformedError("ledger record: an element is a path, a form and rules")
    if not all(isinstance(rule, str) for rule in item[2]):
        raise MalformedError("ledger record: the rules of an element are ids")
    try:
        return Part(item[0], Form(item[1]), tuple(item[2]))
    except ValueError as e:
        raise MalformedError("ledger record: a form that this version does not know") from e


def _terms(data: JsonObject, peer: NodeId) -> Terms:
    try:
        return Terms(
            core_digest=digest(data["core_digest"]),
            recipient=peer,
            agreement_digest=digest(data["agreement"]),
            purposes=frozenset(map(Purpose, _list(data["purposes"]))),
            retain_until=None if data["retain_until"] is None else instant(data["retain_until"]),
            storage=None if data["storage"] is None else frozenset(map(country, _list(data["storage"]))),
            onward=Onward(data["onward"]),
            attribution=Attribution(data["attribution"]),
        )
    except ValueError as e:
        raise MalformedError("ledger record: terms that this version does not know") from e


def _list(value: object) -> list[Any]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise MalformedError("ledger record: not a list of texts")
    return value
