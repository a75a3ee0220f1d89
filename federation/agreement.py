"""Sharing agreements: terms that every party signs, and that sender and receiver both enforce.

People write YAML; RFC 8785 gives the one canonical form; each party signs those bytes (`federation.jws`). A version
names the digest of the one before. An agreement is in force when every party has signed and the instant lies inside
its dates. What the terms permit for one pair of nodes is compiled to Cedar in `federation.policy.compile`; nothing is
decided here.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import Any, TypeVar

import rfc8785

from federation import jws, strictjson
from federation.errors import MalformedError, RemoteError, SignatureError, UsageError
from federation.limits import MAX_CONTROL_BYTES, MAX_PARTIES
from federation.model import (
    Attribution,
    Category,
    Country,
    Form,
    NodeId,
    Onward,
    Purpose,
    Tier,
    Tlp,
    country,
    instant,
    instant_text,
    node_id,
)
from federation.yamltext import load, mapping

JWS_TYPE = "agreement+jws"
_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,62}[a-z0-9])?")
_SAFEGUARD = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_REMEMBERED = 128  # agreements
MAX_RETENTION_DAYS = 36_500  # a century; keeps the date arithmetic of retention inside datetime's range

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Grant:
    """One clause: who may send what to whom. `share` holds FULL or GENERALISED; what it lacks is withheld."""

    id: str
    senders: frozenset[NodeId]
    receivers: frozenset[NodeId]
    tlp: frozenset[Tlp]
    tiers: frozenset[Tier]
    share: Mapping[Category, Form]


@dataclass(frozen=True, slots=True)
class Agreement:
    """The terms of one version. `canonical` are the bytes that the parties sign, `digest` their SHA-256."""

    id: str
    version: int
    previous: bytes | None
    parties: tuple[NodeId, ...]
    valid_from: datetime
    valid_until: datetime
    sunset_review: datetime
    purposes: frozenset[Purpose]
    storage: frozenset[Country] | None
    retention_days: int | None
    onward: Onward
    attribution: Attribution
    safeguards: frozenset[str]
    grants: tuple[Grant, ...]
    canonical: bytes

    @property
    def digest(self) -> bytes:
        """SHA-256 over the canonical bytes, 32 bytes: what entries and ledger rows name."""
        return hashlib.sha256(self.canonical).digest()

    def in_dates(self, now: datetime) -> bool:
        """Whether `now` lies inside the validity: from the first instant up to, not including, the last."""
        return self.valid_from <= now < self.valid_until

    def covers(self, sender: NodeId, receiver: NodeId) -> bool:
        """Whether some clause lets `sender` share with `receiver`."""
        return any(sender in g.senders and receiver in g.receivers for g in self.grants)


def from_yaml(text: str, where: str) -> Agreement:
    """The agreement that a person wrote. Raises UsageError naming `where`, the line or key, and what is wrong."""
    try:
        return _read(load(text, where), where)
    except RemoteError as e:
        raise UsageError(f"{where}: {e}") from e


@lru_cache(_REMEMBERED)
def from_canonical(payload: bytes) -> Agreement:
    """The agreement in bytes that were signed; kept, since a node reads the same few for every page.

    Raises MalformedError if they are not the canonical form of valid terms.
    """
    data = strictjson.decode_object(payload, max_bytes=MAX_CONTROL_BYTES, what="agreement")
    try:
        agreement = _read(data, "agreement")
    except (UsageError, MalformedError) as e:  # its text would carry what the peer wrote (I17)
        raise MalformedError("agreement: the signed bytes are no valid terms") from e
    if agreement.canonical != payload:
        raise MalformedError("agreement: the signed bytes are not in canonical form (RFC 8785)")
    return agreement


def open_signed(
    data: bytes, key_of: Callable[[NodeId, str], bytes]
) -> tuple[Agreement, frozenset[NodeId], jws.SignedDocument]:
    """The agreement in a signed document, with the parties whose signatures hold.

    `key_of(party, kid)` gives that party's valid `issue` key or raises; every signature present must hold:
    (1) the document and its terms are well formed; (2) each kid is `<party>/<key id>` and the party is named in the
    terms;
    (3) no party signs twice; (4) each signature verifies. Raises RemoteError.
    """
    document = jws.parse(data, max_bytes=MAX_CONTROL_BYTES, typ=JWS_TYPE)  # (1)
    agreement = from_canonical(document.payload)
    signed: set[NodeId] = set()
    for signature in document.signatures:
        party = node_id(signature.kid.partition("/")[0])
        if party not in agreement.parties:  # (2)
            raise SignatureError(f"agreement {agreement.id}: signed by {party}, who is no party to it")
        if party in signed:  # (3)
            raise SignatureError(f"agreement {agreement.id}: {party} signs twice")
        jws.verify(signature, document.payload, key_of(party, signature.kid))  # (4)
        signed.add(party)
    return agreement, frozenset(signed), document


def _read(data: Any, where: str) -> Agreement:
    """The agreement in plain data, however it was written down. Raises UsageError or MalformedError."""
    top = mapping(
        data,
        where,
        required=(
            "agreement",
            "version",
            "parties",
            "valid_from",
            "valid_until",
            "sunset_review",
            "purposes",
            "grants",
        ),
        optional=("previous", "storage", "retention_days", "onward", "attribution", "safeguards"),
    )
    parties = _several(top["parties"], node_id, f"{where}: parties", most=MAX_PARTIES)
    if len(parties) < 2:
        raise UsageError(f"{where}: parties: an agreement needs at least two")
    valid_from, valid_until = instant(top["valid_from"]), instant(top["valid_until"])
    sunset_review = instant(top["sunset_review"])
    if not valid_from < sunset_review <= valid_until:
        raise UsageError(f"{where}: the dates must run valid_from < sunset_review <= valid_until")
    version = _integer(top["version"], f"{where}: version", least=1, most=10_000)
    previous = _previous(top.get("previous"), version, where)
    retention = top.get("retention_days")
    storage = top.get("storage")
    grants = _grants(top["grants"], parties, where)
    agreement_id = _slug(top["agreement"], f"{where}: agreement")
    purposes = _several(top["purposes"], lambda v: _enum(Purpose, v, f"{where}: purposes"), f"{where}: purposes")
    countries = None if storage is None else _several(storage, country, f"{where}: storage", most=300)
    days = None if retention is None else _integer(retention, f"{where}: retention_days", 1, MAX_RETENTION_DAYS)
    onward = _enum(Onward, top.get("onward", Onward.NONE), f"{where}: onward")
    attribution = _enum(Attribution, top.get("attribution", Attribution.MAY), f"{where}: attribution")
    safeguards = _several(top.get("safeguards", []), _safeguard, f"{where}: safeguards", least=0)
    canonical = rfc8785.dumps(
        {
            "agreement": agreement_id,
            "version": version,
            "previous": previous.hex() if previous else None,
            "parties": list(parties),
            "valid_from": instant_text(valid_from),
            "valid_until": instant_text(valid_until),
            "sunset_review": instant_text(sunset_review),
            "purposes": list(purposes),
            "storage": None if countries is None else list(countries),
            "retention_days": days,
            "onward": onward,
            "attribution": attribution,
            "safeguards": list(safeguards),
            "grants": [
                {
                    "id": g.id,
                    "from": sorted(g.senders),
                    "to": sorted(g.receivers),
                    "tlp": sorted(g.tlp),
                    "tiers": sorted(g.tiers),
                    "share": {category.value: form.value for category, form in g.share.items()},
                }
                for g in grants
            ],
        }
    )
    return Agreement(
        id=agreement_id,
        version=version,
        previous=previous,
        parties=parties,
        valid_from=valid_from,
        valid_until=valid_until,
        sunset_review=sunset_review,
        purposes=frozenset(purposes),
        storage=None if countries is None else frozenset(countries),
        retention_days=days,
        onward=onward,
        attribution=attribution,
        safeguards=frozenset(safeguards),
        grants=grants,
        canonical=canonical,
    )


def _grants(value: object, parties: tuple[NodeId, ...], where: str) -> tuple[Grant, ...]:
    if not isinstance(value, list) or not value:
        raise UsageError(f"{where}: grants: expected a list of at least one clause")
    grants = tuple(_grant(item, parties, f"{where}: grant {number}") for number, item in enumerate(value, start=1))
    if len({g.id for g in grants}) != len(grants):
        raise UsageError(f"{where}: grants: two clauses have the same id")
    return grants


def _grant(value: object, parties: tuple[NodeId, ...], where: str) -> Grant:
    data = mapping(value, where, required=("id", "tlp", "share"), optional=("from", "to", "tiers"))
    senders = _several(data.get("from", list(parties)), node_id, f"{where}: from", most=MAX_PARTIES)
    receivers = _several(data.get("to", list(parties)), node_id, f"{where}: to", most=MAX_PARTIES)
    strangers = sorted({*senders, *receivers} - set(parties))
    if strangers:
        raise UsageError(f"{where}: {', '.join(strangers)} is no party to this agreement")
    shares = data["share"]
    if not isinstance(shares, dict) or not shares:
        raise UsageError(f"{where}: share: expected categories with full or generalised")
    share = {}
    for name, form in sorted(shares.items()):
        category = _enum(Category, name, f"{where}: share")
        share[category] = _enum(Form, form, f"{where}: share: {name}")
        if share[category] is Form.WITHHELD:
            raise UsageError(f"{where}: share: {name}: leave a category out to withhold it")
    if Category.IDENTIFICATION not in share:
        raise UsageError(
            f"{where}: share: identification is needed, in full or generalised: no CSAF document lacks a title"
        )
    return Grant(
        id=_slug(data["id"], f"{where}: id"),
        senders=frozenset(senders),
        receivers=frozenset(receivers),
        tlp=frozenset(_several(data["tlp"], lambda v: _enum(Tlp, v, f"{where}: tlp"), f"{where}: tlp")),
        tiers=frozenset(
            _several(data.get("tiers", [Tier.STANDARD]), lambda v: _enum(Tier, v, f"{where}: tiers"), f"{where}: tiers")
        ),
        share=MappingProxyType(share),
    )


def _previous(value: object, version: int, where: str) -> bytes | None:
    if (value is None) != (version == 1):
        raise UsageError(f"{where}: previous: the digest of the version before, from version 2 on and only then")
    if value is None:
        return None
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise UsageError(f"{where}: previous: expected 64 hexadecimal digits")
    return bytes.fromhex(value)


def _several(
    value: object, read: Callable[[object], T], where: str, *, least: int = 1, most: int = 64
) -> tuple[T, ...]:
    """A list of distinct items, sorted by their text."""
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise UsageError(f"{where}: expected a list of {least} to {most} items")
    items = []
    for number, item in enumerate(value, start=1):
        try:
            items.append(read(item))
        except MalformedError as e:
            raise UsageError(f"{where}, item {number}: {e}") from e
    if len(set(items)) != len(items):
        raise UsageError(f"{where}: an item stands twice")
    return tuple(sorted(items, key=str))


def _enum(kind: type[E], value: object, where: str) -> E:
    for member in kind:
        if member.value == value:
            return member
    raise UsageError(f"{where}: {value!r} is none of {_listed(kind)}")


def _listed(kind: Iterable[StrEnum]) -> str:
    return ", ".join(member.value for member in kind)


def _integer(value: object, where: str, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise UsageError(f"{where}: expected a whole number from {least} to {most}")
    return value


def _slug(value: object, where: str) -> str:
    if not isinstance(value, str) or not _SLUG.fullmatch(value):
        raise UsageError(f"{where}: expected lower-case letters, digits, dots and dashes, 64 at most")
    return value


def _safeguard(value: object) -> str:
    if not isinstance(value, str) or not _SAFEGUARD.fullmatch(value):
        raise MalformedError("safeguards: expected names of lower-case letters, digits and dashes")
    return value
