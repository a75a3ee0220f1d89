"""A backup holds one state of a home and nothing that was not asked for; a restore takes nothing back into use."""

import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from federation.errors import (
    ConflictError,
    NotAllowedError,
    UnconfirmedError,
    UsageError,
)
from federation.model import Role
from node import main
from node.desk import inbox
from node.desk.inbox import InboxState
from node.exchange.epochs import Standing
from node.home import lock
from node.home.context import Node
from node.home.people import Post
from node.operation import archive, backup
from node.operation.backup import Restored
from node.peering import peers
from node.records import approvals
from node.records.alarms import Alarm
from node.records.approvals import State
from node.sharing import releases, retention
from node.store.database import read, record, write
from node.store.tables import alarms, audit, in_feeds, out_feeds
from tests.copies import put_back, save, started
from tests.nodes import (
    DE,
    FR,
    World,
    agree,
    document,
    files_hold,
    import_document,
    make_world,
    release,
)

CANARY = b"What the canary knows"
ALWAYS = {"apostille.db", "apostille.yaml", "keys/salt", "keys/seal.pem", "keys/seal.pub"}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path)
    agree(made)
    with_canary(made, FR, "A")
    made.sync_all()
    yield made
    made.close()


def with_canary(world: World, name: Any, advisory: str) -> None:
    import_document(world[name], document(advisory, notes=(CANARY.decode(),)))
    releases.release(world[name], advisory)


def names(path: Path) -> set[str]:
    return {member.name for member in archive.verify(path).files}


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but for the lock, which looking makes."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and "serve" not in p.name
    }


def opened(world: World, name: Any) -> Callable[[Path], Node]:
    return lambda home: started(world, world[name], home)


# Making one


