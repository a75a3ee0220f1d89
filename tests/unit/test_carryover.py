"""What was recalled, taken back or distrusted since a backup stays so when the backup is put back."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from federation.errors import EpochError, LockedError, NotFoundError, UnconfirmedError, UsageError
from federation.model import Role
from federation.recall import Reason
from node import main
from node.audit import verify
from node.desk import inbox
from node.desk.inbox import InboxState
from node.exchange import sync
from node.home import owncard
from node.home.context import Node
from node.operation import backup
from node.operation.carryover import Carried
from node.peering import agreements, peers, rotation
from node.records import incidents
from node.sharing import advisories, recalls, releases, revisions
from node.store.database import read, write
from node.store.tables import in_feeds, out_entries, out_feeds
from tests.copies import accept_epoch, open_epoch, put_back, save, started
from tests.nodes import (
    DE,
    FR,
    World,
    agree,
    arrived,
    document,
    files_hold,
    import_document,
    make_world,
    release,
    terms_text,
)

CANARY = b"What the canary knows"


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


def save_plainly(node: Node, target: Path) -> Path:
    backup.make(node, target, roots=False, passphrase=False)
    return target


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but for the lock, which looking makes."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and "serve" not in p.name
    }


def opened(world: World, name: Any) -> Callable[[Path], Node]:
    return lambda home: started(world, world[name], home)


def carried(world: World, name: Any, saved: Path) -> Carried:
    done = put_back(world, name, saved)
    assert done.why_not == ""
    assert done.carried is not None
    return done.carried


@pytest.mark.invariant("I15")
def test_what_was_recalled_since_the_backup_does_not_come_back(world: World, tmp_path: Path) -> None:
    saved = save(world[DE], tmp_path / "b.tar")
    recalls.give(world[FR], "A", Reason.ERROR)
    world.sync(DE, FR)
    assert not files_hold(world[DE], CANARY)
    assert carried(world, DE, saved).recalls == 1
    assert not files_hold(world[DE], CANARY)
    assert [item.state for item in inbox.items(world[DE], every_state=True)] == [InboxState.RECALLED]
    assert files_in_aside_hold(world[DE].home) == []


def files_in_aside_hold(home: Path) -> list[str]:
    return [str(p) for p in home.parent.glob(f"{home.name}.*/apostille.db*") if CANARY in p.read_bytes()]


@pytest.mark.invariant("I15")
def test_our_own_recall_since_the_backup_is_kept_and_told_again(world: World, tmp_path: Path) -> None:
    saved = save(world[FR], tmp_path / "b.tar")
    recalls.give(world[FR], "A", Reason.ERROR)  # nobody has heard of it yet
    assert carried(world, FR, saved).recalls == 1
    with pytest.raises(UsageError, match="is recalled"):
        releases.release(world[FR], "A")
    world.sync(FR, DE)
    world.sync(DE, FR)
    assert [item.state for item in inbox.items(world[DE], every_state=True)] == [InboxState.RECALLED]
    assert verify.verify(world[FR]).findings == ()


def test_what_a_sender_has_taken_back_since_stays_away(world: World, tmp_path: Path) -> None:
    saved = save(world[DE], tmp_path / "b.tar")
    releases.withdraw(world[FR], "A", DE)
    world.sync(DE, FR)
    assert carried(world, DE, saved).received == 1
    assert [item.state for item in inbox.items(world[DE], every_state=True)] == [InboxState.WITHDRAWN]
    assert not files_hold(world[DE], CANARY)


def test_what_we_have_taken_back_since_is_taken_back_again(world: World, tmp_path: Path) -> None:
    with_canary(world, FR, "B")  # it has not gone yet
    saved = save(world[FR], tmp_path / "b.tar")
    releases.withdraw(world[FR], "B", DE)
    assert carried(world, FR, saved).sent == 1
    with read(world[FR].engine) as tx:
        assert tx.execute(select(out_entries.c.seq).where(out_entries.c.data.is_(None))).scalars().all() == [3]
    world.sync(FR, DE)
    world.sync(DE, FR)
    assert [item.name for item in inbox.items(world[DE])] == ["A"]
    assert verify.verify(world[FR]).findings == ()


def test_distrust_and_a_frozen_feed_outlast_a_restore(world: World, tmp_path: Path) -> None:
    saved = save(world[DE], tmp_path / "b.tar")
    with write(world[DE].engine) as tx:
        tx.execute(update(in_feeds).values(frozen="FORK"))
        incidents.open_incident(tx, "FORK", FR, f"{FR}/feeds/{DE}/1", {"heads": []}, "two histories", world.clock())
    peers.distrust(world[DE], FR)
    brought = carried(world, DE, saved)
    assert (brought.distrusted, brought.frozen) == ([FR], [f"{FR}/feeds/{DE}/1"])
    with pytest.raises(NotFoundError, match="distrusted"):
        world.sync(DE, FR)
    with read(world[DE].engine) as tx:
        assert tx.execute(select(in_feeds.c.frozen)).scalar_one() == "FORK"


@pytest.mark.invariant("I16")
def test_heads_and_receipts_are_promises_that_outlast_a_restore(world: World, tmp_path: Path) -> None:
    saved = {name: save(world[name], tmp_path / f"{name}.tar") for name in (FR, DE)}
    release(world, "B", "C")
    world.sync_all()
    before = sync.load_state(world[DE], FR)
    carried(world, DE, saved[DE])
    after = sync.load_state(world[DE], FR)
    assert (after.state.newest, after.cosigned) == (before.state.newest, before.cosigned)
    assert after.state.cursor < before.state.cursor
    with read(world[FR].engine) as tx:
        shown = tx.execute(select(out_feeds.c.shown)).scalar_one()
    carried(world, FR, saved[FR])
    with read(world[FR].engine) as tx:
        assert tx.execute(select(out_feeds.c.shown)).scalar_one() == shown
    with pytest.raises(UnconfirmedError, match="not ours any more"):
        world.sync(DE, FR)  # it is known without the receiver, who has forgotten it as well


def test_newer_cards_and_keys_are_taken_over(world: World, tmp_path: Path) -> None:
    saved = {name: save_plainly(world[name], tmp_path / f"{name}.tar") for name in (FR, DE)}
    fr = world[FR]
    rotation.change(fr, rotation.Change(rotate=(Role.FEED,)))
    world.sync_all()
    newest = owncard_of(fr)
    assert carried(world, FR, saved[FR]).cards == 1
    assert owncard_of(world[FR]) == newest
    assert world[FR].keys.signer(Role.FEED, world[FR].card, world.clock()).kid
    assert (world[FR].home / "passphrase").is_file()
    assert carried(world, DE, saved[DE]).cards == 1
    assert peers.trusted_card(world[DE], FR).version == 2


def owncard_of(node: Node) -> bytes:
    with read(node.engine) as tx:
        return owncard.history(tx)[-1]


@pytest.mark.parametrize("how", ["no database", "no page", "another schema", "no settings"])
def test_a_home_that_cannot_be_read_any_more_is_replaced_all_the_same(world: World, tmp_path: Path, how: str) -> None:
    fr = world[FR]
    saved = save(fr, tmp_path / "b.tar")
    fr.engine.dispose()
    database_file = fr.home / "apostille.db"
    if how == "no database":
        database_file.unlink()
    elif how == "no page":
        size = database_file.stat().st_size
        with database_file.open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom(size - 4096))
    elif how == "another schema":
        with sqlite3.connect(database_file) as connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
    else:
        (fr.home / "apostille.yaml").unlink()
    done = backup.restore(fr.home, saved, replace=True, open_node=opened(world, FR))
    assert done.carried is None
    assert done.why_not
    assert done.aside is not None
    world.nodes[FR] = started(world, fr, fr.home)
    assert [summary.name for summary in advisories.all_advisories(world[FR])] == ["A"]


def test_without_the_passphrase_nothing_is_replaced_that_would_need_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recall that is applied again is answered again, which is signed."""
    saved = save_plainly(world[DE], tmp_path / "b.tar")
    recalls.give(world[FR], "A", Reason.ERROR)
    world.sync(DE, FR)
    de = world[DE]
    de.engine.dispose()
    given = (de.home / "passphrase").read_text()
    (de.home / "passphrase").unlink()
    before = snapshot(de.home)
    with pytest.raises(LockedError):
        backup.restore(de.home, saved, replace=True, open_node=opened(world, DE))
    assert snapshot(de.home) == before
    monkeypatch.setenv(main.PASSPHRASE_VARIABLE, given.strip())
    assert backup.restore(de.home, saved, replace=True, open_node=opened(world, DE)).carried is not None


