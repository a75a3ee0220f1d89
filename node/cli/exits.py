"""The one place that turns errors into exit codes and sentences (docs/exit-codes.md has the table for people).

Every error of `federation.errors` becomes one sentence on stderr; a fault of ours becomes one line to report. No
traceback reaches a user. What stands in a sentence may come from a peer, so it is cleaned before it is printed.
"""

import errno
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

import typer
from typer.exceptions import TyperException

from federation.errors import (
    ApostilleError,
    AwaitsSecondError,
    ConflictError,
    DeniedError,
    HeldError,
    LocalError,
    LockedError,
    NotAllowedError,
    NotFoundError,
    RemoteError,
    UnreachableError,
    UsageError,
)
from node.cli import screen, session

_ROOT = Path(__file__).parents[2]


class Code(IntEnum):
    """How `apostille` ends."""

    OK = 0
    REFUSED = 1  # the work was refused, or a problem was found
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    LOCKED = 5
    HELD = 6
    UNREACHABLE = 7
    BAD_PEER = 8
    NOT_ALLOWED = 9
    AWAITS_SECOND = 10
    INTERNAL = 70  # EX_SOFTWARE of sysexits.h
    INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class RefusedError(Exception):
    """The command did its work and the answer is no; the text says why. Exit code 1."""


_CODES: tuple[tuple[type[ApostilleError], Code], ...] = (  # the first that fits
    (UsageError, Code.USAGE),
    (NotFoundError, Code.NOT_FOUND),
    (ConflictError, Code.CONFLICT),
    (LockedError, Code.LOCKED),
    (HeldError, Code.HELD),
    (NotAllowedError, Code.NOT_ALLOWED),
    (AwaitsSecondError, Code.AWAITS_SECOND),
    (UnreachableError, Code.UNREACHABLE),
    (DeniedError, Code.BAD_PEER),
    (RemoteError, Code.BAD_PEER),
    (LocalError, Code.REFUSED),
)


@contextmanager
def reading(what: object) -> Iterator[None]:
    """Names the file or peer that a RemoteError inside is about, unless its own sentence does."""
    try:
        yield
    except RemoteError as e:
        if str(what) not in str(e):
            e.add_note(str(what))
        raise


def code_of(error: ApostilleError) -> Code:
    """The exit code for `error`."""
    return next(code for kind, code in _CODES if isinstance(error, kind))


def sentence_of(error: ApostilleError) -> str:
    """What a person is told: the error's own sentence, the code of a remote error, and the home it is about."""
    text = str(error)
    if isinstance(error, RemoteError):
        about = getattr(error, "__notes__", [""])[0]
        return f"{about}: {text} [{error.code}]" if about else f"{text} [{error.code}]"
    if isinstance(error, AwaitsSecondError):  # it ends with a command, to be copied
        return text
    home = session.used_home()
    return f"{text} (home: {home})" if home is not None and str(home) not in text else text


def run(command: Callable[[], object]) -> int:
    """Runs a typer command made with `standalone_mode=False` and returns the exit code."""
    try:
        returned = command()
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else Code.REFUSED
    except (EOFError, KeyboardInterrupt):
        return _fail("interrupted", Code.INTERRUPTED)
    except Exception as e:  # noqa: BLE001 - the outermost place: whatever it is, a person gets one sentence
        return _explain(e)
    return returned if isinstance(returned, int) else Code.OK


def _explain(error: Exception) -> int:
    if isinstance(error, ApostilleError):
        return _fail(sentence_of(error), code_of(error))
    if isinstance(error, RefusedError):
        return _fail(str(error), Code.REFUSED)
    if isinstance(error, typer.Abort):
        return _fail("stopped; nothing was changed", Code.REFUSED)
    if isinstance(error, TyperException):
        return _wrong_usage(error)
    if isinstance(error, OSError):
        return _system(error)
    if "sqlalchemy" in sys.modules:
        known = _database(error)
        if known is not None:
            return known
    return _internal(error)


def _wrong_usage(error: TyperException) -> int:
    context = getattr(error, "ctx", None)
    hint = f" (see: {context.command_path} --help)" if context is not None else ""
    if "--home" in error.format_message() and context is not None and context.parent is not None:
        hint = "; --home comes first: apostille --home DIR ..."
    return _fail(error.format_message().rstrip(".") + hint, Code(error.exit_code))


def _system(error: OSError) -> int:
    if error.errno == errno.ENOSPC:
        return _fail("the disk is full; nothing was changed: free some space and try again", Code.REFUSED)
    what = f"{error.filename}: " if error.filename else ""
    return _fail(f"{what}{error.strerror or type(error).__name__}", Code.REFUSED)


def _database(error: Exception) -> int | None:
    from sqlalchemy.exc import DatabaseError, OperationalError

    from node.store.database import disk_fault, is_busy

    text = str(getattr(error, "orig", ""))  # the driver's own words: they name no values
    if isinstance(error, OperationalError) and is_busy(error):
        return _fail("another process is writing to the database; nothing was changed, try again", Code.CONFLICT)
    if isinstance(error, OperationalError) and hasattr(error.orig, "sqlstate"):
        return _fail("the database server failed, or ended the connection: see to it, and try again", Code.REFUSED)
    if isinstance(error, OperationalError) and "full" in text:
        return _fail("the disk is full; nothing was changed: free some space and try again", Code.REFUSED)
    if isinstance(error, DatabaseError) and disk_fault(error) is not None:  # SQLite may have kept the last commit
        return _fail("the disk refuses to read or write; see to it, look at what was done, and try again", Code.REFUSED)
    if isinstance(error, OperationalError) and ("readonly" in text or "unable to open" in text):
        return _fail(f"the database cannot be written ({text}): check owner and mode of the home", Code.REFUSED)
    if isinstance(error, DatabaseError) and ("malformed" in text or "not a database" in text):
        return _fail("the database is damaged: stop the node and restore it from a backup", Code.REFUSED)
    return None


def _internal(error: Exception) -> int:
    """A fault of ours: its class and place, never its text, which may hold payload (I17)."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(_ROOT)] or list(frames)
    path = Path(ours[-1].filename)
    place = path.relative_to(_ROOT) if path.is_relative_to(_ROOT) else path
    where = ".".join(place.with_suffix("").parts)
    return _fail(f"internal error: {type(error).__name__} in {where}:{ours[-1].lineno}; please report", Code.INTERNAL)


def _fail(sentence: str, code: Code) -> int:
    screen.note(f"apostille: {sentence}")
    return code
