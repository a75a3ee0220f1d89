"""Proofs that their sender has forged: each is signed anew by the real key of the node that sent.

What refuses it is what others have signed. The number in a name is that of the check that has to find it
(`federation.proof`).
"""

import hashlib
from base64 import b64decode
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from federation import account, entries, jws, merkle, proof, strictjson
from federation.base64url import b64url, from_b64url
from federation.entries import Delivery, Withdrawal
from federation.errors import (
    ApostilleError,
    GrantError,
    KeyringError,
    MalformedError,
    SignatureError,
    TermsError,
)
from federation.limits import MAX_CLOCK_SKEW_S, MAX_PROOF_BYTES
from federation.model import JsonObject, NodeId, Purpose, Role, instant_text
from node.home.context import Node
from tests.nodes import DE, IN

THANKS = "/csaf/document/acknowledgments/0/names"
_SAID = {
    "origin": "origin",
    "advisory": "name",
    "revision": "revision",
    "seq": "seq",
    "released_at": "at",
    "released_by": "by",
}


def opened(data: bytes) -> JsonObject:
    """The payload of a proof."""
    signed = jws.parse(data, typ=proof.JWS_TYPE, max_bytes=MAX_PROOF_BYTES)
    return strictjson.decode_object(signed.payload, max_bytes=MAX_PROOF_BYTES, what="proof")


def sealed(node: Node, payload: JsonObject, *, as_node: NodeId | None = None, typ: str = proof.JWS_TYPE) -> bytes:
    """A payload as a proof, signed by the real `issue` key of a node."""
    signer = node.keys.signer(Role.ISSUE, node.card, node.clock())
    body = strictjson.encode(payload)
    signature = jws.sign(body, typ, f"{as_node or node.id}/{signer.kid}", signer.sign)
    return jws.serialise(jws.SignedDocument(body, (signature,)))


def retold(payload: JsonObject, **changed: Any) -> JsonObject:
    """The payload with another ledger row, as a sender would have written it from the start."""
    record = {**record_of(payload), **changed}
    written, before = strictjson.encode(record), payload["ledger"]["before"]
    digest = account.chained(bytes.fromhex(before), written).hex()
    says = {name: record[member] for name, member in _SAID.items()}
    return {
        **payload,
        "says": {**payload["says"], **says},
        "ledger": {"before": before, "record": b64url(written), "digest": digest},
    }


def unacknowledged(payload: JsonObject) -> JsonObject:
    """The payload without its receipt."""
    return {**said(payload, acknowledged_at=None), "receipt": None}


def resent(payload: JsonObject, change: Callable[[Delivery], Delivery], **told: Any) -> JsonObject:
    """The payload with another entry and a row that agrees with it, before anybody has acknowledged it."""
    envelope = entries.read(from_b64url(payload["entry"]))
    assert isinstance(envelope.body, Delivery)
    body = change(envelope.body)
    data = entries.write(replace(envelope, body=body))
    core = hashlib.sha256(body.presentation.core).hexdigest()
    row = {"leaf_hash": merkle.leaf_hash(data).hex(), "core_digest": core, **told}
    return {**unacknowledged(retold(payload, **row)), "entry": b64url(data)}


def altered(core: bytes) -> bytes:
    """A core whose signature is that of another one."""
    head, body, signature = core.split(b".")
    payload = strictjson.decode_object(from_b64url(body.decode()), max_bytes=MAX_PROOF_BYTES, what="core")
    changed = strictjson.encode({**payload, "handling": {**payload["handling"], "tlp": "CLEAR"}})
    return b".".join((head, b64url(changed).encode(), signature))


def other_core(delivery: Delivery) -> Delivery:
    core = altered(delivery.presentation.core)
    terms = replace(delivery.terms, core_digest=hashlib.sha256(core).digest())
    return replace(delivery, presentation=replace(delivery.presentation, core=core), terms=terms)


def wider(delivery: Delivery) -> Delivery:
    return replace(delivery, terms=replace(delivery.terms, purposes=frozenset(Purpose)))


def record_of(payload: JsonObject) -> JsonObject:
    return strictjson.decode_object(
        from_b64url(payload["ledger"]["record"]), max_bytes=MAX_PROOF_BYTES, what="ledger record"
    )


def reformed(payload: JsonObject, path: str, form: str | None) -> JsonObject:
    """The row says another form of one part, or nothing of it."""
    kept = [part for part in record_of(payload)["elements"] if part[0] != path]
    return retold(payload, elements=kept if form is None else [*kept, [path, form, []]])


