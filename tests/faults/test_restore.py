"""Nodes are put back from backups, rolled back and run twice while they exchange. No sequence number is signed for two
different entries, no receipt falls below an earlier one, and after healing nothing that stands is missing.

The schedule is drawn from a seed: releases, syncs in small pages that break off, backups; and the faults. A fault at
the sender: its home is lost and restored, replaced by a restore, or rolled back by hand without a word; or a copy of it
begins to run, from which the receiver is served as well. A fault at the receiver: its home is lost and restored, or
replaced by a restore. Healing is what people would do: one copy goes on and says that it was put back, and where a
feed cannot go on, two people open a new epoch and two accept it.

What the schedule leaves out, since no protocol between the two could settle it: a receiver that has lost all memory
while two copies of its sender run, and two copies of a receiver whose sender has lost its memory. That a name is used
again for what was lost is in `unit/test_carryover.py`.
"""

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count as counting
from pathlib import Path

import pytest

from federation.errors import EpochError, LocalError, RemoteError, UnconfirmedError, UnreachableError
from federation.model import NodeId
from node.desk import inbox
from node.desk.inbox import InboxState
from node.exchange import epochs, sync
from node.home.context import Node
from node.operation import backup
from node.peering import confirm
from node.records import ledger
from node.sharing import releases
from tests.copies import Recorder, accept_epoch, clone, copy_home, open_epoch, put_back, roll_back, save, started
from tests.faults.campaign import count
from tests.nodes import DE, FR, agree, document, import_document, make_world

FAULTS = 10  # restores, and as many copies, in one world
WORLDS = count(1, 50)
MOST_COPIES = 3
KEPT = 3  # backups of a node: the older the more is lost
ROUNDS_TO_HEAL = 16


