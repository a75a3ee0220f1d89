"""One bit of a database file turns over: what it changed is never signed, never taken in, never shown as what came.

Any bit of the file: of an entry, a root, a header, an index or a free page. On the sender's side its receiver pulls all
that there is: it holds the original bytes or none, no head was signed but those of the true history, and nobody is
accused. On the receiver's side, the same in the middle of a sync; and what is shown is what it was, or there is an
error. What a bit changed and nobody met is found by `apostille doctor` (SQLite's own check) or by `apostille ledger
verify`, but for what the latter says that it does not look at.
"""

import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from federation import merkle
from federation.checkpoint import Checkpoint
from federation.errors import UnreachableError
from federation.feed import Ask, PageBytes
from federation.model import NodeId
from node import main
from node.audit import verify
from node.desk import inbox
from node.exchange import sync
from node.home.context import Node
from node.peering.feeds import leaf_hashes, out_feed
from node.records import alarms
from node.records.alarms import Alarm
from node.sharing import releases
from node.store import database
from node.store.tables import in_entries, in_feeds, metadata, out_entries, out_feeds
from tests.faults.campaign import count
from tests.nodes import DE, FR, DirectLink, World, agree, document, import_document, make_world

FLIPS = count(200, 1_000)  # of these half at the sender, a quarter each in the middle of a sync and in what is shown
ADVISORIES = 6
A_PAGE = 2
NOTES = ["What is known, at some length: " + "the parser reads beyond its end. " * 8]
OWN_NOTES = {  # what a node notes of feeds for itself alone: what is shown, or asked for again
    "out_feeds": {"opened_at", "refused_at", "shown_to"},
    "in_feeds": {"contact_at", "problem", "offered_epoch"},
}
_WHOLE = {"receipt_at": "substr(receipt_at, 1, 19)"}  # the ledger has it in seconds
NOT_LOOKED_AT = {"alarms", "approvals", "audit", "meta", "annotations", "inbox_terms", "card_deliveries"}


@dataclass
class Watched(DirectLink):
    """The honest way, by which every signed head is noted that passes; it breaks after `pages`."""

    server: Node
    caller: Node
    pages: int = 100
    page: int = A_PAGE
    receipts: list[bytes] = field(default_factory=list)
    heads: list[Checkpoint] = field(default_factory=list)

    def pull(self, ask: Ask) -> PageBytes:
        if not self.pages:
            raise UnreachableError("the line is cut")
        self.pages -= 1
        page = super().pull(ask)
        self.heads += map(Checkpoint.of, (page.checkpoint, page.latest))
        return page

    def checkpoint(self, origin: str, size: int) -> bytes:
        note = super().checkpoint(origin, size)
        self.heads.append(Checkpoint.of(note))
        return note


@dataclass(frozen=True, slots=True)
class Story:
    """FR has sent DE all that there is. `midway` is DE's database after the first page.

    `sent` is every entry of the feed, `roots` its roots, `stored` what flips are aimed at: entries, edges and heads.
    """

    world: World
    midway: bytes
    files: dict[NodeId, bytes]
    sent: tuple[bytes, ...]
    roots: tuple[bytes, ...]
    stored: dict[NodeId, tuple[bytes, ...]]

    def allows(self, came: Sequence[tuple[int, bytes | None]]) -> bool:
        """Each is what was sent, or gone: what a sender withdraws that cannot tell any more whether it may go."""
        sent = dict(enumerate(self.sent))
        return all(data in (None, sent.get(seq, data)) for seq, data in came)


def _file(node: Node) -> Path:
    return node.home / main.DATABASE_FILE


def _settled(node: Node) -> bytes:
    """The bytes of the whole database, in one file."""
    database.scrub(node.engine)
    node.engine.dispose()
    return _file(node).read_bytes()


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    world = make_world(tmp_path_factory.mktemp("bits"))
    agree(world)
    for number in range(ADVISORIES):
        releases.release(world[FR], import_document(world[FR], document(f"B-{number}", notes=NOTES)))
    with suppress(UnreachableError):
        sync.sync(world[DE], FR, Watched(world[FR], world[DE], pages=1))
    with database.read(world[DE].engine) as tx:
        memory = tx.execute(select(in_feeds.c.edge, in_feeds.c.head, in_feeds.c.newest)).one()
    midway = _settled(world[DE])
    world.sync(DE, FR)
    with database.read(world[FR].engine) as tx:
        feed = out_feed(tx, DE)
        leaves = leaf_hashes(tx, feed.id, feed.size)
        sent = tuple(tx.execute(select(out_entries.c.data).order_by(out_entries.c.seq)).scalars())
        edge = tx.execute(select(out_feeds.c.edge)).scalar_one()
    roots = tuple(merkle.root(leaves[:size]) for size in range(len(leaves) + 1))
    files = {name: _settled(world[name]) for name in (FR, DE)}
    stored = {FR: (*sent, edge, *roots[1:], *leaves), DE: (*sent, *memory)}
    yield Story(world, midway, files, sent, roots, stored)
    world.close()