def receipt_of(payload: JsonObject, **changed: Any) -> JsonObject:
    return {**payload, "receipt": {**payload["receipt"], **changed}}


def said(payload: JsonObject, **changed: Any) -> JsonObject:
    return {**payload, "says": {**payload["says"], **changed}}


def signed_less(payload: JsonObject) -> JsonObject:
    """The agreement without the last signature."""
    document = jws.parse(from_b64url(payload["agreement"]), typ="agreement+jws", max_bytes=MAX_PROOF_BYTES)
    fewer = jws.SignedDocument(document.payload, document.signatures[:-1])
    return {**payload, "agreement": b64url(jws.serialise(fewer))}


def without_cosignature(payload: JsonObject) -> JsonObject:
    lines = from_b64url(payload["receipt"]["note"]).decode().splitlines(keepends=True)
    return receipt_of(payload, note=b64url("".join(line for line in lines if f"— {DE} " not in line).encode()))


def without_head(payload: JsonObject) -> JsonObject:
    lines = from_b64url(payload["receipt"]["note"]).decode().splitlines(keepends=True)
    return receipt_of(payload, note=b64url("".join(line for line in lines if "— cert.fr" not in line).encode()))


def other_eraser(payload: JsonObject) -> JsonObject:
    """A withdrawal of something else, at the same place."""
    envelope = entries.read(from_b64url(payload["eraser"]["entry"]))
    assert isinstance(envelope.body, Withdrawal)
    data = entries.write(replace(envelope, body=replace(envelope.body, seqs=(0,))))
    return {**payload, "eraser": {"entry": b64url(data), "receipt": None}}


def earlier_eraser(payload: JsonObject) -> JsonObject:
    """The row says that the release stood after what erased it."""
    after = entries.read(from_b64url(payload["eraser"]["entry"])).seq
    return unacknowledged(retold(payload, seq=after))


def dated_after(payload: JsonObject, receipt: JsonObject) -> JsonObject:
    """The row says that the release was later than the receipt, by a second more than clocks may differ."""
    lines = from_b64url(receipt["note"]).decode().splitlines()
    (blob,) = (b64decode(line.split(" ")[2]) for line in lines if line.startswith(f"\N{EM DASH} {DE} "))
    at = datetime.fromtimestamp(int.from_bytes(blob[4:12], "big") + MAX_CLOCK_SKEW_S + 1, UTC)
    return retold(payload, at=instant_text(at))


