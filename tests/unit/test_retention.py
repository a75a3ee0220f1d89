"""Retention: what may be kept no longer goes, here and in the feeds to peers, and says so."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from federation import entries
from federation.entries import Delivery, ErasedItem, Purge, Withdrawal
from federation.errors import HeldError, NotAllowedError
from federation.model import instant_text
from federation.policy.schema import Control
from node.desk import inbox
from node.desk.inbox import Disposition, InboxState
from node.home.people import Post
from node.operation.scheduler import Polls
from node.peering import agreements, peers
from node.records import ledger
from node.records.alarms import Alarm
from node.records.ledger import Act
from node.sharing import releases, retention
from node.store import database, tables
from node.store.database import read, scrub, write
from tests.chains import Chain, give, join, make_chain, pass_on, send
from tests.nodes import (
    AGREEMENT,
    DE,
    FR,
    IN,
    World,
    agree,
    append_by_hand,
    document,
    files_hold,
    history,
    import_document,
    issued,
    make_world,
    rows,
    terms_for,
)
from tests.recalling import BYTES, SECRET, forbidding, make_old

DAYS = 10


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """FR and DE, who may keep what they get for ten days."""
    made = make_world(tmp_path)
    agree(made, retention_days=DAYS)
    yield made
    made.close()


def released(world: World, name: str = "X", **handling: Any) -> int:
    """FR releases an advisory that holds SECRET; returns the place in the feed."""
    made = import_document(world[FR], document(name, title=SECRET), handling={"tlp": "GREEN", **handling})
    _, (outcome,) = releases.release(world[FR], made, (DE,))
    assert outcome.seq is not None
    return outcome.seq


def forget_own(world: World) -> None:
    """FR's own record goes, so that only what it sent is left to be found."""
    with write(world[FR].engine) as tx:
        tx.execute(
            update(tables.advisories)
            .where(tables.advisories.c.core.is_not(None))
            .values(disclosures=b"", title="gone", core=b"gone")
        )
    scrub(world[FR].engine)


def erased(world: World, seq: int) -> entries.Body:
    """The entry that says that `seq` is gone."""
    item = history(world[FR], DE)[seq]
    assert isinstance(item, ErasedItem)
    eraser = history(world[FR], DE)[item.erased_by]
    assert isinstance(eraser, bytes)
    return entries.read(eraser).body


@pytest.mark.invariant("I11")
def test_what_was_received_goes_when_its_retention_ends(world: World) -> None:
    released(world)
    world.sync(DE, FR)
    with write(world[DE].engine) as tx:
        tx.execute(tables.inbox_terms.delete())
        tx.execute(tables.inbox_terms.insert().values(inbox=1, kind="text", number=0, value=SECRET))
    world.clock.move(days=DAYS, seconds=-1)
    assert not retention.expire(world[DE])
    assert inbox.content(world[DE], "X").item.title == SECRET
    world.clock.move(seconds=1)
    assert files_hold(world[DE], BYTES)
    gone = retention.expire(world[DE])
    assert (len(gone.items), gone.set_aside, gone.sent) == (1, (), {})
    assert not files_hold(world[DE], BYTES)
    (item,) = inbox.items(world[DE], every_state=True)
    assert (item.state, item.title) == (InboxState.EXPIRED, "(its retention has ended)")
    assert rows(world)[-1][1] == Disposition.EXPIRED
    with pytest.raises(HeldError):
        inbox.content(world[DE], "X")
    assert not retention.expire(world[DE])  # once


@pytest.mark.invariant("I11")
def test_what_stands_in_a_feed_goes_when_the_delivery_ends_and_the_feed_says_so(world: World) -> None:
    seq = released(world)
    world.sync(DE, FR)
    world.clock.move(days=DAYS)
    gone = retention.expire(world[FR])
    assert gone.sent == {(DE, 1): (seq,)}
    assert erased(world, seq) == Purge((seq,), "retention-ended")
    forget_own(world)
    assert not files_hold(world[FR], BYTES)
    (row,) = ledger.rows(world[FR], DE, acts=(Act.PURGE,))
    assert (row.by, row.facts["entries"], row.facts["reason"]) == ("policy", [seq], "retention-ended")
    (release,) = ledger.rows(world[FR], DE)
    assert release.taken_back == (Act.PURGE, world.clock())
    assert world.sync(DE, FR).counts == {Disposition.CONTROL: 1}  # the receiver's copy has terms of its own
    assert rows(world)[seq][1] == Disposition.ADMITTED


@pytest.mark.invariant("I11")
def test_what_ended_before_it_was_fetched_never_arrives(world: World) -> None:
    released(world)
    world.clock.move(days=DAYS)
    retention.expire(world[FR])
    assert world.sync(DE, FR).counts == {Disposition.ERASED: 1, Disposition.CONTROL: 1}
    assert not files_hold(world[DE], BYTES)


