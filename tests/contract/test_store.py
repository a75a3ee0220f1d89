"""What the use cases rely on, over every store: SQLite in memory, SQLite in a file, PostgreSQL."""

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, Table, func, insert, make_url, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, StatementError

from federation.errors import ConflictError
from node.store import database, postgresql, sqlite
from node.store.database import one_row, read, scrub, storable, write
from node.store.tables import (
    advisories,
    audit,
    in_entries,
    in_feeds,
    meta,
    out_entries,
    out_feeds,
    own_cards,
    peers,
)
from tests.contract.stores import FILE, NOW, POSTGRESQL, Store, administrator

PEER = "cert.de.example"
SEVERAL = pytest.mark.parametrize("store", [FILE, POSTGRESQL], indirect=True)  # several connections see each other
LARGE = 4 << 20
BIG = 2**63 - 1


def note(tx: Connection, text: str, at: datetime = NOW) -> None:
    database.record(tx, at=at, by="alice", act="test", subject=text)


def notes(engine: Engine) -> list[str]:
    with read(engine) as tx:
        return list(tx.execute(select(audit.c.subject).order_by(audit.c.id)).scalars())


def enrol(tx: Connection, peer: str = PEER) -> None:
    values = {"node": peer, "card": b"card", "card_version": 1, "trusted": 1, "direct": 1, "our_card": 1}
    tx.execute(insert(peers).values(enrolled_at=NOW, enrolled_by="alice", **values))


def feed(tx: Connection, peer: str = PEER) -> int:
    """An outgoing feed to a new peer; its number."""
    enrol(tx, peer)
    values = {"peer": peer, "epoch": 1, "origin": f"{peer}/1", "size": 0, "edge": b"", "receipt_size": 0}
    made = tx.execute(insert(out_feeds).values(opened_at=NOW, **values).returning(out_feeds.c.id))
    number: int = made.scalar_one()
    return number


def entry(tx: Connection, number: int, seq: int, data: bytes | None, **more: Any) -> None:
    values = {"feed": number, "seq": seq, "kind": "presentation", "data": data, "leaf_hash": b"h", "root": b"r", **more}
    tx.execute(insert(out_entries).values(**values))


def note_twice(tx: Connection) -> None:
    """Something that would be kept, and something that cannot be."""
    note(tx, "half")
    tx.execute(insert(meta).values(key="node", value="again"))


class StopError(Exception):
    """Stops a transaction half-way."""


# Transactions


def test_a_transaction_that_fails_leaves_no_trace(store: Store) -> None:
    engine = store.open()
    with write(engine) as tx:
        note(tx, "before")

    def half(tx: Connection) -> None:
        note(tx, "half")
        tx.execute(update(audit).values(subject="changed"))
        raise StopError

    with pytest.raises(StopError), write(engine) as tx:
        half(tx)
    assert notes(engine) == ["before"]


def test_a_statement_that_fails_takes_the_transaction_with_it(store: Store) -> None:
    engine = store.open()
    with pytest.raises(IntegrityError), write(engine) as tx:
        note_twice(tx)
    assert notes(engine) == []


def test_what_a_savepoint_takes_back_is_gone_and_the_rest_stays(store: Store) -> None:
    engine = store.open()
    with write(engine) as tx:
        note(tx, "one")
        with pytest.raises(IntegrityError), tx.begin_nested():
            note_twice(tx)
        inner = tx.begin_nested()
        note(tx, "two")
        inner.rollback()
        with tx.begin_nested():
            note(tx, "three")
    assert notes(engine) == ["one", "three"]


def test_a_reader_can_change_nothing(store: Store) -> None:
    engine = store.open()
    with pytest.raises(DBAPIError), read(engine) as tx:
        note(tx, "x")
    with write(engine) as tx:  # and the connection that it used can
        note(tx, "y")
    assert notes(engine) == ["y"]


@SEVERAL
def test_a_reader_sees_one_state_while_others_commit(store: Store) -> None:
    engine, other = store.open(), store.open()
    count = select(func.count()).select_from(audit)
    with read(engine) as tx:
        assert tx.execute(count).scalar_one() == 0
        with write(other) as writer:
            note(writer, "meanwhile")
            enrol(writer)
        assert tx.execute(count).scalar_one() == 0
        assert tx.execute(select(peers)).all() == []  # a table that it had not looked at before
    assert notes(engine) == ["meanwhile"]


@SEVERAL
def test_what_is_not_committed_is_seen_by_nobody(store: Store) -> None:
    engine, other = store.open(), store.open()
    with write(engine) as tx:
        note(tx, "one")
        assert notes(other) == []
    assert notes(other) == ["one"]


