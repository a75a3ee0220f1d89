"""What the serving node writes down: one line an event, key=value. No payload, no text that a peer wrote (I17).

Lines go to stderr, or to a file in the home that is rotated by its size. Whatever happens to the file, the exchange
goes on: while it cannot be written, lines go to stderr, which is told so once.
"""

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

import structlog

from node.home import inert

_MODE = 0o600


@contextmanager
def writing(file: Path | None = None, max_bytes: int = 0, keep: int = 0) -> Iterator[None]:
    """Inside, events of level info and up go to stderr, or to `file`; libraries that log raw error texts are silenced.

    A file that has reached `max_bytes` is numbered and a new one begun; `keep` old ones stay. Never raises for a file
    that cannot be had.
    """
    old_file = None if file is None else _Rotation(file, max_bytes, keep)
    lines = _Stderr() if old_file is None else _File(old_file)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
            lambda _logger, _method, line: inert.line(str(line)),  # whatever a value says
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: lines,
    )
    for library in ("apscheduler", "grpc", "asyncio"):
        logging.getLogger(library).addHandler(logging.NullHandler())
        logging.getLogger(library).propagate = False
    try:
        yield
    finally:
        if old_file is not None:
            old_file.close()


def place(error: BaseException) -> str:
    """Where `error` was raised, as `file.py:line`: all of a traceback that cannot carry a payload."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown"


class _Stderr:
    """What structlog gives its lines to. A stderr that nobody reads, or that lies on a full disk, stops nothing."""

    def info(self, line: str) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()

    def error(self, line: str) -> None:
        self.info(line)


class _File(_Stderr):
    """The same for a file."""

    def __init__(self, file: "_Rotation") -> None:
        self._file = file

    def info(self, line: str) -> None:
        self._file.handle(logging.makeLogRecord({"msg": line}))


class _Rotation(RotatingFileHandler):
    """The rotation of the standard library, with what a log needs besides: mode 0600, and a way on after any fault."""

    def __init__(self, path: Path, max_bytes: int, keep: int) -> None:
        super().__init__(path, maxBytes=max_bytes, backupCount=keep, encoding="utf-8", delay=True)
        self._instead = _Stderr()
        self._broken = False
        with suppress(OSError):
            self._drop_older()

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one line; to stderr where the file cannot take it."""
        line = self.format(record)
        try:
            if self._is_gone():
                self._let_go()
            if self.shouldRollover(record):
                self.doRollover()
            if self.stream is None:
                self.stream = self._open()
            self.stream.write(f"{line}\n")
            self.stream.flush()
        except OSError as e:
            self._let_go()
            if not self._broken:
                reason = e.strerror or type(e).__name__
                self._instead.info(f"log: {self.baseFilename} cannot be written ({reason}); lines come here meanwhile")
            self._broken = True
            self._instead.info(line)
        else:
            self._broken = False

    def _drop_older(self) -> None:
        """Removes numbered files beyond those that are kept: the settings may have asked for more of them before."""
        path = Path(self.baseFilename)
        for old in path.parent.glob(f"{path.name}.*"):
            number = old.suffix[1:]
            if number.isdecimal() and int(number) > self.backupCount:
                old.unlink()

    def _open(self) -> TextIOWrapper:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.baseFilename, flags, _MODE)
        try:
            os.fchmod(descriptor, _MODE)  # it may have been there
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                os.write(descriptor, b"\n")  # what was written last was cut off in the middle of a line
            return os.fdopen(descriptor, "a", encoding="utf-8")
        except BaseException:
            os.close(descriptor)
            raise

    def _is_gone(self) -> bool:
        """Whether somebody has removed or renamed the file that is open."""
        if self.stream is None:
            return False
        opened = os.fstat(self.stream.fileno())
        try:
            named = Path(self.baseFilename).stat(follow_symlinks=False)
        except FileNotFoundError:
            return True
        return (opened.st_dev, opened.st_ino) != (named.st_dev, named.st_ino)

    def _let_go(self) -> None:
        """Closes the file and forgets what is left in its buffer, which would come out twice."""
        stream, self.stream = self.stream, None
        if stream is not None:
            with suppress(OSError):
                stream.close()