@contextmanager
def over(node: Node, content: bytes) -> Iterator[Node]:
    """The node with another database: its file is replaced while nothing has it open."""
    node.engine.dispose()
    for path in node.home.glob(f"{main.DATABASE_FILE}*"):
        path.unlink()
    _file(node).write_bytes(content)
    try:
        yield node
    finally:
        node.engine.dispose()


def flipped(content: bytes, stored: tuple[bytes, ...], chance: random.Random) -> bytes:
    """With one bit turned over: anywhere, or every other time inside of what is aimed at."""
    place = chance.randrange(len(content))
    if chance.random() < 0.5:
        aim = chance.choice(stored)
        part = chance.randrange(max(1, len(aim) - 31))
        found = content.find(aim[part : part + 32])  # what is long is cut into pages
        place = found + chance.randrange(32) if found >= 0 else place
    changed = bytearray(content)
    changed[place] ^= 1 << chance.randrange(8)
    return bytes(changed)


def refused(call: Callable[[], object]) -> str:
    """By which error it ended, as everything may that meets broken bytes; empty when it did not."""
    try:
        call()
    except Exception as e:  # noqa: BLE001 - any of SQLite's, of ours, of the interpreter
        return type(e).__name__
    return ""


def found(node: Node, before: dict[str, list[str]]) -> str:
    """How a change is found that nobody met; "nothing changed" where none is, in no table."""
    try:
        now = rows(node)
        changed = {name for name, lines in before.items() if now[name] != lines}
        with database.read(node.engine) as tx:
            if database.faults(tx):
                return "doctor"
    except Exception:  # noqa: BLE001 - as above
        return "SQLite"
    if not changed:
        return "nothing changed"
    if verify.verify(node).findings:
        return "ledger verify"
    return "not looked at" if changed <= NOT_LOOKED_AT else f"NOT FOUND: {sorted(changed)}"


def rows(node: Node) -> dict[str, list[str]]:
    """Everything that stands in the tables, read past every index and conversion."""
    lines = {}
    with closing(node.engine.raw_connection()) as held:
        database_: Any = held.driver_connection
        database_.text_factory = bytes
        try:
            for table in metadata.sorted_tables:
                columns = ", ".join(
                    _WHOLE.get(c.name, f'"{c.name}"') for c in table.c if c.name not in OWN_NOTES.get(table.name, ())
                )
                everything = database_.execute(f"SELECT {columns} FROM {table.name} NOT INDEXED").fetchall()  # noqa: S608 - names of our own
                lines[table.name] = sorted(map(repr, everything))
        finally:
            database_.text_factory = str
    return lines


def frozen(node: Node) -> list[str]:
    """By what error feeds are frozen at a receiver."""
    with database.read(node.engine) as tx:
        return [code for code in tx.execute(select(in_feeds.c.frozen)).scalars() if code]


def taken_in(node: Node) -> list[tuple[int, bytes]]:
    """The entries that a receiver holds."""
    with database.read(node.engine) as tx:
        return [tuple(row) for row in tx.execute(select(in_entries.c.seq, in_entries.c.data))]


def spoil(node: Node, table: str, column: str, where: str, place: Callable[[bytes], int]) -> None:
    """Turns one bit of one value over, whatever the database thinks of it."""
    with closing(sqlite3.connect(_file(node), isolation_level=None)) as file:
        ((value,),) = file.execute(f"SELECT {column} FROM {table} WHERE {where}").fetchall()  # noqa: S608 - names of our own
        changed = bytearray(value)
        changed[place(value)] ^= 1
        file.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (bytes(changed),))  # noqa: S608 - as above


def _at_first(_: bytes) -> int:
    return 0


def _in_the_middle(value: bytes) -> int:
    return len(value) // 2


def _at_last(value: bytes) -> int:
    return len(value) - 1


def _in_the_root(note: bytes) -> int:
    return note.index(b"\n", note.index(b"\n") + 1) + 5


