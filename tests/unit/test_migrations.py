"""From one schema to the next: the same tables however they were made, nothing lost, and never half of it."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, select, text

from federation.base64url import from_b64url
from federation.checkpoint import open_checkpoint
from federation.keyring import open_card
from federation.model import Role
from federation.strictjson import decode_object
from node import main
from node.desk.inbox import InboxState
from node.records import ledger as book
from node.store import database, schema
from node.store.migrations import schema_1
from node.store.tables import (
    advisories,
    alarms,
    in_entries,
    in_feeds,
    inbox,
    incidents,
    ledger,
    meta,
    metadata,
    out_entries,
    out_feeds,
    own_cards,
    peer_cards,
    peers,
)
from tests.contract import version_1
from tests.contract.stores import FILE, NOW, POSTGRESQL, new_database, new_store
from tests.contract.version_1 import rows
from tests.nodes import DE, FR, IN

ROOT = Path(__file__).parents[2]
KEPT = ("agreements", "cases", "audit")  # tables that did not change
BOTH = (FILE, POSTGRESQL)


@pytest.fixture(params=BOTH)
def old_home(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The home of FR in schema 1, its database in a file and on a server."""
    return version_1.make_home(tmp_path, kind=request.param)


# The schema


def shape(tx: Connection) -> dict[str, Any]:
    """Every table with its columns, keys, constraints and indexes, as the database itself tells them."""
    seen = inspect(tx)
    nameless = tx.dialect.name == "sqlite"  # the name of a reference that stands beside its column is not told there

    def by_name(found: Any) -> list[Any]:
        return sorted((repr(sorted(item.items(), key=str)) for item in found), key=str)

    return {
        table: {
            "columns": by_name(
                {"name": c["name"], "type": repr(c["type"]), "nullable": c["nullable"], "default": c["default"]}
                for c in seen.get_columns(table)
            ),
            "key": seen.get_pk_constraint(table),
            "references": by_name({**key, "name": nameless or key["name"]} for key in seen.get_foreign_keys(table)),
            "unique": by_name(seen.get_unique_constraints(table)),
            "checks": by_name(seen.get_check_constraints(table)),
            "indexes": by_name(seen.get_indexes(table)),
        }
        for table in seen.get_table_names()
        if table != "alembic_version"
    }


def made_directly(kind: str, folder: Path) -> dict[str, Any]:
    """The shape of the tables that the node works with, made without any migration."""
    engine = database.open_engine(new_database() if kind == POSTGRESQL else folder / "direct.db")
    with database.write(engine) as tx:
        metadata.create_all(tx)
        found = shape(tx)
    engine.dispose()
    return found


def test_the_revisions_are_a_chain_that_ends_in_ours() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    scripts = ScriptDirectory.from_config(config).walk_revisions()
    assert [(script.revision, script.down_revision) for script in scripts] == [("0002", "0001"), ("0001", None)]
    assert schema.REVISIONS == ("0001", "0002")


@pytest.mark.parametrize("kind", BOTH)
def test_a_new_database_has_the_tables_that_the_node_works_with(kind: str, tmp_path: Path) -> None:
    with new_store(kind, tmp_path) as store, database.read(store.open()) as tx:
        assert compare_metadata(MigrationContext.configure(tx), metadata) == []
        assert shape(tx) == made_directly(kind, tmp_path)
        assert schema.revision(tx) == schema.REVISIONS[-1]


def test_an_upgraded_database_has_the_same_tables(old_home: Path, tmp_path: Path) -> None:
    main.upgrade_home(old_home, keep_copy=False)
    engine = version_1.engine_of(old_home)
    with database.read(engine) as tx:
        assert compare_metadata(MigrationContext.configure(tx), metadata) == []
        assert shape(tx) == made_directly(FILE if engine.name == "sqlite" else POSTGRESQL, tmp_path)
        assert database.faults(tx) is None
    engine.dispose()


def test_the_comparison_would_notice_a_difference(tmp_path: Path) -> None:
    with new_store(FILE, tmp_path) as store, database.write(store.open()) as tx:
        tx.execute(text("ALTER TABLE audit ADD COLUMN more VARCHAR"))
        assert compare_metadata(MigrationContext.configure(tx), metadata)
        assert shape(tx) != made_directly(FILE, tmp_path)


def test_the_first_revision_makes_what_the_first_version_made(tmp_path: Path) -> None:
    engine = database.open_engine(tmp_path / "one.db")
    with database.write(engine) as tx:
        schema.migrate(tx, at=NOW, to="0001")
        made = shape(tx)
    engine.dispose()
    old = database.open_engine(version_1.make_home(tmp_path) / main.DATABASE_FILE)
    with database.read(old) as tx:
        assert made == shape(tx)
        assert schema.revision(tx) == "0001"  # recognised without a stamp
    old.dispose()


# What is carried over


