"""Peers that contradict themselves: how two people settle it."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from federation.entries import Delivery, Withdrawal
from federation.errors import (
    AwaitsSecondError,
    ConflictError,
    FeedFrozenError,
    HeldError,
    NotAllowedError,
    NotFoundError,
    UsageError,
)
from federation.model import Presentation
from node import acts
from node.desk import inbox, resolutions, work
from node.desk.inbox import InboxState
from node.exchange import sync
from node.home.context import Node
from node.home.people import Post
from node.peering import agreements
from node.records import approvals, incidents
from node.store.database import read, write
from node.store.tables import audit, in_feeds
from node.store.tables import incidents as table
from tests.lies import (
    LIES,
    fork,
    only,
    open_alarms,
    rewritten,
    shortened,
    sign_again,
)
from tests.nodes import (
    AGREEMENT,
    DE,
    FR,
    ForgedFeed,
    World,
    agree,
    append_by_hand,
    arrived,
    issued,
    make_world,
    payload_of,
    release,
    signed_core,
    terms_for,
)


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
