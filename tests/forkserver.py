"""A process that has imported all of `node` and forks one for each command: `python forkserver.py LISTENING PYTHON`.

It never ran a command, started no thread and used no gRPC, so that what it forks is like a process that has just
imported everything itself: its own streams, folder, environment and user ids, arguments in `sys.argv`, code run as
`__main__`, and an end by the interpreter's own rules. What this leaves out is the start of the interpreter, that
modules are imported in the order of use, and that the validator of CSAF reads its own queries anew for each document.

PYTHON is what these processes find in `sys.executable`: a program that asks for a process here (`tests/forkclient.py`).
LISTENING is the number of an open socket. Each connection asks for one process, with a line of JSON and its three
streams (SCM_RIGHTS), is told its id, and at its end its exit code. Who hangs up before ends it by SIGKILL; the end of
the server's own stdin ends all of them.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import pkgutil
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NamedTuple

_STREAMS = 3
_CHUNK = 1 << 16
_SOON = (  # what modules import late, and most commands come to need
    *("alembic.command", "csaf.mandatory", "encodings.idna", "grpc", "grpc.aio", "grpc_health.v1.health_pb2_grpc"),
    *(
        "_strptime",
        "multiprocessing",
        "pycountry",
        "prometheus_client.parser",
        "rich.box",
        "rich.console",
        "rich.progress",
        "rich.table",
    ),
    *("sqlalchemy.dialects.sqlite", "typer._adapters", "uuid"),
)


class Wanted(NamedTuple):
    """A process that was asked for, in the process itself."""

    code: str
    words: list[str]


def import_all() -> None:
    """Everything that a command may need; what a tree of an earlier version has not, it does not need."""
    node = importlib.import_module("node")
    for found in pkgutil.walk_packages(node.__path__, "node."):
        if ".migrations" not in found.name:  # they run when they are imported
            importlib.import_module(found.name)
    for name in _SOON:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    queries = importlib.import_module("jsonpath").DEFAULT_ENV
    queries.compile = functools.cache(queries.compile)


def serve(listening: socket.socket) -> Wanted:
    """Answers until stdin ends, and then ends. Returns in each process that was asked for, and only there."""
    asleep, woken = socket.socketpair()
    for end in (asleep, woken):
        end.setblocking(False)
    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    asking: dict[socket.socket, int] = {}
    while True:
        waited: list[Any] = [0, listening, asleep, *asking]
        readable, _, _ = select.select(waited, [], [])
        if 0 in readable and not os.read(0, 1):
            for process in asking.values():
                os.kill(process, signal.SIGKILL)
            os._exit(0)
        for connection in [found for found in readable if found in asking]:
            os.kill(asking[connection], signal.SIGKILL)  # nobody waits for it any more; its end is seen below
            _forget(connection, asking)
        if asleep in readable:
            with contextlib.suppress(BlockingIOError):
                asleep.recv(_CHUNK)
            _reap(asking)
        if listening in readable:
            connection, _ = listening.accept()
            asked, streams = _read(connection)
            process = os.fork() if asked else -1
            if process == 0:
                signal.set_wakeup_fd(-1)
                for ours in (listening, asleep, woken, *asking):
                    ours.close()
                return _become(asked, streams, connection)
            for stream in streams:
                os.close(stream)
            if process > 0:
                asking[connection] = process
                _tell(connection, process)
            else:
                connection.close()


def _read(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What is asked for, and its streams; nothing when whoever asks has gone."""
    data, streams, _, _ = socket.recv_fds(connection, _CHUNK, _STREAMS)
    while data and not data.endswith(b"\n"):
        more = connection.recv(_CHUNK)
        data = data + more if more else b""
    return (json.loads(data) if data else {}), streams


def _reap(asking: dict[socket.socket, int]) -> None:
    """Tells those who wait for processes that have ended."""
    while True:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not process:
            return
        for connection in [found for found, its in asking.items() if its == process]:
            _tell(connection, os.waitstatus_to_exitcode(status))
            _forget(connection, asking)


def _tell(connection: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # it may have hung up
        connection.sendall(f"{number}\n".encode())


def _forget(connection: socket.socket, asking: dict[socket.socket, int]) -> None:
    connection.close()
    del asking[connection]


def _become(asked: dict[str, Any], streams: list[int], connection: socket.socket) -> Wanted:
    """Makes this process the one that was asked for."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in asked["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
        os.close(stream)
    for name, place, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        setattr(sys, name, _opened(place, mode))
        setattr(sys, f"__{name}__", getattr(sys, name))
    os.environ.clear()
    os.environ.update(asked["environment"])
    time.tzset()
    os.chdir(asked["folder"])
    if asked["person"]:
        login, real = asked["person"]
        _become_person(login, real, connection)
    connection.close()
    return Wanted(asked["code"], asked["words"])


def _opened(place: int, mode: str) -> IO[str]:
    """A standard stream as the interpreter opens it."""
    old = (sys.stdin, sys.stdout, sys.stderr)[place]
    raw = open(place, f"{mode}b", buffering=-1, closefd=False)  # noqa: SIM115 - for as long as the process runs
    by_line, at_once = place == 2 or raw.isatty(), "PYTHONUNBUFFERED" in os.environ
    return io.TextIOWrapper(raw, old.encoding, old.errors, line_buffering=by_line, write_through=at_once)


def _become_person(login: int, real: int, connection: socket.socket) -> None:
    """Another person at the keyboard, on the owner's files; `refused` for an exit code where that cannot be."""
    known = Path("/proc/self/loginuid")
    try:
        before = int(known.read_text("ascii"))
    except (OSError, ValueError):
        before = 0
    try:
        if login != real or 0 < before < 2**32 - 1:
            known.write_text(str(login), "ascii")
        os.setresuid(real, 0, 0)
    except OSError:
        connection.sendall(b"refused\n")
        os._exit(1)


def run(wanted: Wanted, python: str) -> None:
    """What `python -c CODE WORDS` does. An exception other than SystemExit is left to the interpreter, as there."""
    sys.argv, sys.executable = ["-c", *wanted.words], python
    place = sys.modules["__main__"] = ModuleType("__main__")
    code = 0
    try:
        exec(compile(wanted.code, "<string>", "exec"), place.__dict__)  # noqa: S102 - it is a test's own
    except SystemExit as e:
        if not isinstance(e.code, int):
            raise
        code = e.code
    threading._shutdown()  # type: ignore[attr-defined]  # what the interpreter itself does at this point
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    place.__dict__.clear()
    gc.collect()  # closes what is open; the modules, which take a tenth of a second, are not taken down
    os._exit(code)


if __name__ == "__main__":
    sys.path[0] = os.environ["PYTHONPATH"]  # and not the folder of this file
    import_all()
    gc.collect()
    gc.freeze()  # so that children do not copy it all by counting it
    run(serve(socket.socket(fileno=int(sys.argv[1]))), sys.argv[2])
