"""Commands of a node, as processes that start at once.

Starting Python and importing what a command needs takes over a second, and the tests start many hundreds. A fork server
(`tests.forkserver`) imports it once; each command is then a real process of its own that a signal can kill, which runs
`node.cli.main` from beginning to end. `Running` has what `subprocess.Popen` has, as far as tests use it. That the
command also starts by itself, and what it imports, is shown by the few tests that start it the slow way.
"""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYetError
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import IO, Any, Self

ROOT = Path(__file__).parents[1]
APOSTILLE = "from node.cli import main; main()"
_SERVER, _CLIENT = Path(__file__).with_name("forkserver.py"), Path(__file__).with_name("forkclient.py")
_END_S = 30
_starting = threading.Lock()
_servers: "dict[Path, Server]" = {}


class Server:
    """A fork server for the code of one tree."""

    def __init__(self, tree: Path) -> None:
        self.name = f"apostille-fork-{os.getpid()}-{time.monotonic_ns()}"
        self._folder = TemporaryDirectory(prefix="apostille-fork-")
        python = self.program(Path(self._folder.name) / "python")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(f"\0{self.name}")
            listening.listen(100)
            self._process = subprocess.Popen(
                [sys.executable, str(_SERVER), str(listening.fileno()), str(python)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[listening.fileno()],
                cwd=tree,
                env={**outside(), "PYTHONPATH": str(tree)},
                start_new_session=True,  # Ctrl-C is for those who ask; this ends with them
            )

    def program(self, path: Path, *words: str) -> Path:
        """Makes a program that does what `python WORDS` does, and returns its path."""
        call = shlex.join([sys.executable, "-I", "-S", str(_CLIENT), self.name, *words])
        path.write_text(f'#!/bin/sh\nexec {call} "$@"\n', encoding="utf-8")
        path.chmod(0o755)
        return path

    def close(self) -> None:
        """Ends it, and whatever it started."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(_END_S)
        self._folder.cleanup()


def server(tree: Path = ROOT) -> Server:
    """The server of this process for a tree, started when it is first asked for."""
    with _starting:
        if tree not in _servers:
            _servers[tree] = Server(tree)
        return _servers[tree]


def close() -> None:
    """Ends every server of this process."""
    while _servers:
        _servers.popitem()[1].close()


def outside() -> dict[str, str]:
    """The environment of this process, without what it says to nodes."""
    return {name: value for name, value in os.environ.items() if not name.startswith("APOSTILLE_")}


class Running:
    """A process that runs `code` with `words` as its arguments; what it reads and writes is text.

    `person` is a pair of user ids, of the login and the real one: somebody else at the keyboard. Raises
    subprocess.SubprocessError where this machine does not let that be.
    """

    def __init__(
        self,
        *words: str,
        code: str = APOSTILLE,
        tree: Path = ROOT,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int | IO[Any] = subprocess.PIPE,
        stderr: int | IO[Any] = subprocess.PIPE,
        person: tuple[int, int] | None = None,
    ) -> None:
        self.args = words
        self.returncode: int | None = None
        self.stdin: IO[str] | None = None
        self.stdout: IO[str] | None = None
        self.stderr: IO[str] | None = None
        asked: dict[str, object] = {
            "code": code,
            "words": words,
            "folder": str(cwd or Path.cwd()),
            "environment": dict(outside() if env is None else env),
            "ignored": [],
            "person": person,
        }
        self._line = socket.socket(socket.AF_UNIX)
        theirs: list[int] = []
        try:
            for name, wanted in (("stdin", stdin), ("stdout", stdout), ("stderr", stderr)):
                theirs.append(self._stream(name, wanted))
            self._line.connect(f"\0{server(tree).name}")
            data = json.dumps(asked).encode() + b"\n"
            sent = socket.send_fds(self._line, [data], theirs)
            self._line.sendall(data[sent:])
        finally:
            for stream in theirs:
                os.close(stream)
        self._told = b""
        self.pid = int(self._answer(None))

    def _stream(self, name: str, wanted: int | IO[Any]) -> int:
        """Their end of a stream, to be closed here; ours, if there is one, becomes the attribute `name`."""
        if wanted == subprocess.DEVNULL:
            return os.open(os.devnull, os.O_RDWR)
        if wanted != subprocess.PIPE:
            return os.dup(wanted if isinstance(wanted, int) else wanted.fileno())
        reading, writing = os.pipe()
        ours, theirs = (writing, reading) if name == "stdin" else (reading, writing)
        setattr(self, name, open(ours, "w" if name == "stdin" else "r", encoding="utf-8"))  # noqa: SIM115, PTH123
        return theirs

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.wait()

    def wait(self, timeout: float | None = None) -> int:
        """The exit code once it has ended; minus the signal if it was killed. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            answer = self._answer(timeout)
            self._line.close()
            if answer == b"refused":
                self.returncode = 1
                raise subprocess.SubprocessError("nobody can become another person here")
            self.returncode = int(answer)
        return self.returncode

    def _answer(self, timeout: float | None) -> bytes:
        """What the server says next."""
        self._line.settimeout(timeout)
        while b"\n" not in self._told:
            try:
                told = self._line.recv(100)
            except TimeoutError:
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            assert told, "the fork server has ended"
            self._told += told
        answer, _, self._told = self._told.partition(b"\n")
        return answer

    def poll(self) -> int | None:
        """The exit code if it has ended."""
        try:
            return self.wait(1e-9)
        except subprocess.TimeoutExpired:
            return None

    def communicate(self, input: str | None = None, timeout: float | None = None) -> tuple[str, str]:  # noqa: A002
        """Everything that it still writes, once it has ended. Raises subprocess.TimeoutExpired."""
        end = None if timeout is None else time.monotonic() + timeout
        pool = ThreadPoolExecutor(3)
        try:
            written = pool.submit(self._write, input)
            both = [pool.submit(_rest, stream) for stream in (self.stdout, self.stderr)]
            out, err = (found.result(None if end is None else max(0, end - time.monotonic())) for found in both)
            written.result()
        except NotYetError:
            raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
        finally:
            pool.shutdown(wait=False)
        self.wait(None if end is None else max(1e-9, end - time.monotonic()))
        return out, err

    def _write(self, text: str | None) -> None:
        if self.stdin is not None:
            with self.stdin as stream:
                stream.write(text or "")

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Asks it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it."""
        self.send_signal(signal.SIGKILL)


def _rest(stream: IO[str] | None) -> str:
    if stream is None or stream.closed:
        return ""
    with stream:
        return stream.read()


def run(
    *words: str,
    input: str | None = None,  # noqa: A002 - as subprocess has it
    timeout: float | None = None,
    **how: Any,
) -> subprocess.CompletedProcess[str]:
    """A command, from start to end; `how` is what `Running` takes. Raises subprocess.TimeoutExpired."""
    process = Running(*words, stdin=subprocess.DEVNULL if input is None else subprocess.PIPE, **how)
    try:
        out, err = process.communicate(input, timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
    assert process.returncode is not None
    return subprocess.CompletedProcess(words, process.returncode, out, err)
