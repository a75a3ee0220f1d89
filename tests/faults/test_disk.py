"""A disk that fails or is full: a node says so, signs nothing for what it could not keep, and goes on once it can.

Errors are put in place of writes and syncs by strace, or a small file system is really filled up. Commands end with one
sentence and an exit code, and change nothing; the same command succeeds once the disk works. A server that is running
goes on running: it acknowledges nothing that is not durable, tells of it, and catches up by itself.
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from node import main
from node.desk import inbox
from node.home.context import Node
from node.peering.feeds import out_feed
from node.store import database
from tests.commands import run
from tests.e2e.net import acknowledged, until
from tests.e2e.processes import PATIENCE_S, ready
from tests.faults import strace
from tests.faults.campaign import needs
from tests.faults.waiting import copy, in_memory, make_waiting, serve, sync_code
from tests.faults.zygote import Zygote
from tests.nodes import DE, FR, PEOPLE, document, import_document

ADVISORIES = 2
SMALL_MIB = 8
TELLING = 'metrics: "127.0.0.1:0"\nlog: {file: apostille.log}\n'
FAULTS = {
    "a write fails": "inject=pwrite64:error=EIO",
    "a write finds the disk full": "inject=pwrite64:error=ENOSPC",
    "a sync fails": "inject=fdatasync:error=EIO",
}

pytestmark = needs("strace", "mount", "umount", root=True)


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Homes that tell how they are; FR has one more advisory, not released yet."""
    folder = make_waiting(tmp_path_factory.mktemp("waiting"), ADVISORIES)
    for name in (FR, DE):
        path = folder / name / "apostille.yaml"
        text = re.sub("poll_interval_s: [0-9]+", "poll_interval_s: 1", path.read_text("utf-8"))
        path.write_text(text + TELLING, encoding="utf-8")
    node = replace(main.open_node(folder / FR), actor="alice", people=PEOPLE)
    import_document(node, document("LATER"))
    node.engine.dispose()
    return folder


@pytest.fixture
def homes(waiting: Path) -> Iterator[dict[str, Path]]:
    with in_memory() as folder:
        yield copy(waiting, folder / "homes")


@pytest.fixture
def zygote(tmp_path: Path) -> Iterator[Zygote]:
    with Zygote(tmp_path / "logs") as made:
        yield made


@contextmanager
def opened(home: Path) -> Iterator[Node]:
    node = main.open_node(home)
    try:
        yield node
    finally:
        node.engine.dispose()


def received(home: Path) -> set[str]:
    with opened(home) as node:
        return {item.name for item in inbox.items(node)}


def is_told(said: str) -> None:
    """One sentence for people, and no fault of ours."""
    assert "Traceback" not in said
    assert "internal error" not in said
    assert [line for line in said.splitlines() if line.startswith("apostille: ")], said


def is_sound(home: Path) -> None:
    """`apostille ledger verify` finds nothing."""
    verified = run("--home", str(home), "ledger", "verify", timeout=PATIENCE_S)
    assert verified.returncode == 0, verified.stdout + verified.stderr


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of a few MiB."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_MIB}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """Inside, not a byte is free."""
    ballast = disk / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue
        yield
    finally:
        ballast.unlink()


def broken_by(fault: str, home: Path, zygote: Zygote, *words: str) -> tuple[int, str]:
    """The exit code of a command that meets a fault whenever it writes to the log of its database, and what it said."""
    process = zygote.start(home, *words, code=sync_code(1, strace.HOLDING))
    with strace.attached(process, Path(os.devnull), *_only_the_log(home), "-e", FAULTS[fault]):
        ended = zygote.wait(process)
    return ended, zygote.log(process)


def _only_the_log(home: Path) -> tuple[str, str]:
    return "-P", str(home / f"{main.DATABASE_FILE}-wal")


@pytest.mark.invariant("I9")
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("words", [("advisory", "release", "LATER"), ("sync",)], ids=["release", "sync"])
def test_a_command_whose_disk_fails_does_nothing_by_half_and_succeeds_later(
    homes: dict[str, Path], zygote: Zygote, fault: str, words: tuple[str, ...]
) -> None:
    serve(zygote, homes[FR])
    home = homes[FR if "release" in words else DE]
    ended, said = broken_by(fault, home, zygote, *words)
    assert ended > 0, said
    assert "Traceback" not in said
    if "full" in fault:
        is_told(said)
    is_sound(home)
    assert run("--home", str(home), *words, timeout=PATIENCE_S).returncode == 0
    is_sound(home)


def test_an_error_of_the_disk_is_told_as_such(homes: dict[str, Path], zygote: Zygote) -> None:
    ended, said = broken_by("a write fails", homes[FR], zygote, "advisory", "release", "LATER")
    is_told(said)
    assert ended == 1
    assert "disk" in said


def test_a_command_on_a_full_disk_says_so_and_succeeds_later(homes: dict[str, Path], tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        home = shutil.copytree(homes[FR], disk / "home")
        release = ("--home", str(home), "advisory", "release", "LATER")
        with full(disk):
            refused = run(*release, timeout=PATIENCE_S)
            assert refused.returncode == 1, refused.stderr
            is_told(refused.stderr)
            assert "disk" in refused.stderr
            assert "space" in refused.stderr
        is_sound(home)
        assert run(*release, timeout=PATIENCE_S).returncode == 0
        is_sound(home)


@contextmanager
def failing(fault: str, process: int, home: Path, disk: Path) -> Iterator[None]:
    """Inside, the disk of a server that runs does not work."""
    if fault == "the disk is full":
        with full(disk):
            yield
    else:
        with strace.attached(process, Path(os.devnull), *_only_the_log(home), "-e", FAULTS[fault]):
            yield


@pytest.mark.invariant("I9")
@pytest.mark.parametrize("fault", ["the disk is full", "a write fails", "a sync fails"])
def test_a_server_whose_disk_fails_acknowledges_nothing_and_recovers_by_itself(
    homes: dict[str, Path], tmp_path: Path, fault: str
) -> None:
    with small_disk(tmp_path / "disk") as disk, ready(homes[FR]), opened(homes[FR]) as fr:
        home = shutil.copytree(homes[DE], disk / "home")
        with ready(home) as serving:
            until(lambda: len(received(home)) == ADVISORIES, PATIENCE_S)
            until(lambda: _owed(fr) == 0, PATIENCE_S)
            held = acknowledged(fr, DE)
            with failing(fault, serving.process.pid, home, disk):
                run("--home", str(homes[FR]), "advisory", "release", "LATER", timeout=PATIENCE_S)
                told = "disk full" if "full" in fault else "disk error"
                until(lambda: serving.count("apostille_syncs_total", result=told) > 0, PATIENCE_S)
                assert serving.health() == "disk"
                assert acknowledged(fr, DE) == held
            until(lambda: "LATER" in received(home), PATIENCE_S)
            until(lambda: _owed(fr) == 0, PATIENCE_S)
            assert serving.health() == "ok"
            serving.tell(signal.SIGTERM)
            code, said = serving.ended()
        assert code == 0, said
        assert "Traceback" not in said
        is_sound(home)


def _owed(node: Node) -> int:
    """How many entries DE has not acknowledged."""
    with database.read(node.engine) as tx:
        feed = out_feed(tx, DE)
    return feed.size - feed.receipt_size
