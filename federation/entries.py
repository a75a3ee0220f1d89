"""Entries of a feed: from values to the bytes that are hashed and sent, and back, strictly.

An entry is serialised once, when it is appended; those bytes are the Merkle leaf and are stored as they are (I7).
Reading refuses unknown fields (protobuf would carry hidden data along), anything that a serialiser of ours would write
in another way, and whatever is over a limit. What an entry means is checked in `federation.inbound`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from federation import limits
from federation.checkpoint import parse_origin_line
from federation.errors import MalformedError, TooLargeError
from federation.merkle import MAX_TREE_SIZE
from federation.model import (
    Attribution,
    Onward,
    Presentation,
    Purpose,
    Terms,
    country,
    instant,
    instant_text,
    node_id,
)
from protos.exchange.v1 import exchange_pb2 as wire

_RULE_ID = re.compile(r"[a-z0-9][a-z0-9./:#-]{0,199}")


class Kind(StrEnum):
    """What an entry holds, by the name of its field on the wire."""

    PRESENTATION = "presentation"
    AGREEMENT = "agreement"
    WITHDRAWAL = "withdrawal"
    RECALL = "recall"
    PURGE = "purge"
    STATEMENT = "statement"
    CARD = "card"
    GRANT = "grant"
    EPOCH = "epoch"


@dataclass(frozen=True, slots=True)
class Delivery:
    """A presentation with its terms, and the origin's grant if a relay needs one (empty otherwise)."""

    presentation: Presentation
    terms: Terms
    grant: bytes = b""


@dataclass(frozen=True, slots=True)
class AgreementOffer:
    """An agreement with the signatures collected so far; `document` is RFC 7515 general JSON serialisation."""

    document: bytes


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """The sender takes back entries of its own; `reason` is a rule id.

    They are entries of this feed, or of the earlier epoch that `feed` names: an epoch that has ended grows no more.
    """

    seqs: tuple[int, ...]
    reason: str
    feed: str = ""


@dataclass(frozen=True, slots=True)
class RecallOrder:
    """A recall signed by the origin (`federation.recall`), and the entries of this feed that it erased."""

    document: bytes
    seqs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Purge:
    """Entries whose bytes the sender holds no more; `reason` is a rule id."""

    seqs: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Said:
    """A signed statement (`federation.statement`)."""

    document: bytes


@dataclass(frozen=True, slots=True)
class NewCard:
    """A newer card of a node that the receiver knows."""

    document: bytes


@dataclass(frozen=True, slots=True)
class Granted:
    """A signed grant (`federation.grant`)."""

    document: bytes


@dataclass(frozen=True, slots=True)
class NewEpoch:
    """What entry 0 of a later epoch says of the feed before: its origin line and its final signed head."""

    previous: str
    final: bytes
    reason: str


Erasing = Withdrawal | RecallOrder | Purge
Document = AgreementOffer | Said | NewCard | Granted
Body = Delivery | Erasing | Document | NewEpoch
_DOCUMENTS: Final[Mapping[Kind, type[Document]]] = {
    Kind.AGREEMENT: AgreementOffer,
    Kind.STATEMENT: Said,
    Kind.CARD: NewCard,
    Kind.GRANT: Granted,
}
_LENGTH_DELIMITED: Final = 2
_FIXED_BYTES: Final = {1: 8, 3: 0, 4: 0, 5: 4}  # by wire type; the fields of a group stand behind its beginning
_CONTINUED: Final = bytes(range(0x80, 0x100))  # bytes that do not end a number
_VERSION_1: Final = frozenset((Kind.PRESENTATION, Kind.AGREEMENT, Kind.WITHDRAWAL))


@dataclass(frozen=True, slots=True)
class Envelope:
    """An entry that is well formed; nothing in it has been verified yet."""

    feed: str
    seq: int
    nonce: bytes
    body: Body


@dataclass(frozen=True, slots=True)
class ErasedItem:
    """An item whose bytes are gone."""

    seq: int
    leaf_hash: bytes
    erased_by: int


def write(envelope: Envelope) -> bytes:
    """The bytes of an entry. Raises TooLargeError when it could not be sent."""
    entry = wire.Entry(feed=envelope.feed, seq=envelope.seq, nonce=envelope.nonce)
    body = envelope.body
    if isinstance(body, Delivery):
        entry.presentation.core = body.presentation.core
        entry.presentation.disclosures.extend(body.presentation.disclosures)
        entry.presentation.terms.CopyFrom(_write_terms(body.terms))
        entry.presentation.grant = body.grant
    elif isinstance(body, RecallOrder):
        entry.recall.document = body.document
        entry.recall.seqs.extend(body.seqs)
    elif isinstance(body, (Withdrawal, Purge)):
        part = entry.withdrawal if isinstance(body, Withdrawal) else entry.purge
        part.seqs.extend(body.seqs)
        part.reason = body.reason
        if isinstance(body, Withdrawal):
            entry.withdrawal.feed = body.feed
    elif isinstance(body, NewEpoch):
        entry.epoch.previous, entry.epoch.final, entry.epoch.reason = body.previous, body.final, body.reason
    else:
        getattr(entry, kind_of(body)).document = body.document
    data = entry.SerializeToString(deterministic=True)
    _check_size(data, body)
    return data