Forgery = Callable[[JsonObject], JsonObject]
FORGED: dict[str, tuple[str, type[ApostilleError], str, Forgery]] = {
    "1 a member more": ("FIRST", MalformedError, "members", lambda p: {**p, "note": ""}),
    "1 another version": ("FIRST", MalformedError, "version", lambda p: {**p, "proof": 2}),
    "1 a truth value as its version": ("FIRST", MalformedError, "version", lambda p: {**p, "proof": True}),
    "1 neither entry nor eraser": ("FIRST", MalformedError, "either", lambda p: {**p, "entry": None}),
    "2 cards in another order": ("FIRST", MalformedError, "order", lambda p: {**p, "cards": p["cards"][::-1]}),
    "2 a card twice": ("FIRST", MalformedError, "twice", lambda p: {**p, "cards": [*p["cards"], p["cards"][-1]]}),
    "3 its sender's card is not in it": ("FIRST", KeyringError, "issue key", lambda p: {**p, "cards": p["cards"][:1]}),
    "3 signed at another time": (
        "FIRST",
        KeyringError,
        "for that time",
        lambda p: said(p, exported_at="2020-01-01T00:00:00Z"),
    ),
    "4 another digest": (
        "FIRST",
        SignatureError,
        "digest of the ledger row",
        lambda p: {**p, "ledger": {**p["ledger"], "digest": "00" * 32}},
    ),
    "4 another digest before it": (
        "FIRST",
        SignatureError,
        "digest of the ledger row",
        lambda p: {**p, "ledger": {**p["ledger"], "before": "00" * 32}},
    ),
    "4 says another user": ("FIRST", SignatureError, "in plain", lambda p: said(p, released_by="bob")),
    "4 says another time of receipt": (
        "FIRST",
        SignatureError,
        "in plain",
        lambda p: said(p, acknowledged_at="2026-11-22T00:00:00Z"),
    ),
    "4 says a number as a truth value": ("FIRST", SignatureError, "in plain", lambda p: said(p, revision=True)),
    "4 says that it was never taken back": ("BACK", SignatureError, "in plain", lambda p: said(p, taken_back=None)),
    "4 a row that is no release": ("FIRST", MalformedError, "release", lambda p: retold(p, act="withdrawal")),
    "4 a row for another peer": ("FIRST", MalformedError, "peer", lambda p: retold(p, peer=IN)),
    "5 another agreement": ("BACK", SignatureError, "not the one", lambda p: retold(p, agreement="00" * 32)),
    "5 an agreement that one party has not signed": ("FIRST", SignatureError, "every party", signed_less),
    "5 a release before the agreement began": (
        "FIRST",
        KeyringError,
        "for that time",
        lambda p: retold(p, at="2026-01-01T00:00:00Z"),
    ),
    "5 a release after the agreement ended": (
        "FIRST",
        SignatureError,
        "did not let",
        lambda p: unacknowledged(retold(p, at="2027-11-01T00:00:00Z")),
    ),
    "6 another leaf hash": (
        "FIRST",
        SignatureError,
        "leaf hash",
        lambda p: unacknowledged(retold(p, leaf_hash="00" * 32)),
    ),
    "6 another place": ("FIRST", SignatureError, "place", lambda p: unacknowledged(retold(p, seq=0))),
    "6 other terms": ("FIRST", SignatureError, "terms", lambda p: retold(p, onward="constituents")),
    "6 another name": ("FIRST", SignatureError, "another advisory", lambda p: retold(p, name="SECOND")),
    "6 another revision": ("FIRST", SignatureError, "another advisory", lambda p: retold(p, revision=2)),
    "6 another core": ("FIRST", SignatureError, "terms|digest", lambda p: retold(p, core_digest="00" * 32)),
    "6 a part kept quiet": ("PART", SignatureError, "does not say", lambda p: reformed(p, THANKS, None)),
    "6 a part said to be withheld": ("PART", SignatureError, "does not say", lambda p: reformed(p, THANKS, "withheld")),
    "6 a part that did not go": ("PART", SignatureError, "not disclosed", lambda p: reformed(p, "/csaf/x", "full")),
    "6 a full part said to be general": (
        "PART",
        SignatureError,
        "disclosed in full",
        lambda p: reformed(p, "/csaf/document/title", "generalised"),
    ),
    "7 a core that its origin did not sign": ("FIRST", SignatureError, "Ed25519", lambda p: resent(p, other_core)),
    "8 wider terms": (
        "FIRST",
        TermsError,
        "purposes",
        lambda p: resent(p, wider, purposes=sorted(Purpose)),
    ),
    "9 passed on without the grant": (
        "GRANTED on",
        GrantError,
        "without a grant",
        lambda p: resent(p, lambda d: replace(d, grant=b"")),
    ),
    "9 a grant that its origin need not give": (
        "FIRST",
        MalformedError,
        "delivers itself",
        lambda p: resent(p, lambda d: replace(d, grant=b"{}")),
    ),
    "10 no cosignature": ("FIRST", SignatureError, "not cosigned", without_cosignature),
    "10 no head": ("FIRST", SignatureError, "not signed by a feed key", without_head),
    "10 a way to nowhere": ("FIRST", SignatureError, "inclusion", lambda p: receipt_of(p, path=[])),
    "10 another way": (
        "FIRST",
        SignatureError,
        "inclusion",
        lambda p: receipt_of(p, path=["00" * 32, *p["receipt"]["path"][1:]]),
    ),
    "10 released after it was acknowledged": (
        "FIRST",
        SignatureError,
        "later time of release",
        lambda p: dated_after(p, p["receipt"]),
    ),
    "11 released after its erasure was acknowledged": (
        "BACK",
        SignatureError,
        "later time of release",
        lambda p: unacknowledged(dated_after(p, p["eraser"]["receipt"])),
    ),
    "11 it erased something else": ("BACK", SignatureError, "does not name", other_eraser),
    "11 it stands before": ("BACK", SignatureError, "does not name", earlier_eraser),
    "11 a recall of another revision": ("RECALLED", SignatureError, "recall", lambda p: retold(p, revision=7)),
    "11 a recall of another advisory": ("RECALLED", SignatureError, "recall", lambda p: retold(p, name="OTHER")),
    "11 a recall by somebody else": ("RECALLED", SignatureError, "recall", lambda p: retold(p, origin=DE)),
}
