"""Row 19: what may go changes while it is on its way. Between two pages of a sync, or between a page and its storing,
the agreement ends, a narrower version of it comes into force, or a law is added: what was not delivered is withdrawn in
its place, and what arrives too late is not stored. Random instants of an injected clock, random pages, both whole nodes
in this process.
"""

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from federation import agreement as terms
from federation import jws
from federation.entries import Delivery, ErasedItem, Withdrawal, read
from federation.feed import Ask, PageBytes
from node import main
from node.exchange import sync
from node.home.context import Node
from node.peering import agreements
from node.store.database import read as reading
from node.store.tables import in_entries
from tests.faults.campaign import count
from tests.faults.waiting import in_memory
from tests.laws import book_of
from tests.nodes import DE, FR, DirectLink, World, agree, files_hold, history, make_world, release, terms_text

RUNS = count(100, 1_000)
ADVISORIES = 4
NOTHING = "\n  - {id: all, tlp: [AMBER], share: {identification: full}}"  # TLP:GREEN is in no grant any more
HEAD = '@id("test/rule") @basis("a law") @says("A sentence.")'
FORBIDS = f'{HEAD}\nforbid (principal, action == Action::"disclose", resource);\n'


class Scene:
    """FR has released some advisories that DE has not pulled; each run begins there."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.nodes = dict(world.nodes)
        held = agree(world)
        self._ends = held.agreement.valid_until
        release(world, *(f"CANARY-{number}" for number in range(ADVISORIES)))
        self.first = len(history(world[FR], DE)) - ADVISORIES
        self._kept = {name: folder / f"{name}.kept" for name in self.nodes}
        for name, node in self.nodes.items():
            node.engine.dispose()
            shutil.copyfile(node.home / main.DATABASE_FILE, self._kept[name])
        self._narrower = terms_text(world, version=2, previous=f'"{held.agreement.digest.hex()}"', grants=NOTHING)

    def reset(self, chance: random.Random) -> None:
        """Everything as it was, within a minute before the agreement ends."""
        self.world.clock.now = self._ends - timedelta(seconds=chance.uniform(0.001, 50))
        for name, node in self.nodes.items():
            self.world.nodes[name] = node
            node.engine.dispose()
            for part in node.home.glob(f"{main.DATABASE_FILE}-*"):
                part.unlink()
            shutil.copyfile(self._kept[name], node.home / main.DATABASE_FILE)

    def end(self) -> None:
        """The agreement ends, at an instant that nobody else notices."""
        self.world.clock.now = self._ends

    def narrow(self) -> None:
        """A narrower version, signed by both, reaches FR."""
        fr, de = self.world[FR], self.world[DE]
        later = agreements.propose(fr, self._narrower, "v2.yaml")
        signature = agreements._sign(de, later.agreement)
        signed = jws.with_signature(jws.parse(later.document, typ=terms.JWS_TYPE, max_bytes=1 << 20), signature)
        agreements.receive_file(fr, jws.serialise(signed))

    def forbid(self) -> None:
        """FR comes to have a law against it."""
        self.world.nodes[FR] = replace(self.world[FR], book=book_of(FORBIDS))


class Barrier:
    """A link in small pages. Before call `at`, or after it with `late`, `change` happens.

    `sent` are the deliveries that went, `too_late` those of them that were under way when it happened.
    """

    def __init__(self, scene: Scene, at: int, page: int, change: Callable[[], None], *, late: bool) -> None:
        self._scene, self._at, self._page, self._change, self._late = scene, at, page, change, late
        self._calls, self.changed = 0, False
        self.sent: set[int] = set()
        self.too_late: set[int] = set()

    def pull(self, ask: Ask) -> PageBytes:
        due = self._calls == self._at and not self.changed
        self._calls += 1
        if due and not self._late:
            self.come_true()
        before = self.changed
        page = DirectLink(self._scene.world[FR], self._scene.world[DE], self._page).pull(ask)
        going = {e.seq for e in map(read, filter(None, map(_bytes, page.items))) if isinstance(e.body, Delivery)}
        assert not (before and going), "delivered although nothing may go any more"
        self.sent |= going
        if due and self._late:
            self.come_true()
            self.too_late |= going
        return page

    def checkpoint(self, origin: str, size: int) -> bytes:
        return DirectLink(self._scene.world[FR], self._scene.world[DE]).checkpoint(origin, size)

    def come_true(self) -> None:
        """What may go changes."""
        self._change()
        self.changed = True


def _bytes(item: bytes | ErasedItem) -> bytes | None:
    return item if isinstance(item, bytes) else None


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with in_memory() as folder:
        world = make_world(folder)
        yield Scene(world, folder)
        world.close()


@pytest.mark.invariant("I10")
@pytest.mark.invariant("I11")
def test_what_may_no_longer_go_is_withdrawn_at_whatever_page_that_begins(scene: Scene) -> None:
    seed = random.randrange(1 << 32)  # noqa: S311 - told below, so that a run can be repeated
    chance = random.Random(seed)  # noqa: S311
    withdrawn = refused = 0
    for run in range(RUNS):
        what = f"seed {seed}, run {run}"
        scene.reset(chance)
        change = chance.choice((scene.end, scene.narrow, scene.forbid))
        late = chance.random() < 0.5
        link = Barrier(scene, chance.randrange(ADVISORIES), chance.randrange(1, 3), change, late=late)
        sync.sync(scene.world[DE], FR, link)
        if not link.changed:  # it was over before
            link.come_true()
            sync.sync(scene.world[DE], FR, link)
        outcomes = _outcomes(scene.world[DE])
        mine = set(range(scene.first, scene.first + ADVISORIES))
        kept = {seq for seq in mine if outcomes[seq] == "admitted"}
        barred = link.too_late if change == scene.end else set()  # of the others DE knows nothing yet
        assert kept == link.sent - barred, what
        assert {seq for seq in mine if outcomes[seq] == "refused"} == barred, what
        assert {seq for seq in mine if outcomes[seq] in ("erased", "withdrawn")} == mine - link.sent, what
        _check_withdrawn(scene, mine - link.sent, what)
        for seq in mine - kept:
            assert not files_hold(scene.world[DE], b"CANARY-%d" % (seq - scene.first)), what
        withdrawn, refused = withdrawn + len(mine - link.sent), refused + len(barred)
    assert withdrawn
    assert refused
    print(
        f"{RUNS} syncs in which the rules changed: {withdrawn} withdrawn, {refused} came too late, 0 delivered; {seed=}"
    )


def _outcomes(node: Node) -> dict[int, str]:
    with reading(node.engine) as tx:
        return {row.seq: row.outcome for row in tx.execute(select(in_entries.c.seq, in_entries.c.outcome))}


def _check_withdrawn(scene: Scene, seqs: set[int], what: str) -> None:
    """FR holds the bytes no more, and entries of its feed take them back."""
    items = history(scene.world[FR], DE)
    named: set[int] = set()
    for item in items:
        body = read(item).body if isinstance(item, bytes) else None
        named |= set(body.seqs) if isinstance(body, Withdrawal) else set()
    assert named == seqs, what
    assert {seq for seq, item in enumerate(items) if isinstance(item, ErasedItem)} == seqs, what
