"""Proofs of disclosure: one file that shows what one node sent another, when, under which agreement, and that it came.

The file is a signed document (`federation.jws`), `typ` = `proof+jws`, of at most MAX_PROOF_BYTES, signed once by an
`issue` key of the node that sent. Its payload is strict JSON of exactly these members; bytes are base64url, digests
hexadecimal, and everything that was signed or hashed lies in it as those bytes:

    proof       1, the version of this format
    says        in plain, in this order, and checked against the rest: sender, recipient, origin, advisory, revision,
                feed, seq, released_at, released_by, acknowledged_at or null, taken_back (withdrawal, recall or purge)
                or null, exported_at
    ledger      before, record, digest: the sender's ledger row of the release, with the digest before it and its own
    entry       the entry's bytes; null once they are erased
    receipt     null, or note and path: the first head that the recipient has cosigned over this entry, and the
                inclusion proof that leads from the entry to it
    eraser      null, or entry and receipt: the entry that erased this one, likewise with the first receipt for it
    agreement   the agreement as every party signed it
    cards       the cards that the checks need, by node and version, each once

`verify` makes these checks, in this order, but 10 and 11 after 4: on the time in the row rest 5, 8 and 9, and a receipt
bounds it. It takes the cards that whoever verifies has got by other ways:

1. The file is in its one serialised form, with one signature; exactly these members, each well formed.
2. Every card in it holds by itself. Those of sender, recipient and origin are cards that were given, or have the root
   keys of one, or follow one (`federation.vouching`). A card of another party to the agreement may be vouched for by
   the file alone, which the result tells.
3. The file is signed by an `issue` key of the sender, valid at `exported_at`.
4. The ledger row is a release whose digest is SHA-256 over the digest before and the record; `says` says the same.
5. The agreement has the digest that the row names, holds under `issue` keys that every party had by then, was inside
   its dates when the row was written, and lets the sender share with the recipient.
6. The entry is the one that the row tells of: leaf hash, feed and number, terms, core, and exactly the parts in exactly
   the forms that the row lists (`federation.account`).
7. The core is signed by an `issue` key of the origin, valid when it was signed; every disclosure belongs to it.
8. The terms are no wider than the signed handling and the agreement allow.
9. If the sender is not the origin: the handling lets everybody pass it on, or the origin's grant lets this sender pass
   this core on to this recipient; never TLP:RED or AMBER+STRICT, nor before the embargo ends.
10. The receipt: a head of this feed, cosigned by a `receipt` key of the recipient that was valid at the time in the
    cosignature, which is not before the time in the row (MAX_CLOCK_SKEW_S aside); signed by a `feed` key of the sender
    that was valid between the two; the entry is in it.
11. Of an erased entry 6 to 9 cannot be checked, only its leaf hash is left. The entry that erased it stands later in
    the same feed and names it; a recall is signed by the origin and names this advisory and revision. Its receipt as
    in 10.

Left out: whether the categories of what was passed on are those that the grant names, which takes the label file of
that time and was for the recipient to judge; and whatever a signature cannot show (docs/proofs.md).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from federation import account as accounts
from federation import agreement as agreements
from federation import checkpoint, ed25519, entries, grant, handling, jws, merkle, recall, strictjson
from federation.account import Account, Delivered
from federation.agreement import Agreement
from federation.base64url import b64url, from_b64url
from federation.checkpoint import Checkpoint, VerifierKey
from federation.entries import Kind, Purge, RecallOrder, Withdrawal
from federation.errors import (
    GrantError,
    MalformedError,
    SignatureError,
    UsageError,
    WrongFeedError,
)
from federation.grant import Grant
from federation.keyring import OnlineKey
from federation.labels import LabelSet
from federation.limits import MAX_CLOCK_SKEW_S, MAX_PROOF_BYTES
from federation.model import Handling, JsonObject, NodeId, Onward, Role, Tlp, instant, instant_text
from federation.recall import Recall
from federation.vouching import Cards, Vouched, vouch

JWS_TYPE: Final = "proof+jws"
VERSION: Final = 1
_MEMBERS: Final = frozenset(("proof", "says", "ledger", "entry", "receipt", "eraser", "agreement", "cards"))
_SKEW: Final = timedelta(seconds=MAX_CLOCK_SKEW_S)
_LATEST_S: Final = 253_402_300_799  # the last second of the year 9999
_NEVER_PASSED_ON: Final = (Tlp.RED, Tlp.AMBER_STRICT)


@dataclass(frozen=True, slots=True)
class Receipt:
    """A head that the recipient cosigned, and the inclusion proof of one entry under it."""

    note: bytes
    path: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Eraser:
    """The entry that erased another one, with the first receipt that covers it."""

    entry: bytes
    receipt: Receipt | None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a proof is made of; nothing in it is verified. `entry` or `eraser` is there."""

    before: bytes
    record: bytes
    entry: bytes | None
    eraser: Eraser | None
    receipt: Receipt | None
    agreement: bytes
    cards: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """When the recipient signed that it holds all entries below `size`, by its clock."""

    at: datetime
    size: int