def test_writers_wait_for_each_other_and_lose_nothing(store: Store) -> None:
    """Each reads a number and writes the next one: if two read the same, one of the steps is lost."""
    engine = store.open()
    with write(engine) as tx:
        tx.execute(insert(meta).values(key="count", value="0"))

    def step(engine: Engine) -> None:
        with write(engine) as tx:
            found = tx.execute(select(meta.c.value).where(meta.c.key == "count")).scalar_one()
            tx.execute(update(meta).where(meta.c.key == "count").values(value=str(int(found) + 1)))

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(step, store.open()) for _ in range(40)]:
            done.result()
    with read(engine) as tx:
        assert tx.execute(select(meta.c.value).where(meta.c.key == "count")).scalar_one() == "40"


@SEVERAL
def test_a_writer_that_waits_too_long_is_told_so_and_has_changed_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_TIMEOUT_S", 0.2)
    monkeypatch.setattr(postgresql, "_LOCK_TIMEOUT", "200ms")
    engine, other = store.open(), store.open()
    with write(engine) as tx:
        note(tx, "one")
        with pytest.raises(OperationalError) as caught, write(other) as late:
            note(late, "two")
        assert database.is_busy(caught.value)
    assert notes(other) == ["one"]


@pytest.mark.invariant("I9")
def test_of_two_who_move_a_cursor_from_the_same_place_one_is_told_to_try_again(store: Store) -> None:
    engine, other = store.open(), store.open()
    with write(engine) as tx:
        number = feed(tx)

    def move(engine: Engine, seen: int) -> None:
        with write(engine) as tx:
            moved = tx.execute(
                update(out_feeds).where(out_feeds.c.id == number, out_feeds.c.size == seen).values(size=seen + 1)
            )
            if moved.rowcount:
                entry(tx, number, seen, b"data")
            one_row(moved.rowcount, "the feed")

    def outcome(engine: Engine) -> str:
        try:
            move(engine, 0)
        except ConflictError:
            return "conflict"
        return "moved"

    with ThreadPoolExecutor(2) as threads:
        found = sorted(threads.map(outcome, (engine, other)))
    assert found == ["conflict", "moved"]
    with read(engine) as tx:
        assert tx.execute(select(out_feeds.c.size)).scalar_one() == 1
        assert len(tx.execute(select(out_entries)).all()) == 1


@SEVERAL
def test_what_was_committed_is_there_for_the_next_process(store: Store) -> None:
    first = store.open()
    with write(first) as tx:
        note(tx, "one")
    first.dispose()
    assert notes(store.open()) == ["one"]


# Constraints


@pytest.mark.parametrize(
    "breaks",
    [
        pytest.param(lambda tx, _: enrol(tx), id="a key twice"),
        pytest.param(lambda tx, _: feed_again(tx), id="a second feed of one epoch"),
        pytest.param(lambda tx, number: entry(tx, number, 0, b"again"), id="an entry twice"),
        pytest.param(lambda tx, number: entry(tx, number + 9, 0, b"x"), id="an entry of no feed"),
        pytest.param(lambda tx, number: entry(tx, number, 1, None), id="bytes gone without an eraser"),
        pytest.param(
            lambda tx, number: entry(tx, number, 1, b"x", erased_by=2), id="erased, and the bytes still there"
        ),
        pytest.param(lambda tx, number: entry(tx, number, 1, b"x", kind=None), id="a column without a value"),
        pytest.param(lambda tx, _: advisory(tx, draft={"csaf": {}}, core=b"core"), id="draft and core"),
        pytest.param(lambda tx, _: advisory(tx, draft=None, core=None), id="neither draft nor core"),
        pytest.param(lambda tx, _: tx.execute(peers.delete()), id="a peer that has feeds"),
    ],
)
def test_what_contradicts_itself_is_refused(store: Store, breaks: Any) -> None:
    engine = store.open()
    with write(engine) as tx:
        number = feed(tx)
        entry(tx, number, 0, b"data")
    with pytest.raises(IntegrityError), write(engine) as tx:
        breaks(tx, number)
    with read(engine) as tx:
        assert [tuple(row) for row in tx.execute(select(out_entries.c.seq, out_entries.c.data))] == [(0, b"data")]
        assert tx.execute(select(advisories)).all() == []


def feed_again(tx: Connection) -> None:
    values = {"peer": PEER, "epoch": 1, "origin": "another", "size": 0, "edge": b"", "receipt_size": 0}
    tx.execute(insert(out_feeds).values(opened_at=NOW, **values))


def advisory(tx: Connection, **more: Any) -> None:
    values = {"name": "A", "revision": 1, "title": "T", "handling": {}, "source_digest": b"d", "created_by": "alice"}
    tx.execute(insert(advisories).values(created_at=NOW, **{**values, **more}))


