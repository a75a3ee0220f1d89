"""One process serves a home: the lock that says so, and signalling whoever holds it.

`serve.lock` is locked exclusively for as long as a process serves the home, and holds its process id once it is ready
for signals; `serve.json` says where it listens. Both files outlive a process that was killed, so what they say counts
only while the lock is held. Nothing heavy is imported: every command that changes something wakes the server.
"""

import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from federation.errors import UsageError

LOCK_FILE = "serve.lock"
STATE_FILE = "serve.json"
_LOCK_PATIENCE_S = 0.2  # `wake` holds the lock for a moment while it looks
_LOCK_STEP_S = 0.02


@contextmanager
def hold(home: Path) -> Iterator[int]:
    """The lock of `home`, as an open file descriptor. Raises UsageError when another process holds it."""
    if not home.is_dir():
        raise UsageError(f"{home} is no home of a node; make one with: apostille --home {home} init")
    descriptor = os.open(home / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(descriptor, home)
        os.ftruncate(descriptor, 0)  # the process id of a process that was killed
        yield descriptor
    finally:
        os.close(descriptor)


def ready(lock: int, home: Path, address: str) -> None:
    """Says that this process, which holds `lock`, listens on `address` and heeds signals."""
    (home / STATE_FILE).write_text(json.dumps({"pid": os.getpid(), "address": address}) + "\n", encoding="utf-8")
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)


def over(lock: int, home: Path) -> None:
    """Says that this process heeds signals no more."""
    os.ftruncate(lock, 0)
    (home / STATE_FILE).unlink(missing_ok=True)


def wake(home: Path) -> bool:
    """Tells the process that serves `home` that something was committed; returns whether there is one.

    The process id in the file counts only while the lock is held: that of a process that is gone may be anybody's.
    """
    try:
        descriptor = os.open(home / LOCK_FILE, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder(descriptor)
        if holder is None:  # it is starting, and reads the database after this
            return True
        try:
            os.kill(holder, signal.SIGUSR1)
        except ProcessLookupError:
            return False
        return True
    else:
        os.ftruncate(descriptor, 0)
        return False
    finally:
        os.close(descriptor)


def serving_address(home: Path) -> str | None:
    """Where the process that serves `home` listens; None when there is none, or it is just starting."""
    try:
        with (home / LOCK_FILE).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _address_in(home / STATE_FILE)
    except FileNotFoundError:
        pass
    return None


def _address_in(state_file: Path) -> str | None:
    try:
        address = json.loads(state_file.read_text(encoding="utf-8")).get("address")
    except (FileNotFoundError, ValueError):
        return None
    return address if isinstance(address, str) else None


def _lock(descriptor: int, home: Path) -> None:
    patience_s = _LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            if patience_s <= 0:
                by = _holder(descriptor)
                raise UsageError(f"{home} is served already by process {by or 'that is starting'}") from e
            time.sleep(_LOCK_STEP_S)
            patience_s -= _LOCK_STEP_S
        else:
            return


def _holder(descriptor: int) -> int | None:
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() and int(text) > 1 else None
