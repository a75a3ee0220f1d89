"""Row 11 with whole nodes: readers that need one, and a feed of fuzzed entries that a sync takes in.

The nodes are FR, DE and IN of one process, each with real keys; what they sign is changed and signed anew by them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import grpc
from sqlalchemy import select

from federation import account, agreement, grant, jws, keyring, merkle, proof, recall, statement
from federation.base64url import b64url, from_b64url
from federation.entries import (
    AgreementOffer,
    Delivery,
    ErasedItem,
    Granted,
    NewCard,
    Purge,
    RecallOrder,
    Said,
    Withdrawal,
)
from federation.entries import read as read_entry
from federation.errors import ApostilleError, RemoteError, UsageError
from federation.keyring import Card
from federation.model import Category, JsonObject, Role, Tlp, instant_text
from federation.strictjson import encode
from node.audit import proofs
from node.exchange import sync
from node.home.context import Node
from node.home.tally import Tally
from node.operation import archive
from node.operation.archive import Feed, Manifest
from node.peering import agreements
from node.rpc import server
from node.sharing import advisories
from node.store.database import read as reading
from node.store.tables import in_entries, in_feeds
from protos.exchange.v1 import exchange_pb2 as wire
from tests.faults import mutants, resigned
from tests.faults.fuzz import Target
from tests.forgeries import opened, retold
from tests.nodes import (
    AGREEMENT,
    DE,
    FR,
    IN,
    ForgedFeed,
    World,
    agree,
    document,
    entry,
    history,
    import_document,
    issued,
    make_world,
    release,
    terms_for,
)
from tests.vectors import material as m

ORIGIN = f"{FR}/feeds/{DE}/1"
NAMES = ("proof", "record", "request", "import", "archive")
_METHODS = {b"P": "Pull", b"C": "GetCheckpoint", b"G": "GetProof", b"N": "Notify"}


@dataclass(frozen=True, slots=True)
class Scene:
    """Three nodes that have agreed, and one release that DE has acknowledged; `told` is the feed from FR to DE."""

    world: World
    folder: Path
    told: list[bytes | ErasedItem]


@contextmanager
def make_scene(folder: Path) -> Iterator[Scene]:
    world = make_world(folder, FR, DE, IN)
    agree(world)
    release(world, "FIRST")
    world.sync_all(2)
    yield Scene(world, folder, history(world[FR], DE))
    world.close()


def sign(node: Node, typ: str, payload: bytes) -> bytes:
    """Any payload as a document of kind `typ`, under the real `issue` key of a node."""
    signer = node.keys.signer(Role.ISSUE, node.card, node.clock())
    signature = jws.sign(payload, typ, f"{node.id}/{signer.kid}", signer.sign)
    return jws.serialise(jws.SignedDocument(payload, (signature,)))


def sign_card(node: Node, payload: bytes) -> bytes:
    """Any payload as a card, under the real root keys of a node."""
    signatures = tuple(jws.sign(payload, keyring.JWS_TYPE, root.kid, root.sign) for root in node.keys.roots())
    return jws.serialise(jws.SignedDocument(payload, signatures))


def core(node: Node, payload: bytes) -> bytes:
    """A core of any payload, under the real `issue` key of a node."""
    signer = node.keys.signer(Role.ISSUE, node.card, node.clock())
    head = b64url(encode({"alg": "Ed25519", "typ": "advisory+sd-jwt", "kid": signer.kid}))
    signed = f"{head}.{b64url(payload)}".encode()
    return signed + b"." + b64url(signer.sign(signed)).encode()


def targets(scene: Scene) -> dict[str, Target]:
    """The readers that need a node, by name."""
    fr, de = scene.world[FR], scene.world[DE]
    exported = proofs.export(fr, "FIRST", DE).data
    record = from_b64url(opened(exported)["ledger"]["record"])
    cards = [node.card_bytes for node in scene.world.nodes.values()]
    return {
        "proof": Target(  # it may name a node whose card is not given
            (exported,),
            lambda d: proof.verify(d, cards, fr.labels),
            lambda d, c: _proof(fr, d, c),
            (RemoteError, UsageError),
        ),
        "record": Target((record,), account.read, mutants.json_text),
        "request": Target(_requests(scene), lambda d: _call(fr, de, d), _request, ApostilleError),
        "import": Target(_imports(), lambda d: _import(fr, d), mutants.json_text, ApostilleError),
        "archive": _archive(scene.folder),
    }


def _proof(node: Node, data: bytes, chance: Random) -> bytes:
    """A proof with something else in it, as its sender could have made it."""
    try:
        payload = opened(data)
        kind = chance.random()
        if kind < 0.3:
            row = from_b64url(payload["ledger"]["record"])
            changed = mutants.json_text(row, chance)
            digest = account.chained(bytes.fromhex(payload["ledger"]["before"]), changed).hex()
            payload = {**payload, "ledger": {**payload["ledger"], "record": b64url(changed), "digest": digest}}
        elif kind < 0.6:
            body = resigned.delivery(from_b64url(payload["entry"]), chance, lambda p: core(node, p))
            told: JsonObject = {"leaf_hash": merkle.leaf_hash(body).hex()}
            payload = {**retold(payload, **told), "entry": b64url(body), "receipt": None}
    except (RemoteError, LookupError, TypeError, AttributeError, ValueError):
        return mutants.mutated(data, chance)
    written = encode(payload)
    return sign(node, proof.JWS_TYPE, written if kind < 0.55 else mutants.json_text(written, chance))


def _requests(scene: Scene) -> tuple[bytes, ...]:
    """The method's letter, and the request."""
    link = scene.world.link(DE, FR)
    sync.sync(scene.world[DE], FR, link)
    receipt = next(filter(None, reversed(link.receipts)), b"")
    asked: dict[bytes, Any] = {
        b"P": wire.PullRequest(feed=ORIGIN, cursor=1, receipt=receipt, newest=receipt, max_items=9, protocol=2),
        b"C": wire.GetCheckpointRequest(feed=ORIGIN, size=1, protocol=2),
        b"G": wire.GetProofRequest(feed=ORIGIN, leaf=0, size=2, protocol=2),
        b"N": wire.NotifyRequest(protocol=2),
    }
    more = wire.GetProofRequest(feed=ORIGIN, from_size=1, size=2, protocol=2)
    return (
        *(letter + request.SerializeToString() for letter, request in asked.items()),
        b"G" + more.SerializeToString(),
    )