def test_agreements_come_again_from_the_peers(world: World, tmp_path: Path) -> None:
    saved = save(world[DE], tmp_path / "b.tar")
    agreements.propose(world[FR], terms_text(world, agreement="later"), "later.yaml")
    world.sync(DE, FR)
    put_back(world, DE, saved)
    world.sync(DE, FR)
    assert {held.agreement.id for held in agreements.all_held(world[DE])} == {"exchange-2026", "later"}
    assert arrived(world) == ["A"]


@pytest.mark.invariant("I5")
@pytest.mark.parametrize("since", ["a draft of that time", "a document of after the backup", "the next revision"])
def test_no_revision_is_signed_twice_with_different_content(world: World, tmp_path: Path, since: str) -> None:
    """Released, lost with the home, and done again, as whoever restores is told."""

    def prepare() -> None:
        import_document(world[FR], document("N"))

    def make() -> None:
        if since == "the next revision":
            revisions.revise_from_issued(world[FR], "N")
        elif since == "a document of after the backup":
            prepare()

    if since != "a document of after the backup":
        prepare()
    if since == "the next revision":
        releases.release(world[FR], "N")
        world.sync_all()
    saved = save(world[FR], tmp_path / "backup.tar")
    make()
    releases.release(world[FR], "N")
    world.sync(DE, FR)
    first = {item.core_digest: item.revision for item in inbox.items(world[DE], every_state=True) if item.name == "N"}
    put_back(world, FR, saved, lost=True)
    world.clock.move(minutes=20)
    world.sync(FR, DE)
    make()
    releases.release(world[FR], "N")
    with pytest.raises(UnconfirmedError):
        world.sync(DE, FR)
    open_epoch(world[FR], DE)
    with pytest.raises(EpochError):
        world.sync(DE, FR)
    accept_epoch(world[DE], FR)
    world.sync(DE, FR)
    held = {item.core_digest: item.revision for item in inbox.items(world[DE], every_state=True) if item.name == "N"}
    assert held.items() > first.items()
    assert len(set(held.values())) == len(held)
    assert incidents.all_incidents(world[DE]) == ()
    assert [item.core_digest in first for item in inbox.items(world[DE]) if item.name == "N"] == [False]
