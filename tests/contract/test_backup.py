"""Backups of what is no SQLite file of today: a database on a server, and a home of an older schema."""

from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import select

from federation.errors import UsageError
from federation.model import NodeId
from node import main
from node.desk import inbox
from node.exchange.epochs import Standing
from node.operation import archive, backup
from node.operation.archive import Manifest
from node.store.database import read
from node.store.tables import in_feeds, out_feeds
from tests.contract import version_1
from tests.contract.stores import new_database
from tests.copies import put_back, save, started
from tests.nodes import DE, FR, agree, make_world, release


def test_a_database_on_a_server_is_dumped_there_and_marked_here(tmp_path: Path) -> None:
    world = make_world(tmp_path, databases={FR: new_database()})
    agree(world)
    release(world, "A")
    world.sync_all()
    saved = save(world[FR], tmp_path / "b.tar")
    manifest = archive.verify(saved)
    assert manifest.database == ""
    assert main.DATABASE_FILE not in {member.name for member in manifest.files}
    assert {feed.size for feed in manifest.feeds} == {2, 3}
    done = put_back(world, FR, saved)  # the database is the one that the settings name, as a dump was loaded there
    assert done.carried is None
    assert "on a server" in done.why_not
    with read(world[FR].engine) as tx:
        assert tx.execute(select(in_feeds.c.restored)).scalars().all() == [Standing.RESTORED]
        assert tx.execute(select(out_feeds.c.shown_to)).scalars().all() == [None]
    world.sync(FR, DE)
    world.sync(DE, FR)
    assert [item.name for item in inbox.items(world[DE])] == ["A"]
    world.close()


def test_settings_that_name_a_server_do_not_fit_a_backup_with_a_database(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    home = world[FR].home
    (home / "apostille.yaml").write_text((home / "apostille.yaml").read_text() + "database: postgresql://here/x\n")
    saved = save(world[FR], tmp_path / "b.tar")
    with pytest.raises(UsageError, match="do not agree on where the database is"):
        backup.restore(tmp_path / "new", saved, replace=False)
    assert not (tmp_path / "new").exists()
    world.close()


def test_a_backup_of_an_older_schema_is_upgraded_before_it_is_put_in_place(tmp_path: Path) -> None:
    old = version_1.make_home(tmp_path)
    paths = sorted(path for path in old.rglob("*") if path.is_file())
    manifest = Manifest(
        node=NodeId("cert.fr.example"),
        made_at=version_1.clock().replace(microsecond=0),
        version="0.1.0",
        schema="0001",
        database=main.DATABASE_FILE,
        feeds=(),
        files=tuple(archive.measure(str(path.relative_to(old)), path) for path in paths),
    )
    archive.write(tmp_path / "b.tar", manifest, paths)
    world = make_world(tmp_path / "others", DE)
    world.clock.now = version_1.clock()
    done = backup.restore(
        tmp_path / "new", tmp_path / "b.tar", replace=False, open_node=partial(started, world, world[DE])
    )
    assert done.node == "cert.fr.example"
    node = started(world, world[DE], tmp_path / "new")
    with read(node.engine) as tx:
        assert set(tx.execute(select(in_feeds.c.restored)).scalars()) == {Standing.RESTORED}
    assert node.card.node == "cert.fr.example"
    node.engine.dispose()
    world.close()


def test_a_backup_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    with world[FR].engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only=OFF")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    saved = save(world[FR], tmp_path / "b.tar")
    with pytest.raises(UsageError, match="newer version"):
        backup.restore(tmp_path / "new", saved, replace=False)
    assert not (tmp_path / "new").exists()
    world.close()