@dataclass(frozen=True, slots=True)
class Erasure:
    """What took the entry back: the number of the entry that says so, and whether the recipient has that one too."""

    kind: Kind
    seq: int
    reason: str
    acknowledged: Acknowledged | None


@dataclass(frozen=True, slots=True)
class Shown:
    """What a proof shows, verified. `delivered` and `handling` are None where the bytes are erased.

    `digest` is that of the ledger row.
    """

    account: Account
    digest: bytes
    exported_at: datetime
    agreement: Agreement
    delivered: Delivered | None
    handling: Handling | None
    grant: Grant | None
    acknowledged: Acknowledged | None
    erasure: Erasure | None
    cards: tuple[Vouched, ...]

    @property
    def bytes_arrived(self) -> bool:
        """Whether the recipient acknowledged the entry while its bytes were in the feed."""
        done = self.acknowledged
        return done is not None and (self.erasure is None or done.size <= self.erasure.seq)


def sign(
    evidence: Evidence,
    acknowledged_at: datetime | None,
    now: datetime,
    *,
    kid: str,
    sign_bytes: Callable[[bytes], bytes],
) -> bytes:
    """The file. `sign_bytes` makes the Ed25519 signature by the sender's `issue` key `kid`.

    Raises UsageError over MAX_PROOF_BYTES, and MalformedError for a record that is no release.
    """
    told = accounts.read(evidence.record)
    erased = None if evidence.eraser is None else entries.kind_of(entries.read(evidence.eraser.entry).body)
    payload = strictjson.encode(
        {
            "proof": VERSION,
            "says": _says(told, acknowledged_at, erased, now),
            "ledger": {
                "before": evidence.before.hex(),
                "record": b64url(evidence.record),
                "digest": accounts.chained(evidence.before, evidence.record).hex(),
            },
            "entry": None if evidence.entry is None else b64url(evidence.entry),
            "receipt": _write_receipt(evidence.receipt),
            "eraser": None
            if evidence.eraser is None
            else {"entry": b64url(evidence.eraser.entry), "receipt": _write_receipt(evidence.eraser.receipt)},
            "agreement": b64url(evidence.agreement),
            "cards": [b64url(card) for card in evidence.cards],
        }
    )
    signature = jws.sign(payload, JWS_TYPE, f"{told.sender}/{kid}", sign_bytes)
    data = jws.serialise(jws.SignedDocument(payload, (signature,)))
    if len(data) > MAX_PROOF_BYTES:
        raise UsageError(f"a proof of this release would have {len(data)} bytes, over the limit of {MAX_PROOF_BYTES}")
    return data


def verify(data: bytes, given: Sequence[bytes], labels: LabelSet) -> Shown:
    """What the file shows, if every check of this module's docstring holds. `given` are cards, as files hold them.

    Raises UsageError when the card of sender, recipient or origin is not given, and a RemoteError for what fails.
    """
    signed = _parse(data)  # (1)
    evidence, says, digest = _read(signed.payload)
    exported_at, told = instant(says.get("exported_at")), accounts.read(evidence.record)
    cards = vouch(evidence.cards, given, {told.sender, told.peer, told.origin})  # (2)
    signature = signed.signatures[0]  # (3)
    name, _, kid = signature.kid.partition("/")
    if name != told.sender:
        raise SignatureError("proof: signed by another node than the sender of the feed")
    jws.verify(signature, signed.payload, cards.issue_key(told.sender, kid, lambda key: key.valid_at(exported_at)))
    if accounts.chained(evidence.before, evidence.record) != digest:  # (4)
        raise SignatureError("proof: the digest of the ledger row does not follow from its record")
    acknowledged = _check_receipt(evidence.receipt, told, told.seq, told.leaf_hash, cards)  # (10)
    erasure = None if evidence.eraser is None else _check_eraser(evidence.eraser, told, cards)  # (11)
    agreement = _check_agreement(evidence.agreement, told, cards)  # (5)
    delivered = None if evidence.entry is None else accounts.compare(told, evidence.entry, labels)  # (6)
    allowed = None if delivered is None else _check_core(delivered, told, cards)  # (7)
    leave = None
    if delivered is not None and allowed is not None:
        handling.check_terms(  # (8)
            delivered.delivery.terms, allowed, agreement, told.core_digest, told.peer, told.at
        )
        leave = _check_leave(delivered, allowed, told, cards)  # (9)
    at = None if acknowledged is None else acknowledged.at
    plain = _says(told, at, None if erasure is None else erasure.kind, exported_at)
    if strictjson.encode(says) != strictjson.encode(plain):  # (4): in this order too, and a number is no truth value
        raise SignatureError("proof: what it says in plain is not what it shows")
    return Shown(
        account=told,
        digest=digest,
        exported_at=exported_at,
        agreement=agreement,
        delivered=delivered,
        handling=allowed,
        grant=leave,
        acknowledged=acknowledged,
        erasure=erasure,
        cards=cards.vouched,
    )


