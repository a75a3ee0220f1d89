"""A kill at every step of a sync, on either side: nothing is lost, repeated or forked.

strace counts first which writes, syncs and messages a sync of twenty advisories in small pages makes on each side.
Then each run ends the sender's server or the receiver's sync before one of them, say before the 31st write of a thread
to the database, and lets both go on. Where there are more runs than steps, the process that goes on is killed as well.
"""

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults import strace
from tests.faults.campaign import count, needs
from tests.faults.waiting import arrived, check, copy, finish, in_memory, kill, make_waiting, serve, sync_code
from tests.faults.zygote import Zygote
from tests.nodes import DE, FR

RUNS = count(25, 2_000)
ADVISORIES = 20
A_PAGE = 4
SYNC = sync_code(A_PAGE)
WATCHED_SYNC = sync_code(A_PAGE, strace.HOLDING)
STEPS = ("pwrite64", "fdatasync", "sendmsg", "sendto", "ftruncate", "unlink")


class Step(NamedTuple):
    """Before which call of a thread of which side it ends."""

    side: str
    call: str
    number: int


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_waiting(tmp_path_factory.mktemp("waiting"), ADVISORIES)


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(tmp_path_factory.mktemp("logs")) as made:
        yield made


class Runs:
    """The runs of one campaign, each on copies of the same homes."""

    def __init__(self, waiting: Path, zygote: Zygote, folder: Path) -> None:
        self.waiting, self.zygote, self.folder = waiting, zygote, folder
        self.killed = self.midway = 0

    def steps(self) -> list[Step]:
        """Every step of a sync that nobody disturbs."""
        found = []
        for side in (FR, DE):
            out = self.folder / f"{side}.trace"
            self._run("undisturbed", side, out, "-e", f"trace={','.join(STEPS)}")
            most = strace.most_of_a_thread(out)
            found += [Step(side, call, n) for call in STEPS for n in range(1, most.get(call, 0) + 1)]
        return found

    def disturbed(self, what: str, *steps: Step) -> None:
        """One run; after a kill at the first step, whatever goes on on the side of the second is killed there."""
        first, *later = steps
        self._run(what, first.side, Path(os.devnull), *_ended_by(first), again=later)

    def _run(self, what: str, side: str, out: Path, *options: str, again: list[Step] | None = None) -> None:
        homes, zygote = copy(self.waiting, self.folder / "homes"), self.zygote
        with ExitStack() as tracing:
            sender = serve(zygote, homes[FR])
            if side == FR:
                tracing.enter_context(strace.attached(sender, out, *options))
            receiver = zygote.start(homes[DE], "sync", code=WATCHED_SYNC if side == DE else SYNC)
            if side == DE:
                tracing.enter_context(strace.attached(receiver, out, *options))
            zygote.wait(receiver)
        target = sender if side == FR else receiver
        self.killed += zygote.ended(target) and zygote.wait(target) < 0
        self.midway += 0 < arrived(homes[DE]) < ADVISORIES
        if zygote.ended(sender):
            sender = serve(zygote, homes[FR])
        for step in again or ():
            receiver = zygote.start(homes[DE], "sync", code=WATCHED_SYNC if step.side == DE else SYNC)
            with strace.attached(sender if step.side == FR else receiver, Path(os.devnull), *_ended_by(step)):
                zygote.wait(receiver)
            if zygote.ended(sender):
                sender = serve(zygote, homes[FR])
        receiver = zygote.start(homes[DE], "sync", code=SYNC)
        finish(zygote, homes[DE], receiver, SYNC, what)
        kill(zygote, sender)
        check(homes, ADVISORIES, what)
        shutil.rmtree(self.folder / "homes")


def _ended_by(step: Step) -> tuple[str, ...]:
    return ("-e", f"trace={step.call}", "-e", f"inject={step.call}:signal=KILL:when={step.number}")


@needs("strace", root=True)
@pytest.mark.invariant("I9")
def test_a_kill_at_any_step_of_a_sync_loses_repeats_and_forks_nothing(waiting: Path, zygote: Zygote) -> None:
    seed = random.randrange(1 << 32)  # noqa: S311 - told below, so that a run can be repeated
    chance = random.Random(seed)  # noqa: S311
    with in_memory() as folder:
        runs = Runs(waiting, zygote, folder)
        steps = runs.steps()
        first = chance.randrange(len(steps))
        for run in range(RUNS):
            # evenly spaced where there are fewer runs than steps, else all of them in turn
            step = steps[(first + run * max(1, len(steps) // RUNS)) % len(steps)]
            more = [chance.choice(steps)] if run >= len(steps) else []
            runs.disturbed(f"seed {seed}, run {run}: {[step, *more]}", step, *more)
    assert runs.killed > RUNS * 2 // 3, (seed, runs.killed)
    assert runs.midway > RUNS // 4, (seed, runs.midway)
    print(
        f"{RUNS} runs over {len(steps)} steps: {runs.killed} killed, {runs.midway} between the first page and the last"
    )
