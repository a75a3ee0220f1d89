"""Mutations that are signed anew by the real keys of test nodes, so that what lies behind a signature is reached."""

import hashlib
from collections.abc import Callable, Sequence
from random import Random

from google.protobuf.message import DecodeError

from federation import checkpoint, grant, jws, merkle
from federation.base64url import from_b64url
from federation.checkpoint import VerifierKey
from federation.errors import RemoteError
from federation.keyring import root_key_id
from federation.limits import HASH_BYTES
from federation.model import Category
from federation.sdjwt.disclosure import digest_of
from protos.exchange.v1 import exchange_pb2 as wire
from tests.faults import mutants
from tests.vectors import material as m

Mutate = Callable[[bytes, Random], bytes]
SIGNERS = {m.issue_kid(node): f"{node} issue" for node in m.CARDS} | {
    root_key_id(m.public(f"{node} root {n}")): f"{node} root {n}" for node in m.CARDS for n in (1, 2, 3)
}
FEED_KEY = VerifierKey(m.ORIGIN, m.public(f"{m.FR} feed"))
RECEIPT_KEY = VerifierKey(m.DE, m.public(f"{m.DE} receipt"))


def document(typ: str) -> Mutate:
    """A signed document of kind `typ` with another payload, signed anew by whoever had signed it."""

    def mutate(data: bytes, chance: Random) -> bytes:
        try:
            signed = jws.parse(data, typ=typ, max_bytes=1 << 20)
        except RemoteError:
            return mutants.mutated(data, chance)
        if chance.random() < 0.15:
            return mutants.mutated(data, chance)
        payload = mutants.json_text(signed.payload, chance)
        signers = [(s.kid, SIGNERS[s.kid]) for s in signed.signatures if s.kid in SIGNERS]
        return m.document(payload, typ, signers).encode()

    return mutate


def delivery(data: bytes, chance: Random, core_of: Callable[[bytes], bytes] = m.core) -> bytes:
    """An entry with another core, another disclosure to which its core refers, or other terms; `core_of` signs."""
    try:
        entry = wire.Entry.FromString(data)
        shown = entry.presentation
        payload = from_b64url(shown.core.split(b".")[1].decode("latin-1"))
    except (DecodeError, IndexError, RemoteError):
        return mutants.message(data, wire.Entry, chance)
    kind, raws = chance.random(), list(shown.disclosures)
    if kind < 0.1:
        return mutants.message(data, wire.Entry, chance)
    if kind < 0.55 and raws:
        place = chance.randrange(len(raws))
        new = mutants.json_text(raws[place], chance)
        payload, raws = _followed(payload, raws, {place: new})
    elif kind < 0.65 and raws:
        raws.insert(chance.randrange(len(raws)), chance.choice(raws))
    elif kind < 0.75 and raws:
        del raws[chance.randrange(len(raws))]
    else:
        payload = mutants.json_text(payload, chance)
    core = core_of(payload)
    del shown.disclosures[:]
    shown.core = core
    shown.disclosures.extend(raws)
    shown.terms.core_digest = hashlib.sha256(core).digest()
    if shown.grant and chance.random() < 0.8:
        shown.grant = grant_for(core) if chance.random() < 0.7 else document(grant.JWS_TYPE)(shown.grant, chance)
    if chance.random() < 0.2:
        terms = mutants.message(shown.terms.SerializeToString(), wire.Terms, chance)
        try:
            shown.terms.ParseFromString(terms)
        except DecodeError:
            return mutants.message(entry.SerializeToString(deterministic=True), wire.Entry, chance)
    return entry.SerializeToString(deterministic=True)


def _followed(payload: bytes, raws: Sequence[bytes], changed: dict[int, bytes]) -> tuple[bytes, list[bytes]]:
    """Payload and disclosures whose digests follow the `changed` ones; parents stand before their children."""
    renamed: list[tuple[bytes, bytes]] = []
    after = list(raws)
    for place in reversed(range(len(raws))):
        new = changed.get(place, raws[place])
        for old, other in renamed:
            new = new.replace(old, other)
        if new != raws[place]:
            renamed.append((digest_of(raws[place]).encode(), digest_of(new).encode()))
            after[place] = new
    for old, other in renamed:
        payload = payload.replace(old, other)
    return payload, after


def note(data: bytes, chance: Random) -> bytes:
    """A note whose body is changed and signed anew by feed and receipt keys, or whose lines are changed."""
    body, gap, lines = data.partition(b"\n\n")
    if not gap or chance.random() < 0.4:
        return mutants.raw(data, chance)
    body = b"\n".join(_line(line, chance) if chance.random() < 0.4 else line for line in body.split(b"\n")) + b"\n"
    log, cosigner = m.signer(f"{m.FR} feed"), m.signer(f"{m.DE} receipt")
    signed = body + b"\n" + checkpoint._line(FEED_KEY, checkpoint._Algorithm.ED25519, log(body))
    if lines.count(b"\n") > 1:
        at = chance.choice((1, int(m.NOW.timestamp()), 0, 1 << 40, (1 << 63) - 1, (1 << 64) - 1))
        told = at.to_bytes(8, "big") + cosigner(checkpoint._cosigned(body, at))
        signed += checkpoint._line(RECEIPT_KEY, checkpoint._Algorithm.COSIGNATURE_V1, told)
    return signed


def _line(line: bytes, chance: Random) -> bytes:
    sizes = (b"0", b"1", b"-1", b"01", b"9" * 19, b"9223372036854775807", b"9" * 5_000, "٣".encode(), b"1_0", b"1.0")
    return chance.choice((chance.choice(sizes), mutants.raw(line, chance)))


def page(data: bytes, chance: Random) -> bytes:
    """A page with an item changed, under heads that are signed anew, or with something else changed."""
    try:
        answer = wire.PullResponse.FromString(data)
    except DecodeError:
        return mutants.raw(data, chance)
    if not answer.items or chance.random() < 0.3:
        return mutants.message(data, wire.PullResponse, chance)
    item = chance.choice(answer.items)
    if chance.random() < 0.1:
        item.erased.seq, item.erased.leaf_hash = chance.randrange(6), bytes(32)
        item.erased.erased_by = chance.choice((0, 3, 4, 5, (1 << 64) - 1))
    else:
        item.entry = delivery(item.entry, chance)
    hashes = [i.erased.leaf_hash if i.HasField("erased") else merkle.leaf_hash(i.entry) for i in answer.items]
    root = merkle.root((h + bytes(HASH_BYTES))[:HASH_BYTES] for h in hashes)
    answer.checkpoint, answer.latest = m.note(len(hashes), root).encode(), m.newest(len(hashes), root).encode()
    return answer.SerializeToString()


def grant_for(core: bytes) -> bytes:
    """FR's leave to DE to pass `core` on to IN, in whole."""
    kid, sign = m.issue_kid(m.FR).partition("/")[2], m.signer(f"{m.FR} issue")
    digest = hashlib.sha256(core).digest()
    return grant.sign(m.FR, digest, m.DE, [m.IN], Category, m.END, kid=kid, sign_bytes=sign).document