def test_a_backup_holds_database_settings_and_keys_and_no_more(world: World, tmp_path: Path) -> None:
    fr = world[FR]
    made = backup.make(fr, tmp_path / "b.tar", roots=False, passphrase=False)
    online = {f"keys/{path.name}" for path in (fr.home / "keys").glob("*-*.pem")}
    assert names(tmp_path / "b.tar") == ALWAYS | online
    assert len(online) == 4
    assert (made.manifest.node, made.manifest.schema, made.manifest.database) == (FR, "0002", "apostille.db")
    assert [(feed.origin.split("/")[0], feed.size, feed.acknowledged) for feed in made.manifest.feeds] == [
        (FR, 3, 3),
        (DE, 2, 2),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((FR, DE, "b.tar"))
    with read(fr.engine) as tx:
        detail = tx.execute(select(audit.c.detail).where(audit.c.act == "backup.make")).scalar_one()
    assert detail == f"SHA-256 {made.sha256}"


def test_root_keys_and_the_passphrase_are_in_it_if_they_are_asked_for(world: World, tmp_path: Path) -> None:
    fr = world[FR]
    backup.make(fr, tmp_path / "b.tar", roots=True, passphrase=True)
    more = names(tmp_path / "b.tar") - names(save_plainly(fr, tmp_path / "plain.tar"))
    assert more == {"passphrase", "roots/salt", *(f"roots/root-{number}.pem" for number in (1, 2, 3))}
    shutil.rmtree(fr.home / "roots")
    (fr.home / "passphrase").unlink()
    for asked in ({"roots": True, "passphrase": False}, {"roots": False, "passphrase": True}):
        with pytest.raises(UsageError, match="leave --with-"):
            backup.make(fr, tmp_path / "c.tar", **asked)
    assert not (tmp_path / "c.tar").exists()


def save_plainly(node: Node, target: Path) -> Path:
    backup.make(node, target, roots=False, passphrase=False)
    return target


def test_a_backup_is_one_state_although_others_write(world: World, tmp_path: Path) -> None:
    """Two rows at a time are written; no backup has one of them."""
    fr, stop = world[FR], threading.Event()
    engine = main.open_database(fr.home, main.read_settings(fr.home))

    def write_on() -> None:
        while not stop.is_set():
            with write(engine) as tx:
                for _ in range(2):
                    record(tx, at=fr.clock(), by="alice", act="pair", subject="x")

    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        saved = [save_plainly(fr, tmp_path / f"{number}.tar") for number in range(5)]
    finally:
        stop.set()
        writer.join()
        engine.dispose()
    counts = []
    for path in saved:
        folder = tmp_path / f"of-{path.stem}"
        folder.mkdir()
        archive.unpack(path, folder)
        with sqlite3.connect(folder / "apostille.db") as connection:
            counts.append(connection.execute("SELECT count(*) FROM audit WHERE act = 'pair'").fetchone()[0])
    assert all(count % 2 == 0 for count in counts)
    assert counts == sorted(counts)
    assert counts[-1] > 0


def test_a_home_that_could_not_run_is_not_backed_up(world: World, tmp_path: Path) -> None:
    fr = world[FR]
    for name, error in (("keys/salt", UsageError), ("keys/seal.pem", UsageError), ("apostille.yaml", UsageError)):
        (fr.home / name).rename(fr.home / "away")
        with pytest.raises(error, match=name):
            save_plainly(fr, tmp_path / "b.tar")
        (fr.home / "away").rename(fr.home / name)
    (key,) = (fr.home / "keys").glob("feed-*.pem")
    key.rename(fr.home / "away")
    with pytest.raises(ConflictError, match="no feed key"):
        save_plainly(fr, tmp_path / "b.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((FR, DE))


def test_a_damaged_database_makes_no_backup(world: World, tmp_path: Path) -> None:
    fr = world[FR]
    with fr.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only=OFF")
        connection.exec_driver_sql("PRAGMA writable_schema=ON")
        connection.exec_driver_sql("DELETE FROM sqlite_master WHERE type = 'index' AND name = 'ix_inbox_name'")
        connection.commit()
    with pytest.raises(UsageError, match="database is damaged"):
        save_plainly(fr, tmp_path / "b.tar")
    assert not (tmp_path / "b.tar").exists()


def test_an_operator_makes_it_where_there_is_a_folder(world: World, tmp_path: Path) -> None:
    with pytest.raises(NotAllowedError):
        save_plainly(replace(world[FR], people={"alice": frozenset({Post.ANALYST})}), tmp_path / "b.tar")
    with pytest.raises(UsageError, match="no folder"):
        save_plainly(world[FR], tmp_path / "nowhere" / "b.tar")


# Putting one back


def restore(world: World, home: Path, saved: Path, *, replace_it: bool = False) -> Restored:
    return backup.restore(home, saved, replace=replace_it, open_node=opened(world, FR))


@pytest.mark.parametrize("before", ["missing", "empty", "missing with parents"])
def test_a_backup_becomes_a_home_again(world: World, tmp_path: Path, before: str) -> None:
    saved = save(world[FR], tmp_path / "b.tar")
    (tmp_path / "new").mkdir()
    home = tmp_path / "new" / "home"
    if before == "empty":
        home.mkdir()
    done = restore(world, home, saved)
    assert (done.node, done.aside, done.carried, done.why_not, done.drafts) == (FR, None, None, "", ())
    assert [path.name for path in home.parent.iterdir()] == ["home"]
    modes = {path.stat().st_mode & 0o777 for path in (home, *home.rglob("*")) if "serve" not in path.name}
    assert modes <= {0o700, 0o600}
    node = main.open_node(home)
    assert node.keys.signer(Role.FEED, node.card, node.clock()).kid
    assert node.card == world[FR].card
    node.engine.dispose()


def test_a_restored_database_is_marked(world: World, tmp_path: Path) -> None:
    world[FR].own.reload()
    peers.distrust(world[FR], DE)
    with pytest.raises(Exception, match="Noted as request 1"):
        peers.trust_again(world[FR], DE, "why")
    import_document(world[FR], document("DRAFT"))
    saved = save(world[FR], tmp_path / "b.tar")
    assert put_back(world, FR, saved, lost=True).drafts == ("DRAFT",)
    fr = world[FR]
    with read(fr.engine) as tx:
        assert tx.execute(select(in_feeds.c.restored)).scalars().all() == [Standing.RESTORED]
        assert tx.execute(select(out_feeds.c.shown_to)).scalars().all() == [None]
        assert tx.execute(select(alarms.c.subject).where(alarms.c.kind == Alarm.RESTORED)).scalars().all() == [FR]
        assert tx.execute(select(audit.c.detail).where(audit.c.act == "restore")).scalar_one().startswith("backup of ")
    assert [(request.state, request.settled_by) for request in approvals.all_requests(fr)] == [(State.VOID, "alice")]


def test_a_home_that_is_there_is_touched_only_to_replace_it(world: World, tmp_path: Path) -> None:
    fr = world[FR]
    saved = save(fr, tmp_path / "b.tar")
    release(world, "LATER")
    fr.engine.dispose()
    before = snapshot(fr.home)
    with pytest.raises(UsageError, match="not empty"):
        restore(world, fr.home, saved)
    assert snapshot(fr.home) == before
    done = restore(world, fr.home, saved, replace_it=True)
    assert done.aside is not None
    assert done.aside.name.startswith(f"{FR}.before-restore-")
    assert snapshot(done.aside) == before
    again = restore(world, fr.home, saved, replace_it=True)
    assert again.aside not in (None, done.aside)


def test_what_is_no_home_is_not_moved_aside(world: World, tmp_path: Path) -> None:
    saved = save(world[FR], tmp_path / "b.tar")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "photos").write_text("x")
    with pytest.raises(UsageError, match="no home of a node"):
        restore(world, precious, saved, replace_it=True)
    with pytest.raises(UsageError, match="not empty"):
        restore(world, precious, saved)
    assert [path.name for path in precious.iterdir()] == ["photos"]


def test_a_home_that_is_served_is_not_replaced(world: World, tmp_path: Path) -> None:
    fr = world[FR]
    saved = save(fr, tmp_path / "b.tar")
    with lock.hold(fr.home), pytest.raises(UsageError, match="is served already"):
        restore(world, fr.home, saved, replace_it=True)
    with lock.hold(fr.home), pytest.raises(UsageError, match="is served already"):
        backup.mark_by_hand(fr.home, open_node=opened(world, FR))
    assert not list(tmp_path.glob("*before*"))


def test_the_home_of_another_node_is_not_replaced(world: World, tmp_path: Path) -> None:
    saved = save(world[FR], tmp_path / "b.tar")
    before = snapshot(world[DE].home)
    with pytest.raises(UsageError, match=r"is the home of cert\.de\.example"):
        restore(world, world[DE].home, saved, replace_it=True)
    assert snapshot(world[DE].home) == before


def test_a_damaged_backup_leaves_everything_as_it_was(world: World, tmp_path: Path) -> None:
    fr = world[FR]
    saved = save(fr, tmp_path / "b.tar")
    data = bytearray(saved.read_bytes())
    data[len(data) // 2] ^= 1
    saved.write_bytes(data)
    fr.engine.dispose()
    before, around = snapshot(fr.home), sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UsageError, match="damaged"):
        restore(world, fr.home, saved, replace_it=True)
    with pytest.raises(UsageError, match="damaged"):
        restore(world, tmp_path / "new", saved)
    assert snapshot(fr.home) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == around


def test_settings_and_database_of_two_nodes_are_no_backup(world: World, tmp_path: Path) -> None:
    """Put together by hand, or by somebody who hopes that it is not looked at."""
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    fr = archive.unpack(save(world[FR], tmp_path / "fr.tar"), mixed)
    shutil.copy(world[DE].home / "apostille.yaml", mixed / "apostille.yaml")
    members = tuple(archive.measure(member.name, mixed / member.name) for member in fr.files)
    archive.write(tmp_path / "b.tar", replace(fr, files=members), [mixed / member.name for member in members])
    with pytest.raises(UsageError, match=r"its settings are of cert\.de\.example"):
        restore(world, tmp_path / "new", tmp_path / "b.tar")
    assert not (tmp_path / "new").exists()


def test_retention_that_has_ended_since_is_applied(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    agree(world, retention_days="15")
    with_canary(world, FR, "A")
    world.sync(DE, FR)
    saved = save(world[DE], tmp_path / "b.tar")
    world.clock.move(days=16)
    put_back(world, DE, saved, lost=True)
    assert [item.state for item in inbox.items(world[DE], every_state=True)] == [InboxState.EXPIRED]
    assert not files_hold(world[DE], CANARY)
    assert not retention.ended(world[DE])
    world.close()


def test_a_home_that_was_put_back_by_hand_can_say_so(world: World) -> None:
    fr = world[FR]
    fr.engine.dispose()
    backup.mark_by_hand(fr.home, open_node=opened(world, FR))
    world.nodes[FR] = started(world, fr, fr.home)
    with read(world[FR].engine) as tx:
        assert tx.execute(select(in_feeds.c.restored)).scalars().all() == [Standing.RESTORED]
    with pytest.raises(UnconfirmedError, match="not heard yet"):
        world.sync(DE, FR)
    with pytest.raises(NotAllowedError):
        backup.mark_by_hand(fr.home, open_node=lambda home: replace(opened(world, FR)(home), people={}))