def _says(told: Account, acknowledged_at: datetime | None, erased: Kind | None, exported_at: datetime) -> JsonObject:
    return {
        "sender": told.sender,
        "recipient": told.peer,
        "origin": told.origin,
        "advisory": told.name,
        "revision": told.revision,
        "feed": told.feed,
        "seq": told.seq,
        "released_at": instant_text(told.at),
        "released_by": told.by,
        "acknowledged_at": None if acknowledged_at is None else instant_text(acknowledged_at),
        "taken_back": None if erased is None else erased.value,
        "exported_at": instant_text(exported_at),
    }


def _write_receipt(receipt: Receipt | None) -> JsonObject | None:
    if receipt is None:
        return None
    return {"note": b64url(receipt.note), "path": [part.hex() for part in receipt.path]}


def _parse(data: bytes) -> jws.SignedDocument:
    signed = jws.parse(data, typ=JWS_TYPE, max_bytes=MAX_PROOF_BYTES)
    if jws.serialise(signed) != data:
        raise MalformedError("proof: not in its one serialised form")
    if len(signed.signatures) != 1:
        raise SignatureError(f"proof: {len(signed.signatures)} signatures in place of one")
    return signed


def _read(payload: bytes) -> tuple[Evidence, JsonObject, bytes]:
    """What is in the file, what it says in plain, and the digest of the ledger row."""
    data = strictjson.decode_object(payload, max_bytes=MAX_PROOF_BYTES, what="proof")
    if data.keys() != _MEMBERS or type(data["proof"]) is not int or data["proof"] != VERSION:
        raise MalformedError("proof: members missing, unknown or of another version")
    ledger = _members(data["ledger"], "before", "record", "digest")
    eraser = None if data["eraser"] is None else _members(data["eraser"], "entry", "receipt")
    if (data["entry"] is None) is (eraser is None):
        raise MalformedError("proof: either the entry is there, or the one that erased it")
    if not isinstance(data["says"], dict) or not isinstance(data["cards"], list):
        raise MalformedError("proof: members missing or unknown")
    evidence = Evidence(
        before=accounts.digest(ledger["before"]),
        record=_bytes(ledger["record"]),
        entry=None if data["entry"] is None else _bytes(data["entry"]),
        eraser=None if eraser is None else Eraser(_bytes(eraser["entry"]), _read_receipt(eraser["receipt"])),
        receipt=_read_receipt(data["receipt"]),
        agreement=_bytes(data["agreement"]),
        cards=tuple(map(_bytes, data["cards"])),
    )
    return evidence, data["says"], accounts.digest(ledger["digest"])


def _read_receipt(data: object) -> Receipt | None:
    if data is None:
        return None
    receipt = _members(data, "note", "path")
    if not isinstance(receipt["path"], list):
        raise MalformedError("proof: an inclusion proof is a list of digests")
    return Receipt(_bytes(receipt["note"]), tuple(map(accounts.digest, receipt["path"])))


def _members(data: object, *names: str) -> JsonObject:
    if not isinstance(data, dict) or data.keys() != set(names):
        raise MalformedError("proof: members missing or unknown")
    return data


def _bytes(value: object) -> bytes:
    if not isinstance(value, str):
        raise MalformedError("proof: a member that should be base64url is not a string")
    return from_b64url(value)


def _check_agreement(document: bytes, told: Account, cards: Cards) -> Agreement:
    def key_of(party: NodeId, kid: str) -> bytes:
        return cards.issue_key(party, kid.partition("/")[2], lambda key: key.valid_from <= told.at + _SKEW)

    agreement, signed_by, _ = agreements.open_signed(document, key_of)
    if agreement.digest != told.agreement:
        raise SignatureError("proof: the agreement in it is not the one that the ledger row names")
    if signed_by != set(agreement.parties):
        raise SignatureError("proof: not every party has signed the agreement")
    if not agreement.in_dates(told.at) or not agreement.covers(told.sender, told.peer):
        raise SignatureError("proof: the agreement did not let the sender share with the recipient then")
    return agreement


