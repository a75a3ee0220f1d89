"""Whole nodes for tests, in one process: homes, agreements in force, honest links, and links that lie.

A `World` is some nodes that know each other and share one clock that tests move. `DirectLink` is the exchange without
gRPC. `LyingLink` stands between receiver and an honest sender and may rewrite what passes, or lose replies. A
`ForgedFeed` is a sender who has its real feed key and signs whatever history it likes.
"""

import atexit
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sqlalchemy import select, update

from config import settings
from federation import checkpoint, handling, merkle, sdjwt
from federation.base64url import b64url
from federation.checkpoint import Checkpoint, origin_line
from federation.entries import Body, Envelope, ErasedItem
from federation.entries import write as write_entry
from federation.errors import UnreachableError
from federation.feed import Ask, PageBytes
from federation.model import Country, JsonObject, NodeId, Presentation, Role, Terms, Tlp, instant_text
from federation.sdjwt.profile import header
from federation.strictjson import encode
from node import main
from node.desk import inbox
from node.exchange import serving, sync
from node.home import owncard
from node.home.context import Node
from node.home.owncard import OwnCard
from node.home.people import Post
from node.peering import agreements, feeds, peers
from node.peering.agreements import Held
from node.sharing import advisories, releases
from node.store.database import MEMORY, create, open_engine, read, write
from node.store.tables import in_entries, out_entries, out_feeds

FR, DE, IN = NodeId("cert.fr.example"), NodeId("cert.de.example"), NodeId("cert.in.example")
COUNTRY_OF = {FR: "FR", DE: "DE", IN: "IN"}
AGREEMENT = "exchange-2026"
ADDRESS = "127.0.0.1:7001"
PEOPLE = {"alice": frozenset(Post), "bob": frozenset(Post)}  # so that two-person acts have two people
EVERYTHING = (
    "{identification: full, technical: full, product: full, severity: full, remediation: full, exploit: full,"
    " indicator: full, personal: full, attribution: full}"
)


@dataclass(slots=True)
class Clock:
    """A clock that stands still until a test moves it."""

    now: datetime

    def __call__(self) -> datetime:
        return self.now

    def move(self, **span: float) -> None:
        """Moves on by `span`, as `timedelta` takes it."""
        self.now += timedelta(**span)


