"""kill -9 of either side at random moments of a sync: nothing is lost, nothing repeated, the roots are equal.

Real processes on loopback, real gRPC. Each run copies two homes between which 500 advisories wait, starts the sender's
server and the receiver's sync, kills one of them at a random moment, once or several times, and lets them go on. The
receiver asks for small pages, each of which is a transaction, so that it is often killed between two or inside one.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from sqlalchemy import select

from federation import merkle
from federation.model import Country
from node import main
from node.desk import inbox
from node.exchange import sync
from node.home.context import Node
from node.peering import peers
from node.peering.feeds import leaf_hashes, out_feed
from node.sharing import releases
from node.store.database import read
from node.store.tables import in_entries
from tests.commands import APOSTILLE
from tests.e2e.net import free_port
from tests.faults.campaign import count
from tests.faults.zygote import Zygote
from tests.nodes import DE, FR, PEOPLE, Clock, World, agree, document, import_document

ADVISORIES = 500
A_PAGE = 16
SYNC = f"from node.rpc import client; client.MAX_PAGE_ITEMS = {A_PAGE}; {APOSTILLE}"
RUNS = count(40, 200)
PATIENCE_S = 60


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Homes of FR and DE: 500 advisories in the feed from FR to DE, of which DE has none."""
    folder = tmp_path_factory.mktemp("waiting")
    made = {}
    for name in (FR, DE):
        address = f"127.0.0.1:{free_port()}"
        main.init_home(
            folder / name, name, Country(name[5:7].upper()), address, address, roots=1, threshold=1, packs=()
        )
        made[name] = replace(main.open_node(folder / name), actor="alice", people=PEOPLE)
    world = World(made, Clock(main.utc_now()))
    for receiver, sender in ((FR, DE), (DE, FR)):
        peers.enrol(world[receiver], world[sender].card_bytes)
    agree(world)
    for number in range(ADVISORIES):
        releases.release(world[FR], import_document(world[FR], document(f"K-{number:03}")))
    world.close()
    return folder


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(tmp_path_factory.mktemp("logs")) as made:
        yield made


@pytest.fixture
def quick() -> Iterator[Path]:
    """A folder in memory where there is one: processes are killed here, and the machine is not."""
    memory = Path("/dev/shm")  # noqa: S108 - the name in it is made up
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


def test_kill_9_at_random_moments_loses_and_repeats_nothing(waiting: Path, quick: Path, zygote: Zygote) -> None:
    seed = random.randrange(1 << 32)  # noqa: S311 - told below, so that a run can be repeated
    chance = random.Random(seed)  # noqa: S311
    undisturbed_s, kills, midway = 1.0, {"sender": 0, "receiver": 0}, 0
    for run in range(RUNS):
        what = f"seed {seed}, run {run}"
        homes = _copy(waiting, quick / str(run))
        sender = _serve(zygote, homes[FR])
        began = time.monotonic()
        receiver = _sync(zygote, homes[DE])
        strikes = 0 if run == 0 else chance.choice((1, 1, 2, 3))  # the first run measures how long it takes
        for _ in range(strikes):
            time.sleep(chance.uniform(0, undisturbed_s / strikes))  # the moment is what the test is about
            if chance.random() < 0.5:
                kills["sender"] += _kill(zygote, sender)
                sender = _serve(zygote, homes[FR])
            else:
                kills["receiver"] += _kill(zygote, receiver)
            midway += 0 < _arrived(homes[DE]) < ADVISORIES
            if zygote.ended(receiver):
                receiver = _sync(zygote, homes[DE])
        _finish(zygote, homes[DE], receiver, what)
        if run == 0:
            undisturbed_s = time.monotonic() - began
        os.kill(sender, signal.SIGKILL)
        zygote.wait(sender)
        _check(homes, what)
        shutil.rmtree(quick / str(run))
    assert min(kills.values()) > RUNS // 8, kills
    assert midway > RUNS // 8, midway  # processes did die in the middle, between two pages or inside one
    told = f"{RUNS} runs of {ADVISORIES} advisories in pages of {A_PAGE}, killed: {kills}, {midway} times midway"
    print(f"{told}, an undisturbed sync took {undisturbed_s:.1f} s")


def _copy(waiting: Path, folder: Path) -> dict[str, Path]:
    """Fresh copies of both homes."""
    shutil.copytree(waiting, folder)
    return {name: folder / name for name in (FR, DE)}


def _serve(zygote: Zygote, home: Path) -> int:
    """A server that answers: a sync that finds none ends at once, and would never be killed."""
    process, end = zygote.start(home, "serve"), time.monotonic() + PATIENCE_S
    host, _, port = main.read_settings(home).listen.rpartition(":")
    while True:
        try:
            socket.create_connection((host, int(port))).close()
        except OSError:
            assert time.monotonic() < end, zygote.log(process)
            time.sleep(0.01)
        else:
            return process


def _arrived(home: Path) -> int:
    """How many advisories have arrived."""
    with contextlib.closing(sqlite3.connect(home / main.DATABASE_FILE)) as file:
        return int(file.execute("SELECT count(*) FROM inbox").fetchone()[0])


def _sync(zygote: Zygote, home: Path) -> int:
    return zygote.start(home, "sync", code=SYNC)


def _kill(zygote: Zygote, process: int) -> int:
    """Kills a process; 1 if it was still running."""
    if zygote.ended(process):
        return 0
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    return int(zygote.wait(process) == -signal.SIGKILL)


def _finish(zygote: Zygote, home: Path, receiver: int, what: str) -> None:
    """Syncs until it succeeds: a retry mends what a killed sender broke."""
    end = time.monotonic() + PATIENCE_S
    while zygote.wait(receiver):
        assert time.monotonic() < end, f"{what}: {zygote.log(receiver)}"
        receiver = _sync(zygote, home)


def _check(homes: dict[str, Path], what: str) -> None:
    fr, de = (main.open_node(homes[name]) for name in (FR, DE))
    with read(fr.engine) as tx:
        feed = out_feed(tx, DE)
        sent = leaf_hashes(tx, feed.id, feed.size)
    held = sync.load_state(de, FR)
    with read(de.engine) as tx:
        rows = tx.execute(
            select(in_entries.c.seq, in_entries.c.leaf_hash)
            .where(in_entries.c.feed == held.id)
            .order_by(in_entries.c.seq)
        ).all()
    assert [row.seq for row in rows] == list(range(len(sent))), what
    assert [row.leaf_hash for row in rows] == sent, what
    assert held.state.edge.root() == feed.edge.root() == merkle.root(sent), what
    assert feed.receipt_size == feed.size, what
    names = sorted(item.name for item in inbox.items(de, every_state=True))
    assert names == [f"K-{number:03}" for number in range(ADVISORIES)], what
    _close(fr, de)


def _close(*nodes: Node) -> None:
    for node in nodes:
        node.engine.dispose()
