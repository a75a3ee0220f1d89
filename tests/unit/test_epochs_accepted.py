"""A receiver goes over to a new epoch only by two people, and only where it hides nothing."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from federation import checkpoint, entries, merkle
from federation.checkpoint import Checkpoint
from federation.entries import AgreementOffer, ErasedItem, NewEpoch, Withdrawal
from federation.errors import (
    ConflictError,
    EpochError,
    ErasureError,
    ForkError,
    HeldError,
    MalformedError,
    NotAllowedError,
    RemoteError,
    RollbackError,
    UsageError,
)
from federation.feed import Ask, PageBytes
from federation.model import Role
from node import acts
from node.desk.inbox import Disposition, InboxState
from node.exchange import epochs, sync
from node.exchange.epochs import Standing
from node.home.context import Node
from node.peering import feeds
from node.records import approvals
from node.records.alarms import Alarm
from node.store.database import read, write
from node.store.tables import audit, in_feeds, incidents
from tests.copies import accept_epoch, open_epoch, put_back, save
from tests.epochs import approve, ask_to_accept, bodies, current, found, go_on, item, lose, offered, refused
from tests.nodes import (
    DE,
    FR,
    ForgedFeed,
    World,
    agree,
    arrived,
    entry,
    make_world,
    release,
    reopen,
)

pytestmark = pytest.mark.invariant("I16")
ORIGIN = f"{FR}/feeds/{DE}/1"
SECOND = f"{FR}/feeds/{DE}/2"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path)
    agree(made)
    release(made, "A")
    made.sync_all()
    yield made
    made.close()


class Saying:
    """A sender that says which epoch is current, and nothing else unless `more` is given."""

    def __init__(self, epoch: int, **more: Any) -> None:
        self.page = PageBytes((), **{"checkpoint": b"", "latest": b"", "epoch": epoch, **more})

    def pull(self, _ask: Ask) -> PageBytes:
        return self.page

    def checkpoint(self, _origin: str, _size: int) -> bytes:
        raise AssertionError


@pytest.mark.parametrize("epoch", [1, 1 << 31])
def test_an_epoch_that_cannot_follow_is_not_noted(world: World, epoch: int) -> None:
    with pytest.raises(MalformedError, match=f"epoch {epoch}"):
        sync.sync(world[DE], FR, Saying(epoch))
    with pytest.raises(UsageError, match="opened no epoch"):
        epochs.accepting(world[DE], FR, "why")
    world.sync(DE, FR)


def test_a_page_that_names_another_epoch_holds_nothing_else(world: World) -> None:
    with pytest.raises(MalformedError, match="holds more than that"):
        sync.sync(world[DE], FR, Saying(2, latest=b"x"))


def test_nothing_is_taken_from_an_epoch_that_nobody_here_accepted(world: World, tmp_path: Path) -> None:
    lose(world, tmp_path)
    release(world, "B")
    refused(world)
    open_epoch(world[FR], DE)
    de = world[DE]
    for _ in range(2):
        assert offered(world) == current(world).epoch
    number = ask_to_accept(de)
    with pytest.raises(NotAllowedError, match="another person"):
        approvals.settle(de, number, acts.registry(), approve=True)
    assert offered(world) == current(world).epoch
    assert "B" not in arrived(world)
    approve(de, number)
    world.sync(DE, FR)
    assert "B" in arrived(world)


def test_a_frozen_feed_is_settled_before_an_epoch_is_accepted(world: World) -> None:
    de = world[DE]
    with pytest.raises(EpochError):
        sync.sync(de, FR, Saying(2))
    number = ask_to_accept(de)
    with write(de.engine) as tx:
        tx.execute(update(in_feeds).values(frozen="FORK"))
    with pytest.raises(ConflictError):
        approve(de, number)
    with pytest.raises(UsageError, match="frozen: FORK"):
        epochs.accepting(de, FR, "why")


class Second(ForgedFeed):
    """A sender that has opened a second epoch with entries of its choice."""

    def __init__(self, world: World, *items: bytes | ErasedItem) -> None:
        super().__init__(world[FR], DE, items)
        self.origin = SECOND


def newest(world: World) -> Checkpoint:
    return Checkpoint.of(sync.load_state(world[DE], FR).state.newest)


def signed(world: World, head: Checkpoint) -> bytes:
    fr = world[FR]
    signer = fr.keys.signer(Role.FEED, fr.card, fr.clock())
    return checkpoint.sign(head, head.origin, signer.sign, signer.public)


def accepted(world: World) -> None:
    with pytest.raises(EpochError):
        sync.sync(world[DE], FR, Saying(2))
    accept_epoch(world[DE], FR)


def beginning(world: World, previous: str = ORIGIN, **changed: Any) -> bytes:
    head = replace(newest(world), **changed)
    return entry(SECOND, 0, NewEpoch(previous, signed(world, head), "restored"))


BAD_BEGINNINGS: dict[str, tuple[type[RemoteError], Callable[[World], bytes]]] = {
    "a final head below the one that was shown": (
        RollbackError,
        lambda w: beginning(w, size=newest(w).size - 1, root=merkle.leaf_hash(b"x")),
    ),
    "another final head at the size that was shown": (ForkError, lambda w: beginning(w, root=merkle.leaf_hash(b"x"))),
    "no final head": (RollbackError, lambda _: entry(SECOND, 0, NewEpoch(ORIGIN, b"", "restored"))),
    "the feed in the other direction": (MalformedError, lambda w: beginning(w, f"{DE}/feeds/{FR}/1")),
    "an epoch that never was": (MalformedError, lambda w: beginning(w, f"{FR}/feeds/{DE}/7")),
    "no beginning": (MalformedError, lambda _: entry(SECOND, 0, AgreementOffer(b"x"))),
    "nothing that can be read": (MalformedError, lambda _: b"\xff"),
}


@pytest.mark.invariant("I8")
@pytest.mark.parametrize("name", sorted(BAD_BEGINNINGS))
def test_an_epoch_is_no_way_to_drop_history(world: World, name: str) -> None:
    error, make = BAD_BEGINNINGS[name]
    bad, good = make(world), beginning(world)
    accepted(world)
    with pytest.raises(error):
        sync.sync(world[DE], FR, Second(world, bad))
    with read(world[DE].engine) as tx:
        rows = tx.execute(select(in_feeds.c.epoch, in_feeds.c.size).order_by(in_feeds.c.epoch)).all()
        kept = tx.execute(select(incidents.c.kind, incidents.c.evidence)).all()
    assert [tuple(row) for row in rows] == [(1, newest_size(world)), (2, 0)]
    if error is MalformedError:
        assert kept == []
        sync.sync(world[DE], FR, Second(world, good))
        return
    assert [row.kind for row in kept] == [error.code]
    assert kept[0].evidence.count(b"Y2VydC5mci5leGFtcGxlL2ZlZWRzL2NlcnQuZGUuZXhhbXBsZS8x") >= 1  # ORIGIN
    with pytest.raises(HeldError, match=error.code):
        sync.sync(world[DE], FR, Second(world, good))


def newest_size(world: World) -> int:
    with read(world[DE].engine) as tx:
        return int(tx.execute(select(in_feeds.c.size).where(in_feeds.c.epoch == 1)).scalar_one())


def test_what_never_came_of_the_old_epoch_is_written_down(world: World) -> None:
    size = newest(world).size
    first = beginning(world, size=size + 2, root=merkle.leaf_hash(b"x"))
    accepted(world)
    assert sync.sync(world[DE], FR, Second(world, first)).counts == {Disposition.CONTROL: 1}
    detail = f"entries {size} to {size + 1} of {ORIGIN} never came; what stands of them comes again"
    assert (FR, detail) in found(world[DE], Alarm.EPOCH)
    with read(world[DE].engine) as tx:
        assert tx.execute(select(audit.c.detail).where(audit.c.act == "epoch.gap")).scalar_one() == detail


def test_a_first_epoch_continues_nothing(tmp_path: Path) -> None:
    fresh = make_world(tmp_path)
    forged = ForgedFeed(fresh[FR], DE, [entry(ORIGIN, 0, NewEpoch(ORIGIN, b"", "restored"))])
    assert sync.sync(fresh[DE], FR, forged).counts == {Disposition.QUARANTINED: 1}
    fresh.close()


def test_a_receiver_that_was_put_back_may_continue_from_an_epoch_that_it_has_forgotten(
    world: World, tmp_path: Path
) -> None:
    early = save(world[DE], tmp_path / "early.tar")
    lose(world, tmp_path)
    go_on(world)
    put_back(world, DE, early, lost=True)
    fr, second = reopen(world, FR), current(world)
    assert offered(world) == second.epoch
    accept_epoch(world[DE], FR)
    assert standing(world) is Standing.RESTORED
    refused(world)  # of that epoch it may have known more, and this process has seen nothing of it
    open_epoch(fr, DE)
    assert offered(world) == current(world).epoch > second.epoch
    accept_epoch(world[DE], FR)
    world.sync(DE, FR)
    assert bodies(world)[0] == NewEpoch(second.origin, _receipt(fr, second.epoch), "restored")
    release(world, "B")
    world.sync(DE, FR)
    assert "B" in arrived(world)
    assert standing(world) is Standing.WHOLE


def _receipt(node: Node, epoch: int) -> bytes:
    with read(node.engine) as tx:
        feed = feeds.out_feed(tx, DE, epoch)
    return max((feed.receipt, feed.shown), key=lambda note: Checkpoint.of(note).size if note else -1)


def standing(world: World) -> Standing:
    return sync.load_state(world[DE], FR).standing


# Withdrawals that name an ended epoch


@pytest.mark.parametrize(
    "feed", [SECOND, f"{FR}/feeds/{DE}/3", f"{DE}/feeds/{FR}/1", f"{FR}/feeds/cert.in.example/1", "no feed"]
)
def test_a_withdrawal_names_an_earlier_epoch_of_its_own_feed(feed: str) -> None:
    assert entries.read(entry(SECOND, 1, Withdrawal((7, 9), "rule", ORIGIN))).body == Withdrawal((7, 9), "rule", ORIGIN)
    with pytest.raises(MalformedError):
        entries.read(entry(SECOND, 1, Withdrawal((0,), "rule", feed)))


def test_a_withdrawal_of_an_ended_epoch_erases_nothing_of_this_one(world: World) -> None:
    first = beginning(world)
    hidden = entry(SECOND, 1, AgreementOffer(b"hidden"))
    accepted(world)
    erased = ErasedItem(1, merkle.leaf_hash(hidden), 2)
    eraser = entry(SECOND, 2, Withdrawal((1,), "rule", ORIGIN))
    with pytest.raises(ErasureError):
        sync.sync(world[DE], FR, Second(world, first, erased, eraser))


def test_a_withdrawal_of_an_epoch_that_was_never_held_changes_nothing(world: World) -> None:
    body = Withdrawal((0, 1, 2), "rule", f"{FR}/feeds/{DE}/2")
    third = [entry(f"{FR}/feeds/{DE}/3", 0, NewEpoch(ORIGIN, signed(world, newest(world)), "restored"))]
    third.append(entry(f"{FR}/feeds/{DE}/3", 1, body))
    with pytest.raises(EpochError):
        sync.sync(world[DE], FR, Saying(3))
    accept_epoch(world[DE], FR)
    forged = Second(world, *third)
    forged.origin = f"{FR}/feeds/{DE}/3"
    assert sync.sync(world[DE], FR, forged).counts == {Disposition.CONTROL: 2}
    assert item(world[DE], "A").state is InboxState.CURRENT
