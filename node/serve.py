"""The long-running node: server and polls, until it is told to stop.

SIGTERM and SIGINT end it in order; SIGUSR1 says that another command of this home has changed something (`node.lock`).
What is served and when peers are asked is decided in `node.rpc` and `node.scheduler`.
"""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from node import lock, logs
from node.context import Node
from node.main import open_node
from node.rpc import server
from node.rpc.client import PeerLink
from node.scheduler import Polls
from node.store import database

DRAIN_S = 5.0  # longer than any call but a page over a slow line, which is simply asked for again
_log = structlog.get_logger()


def serve(home: Path, ready: Callable[[str], None]) -> None:
    """Serves the node in `home` until SIGTERM or SIGINT; to be called in the main thread.

    `ready` is called with the bound address, HOST:PORT, once calls are accepted and signals are heeded. Raises
    UsageError when the home is served already or the address cannot be had, and whatever `open_node` raises.
    """
    with lock.hold(home) as held:
        node = open_node(home)
        logs.configure()
        database.scrub(node.engine)  # if the last process died between an erasure and this
        try:
            asyncio.run(_run(node, held, ready))
        finally:
            node.engine.dispose()


async def _run(node: Node, held: int, ready: Callable[[str], None]) -> None:
    loop, end = asyncio.get_running_loop(), asyncio.Event()
    polls = Polls(node, PeerLink)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)
    loop.add_signal_handler(signal.SIGUSR1, lambda: loop.run_in_executor(None, _look_again, polls))
    running = await server.start(node, polls.hint)
    try:
        await asyncio.to_thread(polls.start)
        lock.ready(held, node.home, running.address)
        _log.info("start", node=node.id, address=running.address)
        ready(running.address)
        await end.wait()
    finally:
        await running.stop(DRAIN_S)
        await asyncio.to_thread(polls.stop)
        lock.over(held, node.home)
        _log.info("stop", node=node.id)


def _look_again(polls: Polls) -> None:
    try:
        polls.refresh()
        polls.announce()
    except SQLAlchemyError as e:  # the next poll or wake makes up for it
        _log.error("wake failed", error=type(e).__name__, at=logs.place(e))