def read(data: bytes) -> Envelope:
    """The entry in `data`.

    (1) within the limits; (2) protobuf of our schema without unknown fields; (3) exactly the bytes that `write` would
    make: one entry has one form; (4) nonce of 16 bytes, a body; (5) every member of the body well formed.
    Raises TooLargeError or MalformedError.
    """
    if len(data) > limits.MAX_ENTRY_BYTES:  # (1)
        raise TooLargeError(f"entry: over {limits.MAX_ENTRY_BYTES} bytes")
    entry = wire.Entry()
    if len(data) > limits.UNCOUNTED_BYTES:
        check_fields(entry, data, limits.MAX_FIELDS, "entry")
    parse(entry, data, "entry")  # (2)
    if entry.SerializeToString(deterministic=True) != data:  # (3)
        raise MalformedError("entry: not in its one serialised form")
    if len(entry.nonce) != limits.NONCE_BYTES:  # (4)
        raise MalformedError(f"entry: the nonce is not {limits.NONCE_BYTES} bytes")
    body = _read_body(entry)  # (5)
    _check_size(data, body)
    return Envelope(entry.feed, entry.seq, entry.nonce, body)


def kind_of(body: Body) -> Kind:
    """What `body` is called on the wire."""
    if isinstance(body, Delivery):
        return Kind.PRESENTATION
    if isinstance(body, (Withdrawal, RecallOrder, Purge)):
        return {Withdrawal: Kind.WITHDRAWAL, RecallOrder: Kind.RECALL, Purge: Kind.PURGE}[type(body)]
    if isinstance(body, NewEpoch):
        return Kind.EPOCH
    return next(kind for kind, document in _DOCUMENTS.items() if isinstance(body, document))


def spoken_by(body: Body, version: int) -> bool:
    """Whether a node of protocol `version` can read an entry with this body."""
    later = (isinstance(body, Delivery) and body.grant) or (isinstance(body, Withdrawal) and body.feed)
    return version > 1 or (kind_of(body) in _VERSION_1 and not later)


def read_item(item: wire.PageItem) -> bytes | ErasedItem:
    """A page item: an entry's bytes, not read yet, or what is left of an erased one. Raises MalformedError."""
    kind = item.WhichOneof("item")
    if kind == "entry":
        return item.entry
    if kind != "erased":
        raise MalformedError("page: an item is empty")
    erased = item.erased
    if len(erased.leaf_hash) != limits.HASH_BYTES or erased.erased_by <= erased.seq:
        raise MalformedError("page: an erased item is malformed")
    return ErasedItem(erased.seq, erased.leaf_hash, erased.erased_by)


def hides(data: bytes) -> bool:
    """Whether bytes that are no entry are one with something besides: unknown fields, or what a reader passes over."""
    entry = wire.Entry()
    try:
        parse(entry, data, "entry")
    except MalformedError as e:
        return not isinstance(e.__cause__, DecodeError)
    return entry.SerializeToString(deterministic=True) != data


def check_fields(kind: Message, data: bytes, most: int, what: str) -> None:
    """Refuses bytes that would make a message like `kind` of over `most` fields, those of all depths and each number of
    a packed list counted, before anything is made of them. Raises TooLargeError; what is no message, `parse` refuses.
    """
    try:
        left = _fields_left(kind.DESCRIPTOR.fields_by_number, data, most)
    except (IndexError, KeyError):
        return
    if left < 0:
        raise TooLargeError(f"{what}: over {most} fields")


