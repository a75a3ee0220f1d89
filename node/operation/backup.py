"""Backups of a home, and putting one back.

A backup is made while the server runs: the database in one state, then settings and keys, which are encrypted; root
keys and the passphrase only if they are asked for. It is checked to hold a key of each role that its own card names. A
database on a PostgreSQL server is not in it: that is dumped there.

A restore checks the whole file before it touches anything, builds the new home aside, and puts it in place in one step;
a home that it replaces is moved aside and never deleted. Before that the database is marked as one that was put back
(`node.peering.confirm`, rules 1, 2 and 5), gets what the replaced home knew better (`node.operation.carryover`), and
loses what its retention has ended for. What was lost for good is told: nobody but people can do it again.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, select
from sqlalchemy.exc import DatabaseError

from config import settings
from federation.errors import ConflictError, LocalError, RemoteError, UsageError
from federation.keyring import unverified
from federation.model import NodeId, Role
from node import main
from node.home import lock, owncard, people
from node.home.context import Node
from node.home.people import Post
from node.operation import archive, carryover
from node.operation.archive import Feed, Manifest
from node.operation.carryover import Carried, Old
from node.records.alarms import Alarm, raise_alarm
from node.sharing import retention
from node.store import database, schema, sqlite
from node.store.tables import advisories, in_feeds, out_feeds

_KEYS: Final = "keys"
_ROOTS: Final = "roots"
_NEEDED: Final = ("keys/salt", "keys/seal.pem", "keys/seal.pub", settings.FILE_NAME)
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
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent} is no folder; name a file in one that exists")
    with _scratch(target.with_name(f".{target.name}.database")) as copy:
        schema_of, feeds, keys = _state(node, copy)
        files = dict(_small_files(node.home, roots=roots, passphrase=passphrase))
        if copy.exists():
            files[main.DATABASE_FILE] = copy
        _check_complete(files, keys)
        names = sorted(files)
        manifest = Manifest(
            node=node.id,
            made_at=node.clock().replace(microsecond=0),
            version=_version(),
            schema=schema_of,
            database=main.DATABASE_FILE if copy.exists() else "",
            feeds=feeds,
            files=tuple(archive.measure(name, files[name]) for name in names),
        )
        digest = archive.write(target, manifest, [files[name] for name in names])
    besides = [what for what, wanted in (("root keys", roots), ("passphrase", passphrase)) if wanted]
    with database.write(node.engine) as tx:
        detail = ", with ".join((f"SHA-256 {digest}", *besides))
        database.record(tx, at=node.clock(), by=node.actor, act="backup.make", subject=node.id, detail=detail)
    return Made(manifest, target.stat().st_size, digest)


def restore(home: Path, file: Path, *, replace: bool, open_node: Callable[[Path], Node] = main.open_node) -> Restored:
    """Puts the home in the backup `file` in place of `home`, which is missing or empty, or is moved aside.

    Nothing of `home` is touched before everything else is done. Raises UsageError for a file that does not hold, a home
    that is there (without `replace`), that of another node, or one that is served; NotAllowedError; LockedError where
    an order that is carried over has to be answered and the passphrase is not here.
    """
    home = Path(os.path.realpath(home))
    occupied = home.exists() and (not home.is_dir() or any(home.iterdir()))
    if occupied and not replace:
        raise UsageError(f"{home} is not empty; name a new folder with --home, or move it aside with --replace")
    main.check_owner(home)
    if occupied and not any((home / name).exists() for name in (settings.FILE_NAME, main.DATABASE_FILE, _KEYS)):
        raise UsageError(f"{home} is not empty, and no home of a node either: it is not moved aside")
    with ExitStack() as stack:
        if occupied:
            stack.enter_context(lock.hold(home))
        staging = stack.enter_context(_staging(home))
        manifest = archive.unpack(file, staging)
        _check_fits(staging, manifest)
        old, why_not = _gathered(home, manifest.node) if occupied else (None, "")
        if occupied:
            _take_over_files(home, staging)
        if manifest.schema != schema.REVISIONS[-1]:
            main.upgrade_home(staging, keep_copy=False)
        stack.enter_context(lock.hold(staging))  # it goes along: nobody serves the new home before all is done
        node = open_node(staging)
        try:
            carried, drafts = _mark(node, f"backup of {manifest.made_at:%Y-%m-%d %H:%M}Z", old)
        finally:
            node.engine.dispose()
        aside = _put_in_place(home, staging, occupied=occupied)
    return Restored(manifest.node, manifest.made_at, aside, carried, why_not, drafts)


def mark_by_hand(home: Path, *, open_node: Callable[[Path], Node] = main.open_node) -> tuple[str, ...]:
    """Marks a home that was put back by other means: a snapshot of the machine, a dump of its database. Returns the
    drafts. Raises UsageError, also while it is served; NotAllowedError."""
    main.check_owner(home)
    with lock.hold(home):
        node = open_node(home)
        try:
            node.allow(Post.OPERATOR)
            return _mark(node, "put back by hand", None)[1]
        finally:
            node.engine.dispose()


def _mark(node: Node, whence: str, old: Old | None) -> tuple[Carried | None, tuple[str, ...]]:
    """Marks the database, brings over what the old one knew better, and applies retention; scrubbed when it is done."""
    with database.write(node.engine) as tx:
        carryover.mark(node, tx)
        carried = None if old is None else carryover.bring(node, tx, old, node.actor)
        drafts = tx.execute(select(advisories.c.name).where(advisories.c.core.is_(None)).order_by(advisories.c.name))
        unsigned = tuple(drafts.scalars())
        database.record(
            tx, at=node.clock(), by=node.actor, act="restore", subject=node.id, detail=f"{whence}; {_told(carried)}"
        )
        text = (
            f"{whence}: recalls and purges since are applied again before anything is sent; people must look at peers,"
        )
        raise_alarm(tx, Alarm.RESTORED, node.id, f"{text} drafts and releases of that time", node.clock())
    node.own.reload()
    retention.expire(node)
    database.scrub(node.engine)
    return carried, unsigned


def _told(carried: Carried | None) -> str:
    if carried is None:
        return "nothing was carried over"
    return (
        f"carried over: {carried.cards} cards, {carried.recalls} recalls, {carried.received} received and"
        f" {carried.sent} sent entries gone, {len(carried.distrusted)} peers distrusted, {len(carried.frozen)} feeds"
        f" frozen; not possible: {carried.left}"
    )


def _state(node: Node, copy: Path) -> tuple[str, tuple[Feed, ...], dict[Role, frozenset[str]]]:
    """Schema, feeds and own keys of one state of the database, which an SQLite one is copied in."""
    engine = node.engine
    if engine.name == "sqlite":
        try:
            sqlite.copy(engine, copy)
        except OSError as e:
            raise UsageError(f"{copy.parent}: the database cannot be copied there: {e.strerror}") from e
        engine = database.open_engine(copy)
    try:
        with database.read(engine) as tx:
            if engine is not node.engine and (wrong := database.faults(tx)):
                raise UsageError(f"the database is damaged ({wrong}): this would be no backup; use an older one")
            return schema.revision(tx) or "", tuple(_feeds(tx)), _own_keys(tx, node.clock())
    finally:
        if engine is not node.engine:
            engine.dispose()


def _feeds(tx: Connection) -> Iterator[Feed]:
    for table, acknowledged in ((out_feeds, out_feeds.c.receipt_size), (in_feeds, in_feeds.c.cosigned)):
        for row in tx.execute(select(table.c.origin, table.c.size, acknowledged).order_by(table.c.origin)):
            yield Feed(*row)


def _own_keys(tx: Connection, now: datetime) -> dict[Role, frozenset[str]]:
    """The files of the keys that can be used now, of each role."""
    *_, newest = owncard.history(tx)
    usable = [key for key in unverified(newest).keys if key.valid_at(now)]
    return {role: frozenset(f"{_KEYS}/{k.role}-{k.kid}.pem" for k in usable if k.role is role) for role in Role}


def _small_files(home: Path, *, roots: bool, passphrase: bool) -> Iterator[tuple[str, Path]]:
    """Settings and keys, by the names that they get in a backup. Raises UsageError for what was asked for and is not
    here."""
    yield settings.FILE_NAME, home / settings.FILE_NAME
    for folder in (_KEYS, _ROOTS) if roots else (_KEYS,):
        found = sorted(path for path in (home / folder).glob("*") if path.is_file())
        if folder == _ROOTS and not found:
            raise UsageError(f"{home / folder} holds no root keys: leave --with-roots out")
        for path in found:
            yield f"{folder}/{path.name}", path
    if passphrase:
        if not (home / main.PASSPHRASE_FILE).is_file():
            raise UsageError(f"{home / main.PASSPHRASE_FILE} is not there: leave --with-passphrase out")
        yield main.PASSPHRASE_FILE, home / main.PASSPHRASE_FILE


def _check_complete(files: dict[str, Path], keys: dict[Role, frozenset[str]]) -> None:
    """Refuses a backup that could not run: it is made for the day on which the rest is gone."""
    for name in _NEEDED:
        if name not in files or not files[name].is_file():
            raise UsageError(f"{name} is missing in this home: what is left is no backup; restore it first")
    for role, of_role in keys.items():
        if not of_role & files.keys():
            raise ConflictError(f"no {role} key that is valid lies in {_KEYS}/: mend that, or try again in a moment")


def _check_fits(staging: Path, manifest: Manifest) -> None:
    """Refuses a backup whose parts are not of one node."""
    chosen = main.read_settings(staging)
    if chosen.node != manifest.node:
        raise UsageError(f"the backup is of {manifest.node}, its settings are of {chosen.node}: use another one")
    if (chosen.database is None) != bool(manifest.database):
        raise UsageError("the backup and its settings do not agree on where the database is: use another one")


def _gathered(home: Path, node: NodeId) -> tuple[Old | None, str]:
    """What the home that is replaced knows, and why that cannot be read if it cannot. Raises UsageError for the home of
    another node, NotAllowedError where its settings do not let this person."""
    try:
        chosen = main.read_settings(home)
    except UsageError as e:
        return None, str(e)
    if chosen.node != node:
        raise UsageError(f"{home} is the home of {chosen.node}, and the backup is of {node}; name another folder")
    people.require(main.people_of(home, chosen), main.account(), Post.OPERATOR)
    if chosen.database is not None:
        return None, "its database is on a server, where it has been replaced before"
    try:
        engine = main.open_database(home, chosen)
        try:
            with database.read(engine) as tx:
                wrong = database.faults(tx)
                return (None, f"its database is damaged: {wrong}") if wrong else (carryover.gather(tx), "")
        finally:
            engine.dispose()
    except (LocalError, RemoteError) as e:
        return None, str(e)
    except DatabaseError as e:  # a driver's text names its statement
        return None, f"its database cannot be read: {type(e).__name__}"


def _take_over_files(home: Path, staging: Path) -> None:
    """Keys that were made since the backup, and the passphrase file, if both homes open with the same passphrase."""
    with suppress(OSError):
        if (home / _KEYS / "salt").read_bytes() != (staging / _KEYS / "salt").read_bytes():
            return
        newer = [path for path in (home / _KEYS).glob("*.pem") if not (staging / _KEYS / path.name).exists()]
        if not (staging / main.PASSPHRASE_FILE).exists() and (home / main.PASSPHRASE_FILE).is_file():
            newer.append(home / main.PASSPHRASE_FILE)
        for path in newer:
            into = staging / path.relative_to(home)
            into.touch(mode=0o600)
            into.write_bytes(path.read_bytes())


@contextmanager
def _staging(home: Path) -> Iterator[Path]:
    """A new folder on the file system of the home, which is gone afterwards unless it became the home."""
    inside = home.is_dir() and not any(home.iterdir())  # it may be a place where a volume is mounted
    staging = home / _STAGING if inside else home.with_name(f".{home.name}{_STAGING}-{os.getpid()}")
    try:
        staging.mkdir(mode=0o700)
    except OSError as e:
        raise UsageError(f"{staging} cannot be made: {e.strerror}") from e
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _put_in_place(home: Path, staging: Path, *, occupied: bool) -> Path | None:
    """The new home under its name; returns where the old one lies now."""
    if staging.parent == home:
        for path in sorted(staging.iterdir(), key=lambda path: path.name == settings.FILE_NAME):
            path.rename(home / path.name)  # the settings last: without them it is no home
        home.chmod(0o700)
        archive.flush_folder(home)
        return None
    aside = _free_name(home) if occupied else None
    try:
        if aside is not None:
            home.rename(aside)
        try:
            staging.rename(home)
        except OSError:
            if aside is not None:
                aside.rename(home)
            raise
    except OSError as e:
        raise UsageError(
            f"{home} cannot be replaced as a folder ({e.strerror}): move what is in it away, and restore without"
            " --replace"
        ) from e
    archive.flush_folder(home.parent)
    return aside


def _free_name(home: Path) -> Path:
    stem = f"{home.name}{_ASIDE}{main.utc_now():%Y%m%dT%H%M%SZ}"
    names = (home.with_name(stem if number == 1 else f"{stem}-{number}") for number in count(1))
    return next(path for path in names if not path.exists())


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """A name for a copy of the database, which is gone afterwards with all that belongs to it."""
    try:
        yield path
    finally:
        for rest in ("", ".part", "-wal", "-shm"):
            path.with_name(path.name + rest).unlink(missing_ok=True)


def _version() -> str:
    try:
        return version("apostille")
    except PackageNotFoundError:
        return "from its source tree"