# Values


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2026, 3, 29, 2, 30, 0, 123456, tzinfo=timezone(timedelta(hours=5, minutes=30))),
        datetime(2026, 3, 29, 1, 30, tzinfo=timezone(-timedelta(hours=9, minutes=30))),
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    ],
)
def test_an_instant_comes_back_as_it_was_in_utc(store: Store, moment: datetime) -> None:
    engine = store.open()
    with write(engine) as tx:
        note(tx, "x", moment)
    with read(engine) as tx:
        found = tx.execute(select(audit.c.at)).scalar_one()
    assert found == moment
    assert found.tzinfo is UTC


def test_instants_are_compared_as_instants_whatever_their_zone(store: Store) -> None:
    engine = store.open()
    east, west = timezone(timedelta(hours=14)), timezone(-timedelta(hours=11))
    with write(engine) as tx:
        note(tx, "second", datetime(2026, 1, 1, 0, 0, tzinfo=west))  # 11:00 UTC
        note(tx, "first", datetime(2026, 1, 2, 0, 0, tzinfo=east))  # the day before, 10:00 UTC
    with read(engine) as tx:
        assert list(tx.execute(select(audit.c.subject).order_by(audit.c.at)).scalars()) == ["first", "second"]
        before = select(audit.c.subject).where(audit.c.at < datetime(2026, 1, 1, 10, 30, tzinfo=UTC))
        assert list(tx.execute(before).scalars()) == ["first"]


def test_an_instant_without_a_zone_is_refused(store: Store) -> None:
    with pytest.raises(StatementError, match="time zone"), write(store.open()) as tx:
        note(tx, "x", datetime(2026, 1, 1))  # noqa: DTZ001 - what is refused


@pytest.mark.invariant("I7")
def test_four_mebibytes_come_back_bit_for_bit(store: Store) -> None:
    engine, data = store.open(), os.urandom(LARGE)
    with write(engine) as tx:
        entry(tx, feed(tx), 0, data)
    with read(engine) as tx:
        found = tx.execute(select(out_entries.c.data)).scalar_one()
    assert type(found) is bytes
    assert found == data


def test_every_byte_and_no_byte_are_values(store: Store) -> None:
    engine = store.open()
    with write(engine) as tx:
        number = feed(tx)
        entry(tx, number, 0, bytes(range(256)))
        entry(tx, number, 1, b"")
    with read(engine) as tx:
        assert list(tx.execute(select(out_entries.c.data).order_by(out_entries.c.seq)).scalars()) == [
            bytes(range(256)),
            b"",
        ]


def test_large_numbers_come_back_exactly(store: Store) -> None:
    engine = store.open()
    with write(engine) as tx:
        number = feed(tx)
        tx.execute(update(out_feeds).values(size=BIG, receipt_size=2**53 + 1))
        entry(tx, number, BIG, b"x")
        tx.execute(insert(own_cards).values(version=BIG, document=b"c", installed_at=NOW, installed_by="alice"))
    with read(engine) as tx:
        assert tuple(tx.execute(select(out_feeds.c.size, out_feeds.c.receipt_size)).one()) == (BIG, 2**53 + 1)
        assert tx.execute(select(out_entries.c.seq)).scalar_one() == BIG
        assert tx.execute(select(own_cards.c.version)).scalar_one() == BIG


def test_text_is_sorted_by_its_code_points_everywhere(store: Store) -> None:
    engine = store.open()
    names = ["a", "B", "a-c", "ab", "a.b", "é", "z", "Z", "_", "10", "9", "cert.de.example", "cert-de.example"]
    with write(engine) as tx:
        for name in names:
            enrol(tx, name)
    with read(engine) as tx:
        assert list(tx.execute(select(peers.c.node).order_by(peers.c.node)).scalars()) == sorted(names)


def test_rows_are_numbered_upwards(store: Store) -> None:
    engine = store.open()
    for text in "abc":
        with write(engine) as tx:
            note(tx, text)
    with read(engine) as tx:
        numbers = list(tx.execute(select(audit.c.id).order_by(audit.c.subject)).scalars())
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        {"a": None, "b": [None, True, 1.5, 10**15], "é": "\U0001f512 \u2028 \" ' \\ %s :x"},
        {"nul": "a\0b", "order": {"z": 1, "a": 2}},
        [[1, "ab" * 32, 2], [2, "", 3]],
    ],
)
def test_json_comes_back_as_it_was(store: Store, value: Any) -> None:
    engine = store.open()
    with write(engine) as tx:
        advisory(tx, handling=value, core=b"core")
    with read(engine) as tx:
        row = tx.execute(select(advisories.c.handling, advisories.c.draft)).one()
    assert row.handling == value
    assert list(row.handling) == list(value)
    assert row.draft is None