class Schedule:
    """Two nodes, whatever copies of the first run besides, and what happens to them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - the same again for the same seed
        self.folder, self.numbers, self.recorder = folder, counting(), Recorder()
        self.world = make_world(folder)
        agree(self.world)
        self.copies: list[Node] = []  # of the sender, besides the one in the world
        self.saved: dict[NodeId, list[Path]] = {FR: [], DE: []}
        self.snapshots: list[Path] = []
        self.happened: list[str] = []
        self.expected: tuple[type[Exception], ...] = (UnconfirmedError, UnreachableError, EpochError)
        for name in (FR, DE):
            self.back_up(name)

    def close(self) -> None:
        for node in self.copies:
            node.engine.dispose()
        self.world.close()

    def path(self, what: str) -> Path:
        return self.folder / f"{what}-{next(self.numbers)}"

    # What goes on

    def work(self) -> None:
        """A few ordinary things, in any order, by any copy."""
        for _ in range(self.chance.randrange(3, 8)):
            self.chance.choice((self.release, self.pull, self.pull, self.pull_back, self.back_up_any))()

    def release(self) -> None:
        node = self.chance.choice((self.world[FR], *self.copies))
        name = f"N-{next(self.numbers)}"
        import_document(node, document(name))
        releases.release(node, name)

    def pull(self) -> None:
        """DE asks one of the copies, in pages of one to three entries, and may break off after some."""
        pages = self.chance.choice((None, None, 1, 2, 3))
        self.sync(DE, FR, self.chance.choice((self.world[FR], *self.copies)), self.chance.randrange(1, 4), pages)

    def pull_back(self) -> None:
        self.sync(FR, DE, self.world[DE])

    def sync(self, receiver: NodeId, sender: NodeId, at: Node, page: int = 0, pages: int | None = None) -> None:
        link = self.recorder.link(at, self.world[receiver], page=page, pages=pages)
        with suppress(*self.expected):
            sync.sync(self.world[receiver], sender, link)

    def back_up_any(self) -> None:
        self.back_up(self.chance.choice((FR, DE)))

    def back_up(self, name: NodeId) -> None:
        self.saved[name] = [*self.saved[name], save(self.world[name], self.path("backup"))][-KEPT:]
        if name == FR:
            self.snapshots = [*self.snapshots, copy_home(self.world[FR], self.path("snapshot"))][-KEPT:]

    # What goes wrong

    def lose_memory(self) -> None:
        """One of the two is put back to an earlier state, which takes a while."""
        self.world.clock.move(minutes=1)
        kinds: list[Callable[[], str]] = [self.lost_sender, self.replaced_sender, self.rolled_back, self.replaced]
        if not self.copies:
            kinds.append(self.lost_receiver)
        self.happened.append(self.chance.choice(kinds)())

    def lost_sender(self) -> str:
        put_back(self.world, FR, self.chance.choice(self.saved[FR]), lost=True)
        return "sender lost and restored"

    def replaced_sender(self) -> str:
        put_back(self.world, FR, self.chance.choice(self.saved[FR]))
        return "sender replaced by a backup"

    def rolled_back(self) -> str:
        roll_back(self.world, FR, self.chance.choice(self.snapshots))
        return "sender rolled back"

    def lost_receiver(self) -> str:
        put_back(self.world, DE, self.chance.choice(self.saved[DE]), lost=True)
        return "receiver lost and restored"

    def replaced(self) -> str:
        put_back(self.world, DE, self.chance.choice(self.saved[DE]))
        return "receiver replaced by a backup"

    def run_twice(self) -> None:
        """One more copy of the sender runs."""
        if len(self.copies) == MOST_COPIES - 1:
            self.copies.pop(0).engine.dispose()
        self.copies.append(clone(self.world, FR, self.path("copy")))
        self.happened.append("copy")

    # What people do about it

    def heal(self) -> None:
        """One copy goes on, which may be another one than before, and every feed can go on again."""
        self.world.clock.move(minutes=1)
        chosen = self.chance.choice((self.world[FR], *self.copies))
        for node in (self.world[FR], *self.copies):
            node.engine.dispose()
        backup.mark_by_hand(chosen.home, open_node=partial(started, self.world, chosen))
        self.world.nodes[FR], self.copies = started(self.world, chosen, chosen.home), []
        for _ in range(ROUNDS_TO_HEAL):
            there, back = self.mend(DE, FR), self.mend(FR, DE)
            if there and back:
                return
        raise AssertionError(f"it does not heal after: {', '.join(self.happened)}")

    def mend(self, receiver: NodeId, sender: NodeId) -> bool:
        """One sync, and what two people do where it fails; returns whether it ended well."""
        at = self.world[sender]
        try:
            sync.sync(self.world[receiver], sender, self.recorder.link(at, self.world[receiver], page=3))
        except EpochError:
            accept_epoch(self.world[receiver], sender)
        except UnconfirmedError:
            states = [epoch.state for epoch in epochs.all_epochs(at, receiver) if epoch.outgoing]
            if states[-1] == "waits for a new epoch":
                open_epoch(at, receiver)
            else:
                self.world.clock.move(minutes=15)  # it waits for peers that do not answer it yet
        else:
            return True
        return False

    def missing(self) -> list[str]:
        """What the sender has released and not taken back, and the receiver does not have."""
        stands = {row.name for row in ledger.rows(self.world[FR], DE) if row.taken_back is None}
        held = {item.name for item in inbox.items(self.world[DE]) if item.state is InboxState.CURRENT}
        return sorted(stands - held)


@pytest.fixture
def schedule(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Schedule]:
    made = Schedule(tmp_path, request.param)
    yield made
    made.close()
    shutil.rmtree(tmp_path)


@pytest.mark.invariant("I16")
@pytest.mark.parametrize("schedule", range(WORLDS), indirect=True)
def test_nothing_is_signed_twice_and_nothing_is_missing(schedule: Schedule) -> None:
    faults = [schedule.lose_memory, schedule.run_twice] * FAULTS
    schedule.chance.shuffle(faults)
    for fault in faults:
        schedule.work()
        fault()
        schedule.work()
        if schedule.chance.random() < 0.3:
            schedule.heal()
            assert schedule.missing() == []
    schedule.heal()
    assert len(schedule.happened) == 2 * FAULTS
    assert schedule.recorder.signed_twice == []
    assert schedule.recorder.receipts_that_fell == []
    assert schedule.missing() == []


@pytest.mark.parametrize("schedule", [1], indirect=True)
def test_without_confirmation_much_is_signed_twice(schedule: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
    """The positive control: the same schedule, with a sender that signs for whoever asks."""
    monkeypatch.setattr(confirm, "confirm", lambda *_: None)
    schedule.expected = (RemoteError, LocalError)  # the receiver finds it out, and freezes the feed
    for fault in [schedule.lose_memory, schedule.run_twice] * 5:
        schedule.work()
        fault()
        schedule.work()
    assert schedule.recorder.signed_twice != []
