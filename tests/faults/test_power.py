"""Power loss: what was acknowledged is found again, whatever part of the unsynced rest the disk kept.

A receiver's sync and a sender's releases are recorded (`tests.faults.power`), with marks of what they acknowledged: a
receipt just before it is sent, a release when its command has ended with 0. Then power is cut at random moments of the
record; each of the disks that may be left is opened by our code. And at every receipt of a long sync the worst of these
disks, on which nothing is left but what was synced, holds all that the receipt covers.
"""

import random
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from sqlalchemy import select

from federation import merkle
from federation.checkpoint import Checkpoint
from federation.entries import AgreementOffer
from node import main
from node.exchange import sync
from node.home.context import Node
from node.peering import feeds
from node.peering.feeds import leaf_hashes, out_feed
from node.store import database
from node.store.tables import advisories, agreements, in_entries, out_entries
from tests.faults import power, strace
from tests.faults.campaign import count, needs
from tests.faults.power import Disk, Step
from tests.faults.waiting import copy, in_memory, kill, make_waiting, serve, sync_code
from tests.faults.zygote import Zygote
from tests.nodes import DE, FR, PEOPLE, document, import_document

IMAGES = count(500, 10_000)
PAGES = count(100, 1_000)
ADVISORIES = 20
A_PAGE = 4
RELEASES = 4
RECEIPTS = """
from federation.checkpoint import Checkpoint
from node.rpc.client import PeerLink
_pull = PeerLink.pull
def pull(link, ask):
    if ask.receipt:
        mark(f"receipt {Checkpoint.of(ask.receipt).size}")
    return _pull(link, ask)
PeerLink.pull = pull
"""
LESS_THAN_FULL = """
from sqlalchemy import event
from node.store import sqlite
_open = sqlite.open_engine
def open_engine(path):
    engine = _open(path)
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=NORMAL"))
    return engine
sqlite.open_engine = open_engine
"""

pytestmark = [needs("strace", root=True), pytest.mark.invariant("I9")]


