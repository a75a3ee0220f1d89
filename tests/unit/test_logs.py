"""The log file: rotated, closed to others, and never a reason for the exchange to stop."""

import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from config import settings
from federation.errors import UsageError
from node.home import logs

LIBRARIES = ("apscheduler", "grpc", "asyncio")
MIB = 1 << 20
_LIMITED = """
import pathlib, resource, structlog, sys
from node.home import logs
log, path = structlog.get_logger(), pathlib.Path(sys.argv[1])
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
with logs.writing(path, 1 << 20, 3):
    log.info("before")
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, most))  # a write beyond fails half-way
    log.info("first that does not fit")
    log.info("second that does not fit")
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    log.info("after")
"""
_CHATTY = """
import logging, structlog
from node.home import logs
{root}
with logs.writing():
    structlog.get_logger().info("start")
    for library in ("apscheduler.executors", "grpc._cython", "asyncio"):
        logging.getLogger(library).error("a secret")
"""
_SETTINGS = """
node: cert.fr.example
jurisdiction: FR
listen: "127.0.0.1:7443"
advertise: "127.0.0.1:7443"
poll_interval_s: 60
law_packs: []
log: {{file: {name}}}
"""
_UNREAD = """
import structlog
from node.home import logs
with logs.writing():
    structlog.get_logger().info("start")
print("went on")
"""


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Gives structlog and the libraries' loggers back as they were."""
    yield
    structlog.reset_defaults()
    for library in LIBRARIES:
        logging.getLogger(library).handlers.clear()
        logging.getLogger(library).propagate = True


def write(n: int) -> None:
    """Logs one line with a number."""
    structlog.get_logger().info("sync", n=n)


def numbers(path: Path) -> list[int]:
    """The numbers of all lines, from the oldest file to the newest."""
    old = sorted(path.parent.glob(f"{path.name}.*"), key=lambda file: -int(file.suffix[1:]))
    lines = [line for file in (*old, path) for line in file.read_text("utf-8").splitlines()]
    return [int(found[1]) for line in lines if (found := re.search(r" n=(\d+)$", line))]


def test_a_line_is_the_same_in_the_file_as_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = structlog.get_logger()
    with logs.writing():
        log.error("call refused", peer="cert.fr.example", status="two words\nand lines")
    shown = capsys.readouterr().err
    assert re.fullmatch(
        r'timestamp=\S+Z level=error event="call refused" peer=cert\.fr\.example status="two words\\nand lines"\n',
        shown,
    )
    with logs.writing(tmp_path / "node.log", MIB, 3):
        log.error("call refused", peer="cert.fr.example", status="two words\nand lines")
    assert (tmp_path / "node.log").read_text("utf-8").partition(" ")[2] == shown.partition(" ")[2]
    assert capsys.readouterr() == ("", "")


def test_old_files_are_numbered_and_never_more_than_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    with logs.writing(path, 4_000, 3):
        for n in range(400):
            write(n)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["node.log", "node.log.1", "node.log.2", "node.log.3"]
    assert all(file.stat().st_size <= 4_000 for file in tmp_path.iterdir())
    kept = numbers(path)
    assert kept == list(range(kept[0], 400))
    assert len(kept) > 150
    # who keeps fewer from now on gets rid of the others; a file of another name is none of them
    (tmp_path / "node.log.gz").write_bytes(b"")
    with logs.writing(path, 4_000, 1):
        pass
    assert sorted(file.name for file in tmp_path.iterdir()) == ["node.log", "node.log.1", "node.log.gz"]


