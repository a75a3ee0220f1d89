"""Three nodes in one process, real code over real stores, and from a seed everything that can happen to them.

A run begins with three nodes that have an agreement. Acts follow, drawn from the seed: people release, revise, pass on,
recall and distrust, agreements and keys change, nodes sync, time goes by. Faults are drawn with them: lines that lose,
cut, reorder, repeat and flip; processes that end inside a commit; clocks that jump; stores that are put back, with a
word or without, and one that runs twice; one node that lies. `heal` is what people do afterwards, as the operator's
guide says it.

What must hold is computed here by other means than the nodes': by plain SQL, by the words that stand in documents, and
by what was agreed as the simulation itself noted it. `Log` and `Line` look on while pages pass; the rest is in
`test_simulation`. What is left out, as no protocol can settle it, is what docs/security.md names: both ends put back
without a word, and memory lost while two copies of the other end run.
"""

import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from random import Random

from sqlalchemy import Engine, event

from federation import merkle
from federation.checkpoint import Checkpoint
from federation.errors import DeniedError, LocalError, NotFoundError, RemoteError, UnreachableError
from federation.feed import Ask, PageBytes
from federation.keyring import Card
from federation.model import NodeId
from node.exchange import serving, sync
from node.home.context import Node
from node.home.owncard import OwnCard
from node.operation import carryover
from node.peering import peers
from node.sharing import retention
from node.store import database
from node.store.database import MEMORY, open_engine
from tests.nodes import DE, FR, IN, Clock, World, agree, make_world

PARTIES = (FR, DE, IN)
WORDS = re.compile(rb"Word of ([A-Z]{2}-\d+) at (\d+): (plain|personal|exploit), kestrel")
_BEFORE = timedelta(days=70)  # so long that the keys were valid by a clock that is two months behind
_SPARE = "spare"


class CrashError(Exception):
    """A process ended between two statements, or inside a commit."""


class Fuse:
    """Ends the process that works with a store, after so many statements."""

    def __init__(self) -> None:
        self.left: int | None = None

    def __call__(self, *_: object) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None
                raise CrashError


