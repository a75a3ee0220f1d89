"""SQLite: one file in the home, or memory for what need not last.

Write-ahead log, `synchronous=FULL` (NORMAL loses acknowledged commits at power loss), `secure_delete` so that erased
bytes are overwritten, foreign keys on. A write transaction takes its lock when it begins.
"""

import os
import sqlite3
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event

from node.store.tables import COUNT_ERASED

_BUSY_TIMEOUT_S = 30  # a page of the largest size commits in well under a second
_SCRUB_PATIENCE_S = 5  # a reader takes a page, or a list; a copy of the file may take longer
_CHUNK: Final = 1 << 20  # bytes
_names = count(1)


def open_engine(path: Path | None) -> Engine:
    """The engine of the database at `path`, which is created when it is not there; of one in memory for None.

    In memory, a reader and a commit wait for each other: there is no log from which to read the state before.
    """
    if path is None:  # a named one, for all connections of the pool alike; it ends with the last of them
        url = URL.create("sqlite", database=f"file:/apostille-{next(_names)}", query={"vfs": "memdb", "uri": "true"})
    else:
        url = URL.create("sqlite", database=str(path))
    arguments = {"timeout": _BUSY_TIMEOUT_S, "isolation_level": None, "check_same_thread": False}
    engine = create_engine(url, poolclass=QueuePool, connect_args=arguments)

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, _record: Any) -> None:
        log = () if path is None else ("journal_mode=WAL",)  # there is none in memory
        for pragma in (*log, "synchronous=FULL", "secure_delete=ON", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        driver: Any = connection.connection.driver_connection
        driver.execute(f"PRAGMA query_only={'OFF' if writes else 'ON'}")  # which cannot fail
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def scrub(engine: Engine) -> None:
    """Empties the write-ahead log, which still has the erased bytes; `secure_delete` did the rest.

    While somebody reads an older state for longer than a moment the log stays, and the next call empties it. A copy
    from before an upgrade, in which less is erased, is overwritten and removed.
    """
    held = engine.raw_connection()
    connection: Any = held.driver_connection
    try:
        connection.execute(f"PRAGMA busy_timeout={_SCRUB_PATIENCE_S * 1000:.0f}")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        file = engine.url.database
        for path in copies(Path(file)) if file and not engine.url.query else ():  # memory has none
            if _erased_in(path) != connection.execute(COUNT_ERASED).fetchone():
                _overwrite(path)
    finally:
        connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_S * 1000:.0f}")
        held.close()


def copy_name(path: Path, schema: int) -> Path:
    """What the copy of the database at `path` is called that is made before an upgrade from `schema`."""
    return path.with_name(f"{path.name}.schema-{schema}")


def copies(path: Path) -> tuple[Path, ...]:
    """Such copies of the database at `path`, and what is left of them."""
    return tuple(sorted(found for found in path.parent.glob(f"{path.name}.schema-*") if found.is_file()))


def copy(engine: Engine, target: Path) -> None:
    """A copy of what is committed, in a file that only its owner can read; whole or not at all. Raises OSError."""
    part = target.with_name(f"{target.name}.part")
    part.unlink(missing_ok=True)
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    into, held = sqlite3.connect(part), engine.raw_connection()
    try:
        database: Any = held.driver_connection
        database.backup(into)
    finally:
        held.close()
        into.close()
    part.replace(target)


def _erased_in(copy: Path) -> Any:
    """The row that counts what is erased in a copy, whatever its schema; None for what is no whole database."""
    try:
        with closing(sqlite3.connect(f"{copy.absolute().as_uri()}?immutable=1", uri=True)) as connection:
            return connection.execute(COUNT_ERASED).fetchone()
    except sqlite3.DatabaseError:
        return None


def _overwrite(path: Path) -> None:
    """Removes a file so that its blocks do not hold what it held, as far as the file system writes in place."""
    with suppress(OSError):  # what cannot be overwritten is removed all the same
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
        try:
            for _ in range(0, os.fstat(descriptor).st_size, _CHUNK):
                os.write(descriptor, bytes(_CHUNK))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    path.unlink(missing_ok=True)


def faults(tx: Connection) -> str | None:
    """What is wrong with the file's structure or its references, in a few words; None when it is sound."""
    said = tx.exec_driver_sql("PRAGMA integrity_check").scalars().all()
    strays = len(tx.exec_driver_sql("PRAGMA foreign_key_check").all())
    if said == ["ok"] and not strays:
        return None
    return f"integrity_check finds {len(said)} faults, foreign_key_check {strays}"


def describe(tx: Connection) -> str:
    """The size of the file."""
    pages, size = (tx.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in ("page_count", "page_size"))
    return f"sound, {pages * size >> 10} KiB"
