"""The long-running node: server and polls, until it is told to stop.

One process serves a home: it holds an exclusive lock on `serve.lock` and writes its process id there once it is ready
for signals. SIGTERM and SIGINT end it in order; SIGUSR1 says that another command of this home has changed something.
What is served and when peers are asked is decided in `node.rpc` and `node.scheduler`.
"""

import asyncio
import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from federation.errors import UsageError
from node import logs
from node.context import Node
from node.main import open_node
from node.rpc import server
from node.rpc.client import PeerLink
from node.scheduler import Polls

LOCK_FILE = "serve.lock"
STATE_FILE = "serve.json"
DRAIN_S = 5.0  # longer than any call but a page over a slow line, which is simply asked for again
_LOCK_PATIENCE_S = 0.2  # `wake` holds the lock for a moment while it looks
_LOCK_STEP_S = 0.02
_log = structlog.get_logger()


def serve(home: Path, ready: Callable[[str], None]) -> None:
    """Serves the node in `home` until SIGTERM or SIGINT; to be called in the main thread.

    `ready` is called with the bound address, HOST:PORT, once calls are accepted and signals are heeded. Raises
    UsageError when the home is served already or the address cannot be had, and whatever `open_node` raises.
    """
    with _hold(home) as lock:
        node = open_node(home)
        logs.configure()
        try:
            asyncio.run(_run(node, lock, ready))
        finally:
            (home / STATE_FILE).unlink(missing_ok=True)
            node.engine.dispose()


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


async def _run(node: Node, lock: int, ready: Callable[[str], None]) -> None:
    loop, end = asyncio.get_running_loop(), asyncio.Event()
    polls = Polls(node, PeerLink)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)
    loop.add_signal_handler(signal.SIGUSR1, lambda: loop.run_in_executor(None, _look_again, polls))
    running = await server.start(node, polls.hint)
    try:
        state = json.dumps({"pid": os.getpid(), "address": running.address})
        (node.home / STATE_FILE).write_text(state + "\n", encoding="utf-8")
        await asyncio.to_thread(polls.start)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        _log.info("start", node=node.id, address=running.address)
        ready(running.address)
        await end.wait()
    finally:
        await running.stop(DRAIN_S)
        await asyncio.to_thread(polls.stop)
        os.ftruncate(lock, 0)
        _log.info("stop", node=node.id)


def _look_again(polls: Polls) -> None:
    try:
        polls.refresh()
        polls.announce()
    except SQLAlchemyError as e:  # the next poll or wake makes up for it
        _log.error("wake failed", error=type(e).__name__, at=logs.place(e))


@contextmanager
def _hold(home: Path) -> Iterator[int]:
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
