"""A feed that cannot go on goes on in a new epoch, by two people; what its receiver lacks comes along."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from federation.checkpoint import Checkpoint
from federation.entries import AgreementOffer, NewEpoch, RecallOrder, Said, Withdrawal
from federation.errors import (
    ConflictError,
    EpochError,
    NotAllowedError,
    UnconfirmedError,
    UsageError,
)
from federation.recall import Reason
from federation.statement import Kind
from node import acts
from node.audit import verify
from node.desk import inbox
from node.desk.inbox import InboxState
from node.exchange import epochs, sync
from node.exchange.epochs import Cause
from node.home.context import Node
from node.home.people import Post
from node.peering import agreements, feeds
from node.records import approvals, ledger
from node.records.alarms import Alarm
from node.records.approvals import State
from node.sharing import erasures, recalls, releases, statements
from node.store.database import read, write
from node.store.tables import out_feeds
from tests.copies import accept_epoch, clone, open_epoch, put_back, save
from tests.epochs import approve, ask_to_open, bodies, current, found, go_on, item, lose, offered, refused
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
    reopen,
    terms_text,
)

pytestmark = pytest.mark.invariant("I16")
ORIGIN = f"{FR}/feeds/{DE}/1"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path)
    agree(made)
    release(made, "A")
    made.sync_all()
    yield made
    made.close()


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
    assert told == [
        (True, 1, 2, 2, "current"),
        (False, 1, 4, 4, "ended"),
        (False, current(world).epoch, 5, 5, "current"),
    ]


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
    assert {Checkpoint.of(note).origin for note in signed} == {current(world).origin}


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
    assert request.arguments["final_size"] == 4
    assert feeds_of(fr) == [1, current(world).epoch]
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
    assert offered(world) == current(world).epoch
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
    assert offered(world) == current(world).epoch
    accept_epoch(world[DE], FR)
    world.sync(DE, FR)
    release(world, "D")
    world.sync(DE, FR)
    assert sorted(arrived(world)) == ["A", "B", "C", "D"]
    world.nodes[FR] = other
    refused(world)  # the other copy is out for good
    world.nodes[FR] = twin
    other.engine.dispose()


def test_the_number_of_an_epoch_that_both_have_forgotten_is_not_used_again(world: World, tmp_path: Path) -> None:
    saved = {name: save(world[name], tmp_path / f"{name}.tar") for name in (FR, DE)}
    lose(world, tmp_path)
    go_on(world)
    first = current(world)
    for name in (FR, DE):
        put_back(world, name, saved[name], lost=True)
    world.clock.move(minutes=1)  # nobody restores two homes in less
    with pytest.raises(UnconfirmedError, match="neither can show"):
        world.sync(DE, FR)
    open_epoch(world[FR], DE)
    assert offered(world) == current(world).epoch > first.epoch


# What goes along


def test_what_was_acknowledged_is_not_sent_again_and_what_was_not_has_its_row(world: World, tmp_path: Path) -> None:
    lose(world, tmp_path)
    release(world, "B")
    go_on(world)
    rows = [(row.name, row.feed) for row in ledger.rows(world[FR])]
    assert rows == [("A", ORIGIN), ("B", ORIGIN), ("B", current(world).origin)]
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
