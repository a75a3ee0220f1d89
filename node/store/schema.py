"""The schema of a database: which one it has, and the migrations that lead to ours.

`migrations/` holds a revision for each schema, in Alembic's form; a new database is made by running all of them, so it
is the same as one that was upgraded. A migration runs inside the transaction that it is given: on both databases DDL
is part of it, and an interrupted one leaves the schema before. Alembic is imported when something is to be done.
"""

from datetime import datetime
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, inspect, select, text

from federation.errors import UsageError
from node.store.tables import meta

REVISIONS: Final = ("0001", "0002")  # every schema there was, oldest first; the last one is that of `tables`
_UNSTAMPED: Final = {"1": "0001"}  # what `meta` says in databases from before revisions were written down
_SCRIPTS: Final = Path(__file__).parent / "migrations"


def revision(tx: Connection) -> str | None:
    """The revision of the database, which may be one that we do not know; None when it is no database of a node."""
    tables = inspect(tx)
    if tables.has_table("alembic_version"):
        return tx.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    if not tables.has_table("meta"):
        return None
    said = tx.execute(select(meta.c.value).where(meta.c.key == "schema")).scalar_one_or_none()
    return _UNSTAMPED.get(said or "", said)


def number(revision: str) -> int:
    """The number by which people know a schema that is one of ours."""
    return REVISIONS.index(revision) + 1


def check(found: str | None) -> None:
    """Refuses every schema but ours. Raises UsageError, with what to do next."""
    if known(found) != REVISIONS[-1]:
        has, needs = number(known(found)), number(REVISIONS[-1])
        raise UsageError(f"the database has schema {has}, this version works with {needs}; run: apostille upgrade")


def known(found: str | None) -> str:
    """`found` as a schema that is ours or can be upgraded to ours. Raises UsageError."""
    if found is None:
        raise UsageError("the database is empty, or not that of a node: restore it from a backup")
    if found not in REVISIONS:
        raise UsageError("the database was made by a newer version of apostille; install that")
    return found


def migrate(tx: Connection, *, at: datetime, to: str = REVISIONS[-1]) -> None:
    """Brings the database to a revision, inside `tx`. `at` is now, for records that a migration makes."""
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": tx, "at": at})
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    found = revision(tx)
    if found is not None and not inspect(tx).has_table("alembic_version"):
        command.stamp(config, found)
    command.upgrade(config, to)