def before(name: str) -> Any:
    """The rows of a table as the first version had them."""
    engine = database.open_engine(database.MEMORY)
    with database.write(engine) as tx:
        schema_1.metadata.create_all(tx)
        for line in version_1.dump("fr").split(";\n"):
            if line.lstrip("\n").startswith("INSERT"):
                tx.connection.driver_connection.execute(line)  # type: ignore[union-attr]  # it is connected
        table = schema_1.metadata.tables[name]
        found = tx.execute(select(table).order_by(*table.primary_key.columns)).all()
    engine.dispose()
    return found


@pytest.fixture
def upgraded(old_home: Path) -> Iterator[Engine]:
    """The database of FR after the upgrade."""
    main.upgrade_home(old_home, keep_copy=False)
    engine = version_1.engine_of(old_home)
    yield engine
    engine.dispose()


def test_what_did_not_change_is_as_it_was(upgraded: Engine) -> None:
    for name in KEPT:
        found = rows(upgraded, metadata.tables[name])
        assert [tuple(row) for row in found if getattr(row, "act", "") != "database.upgrade"] == [
            tuple(row) for row in before(name)
        ]
        assert before(name)
    now = {row.id: row._asdict() for row in rows(upgraded, advisories)}
    assert [{**row._asdict(), "recall": None} for row in before("advisories")] == list(now.values())


def test_peers_keep_their_cards_and_are_known_to_hold_ours(upgraded: Engine) -> None:
    old = {row.node: row for row in before("peers")}
    assert set(old) == {DE, IN}
    for row in rows(upgraded, peers):
        said = row._asdict()
        assert (said.pop("direct"), said.pop("our_card")) == (1, 1)
        assert said == old[row.node]._asdict()
    assert [(row.node, row.version, row.document, row.taken_at) for row in rows(upgraded, peer_cards)] == [
        (row.node, row.card_version, row.card, row.enrolled_at) for row in old.values()
    ]


def test_feeds_get_a_number_and_an_epoch_and_every_entry_follows_its_feed(upgraded: Engine) -> None:
    for feeds, entries, old_feeds, old_entries in (
        (out_feeds, out_entries, "out_feeds", "out_entries"),
        (in_feeds, in_entries, "in_feeds", "in_entries"),
    ):
        numbers = {row.peer: row.id for row in rows(upgraded, feeds)}
        assert set(numbers) == {DE, IN}
        assert len(set(numbers.values())) == 2
        kept = {row.peer: row for row in before(old_feeds)}
        for row in rows(upgraded, feeds):
            said, was = row._asdict(), kept[row.peer]._asdict()
            assert said["epoch"] == 1
            assert {name: said[name] for name in was if name != "evidence"} == {
                name: value for name, value in was.items() if name != "evidence"
            }
        now = {(row.feed, row.seq): row._asdict() for row in rows(upgraded, entries)}
        was = {(numbers[row.peer], row.seq): row._asdict() for row in before(old_entries)}
        assert {key: {name: now[key][name] for name in row if name != "peer"} for key, row in was.items()} == {
            key: {name: value for name, value in row.items() if name != "peer"} for key, row in was.items()
        }
        assert len(now) == len(was) > 10


def test_what_follows_from_a_feed_is_told(upgraded: Engine) -> None:
    enrolled = {row.node: row.enrolled_at for row in before("peers")}
    for row in rows(upgraded, out_feeds):
        assert (row.opened_at, row.shown_to, row.shown) == (enrolled[row.peer], None, None)
    for row in rows(upgraded, in_feeds):
        assert (row.cosigned, row.restored, row.offered_epoch) == (row.size, 0, None)


def test_the_inbox_says_when_the_origin_signed(upgraded: Engine) -> None:
    (number,) = [row.id for row in rows(upgraded, in_feeds) if row.peer == DE]
    old = {row.id: row for row in before("inbox")}
    found = rows(upgraded, inbox)
    assert len(found) == len(old) == 6
    for row in found:
        said, was = row._asdict(), old[row.id]._asdict()
        assert {name: said[name] for name in was} == was
        assert (row.read_at, row.assigned_to, row.actioned_at) == (None, None, None)
        assert (row.feed == number) == (row.peer == DE)
    disputed = [row.issued_at for row in found if row.state == InboxState.EQUIVOCATION]
    assert (disputed[1] - disputed[0]).total_seconds() == 1  # as the two cores say
    (taken_back,) = [row for row in found if row.state == InboxState.WITHDRAWN]
    assert taken_back.issued_at == taken_back.received_at  # its core is gone


