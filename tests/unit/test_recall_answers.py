"""Who follows a recall and what each answers: by relays, by the old and the silent, and not at all (I15)."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from federation import entries
from federation.entries import ErasedItem, Purge, RecallOrder, Withdrawal
from federation.errors import HeldError, UsageError
from federation.policy.schema import Control
from federation.recall import Reason
from federation.statement import Kind, Outcome
from node.desk.inbox import Disposition, InboxState
from node.peering import agreements, peers
from node.records import ledger
from node.records.alarms import Alarm
from node.records.ledger import Act
from node.sharing import answers, passing, recalls, relays, releases, statements
from node.sharing.answers import HolderState
from node.store import tables
from node.store.database import read, write
from tests.chains import KE, Chain, give, join, last_entry, make_chain, pass_on, send
from tests.nodes import (
    DE,
    FR,
    IN,
    World,
    agree,
    append_by_hand,
    files_hold,
    history,
    make_world,
    reopen,
)
from tests.recalling import (
    BYTES,
    SECRET,
    count,
    document_of,
    forbidding,
    holders,
    items,
    last,
    make_old,
    released,
    said,
    signed_recall,
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """FR, DE and IN, all in agreement."""
    made = make_world(tmp_path, FR, DE, IN)
    agree(made)
    yield made
    made.close()


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    """FR to DE to IN, where FR and IN exchange nothing."""
    made = make_chain(tmp_path)
    join(made, FR, DE)
    join(made, DE, IN)
    yield made
    made.close()


def passed_on(chain: Chain) -> None:
    """What FR released to DE, DE passed on to IN."""
    item = send(chain, "X", notes=(SECRET,))
    give(chain, "X")
    assert pass_on(chain, item).seq is not None
    chain.sync(IN, DE)
    assert files_hold(chain[IN], BYTES)


# Relays


@pytest.mark.invariant("I15")
def test_a_recall_follows_what_was_passed_on_and_the_answer_comes_back(chain: Chain) -> None:
    passed_on(chain)
    order = recalls.give(chain[FR], "X", Reason.CONSENT)
    chain.sync(DE, FR)
    assert not files_hold(chain[DE], BYTES)  # neither what came nor what went on
    chain.sync(IN, DE)
    assert not files_hold(chain[IN], BYTES)
    assert items(chain, IN) == [("X", 1, InboxState.RECALLED)]
    chain.sync(FR, DE)
    assert holders(chain) == {DE: (DE, HolderState.PURGED), IN: (DE, HolderState.PENDING)}
    chain.sync(DE, IN)
    assert holders(chain, at=DE) == {IN: (IN, HolderState.PURGED)}
    chain.sync(FR, DE)
    assert holders(chain) == {DE: (DE, HolderState.PURGED), IN: (DE, HolderState.PURGED)}
    assert said(chain, FR, DE)[0]["passed_on"] == [IN]
    assert said(chain, FR, IN)[0] == {
        "recall": order.digest.hex(),
        "outcome": Outcome.PURGED,
        "passed_on": [],
        "unreachable": [],
    }
    assert document_of(chain) == document_of(chain, IN)  # as it was signed


@pytest.mark.invariant("I15")
def test_a_recall_is_passed_on_even_after_the_agreement_has_ended(chain: Chain) -> None:
    passed_on(chain)
    chain.clock.move(days=201)
    assert agreements.find(chain[DE], "de-in").state(chain.clock()) == "expired"
    recalls.give(chain[FR], "X", Reason.CONSENT)
    chain.sync(DE, FR)
    chain.sync(IN, DE)
    chain.sync(DE, IN)
    chain.sync(FR, DE)
    assert holders(chain)[IN] == (DE, HolderState.PURGED)
    assert not files_hold(chain[IN], BYTES)


@pytest.mark.invariant("I15")
def test_an_answer_comes_back_over_two_relays(tmp_path: Path) -> None:
    chain = make_chain(tmp_path, (FR, DE), (DE, IN), (IN, KE))
    for one, other in chain.links:
        join(chain, one, other, onward="peers")
    item = send(chain, "X", notes=(SECRET,), handling={"tlp": "GREEN", "onward": "peers"})
    assert pass_on(chain, item).seq is not None
    chain.sync(IN, DE)
    _, (outcome,) = passing.pass_on(chain[IN], "X", (KE,))
    assert outcome.seq is not None
    chain.sync(KE, IN)
    assert files_hold(chain[KE], BYTES)
    recalls.give(chain[FR], "X", Reason.CONSENT)
    for receiver, sender in ((DE, FR), (IN, DE), (KE, IN), (IN, KE), (DE, IN), (FR, DE)):
        chain.sync(receiver, sender)
    assert holders(chain) == {
        DE: (DE, HolderState.PURGED),
        IN: (DE, HolderState.PURGED),
        KE: (IN, HolderState.PURGED),
    }
    assert not any(files_hold(chain[name], BYTES) for name in (DE, IN, KE))
    chain.close()


@pytest.mark.invariant("I15")
def test_an_order_that_comes_by_two_ways_is_answered_once(world: World) -> None:
    released(world)
    world.sync(DE, FR)
    grant_and_pass_on(world)
    world.sync(IN, DE)
    assert files_hold(world[IN], BYTES)
    recalls.give(world[FR], "X", Reason.CONSENT)
    world.sync(IN, FR)
    world.sync(DE, FR)
    world.sync(IN, DE)
    assert count(world, IN, tables.statements) == 1
    world.sync(FR, IN)
    world.sync(FR, DE)
    assert holders(world) == {DE: (DE, HolderState.PURGED), IN: (IN, HolderState.PURGED)}
    assert said(world, FR, DE)[0]["passed_on"] == [IN]


def grant_and_pass_on(world: World) -> None:
    """DE passes X on to IN under a grant of FR."""
    relays.give(world[FR], "X", DE, (IN,), None, world.clock() + timedelta(days=30))
    world.sync(DE, FR)
    _, (outcome,) = passing.pass_on(world[DE], "X", (IN,))
    assert outcome.seq is not None


@pytest.mark.invariant("I15")
def test_who_is_out_of_a_relays_reach_is_told_to_the_origin(chain: Chain) -> None:
    passed_on(chain)
    peers.distrust(chain[DE], IN)
    recalls.give(chain[FR], "X", Reason.CONSENT)
    chain.sync(DE, FR)
    chain.sync(FR, DE)
    assert holders(chain) == {DE: (DE, HolderState.PURGED), IN: (DE, HolderState.UNREACHABLE)}
    assert not files_hold(chain[DE], BYTES)  # its copies go all the same
    with write(chain[DE].engine) as tx:  # two people trust it again: the order lies in its feed
        tx.execute(update(tables.peers).values(trusted=1))
    chain.sync(IN, DE)
    chain.sync(DE, IN)
    chain.sync(FR, DE)
    assert holders(chain)[IN] == (DE, HolderState.PURGED)
    assert not files_hold(chain[IN], BYTES)


@pytest.mark.invariant("I12")
def test_what_a_relay_says_of_another_does_not_overwrite_what_that_one_says(world: World) -> None:
    released(world, "X", DE, IN)
    world.sync_all()
    order = recalls.give(world[FR], "X", Reason.CONSENT)
    world.sync(IN, FR)
    world.sync(FR, IN)
    assert holders(world)[IN] == (IN, HolderState.PURGED)
    body = {"recall": order.digest.hex(), "outcome": "purged", "passed_on": [DE, FR], "unreachable": [IN]}
    with write(world[DE].engine) as tx:
        statements.make(world[DE], tx, Kind.PURGE, FR, body, via=FR, by="alice")
    world.sync(FR, DE)
    assert holders(world) == {DE: (DE, HolderState.PURGED), IN: (IN, HolderState.PURGED)}


def test_an_answer_that_nobody_waits_for_goes_nowhere(chain: Chain) -> None:
    body = {"recall": "ab" * 32, "outcome": "purged", "passed_on": [], "unreachable": []}
    with write(chain[IN].engine) as tx:
        statements.make(chain[IN], tx, Kind.PURGE, FR, body, via=DE, by="alice")
    before = len(history(chain[DE], FR))
    chain.sync(DE, IN)
    assert last_entry(chain, DE, IN) == (Disposition.REFUSED, "NOT_ADMITTED", None)
    assert len(history(chain[DE], FR)) == before
    assert said(chain, DE, IN) == []


# Who cannot be told


@pytest.mark.invariant("I15")
def test_an_older_peer_gets_a_withdrawal(world: World) -> None:
    released(world)
    for peer in (DE, IN):
        make_old(world, FR, peer)
    recalls.give(world[FR], "X", Reason.ERROR)
    assert holders(world) == {DE: (DE, HolderState.WITHDRAWN)}
    body = last(world, FR, DE)
    assert isinstance(body, Withdrawal)
    assert isinstance(history(world[FR], DE)[body.seqs[0]], ErasedItem)
    assert recalls.send_again(world[FR]) == 0
    with write(world[FR].engine) as tx:  # it was upgraded
        tx.execute(update(tables.peers).where(tables.peers.c.node == DE).values(card=world[DE].card_bytes))
    assert recalls.send_again(world[FR]) == 1
    assert holders(world) == {DE: (DE, HolderState.PENDING)}
    world.sync(DE, FR)
    world.sync(FR, DE)
    assert holders(world) == {DE: (DE, HolderState.NEVER_HELD)}


@pytest.mark.invariant("I15")
@pytest.mark.parametrize("silent", [(Control.RECALL,), (Control.RECALL, Control.PURGE, Control.WITHDRAWAL)])
def test_law_that_forbids_to_tell_holds_the_order_and_nothing_more_goes_out(
    world: World, silent: tuple[Control, ...]
) -> None:
    released(world)
    quiet = replace(world[FR], book=forbidding(*silent))
    recalls.give(quiet, "X", Reason.LEGAL)
    assert holders(world) == {DE: (DE, HolderState.HELD), IN: (IN, HolderState.HELD)}
    with read(quiet.engine) as tx:
        raised = tx.execute(select(tables.alarms.c.kind, tables.alarms.c.subject)).all()
    assert (Alarm.HELD, f"{DE} recall") in raised
    item = history(quiet, DE)[3]
    if len(silent) == 1:
        assert isinstance(last(world, FR, DE), Purge)
        assert isinstance(item, ErasedItem)
    else:
        assert isinstance(item, bytes)
        with pytest.raises(HeldError):  # nothing is served to it rather than that
            releases.withdraw_what_may_not_go(quiet, world[DE].card, range(4))
        assert world.sync(IN, FR).counts == {}
    assert recalls.send_again(quiet) == 0
    assert recalls.send_again(world[FR]) == 2  # law allows it now
    world.sync(DE, FR)
    world.sync(FR, DE)
    assert holders(world)[DE] == (DE, HolderState.NEVER_HELD)
    assert not files_hold(world[DE], BYTES)


@pytest.mark.invariant("I15")
def test_a_distrusted_holder_is_shown_and_finds_the_order_when_it_is_trusted_again(world: World) -> None:
    released(world)
    world.sync(DE, FR)
    peers.distrust(world[FR], DE)
    recalls.give(world[FR], "X", Reason.ERROR)
    assert holders(world)[DE] == (DE, HolderState.UNREACHABLE)
    assert isinstance(last(world, FR, DE), RecallOrder)


@pytest.mark.invariant("I15")
def test_an_epoch_that_has_ended_is_emptied_too(world: World) -> None:
    released(world)
    world.sync(DE, FR)
    with write(world[FR].engine) as tx:
        peers.open_out_feed(world[FR], tx, DE, 2)
    recalls.give(world[FR], "X", Reason.ERROR)
    with read(world[FR].engine) as tx:
        stored = tx.execute(
            select(tables.out_entries.c.kind, tables.out_entries.c.data, tables.out_feeds.c.epoch)
            .join(tables.out_feeds, tables.out_feeds.c.id == tables.out_entries.c.feed)
            .where(tables.out_feeds.c.peer == DE)
            .order_by(tables.out_feeds.c.epoch, tables.out_entries.c.seq)
        ).all()
    old = [row for row in stored if row.epoch == 1]
    new = [entries.read(row.data).body for row in stored if row.epoch == 2]
    assert [row.data is None for row in old if row.kind == "presentation"] == [True]
    assert old[-1].kind == "recall"
    assert [body.seqs for body in new if isinstance(body, RecallOrder)] == [()]
    assert [row.taken_back for row in ledger.rows(world[FR], DE, "X")] == [(Act.RECALL, world.clock())]
    with read(world[FR].engine) as tx:
        (owed,) = answers.owed(tx, DE)
        assert answers.owed(tx, FR) == ()
    assert owed == new[0].document  # type: ignore[union-attr] # it is the order, as was just seen


# Missing answers


@pytest.mark.invariant("I15")
def test_an_answer_is_missed_after_seven_days_and_said_once(world: World) -> None:
    released(world)
    order = recalls.give(world[FR], "X", Reason.ERROR)
    subject = f"X {order.digest.hex()[:12]}"

    def raised() -> list[tuple[str, str, int]]:
        with read(world[FR].engine) as tx:
            found = tx.execute(select(tables.alarms).where(tables.alarms.c.kind == Alarm.RECALL)).all()
        return [(row.subject, row.detail, row._mapping["count"]) for row in found]

    world.clock.move(days=6, hours=23)
    answers.check(world[FR])
    assert raised() == []
    assert not any(holder.overdue for holder in answers.status(world[FR])[0].holders)
    world.sync(IN, FR)
    world.sync(FR, IN)
    world.clock.move(hours=1)
    answers.check(world[FR])
    answers.check(world[FR])
    assert raised() == [(subject, f"no answer from {DE}; see: apostille recall status", 1)]
    assert [(h.node, h.overdue) for h in answers.status(world[FR])[0].holders] == [(DE, True), (IN, False)]
    answers.check(world[DE])  # whose recall it is has to miss it, nobody else
    assert count(world, DE, tables.alarms) == 0


@pytest.mark.invariant("I15")
def test_an_order_of_our_own_that_was_lost_bars_again(world: World) -> None:
    released(world)
    order = signed_recall(world, FR, "X", 1)
    append_by_hand(world[DE], FR, RecallOrder(order, ()))
    world.sync(FR, DE)
    with pytest.raises(UsageError, match="is recalled"):
        releases.release(world[FR], "X", (IN,))
    assert said(world, DE, FR) == []


def test_the_order_in_a_feed_says_whether_it_was_fetched(world: World) -> None:
    released(world)
    recalls.give(world[FR], "X", Reason.ERROR)
    world.sync(DE, FR)
    assert [(h.node, h.fetched) for h in answers.status(world[FR])[0].holders] == [(DE, True), (IN, False)]
    reopen(world, FR)
    assert [h.fetched for h in answers.status(world[FR], "X")[0].holders] == [True, False]
    assert answers.status(world[FR], "Y") == ()
