"""Opening the database and its transactions.

SQLite: write-ahead log, `synchronous=FULL` (NORMAL loses acknowledged commits at power loss), `secure_delete` so that
erased bytes are overwritten, foreign keys on. A write transaction takes its lock when it begins, so that two processes
on one home wait for each other at the start and never fail half-way.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, insert, select
from sqlalchemy.exc import DatabaseError

from federation.errors import ConflictError, UsageError
from node.store.tables import SCHEMA_VERSION, audit, meta, metadata

_BUSY_TIMEOUT_S = 30  # a page of the largest size commits in well under a second


def open_engine(path: Path) -> Engine:
    """The engine of the database at `path`, which is created when it is not there."""
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": _BUSY_TIMEOUT_S, "isolation_level": None})

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, _record: Any) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def create(engine: Engine, node: str) -> None:
    """Creates the tables of a new node."""
    with write(engine) as tx:
        metadata.create_all(tx)
        tx.execute(insert(meta), [{"key": "schema", "value": str(SCHEMA_VERSION)}, {"key": "node", "value": node}])


def check(engine: Engine, node: str) -> None:
    """Refuses a database of another version or another node. Raises UsageError."""
    try:
        with read(engine) as tx:
            found = {row.key: row.value for row in tx.execute(select(meta.c.key, meta.c.value))}
    except DatabaseError as e:
        raise UsageError("the database is missing, damaged or no database: restore it from a backup") from e
    if found != {"schema": str(SCHEMA_VERSION), "node": node}:
        raise UsageError(f"the database is that of {found.get('node')} in schema {found.get('schema')}; this is {node}")


@contextmanager
def write(engine: Engine) -> Iterator[Connection]:
    """A transaction that may change things; it commits at the end, or leaves no trace when an error passes through."""
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        yield connection


@contextmanager
def read(engine: Engine) -> Iterator[Connection]:
    """A transaction that sees one state of the database and changes nothing."""
    with engine.connect() as connection, connection.begin():
        yield connection


def scrub(engine: Engine) -> None:
    """After an erasure: empties the write-ahead log, which still has the erased bytes; `secure_delete` did the rest."""
    connection = engine.raw_connection()
    try:
        connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()


def one_row(count: int, what: str) -> None:
    """For compare-and-swap: exactly one row must have changed. Raises ConflictError."""
    if count != 1:
        raise ConflictError(f"{what} moved meanwhile; nothing was changed, try again")


def record(tx: Connection, *, at: datetime, by: str, act: str, subject: str, detail: str = "") -> None:
    """An audit row: who did what, when. `detail` holds codes and names, never payload or personal data (I17)."""
    tx.execute(insert(audit).values(at=at, by=by, act=act, subject=subject, detail=detail))
