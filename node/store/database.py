"""Opening the database and its transactions: SQLite in one file, or PostgreSQL. What differs is in the module of each.

Both keep the same promises. A write transaction waits at its beginning for the one before it, so that what it has read
stays true until it commits and two processes on one home never fail half-way. A read transaction sees one state and
can change nothing. What was committed survives power loss.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, TypeVar
from weakref import WeakSet

from sqlalchemy import Connection, Engine, insert, inspect, select
from sqlalchemy.exc import DatabaseError

from federation.errors import ConflictError, DiskError, UsageError
from node.store import postgresql, schema, sqlite
from node.store.tables import audit, meta, metadata

T = TypeVar("T")

MEMORY: Final = "sqlite://"  # a database that ends with its engine
_DISK_FAULTS: Final[dict[int | str | None, str]] = {
    sqlite3.SQLITE_IOERR: "disk error",
    sqlite3.SQLITE_FULL: "disk full",
    "58030": "disk error",  # SQLSTATE io_error
    "53100": "disk full",
}
AT_ONCE: Final = 1000  # values in one statement; PostgreSQL takes 65,535 parameters, SQLite half of that
_failing: Final[WeakSet[Engine]] = WeakSet()


@dataclass(frozen=True, slots=True)
class Upgraded:
    """What an upgrade did: the schema before and after, and where a copy of the database before it lies."""

    before: int
    after: int
    copy: Path | None


def open_engine(where: Path | str) -> Engine:
    """The engine of a database: of the file at a path, of a PostgreSQL URL, or of MEMORY."""
    if isinstance(where, Path) or where == MEMORY:
        return sqlite.open_engine(where if isinstance(where, Path) else None)
    return postgresql.open_engine(where)


@contextmanager
def create(engine: Engine, node: str, at: datetime) -> Iterator[Connection]:
    """Makes the tables of a new node; what is done with the connection is committed with them, or nothing is.

    Raises UsageError when the database cannot be had, or is in use already.
    """
    with ExitStack() as stack:
        with _told(engine):
            tx = stack.enter_context(write(engine))
            _check_server(tx)
        if set(inspect(tx).get_table_names()) & set(metadata.tables):
            raise UsageError("that database holds a node already; make an empty one for this node")
        schema.migrate(tx, at=at)
        tx.execute(insert(meta).values(key="node", value=node))
        yield tx


def check(engine: Engine, node: str) -> None:
    """Refuses a database of another schema or another node, and a server that does not do what a node relies on.

    Raises UsageError.
    """
    with _told(engine), read(engine) as tx:
        schema.check(schema.revision(tx))
        _check_owner(tx, node)
        _check_server(tx)


@contextmanager
def upgrade(engine: Engine, node: str, at: datetime, *, copy: Path | None) -> Iterator[tuple[Connection, Upgraded]]:
    """Brings the database to our schema; nothing changes when it has it.

    What is done with the connection is committed with the migration, or nothing is. An SQLite database is copied first,
    to `copy` with `.schema-N` added, unless that is None. Raises UsageError for a database that cannot be upgraded.
    """
    with ExitStack() as stack:
        with _told(engine):
            tx = stack.enter_context(write(engine))
            found = schema.known(schema.revision(tx))
            _check_owner(tx, node)
            _check_server(tx)
        before, after, copied = schema.number(found), len(schema.REVISIONS), None
        if before != after:
            if copy is not None and engine.name == "sqlite":
                copied = sqlite.copy_name(copy, before)
                sqlite.copy(engine, copied)
            schema.migrate(tx, at=at)
        yield tx, Upgraded(before, after, copied)


@contextmanager
def write(engine: Engine) -> Iterator[Connection]:
    """A transaction that may change things; it commits at the end, or leaves no trace when an error passes through."""
    try:
        with engine.connect().execution_options(writes=True) as connection, connection.begin():
            yield connection
    except DatabaseError as e:
        if disk_fault(e) is not None:
            _failing.add(engine)
        raise
    _failing.discard(engine)


def is_failing(engine: Engine) -> bool:
    """Whether the last write transaction of this process failed because of the disk."""
    return engine in _failing


def disk_fault(error: Exception) -> str | None:
    """In two words what is wrong with the disk, if that is why a statement or a commit failed."""
    cause = getattr(error, "orig", None)
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # the rest says where it failed
    return _DISK_FAULTS.get(code or getattr(cause, "sqlstate", None))


@contextmanager
def read(engine: Engine) -> Iterator[Connection]:
    """A transaction that sees one state of the database and can change nothing."""
    with engine.connect() as connection, connection.begin():
        yield connection


def scrub(engine: Engine) -> None:
    """After an erasure: what still holds the erased bytes is emptied or rewritten, as far as this process reaches.

    A copy from before an upgrade goes as a whole. It stays while nothing has been erased since.
    """
    if engine.name == "sqlite":
        sqlite.scrub(engine)
    else:
        postgresql.scrub(engine)


def copies(path: Path) -> tuple[Path, ...]:
    """Copies from before an upgrade that lie beside the database in the file at `path`, and what is left of them."""
    return sqlite.copies(path)


def faults(tx: Connection) -> str | None:
    """What is wrong with a file, or with what a server promises, in a few words; None when it is sound."""
    return sqlite.faults(tx) if tx.engine.name == "sqlite" else postgresql.faults(tx)


def describe(tx: Connection) -> str:
    """What the database is and how large, in a few words."""
    return sqlite.describe(tx) if tx.engine.name == "sqlite" else postgresql.describe(tx)


def one_row(count: int, what: str) -> None:
    """For compare-and-swap: exactly one row must have changed. Raises ConflictError."""
    if count != 1:
        raise ConflictError(f"{what} moved meanwhile; nothing was changed, try again")


def record(tx: Connection, *, at: datetime, by: str, act: str, subject: str, detail: str = "") -> None:
    """An audit row: who did what, when. `detail` holds codes and names, never payload or personal data (I17)."""
    tx.execute(insert(audit).values(at=at, by=by, act=act, subject=subject, detail=detail))


def batches(values: tuple[T, ...]) -> Iterator[tuple[T, ...]]:
    """`values` in parts that one statement takes: a peer names any number, and databases have a limit of parameters."""
    return (values[start : start + AT_ONCE] for start in range(0, len(values), AT_ONCE))


def storable(text: str) -> str:
    """Text from outside as every database takes it: PostgreSQL refuses the character NUL."""
    return text.replace("\0", "\ufffd")


@contextmanager
def _told(engine: Engine) -> Iterator[None]:
    """Turns a database that cannot be opened, or is busy, into a sentence."""
    try:
        yield
    except DatabaseError as e:
        if is_busy(e):
            raise ConflictError("another process is writing to the database; nothing was changed, try again") from e
        if (fault := disk_fault(e)) is not None:  # SQLite needs some space even to read
            raise DiskError(f"{fault}: the database cannot be used; free some space, or see to the disk") from e
        if engine.name == "sqlite":
            raise UsageError("the database is missing, damaged or no database: restore it from a backup") from e
        raise UsageError(postgresql.why_not(engine.url, e)) from e


def is_busy(error: DatabaseError) -> bool:
    """Whether a transaction failed because another one did not end in time; then it has changed nothing."""
    return postgresql.sqlstate(error) == postgresql.LOCK_NOT_AVAILABLE or "locked" in str(error.orig)


def _check_owner(tx: Connection, node: str) -> None:
    found = tx.execute(select(meta.c.value).where(meta.c.key == "node")).scalar_one_or_none()
    if found != node:
        raise UsageError(f"the database is that of {found}; this is {node}")


def _check_server(tx: Connection) -> None:
    wrong = None if tx.engine.name == "sqlite" else postgresql.faults(tx)
    if wrong:
        raise UsageError(f"the database server does not do what a node relies on: {wrong}")
