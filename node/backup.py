"""Backups of a home, and putting one back.

A backup is made while the server runs: the database in one state, then settings and keys, which are encrypted; root keys
and the passphrase only if they are asked for. It is checked to hold every key that its own card names. A database on a
PostgreSQL server is not in it: that is dumped there.

A restore checks the whole file before it touches anything, builds the new home aside, and puts it in place in one step;
a home that it replaces is moved aside and never deleted. Before that the database is marked as one that was put back
(`node.confirm`, rules 1, 2 and 5), gets what the replaced home knew better (`node.carryover`), and loses what its
retention has ended for. What was lost for good is told: nobody but people can do it again.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, select
from sqlalchemy.exc import DatabaseError

from config import settings
from federation.errors import ConflictError, RemoteError, UsageError
from federation.keyring import unverified
from federation.model import NodeId
from node import archive, carryover, lock, main, owncard, people, retention
from node.alarms import Alarm, raise_alarm
from node.archive import Feed, Manifest
from node.carryover import Carried, Old
from node.context import Node
from node.people import Post
from node.store import database, schema, sqlite
from node.store.tables import advisories, in_feeds, out_feeds

_FOLDERS: Final = ("keys", "roots")
_ASIDE: Final = ".before-restore-"
_STAGING: Final = ".restoring"


@dataclass(frozen=True, slots=True)
class Made:
    """A backup that was written. `sha256` is that of the whole file."""

    manifest: Manifest
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did. `aside` is where the home that it replaced lies now; `carried` what was brought over from it,
    None where there was none or it could not be read, as `why_not` says. `drafts` were unsigned when the backup was
    made; each may have been signed since."""

    node: NodeId
    made_at: datetime
    aside: Path | None
    carried: Carried | None
    why_not: str
    drafts: tuple[str, ...]


def make(node: Node, target: Path, *, roots: bool, passphrase: bool) -> Made:
    """Writes a backup of the home of `node` to a new file. Raises UsageError, ConflictError."""
    node.allow(Post.OPERATOR)
    target = target.absolute()
    copy = target.with_name(f".{target.name}.database")
    with suppress(FileNotFoundError), _removed(copy) as there:
        if node.engine.name == "sqlite":
            _copy_database(node, there)
            state = _state(there, node)
        else:
            with database.read(node.engine) as tx:
                state = _read_state(tx)
        named = dict(_small_files(node.home, roots=roots, passphrase=passphrase))
        missing = sorted(state.keys - named.keys())
        if missing:
            raise ConflictError(f"{missing[0]} is on this node's card and not in its home: restore it, or try again")
        if there.exists():
            named[main.DATABASE_FILE] = there
        names = sorted(named)
        manifest = Manifest(
            node=node.id,
            made_at=node.clock().replace(microsecond=0),
            version=_version(),
            schema=state.schema,
            database=main.DATABASE_FILE if there.exists() else "",
            feeds=state.feeds,
            files=tuple(archive.measure(name, named[name]) for name in names),
        )
        digest = archive.write(target, manifest, [named[name] for name in names])
    with database.write(node.engine) as tx:
        detail = f"SHA-256 {digest}" + (", with root keys" if roots else "") + (", with passphrase" if passphrase else "")
        database.record(tx, at=node.clock(), by=node.actor, act="backup", subject=node.id, detail=detail)
    return Made(manifest, target.stat().st_size, digest)