class LostError(AssertionError):
    """What was acknowledged is not there any more, or is not sound."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """The database before, what was done to it, whose it is, and where images of it lie.

    `whole`: the leaf hashes that there are in the end.
    """

    before: Path
    steps: tuple[Step, ...]
    node: Node
    place: Path
    whole: tuple[bytes, ...]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with in_memory() as made:
        yield made


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_waiting(tmp_path_factory.mktemp("waiting"), ADVISORIES)


@pytest.fixture(scope="module")
def zygote(folder: Path) -> Iterator[Zygote]:
    with Zygote(folder / "logs") as made:
        yield made


def record_sync(waiting: Path, place: Path, zygote: Zygote, page: int, prelude: str = "") -> Recorded:
    """A receiver that takes in everything, page by page."""
    homes = copy(waiting, place / "homes")
    marks, out = place / "marks", place / "trace"
    sender = serve(zygote, homes[FR])
    receiver = zygote.start(
        homes[DE], "sync", code=sync_code(page, strace.HOLDING + prelude + power.marking(marks, RECEIPTS))
    )
    with strace.attached(receiver, out, *power.OPTIONS, *power.TRACED):
        assert zygote.wait(receiver) == 0, zygote.log(receiver)
    kill(zygote, sender)
    node = main.open_node(homes[DE])
    with database.read(node.engine) as tx:
        whole = tx.execute(select(in_entries.c.leaf_hash).order_by(in_entries.c.seq)).scalars().all()
    return Recorded(
        waiting / DE, tuple(power.record(out, homes[DE], marks)), _of_images(node, place), place, tuple(whole)
    )


def record_releases(waiting: Path, place: Path, zygote: Zygote) -> Recorded:
    """A sender that releases one advisory after the other."""
    home = copy(waiting, place / "homes")[FR]
    node = replace(main.open_node(home), actor="alice", people=PEOPLE)
    names = [import_document(node, document(f"P-{number:03}")) for number in range(RELEASES)]
    node.engine.dispose()
    shutil.copytree(home, place / "before")
    steps: list[Step] = []
    for number, name in enumerate(names):
        out = place / f"trace-{number}"
        process = zygote.start(home, "advisory", "release", name, code=sync_code(1, strace.HOLDING))
        with strace.attached(process, out, *power.OPTIONS, *power.TRACED):
            assert zygote.wait(process) == 0, zygote.log(process)
        steps += [*power.record(out, home, place / "marks"), Step("marked", data=f"released {name}".encode())]
    with database.read(node.engine) as tx:
        feed = out_feed(tx, DE)
        whole = leaf_hashes(tx, feed.id, feed.size)
    return Recorded(place / "before", tuple(steps), _of_images(node, place), place, tuple(whole))


def _of_images(node: Node, place: Path) -> Node:
    """The same node with the database of whatever image lies at `place`."""
    node.engine.dispose()
    return replace(node, engine=database.open_engine(place / "image" / main.DATABASE_FILE))


def images(
    recorded: Recorded, cuts: Iterable[int], chance: random.Random | None = None
) -> Iterator[tuple[list[str], dict[str, bytes]]]:
    """After power was cut before each of these steps: what had been acknowledged, and what is left.

    Without `chance` that is what was synced, and nothing else.
    """
    disk, done = Disk(recorded.before), 0
    for cut in sorted(cuts):
        for step in recorded.steps[done:cut]:
            disk.do(step)
        done = cut
        yield list(disk.marks), disk.durable() if chance is None else disk.after_a_cut(chance)


def check_image(recorded: Recorded, marks: list[str], files: dict[str, bytes]) -> None:
    """Opens what is left. Raises LostError."""
    place = recorded.place / "image"
    place.mkdir()
    try:
        for name, content in files.items():
            (place / name).write_bytes(content)
        _check(recorded.node, recorded.whole, marks)
    finally:
        recorded.node.engine.dispose()  # and not a new one each time, which compiles every statement again
        shutil.rmtree(place)


def _check(node: Node, whole: tuple[bytes, ...], marks: list[str]) -> None:
    with database.read(node.engine) as tx:
        if (found := database.faults(tx)) is not None:
            raise LostError(found)
        if node.id == DE:
            rows = tx.execute(select(in_entries.c.data, in_entries.c.leaf_hash).order_by(in_entries.c.seq)).all()
            held = sync.load_state(node, FR)
            size, root = held.state.cursor, held.state.edge.root()
            promised = max((int(mark.removeprefix("receipt ")) for mark in marks), default=0)
            if size and Checkpoint.of(held.state.head).root != root:
                raise LostError("the head is that of another tree")
        else:
            rows = tx.execute(select(out_entries.c.data, out_entries.c.leaf_hash).order_by(out_entries.c.seq)).all()
            feed = out_feed(tx, DE)
            size, root = feed.size, feed.edge.root()
            own = select(advisories.c.name).join(out_entries, out_entries.c.advisory == advisories.c.id)
            released = set(tx.execute(own).scalars())
            promised = 0
            if lost := {mark.removeprefix("released ") for mark in marks} - released:
                raise LostError(f"not released any more: {lost}")
        leaves = [row.leaf_hash for row in rows]
        if size < promised or len(rows) != size:
            raise LostError(f"{promised} promised, {size} counted, {len(rows)} there")
        if any(merkle.leaf_hash(row.data) != row.leaf_hash for row in rows) or tuple(leaves) != whole[:size]:
            raise LostError("an entry is another one")
        if merkle.root(leaves) != root:
            raise LostError("the roots do not recompute")


def test_after_a_power_cut_everything_that_was_acknowledged_is_there(
    waiting: Path, folder: Path, zygote: Zygote
) -> None:
    seed = random.randrange(1 << 32)  # noqa: S311 - told below, so that a run can be repeated
    chance = random.Random(seed)  # noqa: S311
    kinds = {
        "receiver": record_sync(waiting, folder / "sync", zygote, A_PAGE),
        "sender": record_releases(waiting, folder / "releases", zygote),
    }
    promised = 0
    for kind, recorded in kinds.items():
        cuts = [chance.randint(0, len(recorded.steps)) for _ in range(IMAGES // len(kinds))]
        for number, (marks, files) in enumerate(images(recorded, cuts, chance)):
            try:
                check_image(recorded, marks, files)
            except LostError as e:
                e.add_note(f"seed {seed}, {kind}, image {number}, after {marks}")
                raise
            promised += bool(marks)
    assert promised > IMAGES // 4  # there was something to lose
    told = ", ".join(f"{len(recorded.steps)} steps of the {kind}" for kind, recorded in kinds.items())
    print(f"{IMAGES} images of {told}: nothing acknowledged was lost, {promised} of them after an acknowledgement")


def test_with_less_than_full_syncs_the_same_campaign_finds_a_loss(waiting: Path, folder: Path, zygote: Zygote) -> None:
    chance = random.Random(2026)  # noqa: S311
    recorded = record_sync(waiting, folder / "normal", zygote, A_PAGE, LESS_THAN_FULL)
    lost = 0
    cuts = [chance.randint(0, len(recorded.steps)) for _ in range(IMAGES // 10)]
    for marks, files in images(recorded, cuts, chance):
        with suppress(LostError):
            check_image(recorded, marks, files)
            continue
        lost += 1
    assert lost > 0
    print(f"with synchronous=NORMAL {lost} of {len(cuts)} images have lost what was acknowledged")


def test_no_receipt_leaves_before_what_it_covers_is_durable(waiting: Path, folder: Path, zygote: Zygote) -> None:
    longer = shutil.copytree(waiting, folder / "longer")
    node = main.open_node(longer / FR)
    with database.write(node.engine) as tx:
        again = AgreementOffer(tx.execute(select(agreements.c.document)).scalar_one())
        for _ in range(PAGES - ADVISORIES):
            feeds.append(node, tx, DE, again)
    node.engine.dispose()
    recorded = record_sync(longer, folder / "pages", zygote, 1)
    given = [number for number, step in enumerate(recorded.steps, 1) if step.what == "marked"]
    assert len(given) >= PAGES  # a page each
    for marks, files in images(recorded, given):
        check_image(recorded, marks, files)
    print(f"{len(given)} receipts, each after the sync of what it covers")
