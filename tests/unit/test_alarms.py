"""Alarms: raised once, acknowledged by people or because they are over."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from config import data
from federation.errors import NotAllowedError, NotFoundError, StaleError
from federation.model import Form, instant_text
from federation.policy.engine import rule_book
from federation.policy.packs import load_pack
from node.exchange import sync
from node.home.context import Node
from node.home.people import Post
from node.operation import watch
from node.peering import agreements, peers, rotation
from node.peering.rotation import Change
from node.records import alarms
from node.records.alarms import ADVICE, OVER, Alarm, Raised
from node.sharing import releases
from node.store.database import read, record, write
from node.store.tables import alarms as table
from node.store.tables import audit
from tests.laws import COUNTRIES, book_of
from tests.nodes import (
    DE,
    FR,
    ForgedFeed,
    World,
    agree,
    document,
    history,
    import_document,
    make_world,
    release,
    terms_text,
)

pytestmark = pytest.mark.filterwarnings("ignore:.imghdr. is deprecated:DeprecationWarning")  # imported by apprise
PLENTY = 1 << 40  # bytes that are free on a disk
FAILS = 'Node::"nobody.example".groups.isEmpty()'  # the entity does not exist: Cedar errors on it


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path)
    yield made
    made.close()


@pytest.fixture
def fr(world: World) -> Node:
    return world[FR]


def raised(node: Node, *, every: bool = False) -> list[tuple[str, str]]:
    return [(alarm.kind.value, alarm.subject) for alarm in reversed(alarms.all_alarms(node, every=every))]


def raise_one(node: Node, kind: Alarm = Alarm.QUARANTINE, subject: str = DE, detail: str = "entry 3") -> int:
    with write(node.engine) as tx:
        alarms.raise_alarm(tx, kind, subject, detail, node.clock())
        return int(tx.execute(select(table.c.id).order_by(table.c.id.desc())).scalars().first() or 0)


def only(node: Node) -> Raised:
    (found,) = alarms.all_alarms(node)
    return found


# Raising and acknowledging


def test_the_same_again_counts_up_until_somebody_has_seen_it(world: World, fr: Node) -> None:
    raise_one(fr)
    first = world.clock()
    world.clock.move(hours=1)
    raise_one(fr, detail="entry 4")
    raise_one(fr, subject="cert.in.example")
    found = alarms.all_alarms(fr)[1]
    assert (found.count, found.first_at, found.last_at, found.detail) == (2, first, world.clock(), "entry 4")
    seen = alarms.acknowledge(fr, [found.number])
    assert [alarm.number for alarm in seen] == [found.number]
    assert raised(fr) == [("QUARANTINE", "cert.in.example")]
    raise_one(fr)
    assert raised(fr) == [("QUARANTINE", "cert.in.example"), ("QUARANTINE", DE)]
    assert [a.acked_by for a in alarms.all_alarms(fr, every=True)] == [None, None, "alice"]


def test_acknowledging_is_for_an_operator_and_is_recorded(fr: Node) -> None:
    one, two = raise_one(fr), raise_one(fr, Alarm.DISK, "home")
    for node in (replace(fr, people={"alice": frozenset((Post.ANALYST, Post.AUDITOR))}), replace(fr, actor="mallory")):
        with pytest.raises(NotAllowedError, match="operator"):
            alarms.acknowledge(node, None)
    with pytest.raises(NotFoundError, match="no alarm 99"):
        alarms.acknowledge(fr, [one, 99])
    assert len(alarms.all_alarms(fr)) == 2
    assert [alarm.number for alarm in alarms.acknowledge(fr, None)] == [one, two]
    assert alarms.acknowledge(fr, [one]) == ()
    with read(fr.engine) as tx:
        found = tx.execute(select(audit.c.by, audit.c.subject).where(audit.c.act == "alarm.ack")).all()
    assert [tuple(row) for row in found] == [("alice", f"QUARANTINE {DE}"), ("alice", "DISK home")]


def test_there_is_advice_for_every_alarm() -> None:
    assert ADVICE.keys() == set(Alarm)


# What a node looks at from time to time


def look(node: Node, free: int = PLENTY, *, starting: bool = False) -> None:
    watch.check(node, starting=starting, free_bytes=lambda _: free)


def test_a_healthy_node_finds_nothing(world: World, fr: Node) -> None:
    agree(world)
    world.sync_all()
    look(fr)
    assert raised(fr) == []


def test_keys_that_end_are_told_thirty_days_before_and_no_more_once_there_are_others(world: World, fr: Node) -> None:
    ends = [min(key.valid_until for key in world[name].card.keys) for name in (FR, DE)]
    world.clock.now = min(ends) - timedelta(days=30)
    look(fr, starting=True)
    assert raised(fr) == []
    world.clock.now = max(ends) - timedelta(days=30) + timedelta(seconds=1)
    look(fr, starting=True)
    look(fr, starting=True)
    of_peer = {("KEY_ENDING", f"{key.role} key of {DE}") for key in fr.card.keys}
    assert set(raised(fr)) == of_peer | {("KEY_ENDING", f"own {key.role} key") for key in fr.card.keys}
    assert {alarm.count for alarm in alarms.all_alarms(fr)} == {1}
    rotation.change(fr, Change(rotate=tuple({key.role for key in fr.card.keys})))
    fr.own.reload()
    look(fr, starting=True)
    assert set(raised(fr)) == of_peer
    assert {a.acked_by for a in alarms.all_alarms(fr, every=True) if a.acked_at is not None} == {OVER}


def test_an_agreement_that_ends_is_told_until_it_is_renewed(world: World, fr: Node) -> None:
    agree(world)
    (held,) = agreements.all_held(fr)
    world.clock.now = held.agreement.sunset_review
    look(fr, starting=True)
    assert raised(fr) == [("AGREEMENT_ENDING", "exchange-2026 version 1 review")]
    world.clock.now = held.agreement.valid_until - timedelta(days=29)
    look(fr, starting=True)
    assert ("AGREEMENT_ENDING", "exchange-2026 version 1") in raised(fr)
    world.clock.now = held.agreement.valid_until + timedelta(days=1)
    look(fr, starting=True)
    assert ("AGREEMENT_ENDING", "exchange-2026 version 1") in raised(fr)  # that it has ended is not that it is over
    agree(world, version=2, previous=f'"{held.agreement.digest.hex()}"')
    look(fr, starting=True)
    assert [subject for kind, subject in raised(fr) if kind == "AGREEMENT_ENDING"] == []
    assert {a.acked_by for a in alarms.all_alarms(fr, every=True) if a.kind is Alarm.AGREEMENT_ENDING} == {OVER}


def test_a_proposal_that_nobody_signed_is_no_agreement_that_ends(world: World, fr: Node) -> None:
    soon = instant_text(world.clock() + timedelta(days=9))
    agreements.propose(fr, terms_text(world, valid_until=soon, sunset_review=soon), "a.yaml")
    look(fr)
    assert raised(fr) == []


def test_a_law_pack_is_told_before_the_day_of_its_review(world: World, fr: Node) -> None:
    pack = load_pack(data.pack_text("eu-gdpr"), "eu-gdpr", COUNTRIES)
    assert pack.review_by == date(2027, 11, 21)
    node = replace(fr, book=rule_book((pack,), COUNTRIES))
    assert dict(node.book.reviews) == {"eu-gdpr version 1": pack.review_by}
    world.clock.now = world.clock().replace(year=2027, month=10, day=21, hour=23)
    look(node, starting=True)
    assert ("PACK_ENDING", "eu-gdpr version 1") not in raised(node)
    world.clock.move(hours=2)
    look(node, starting=True)
    assert ("PACK_ENDING", "eu-gdpr version 1") in raised(node)


def test_a_full_disk_and_a_wrong_clock_are_told_until_they_are_mended(world: World, fr: Node) -> None:
    look(fr, watch.DISK_WARN - 1)
    assert raised(fr) == [("DISK", "home")]
    assert only(fr).detail == "1023 MiB are free where the home lies"
    look(fr, watch.DISK_WARN)
    assert raised(fr) == []
    with write(fr.engine) as tx:
        future = world.clock() + watch.CLOCK_TOLERANCE
        record(tx, at=future, by="x", act="x", subject="x")
    look(fr)
    assert raised(fr) == []
    world.clock.move(seconds=-1)
    look(fr)
    assert raised(fr) == [("CLOCK", "records")]
    world.clock.move(seconds=1)
    look(fr)
    assert raised(fr) == []


def test_a_peer_that_is_not_heard_of_for_a_day_is_told(world: World, fr: Node) -> None:
    world.sync(FR, DE)  # now; the agreement may be of an earlier moment
    world.clock.move(days=1)
    look(fr)
    assert raised(fr) == []
    world.clock.move(seconds=1)
    look(fr, starting=True)
    assert raised(fr) == []  # a node that was off has to ask first
    look(fr)
    assert raised(fr) == [("STALE", f"{DE} sync")]
    look(fr, starting=True)
    assert raised(fr) == [("STALE", f"{DE} sync")]
    world.sync(FR, DE)
    look(fr)
    assert raised(fr) == []


def test_a_peer_was_heard_of_in_the_epoch_before(world: World, fr: Node) -> None:
    world.clock.move(days=2)
    world.sync(FR, DE)
    with write(fr.engine) as tx:
        peers.open_in_feed(fr, tx, DE, 2)
    look(fr)
    assert raised(fr) == []
    world.clock.move(days=1, seconds=1)
    look(fr)
    assert raised(fr) == [("STALE", f"{DE} sync")]


def test_an_old_head_is_told_apart_from_silence_and_is_over_with_the_next_good_sync(world: World, fr: Node) -> None:
    agree(world)
    world.sync(FR, DE)
    world.clock.move(seconds=1)
    old = ForgedFeed(world[DE], FR, history(world[DE], FR), latest_age_s=10_000)
    with pytest.raises(StaleError):
        sync.sync(fr, DE, old)
    look(fr)
    assert raised(fr) == [("STALE", DE)]
    world.clock.move(days=2)
    with pytest.raises(StaleError):
        sync.sync(fr, DE, old)
    look(fr)
    assert raised(fr) == [("STALE", DE)]
    world.clock.move(seconds=1)
    world.sync(FR, DE)
    look(fr)
    assert raised(fr) == []


def test_what_a_person_has_seen_is_told_again_while_it_stays_so_but_not_at_once(world: World, fr: Node) -> None:
    look(fr, 0)
    alarms.acknowledge(fr, None)
    world.clock.move(hours=23)
    look(fr, 0)
    assert raised(fr) == []
    world.clock.move(hours=1)
    look(fr, 0, starting=True)
    assert raised(fr) == [("DISK", "home")]
    look(fr, starting=True)
    look(fr, 0, starting=True)
    assert raised(fr) == [("DISK", "home")]  # it was over, so this is a new one


def test_what_others_have_raised_is_left_to_them(world: World, fr: Node) -> None:
    every = [kind for kind in Alarm if kind not in watch._QUIET]
    for kind in every:
        raise_one(fr, kind)
    look(fr)
    assert len(raised(fr)) == len(every)


# Faults of the policy engine (I3)


def failing(action: str) -> str:
    head = '@id("test/rule") @basis("a law") @says("A sentence.")\n'
    return f'{head}forbid (principal, action == Action::"{action}", resource) when {{ {FAILS} }};\n'


FAULT = ("POLICY", "rule test/rule could not be evaluated")


@pytest.mark.invariant("I3")
def test_a_rule_that_fails_at_a_release_is_told_although_nothing_leaves(world: World, fr: Node) -> None:
    agree(world)
    broken = replace(fr, book=book_of(failing("disclose")))
    _, outcomes = releases.release(broken, import_document(fr, document("A")))
    assert {e.form for e in outcomes[0].decision.elements} == {Form.WITHHELD}
    assert raised(fr) == [FAULT]
    releases.release(broken, "A")
    assert only(fr).count == 1  # it is told once, and not at every decision


@pytest.mark.invariant("I3")
@pytest.mark.invariant("I11")
def test_a_rule_that_fails_at_serving_is_told(world: World, fr: Node) -> None:
    agree(world)
    release(world, "A")
    broken = replace(fr, book=book_of(failing("disclose")))
    releases.withdraw_what_may_not_go(broken, world[DE].card, range(99))
    assert raised(fr) == [FAULT]


@pytest.mark.invariant("I3")
def test_a_rule_that_fails_at_receiving_is_told(world: World) -> None:
    agree(world)
    release(world, "A")
    de = world.nodes[DE] = replace(world[DE], book=book_of(failing("store")))
    world.sync(DE, FR)
    assert raised(de) == [("POLICY", FAULT[1]), ("QUARANTINE", FR)]


@pytest.mark.invariant("I3")
def test_a_rule_that_fails_for_control_messages_is_told(world: World, fr: Node) -> None:
    broken = replace(fr, book=book_of(failing("notify")))
    agreements.propose(broken, terms_text(world), "a.yaml")
    assert raised(fr) == [("HELD", f"{DE} agreement"), FAULT]