SPOILT: dict[str, tuple[NodeId, str, str, str, Callable[[bytes], int]]] = {
    "an entry of the sender": (FR, "out_entries", "data", "seq = 6", _in_the_middle),
    "a leaf hash of the sender": (FR, "out_entries", "leaf_hash", "seq = 6", _at_first),
    "a root of the sender": (FR, "out_entries", "root", "seq = 5", _at_first),
    "the edge of the sender": (FR, "out_feeds", "edge", "1", _at_last),
    "the edge of the receiver": (DE, "in_feeds", "edge", "1", _at_last),
    "the head of the receiver": (DE, "in_feeds", "head", "1", _in_the_root),
}


@pytest.mark.invariant("I8")
@pytest.mark.parametrize("what", SPOILT)
def test_what_does_not_agree_with_the_rest_is_neither_signed_nor_believed(story: Story, what: str) -> None:
    whose, table, column, where, place = SPOILT[what]
    with over(story.world[FR], story.files[FR]) as sender, over(story.world[DE], story.midway) as receiver:
        spoil(sender if whose == FR else receiver, table, column, where, place)
        link = Watched(sender, receiver)
        assert refused(lambda: sync.sync(receiver, FR, link)) == "DamagedError"
        assert all(story.roots[head.size] == head.root for head in link.heads)
        assert story.allows(taken_in(receiver))
        assert frozen(receiver) == []
        told = [alarm for alarm in alarms.all_alarms(sender) if alarm.kind is Alarm.DAMAGED]
        assert len(told) == (whose == FR)


@pytest.fixture
def seed() -> int:
    """Told with each failure, so that a run can be repeated."""
    return random.randrange(1 << 32)  # noqa: S311


@pytest.mark.invariant("I7")
def test_a_flipped_bit_at_the_sender_is_never_sent_nor_signed(story: Story, seed: int) -> None:
    chance, told, fr, de = random.Random(seed), Counter[str](), story.world[FR], story.world[DE]  # noqa: S311
    with over(fr, story.files[FR]) as node:
        before = rows(node)
    for run in range(FLIPS // 2):
        what = f"seed {seed}, flip {run}"
        with over(fr, flipped(story.files[FR], story.stored[FR], chance)) as sender, over(de, story.midway) as receiver:
            link = Watched(sender, receiver)
            how = refused(lambda link=link, receiver=receiver: sync.sync(receiver, FR, link))  # type: ignore[misc]
            for head in link.heads:  # a larger one: of what it has withdrawn, since it cannot tell whether it may go
                assert head.size >= len(story.roots) or story.roots[head.size] == head.root, what
            assert story.allows(taken_in(receiver)), what
            assert frozen(receiver) == [], what  # a lost bit is no attack by its owner
            how = how or found(sender, before)
            told[how] += 1
            assert "NOT FOUND" not in how, f"{what}: {how}"
    print(f"{FLIPS // 2} flips at a sender, none sent or signed: {dict(told)}")


@pytest.mark.invariant("I8")
def test_a_flipped_bit_at_the_receiver_accuses_nobody(story: Story, seed: int) -> None:
    chance, told, fr, de = random.Random(seed), Counter[str](), story.world[FR], story.world[DE]  # noqa: S311
    for run in range(FLIPS // 4):
        what = f"seed {seed}, flip {run}"
        with over(fr, story.files[FR]) as sender, over(de, flipped(story.midway, story.stored[DE], chance)) as receiver:
            how = refused(lambda s=sender, r=receiver: sync.sync(r, FR, Watched(s, r)))  # type: ignore[misc]
            accused: list[str] = []
            with suppress(Exception):  # what cannot be read accuses nobody
                accused = frozen(receiver)
            assert accused == [], f"{what}: {how}"
            told[how or "went on"] += 1
    print(f"{FLIPS // 4} flips at a receiver in the middle of a sync: nobody accused, {dict(told)}")


@pytest.mark.invariant("I7")
def test_what_a_flipped_bit_changed_is_not_shown(story: Story, seed: int) -> None:
    chance, told, de = random.Random(seed), Counter[str](), story.world[DE]  # noqa: S311
    with over(de, story.files[DE]) as node:
        before = rows(node)
        whole = {item.name: inbox.content(node, item.name) for item in inbox.items(node)}
    for run in range(FLIPS // 4):
        what = f"seed {seed}, flip {run}"
        with over(de, flipped(story.files[DE], story.stored[DE], chance)) as node:
            how = ""
            for name, content in whole.items():
                shown: list[inbox.Content] = []
                how = refused(lambda n=node, m=name, s=shown: s.append(inbox.content(n, m))) or how  # type: ignore[misc]
                assert all(replace(one, item=content.item) == content for one in shown), what
            how = how or found(node, before)
            told[how] += 1
            assert "NOT FOUND" not in how, f"{what}: {how}"
    print(f"{FLIPS // 4} flips at a receiver, nothing shown that was changed: {dict(told)}")
