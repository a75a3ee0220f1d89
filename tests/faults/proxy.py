"""A TCP proxy that fails on command, between two real processes.

What it can do is what a line does: break with a reset and refuse (`cut`), fall silent and go on later as if nothing had
been, since TCP repeats what was lost (`hold`), forget its connections for good, as a firewall that restarts does
(`forget`), each in one direction or both; be slow (`delay_s`, `bytes_per_s`); and stop for ever after some bytes
(`stall_after`). It counts what passes. `heal` ends all of it. Every method may be called from any thread, and has taken
effect when it returns.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from enum import Enum
from types import TracebackType
from typing import Any, Self, TypeVar

_CHUNK = 1 << 14
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: what is closed sends RST
_PATIENCE_S = 20
T = TypeVar("T")


class Way(Enum):
    """A direction: UP is what whoever connected says."""

    UP = 0
    DOWN = 1


BOTH = tuple(Way)


class _Line:
    """What one direction does to what passes. `passed`: bytes that were handed on; `began`: those that came."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.opened.set()
        self.delay_s = 0.0
        self.bytes_per_s: float | None = None
        self.stall_after: int | None = None
        self.passed = 0
        self.age = 0  # how often it forgot its connections


class Proxy:
    """Listens on `listen` (HOST:PORT) and forwards to where `target` says, asked at each connection; a context manager.

    `connections` counts those that were accepted; one that came while the line was cut is not.
    """

    def __init__(self, listen: str, target: Callable[[], str | None]) -> None:
        self.address = listen
        self.connections = 0
        self._target = target
        self._lines = {way: _Line() for way in Way}
        self._cut = False
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._do(self._start())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._close())
        self._end()

    def cut(self) -> None:
        """Resets what is open, and whatever connects from now on."""
        self._do(self._break())

    def hold(self, *ways: Way) -> None:
        """Falls silent in these directions (both): nothing passes until `heal`, and nothing is lost."""
        for line in self._chosen(ways):
            self._call(line.opened.clear)

    def forget(self, *ways: Way) -> None:
        """Loses, in these directions (both), all that comes over the connections that are open now, for ever."""

        def grow(line: _Line) -> None:
            line.age += 1

        for line in self._chosen(ways):
            self._call(grow, line)

    def slow(self, *ways: Way, delay_s: float = 0, bytes_per_s: float | None = None) -> None:
        """Each piece waits `delay_s`, and no more than `bytes_per_s` pass on one connection."""
        for line in self._chosen(ways):
            line.delay_s, line.bytes_per_s = delay_s, bytes_per_s

    def stall(self, *ways: Way, after: int) -> None:
        """Each connection of these directions falls silent for ever once `after` bytes have passed."""
        for line in self._chosen(ways):
            line.stall_after = after

    def heal(self) -> None:
        """All passes again. What was held goes on; what was forgotten, stalled or cut stays dead."""

        def mend() -> None:
            self._cut = False
            for line in self._lines.values():
                line.delay_s, line.bytes_per_s, line.stall_after = 0.0, None, None
                line.opened.set()

        self._call(mend)

    def passed(self, way: Way) -> int:
        """Bytes that were handed on."""
        return self._lines[way].passed

    def _chosen(self, ways: tuple[Way, ...]) -> list[_Line]:
        return [self._lines[way] for way in ways or BOTH]

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE_S)

    def _call(self, change: Callable[..., None], *values: object) -> None:
        async def now() -> None:
            change(*values)

        self._do(now())

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        host, _, port = self.address.rpartition(":")
        self._server = await asyncio.start_server(self._connected, host, int(port))
        self.address = f"{host}:{self._server.sockets[0].getsockname()[1]}"

    async def _break(self) -> None:
        self._cut = True
        for writer in tuple(self._open):
            _reset(writer)

    async def _close(self) -> None:
        self._server.close()
        await self._break()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports that were aborted are closed in the next round

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._open.add(writer)
        other: asyncio.StreamWriter | None = None
        try:
            if self._cut:
                return
            self.connections += 1
            address = self._target()
            if address is None:
                return
            host, _, port = address.rpartition(":")
            far, other = await asyncio.open_connection(host, int(port))
            self._open.add(other)
            pumps = ((Way.UP, reader, other), (Way.DOWN, far, writer))
            await asyncio.gather(*(self._pump(way, source, sink) for way, source, sink in pumps))
        except (OSError, asyncio.CancelledError):
            return  # the line is dead; so are both ends, below
        finally:
            for end in (writer, other):
                if end is not None:
                    self._open.discard(end)
                    _reset(end)

    async def _pump(self, way: Way, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        line, age, passed = self._lines[way], self._lines[way].age, 0
        while data := await source.read(_CHUNK):
            await line.opened.wait()
            if line.stall_after is not None and passed + len(data) > line.stall_after:
                age = -1
            if line.age != age:
                continue
            if line.delay_s or line.bytes_per_s:
                await asyncio.sleep(line.delay_s + len(data) / (line.bytes_per_s or float("inf")))
            sink.write(data)
            await sink.drain()
            passed += len(data)
            line.passed += len(data)
        await line.opened.wait()
        if line.age == age and sink.can_write_eof():
            sink.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    opened: socket.socket | None = writer.get_extra_info("socket")
    if opened is not None and opened.fileno() >= 0:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
