"""Peers that contradict themselves: what is kept of it, whether it proves itself, and how people settle it."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, update

from federation import checkpoint, contradiction
from federation.base64url import from_b64url
from federation.checkpoint import Checkpoint
from federation.entries import AgreementOffer, Delivery, Withdrawal
from federation.errors import (
    AwaitsSecondError,
    ConflictError,
    FeedFrozenError,
    ForkError,
    HeldError,
    NotAllowedError,
    NotFoundError,
    RollbackError,
    SuspectedForkError,
    UsageError,
)
from federation.feed import PageBytes
from federation.keyring import unverified
from federation.model import Presentation, Role
from node import acts
from node.desk import inbox, resolutions, work
from node.desk.inbox import InboxState
from node.exchange import sync
from node.home.context import Node
from node.home.people import Post
from node.peering import agreements, rotation
from node.peering.rotation import Change
from node.records import alarms, approvals, incidents
from node.records.incidents import Incident
from node.store.database import read, write
from node.store.tables import audit, in_feeds
from node.store.tables import incidents as table
from tests.nodes import (
    AGREEMENT,
    DE,
    FR,
    ForgedFeed,
    LyingLink,
    World,
    agree,
    append_by_hand,
    arrived,
    entry,
    history,
    issued,
    make_world,
    payload_of,
    release,
    signed_core,
    terms_for,
)

ORIGIN = f"{FR}/feeds/{DE}/1"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path)
    agree(made)
    release(made, "A")
    made.sync(DE, FR)
    yield made
    made.close()


@pytest.fixture
def de(world: World) -> Node:
    return world[DE]


# Four ways of lying, each after an honest sync


def rewritten(world: World) -> ForgedFeed:
    """FR tells another history of what DE holds already."""
    return ForgedFeed(world[FR], DE, [entry(ORIGIN, 0, AgreementOffer(b"rewritten")), *history(world[FR], DE)[1:]])


def fork(world: World) -> None:
    with pytest.raises(ForkError):
        sync.sync(world[DE], FR, rewritten(world))


def shortened(world: World) -> ForgedFeed:
    return ForgedFeed(world[FR], DE, history(world[FR], DE)[:-1])


def roll_back(world: World) -> None:
    world.clock.move(minutes=2)
    with pytest.raises(RollbackError):
        sync.sync(world[DE], FR, shortened(world))


def suspect(world: World) -> None:
    def drop(page: PageBytes) -> PageBytes:
        return replace(page, items=page.items[1:])

    release(world, "B", "C")
    with pytest.raises(SuspectedForkError):
        sync.sync(world[DE], FR, LyingLink(world.link(DE, FR), drop))


def sign_again(world: World, later_s: int = 1, name: str = "A") -> bytes:
    """FR signs another core under the revision of `name` and delivers it. Returns its digest."""
    fr = world[FR]
    presentation = issued(fr, name)
    payload = payload_of(presentation.core)
    payload["iat"] += later_s
    core = signed_core(fr, payload)
    digest = hashlib.sha256(core).digest()
    terms = replace(terms_for(fr, DE, name, agreements.find(fr, AGREEMENT)), core_digest=digest)
    append_by_hand(fr, DE, Delivery(Presentation(core, presentation.disclosures), terms))
    world.clock.move(minutes=1)
    world.sync(DE, FR)
    return digest


def equivocate(world: World) -> None:
    sign_again(world)


LIES: dict[str, tuple[Callable[[World], None], bool]] = {
    "FORK": (fork, True),
    "ROLLBACK": (roll_back, True),
    "SUSPECTED_FORK": (suspect, False),
    "EQUIVOCATION": (equivocate, True),
}


def only(node: Node) -> Incident:
    (found,) = incidents.all_incidents(node)
    return found


def open_alarms(node: Node) -> list[tuple[str, str]]:
    return [(alarm.kind.value, alarm.subject) for alarm in alarms.all_alarms(node)]


@pytest.mark.invariant("I8")
@pytest.mark.parametrize("kind", LIES)
def test_evidence_of_each_lie_is_kept_with_the_card_and_says_whether_it_proves_itself(world: World, kind: str) -> None:
    lie, proves = LIES[kind]
    assert incidents.all_incidents(world[DE]) == ()  # the honest sync left none
    assert open_alarms(world[DE]) == []
    lie(world)
    found = only(world[DE])
    about = "A/1" if kind == "EQUIVOCATION" else ORIGIN
    assert (found.kind, found.peer, found.about, found.proves_itself) == (kind, FR, about, proves)
    assert open_alarms(world[DE]) == [(kind, FR)]
    with read(world[DE].engine) as tx:
        evidence = json.loads(tx.execute(select(table.c.evidence)).scalar_one())
    assert unverified(from_b64url(evidence["card"])) == world[FR].card
    assert from_b64url(evidence["card"]) == world[FR].card_bytes  # as it was signed, not only what it says
    again, data = incidents.export(world[DE], found.number)
    file = json.loads(data)
    assert again == found
    assert (file["incident"], file["proves_itself"]) == (kind, proves)
    assert data == json.dumps(file, sort_keys=True, separators=(",", ":")).encode() + b"\n"


@pytest.mark.invariant("I8")
def test_a_rollback_is_proved_by_when_its_sender_called_which_head_its_newest(world: World, de: Node) -> None:
    roll_back(world)
    dated = {head.dated: head.size for head in only(de).heads if head.dated is not None}
    before, after = min(dated), max(dated)
    assert dated[before] > dated[after]
    assert (after - before).total_seconds() >= contradiction.LATER_S
    _, data = incidents.export(de, only(de).number)
    sizes = [Checkpoint.of(from_b64url(note)).size for note in json.loads(data)["heads"]]
    assert sizes == [dated[before], dated[after]]


@pytest.mark.invariant("I8")
def test_a_rollback_within_a_moment_may_be_two_answers_that_crossed_and_is_no_proof(world: World, de: Node) -> None:
    with pytest.raises(RollbackError):
        sync.sync(de, FR, shortened(world))
    assert (only(de).kind, only(de).proves_itself) == ("ROLLBACK", False)
    assert json.loads(incidents.export(de, only(de).number)[1])["about"] == ORIGIN


@pytest.mark.invariant("I8")
def test_a_proof_holds_nothing_that_does_not_count(world: World, de: Node) -> None:
    fork(world)
    _, data = incidents.export(de, only(de).number)
    file = json.loads(data)
    assert file.keys() == {"cards", "heads", "incident", "proves_itself"}
    assert len(file["cards"]) == 1
    notes = [
        head(world, 3, b"1" * 32, time=1000),
        head(world, 3, b"2" * 32, time=2000),
        head(world, 2, b"x" * 32, time=3000),
    ]
    assert {len(_lines(note)) for note in notes} == {2}
    for judge in (contradiction.fork, contradiction.rollback):
        found = judge(notes, FR, (world[FR].card_bytes,) * 3)
        assert found is not None
        assert [len(_lines(note)) for note in found.heads] == [1, 1]
        assert len(found.cards) == 1


def _lines(note: bytes) -> list[str]:
    """The signature lines of a note."""
    return note.decode().rpartition("\n\n")[2].splitlines()


def test_a_peer_that_signs_many_documents_fills_no_disk(world: World, de: Node) -> None:
    first = len(incidents.all_incidents(de))
    for later_s in range(1, 13):
        sign_again(world, later_s)
    assert len(incidents.all_incidents(de)) == first + 1
    assert len(only(de).cores) == 8
    assert only(de).proves_itself
    assert open_alarms(de) == [("EQUIVOCATION", FR)]


@pytest.mark.invariant("I8")
def test_heads_under_keys_of_two_cards_prove_a_fork_with_both(world: World) -> None:
    """The first key is on no card any more when the second head is signed."""
    fr, de = world[FR], world[DE]
    size, cards = len(history(fr, DE)), [fr.card_bytes]
    honest = ForgedFeed(fr, DE, history(fr, DE)).head(size)
    for _ in range(2):
        rotation.change(fr, Change(rotate=(Role.FEED,)))
        fr.own.reload()
        world.sync(DE, FR)
        world.clock.move(days=15)
        cards.append(fr.card_bytes)
    other = ForgedFeed(fr, DE, history(fr, DE)).head(size, root=b"r" * 32)
    with read(de.engine) as tx:
        assert incidents._cards(tx, FR) == tuple(cards)
    found = contradiction.fork((honest, other), FR, cards)
    assert found is not None
    assert found.cards == (cards[1], cards[2])  # the newest that has each key
    assert contradiction.fork((honest, other), FR, cards[:1]) is None
    assert contradiction.fork((honest, other), FR, cards[2:]) is None


# What is no contradiction


def head(world: World, size: int, root: bytes, *, time: int = 0, origin: str = ORIGIN) -> bytes:
    fr = world[FR]
    signer = fr.keys.signer(Role.FEED, fr.card, world.clock())
    note = checkpoint.sign(Checkpoint(origin, size, root), origin, signer.sign, signer.public)
    return checkpoint.cosign(note, origin, time, signer.sign, signer.public) if time else note


def test_heads_that_agree_prove_nothing(world: World) -> None:
    cards = (world[FR].card_bytes,)
    one, two = head(world, 3, b"1" * 32, time=1000), head(world, 4, b"2" * 32, time=2000)
    assert contradiction.fork((one, two, one), FR, cards) is None
    assert contradiction.rollback((one, two, one), FR, cards) is None
    fork_of_another = head(world, 3, b"x" * 32, time=3000, origin=f"{FR}/feeds/{DE}/2")
    assert contradiction.fork((one, fork_of_another), FR, cards) is None
    assert contradiction.rollback((two, fork_of_another), FR, cards) is None
    later = head(world, 3, b"1" * 32, time=2059)
    assert contradiction.rollback((two, later), FR, cards) is None
    assert contradiction.rollback((two, head(world, 3, b"1" * 32, time=2060)), FR, cards) is not None
    assert contradiction.rollback((two, head(world, 3, b"1" * 32)), FR, cards) is None  # it was not called the newest
    assert contradiction.fork((one, head(world, 3, b"x" * 32)), DE, cards) is None  # not that node's feed
    assert contradiction.fork((one, head(world, 3, b"x" * 32)), FR, (world[DE].card_bytes,)) is None
    assert contradiction.fork((b"", b"no note", one), FR, cards) is None
    empty = hashlib.sha256(b"").digest()
    assert contradiction.fork((head(world, 0, empty),), FR, cards) is None
    assert contradiction.fork((head(world, 0, b"x" * 32),), FR, cards) is not None


def test_cores_that_agree_prove_nothing(world: World) -> None:
    fr, cards = world[FR], (world[FR].card_bytes,)
    core = issued(fr, "A").core
    payload = payload_of(core)
    other = signed_core(fr, {**payload, "iat": payload["iat"] + 1})
    assert contradiction.equivocation((core, other), FR, cards) is not None  # sanity
    assert contradiction.equivocation((core, core), FR, cards) is None
    assert contradiction.equivocation((core, signed_core(fr, {**payload, "jti": f"{FR}/A/2"})), FR, cards) is None
    assert contradiction.equivocation((core, other), DE, cards) is None
    forged = other[:-8] + b"AAAAAAAA"
    assert contradiction.equivocation((core, forged), FR, cards) is None
    assert contradiction.equivocation((core, b"a.b.c", b""), FR, cards) is None


@given(st.lists(st.binary(max_size=80), max_size=4))
def test_any_bytes_prove_nothing_and_break_nothing(notes: list[bytes]) -> None:
    for judge in (contradiction.fork, contradiction.rollback, contradiction.equivocation):
        assert judge(notes, FR, ()) is None


# Settling


def ask(node: Node, number: int, **choice: Any) -> int:
    with pytest.raises(AwaitsSecondError) as caught:
        resolutions.resolve(node, number, "explained by telephone", **choice)
    return caught.value.number


def approve(node: Node, request: int) -> approvals.Request:
    return approvals.settle(replace(node, actor="bob"), request, acts.registry(), approve=True)


def settle(node: Node, number: int, **choice: Any) -> None:
    approve(node, ask(node, number, **choice))


def frozen(node: Node) -> str | None:
    with read(node.engine) as tx:
        found: str | None = tx.execute(select(in_feeds.c.frozen)).scalar_one()
    return found


@pytest.mark.invariant("I8")
@pytest.mark.invariant("I13")
@pytest.mark.parametrize("kind", ["FORK", "ROLLBACK", "SUSPECTED_FORK"])
def test_a_frozen_feed_is_healed_by_two_people_and_not_by_one(world: World, de: Node, kind: str) -> None:
    LIES[kind][0](world)
    release(world, "D")
    request = ask(de, only(de).number)
    assert frozen(de) == kind
    with pytest.raises(HeldError, match="frozen"):
        world.sync(DE, FR)
    with pytest.raises(NotAllowedError, match="another person"):
        approvals.settle(de, request, acts.registry(), approve=True)
    assert frozen(de) == kind
    number = only(de).number
    approve(de, request)
    assert frozen(de) is None
    assert incidents.all_incidents(de) == ()
    found = incidents.find(de, number)
    assert (found.resolved_at, found.resolved_by, found.resolution) == (
        world.clock(),
        "alice and bob",
        "explained by telephone",
    )
    assert open_alarms(de) == []
    with read(de.engine) as tx:
        row = tx.execute(select(audit).where(audit.c.act == "incident.resolve")).one()
    assert (row.by, row.detail) == ("bob", f"{kind} of {FR}, request {request}, asked by alice")
    world.sync(DE, FR)
    assert arrived(world)[-1] == "D"


@pytest.mark.invariant("I8")
@pytest.mark.parametrize(("lie", "kind"), [(rewritten, "FORK"), (shortened, "ROLLBACK")])
def test_a_peer_that_still_contradicts_itself_is_frozen_again_with_a_new_incident(
    world: World, de: Node, lie: Callable[[World], ForgedFeed], kind: str
) -> None:
    forged = lie(world)
    for count in (1, 2):
        with pytest.raises(FeedFrozenError):
            sync.sync(de, FR, forged)
        assert frozen(de) == kind
        assert len(incidents.all_incidents(de, every=True)) == count
        settle(de, only(de).number)
    assert {incident.kind for incident in incidents.all_incidents(de, every=True)} == {kind}


@pytest.mark.invariant("I13")
def test_only_an_operator_asks_and_a_settled_incident_stays_so(world: World, de: Node) -> None:
    fork(world)
    number = only(de).number
    with pytest.raises(NotAllowedError, match="operator"):
        resolutions.resolve(replace(de, people={"alice": frozenset((Post.ANALYST,))}), number, "x")
    for choice in ({"keep": "00" * 8}, {"neither": True}):
        with pytest.raises(UsageError, match="no document to choose"):
            resolutions.resolve(de, number, "x", **choice)
    with pytest.raises(NotFoundError, match="no incident 99"):
        resolutions.resolve(de, 99, "x")
    settle(de, number)
    with pytest.raises(UsageError, match="was settled"):
        resolutions.resolve(de, number, "x")


@pytest.mark.invariant("I13")
def test_what_was_asked_for_is_void_once_the_evidence_has_grown(world: World, de: Node) -> None:
    sign_again(world)
    request = ask(de, only(de).number, neither=True)
    sign_again(world, 2)
    with pytest.raises(ConflictError, match="changed since"):
        approve(de, request)
    assert only(de).resolved_at is None
    assert {item.state for item in inbox.items(de, every_state=True)} == {InboxState.EQUIVOCATION}


@pytest.mark.invariant("I13")
def test_what_somebody_else_has_settled_meanwhile_is_not_settled_again(world: World, de: Node) -> None:
    fork(world)
    number = only(de).number
    request = ask(de, number)
    with write(de.engine) as tx:
        tx.execute(update(table).values(resolved_at=world.clock(), resolved_by="x", resolution="x"))
    with pytest.raises(ConflictError, match="changed since"):
        approve(de, request)
    assert frozen(de) == "FORK"


# Several documents under one revision


def states(node: Node) -> dict[bytes, list[InboxState]]:
    """The states of every delivery, by core, in the order in which they came."""
    found: dict[bytes, list[InboxState]] = {}
    for item in sorted(inbox.items(node, every_state=True), key=lambda item: item.seq):
        found.setdefault(item.core_digest, []).append(item.state)
    return found


CURRENT, SUPERSEDED, DISPUTED, REJECTED = (
    InboxState.CURRENT,
    InboxState.SUPERSEDED,
    InboxState.EQUIVOCATION,
    InboxState.REJECTED,
)


@pytest.mark.invariant("I12")
@pytest.mark.invariant("I13")
def test_of_two_documents_the_one_that_two_people_chose_is_used(world: World, de: Node) -> None:
    first = inbox.find(de, "A").core_digest
    second = sign_again(world)
    assert states(de) == {first: [DISPUTED], second: [DISPUTED]}
    request = ask(de, only(de).number, keep=second.hex()[:12].upper())
    assert states(de) == {first: [DISPUTED], second: [DISPUTED]}
    number = only(de).number
    approve(de, request)
    assert states(de) == {first: [REJECTED], second: [CURRENT]}
    assert inbox.content(de, "A").core_digest == second
    assert incidents.find(de, number).resolved_by == "alice and bob"
    rejected = next(item for item in inbox.items(de, every_state=True) if item.core_digest == first)
    with pytest.raises(HeldError, match="two people here"):
        inbox.content(de, str(rejected.id))
    _, _, differences = work.diff(de, "A", str(rejected.id))  # they can be compared all the same
    assert [change.pointer for change in differences] == ["/issued_at"]
    for digest, core_later in ((second, 1), (first, 0)):  # both once more: it stays settled
        assert sign_again(world, core_later) == digest
    assert states(de) == {first: [REJECTED, REJECTED], second: [SUPERSEDED, CURRENT]}
    assert incidents.all_incidents(de) == ()


@pytest.mark.invariant("I12")
def test_after_neither_was_chosen_nothing_is_used_and_a_third_one_contradicts_both(world: World, de: Node) -> None:
    first = inbox.find(de, "A").core_digest
    second = sign_again(world)
    settle(de, only(de).number, neither=True)
    assert states(de) == {first: [REJECTED], second: [REJECTED]}
    with pytest.raises(HeldError):
        inbox.content(de, "A")
    third = sign_again(world, 2)
    assert states(de) == {first: [REJECTED], second: [REJECTED], third: [DISPUTED]}
    found = only(de)
    assert found.proves_itself
    assert set(found.cores) == {first, second, third}
    assert sign_again(world, 2) == third
    assert states(de)[third] == [DISPUTED, DISPUTED]
    settle(de, found.number, keep=third.hex())
    assert states(de) == {first: [REJECTED], second: [REJECTED], third: [SUPERSEDED, CURRENT]}


@pytest.mark.invariant("I12")
def test_a_new_contradiction_takes_the_chosen_one_out_of_use_again(world: World, de: Node) -> None:
    first = inbox.find(de, "A").core_digest
    second = sign_again(world)
    settle(de, only(de).number, keep=first.hex()[:8])
    third = sign_again(world, 2)
    assert states(de) == {first: [DISPUTED], second: [REJECTED], third: [DISPUTED]}
    assert open_alarms(de) == [("EQUIVOCATION", FR)]
    settle(de, only(de).number, keep=third.hex())
    assert states(de) == {first: [REJECTED], second: [REJECTED], third: [CURRENT]}


def test_a_chosen_document_is_not_current_where_a_later_revision_is(world: World, de: Node) -> None:
    first = inbox.find(de, "A").core_digest
    sign_again(world)
    fr = world[FR]
    presentation = issued(fr, "A")
    core = signed_core(fr, {**payload_of(presentation.core), "jti": f"{FR}/A/2"})
    digest = hashlib.sha256(core).digest()
    terms = replace(terms_for(fr, DE, "A", agreements.find(fr, AGREEMENT)), core_digest=digest)
    append_by_hand(fr, DE, Delivery(Presentation(core, presentation.disclosures), terms))
    world.sync(DE, FR)
    settle(de, only(de).number, keep=first.hex())
    assert states(de)[first] == [SUPERSEDED]
    assert states(de)[digest] == [CURRENT]


def test_a_choice_must_name_one_of_the_documents(world: World, de: Node) -> None:
    first = inbox.find(de, "A").core_digest
    second = sign_again(world)
    number = only(de).number
    for choice in (
        {},
        {"keep": first.hex(), "neither": True},
        {"keep": first.hex()[:7]},
        {"keep": "f" * 64},
        {"keep": "%"},
    ):
        with pytest.raises(UsageError, match=f"{first.hex()[:16]}|{second.hex()[:16]}"):
            resolutions.resolve(de, number, "x", **choice)
    assert approvals.pending(de) == ()


def test_a_chosen_document_that_its_sender_takes_back_is_gone_and_may_come_again(world: World, de: Node) -> None:
    first = inbox.find(de, "A").core_digest
    second = sign_again(world)
    settle(de, only(de).number, keep=second.hex())
    seq = inbox.find(de, "A").seq
    append_by_hand(world[FR], DE, Withdrawal((seq,), "no-longer-permitted"))
    world.sync(DE, FR)
    assert states(de) == {first: [REJECTED], second: [InboxState.WITHDRAWN]}
    assert sign_again(world) == second
    assert states(de)[second] == [InboxState.WITHDRAWN, CURRENT]
    assert incidents.all_incidents(de) == ()