def _check_core(delivered: Delivered, told: Account, cards: Cards) -> Handling:
    """(7). The disclosures were found to belong to the core when it was taken apart."""
    core, issued_at = delivered.core, delivered.core.payload.get("iat")
    if type(issued_at) is not int or not 0 < issued_at <= _LATEST_S:
        raise MalformedError("proof: the core says no instant at which it was signed")
    moment = datetime.fromtimestamp(issued_at, UTC)
    key = cards.issue_key(told.origin, core.kid, lambda key: key.valid_at(moment))
    ed25519.verify(key, core.signature, core.signed)
    return handling.read(core.payload.get("handling"))


def _check_leave(delivered: Delivered, allowed: Handling, told: Account, cards: Cards) -> Grant | None:
    document = delivered.delivery.grant
    if told.origin == told.sender:
        if document:
            raise MalformedError("proof: a grant beside a core that its origin delivers itself")
        return None
    if allowed.tlp in _NEVER_PASSED_ON or (
        allowed.embargo_until is not None and told.at + _SKEW < allowed.embargo_until
    ):
        raise GrantError("proof: its handling does not let it be passed on")
    if not document:
        if allowed.onward is not Onward.PEERS:
            raise GrantError("proof: passed on although its origin does not let it, without a grant")
        return None
    given = grant.read(
        document, lambda node, kid: cards.issue_key(node, kid, lambda key: key.valid_from <= told.at + _SKEW)
    )
    grant.check(
        given,
        origin=told.origin,
        core_digest=told.core_digest,
        relay=told.sender,
        recipient=told.peer,
        categories=given.categories,
        now=told.at,
    )
    return given


def _check_receipt(
    receipt: Receipt | None, told: Account, seq: int, leaf_hash: bytes, cards: Cards
) -> Acknowledged | None:
    """(10), for the entry `seq` of the feed: the release, or what erased it and so came after it."""
    if receipt is None:
        return None
    head = Checkpoint.of(receipt.note)
    if head.origin != told.feed:
        raise WrongFeedError("proof: the receipt is for another feed")
    found = (cosigned_at(receipt.note, told.peer, key) for key in cards.keys(told.peer, Role.RECEIPT))
    times = [moment for moment in found if moment is not None]
    if not times:
        raise SignatureError("proof: the receipt is not cosigned by a key that the recipient had then")
    at = min(times)
    if told.at > at + _SKEW:
        raise SignatureError("proof: the ledger row says a later time of release than that of the recipient's receipt")
    keys = (
        key
        for key in cards.keys(told.sender, Role.FEED)
        if key.valid_from <= at + _SKEW and told.at - _SKEW < key.valid_until
    )
    if not any(signs(receipt.note, told.feed, key) for key in keys):
        raise SignatureError("proof: the head is not signed by a feed key that the sender had then")
    merkle.verify_inclusion(seq, head.size, leaf_hash, receipt.path, head.root)
    return Acknowledged(at, head.size)


def cosigned_at(note: bytes, name: NodeId, key: OnlineKey) -> datetime | None:
    """When `key` cosigned the note, being valid then; None if it did not."""
    try:
        seconds = checkpoint.open_cosignature(note, VerifierKey(name, key.public))
    except SignatureError:
        return None
    if seconds > _LATEST_S:
        return None
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment if key.valid_at(moment) else None


def signs(note: bytes, feed: str, key: OnlineKey) -> bool:
    """Whether `key` signed the note as a head of `feed`."""
    try:
        checkpoint.open_checkpoint(note, feed, VerifierKey(feed, key.public))
    except SignatureError:
        return False
    return True


def _check_eraser(eraser: Eraser, told: Account, cards: Cards) -> Erasure:
    envelope = entries.read(eraser.entry)
    body = envelope.body
    if not isinstance(body, (Withdrawal, RecallOrder, Purge)) or told.seq not in body.seqs:
        raise SignatureError("proof: the entry that should have erased this one does not name it")
    if envelope.feed != told.feed or envelope.seq <= told.seq or (isinstance(body, Withdrawal) and body.feed):
        raise SignatureError("proof: the entry that should have erased this one does not stand later in the same feed")
    reason = _check_recall(body, told, cards).reason.value if isinstance(body, RecallOrder) else body.reason
    done = _check_receipt(eraser.receipt, told, envelope.seq, merkle.leaf_hash(eraser.entry), cards)
    return Erasure(entries.kind_of(body), envelope.seq, reason, done)


def _check_recall(body: RecallOrder, told: Account, cards: Cards) -> Recall:
    order = recall.read(body.document, cards.issue_key)
    if order.origin != told.origin or order.name != told.name or told.revision not in order.revisions:
        raise SignatureError("proof: the recall that erased the entry is for another advisory or revision")
    return order