def test_threads_lose_no_line(tmp_path: Path) -> None:
    path = tmp_path / "node.log"

    def write_some(first: int) -> None:
        for n in range(first, first + 200):
            write(n)

    with logs.writing(path, 2_000, 900):
        threads = [threading.Thread(target=write_some, args=(first,)) for first in range(0, 1_000, 200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(numbers(path)) == list(range(1_000))


def test_others_cannot_read_it_whatever_its_mode_was(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    path.write_text("", encoding="utf-8")
    path.chmod(0o644)
    before = os.umask(0)
    try:
        with logs.writing(path, 200, 2):
            write(0)
            assert path.stat().st_mode & 0o777 == 0o600
            for n in range(1, 10):
                write(n)
    finally:
        os.umask(before)
    assert {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {
        "node.log": 0o600,
        "node.log.1": 0o600,
        "node.log.2": 0o600,
    }


def test_a_restart_goes_on_after_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    for n in (1, 2):
        with logs.writing(path, MIB, 3):
            write(n)
    assert numbers(path) == [1, 2]
    with path.open("a", encoding="utf-8") as torn:
        torn.write("timestamp=2026-11-01T09:0")
    with logs.writing(path, MIB, 3):
        write(3)
    assert numbers(path) == [1, 2, 3]
    assert len(path.read_text("utf-8").splitlines()) == 4


def test_a_file_that_was_moved_or_removed_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    with logs.writing(path, MIB, 3):
        write(1)
        path.rename(tmp_path / "elsewhere")
        write(2)
        assert numbers(path) == [2]
        path.unlink()
        write(3)
        assert numbers(path) == [3]


def test_a_file_that_cannot_be_had_is_told_once_and_lines_go_to_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "node.log"
    path.mkdir()
    with logs.writing(path, MIB, 3):
        for n in range(3):
            write(n)
        told, *lines = capsys.readouterr().err.splitlines()
        assert told == f"log: {path} cannot be written (Is a directory); lines come here meanwhile"
        assert [line.rpartition(" ")[2] for line in lines] == ["n=0", "n=1", "n=2"]
        path.rmdir()
        write(3)
    assert capsys.readouterr().err == ""
    assert numbers(path) == [3]


def test_a_link_to_somewhere_else_is_not_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine\n", encoding="utf-8")
    (tmp_path / "node.log").symlink_to(elsewhere)
    with logs.writing(tmp_path / "node.log", MIB, 3):
        write(1)
    assert elsewhere.read_text("utf-8") == "mine\n"
    assert "cannot be written" in capsys.readouterr().err


def test_a_full_disk_loses_no_line_and_stops_nothing(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    done = subprocess.run([sys.executable, "-c", _LIMITED, str(path)], capture_output=True, text=True, check=True)
    told, *lines = done.stderr.splitlines()
    assert "cannot be written" in told
    assert [line.partition("event=")[2] for line in lines] == [
        '"first that does not fit"',
        '"second that does not fit"',
    ]
    written = path.read_text("utf-8").splitlines()
    assert "event=before" in written[0]
    assert "event=after" in written[-1]
    assert len(written) == 3
    assert len(written[1]) == 20  # the one in the middle was cut off, and nothing more of it came later


@pytest.mark.parametrize(
    "name",
    ["apostille.db", "passphrase", "apostille.yaml", "serve.lock", "../node.log", "/node.log", ".log", "a\n.log"],
)
def test_a_log_takes_the_place_of_nothing_else_in_the_home(name: str) -> None:
    read = settings.read(_SETTINGS.format(name="node.log"), "apostille.yaml")
    assert read.log == settings.LogFile("node.log", 20, 10)
    with pytest.raises(UsageError, match=r"log: file: expected a plain name that ends in \.log"):
        settings.read(_SETTINGS.format(name=json.dumps(name)), "apostille.yaml")


def test_a_stderr_that_nobody_reads_stops_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run([sys.executable, "-c", _UNREAD], stdout=subprocess.PIPE, stderr=writing, check=False)
    finally:
        os.close(writing)
    assert done.stdout == b"went on\n"


@pytest.mark.invariant("I17")
@pytest.mark.parametrize("root", ["", "logging.basicConfig(force=True)"], ids=["no-root-handler", "a-root-handler"])
def test_what_libraries_say_is_not_written_down(root: str) -> None:
    done = subprocess.run([sys.executable, "-c", _CHATTY.format(root=root)], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"\S+ level=info event=start\n", done.stderr)
