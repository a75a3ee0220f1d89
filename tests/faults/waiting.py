"""Homes of FR and DE between which advisories wait, the processes that exchange them, and what must hold afterwards.

For campaigns that break one of the two in the middle of a sync: the receiver asks for small pages, each of which is a
transaction, so that it is often broken between two or inside one.
"""

import contextlib
import os
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory

from sqlalchemy import select

from federation import merkle
from federation.model import Country
from node import main
from node.desk import inbox
from node.exchange import sync
from node.peering import peers
from node.peering.feeds import leaf_hashes, out_feed
from node.sharing import releases
from node.store.database import read
from node.store.tables import in_entries
from tests.commands import APOSTILLE
from tests.e2e.net import free_port
from tests.faults.zygote import Zygote
from tests.nodes import DE, FR, PEOPLE, Clock, World, agree, document, import_document

PATIENCE_S = 60


def name_of(number: int) -> str:
    """What the advisory of that number is called."""
    return f"K-{number:03}"


def make_waiting(folder: Path, advisories: int) -> Path:
    """Homes of FR and DE in `folder`: so many advisories in the feed from FR to DE, of which DE has none."""
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
    for number in range(advisories):
        releases.release(world[FR], import_document(world[FR], document(name_of(number))))
    world.close()
    return folder


@contextlib.contextmanager
def in_memory() -> Iterator[Path]:
    """A folder in memory where there is one: processes are broken here, and the machine is not."""
    memory = Path("/dev/shm")  # noqa: S108 - the name in it is made up
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


def copy(waiting: Path, folder: Path) -> dict[str, Path]:
    """Fresh copies of both homes."""
    copytree(waiting, folder)
    return {name: folder / name for name in (FR, DE)}


def sync_code(page: int, prelude: str = "") -> str:
    """What a `sync` runs that asks for pages of so many entries."""
    return f"from node.rpc import client; client.MAX_PAGE_ITEMS = {page}\n{prelude}\n{APOSTILLE}"


def serve(zygote: Zygote, home: Path, code: str = APOSTILLE) -> int:
    """A server that answers: a sync that finds none ends at once, and would never be broken."""
    process, end = zygote.start(home, "serve", code=code), time.monotonic() + PATIENCE_S
    host, _, port = main.read_settings(home).listen.rpartition(":")
    while True:
        try:
            socket.create_connection((host, int(port))).close()
        except OSError:
            assert time.monotonic() < end, zygote.log(process)
            assert not zygote.ended(process), zygote.log(process)
            time.sleep(0.01)
        else:
            return process


def arrived(home: Path) -> int:
    """How many advisories have arrived."""
    with contextlib.closing(sqlite3.connect(home / main.DATABASE_FILE)) as file:
        return int(file.execute("SELECT count(*) FROM inbox").fetchone()[0])


def kill(zygote: Zygote, process: int) -> int:
    """Kills a process; 1 if it was still running."""
    if zygote.ended(process):
        return 0
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    return int(zygote.wait(process) == -signal.SIGKILL)


def finish(zygote: Zygote, home: Path, receiver: int, code: str, what: str) -> None:
    """Syncs until it succeeds: a retry mends what a broken sender spoilt."""
    end = time.monotonic() + PATIENCE_S
    while zygote.wait(receiver):
        assert time.monotonic() < end, f"{what}: {zygote.log(receiver)}"
        assert "Traceback" not in zygote.log(receiver), f"{what}: {zygote.log(receiver)}"
        receiver = zygote.start(home, "sync", code=code)


def check(homes: dict[str, Path], advisories: int, what: str) -> None:
    """Nothing is lost, repeated or forked: entries, roots and receipt of both sides are equal, by leaves recomputed."""
    fr, de = (main.open_node(homes[name]) for name in (FR, DE))
    try:
        with read(fr.engine) as tx:
            feed = out_feed(tx, DE)
            sent = leaf_hashes(tx, feed.id, feed.size)
        held = sync.load_state(de, FR)
        with read(de.engine) as tx:
            rows = tx.execute(
                select(in_entries.c.seq, in_entries.c.leaf_hash, in_entries.c.data)
                .where(in_entries.c.feed == held.id)
                .order_by(in_entries.c.seq)
            ).all()
        assert [row.seq for row in rows] == list(range(len(sent))), what
        assert [row.leaf_hash for row in rows] == [merkle.leaf_hash(row.data) for row in rows] == sent, what
        assert held.state.edge.root() == feed.edge.root() == merkle.root(sent), what
        assert feed.receipt_size == feed.size, what
        names = sorted(item.name for item in inbox.items(de, every_state=True))
        assert names == [name_of(number) for number in range(advisories)], what
    finally:
        fr.engine.dispose()
        de.engine.dispose()
