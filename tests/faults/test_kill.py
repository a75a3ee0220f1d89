"""kill -9 of either side at random moments of a sync: nothing is lost, nothing repeated, the roots are equal.

Real processes on loopback, real gRPC. Each run copies two homes between which 500 advisories wait, starts the sender's
server and the receiver's sync, kills one of them at a random moment, once or several times, and lets them go on.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.campaign import count
from tests.faults.waiting import arrived, check, copy, finish, in_memory, kill, make_waiting, serve, sync_code
from tests.faults.zygote import Zygote
from tests.nodes import DE, FR

ADVISORIES = 500
A_PAGE = 16
SYNC = sync_code(A_PAGE)
RUNS = count(40, 200)


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_waiting(tmp_path_factory.mktemp("waiting"), ADVISORIES)


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(tmp_path_factory.mktemp("logs")) as made:
        yield made


@pytest.fixture
def quick() -> Iterator[Path]:
    with in_memory() as folder:
        yield folder


def test_kill_9_at_random_moments_loses_and_repeats_nothing(waiting: Path, quick: Path, zygote: Zygote) -> None:
    seed = random.randrange(1 << 32)  # noqa: S311 - told below, so that a run can be repeated
    chance = random.Random(seed)  # noqa: S311
    undisturbed_s, kills, midway = 1.0, {"sender": 0, "receiver": 0}, 0
    for run in range(RUNS):
        what = f"seed {seed}, run {run}"
        homes = copy(waiting, quick / str(run))
        sender = serve(zygote, homes[FR])
        began = time.monotonic()
        receiver = _sync(zygote, homes[DE])
        strikes = 0 if run == 0 else chance.choice((1, 1, 2, 3))  # the first run measures how long it takes
        for _ in range(strikes):
            time.sleep(chance.uniform(0, undisturbed_s / strikes))  # the moment is what the test is about
            if chance.random() < 0.5:
                kills["sender"] += kill(zygote, sender)
                sender = serve(zygote, homes[FR])
            else:
                kills["receiver"] += kill(zygote, receiver)
            midway += 0 < arrived(homes[DE]) < ADVISORIES
            if zygote.ended(receiver):
                receiver = _sync(zygote, homes[DE])
        finish(zygote, homes[DE], receiver, SYNC, what)
        if run == 0:
            undisturbed_s = time.monotonic() - began
        os.kill(sender, signal.SIGKILL)
        zygote.wait(sender)
        check(homes, ADVISORIES, what)
        shutil.rmtree(quick / str(run))
    assert min(kills.values()) > RUNS // 8, kills
    assert midway > RUNS // 8, midway  # processes did die in the middle, between two pages or inside one
    told = f"{RUNS} runs of {ADVISORIES} advisories in pages of {A_PAGE}, killed: {kills}, {midway} times midway"
    print(f"{told}, an undisturbed sync took {undisturbed_s:.1f} s")


def _sync(zygote: Zygote, home: Path) -> int:
    return zygote.start(home, "sync", code=SYNC)
