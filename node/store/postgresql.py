"""PostgreSQL, for a node that outgrows one file: the same promises as SQLite's, kept by other means.

A write transaction first takes one advisory lock, so that writers wait for each other at the beginning; a read
transaction is REPEATABLE READ READ ONLY. A server that does not flush what it acknowledges, or that keeps text in
another encoding than UTF-8, is refused. Passwords come from PGPASSFILE or the server's own means, not from settings.
"""

import weakref
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, delete, event, insert, make_url, select
from sqlalchemy.exc import DBAPIError, OperationalError

from node.store.tables import COUNT_ERASED, meta

LOCK_NOT_AVAILABLE: Final = "55P03"  # SQLSTATE, appendix A of PostgreSQL's manual
_WRITERS: Final = 0x61706F7374  # the advisory lock of whoever writes; any number will do that stays the same
_LOCK_TIMEOUT: Final = "30s"  # as long as SQLite waits
_SCRUB_PATIENCE: Final = "5s"  # behind a rewrite that waits, readers wait too
_CONNECT_TIMEOUT_S: Final = 10
_ERASED: Final = ("in_entries", "out_entries", "inbox", "inbox_terms", "annotations", "cases")
_OTHERS_LOOK: Final = (  # somebody may see a state before the erasure; of another account's sessions nothing is known
    "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND backend_type = 'client backend' AND (state IS NULL OR backend_xmin IS NOT NULL))"
)
_SCRUBBED: Final = "scrubbed"  # the key in `meta` that says how much was erased when the tables were last rewritten
_DEMANDED: Final = {"fsync": "on", "full_page_writes": "on", "server_encoding": "UTF8"}
_SORTS_BY_CODE: Final = "SELECT 'a-c' < 'ab' AND 'B' < 'a'"  # a locale of people sorts otherwise, and changes with time
_REFUSALS: Final = (  # by what the server's own words hold, and what a person can do
    ("password", "refuses the password or got none: name the file that holds it with PGPASSFILE"),
    ("authentication", "does not let this account in: see pg_hba.conf there"),
    ("role", "does not know this account: make it there with createuser"),
    ("database", "has no such database: make it there with createdb"),
    ("clients", "has no connection to spare: raise max_connections there"),
)


def open_engine(url: str) -> Engine:
    """The engine of the database that a `postgresql://` URL names; nothing is connected yet."""
    target = make_url(url).set(drivername="postgresql+psycopg")
    arguments = {"connect_timeout": _CONNECT_TIMEOUT_S, "client_encoding": "utf8"}
    engine = create_engine(target, pool_pre_ping=True, connect_args=arguments)
    weakref.finalize(engine, engine.pool.dispose)  # so that commands, which end soon, need not close it
    storable_text = _storable_text()

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, _record: Any) -> None:
        connection.adapters.register_dumper(str, storable_text)
        connection.execute(f"SET lock_timeout = '{_LOCK_TIMEOUT}'")
        if connection.execute("SHOW synchronous_commit").fetchone() == ("off",):
            connection.execute("SET synchronous_commit = on")
        connection.commit()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get("isolation_level") == "AUTOCOMMIT":
            return
        if options.get("writes", False):
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS})")
        else:
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")

    return engine


def scrub(engine: Engine) -> None:
    """Rewrites the tables in which something was erased since the last time, as old row versions still hold it.

    Takes time in proportion to the tables, which nobody can read meanwhile. While somebody else uses one for longer
    than a moment nothing is done, and the next call takes it up. What this cannot reach: copies in the server's
    write-ahead log until it recycles the segment, in its archive and backups, in versions that an old snapshot still
    sees (a dump that runs), and in blocks that the file system has freed. Encrypt the server's disk.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        erased = str(connection.exec_driver_sql(COUNT_ERASED).scalar_one())
        marked = connection.execute(select(meta.c.value).where(meta.c.key == _SCRUBBED)).scalar_one_or_none()
        if erased == (marked or "0"):
            return
        others_look = connection.exec_driver_sql(_OTHERS_LOOK).scalar_one()
        try:
            connection.exec_driver_sql(f"SET lock_timeout = '{_SCRUB_PATIENCE}'")
            for table in _ERASED:
                connection.exec_driver_sql(f"VACUUM (FULL) {table}")
        except OperationalError as e:
            if sqlstate(e) != LOCK_NOT_AVAILABLE:
                raise
        else:
            if not others_look:
                _mark(connection, erased)
        finally:
            connection.invalidate()  # its patience is not that of the pool


def faults(tx: Connection) -> str | None:
    """What this server does not do that a node relies on, in a few words; None when it does all of it."""
    found = {name: tx.exec_driver_sql(f"SHOW {name}").scalar_one() for name in _DEMANDED}
    wrong = [f"{name} is {found[name]}, not {right}" for name, right in _DEMANDED.items() if found[name] != right]
    if not tx.exec_driver_sql(_SORTS_BY_CODE).scalar_one():
        wrong.append("it sorts by a locale, not by code: createdb --template=template0 --encoding=UTF8 --locale=C NAME")
    return ", ".join(wrong) or None


def describe(tx: Connection) -> str:
    """The server's version and the size of the database."""
    size = tx.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one()
    return f"PostgreSQL {tx.exec_driver_sql('SHOW server_version').scalar_one()}, safe settings, {size >> 10} KiB"


def name(url: URL) -> str:
    """The database as people are told of it: where it is and what it is called, without account or password."""
    host = url.host or url.query.get("host") or "this machine"
    port = f":{url.port}" if url.port else ""
    return f"{url.database} at {host}{port}"


def why_not(url: URL, error: DBAPIError) -> str:
    """One sentence about a connection that could not be had; without the server's own words, which name the account."""
    said = str(error.orig)
    refused = said.rpartition("FATAL:")[2] if "FATAL:" in said else ""
    for word, what in _REFUSALS:
        if word in refused:
            return f"the server of the database {name(url)} {what}"
    return (
        f"the server of the database {name(url)} cannot be reached: see that it runs, and that `database` in"
        " apostille.yaml is right"
    )


def sqlstate(error: DBAPIError) -> str | None:
    """The code of an error, as appendix A of PostgreSQL's manual has it; None for an error without one."""
    code: str | None = getattr(error.orig, "sqlstate", None)
    return code


def _mark(connection: Connection, erased: str) -> None:
    connection.execute(delete(meta).where(meta.c.key == _SCRUBBED))
    connection.execute(insert(meta).values(key=_SCRUBBED, value=erased))


def _storable_text() -> type[Any]:
    """How text is handed over: NUL is replaced even where `storable` was forgotten, or it would stop a feed."""
    from psycopg.types.string import StrDumperUnknown  # the driver costs start-up time

    class StorableText(StrDumperUnknown):
        def dump(self, obj: str) -> Any:
            return super().dump(obj.replace("\0", "\ufffd"))

    return StorableText