def _request(data: bytes, chance: Random) -> bytes:
    method = _METHODS.get(data[:1], "Pull")
    return data[:1] + mutants.message(data[1:], getattr(wire, f"{method}Request"), chance)


def _call(node: Node, caller: Node, data: bytes) -> None:
    """What the server does once it knows who calls; whatever it raises, the peer gets a word that is not `internal`."""
    method = _METHODS.get(data[:1], "Pull")
    servicer = server.ExchangeServicer(node, lambda _: None, Tally())
    reader = getattr(wire, f"{method}Request").FromString
    handler: Any = grpc.unary_unary_rpc_method_handler(getattr(servicer, method), reader, None)
    try:
        server._call(method, handler, data[1:], caller.card)
    except ApostilleError as e:
        if server.refusal_of(e)[0] is grpc.StatusCode.INTERNAL:
            raise AssertionError("a refusal of ours that tells the peer of an internal error") from e
        raise


def _imports() -> tuple[bytes, ...]:
    named = {"csaf": m.CSAF, "ai": m.AI, "labels": {"/csaf/document/title": "exploit"}, "handling": {"tlp": "GREEN"}}
    return (encode(document("PLAIN")), encode(named))


def _import(node: Node, data: bytes) -> None:
    """A file that a person imports, and everything that is made of it before it is signed for good."""
    found = advisories.import_file(node, data, "file.json", tlp=Tlp.GREEN if b'"handling"' not in data else None)
    advisories.own_advisory(node, found.advisory.name)


def _archive(folder: Path) -> Target:
    source, file = folder / "source", folder / "backup.tar"
    source.write_bytes(b"database" * 300)
    member = archive.measure("apostille.db", source)
    feeds = (Feed(ORIGIN, 3, 2),)
    made = Manifest(FR, m.NOW, "0.2.0", "2", "apostille.db", feeds, (member, replace(member, name="keys/feed-1.pem")))
    archive.write(file, made, [source, source])
    sample = file.read_bytes()

    def run(data: bytes) -> None:
        file.write_bytes(data)
        archive.verify(file)

    def mutate(data: bytes, chance: Random) -> bytes:
        """Another manifest, with the header that fits it, or other bytes."""
        head = made.encode()
        if chance.random() < 0.4 or not data.startswith(b"manifest.json"):
            return mutants.raw(data, chance)
        new = mutants.json_text(head, chance)
        rest = sample[512 + len(head) + len(archive._padding(len(head))) :]
        return archive._header(archive.MANIFEST, len(new)) + new + archive._padding(len(new)) + rest

    return Target((sample,), run, mutate, ApostilleError)


# A feed of fuzzed entries


def fuzzed_entries(scene: Scene, count: int, start: int, chance: Random) -> list[bytes]:
    """`count` entries from number `start` on, each nearly right, and each at its place if it can be read."""
    honest = list(_honest(scene, start))
    entries: list[bytes] = []
    while len(entries) < count:
        body, mutate = chance.choice(honest)
        seq = start + len(entries)
        data = mutate(entry(ORIGIN, seq, body(chance), chance.randbytes(16)), chance)
        try:
            read = read_entry(data)
        except RemoteError:
            entries.append(data)
            continue
        if (read.feed, read.seq) == (ORIGIN, seq):
            entries.append(data)
    return entries


_Made = tuple[Callable[[Random], Any], Callable[[bytes, Random], bytes]]


