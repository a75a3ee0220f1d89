"""Receiving, as a hostile sender and a failing machine would have it: nothing lost, nothing twice, nothing believed."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from federation import feed, merkle
from federation.base64url import from_b64url
from federation.checkpoint import open_checkpoint
from federation.entries import AgreementOffer, ErasedItem, Withdrawal
from federation.errors import (
    BadPageError,
    ConflictError,
    ErasureError,
    ForkError,
    GapError,
    HeldError,
    RemoteError,
    ReorderedError,
    RepeatedError,
    RollbackError,
    StaleError,
    SuspectedForkError,
    UnreachableError,
    WrongFeedError,
)
from federation.feed import Ask, PageBytes
from federation.model import Role
from federation.strictjson import decode_object
from node.desk.inbox import Disposition
from node.exchange import sync
from node.records import alarms, ledger
from node.records.alarms import Alarm
from node.store.database import read
from node.store.tables import audit, in_entries, in_feeds, incidents
from node.store.tables import inbox as inbox_table
from tests.nodes import (
    DE,
    FR,
    ForgedFeed,
    LyingLink,
    World,
    agree,
    arrived,
    entry,
    held_by_sender,
    history,
    make_world,
    release,
    reopen,
    rows,
)

ORIGIN = f"{FR}/feeds/{DE}/1"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path)
    agree(made)
    yield made
    made.close()


def snapshot(world: World) -> tuple[object, ...]:
    """All that DE holds of the feed from FR."""
    with read(world[DE].engine) as tx:
        row = tx.execute(select(in_feeds.c.size, in_feeds.c.edge, in_feeds.c.head, in_feeds.c.newest)).one()
        return (*row, *tx.execute(select(in_entries)).all(), *tx.execute(select(inbox_table)).all())


def same_root(world: World) -> bool:
    edge = sync.load_state(world[DE], FR).state.edge
    return edge.root() == merkle.root(
        [i.leaf_hash if isinstance(i, ErasedItem) else merkle.leaf_hash(i) for i in history(world[FR], DE)]
    )


@pytest.mark.invariant("I9")
def test_an_honest_sync_brings_everything_once_and_ends_with_a_receipt(world: World) -> None:
    release(world, "A", "B", "C")
    report = world.sync(DE, FR)
    assert report.counts == {Disposition.ADMITTED: 3}
    assert report.entries == 3
    assert arrived(world) == ["A", "B", "C"]
    assert held_by_sender(world) == len(history(world[FR], DE))
    before = snapshot(world)
    assert world.sync(DE, FR).counts == {}
    assert snapshot(world) == before
    with read(world[DE].engine) as tx:
        kept = [row.data for row in tx.execute(select(in_entries).order_by(in_entries.c.seq))]
    assert kept == history(world[FR], DE)  # I7: byte for byte
    assert same_root(world)


# Rewritten pages: honest sync, attack, state unchanged, honest again


def _drop(page: PageBytes) -> PageBytes:
    return replace(page, items=page.items[1:])


REWRITES: dict[str, tuple[type[RemoteError], Callable[[ForgedFeed, int], PageBytes]]] = {
    "the first entry left out": (
        GapError,
        lambda f, n: PageBytes(f.items[n + 1 : n + 2], f.head(n + 1), f.latest(n + 3)),
    ),
    "an entry repeated": (RepeatedError, lambda f, n: PageBytes(f.items[n - 1 : n], f.head(n + 1), f.latest(n + 3))),
    "two exchanged": (
        ReorderedError,
        lambda f, n: PageBytes((f.items[n + 1], f.items[n], f.items[n + 2]), f.head(n + 3), f.latest(n + 3)),
    ),
    "an entry of another feed": (
        WrongFeedError,
        lambda f, n: PageBytes((entry(f"{FR}/feeds/{DE}/2", n, AgreementOffer(b"x")),), f.head(n + 1), f.latest(n + 3)),
    ),
    "hashes whose eraser does not name them": (
        ErasureError,
        lambda f, n: PageBytes((_hash(f, n), *f.items[n + 1 :]), f.head(n + 3), f.latest(n + 3)),
    ),
}


def _hash(forged: ForgedFeed, seq: int) -> ErasedItem:
    item = forged.items[seq]
    assert isinstance(item, bytes)
    return ErasedItem(seq, merkle.leaf_hash(item), seq + 1)


@pytest.mark.invariant("I8")
@pytest.mark.parametrize("name", sorted(REWRITES))
def test_a_rewritten_page_changes_nothing(world: World, name: str) -> None:
    error, rewrite = REWRITES[name]
    world.sync(DE, FR)
    release(world, "A", "B", "C")
    before, count = snapshot(world), sync.load_state(world[DE], FR).state.cursor
    forged = ForgedFeed(world[FR], DE, history(world[FR], DE))
    with pytest.raises(error):
        sync.sync(world[DE], FR, LyingLink(forged, lambda _: rewrite(forged, count)))
    assert snapshot(world) == before
    assert world.sync(DE, FR).counts == {Disposition.ADMITTED: 3}
    assert arrived(world) == ["A", "B", "C"]


@pytest.mark.invariant("I8")
def test_a_page_that_does_not_fit_is_asked_for_once_more_and_then_suspected(world: World) -> None:
    world.sync(DE, FR)
    release(world, "A", "B")
    link = LyingLink(world.link(DE, FR), _drop)
    with pytest.raises(SuspectedForkError):
        sync.sync(world[DE], FR, link)
    assert link.pulls == 2
    assert len(link.asked) == 2
    assert arrived(world) == []
    with pytest.raises(HeldError, match="SUSPECTED_FORK"):
        world.sync(DE, FR)


@pytest.mark.invariant("I8")
def test_a_page_that_was_broken_once_is_mended_by_asking_again(world: World) -> None:
    release(world, "A", "B")
    link = LyingLink(world.link(DE, FR))
    link.rewrite = lambda page: _drop(page) if link.pulls == 1 else page
    assert sync.sync(world[DE], FR, link).counts == {Disposition.ADMITTED: 2}


@pytest.mark.invariant("I8")
@pytest.mark.parametrize("silent", ["at the question", "at the second try"])
def test_a_sender_that_falls_silent_after_a_bad_page_has_sent_one(world: World, silent: str) -> None:
    class Silent(LyingLink):
        """Falls silent after its first page."""

        def pull(self, ask: Ask) -> PageBytes:
            if self.pulls:
                raise UnreachableError("the line was cut")
            return super().pull(ask)

        def checkpoint(self, origin: str, size: int) -> bytes:
            if silent == "at the question":
                raise UnreachableError("the line was cut")
            return super().checkpoint(origin, size)

    def link() -> Silent:
        return Silent(world.link(DE, FR), lambda page: replace(page, items=page.items[:-1]))

    release(world, "A")
    before = snapshot(world)
    with pytest.raises(BadPageError):
        sync.sync(world[DE], FR, link())
    assert snapshot(world) == before
    with read(world[DE].engine) as tx:
        told = tx.execute(select(audit.c.detail).where(audit.c.act == "feed.refuse")).scalars().all()
        assert [detail.split()[0] for detail in told] == ["BAD_PAGE"]
    assert [alarm.kind for alarm in alarms.all_alarms(world[DE])] == [Alarm.SUSPECTED_FORK]
    if silent == "at the second try":  # the next one is the second
        with pytest.raises(SuspectedForkError):
            sync.sync(world[DE], FR, link())
    else:
        world.sync(DE, FR)
        assert same_root(world)


def _fork(world: World) -> ForgedFeed:
    """FR, with its real key, tells another history of what DE holds already."""
    items = history(world[FR], DE)
    return ForgedFeed(world[FR], DE, [entry(ORIGIN, 0, AgreementOffer(b"rewritten")), *items[1:]])


@pytest.mark.invariant("I8")
def test_a_fork_freezes_the_feed_and_keeps_the_notes_that_prove_it(world: World) -> None:
    release(world, "A")
    world.sync(DE, FR)
    before = snapshot(world)
    with pytest.raises(ForkError):
        sync.sync(world[DE], FR, _fork(world))
    assert snapshot(world) == before
    with read(world[DE].engine) as tx:
        row = tx.execute(select(in_feeds).where(in_feeds.c.peer == FR)).one()
        assert tx.execute(select(audit.c.detail).where(audit.c.act == "feed.frozen")).scalars().all() == ["FORK"]
        evidence = decode_object(tx.execute(select(incidents.c.evidence)).scalar_one(), max_bytes=1 << 20, what="")
    (key,) = world[FR].card.note_keys(Role.FEED, ORIGIN, world.clock())
    heads = [open_checkpoint(from_b64url(note), ORIGIN, key) for note in evidence["heads"]]
    assert len({(head.size, head.root) for head in heads}) > len({head.size for head in heads})  # one size, two roots
    assert (row.frozen, row.problem) == ("FORK", "FORK")
    release(world, "B")
    with pytest.raises(HeldError, match="FORK"):
        world.sync(DE, FR)  # the honest feed is frozen too, until two people look
    reopen(world, DE)
    with pytest.raises(HeldError, match="FORK"):
        world.sync(DE, FR)


@pytest.mark.invariant("I8")
def test_a_sender_that_lost_entries_is_a_rollback(world: World) -> None:
    release(world, "A", "B")
    world.sync(DE, FR)
    before = snapshot(world)
    with pytest.raises(RollbackError):
        sync.sync(world[DE], FR, ForgedFeed(world[FR], DE, history(world[FR], DE)[:-1]))
    assert snapshot(world) == before
    with pytest.raises(HeldError, match="ROLLBACK"):
        world.sync(DE, FR)


def test_an_old_newest_head_is_stale_and_what_came_with_it_is_kept(world: World) -> None:
    release(world, "A")
    limit = sync.STALE_AFTER_POLLS * world[DE].poll_interval_s
    with pytest.raises(StaleError):
        sync.sync(world[DE], FR, ForgedFeed(world[FR], DE, history(world[FR], DE), latest_age_s=limit + 1))
    assert arrived(world) == ["A"]
    with read(world[DE].engine) as tx:
        assert tx.execute(select(in_feeds.c.problem).where(in_feeds.c.peer == FR)).scalar_one() == "STALE"
    world.sync(DE, FR)
    with read(world[DE].engine) as tx:
        assert tx.execute(select(in_feeds.c.problem).where(in_feeds.c.peer == FR)).scalar_one() is None


@pytest.mark.invariant("I8")
def test_no_receipt_is_given_while_an_eraser_is_outstanding(world: World) -> None:
    world.sync(DE, FR)
    release(world, "A", "B")
    items = history(world[FR], DE)
    last = len(items)
    items[last - 1] = _erased(items[last - 1], last - 1, last)
    before = held_by_sender(world)
    waiting = ForgedFeed(world[FR], DE, items)
    assert sync.sync(world[DE], FR, waiting).counts == {Disposition.ADMITTED: 1, Disposition.ERASED: 1}
    assert waiting.receipts[-1] == b""
    assert held_by_sender(world) == before
    reopen(world, DE)  # it is remembered
    with_eraser = ForgedFeed(world[FR], DE, [*items, entry(ORIGIN, last, Withdrawal((last - 1,), "r"))])
    assert sync.sync(world[DE], FR, with_eraser).counts == {Disposition.CONTROL: 1}
    assert with_eraser.receipts[0] == b""
    assert with_eraser.receipts[-1] != b""


def _erased(item: bytes | ErasedItem, seq: int, by: int) -> ErasedItem:
    assert isinstance(item, bytes)
    return ErasedItem(seq, merkle.leaf_hash(item), by)


# Crashes (I9)


@pytest.mark.invariant("I9")
def test_a_reply_lost_after_it_was_applied_costs_nothing(world: World) -> None:
    release(world, "A", "B")
    for lost in range(1, 4):
        link = LyingLink(world.link(DE, FR), lost=lost)
        with pytest.raises(UnreachableError):
            sync.sync(world[DE], FR, link)
        assert arrived(world) == []
    assert world.sync(DE, FR).counts == {Disposition.ADMITTED: 2}
    link = LyingLink(world.link(DE, FR))
    link.rewrite = lambda page: page
    assert sync.sync(world[DE], FR, link).counts == {}
    assert same_root(world)


@pytest.mark.invariant("I9")
def test_a_crash_between_commit_and_receipt_loses_and_repeats_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = held_by_sender(world)
    release(world, "A", "B")

    def crash_after_commit(*arguments: Any) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sync, "_receipt", crash_after_commit)
        with pytest.raises(KeyboardInterrupt):
            world.sync(DE, FR)
    reopen(world, DE)
    assert arrived(world) == ["A", "B"]
    assert held_by_sender(world) == before
    assert [row.receipt for row in ledger.rows(world[FR])] == [False, False]
    assert world.sync(DE, FR).counts == {}
    assert [row.receipt for row in ledger.rows(world[FR])] == [True, True]
    assert arrived(world) == ["A", "B"]


@pytest.mark.invariant("I9")
@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_crash_inside_the_commit_leaves_nothing_half_done(
    world: World, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    world.sync(DE, FR)
    release(world, "A", "B", "C")
    before = snapshot(world)
    stored: list[int] = []
    real = sync._store

    def crash(*arguments: Any) -> None:
        if len(stored) == after:
            raise KeyboardInterrupt
        real(*arguments)
        stored.append(1)
        if len(stored) == after == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sync, "_store", crash)
        with pytest.raises(KeyboardInterrupt):
            world.sync(DE, FR)
    reopen(world, DE)
    assert snapshot(world) == before
    assert world.sync(DE, FR).counts == {Disposition.ADMITTED: 3}
    assert arrived(world) == ["A", "B", "C"]


@pytest.mark.invariant("I9")
def test_two_syncs_at_once_do_not_both_win(world: World) -> None:
    release(world, "A", "B")
    link = LyingLink(world.link(DE, FR))

    def meanwhile(page: PageBytes) -> PageBytes:
        world.sync(DE, FR)
        return page

    link.rewrite = meanwhile
    assert sync.sync(world[DE], FR, link).counts == {}  # the other one won, this one goes on from there
    assert arrived(world) == ["A", "B"]
    assert len(rows(world)) == len(history(world[FR], DE))
    assert same_root(world)


@pytest.mark.invariant("I9")
def test_a_page_is_committed_only_where_it_was_verified(world: World) -> None:
    release(world, "A", "B")
    de = world[DE]
    held = sync.load_state(de, FR)
    state = held.state
    page = world.link(DE, FR).pull(Ask(state.origin, state.cursor, b"", state.newest))
    verified = feed.verify_page(state, page, world[FR].card.note_keys(Role.FEED, state.origin, world.clock()))
    world.sync(DE, FR)
    before = snapshot(world)
    with pytest.raises(ConflictError):
        sync._commit(de, FR, held, verified, 0)
    assert snapshot(world) == before


@pytest.mark.invariant("I9")
def test_a_freeze_while_a_page_is_under_way_is_respected(world: World) -> None:
    release(world, "A")
    forged = _fork(world)
    link = LyingLink(world.link(DE, FR))

    def meanwhile(page: PageBytes) -> PageBytes:
        with pytest.raises(ForkError):
            sync.sync(world[DE], FR, forged)
        return page

    link.rewrite = meanwhile
    with pytest.raises(HeldError, match="FORK"):
        sync.sync(world[DE], FR, link)
    assert arrived(world) == []


@pytest.mark.invariant("I9")
def test_small_pages_come_in_order(world: World) -> None:
    release(world, "A", "B", "C")
    link = world.link(DE, FR)
    link.page = 1
    report = sync.sync(world[DE], FR, link)
    assert (report.pages, report.counts) == (4, {Disposition.ADMITTED: 3})
    assert arrived(world) == ["A", "B", "C"]
    assert all(receipt for receipt in link.receipts[1:])
