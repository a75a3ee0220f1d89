"""Homes of the first version, with what a node gathers in a while; `schema-1/` holds them as text.

FR has released to DE and IN, had an advisory withdrawn, holds a draft, a case, a quarantined entry, two documents under
one name, and a feed from IN that is frozen by a fork. DE is its peer. They were made once, by the first version itself;
every secret in them is a test secret.
"""

import json
import sqlite3
from dataclasses import replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, Table, create_engine, insert, select, text

from config import settings
from node import main
from node.store import database, schema
from node.store.migrations import schema_1
from tests.contract.stores import FILE, POSTGRESQL, new_database

_FOLDER = Path(__file__).parent / "schema-1"


@cache
def _files() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((_FOLDER / "files.json").read_text("utf-8"))
    return found


def clock() -> datetime:
    """When the homes were left."""
    return datetime.fromisoformat(_files()["clock"])


def dump(name: str) -> str:
    """The database of a home, as SQL."""
    return (_FOLDER / f"{name}.sql").read_text("utf-8")


def make_home(folder: Path, name: str = "fr", kind: str = FILE) -> Path:
    """The home of `fr` or `de`, as the first version left it; on a server if `kind` says so, where it never was."""
    home = folder / name
    home.mkdir(mode=0o700)
    for path, content in _files()[name].items():
        place = home / path
        place.parent.mkdir(mode=0o700, exist_ok=True)
        place.touch(mode=0o600)
        place.write_bytes(bytes.fromhex(content["hex"]) if isinstance(content, dict) else content.encode())
    (home / main.DATABASE_FILE).touch(mode=0o600)
    connection = sqlite3.connect(home / main.DATABASE_FILE)
    connection.executescript(f"PRAGMA journal_mode=WAL; BEGIN; {dump(name)} COMMIT;")
    connection.close()
    if kind == POSTGRESQL:
        _move_to_server(home, new_database())
    return home


def _move_to_server(home: Path, url: str) -> None:
    file = create_engine(f"sqlite:///{home / main.DATABASE_FILE}")
    server = database.open_engine(url)
    with file.connect() as before, database.write(server) as tx:
        schema_1.metadata.create_all(tx)
        for table in schema_1.metadata.sorted_tables:
            rows = [row._asdict() for row in before.execute(select(table))]
            if rows:
                tx.execute(insert(table), rows)
            if "id" in table.c:
                number = f"pg_get_serial_sequence('{table.name}', 'id')"
                tx.execute(text(f"SELECT setval({number}, (SELECT max(id) FROM {table.name}))"))  # noqa: S608 - ours
    file.dispose()
    server.dispose()
    (home / main.DATABASE_FILE).unlink()
    chosen = replace(main.read_settings(home), database=url)
    (home / settings.FILE_NAME).write_text(settings.write(chosen), encoding="utf-8")


def content(home: Path) -> str:
    """Everything that the file of a home holds, as text."""
    connection = sqlite3.connect(home / main.DATABASE_FILE)
    lines = "\n".join(connection.iterdump())
    connection.close()
    return lines


def engine_of(home: Path) -> Engine:
    """The database of a home, whatever its schema."""
    return main.engine_of(home, main.read_settings(home))


def rows(engine: Engine, table: Table) -> list[Any]:
    """Every row of a table, by its key."""
    with database.read(engine) as tx:
        return list(tx.execute(select(table).order_by(*table.primary_key.columns)).all())


def revision(home: Path) -> str | None:
    """The schema of the database of a home."""
    engine = engine_of(home)
    with database.read(engine) as tx:
        found = schema.revision(tx)
    engine.dispose()
    return found
