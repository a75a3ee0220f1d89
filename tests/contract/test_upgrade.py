"""`apostille upgrade`: all of it or nothing, with a way back; and nodes that go on after it as if nothing had been."""

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from federation.errors import HeldError, NotAllowedError, UsageError
from federation.model import NodeId
from federation.recall import Reason
from node import main
from node.audit import verify
from node.desk import inbox
from node.desk.inbox import InboxState
from node.exchange import sync
from node.home import lock
from node.home.context import Node
from node.peering import agreements
from node.records import incidents, ledger
from node.sharing import recalls, releases, retention
from node.store import database
from node.store.tables import metadata
from tests import commands
from tests.contract import version_1
from tests.contract.outcomes import acts, assert_same_feeds
from tests.contract.stores import FILE, POSTGRESQL
from tests.nodes import AGREEMENT, DE, FR, IN, PEOPLE, Clock, World, release

BOTH = (FILE, POSTGRESQL)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The home of FR as the first version left it."""
    return version_1.make_home(tmp_path)


def test_an_old_database_says_what_to_run_and_a_newer_one_what_to_install(home: Path) -> None:
    with pytest.raises(UsageError, match="run: apostille upgrade"):
        main.open_node(home)
    main.upgrade_home(home, keep_copy=False)
    engine = version_1.engine_of(home)
    with database.write(engine) as tx:
        tx.execute(text("UPDATE alembic_version SET version_num = '0003'"))
    for attempt in (lambda: main.open_node(home), lambda: main.upgrade_home(home, keep_copy=True)):
        with pytest.raises(UsageError, match="newer version"):
            attempt()
    engine.dispose()
    assert not list(home.glob("*.schema-*"))


def test_a_schema_from_before_the_revisions_that_nobody_knows_is_a_newer_one(home: Path) -> None:
    engine = version_1.engine_of(home)
    with database.write(engine) as tx:
        tx.execute(text("UPDATE meta SET value = '7' WHERE key = 'schema'"))
    engine.dispose()
    with pytest.raises(UsageError, match="newer version"):
        main.upgrade_home(home, keep_copy=True)


def test_the_database_is_copied_first_and_only_its_owner_can_read_the_copy(home: Path) -> None:
    as_it_was = version_1.content(home)
    done = main.upgrade_home(home, keep_copy=True)
    assert (done.before, done.after, done.copy) == (1, 2, home / "apostille.db.schema-1")
    assert done.copy is not None
    assert done.copy.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in home.glob("apostille.db*")) == ["apostille.db", "apostille.db.schema-1"]
    done.copy.replace(home / main.DATABASE_FILE)  # a way back
    assert version_1.content(home) == as_it_was


def test_no_copy_is_made_when_none_is_wanted_or_nothing_is_done(home: Path) -> None:
    assert main.upgrade_home(home, keep_copy=False).copy is None
    after = version_1.content(home)
    again = main.upgrade_home(home, keep_copy=True)
    assert (again.before, again.after, again.copy) == (2, 2, None)
    assert version_1.content(home) == after
    assert not list(home.glob("*.schema-*"))


def test_a_home_that_is_served_is_left_alone(home: Path) -> None:
    as_it_was = version_1.content(home)
    with lock.hold(home), pytest.raises(UsageError, match="served already"):
        main.upgrade_home(home, keep_copy=True)
    assert version_1.content(home) == as_it_was


def test_only_an_operator_upgrades(home: Path) -> None:
    settings = home / "apostille.yaml"
    settings.write_text(f"{settings.read_text('utf-8')}people: {{{main.account()}: [auditor]}}\n", "utf-8")
    with pytest.raises(NotAllowedError):
        main.upgrade_home(home, keep_copy=False)
    assert version_1.revision(home) == "0001"


@pytest.mark.parametrize(
    ("content", "told"), [(None, "cannot be read"), (b"{}", "damaged"), ("de", f"card of {DE}")], ids=str
)
def test_without_this_nodes_card_nothing_is_changed(home: Path, tmp_path: Path, content: Any, told: str) -> None:
    as_it_was, card = version_1.content(home), home / "card.json"
    if content is None:
        card.unlink()
    else:
        other = (
            content
            if isinstance(content, bytes)
            else (version_1.make_home(tmp_path, content) / "card.json").read_bytes()
        )
        card.write_bytes(other)
    with pytest.raises(UsageError, match=told):
        main.upgrade_home(home, keep_copy=False)
    assert version_1.content(home) == as_it_was


def test_the_database_of_another_node_is_not_upgraded(home: Path, tmp_path: Path) -> None:
    other = version_1.make_home(tmp_path, "de")
    (other / main.DATABASE_FILE).replace(home / main.DATABASE_FILE)
    with pytest.raises(UsageError, match=f"that of {DE}"):
        main.upgrade_home(home, keep_copy=False)


@pytest.mark.parametrize("kind", BOTH)
def test_a_migration_that_fails_changes_nothing(tmp_path: Path, kind: str) -> None:
    old_home = version_1.make_home(tmp_path, kind=kind)
    engine = version_1.engine_of(old_home)
    with database.write(engine) as tx:  # what no version wrote: an entry that cannot be read
        tx.execute(text("UPDATE out_entries SET data = leaf_hash WHERE kind = 'withdrawal'"))
    engine.dispose()
    with pytest.raises(Exception, match="entry"):
        main.upgrade_home(old_home, keep_copy=False)
    assert version_1.revision(old_home) == "0001"
    assert (old_home / "card.json").exists()


def test_the_command_says_what_it_did_and_where_the_copy_lies(home: Path) -> None:
    def apostille(*words: str) -> subprocess.CompletedProcess[str]:
        return commands.run("--home", str(home), *words)

    refused = apostille("status")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "has schema 1, this version works with 2; run: apostille upgrade" in refused.stderr
    done = apostille("upgrade")
    copy = str(home / "apostille.db.schema-1")
    assert done.returncode == 0
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["Schema", "before", "1"],
        ["Schema", "now", "2"],
        ["Copy", copy],
    ]
    assert f"{copy} is the database as it was" in done.stderr
    assert "the first thing that is erased or recalled from now on takes it along" in done.stderr
    looked = json.loads(apostille("doctor", "--json").stdout)
    (old,) = [finding for finding in looked if finding["check"] == "old copy"]
    assert (old["verdict"], old["found"]) == ("warn", f"{copy} holds all that was in the database before an upgrade")
    again = apostille("upgrade")
    assert (again.returncode, again.stdout) == (0, "")
    assert again.stderr == "The database has schema 2 already: nothing to do.\n"
    assert apostille("upgrade", "--json").stdout == '{"before":2,"after":2,"copy":null}\n'
    assert apostille("status").returncode == 0
    (home / "apostille.db.schema-1").unlink()
    assert "old copy" not in apostille("doctor", "--json").stdout


# The copy, afterwards


@pytest.fixture
def copied(tmp_path: Path) -> Iterator[World]:
    """FR and DE, upgraded, each with a copy of its database as it was."""
    clock = Clock(version_1.clock() + timedelta(minutes=1))

    def node(name: str) -> Node:
        home = version_1.make_home(tmp_path, name)
        main.upgrade_home(home, keep_copy=True)
        return replace(main.open_node(home), clock=clock, actor="alice", people=PEOPLE)

    made = World({FR: node("fr"), DE: node("de")}, clock)
    yield made
    made.close()


def copy_of(node: Node) -> Path:
    return node.home / "apostille.db.schema-1"


def holding(node: Node, text: bytes) -> set[str]:
    """The files of a home in which a text stands."""
    return {path.name for path in node.home.rglob("*") if path.is_file() and text in path.read_bytes()}


TITLE = b"Flaw 1 in a product"


def recall(world: World) -> bytes:
    recalls.give(world[FR], "FR-2026-01", Reason.LEGAL)
    world.sync_all(2)
    return TITLE


def withdraw(world: World) -> bytes:
    releases.withdraw(world[FR], "FR-2026-01", DE)
    world.sync_all(2)
    return TITLE


def purge(world: World) -> bytes:
    retention.purge(world[DE])
    return b"Kept for two days"


@pytest.mark.invariant("I15")
@pytest.mark.parametrize("erase", [recall, withdraw, purge])
def test_what_is_erased_after_an_upgrade_is_not_kept_by_its_copy(
    copied: World, erase: Callable[[World], bytes], tmp_path: Path
) -> None:
    world, de = copied, copied[DE]
    for title in (TITLE, b"Flaw 2 in a product", b"Kept for two days"):
        assert holding(de, title) >= {"apostille.db", "apostille.db.schema-1"}
    same_blocks = tmp_path / "blocks"
    same_blocks.hardlink_to(copy_of(de))
    assert holding(de, erase(world)) == set()
    assert "apostille.db" in holding(de, b"Flaw 2 in a product")
    assert not copy_of(de).exists()
    assert not same_blocks.read_bytes().strip(b"\0")
    assert copy_of(world[FR]).exists() == (erase is purge)  # which FR has not begun


def test_the_copy_stays_while_nothing_is_erased(copied: World) -> None:
    copied.sync_all(2)
    release(copied, "NEW")
    copied.sync_all(2)
    database.scrub(copied[DE].engine)  # as every start does
    assert [path.name for path in database.copies(copied[DE].home / main.DATABASE_FILE)] == ["apostille.db.schema-1"]


@pytest.mark.invariant("I15")
def test_the_copy_goes_at_the_next_start_if_the_process_died_before(
    copied: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as dying:
        dying.setattr(sync, "scrub", lambda _: None)
        recall(copied)
    assert copy_of(copied[DE]).exists()
    database.scrub(copied[DE].engine)
    assert not copy_of(copied[DE]).exists()


@pytest.mark.invariant("I15")
def test_what_is_left_of_a_copy_goes_too(home: Path) -> None:
    main.upgrade_home(home, keep_copy=True)
    (home / "apostille.db.schema-1.part").write_bytes((home / "apostille.db.schema-1").read_bytes()[:5000])
    node = main.open_node(home)
    database.scrub(node.engine)
    node.engine.dispose()
    assert sorted(path.name for path in home.glob("*.schema-*")) == ["apostille.db.schema-1"]


# Killed on the way


def upgrade_killed(home: Path, when: str) -> subprocess.CompletedProcess[str]:
    return commands.run(str(home), when, code="import runpy; runpy.run_module('tests.contract.killed', {}, '__main__')")


def outcome(home: Path) -> list[Any]:
    """What an upgraded database holds, without what tells when it was upgraded."""
    engine = version_1.engine_of(home)
    with database.read(engine) as tx:
        assert database.faults(tx) is None
    found = [
        [tuple(row) for row in version_1.rows(engine, table) if getattr(row, "act", "") != "database.upgrade"]
        for table in metadata.sorted_tables
    ]
    engine.dispose()
    return found


@pytest.mark.invariant("I9")
@pytest.mark.parametrize("kind", BOTH)
def test_killed_at_any_point_it_leaves_the_old_schema_or_the_new_one(kind: str, tmp_path: Path) -> None:
    def fresh(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        return version_1.make_home(folder, kind=kind)

    whole = fresh("whole")
    steps = int(upgrade_killed(whole, "never").stdout)
    assert steps > 100
    expected = outcome(whole)
    points = [*(str(steps * part // 8) for part in range(1, 8)), "commit", "unlink"]
    seen = []
    for point in points:
        home = fresh(point)
        assert upgrade_killed(home, point).returncode == -signal.SIGKILL
        found = version_1.revision(home)
        seen.append(found)
        if found == "0001":
            assert (home / "card.json").exists()
            if kind == FILE:
                held = version_1.content(home)
                assert held == version_1.content(version_1.make_home(home))
        else:
            assert outcome(home) == expected
        main.upgrade_home(home, keep_copy=False)  # and it can be done again
        assert outcome(home) == expected
        assert not (home / "card.json").exists()
    assert seen == ["0001"] * 8 + ["0002"]


# Afterwards


@pytest.fixture(params=[FILE, POSTGRESQL])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """FR and DE, upgraded; DE's database is a file, FR's a file or on a server."""
    clock = Clock(version_1.clock() + timedelta(minutes=1))

    def node(name: str) -> Node:
        home = version_1.make_home(tmp_path, name, request.param if name == "fr" else FILE)
        main.upgrade_home(home, keep_copy=False)
        return replace(main.open_node(home), clock=clock, actor="alice", people=PEOPLE)

    made = World({FR: node("fr"), DE: node("de")}, clock)
    yield made
    made.close()


def names(world: World, receiver: NodeId, state: InboxState) -> set[str]:
    return {item.name for item in inbox.items(world[receiver], every_state=True) if item.state is state}


@pytest.mark.invariant("I9")
def test_they_go_on_exchanging_and_their_histories_are_one(world: World) -> None:
    before = acts(world, FR)
    world.sync_all(2)
    assert_same_feeds(world)
    release(world, "NEW")
    world.sync_all(2)
    assert_same_feeds(world)
    assert "NEW" in names(world, DE, InboxState.CURRENT)
    after = acts(world, FR)
    assert after[: len(before)] == before
    assert [act for act, _ in after[len(before) :]].count("release") == 2  # to DE, and to IN, which has not come yet


@pytest.mark.invariant("I14")
def test_what_was_carried_over_agrees_with_itself_and_with_what_peers_signed(world: World) -> None:
    found = verify.verify(world[FR])
    assert found.findings == ()
    assert found.ledger_rows == 18
    cheated = {finding.place for finding in verify.verify(world[DE]).findings}  # DE sent two entries without account
    assert cheated == {f"entry {seq} of {DE}/feeds/{FR}/1" for seq in (5, 7)}


@pytest.mark.invariant("I8")
def test_what_speaks_against_a_peer_proves_itself(world: World) -> None:
    found = {incident.kind: incident for incident in incidents.all_incidents(world[FR])}
    assert {kind: (incident.peer, incident.proves_itself) for kind, incident in found.items()} == {
        "FORK": (IN, True),
        "EQUIVOCATION": (DE, True),
    }
    assert incidents.all_incidents(world[DE]) == ()


def test_what_was_there_is_there(world: World) -> None:
    assert names(world, FR, InboxState.CURRENT) == {"DE-2026-1", "DE-2026-4", "IN-2026-1"}
    assert names(world, FR, InboxState.WITHDRAWN) == {"DE-2026-2"}
    assert names(world, FR, InboxState.EQUIVOCATION) == {"DE-2026-3"}
    assert inbox.content(world[FR], "DE-2026-1").csaf["document"]["title"] == "A flaw found in Bonn"
    assert names(world, DE, InboxState.CURRENT) == {f"FR-2026-{number:02}" for number in range(1, 13)}
    assert agreements.find(world[DE], AGREEMENT).missing == ()
    disclosed = ledger.rows(world[FR])
    assert len(disclosed) == 15
    assert [row.seq for row in disclosed if row.taken_back is not None] == [16]
    assert [row.facts["name"] for row in disclosed if not row.receipt] == ["FR-2026-15"]


@pytest.mark.invariant("I8")
def test_a_feed_that_was_frozen_stays_so(world: World) -> None:
    with pytest.raises(HeldError, match="FORK"):
        sync.load_state(world[FR], IN)