class Store:
    """The database of a node, in memory. `raw` is a way into it beside the node's code."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.fuse = engine, Fuse()
        self._held = engine.raw_connection()
        raw = self._held.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        self.raw = raw
        event.listen(engine, "before_cursor_execute", self.fuse)
        event.listen(engine, "commit", self.fuse)

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """What a query finds."""
        return self.raw.execute(query, values).fetchall()

    def save(self) -> sqlite3.Connection:
        """A copy."""
        copy = sqlite3.connect(":memory:")
        self.raw.backup(copy)
        return copy

    def load(self, saved: sqlite3.Connection) -> None:
        """Puts a copy in its place."""
        saved.backup(self.raw)


@dataclass(frozen=True)
class Saved:
    """A backup: the database and the key files."""

    data: sqlite3.Connection
    keys: dict[Path, bytes]


class Ground:
    """Where each run begins: nodes that have an agreement. It is made once and copied into the same stores each time,
    so that what SQLAlchemy has compiled stays."""

    def __init__(self, folder: Path) -> None:
        self.world = make_world(folder, *PARTIES, packs=("eu-gdpr",), databases=dict.fromkeys(PARTIES, MEMORY))
        self.world.clock.now += _BEFORE
        self.agreement = agree(self.world, onward="peers").agreement.digest
        self.now = self.world.clock.now
        self.stores: dict[str, Store] = {name: Store(node.engine) for name, node in self.world.nodes.items()}
        self.stores[_SPARE] = Store(open_engine(MEMORY))
        self.saved = {name: self.save(name) for name in PARTIES}

    def save(self, name: NodeId) -> Saved:
        """A backup of a node as it is."""
        files = (self.world[name].home / "keys").iterdir()
        return Saved(self.stores[name].save(), {path: path.read_bytes() for path in files})

    def put_back(self, name: NodeId, saved: Saved) -> None:
        """A node as it was."""
        self.stores[name].load(saved.data)
        folder = self.world[name].home / "keys"
        for path in set(folder.iterdir()) - saved.keys.keys():
            path.unlink()
        for path, data in saved.keys.items():
            if not path.exists():
                path.touch(mode=0o600)
                path.write_bytes(data)

    def close(self) -> None:
        """Closes every store."""
        self.stores[_SPARE].engine.dispose()
        self.world.close()


@dataclass
class Log:
    """What was ever signed and sent, whichever copy of a node did it; `broken` tells what should not have been."""

    leaves: dict[str, list[bytes]] = field(default_factory=dict)
    sent: dict[tuple[str, int], bytes] = field(default_factory=dict)
    receipts: dict[str, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def head(self, store: Store, note: bytes) -> None:
        """A head that was signed: the leaves under it are those of every earlier head (I8, I16)."""
        head = Checkpoint.of(note)
        found = store.rows(
            "SELECT e.leaf_hash FROM out_entries e JOIN out_feeds f ON f.id = e.feed"
            " WHERE f.origin = ? AND e.seq < ? ORDER BY e.seq",
            head.origin,
            head.size,
        )
        leaves = [row[0] for row in found if isinstance(row[0], bytes)]
        if merkle.root(leaves) != head.root or len(leaves) != head.size:
            self.broken.append(f"I8: the head of {head.origin} at {head.size} is not over its entries")
        known = self.leaves.setdefault(head.origin, [])
        if any(a != b for a, b in zip(known, leaves, strict=False)):
            self.broken.append(f"I16: {head.origin}: a number below {head.size} was signed for two entries")
        known.extend(leaves[len(known) :])

    def receipt(self, note: bytes) -> None:
        """A receipt that was given is no lower than the one before it (I16)."""
        head = Checkpoint.of(note)
        if head.size < self.receipts.get(head.origin, 0):
            self.broken.append(f"I16: a receipt for {head.origin} fell to {head.size}")
        self.receipts[head.origin] = max(head.size, self.receipts.get(head.origin, 0))


@dataclass
class Trouble:
    """What is wrong with the line in one sync."""

    page: int = 0
    pages: int | None = None  # after so many it is cut
    lose: int | None = None  # the reply to which pull is lost, after it was applied
    damage: Callable[[PageBytes], PageBytes] | None = None  # of the first page
    meanwhile: bool = False  # another process of the receiver syncs while the first page is on its way


class Line:
    """`node.exchange.sync.Link` from a receiver to one copy of a sender; whatever passes is looked at."""

    def __init__(self, run: "Run", receiver: NodeId, sender: Node, store: Store, trouble: Trouble) -> None:
        self.run, self.receiver, self.sender, self.store, self.trouble = run, receiver, sender, store, trouble
        self.pulls = 0
        self.open: tuple[Ask, serving.Page] | None = None  # the last page, of which it is not known what became

    def pull(self, ask: Ask) -> PageBytes:
        self.settle()
        self.pulls += 1
        if self.trouble.pages is not None and self.pulls > self.trouble.pages:
            raise UnreachableError("the line was cut")
        if ask.receipt:
            self.run.log.receipt(ask.receipt)
        with self._answered():
            page = serving.pull(self.sender, self._card(), ask, self.trouble.page)
        self._look_at(ask, page)
        if self.trouble.meanwhile and self.pulls == 1:
            with suppress(LocalError, RemoteError):
                self.run.sync(self.receiver, self.sender.id)
        if self.pulls == self.trouble.lose:
            raise UnreachableError("the reply was lost")
        came = PageBytes(page.items, page.checkpoint, page.latest, page.receipt, page.epoch)
        return self.trouble.damage(came) if self.trouble.damage and self.pulls == 1 else came

    def checkpoint(self, origin: str, size: int) -> bytes:
        with self._answered():
            return serving.checkpoint_at(self.sender, self._card(), origin, size)

    def _card(self) -> Card:
        try:
            return peers.trusted_card(self.sender, self.receiver)
        except NotFoundError as e:
            raise DeniedError("who is that?") from e

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """A sender that ends does not answer."""
        try:
            yield
        except CrashError as e:
            if self.run.armed != self.sender.id:
                raise
            self.run.restart(self.sender.id)
            raise UnreachableError("no answer") from e

    def _look_at(self, ask: Ask, page: serving.Page) -> None:
        self.open = ask, page
        for item in page.items:
            if isinstance(item, bytes):
                self.run.look_at(item, self.sender, self.store, self.receiver)

    def settle(self) -> None:
        """What the receiver has kept counts as signed. Of what was lost on the way nobody will ever know."""
        (ask, page), self.open = self.open or (None, None), None
        if ask is None or page is None:
            return
        kept = self.run.stores[self.receiver].rows("SELECT head FROM in_feeds WHERE origin = ?", ask.origin)
        if kept != [(page.checkpoint,)]:
            return
        for note in (page.checkpoint, page.latest):
            self.run.log.head(self.store, note)
        for number, item in enumerate(page.items, ask.cursor):
            if isinstance(item, bytes):
                self.run.log.sent[ask.origin, number] = item


class Run:
    """What is true of one run, and who takes part in it."""

    def __init__(self, ground: Ground, seed: int) -> None:
        self.chance, self.bytes = Random(seed), Random(-1 - seed)  # noqa: S311 - the same again for the same seed
        self.ground, self.log = ground, Log()
        self.clock = Clock(ground.now)
        self.wrong = dict.fromkeys(PARTIES, timedelta())
        self.stores: dict[str, Store] = dict(ground.stores)
        for name in PARTIES:
            ground.put_back(name, ground.saved[name])
        self.world = World({name: self._node(name, ground.world[name]) for name in PARTIES}, self.clock)
        self.copy: Node | None = None  # of a node that runs twice
        self.armed: NodeId | None = None  # who is to crash
        self.liar: NodeId | None = None
        self.lost: dict[NodeId, str] = {}  # who has lost memory, until it is healed
        self.cut: set[frozenset[NodeId]] = set()  # between whom there is no line
        self.saved: dict[NodeId, list[Saved]] = {name: [ground.saved[name]] for name in PARTIES}
        everything = frozenset({"plain", "personal", "exploit"})
        self.shares: dict[bytes, frozenset[str]] = {ground.agreement: everything}
        self.signed: dict[bytes, set[NodeId]] = {ground.agreement: set(PARTIES)}
        self.ends: dict[bytes, datetime] = {ground.agreement: self.clock.now + timedelta(days=200)}
        self.allowed: dict[tuple[str, int, NodeId], set[str]] = defaultdict(set)
        self.retained: dict[tuple[str, int], datetime] = {}
        self.embargoes: dict[tuple[str, int], datetime] = {}
        self.bad: set[bytes] = set()  # leaf hashes of entries that nobody may take
        self.private: dict[NodeId, list[bytes]] = defaultdict(list)
        self.counts: Counter[str] = Counter()

    def _node(self, name: NodeId, node: Node) -> Node:
        return replace(
            node,
            own=OwnCard(node.engine),
            clock=lambda: self.clock.now + self.wrong[name],
            entropy=self.bytes.randbytes,
        )

    def store_of(self, node: Node) -> Store:
        """The store that one copy of a node works with."""
        return self.stores[_SPARE if node is self.copy else node.id]

    def copies(self, name: NodeId) -> list[Node]:
        """The node, and the copy of it that runs besides."""
        return [self.world[name], *([self.copy] if self.copy is not None and self.copy.id == name else [])]

    def restart(self, name: NodeId) -> None:
        """Nothing but its home is left of it."""
        self.stores[name].fuse.left = None
        node = self.world[name]
        self.world.nodes[name] = replace(node, own=OwnCard(node.engine), start=self.bytes.randbytes(16))

    # What may go

    def may_share(self, store: Store, recipient: NodeId, now: datetime) -> frozenset[str]:
        """What the newest agreement that this store holds as signed by all, and that was, lets go to `recipient`."""
        held = store.rows("SELECT digest, version FROM agreements WHERE complete = 1")
        newest = max((version for _, version in held if isinstance(version, int)), default=0)
        found: set[str] = set()
        for digest, version in held:
            assert isinstance(digest, bytes)
            if self.signed.get(digest, set()) != set(PARTIES):
                self.log.broken.append("I2: an agreement is in force that not everybody has signed")
            elif version == newest and now < self.ends[digest]:
                found |= self.shares[digest]
        return frozenset(found - {"personal"} if recipient == IN else found)

    def allow(self, node: Node, recipient: NodeId, name: str, versions: range) -> None:
        """Notes that `name` is about to be decided on for `recipient`."""
        may = self.may_share(self.store_of(node), recipient, node.clock())
        for version in versions:
            self.allowed[name, version, recipient] |= may

    def look_at(self, data: bytes, sender: Node, store: Store, receiver: NodeId) -> None:
        """Nothing passes that was not decided on, or may not go any more (I2, I3, I4, I11)."""
        if sender.id == self.liar:
            return
        may, now = self.may_share(store, receiver, sender.clock()), sender.clock()
        for found in set(WORDS.findall(data)):
            name, version, kind = found[0].decode(), int(found[1]), found[2].decode()
            what = f"{kind} of {name} {version} from {sender.id} to {receiver}"
            self.counts["parts that passed"] += 1
            if kind not in self.allowed[name, version, receiver]:
                self.log.broken.append(f"I4: {what}: never allowed")
            if kind not in may:
                self.log.broken.append(f"I11: {what}: no longer allowed")
            if (name, version) in self.retained and self.retained[name, version] <= now:
                self.log.broken.append(f"I11: {what}: its time is over")
            embargo = self.embargoes.get((name, version))
            if embargo is not None and not sender.id.startswith(f"cert.{name[:2].lower()}.") and now < embargo:
                self.log.broken.append(f"I11: {what}: passed on before its embargo ended")

    # Exchange

    def sync(self, receiver: NodeId, sender: NodeId, trouble: Trouble | None = None) -> sync.Report:
        """One sync, from any copy of the sender. Raises what `node.exchange.sync` raises."""
        if frozenset((receiver, sender)) in self.cut:
            raise UnreachableError("there is no line between them")
        at = self.chance.choice(self.copies(sender))
        line = Line(self, receiver, at, self.store_of(at), trouble or Trouble())
        self.counts["syncs"] += 1
        try:
            report = sync.sync(self.world[receiver], sender, line)
        finally:
            line.settle()
        self.counts["entries"] += report.entries
        return report

    def behind(self, receiver: NodeId, sender: NodeId) -> bool:
        """Whether a sync would do anything, by the two stores."""
        mine, theirs = self.stores[receiver], self.stores[sender]
        out = theirs.rows(
            "SELECT origin, size, receipt_size, shown_to, refused_at FROM out_feeds WHERE peer = ? ORDER BY epoch DESC",
            receiver,
        )[0]
        come = mine.rows(
            "SELECT origin, size, restored, frozen FROM in_feeds WHERE peer = ? ORDER BY epoch DESC", sender
        )[0]
        done = (come[0], come[1], come[1], self.world[sender].start, None)
        waits = theirs.rows("SELECT 1 FROM meta WHERE key = 'restored'")
        return out != done or come[2:] != (0, None) or bool(waits)

    # What goes wrong with memory

    def save(self, name: NodeId) -> None:
        """A backup of a node."""
        self.saved[name] = [*self.saved[name], self.ground.save(name)][-2:]

    def lose(self, name: NodeId, saved: Saved, *, told: bool) -> None:
        """A node is put back, by the command (`told`) or by hand without a word."""
        node, store = self.world[name], self.stores[name]
        with database.read(node.engine) as tx:
            old = carryover.gather(tx) if told else None
        self.ground.put_back(name, saved)
        self.restart(name)
        node = self.world[name]
        if old is not None:
            with database.write(store.engine) as tx:
                carryover.mark(node, tx)
                carryover.bring(node, tx, old, node.actor)
            self.restart(name)
            retention.expire(self.world[name])
        self.lost[name] = "told" if told else "untold"

    def run_twice(self, name: NodeId) -> None:
        """A second machine runs a copy of a node."""
        node, spare = self.world[name], self.stores[_SPARE]
        copy = self.stores[name].save()
        spare.load(copy)
        copy.close()
        made = replace(node, engine=spare.engine, own=OwnCard(spare.engine), start=self.bytes.randbytes(16))
        self.copy, self.lost[name] = made, "twice"

    def one_goes_on(self) -> None:
        """Of two copies one is stopped for good, and the other is marked as put back."""
        if self.copy is None:
            return
        name, spare = self.copy.id, self.stores[_SPARE]
        if self.chance.random() < 0.5:
            kept = spare.save()
            self.stores[name].load(kept)
            kept.close()
        self.copy = None
        self.restart(name)
        with database.write(self.world[name].engine) as tx:
            carryover.mark(self.world[name], tx)
        self.restart(name)


def pairs() -> list[tuple[NodeId, NodeId]]:
    """Receiver and sender, each with each."""
    return [(a, b) for a in PARTIES for b in PARTIES if a != b]