def _fields_left(known: Mapping[int, Any], data: bytes, left: int) -> int:
    """`left` without the fields of a message; below 0 as soon as there are more. Raises IndexError or KeyError for what
    no parser takes either."""
    place = 0
    while place < len(data) and left >= 0:
        left -= 1
        tag, place = _varint(data, place)
        if tag & 7 != _LENGTH_DELIMITED:
            place = _varint(data, place)[1] if tag & 7 == 0 else place + _FIXED_BYTES[tag & 7]
            continue
        length, place = _varint(data, place)
        field = known.get(tag >> 3)
        if field is not None and field.message_type is not None:
            left = _fields_left(field.message_type.fields_by_number, data[place : place + length], left)
        elif field is not None and field.type == FieldDescriptor.TYPE_UINT64:
            left -= len(data[place : place + length].translate(None, _CONTINUED))
        place += length
    return left


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """The number at `place`, and where it ends. Raises IndexError where it does not, or is over ten bytes."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
        if shift > 63:
            raise IndexError


def parse(message: Message, data: bytes, what: str) -> None:
    """Fills `message` from `data`; refuses unknown fields at every depth. Raises MalformedError."""
    try:
        message.ParseFromString(data)
    except DecodeError as e:
        raise MalformedError(f"{what}: not the protobuf message it should be") from e
    refuse_unknown(message, what)


def refuse_unknown(message: Message, what: str) -> None:
    """Refuses fields that our schema does not have, at every depth: they would carry hidden data.

    Raises MalformedError.
    """
    if len(UnknownFieldSet(message)) > 0:
        raise MalformedError(f"{what}: a field that this protocol version does not know")
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for child in value if field.is_repeated else (value,):
            refuse_unknown(child, what)


def _check_size(data: bytes, body: Body) -> None:
    most = limits.MAX_ENTRY_BYTES if isinstance(body, Delivery) else limits.MAX_CONTROL_BYTES
    if len(data) > most:
        raise TooLargeError(f"entry: {len(data)} bytes, over the limit of {most}")


def _write_terms(terms: Terms) -> wire.Terms:
    return wire.Terms(
        core_digest=terms.core_digest,
        recipient=terms.recipient,
        agreement_digest=terms.agreement_digest,
        purposes=sorted(terms.purposes),
        retain_until="" if terms.retain_until is None else instant_text(terms.retain_until),
        storage=None if terms.storage is None else wire.Places(countries=sorted(terms.storage)),
        onward=terms.onward,
        attribution=terms.attribution,
    )


def _read_terms(terms: wire.Terms) -> Terms:
    storage = [country(text) for text in terms.storage.countries] if terms.HasField("storage") else None
    try:
        purposes = [Purpose(text) for text in terms.purposes]
        onward, attribution = Onward(terms.onward), Attribution(terms.attribution)
    except ValueError as e:
        raise MalformedError("terms: a value that this protocol version does not know") from e
    if purposes != sorted(set(purposes)) or (storage is not None and storage != sorted(set(storage))):
        raise MalformedError("terms: a list is not sorted, or an item stands twice")
    for digest in (terms.core_digest, terms.agreement_digest):
        if len(digest) != limits.HASH_BYTES:
            raise MalformedError(f"terms: a digest is not {limits.HASH_BYTES} bytes")
    return Terms(
        core_digest=terms.core_digest,
        recipient=node_id(terms.recipient),
        agreement_digest=terms.agreement_digest,
        purposes=frozenset(purposes),
        retain_until=instant(terms.retain_until) if terms.retain_until else None,
        storage=None if storage is None else frozenset(storage),
        onward=onward,
        attribution=attribution,
    )


def _read_body(entry: wire.Entry) -> Body:
    found = entry.WhichOneof("body")
    if found is None:
        raise MalformedError("entry: it has no body of a kind that this protocol version knows")
    kind = Kind(found)
    if kind is Kind.PRESENTATION:
        if len(entry.presentation.disclosures) > limits.MAX_DISCLOSURES:
            raise TooLargeError(f"entry: over {limits.MAX_DISCLOSURES} disclosures")
        return Delivery(
            Presentation(entry.presentation.core, tuple(entry.presentation.disclosures)),
            _read_terms(entry.presentation.terms),
            entry.presentation.grant,
        )
    if kind is Kind.WITHDRAWAL:
        return _read_withdrawal(entry)
    if kind is Kind.PURGE:
        return Purge(_earlier(entry.purge.seqs, entry, kind), _reason(entry.purge.reason, kind))
    if kind is Kind.RECALL:
        return RecallOrder(entry.recall.document, _earlier(entry.recall.seqs, entry, kind, least=0))
    if kind is Kind.EPOCH:
        if entry.seq != 0:
            raise MalformedError("epoch: it stands at the beginning of a feed and nowhere else")
        return NewEpoch(entry.epoch.previous, entry.epoch.final, _reason(entry.epoch.reason, kind))
    return _DOCUMENTS[kind](getattr(entry, kind).document)


def _read_withdrawal(entry: wire.Entry) -> Withdrawal:
    """Of this feed, or of an epoch of it that is earlier than this one."""
    body, reason = entry.withdrawal, _reason(entry.withdrawal.reason, Kind.WITHDRAWAL)
    if not body.feed:
        return Withdrawal(_earlier(body.seqs, entry, Kind.WITHDRAWAL), reason)
    *here, epoch = parse_origin_line(entry.feed)
    *there, earlier = parse_origin_line(body.feed)
    if here != there or earlier >= epoch:
        raise MalformedError("withdrawal: the feed that it names is no earlier epoch of this one")
    return Withdrawal(_earlier(body.seqs, entry, Kind.WITHDRAWAL, ended=True), reason, body.feed)


def _earlier(
    listed: Iterable[int], entry: wire.Entry, kind: Kind, *, least: int = 1, ended: bool = False
) -> tuple[int, ...]:
    seqs = tuple(listed)
    most = MAX_TREE_SIZE if ended else entry.seq
    if len(seqs) < least or list(seqs) != sorted(set(seqs)) or (seqs and seqs[-1] >= most):
        raise MalformedError(f"{kind}: it must name earlier entries, in order, each once")
    return seqs


def _reason(text: str, kind: Kind) -> str:
    if not _RULE_ID.fullmatch(text):
        raise MalformedError(f"{kind}: the reason is not a rule id")
    return text
