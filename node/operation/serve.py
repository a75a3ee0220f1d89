"""The long-running node: server and polls, until it is told to stop.

SIGTERM and SIGINT end it in order, and a second one at once; SIGUSR1 says that another command of this home has changed
something (`node.home.lock`). What is served and when peers are asked is decided in `node.rpc` and
`node.operation.scheduler`.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final

import structlog
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from node.desk import inbox
from node.home import lock, logs
from node.home.context import Node
from node.home.tally import Tally
from node.main import check_owner, notify_socket, open_node, read_settings
from node.operation import watch
from node.operation.courier import Courier
from node.operation.scheduler import Polls
from node.peering import cards
from node.rpc import server
from node.rpc.client import PeerLink
from node.rpc.server import RunningServer
from node.sharing import retention
from node.store import database
from node.store.tables import meta

GRACE_S: Final = 10.0  # longer than any call but a page over a slow line, which is simply asked for again
_LAST_S: Final = 2.0  # for threads to end once their calls were ended
_ANSWER_S: Final = 2.0  # in which a server that accepts calls gets round to a question
_TELL_S: Final = 1.0
_ENDING: Final = (signal.SIGTERM, signal.SIGINT)
_log = structlog.get_logger()


def serve(home: Path, ready: Callable[[str], None]) -> None:
    """Serves the node in `home` until SIGTERM or SIGINT; to be called in the main thread.

    `ready` is called with the bound address, HOST:PORT, once calls are accepted and signals are heeded. Raises
    UsageError when the home is served already or an address cannot be had, and whatever `open_node` raises.

    Where work that is under way does not end in time, the process ends here, as at a power cut (I9).
    """
    check_owner(home)
    with lock.hold(home) as held:
        node, chosen = open_node(home), read_settings(home)
        log = () if chosen.log is None else (home / chosen.log.name, chosen.log.max_mib << 20, chosen.log.keep)
        with logs.writing(*log):
            retention.expire(node)  # before a call is accepted, and not an hour later
            inbox.index_missing(node)
            watch.check(node, starting=True)
            database.scrub(node.engine)  # if the last process died between an erasure and this
            try:
                asyncio.run(_run(node, chosen.metrics, held, ready))
            finally:
                node.engine.dispose()


class _Told:
    """What this process was told: that calls are accepted, that something was changed, that it is to end."""

    def __init__(self) -> None:
        self.serving, self.wake, self.end = asyncio.Event(), asyncio.Event(), asyncio.Event()


async def _run(node: Node, metrics: str | None, held: int, ready: Callable[[str], None]) -> None:
    loop, told, tally = asyncio.get_running_loop(), _Told(), Tally()
    polls, carrying = Polls(node, PeerLink, tally), Courier(node)
    with _heeding(loop, told), _watched(metrics, node, tally, partial(_health, node, loop, told)):
        running = await server.start(node, polls.hint, tally)
        looking = asyncio.create_task(_look_again(node, polls, carrying, told.wake))
        try:
            await asyncio.to_thread(polls.start)
            carrying.start()
            told.serving.set()
            told.wake.set()  # for what was changed while nobody served
            lock.ready(held, node.home, running.address)
            _log.info("start", node=node.id, address=running.address)
            ready(running.address)
            _tell("READY=1")
            await told.end.wait()
        finally:
            told.end.set()
            looking.cancel()
            drained = await _drain(running, polls, carrying)
            lock.over(held, node.home)
            if not drained:
                _log.info("drain cut short")
            _log.info("stop", node=node.id)
            if not drained:
                os._exit(0)  # threads that wait for the database end with the process; nothing was promised for them


async def _drain(running: RunningServer, polls: Polls, carrying: Courier) -> bool:
    """Accepts and asks no more, and lets what is under way go on for GRACE_S. Returns whether all of it has ended."""
    _tell("STOPPING=1")
    running.drain()
    _log.info("drain", grace_s=GRACE_S)
    threads = (asyncio.to_thread(polls.stop, GRACE_S), asyncio.to_thread(carrying.stop))
    work = asyncio.gather(running.stop(GRACE_S), *threads)
    try:
        await asyncio.wait_for(asyncio.shield(work), GRACE_S + _LAST_S)
    except TimeoutError:
        return False
    return True


@contextmanager
def _heeding(loop: asyncio.AbstractEventLoop, told: _Told) -> Iterator[None]:
    """Inside, signals are heeded. A second one that ends the process is the kernel's business, whatever hangs here."""

    def end(_number: int, _frame: FrameType | None) -> None:
        _leave()
        loop.call_soon_threadsafe(told.end.set)

    def wake(_number: int, _frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(told.wake.set)

    signal.signal(signal.SIGUSR1, wake)
    for number in _ENDING:
        signal.signal(number, end)
    try:
        yield
    finally:
        _leave()


def _leave() -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # a late one must not kill, which is what it does by default
    for number in _ENDING:
        signal.signal(number, signal.SIG_DFL)


async def _look_again(node: Node, polls: Polls, carrying: Courier, wake: asyncio.Event) -> None:
    """Takes up what other commands have changed: once for all that woke it meanwhile."""

    def look() -> None:
        bring_cards = partial(cards.catch_up, node)
        for take_up in (node.own.reload, bring_cards, polls.refresh, polls.announce, carrying.wake):
            try:
                take_up()
            except Exception as e:  # noqa: BLE001 - the next poll or wake makes up for it, and there must be a next one
                _log.error("wake failed", error=type(e).__name__, at=logs.place(e))

    while True:
        await wake.wait()
        wake.clear()
        await asyncio.to_thread(look)


@contextmanager
def _watched(listen: str | None, node: Node, tally: Tally, health: Callable[[], str | None]) -> Iterator[None]:
    """Inside, metrics and health are told on `listen`, if the settings name it."""
    if listen is None:
        yield
        return
    from node.operation.metrics import MetricsServer  # costs a tenth of a second of start-up

    answering = MetricsServer(node, tally, listen, health)
    try:
        _log.info("metrics", address=answering.address)
        yield
    finally:
        answering.close()


def _health(node: Node, loop: asyncio.AbstractEventLoop, told: _Told) -> str | None:
    """In one word why this node is not fit to serve; None when it is. For any thread but that of `loop`."""
    if told.end.is_set():
        return "draining"
    if not told.serving.is_set():
        return "starting"
    asked = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop)
    try:
        asked.result(_ANSWER_S)
    except TimeoutError:
        asked.cancel()
        return "stuck"
    try:
        with database.read(node.engine) as tx:
            tx.execute(select(meta.c.value).limit(1))
    except SQLAlchemyError:
        return "database"
    return "disk" if database.is_failing(node.engine) else None


def _tell(state: str) -> None:
    """Tells the service manager, where there is one that wants to know: sd_notify(3)."""
    address = notify_socket()
    if address is None:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.settimeout(_TELL_S)
        line.sendto(state.encode(), f"\0{address[1:]}" if address.startswith("@") else address)