@cache
def _template(name: str, country: str, packs: tuple[str, ...]) -> Path:
    """A home that was made once; making keys is slow."""
    folder = Path(tempfile.mkdtemp(prefix="apostille-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    main.init_home(folder / "home", NodeId(name), Country(country), ADDRESS, ADDRESS, roots=3, threshold=2, packs=packs)
    return folder / "home"


def make_node(
    folder: Path, name: str, country: str, *, packs: tuple[str, ...] = ("eu-gdpr",), database: str | None = None
) -> Node:
    """An open node with a home of its own below `folder`. Two of one name have the same keys.

    `database` is the URL of an empty PostgreSQL database, or MEMORY; None for a file in the home.
    """
    home = folder / name
    shutil.copytree(_template(name, country, packs), home)
    node = main.open_node(home)
    return node if database is None else _moved(node, database)


def _moved(node: Node, where: str) -> Node:
    engine = open_engine(where)
    with create(engine, node.id, node.card.issued_at) as tx:
        owncard.store(tx, node.card, node.card_bytes, at=node.card.issued_at, by="alice")
    node.engine.dispose()
    if where == MEMORY:
        return replace(node, engine=engine, own=OwnCard(engine))
    engine.dispose()
    (node.home / main.DATABASE_FILE).unlink()
    chosen = replace(main.read_settings(node.home), database=where)
    (node.home / settings.FILE_NAME).write_text(settings.write(chosen), encoding="utf-8")
    return main.open_node(node.home)


@dataclass(slots=True)
class World:
    """Nodes that have enrolled each other, under one clock.

    `past` is what was done since they were made, as long as nothing was done but by `remembered`, which `seen` tells.
    """

    nodes: dict[NodeId, Node]
    clock: Clock
    past: tuple[object, ...] = ()
    seen: object = None

    def __getitem__(self, name: NodeId) -> Node:
        return self.nodes[name]

    def link(self, receiver: NodeId, sender: NodeId) -> "DirectLink":
        """The honest way by which `receiver` pulls from `sender`."""
        return DirectLink(self.nodes[sender], self.nodes[receiver])

    def sync(self, receiver: NodeId, sender: NodeId) -> sync.Report:
        """One sync over the honest link."""
        return sync.sync(self.nodes[receiver], sender, self.link(receiver, sender))

    def sync_all(self, rounds: int = 1) -> None:
        """Everybody pulls from everybody, `rounds` times."""
        for _ in range(rounds):
            for receiver in self.nodes:
                for sender in self.nodes:
                    if sender != receiver:
                        self.sync(receiver, sender)

    def close(self) -> None:
        """Closes every database."""
        for node in self.nodes.values():
            node.engine.dispose()


def clock_of(nodes: Iterable[Node]) -> Clock:
    """A clock for new nodes: no card is of its future, and processes beside it, which may go by the real one, are at
    most a minute behind."""
    youngest = max(node.card.issued_at for node in nodes)
    return Clock(max(youngest + timedelta(minutes=1), main.utc_now().replace(microsecond=0)))


def make_world(
    folder: Path,
    *names: NodeId,
    packs: tuple[str, ...] = (),
    databases: Mapping[NodeId, str | None] = MappingProxyType({}),
) -> World:
    """The named nodes (FR and DE if none is), enrolled with each other; no agreement yet."""
    made = {
        name: make_node(folder, name, COUNTRY_OF[name], packs=packs, database=databases.get(name))
        for name in names or (FR, DE)
    }
    clock = clock_of(made.values())
    nodes = {name: replace(node, clock=clock, actor="alice", people=PEOPLE) for name, node in made.items()}
    world = World(nodes, clock)

    def enrol() -> None:
        for node in world.nodes.values():
            for other in world.nodes.values():
                if other is not node:
                    peers.enrol(node, other.card_bytes)

    if any(databases.values()):
        enrol()
    else:
        begin(world, packs)
        remembered(world, "enrol", enrol)
    return world


_REMEMBERED: dict[tuple[object, ...], dict[NodeId, tuple[Path, bytes]]] = {}


def begin(world: World, *made_of: object) -> None:
    """Notes that nothing was done yet in a world whose nodes have files for databases."""
    world.past = (tuple(world.nodes), *made_of)
    world.seen = _happened(world)


def remembered(world: World, step: str, do: Callable[[], None]) -> None:
    """Does a step that is slow. `step` says all that it depends on besides those before it.

    Where only such steps were done in a world, and one in which the same was done is remembered, its databases are
    exchanged for those of that one.
    """
    if world.seen is None or world.seen != _happened(world):
        world.seen = None
        do()
        return
    world.past = (*world.past, step)
    if world.past in _REMEMBERED:
        _take(world, _REMEMBERED[world.past])
    else:
        do()
        _REMEMBERED[world.past] = _kept(world)
    world.seen = _happened(world)


def _kept(world: World) -> dict[NodeId, tuple[Path, bytes]]:
    """Copies of the databases, and the start of each node."""
    folder = Path(tempfile.mkdtemp(prefix="apostille-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name, node in world.nodes.items():
        with (
            closing(sqlite3.connect(node.home / main.DATABASE_FILE)) as file,
            closing(sqlite3.connect(folder / name)) as copy,
        ):
            file.backup(copy)
    return {name: (folder / name, node.start) for name, node in world.nodes.items()}


def _take(world: World, kept: Mapping[NodeId, tuple[Path, bytes]]) -> None:
    for name, (database, start) in kept.items():
        node = world[name]
        node.engine.dispose()
        shutil.copyfile(database, node.home / main.DATABASE_FILE)
        with write(node.engine) as tx:
            tx.execute(update(out_feeds).where(out_feeds.c.shown_to == start).values(shown_to=node.start))


def _happened(world: World) -> object:
    """Tells a world in which something has happened from one in which nothing has: its databases were written."""
    files = [path for node in world.nodes.values() for path in node.home.glob(f"{main.DATABASE_FILE}*")]
    written = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files if path.suffix != ".db-shm"}
    return tuple(world.nodes.items()), world.clock.now, written


def reopen(world: World, name: NodeId) -> Node:
    """The node after a restart: nothing but its home is left of it."""
    old = world.nodes[name]
    old.engine.dispose()
    world.nodes[name] = replace(main.open_node(old.home), clock=world.clock, actor=old.actor, people=old.people)
    return world.nodes[name]


def terms_text(world: World, **changed: Any) -> str:
    """An agreement as YAML: everything, both ways, among all nodes of `world`; members replaced by `changed`."""
    now = world.clock().replace(microsecond=0)
    members = {
        "agreement": AGREEMENT,
        "version": 1,
        "parties": f"[{', '.join(world.nodes)}]",
        "valid_from": instant_text(now - timedelta(days=1)),
        "valid_until": instant_text(now + timedelta(days=200)),
        "sunset_review": instant_text(now + timedelta(days=100)),
        "purposes": "[remediation, detection]",
        "grants": "\n  - id: all\n    tlp: [CLEAR, GREEN, AMBER, AMBER+STRICT, RED]\n"
        f"    tiers: [standard, sensitive, dual_use]\n    share: {EVERYTHING}",
        **changed,
    }
    return "\n".join(f"{name}: {value}" for name, value in members.items())


def agree(world: World, text: str | None = None, **changed: Any) -> Held:
    """An agreement in force among all nodes: proposed by the first, signed by each, carried by the feeds.

    It says `text`, or else what `terms_text` makes of `changed`.
    """
    first, *others = world.nodes.values()
    reference = str(changed.get("agreement", AGREEMENT))

    def sign() -> None:
        nonlocal reference
        reference = agreements.propose(first, text or terms_text(world, **changed), "a.yaml").agreement.digest.hex()
        world.sync_all()
        for node in others:
            agreements.countersign(node, reference)
        world.sync_all(2)

    if text is None:
        remembered(world, f"agree {changed}", sign)
    else:
        sign()
    return agreements.find(first, reference)


def document(
    name: str, *, title: str = "A flaw", notes: Sequence[str] = ("What is known.",), **more: Any
) -> JsonObject:
    """A small document that is valid CSAF 2.0."""
    moment = "2026-11-01T09:00:00Z"
    return {
        "document": {
            "category": "csaf_base",
            "csaf_version": "2.0",
            "title": title,
            "publisher": {"category": "coordinator", "name": "CERT", "namespace": "https://cert.example"},
            "tracking": {
                "id": name,
                "version": "1",
                "status": "final",
                "initial_release_date": moment,
                "current_release_date": moment,
                "revision_history": [{"date": moment, "number": "1", "summary": "First release"}],
            },
            "notes": [{"category": "summary", "title": "Summary", "text": text} for text in notes],
        },
        **more,
    }


def import_document(
    node: Node,
    content: JsonObject,
    *,
    handling: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
    tlp: Tlp | None = None,
) -> str:
    """Imports a document as a draft and returns its tracking id."""
    file = {"csaf": content, "handling": dict(handling or {"tlp": "GREEN"}), "labels": dict(labels or {})}
    return advisories.import_file(node, encode(file), "file.json", tlp=tlp).advisory.name


class DirectLink:
    """`node.exchange.sync.Link` without a network: the honest server is called in this process."""

    def __init__(self, server: Node, caller: Node, page: int = 0) -> None:
        self.server, self.caller, self.page = server, caller, page
        self.receipts: list[bytes] = []

    def pull(self, ask: Ask) -> PageBytes:
        self.receipts.append(ask.receipt)
        page = serving.pull(self.server, self.caller.card, ask, self.page)
        return PageBytes(page.items, page.checkpoint, page.latest, page.receipt, page.epoch)

    def checkpoint(self, origin: str, size: int) -> bytes:
        return serving.checkpoint_at(self.server, self.caller.card, origin, size)


@dataclass(slots=True)
class LyingLink:
    """Passes what an honest link says through `rewrite`. Loses the next `lost` replies after they were applied."""

    honest: sync.Link
    rewrite: Callable[[PageBytes], PageBytes] = lambda page: page
    lost: int = 0
    pulls: int = 0
    asked: list[int] = field(default_factory=list)

    def pull(self, ask: Ask) -> PageBytes:
        self.pulls += 1
        page = self.honest.pull(ask)
        if self.lost:
            self.lost -= 1
            raise UnreachableError("the reply was lost")
        return self.rewrite(page)

    def checkpoint(self, origin: str, size: int) -> bytes:
        self.asked.append(size)
        return self.honest.checkpoint(origin, size)


class ForgedFeed:
    """`node.exchange.sync.Link` of a sender with its real feed key and a history of its choice.

    `items` are all entries of that history; pages hold `page` of them. The roots are those of `items`, so that a later
    ForgedFeed with other items is a fork.
    """

    def __init__(
        self,
        sender: Node,
        receiver: NodeId,
        items: Sequence[bytes | ErasedItem],
        *,
        page: int = 512,
        latest_age_s: float = 0,
    ) -> None:
        self.sender, self.items, self.page, self.latest_age_s = sender, tuple(items), page, latest_age_s
        self.origin = origin_line(sender.id, receiver, 1)
        self.receipts: list[bytes] = []

    def head(self, size: int, root: bytes | None = None) -> bytes:
        """The signed head at `size`, with the true root of this history unless another is given."""
        signer = self.sender.keys.signer(Role.FEED, self.sender.card, self.sender.clock())
        true = merkle.root(
            [i.leaf_hash if isinstance(i, ErasedItem) else merkle.leaf_hash(i) for i in self.items[:size]]
        )
        return checkpoint.sign(Checkpoint(self.origin, size, root or true), self.origin, signer.sign, signer.public)

    def latest(self, size: int, root: bytes | None = None) -> bytes:
        """The same with the log's own timestamped cosignature."""
        now = self.sender.clock() - timedelta(seconds=self.latest_age_s)
        signer = self.sender.keys.signer(Role.FEED, self.sender.card, self.sender.clock())
        return checkpoint.cosign(self.head(size, root), self.origin, int(now.timestamp()), signer.sign, signer.public)

    def pull(self, ask: Ask) -> PageBytes:
        assert ask.origin == self.origin
        self.receipts.append(ask.receipt)
        items = self.items[ask.cursor : ask.cursor + self.page]
        head = self.head(min(ask.cursor, len(self.items)) + len(items))
        newest = max(self.receipts, key=lambda note: Checkpoint.of(note).size if note else -1)
        return PageBytes(items, head, self.latest(len(self.items)), newest)

    def checkpoint(self, origin: str, size: int) -> bytes:
        assert origin == self.origin
        return self.head(size)


def entry(origin: str, seq: int, body: Body, nonce: bytes = b"n" * 16) -> bytes:
    """The bytes of an entry."""
    return write_entry(Envelope(origin, seq, nonce, body))


def history(sender: Node, receiver: NodeId) -> list[bytes | ErasedItem]:
    """Everything in the feed from `sender` to `receiver`, as it stands in the sender's database."""
    with read(sender.engine) as tx:
        feed = feeds.out_feed(tx, receiver).id
        rows = tx.execute(select(out_entries).where(out_entries.c.feed == feed).order_by(out_entries.c.seq)).all()
    return [r.data if r.data is not None else ErasedItem(r.seq, r.leaf_hash, r.erased_by) for r in rows]


def terms_for(sender: Node, recipient: NodeId, name: str, held: Held) -> Terms:
    """The terms that an honest release of the issued advisory `name` would have."""
    _, own = advisories.own_advisory(sender, name)
    return handling.narrow(own.handling, held.agreement, own.core_digest, recipient, sender.clock())


def issued(sender: Node, name: str) -> Presentation:
    """The advisory `name`, signed now if it was a draft, with every full form of every part of it."""
    with write(sender.engine) as tx:
        _, own = advisories.issue(sender, tx, name)
    general = {e.generalised for e in own.elements if e.full is not None}
    return Presentation(own.core, tuple(n.disclosure.raw for n in own.nodes if n.digest not in general))


def append_by_hand(sender: Node, recipient: NodeId, body: Body) -> int:
    """Appends what no honest release would; returns its place in the feed."""
    with write(sender.engine) as tx:
        return feeds.append(sender, tx, recipient, body).seq


def signed_core(sender: Node, payload: JsonObject) -> bytes:
    """A core with any `payload`, under the real issue key of `sender`; no honest issuer checks what it says."""
    signer = sender.keys.signer(Role.ISSUE, sender.card, sender.clock())
    signing_input = f"{b64url(encode(header(signer.kid)))}.{b64url(encode(payload))}"
    return f"{signing_input}.{b64url(signer.sign(signing_input.encode()))}".encode()


def payload_of(core: bytes) -> JsonObject:
    """The payload in a core, unverified."""
    return sdjwt.read_header_and_payload(core).payload


def files_hold(node: Node, needle: bytes) -> bool:
    """Whether `needle` stands anywhere in the database's files, the write-ahead log included."""
    return any(needle in path.read_bytes() for path in node.home.glob("apostille.db*"))


def release(world: World, *names: str) -> None:
    """FR releases a small document under each name."""
    for name in names:
        releases.release(world[FR], import_document(world[FR], document(name, title=f"Title of {name}")))


def arrived(world: World) -> list[str]:
    """What DE has in its inbox, in the order of the feed."""
    return [item.name for item in sorted(inbox.items(world[DE], every_state=True), key=lambda item: item.seq)]


def rows(world: World) -> list[tuple[int, str, str | None]]:
    """Number, disposition and code of every entry that DE received."""
    with read(world[DE].engine) as tx:
        found = tx.execute(select(in_entries.c.seq, in_entries.c.outcome, in_entries.c.code).order_by(in_entries.c.seq))
        return [(row.seq, row.outcome, row.code) for row in found]


def held_by_sender(world: World) -> int:
    """How many entries FR knows to be durable at DE."""
    with read(world[FR].engine) as tx:
        size: int = tx.execute(select(out_feeds.c.receipt_size).where(out_feeds.c.peer == DE)).scalar_one()
    return size