@pytest.mark.invariant("I14")
def test_every_disclosure_is_a_row_of_the_chained_ledger(upgraded: Engine) -> None:
    found, digest = rows(upgraded, ledger), book.GENESIS
    for number, row in enumerate(found, start=1):
        digest = hashlib.sha256(digest + row.record).digest()
        said = book.facts_of(row.record)
        assert (row.id, row.digest, said["row"]) == (number, digest, number)
        assert (said["act"], said["peer"], said["seq"], said["by"]) == (row.kind, row.peer, row.seq, row.by)
        assert said["carried_from_schema"] == 1
    old = before("ledger")
    released = {(row.peer, row.seq): book.facts_of(row.record) for row in found if row.kind == book.Act.RELEASE}
    assert len(released) == len(old) == 15
    leaves = {(row.peer, row.seq): row for row in before("out_entries")}
    for row in old:
        said = released[row.peer, row.seq]
        assert said["core_digest"] == row.core_digest.hex()
        assert said["agreement"] == row.agreement_digest.hex()
        assert said["elements"] == row.elements
        assert said["leaf_hash"] == leaves[row.peer, row.seq].leaf_hash.hex()
        assert (said["purposes"] is None) == (leaves[row.peer, row.seq].data is None)
        assert (said["origin"], said["revision"]) == (FR, 1)
    assert {said["name"] for said in released.values()} >= {"FR-2026-01", "FR-2026-12", "FR-2026-15"}
    (back,) = [row for row in found if row.kind == book.Act.WITHDRAWAL]
    assert (back.at, back.seq, book.facts_of(back.record)["entries"]) == (
        max(row.withdrawn_at for row in old if row.withdrawn_at is not None).replace(microsecond=0),
        17,
        [16],
    )
    receipts = {row.peer: book.facts_of(row.record) for row in found if row.kind == book.Act.RECEIPT}
    assert {peer: said["size"] for peer, said in receipts.items()} == {DE: 18, IN: 3}
    held = {row.peer: row.receipt for row in before("out_feeds")}
    assert {peer: from_b64url(said["receipt"]) for peer, said in receipts.items()} == held
    assert [row.at for row in found] == sorted(row.at for row in found)


@pytest.mark.invariant("I8")
def test_a_frozen_feed_is_an_incident_whose_heads_prove_it(upgraded: Engine) -> None:
    (incident,) = [row for row in rows(upgraded, incidents) if row.kind == "FORK"]
    origin = f"{IN}/feeds/{FR}/1"
    assert (incident.kind, incident.peer, incident.subject, incident.resolved_at) == ("FORK", IN, origin, None)
    evidence = decode_object(incident.evidence, max_bytes=1 << 20, what="evidence")
    (card,) = [row.card for row in before("peers") if row.node == IN]
    assert from_b64url(evidence["card"]) == card
    (key,) = open_card(card).note_keys(Role.FEED, origin, version_1.clock())
    ours, theirs = (open_checkpoint(from_b64url(head), origin, key) for head in evidence["heads"])
    assert ours.size == theirs.size
    assert ours.root != theirs.root
    (alarm,) = [row for row in rows(upgraded, alarms) if row.kind == "FORK"]
    assert (alarm.subject, alarm.first_at, alarm.acked_at) == (IN, incident.opened_at, None)


@pytest.mark.invariant("I12")
def test_two_documents_under_one_revision_are_an_incident_that_holds_both(upgraded: Engine) -> None:
    (incident,) = [row for row in rows(upgraded, incidents) if row.kind == "EQUIVOCATION"]
    assert (incident.peer, incident.subject, incident.resolved_at) == (DE, "DE-2026-3/1", None)
    evidence = decode_object(incident.evidence, max_bytes=1 << 20, what="evidence")
    disputed = {row.core_digest for row in before("inbox") if row.state == InboxState.EQUIVOCATION}
    assert {hashlib.sha256(core.encode()).digest() for core in evidence["cores"]} == disputed
    assert len(disputed) == 2
    assert [row.subject for row in rows(upgraded, alarms) if row.kind == "EQUIVOCATION"] == [DE]


def test_the_own_card_moves_from_its_file_into_the_database(tmp_path: Path) -> None:
    home = version_1.make_home(tmp_path)
    document = (home / "card.json").read_bytes()
    main.upgrade_home(home, keep_copy=False)
    assert not (home / "card.json").exists()
    node = main.open_node(home)
    (row,) = rows(node.engine, own_cards)
    assert (row.version, row.document, row.installed_at) == (1, document, node.card.issued_at)
    (feed,) = (key.public for key in node.card.keys if key.role is Role.FEED)
    assert node.keys.signer(Role.FEED, node.card, version_1.clock()).public == feed
    assert dict(tuple(row) for row in rows(node.engine, meta)) == {"node": FR}
    node.engine.dispose()


def test_new_rows_get_numbers_that_are_free(upgraded: Engine) -> None:
    with database.write(upgraded) as tx:
        for table in (inbox, out_feeds, in_feeds, incidents, alarms):
            values = {**tx.execute(select(table).order_by(table.c.id.desc()).limit(1)).one()._mapping}
            highest = values.pop("id")
            changed = {name: f"{values[name]} again" for name in ("origin", "subject") if name in values}
            fresh = {"epoch": 2} if "epoch" in values else {"seq": 0} if "seq" in values else {}
            made = tx.execute(table.insert().values({**values, **changed, **fresh}).returning(table.c.id)).scalar_one()
            assert made > highest