def _honest(scene: Scene, start: int) -> Iterator[_Made]:
    """Bodies of every kind, of which the payload may be changed before FR signs, and what is done with the entry."""
    fr, inn = scene.world[FR], scene.world[IN]
    held = agreements.find(fr, AGREEMENT)
    shown = issued(fr, "FIRST")
    terms = terms_for(fr, DE, "FIRST", held)
    now = instant_text(fr.clock())

    def as_it_is(data: bytes, _: Random) -> bytes:
        return data

    def as_message(data: bytes, chance: Random) -> bytes:
        return mutants.message(data, wire.Entry, chance)

    def said(kind: type, typ: str, members: JsonObject) -> Callable[[Random], Any]:
        return lambda chance: kind(sign(fr, typ, mutants.json_text(encode(members), chance)))

    about = {"origin": FR, "name": "FIRST", "revision": 1}
    seen = {**about, "core": terms.core_digest.hex()}
    bodies: dict[str, JsonObject] = {
        "question": {"text": "Is it so?"},
        "acknowledge": {},
        "refusal": {
            "feed": f"{DE}/feeds/{FR}/1",
            "entries": [{"seq": 0, "leaf_hash": bytes(32).hex(), "code": "MALFORMED", "rules": []}],
        },
        "purge": {"recall": bytes(32).hex(), "outcome": "purged", "passed_on": [], "unreachable": []},
        "seen": {"cores": [seen]},
        "core": {"core": shown.core.decode()},
        "other": {"x": 1},
    }
    for kind, body in bodies.items():
        subject = None if kind == "seen" else about
        members = {"statement": kind, "to": DE, "at": now, "about": subject, "in_reply_to": None, "body": body}
        yield said(Said, statement.JWS_TYPE, members), as_it_is
    order = {"recall": "OTHER", "revisions": [1], "reason": "error", "at": now}
    yield (
        lambda c: RecallOrder(sign(fr, recall.JWS_TYPE, mutants.json_text(encode(order), c)), (start - 1,)),
        as_it_is,
    )
    leave = {
        "grant": terms.core_digest.hex(),
        "relay": DE,
        "recipients": [IN],
        "categories": sorted(Category),
        "until": instant_text(held.agreement.valid_until),
    }
    yield said(Granted, grant.JWS_TYPE, leave), as_it_is
    yield lambda c: NewCard(sign_card(inn, _newer_card(inn, c))), as_it_is
    yield lambda c: AgreementOffer(sign(fr, agreement.JWS_TYPE, mutants.json_text(_next(held), c))), as_it_is
    yield (
        lambda _: Delivery(shown, terms),
        lambda data, chance: resigned.delivery(data, chance, lambda payload: core(fr, payload)),
    )
    for plain in (Withdrawal((start - 1,), "x"), Purge((start - 1,), "x"), Delivery(shown, terms)):
        yield lambda _, plain=plain: plain, as_message  # type: ignore[misc]


def _next(held: agreements.Held) -> bytes:
    """A second version of the agreement."""
    first = held.agreement.canonical
    return first.replace(b'"previous":null', b'"previous":"%s"' % held.agreement.digest.hex().encode()).replace(
        b'"version":1', b'"version":2'
    )


def _newer_card(node: Node, chance: Random) -> bytes:
    """A newer card of a node, with a certificate that is nearly one, or with anything else changed."""
    card = replace(node.card, version=node.card.version + 1)
    if chance.random() < 0.5:
        return mutants.json_text(card.payload(), chance)
    return with_certificate(card, lambda der: mutants.der(der, chance)).payload()


def with_certificate(card: Card, change: Callable[[bytes], bytes]) -> Card:
    """The card with its TLS certificates changed, each under the id that it then has."""
    changed = {key: change(key.public) for key in card.keys if key.role is Role.TLS}
    keys = (
        replace(key, public=changed[key], kid=keyring.key_id(Role.TLS, changed[key])) if key in changed else key
        for key in card.keys
    )
    return replace(card, keys=tuple(keys))


def good_entry(scene: Scene, name: str) -> bytes:
    """The next entry of FR's feed: an honest delivery of a new advisory."""
    fr = scene.world[FR]
    shown = issued(fr, import_document(fr, document(name)))
    terms = terms_for(fr, DE, name, agreements.find(fr, AGREEMENT))
    return entry(ORIGIN, len(scene.told), Delivery(shown, terms))


def take_in(scene: Scene, items: list[bytes]) -> list[tuple[int, str, str | None]]:
    """A sync of DE in which FR tells `items` after what it has told: number, disposition and code of each."""
    start = len(scene.told)
    scene.told.extend(items)
    sync.sync(scene.world[DE], FR, ForgedFeed(scene.world[FR], DE, scene.told))
    with reading(scene.world[DE].engine) as tx:
        mine = select(in_entries.c.seq, in_entries.c.outcome, in_entries.c.code).join(in_feeds)
        found = tx.execute(
            mine.where(in_feeds.c.peer == FR, in_entries.c.seq >= start).order_by(in_entries.c.seq)
        ).all()
    return [(row.seq, row.outcome, row.code) for row in found]