def test_no_draft_is_null_and_a_draft_that_says_null_is_not(store: Store) -> None:
    engine = store.open()
    with write(engine) as tx:
        advisory(tx, draft=None, core=b"core")
        advisory(tx, name="B", draft={"csaf": None})
    with read(engine) as tx:
        drafts = select(advisories.c.name).where(advisories.c.draft.is_not(None))
        assert list(tx.execute(drafts).scalars()) == ["B"]


def test_text_of_a_peer_is_kept_whatever_it_holds(store: Store) -> None:
    engine = store.open()
    text = "A\0B é \U0001f512 \u202e '; DROP TABLE audit; -- %s %(x)s :y \\"
    with write(engine) as tx:
        note(tx, storable(text))
    assert notes(engine) == [text.replace("\0", "\ufffd")]


@pytest.mark.parametrize("store", [POSTGRESQL], indirect=True)
def test_text_that_was_not_made_storable_stops_nothing(store: Store) -> None:
    engine = store.open()
    with write(engine) as tx:
        note(tx, "A\0B")
        assert tx.execute(select(audit.c.id).where(audit.c.subject == "A\0B")).all()
    assert notes(engine) == ["A\ufffdB"]


# Erasure


@pytest.fixture
def erasable(store: Store) -> tuple[Engine, int]:
    """A store with one entry that stays, and others whose bytes are known."""
    engine = store.open()
    with write(engine) as tx:
        enrol(tx)
        values = {"peer": PEER, "epoch": 1, "origin": "o", "size": 1, "edge": b"", "head": b"", "newest": b""}
        more = {"pending": [], "cosigned": 0, "restored": 0}
        number = tx.execute(insert(in_feeds).values(**values, **more).returning(in_feeds.c.id)).scalar_one()
        kept = {"feed": number, "leaf_hash": b"h", "outcome": "admitted", "received_at": NOW}
        for seq in range(9):
            tx.execute(insert(in_entries).values(seq=seq, data=NEEDLE * 8 if seq else b"something else " * 8, **kept))
    return engine, number


NEEDLE = b"NEEDLE-IN-THE-FILES-8d1f"


def erase(engine: Engine, number: int) -> None:
    with write(engine) as tx:
        tx.execute(update(in_entries).where(in_entries.c.feed == number, in_entries.c.seq > 0).values(data=None))
    scrub(engine)


def held_in_files(store: Store) -> bool:
    """Whether the bytes stand anywhere in the files of the database; in those of the tables, on a server."""
    assert store.files is not None
    if store.kind == POSTGRESQL:
        with administrator() as connection:
            connection.execute("CHECKPOINT")
            name = make_url(str(store.where)).database
            row = connection.execute("SELECT oid FROM pg_database WHERE datname = %s", (name,)).fetchone()
        assert row is not None
        found = store.files.glob(f"base/{row[0]}/*")
    else:
        found = store.files.glob("store.db*")
    return any(NEEDLE in path.read_bytes() for path in found if path.is_file())


def test_what_was_erased_cannot_be_read_any_more(store: Store, erasable: tuple[Engine, int]) -> None:
    engine, number = erasable
    erase(engine, number)
    with read(engine) as tx:
        rows = tx.execute(select(in_entries.c.data).order_by(in_entries.c.seq)).scalars().all()
    assert rows == [b"something else " * 8, *[None] * 8]


@SEVERAL
def test_what_was_erased_is_not_in_the_files_either(store: Store, erasable: tuple[Engine, int]) -> None:
    assert held_in_files(store)  # or this test could not fail
    erase(*erasable)
    assert not held_in_files(store)


@SEVERAL
@pytest.mark.parametrize("looked_at", [in_entries, meta], ids=str)
def test_what_could_not_be_scrubbed_is_scrubbed_the_next_time(
    store: Store, erasable: tuple[Engine, int], monkeypatch: pytest.MonkeyPatch, looked_at: Table
) -> None:
    monkeypatch.setattr(postgresql, "_SCRUB_PATIENCE", "100ms")
    monkeypatch.setattr(sqlite, "_SCRUB_PATIENCE_S", 0.1)
    engine, number = erasable
    with read(store.open()) as tx:
        tx.execute(select(looked_at)).all()  # somebody sees the state before
        erase(engine, number)
    assert held_in_files(store)
    scrub(engine)
    assert not held_in_files(store)


@pytest.mark.parametrize("store", [POSTGRESQL], indirect=True)
def test_tables_are_rewritten_only_when_something_was_erased(store: Store, erasable: tuple[Engine, int]) -> None:
    engine, number = erasable

    def place() -> Any:
        with read(engine) as tx:
            return tx.exec_driver_sql("SELECT pg_relation_filepath('in_entries')").scalar_one()

    untouched = place()
    scrub(engine)
    assert place() == untouched
    erase(engine, number)
    rewritten = place()
    assert rewritten != untouched
    scrub(engine)
    assert place() == rewritten
