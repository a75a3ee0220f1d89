"""A feed that cannot go on goes on in a new epoch, by two people on each side; it loses nothing, and hides nothing."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from federation import checkpoint, entries, merkle
from federation.checkpoint import Checkpoint
from federation.entries import AgreementOffer, ErasedItem, NewEpoch, RecallOrder, Said, Withdrawal
from federation.errors import (
    AwaitsSecondError,
    ConflictError,
    EpochError,
    ErasureError,
    ForkError,
    HeldError,
    MalformedError,
    NotAllowedError,
    RemoteError,
    RollbackError,
    UnconfirmedError,
    UsageError,
)
from federation.feed import Ask, PageBytes
from federation.model import Role
from federation.recall import Reason
from federation.statement import Kind
from node import acts
from node.audit import verify
from node.desk import inbox
from node.desk.inbox import Disposition, InboxState
from node.exchange import epochs, sync
from node.exchange.epochs import Cause, Standing
from node.home.context import Node
from node.home.people import Post
from node.peering import agreements, feeds
from node.records import approvals, ledger
from node.records.alarms import Alarm
from node.records.approvals import State
from node.sharing import erasures, recalls, releases, statements
from node.store.database import read, write
from node.store.tables import alarms, audit, in_feeds, incidents, out_feeds
from tests.copies import accept_epoch, clone, open_epoch, put_back, save
from tests.nodes import (
    DE,
    FR,
    ForgedFeed,
    World,
    agree,
    arrived,
    document,
    entry,
    files_hold,
    history,
    import_document,
    make_world,
    release,
    reopen,
    terms_text,
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


def lose(world: World, folder: Path, *lost: str) -> None:
    """FR is put back to a state before it released `lost`, which DE has; it has heard DE since."""
    saved = save(world[FR], folder / "backup.tar")
    release(world, *lost or ("LOST",))
    world.sync(DE, FR)
    put_back(world, FR, saved, lost=True)
    world.sync(FR, DE)


def refused(world: World) -> None:
    with pytest.raises(UnconfirmedError):
        world.sync(DE, FR)


def offered(world: World) -> int:
    with pytest.raises(EpochError) as told:
        world.sync(DE, FR)
    return told.value.epoch


def go_on(world: World) -> None:
    """What four people do once DE was refused."""
    refused(world)
    open_epoch(world[FR], DE)
    offered(world)
    accept_epoch(world[DE], FR)
    world.sync(DE, FR)


def noted(ask: Callable[[], object]) -> int:
    with pytest.raises(AwaitsSecondError) as waiting:
        ask()
    return waiting.value.number


def approve(node: Node, number: int) -> approvals.Request:
    return approvals.settle(replace(node, actor="bob"), number, acts.registry(), approve=True)


def ask_to_open(node: Node) -> int:
    return noted(lambda: epochs.opening(node, DE, Cause.RESTORED, "restored last night's backup"))


def ask_to_accept(node: Node) -> int:
    return noted(lambda: epochs.accepting(node, FR, "telephoned"))


def bodies(world: World) -> list[entries.Body]:
    return [entries.read(data).body for data in history(world[FR], DE) if isinstance(data, bytes)]


def found(node: Node, kind: Alarm) -> list[tuple[str, str]]:
    with read(node.engine) as tx:
        rows = tx.execute(select(alarms.c.subject, alarms.c.detail).where(alarms.c.kind == kind)).all()
    return [(row.subject, row.detail) for row in rows]


def item(node: Node, name: str) -> inbox.Item:
    return max((i for i in inbox.items(node, every_state=True) if i.name == name), key=lambda i: i.id)


# Opening


def test_a_new_epoch_begins_with_what_the_receiver_has_shown_and_brings_what_it_lacks(
    world: World, tmp_path: Path
) -> None:
    lose(world, tmp_path)
    release(world, "B", "C")
    newest = sync.load_state(world[DE], FR).state.newest
    go_on(world)
    beginning = bodies(world)[0]
    assert beginning == NewEpoch(ORIGIN, newest, "restored")
    assert sorted(arrived(world)) == ["A", "B", "C", "LOST"]
    release(world, "D")
    world.sync_all()
    assert sorted(arrived(world)) == ["A", "B", "C", "D", "LOST"]
    assert [verify.verify(world[name]).findings for name in (FR, DE)] == [(), ()]
    told = [(e.outgoing, e.number, e.size, e.settled, e.state) for e in epochs.all_epochs(world[DE], FR)]
    assert told == [(True, 1, 2, 2, "current"), (False, 1, 4, 4, "ended"), (False, 2, 5, 5, "current")]


def test_nothing_is_signed_in_the_old_epoch_once_it_has_ended(world: World, tmp_path: Path) -> None:
    """Neither to end it: what was signed last is told by a head that exists already."""
    lose(world, tmp_path)
    signed: list[bytes] = []
    real = feeds.head

    def watched(node: Node, tx: Any, feed: feeds.OutFeed, size: int) -> bytes:
        signed.append(real(node, tx, feed, size))
        return signed[-1]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(feeds, "head", watched)
        go_on(world)
    assert {Checkpoint.of(note).origin for note in signed} == {SECOND}


def test_it_takes_two_people_and_tells_them_what_is_lost(world: World, tmp_path: Path) -> None:
    lose(world, tmp_path)
    refused(world)
    fr = world[FR]
    with pytest.raises(NotAllowedError):
        epochs.opening(replace(fr, people={"alice": frozenset({Post.ANALYST})}), DE, Cause.RESTORED, "why")
    number = ask_to_open(fr)
    assert feeds_of(fr) == [1]
    with pytest.raises(NotAllowedError, match="another person"):
        approvals.settle(fr, number, acts.registry(), approve=True)
    request = approve(fr, number)
    assert request.state is State.DONE
    assert request.arguments["lost_here"] == f"entries 3 to 3 of {ORIGIN}"
    assert (request.arguments["epoch"], request.arguments["final_size"]) == (2, 4)
    assert feeds_of(fr) == [1, 2]
    assert any(subject == DE and "has to be done again" in detail for subject, detail in found(fr, Alarm.RESTORED))


def feeds_of(node: Node) -> list[int]:
    with read(node.engine) as tx:
        return list(
            tx.execute(select(out_feeds.c.epoch).where(out_feeds.c.peer == DE).order_by(out_feeds.c.epoch)).scalars()
        )


def test_a_feed_that_can_go_on_gets_no_new_epoch(world: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing holds up"):
        epochs.opening(world[FR], DE, Cause.HEALED, "to be sure")
    lose(world, tmp_path)
    with pytest.raises(UsageError, match="nothing holds up"):  # what it holds is not known yet
        epochs.opening(world[FR], DE, Cause.RESTORED, "in a hurry")
    go_on(world)
    with pytest.raises(UsageError, match="nothing holds up"):
        epochs.opening(world[FR], DE, Cause.RESTORED, "again")


def test_a_request_is_void_once_the_receiver_has_shown_more(world: World, tmp_path: Path) -> None:
    """The copy that was lost was still running."""
    twin = clone(world, FR, tmp_path / "twin")
    release(world, "B")
    world.sync(DE, FR)
    other = world.nodes[FR]
    world.nodes[FR] = twin
    refused(world)
    number = ask_to_open(twin)
    world.nodes[FR] = other
    release(world, "C")
    world.sync(DE, FR)
    world.nodes[FR] = twin
    refused(world)
    with pytest.raises(ConflictError, match="changed since"):
        approve(twin, number)
    assert feeds_of(twin) == [1]
    approve(twin, ask_to_open(twin))
    assert offered(world) == 2
    other.engine.dispose()


def test_a_receiver_that_was_shown_more_after_the_epoch_was_opened_gets_another_one(
    world: World, tmp_path: Path
) -> None:
    """Two copies: one opens an epoch, the other goes on in the old one for a while."""
    twin = clone(world, FR, tmp_path / "twin")
    release(world, "B")
    world.sync(DE, FR)
    other = world.nodes[FR]
    world.nodes[FR] = twin
    refused(world)
    open_epoch(twin, DE, Cause.CLONED)
    world.nodes[FR] = other
    release(world, "C")
    world.sync(DE, FR)
    world.nodes[FR] = twin
    with pytest.raises(UnconfirmedError, match="more of that than we ended it with"):
        world.sync(DE, FR)
    open_epoch(twin, DE, Cause.CLONED)
    assert offered(world) == 3
    accept_epoch(world[DE], FR)
    world.sync(DE, FR)
    release(world, "D")
    world.sync(DE, FR)
    assert sorted(arrived(world)) == ["A", "B", "C", "D"]
    world.nodes[FR] = other
    refused(world)  # the other copy is out for good
    world.nodes[FR] = twin
    other.engine.dispose()


# What goes along


def test_what_was_acknowledged_is_not_sent_again_and_what_was_not_has_its_row(world: World, tmp_path: Path) -> None:
    lose(world, tmp_path)
    release(world, "B")
    go_on(world)
    rows = [(row.name, row.feed) for row in ledger.rows(world[FR])]
    assert rows == [("A", ORIGIN), ("B", ORIGIN), ("B", SECOND)]
    assert arrived(world).count("A") == 1


def test_what_may_not_go_any_more_stays_out_and_is_told(world: World, tmp_path: Path) -> None:
    lose(world, tmp_path)
    release(world, "B")
    refused(world)
    world.clock.move(days=201)  # the agreement has ended
    open_epoch(world[FR], DE)
    assert [type(body) for body in bodies(world)] == [NewEpoch]
    assert [subject for subject, _ in found(world[FR], Alarm.HELD)] == [f"{DE} epoch"]


def test_agreements_statements_and_recalls_go_along(world: World, tmp_path: Path) -> None:
    release(world, "B")
    world.sync_all()
    lose(world, tmp_path)
    fr = world[FR]
    agreements.propose(fr, terms_text(world, agreement="second"), "second.yaml")
    with write(fr.engine) as tx:
        statements.make(fr, tx, Kind.ACKNOWLEDGE, DE, {}, via=DE, by="alice")
    recalls.give(fr, "B", Reason.ERROR)
    go_on(world)
    kinds = [type(body) for body in bodies(world)]
    assert kinds[0] is NewEpoch
    assert kinds.count(AgreementOffer) == 2
    assert kinds.count(Said) == 1
    assert kinds.count(RecallOrder) == 1
    assert {held.agreement.id for held in agreements.all_held(world[DE])} >= {"second"}
    assert item(world[DE], "B").state is InboxState.RECALLED
    assert [row.statement.kind for row in statements.all_kept(world[DE])].count(Kind.ACKNOWLEDGE) == 1
    assert [verify.verify(world[name]).findings for name in (FR, DE)] == [(), ()]


def test_what_was_taken_back_while_the_feed_was_held_up_is_taken_back_at_the_receiver(
    world: World, tmp_path: Path
) -> None:
    import_document(world[FR], document("B", notes=("What the canary knows",)))
    releases.release(world[FR], "B")
    world.sync_all()
    lose(world, tmp_path)
    releases.withdraw(world[FR], "B", DE)
    assert files_hold(world[DE], b"What the canary knows")
    go_on(world)
    assert item(world[DE], "B").state is InboxState.WITHDRAWN
    assert not files_hold(world[DE], b"What the canary knows")


def test_a_delivery_of_an_ended_epoch_can_still_be_taken_back(world: World, tmp_path: Path) -> None:
    lose(world, tmp_path)
    go_on(world)
    fr, card = world[FR], world[DE].card
    (seq,) = (row.seq for row in ledger.rows(fr, name="A"))
    with write(fr.engine) as tx:
        erasures.erase(fr, tx, card, 1, Withdrawal((seq,), "by-hand"), {"reason": "by-hand"}, by="alice")
    world.sync(DE, FR)
    assert bodies(world)[-1] == Withdrawal((seq,), "by-hand", ORIGIN)
    assert item(world[DE], "A").state is InboxState.WITHDRAWN
    assert [verify.verify(world[name]).findings for name in (FR, DE)] == [(), ()]


def test_a_delivery_that_comes_again_supersedes_the_same_one(world: World, tmp_path: Path) -> None:
    """The receiver was put back: what it had acknowledged comes again, and so does what it still has by chance."""
    saved = save(world[DE], tmp_path / "backup.tar")
    release(world, "B")
    world.sync(DE, FR)
    put_back(world, DE, saved, lost=True)
    reopen(world, FR)
    go_on(world)
    assert sorted(arrived(world)) == ["A", "B"]
    assert [i.state for i in inbox.items(world[DE], every_state=True)] == [InboxState.CURRENT] * 2


def test_two_that_have_forgotten_open_an_epoch_each(world: World, tmp_path: Path) -> None:
    saved = {name: save(world[name], tmp_path / f"{name}.tar") for name in (FR, DE)}
    release(world, "B")
    world.sync_all()
    for name in (FR, DE):
        put_back(world, name, saved[name], lost=True)
    release(world, "C")
    for receiver, sender in ((DE, FR), (FR, DE)):
        with pytest.raises(UnconfirmedError, match="neither can show"):
            world.sync(receiver, sender)
    for sender, receiver in ((DE, FR), (FR, DE)):
        open_epoch(world[sender], receiver)
        with pytest.raises(EpochError):
            world.sync(receiver, sender)
        accept_epoch(world[receiver], sender)
    world.clock.move(minutes=15)  # each waits to hear the other
    for receiver, sender in ((DE, FR), (FR, DE), (DE, FR)):
        try:
            world.sync(receiver, sender)
        except UnconfirmedError:
            world.clock.move(minutes=15)
            world.sync(receiver, sender)
    assert sorted(arrived(world)) == ["A", "C"]
    release(world, "D")
    world.sync_all()
    assert sorted(arrived(world)) == ["A", "C", "D"]


# Accepting


class Saying:
    """A sender that says which epoch is current, and nothing else unless `more` is given."""

    def __init__(self, epoch: int, **more: Any) -> None:
        self.page = PageBytes((), **{"checkpoint": b"", "latest": b"", "epoch": epoch, **more})

    def pull(self, _ask: Ask) -> PageBytes:
        return self.page

    def checkpoint(self, _origin: str, _size: int) -> bytes:
        raise AssertionError


@pytest.mark.parametrize("epoch", [1, 18, 1 << 31])
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
        assert offered(world) == 2
    number = ask_to_accept(de)
    with pytest.raises(NotAllowedError, match="another person"):
        approvals.settle(de, number, acts.registry(), approve=True)
    assert offered(world) == 2
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
    fr = reopen(world, FR)
    assert offered(world) == 2
    accept_epoch(world[DE], FR)
    assert standing(world) is Standing.RESTORED
    refused(world)  # of epoch 2 it may have known more, and this process has seen nothing of it
    open_epoch(fr, DE)
    assert offered(world) == 3
    accept_epoch(world[DE], FR)
    world.sync(DE, FR)
    assert bodies(world)[0] == NewEpoch(SECOND, _receipt(fr, 2), "restored")
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