@pytest.mark.invariant("I11")
def test_what_was_set_aside_goes_at_the_end_that_it_names(world: World) -> None:
    held = agreements.find(world[FR], AGREEMENT)
    presentation = issued(world[FR], import_document(world[FR], document("X", title=SECRET)))
    terms = terms_for(world[FR], DE, "X", held)
    append_by_hand(world[FR], DE, Delivery(presentation, replace(terms, recipient=FR)))
    endless = Delivery(presentation, replace(terms, retain_until=None))
    append_by_hand(world[FR], DE, endless)
    world.sync(DE, FR)
    assert [row[1:] for row in rows(world)[-2:]] == [(Disposition.QUARANTINED, "BAD_TERMS")] * 2
    world.clock.move(days=DAYS)
    gone = retention.expire(world[DE])
    assert len(gone.set_aside) == 1
    assert [row[1] for row in rows(world)[-2:]] == [Disposition.EXPIRED, Disposition.QUARANTINED]


@pytest.mark.invariant("I11")
def test_a_relay_keeps_no_copy_of_what_it_passed_on(tmp_path: Path) -> None:
    chain: Chain = make_chain(tmp_path)
    join(chain, FR, DE)
    join(chain, DE, IN, retention_days=DAYS)
    item = send(chain, "X", title=SECRET)
    give(chain, "X")
    assert pass_on(chain, item).seq is not None
    chain.sync(IN, DE)
    chain.clock.move(days=DAYS)
    gone = retention.expire(chain[DE])
    assert (gone.items, list(gone.sent)) == ((), [(IN, 1)])  # its own copy may be kept longer
    retention.expire(chain[IN])
    assert not files_hold(chain[IN], BYTES)
    chain.close()


def test_an_older_peer_is_told_by_a_withdrawal(world: World) -> None:
    seq = released(world)
    make_old(world, FR, DE)
    world.clock.move(days=DAYS)
    retention.expire(world[FR])
    assert erased(world, seq) == Withdrawal((seq,), "retention-ended")


@pytest.mark.invariant("I11")
def test_where_law_forbids_to_say_so_nothing_is_sent_and_a_person_is_told(world: World) -> None:
    seq = released(world)
    world.clock.move(days=DAYS)
    quiet = replace(world[FR], book=forbidding(Control.PURGE, Control.WITHDRAWAL))
    assert not retention.expire(quiet)
    assert isinstance(history(quiet, DE)[seq], bytes)
    with read(quiet.engine) as tx:
        assert tx.execute(select(tables.alarms.c.kind, tables.alarms.c.subject)).all() == [(Alarm.HELD, f"{DE} purge")]
    with pytest.raises(HeldError):
        releases.withdraw_what_may_not_go(quiet, world[DE].card, range(seq + 1))
    assert retention.expire(world[FR]).sent_count == 1  # once law allows it


def test_an_epoch_that_has_ended_is_emptied_too(world: World) -> None:
    seq = released(world)
    world.sync(DE, FR)
    with write(world[FR].engine) as tx:
        peers.open_out_feed(world[FR], tx, DE, 2)
    world.clock.move(days=DAYS)
    assert retention.expire(world[FR]).sent == {(DE, 1): (seq,)}
    assert history(world[FR], DE) == []  # nothing of that is said in the epoch that is current


def test_looking_changes_nothing_and_a_person_needs_the_post(world: World) -> None:
    released(world)
    world.sync(DE, FR)
    world.clock.move(days=DAYS)
    found = retention.ended(world[DE])
    assert len(found.items) == 1
    assert rows(world)[-1][1] == Disposition.ADMITTED
    with pytest.raises(NotAllowedError):
        retention.purge(replace(world[DE], people={"alice": frozenset((Post.ANALYST,))}))
    assert retention.purge(world[DE]) == found
    with read(world[DE].engine) as tx:
        done = select(tables.audit.c.by, tables.audit.c.detail).where(tables.audit.c.act == "purge.received")
        assert tx.execute(done).all() == [("alice", "1 items, 0 entries set aside")]


def test_a_handling_that_ends_sooner_counts(world: World) -> None:
    soon = instant_text(world.clock() + timedelta(days=1))
    seq = released(world, retain_until=soon)
    world.sync(DE, FR)
    world.clock.move(days=1)
    assert retention.expire(world[FR]).sent == {(DE, 1): (seq,)}
    assert len(retention.expire(world[DE]).items) == 1


def test_the_schedule_makes_it_prompt(world: World) -> None:
    released(world)
    world.sync(DE, FR)
    world.clock.move(days=DAYS)

    def never(*_: object) -> Any:
        raise AssertionError("nobody is called")

    polls = Polls(world[DE], never)
    polls._scheduler.start(paused=True)
    polls._keep_up()
    polls.stop()
    assert [item.state for item in inbox.items(world[DE], every_state=True)] == [InboxState.EXPIRED]


def test_many_ends_are_told_in_entries_of_a_bounded_size(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "AT_ONCE", 2)
    seqs = [released(world, name) for name in "ABCDE"]
    world.sync(DE, FR)
    world.clock.move(days=DAYS)
    retention.expire(world[FR])
    told = [entries.read(item).body for item in history(world[FR], DE) if isinstance(item, bytes)]
    assert [body.seqs for body in told if isinstance(body, Purge)] == [tuple(seqs[:2]), tuple(seqs[2:4]), (seqs[4],)]
    assert len(retention.expire(world[DE]).items) == 5
    assert {item.state for item in inbox.items(world[DE], every_state=True)} == {InboxState.EXPIRED}
    assert world.sync(DE, FR).counts == {Disposition.CONTROL: 3}
