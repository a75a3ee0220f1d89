"""What the list of requests and the audit trail hold of an act that takes two people, word for word."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection, select

from federation.errors import ConflictError, NotAllowedError, UsageError
from node.home.context import Node
from node.home.people import People, Post
from node.records import approvals
from node.records.approvals import LIFETIME, Act, Request, State, bind
from node.store.database import read, write
from node.store.tables import audit
from tests.nodes import DE, FR, IN, World, make_world

ALICE, BOB = "alice", "bob"
PEOPLE: People = {
    ALICE: frozenset((Post.ANALYST, Post.OPERATOR, Post.APPROVER)),
    BOB: frozenset((Post.APPROVER,)),
    "root": frozenset((Post.OPERATOR, Post.APPROVER)),
}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path)
    made.nodes[FR] = replace(made[FR], people=PEOPLE)
    yield made
    made.close()


@pytest.fixture
def fr(world: World) -> Node:
    return world[FR]


def by(node: Node, actor: str) -> Node:
    return replace(node, actor=actor)


def ask(node: Node, subject: str = DE, *, binding: bytes = b"b", reason: str = "why not", act: Act = Act.TRUST) -> int:
    with write(node.engine) as tx:
        return approvals.ask(node, tx, act, subject, {"peer": subject}, binding, reason)


def settle(node: Node, number: int, *, approve: bool = True) -> Request:
    return approvals.settle(by(node, BOB), number, {Act.TRUST: lambda *_: None}, approve=approve)


def rows(node: Node) -> list[tuple[str, str, str, str]]:
    with read(node.engine) as tx:
        found = tx.execute(select(audit).where(audit.c.act.startswith("approval.")).order_by(audit.c.id)).all()
    assert all(row.at == node.clock() for row in found)
    return [(row.by, row.act, row.subject, row.detail) for row in found]


def test_a_binding_is_sha_256_over_each_part_after_its_length() -> None:
    spelled = b"".join(len(part).to_bytes(8, "big") + part for part in (b"ab", "é".encode(), b""))
    assert bind(b"ab", "é", "") == hashlib.sha256(spelled).digest()


@pytest.mark.invariant("I13")
def test_a_request_is_kept_with_all_that_was_said(world: World, fr: Node) -> None:
    number = ask(by(fr, "root"), reason="  they have new keys ")
    asked = Request(
        number=number,
        act=Act.TRUST,
        subject=DE,
        arguments={"peer": DE},
        binding=b"b",
        reason="they have new keys",
        asked_at=fr.clock(),
        asked_by="root",
        state=State.OPEN,
        settled_at=None,
        settled_by=None,
        asker_uid=0,
    )
    assert approvals.find(fr, number) == asked
    assert asked.until == fr.clock() + LIFETIME
    assert timedelta(days=7) == LIFETIME
    world.clock.now += timedelta(hours=1)
    done = replace(asked, state=State.DONE, settled_at=fr.clock(), settled_by=BOB)
    assert settle(fr, number) == approvals.find(fr, number) == done


def test_every_step_is_a_row_of_the_audit_trail(fr: Node) -> None:
    done, refused = ask(fr), ask(fr, IN)
    settle(fr, done)
    settle(fr, refused, approve=False)
    older = ask(fr, "x")
    newer = ask(fr, "x", binding=b"c")
    with write(fr.engine) as tx:
        approvals.void(fr, tx, Act.TRUST, "x", "distrusted again")
    assert rows(fr) == [
        (ALICE, "approval.ask", DE, f"request {done}: trust"),
        (ALICE, "approval.ask", IN, f"request {refused}: trust"),
        (BOB, "approval.done", DE, f"request {done}: trust, asked by alice"),
        (BOB, "approval.refused", IN, f"request {refused}: trust, asked by alice"),
        (ALICE, "approval.ask", "x", f"request {older}: trust"),
        (
            ALICE,
            "approval.void",
            "x",
            f"request {older}: trust, asked by alice: asked for anew with other content",
        ),
        (ALICE, "approval.ask", "x", f"request {newer}: trust"),
        (ALICE, "approval.void", "x", f"request {newer}: trust, asked by alice: distrusted again"),
    ]


def test_what_ends_requests_ends_those_of_its_act_and_subject_alone(fr: Node) -> None:
    same, other_subject, other_act = ask(fr), ask(fr, IN), ask(fr, act=Act.RESOLVE)
    with write(fr.engine) as tx:
        approvals.void(fr, tx, Act.TRUST, DE, "distrusted again")
    states = {request.number: request.state for request in approvals.all_requests(fr)}
    assert states == {same: State.VOID, other_subject: State.OPEN, other_act: State.OPEN}
    assert [request.number for request in approvals.pending(fr)] == [other_subject, other_act]
    again = ask(fr)
    assert [request.number for request in approvals.all_requests(fr)] == [same, other_subject, other_act, again]


def test_a_settled_request_says_by_whom_and_when_in_its_refusal(fr: Node) -> None:
    number = ask(fr)
    settle(fr, number)
    day = f"{fr.clock():%Y-%m-%d}"
    with pytest.raises(UsageError) as caught:
        settle(fr, number)
    assert str(caught.value) == f"request {number} is done already, by bob on {day}; nothing was changed"


@pytest.mark.parametrize("reason", ["x", "x" * 500, f"  {'x' * 500}  "])
def test_a_reason_has_up_to_500_characters(fr: Node, reason: str) -> None:
    assert approvals.find(fr, ask(fr, reason=reason)).reason == reason.strip()


@pytest.mark.invariant("I13")
def test_a_request_that_is_void_by_itself_says_why_and_is_ended_by_whoever_settles_it(world: World, fr: Node) -> None:
    number = ask(fr)
    world.clock.now += LIFETIME + timedelta(seconds=1)
    found = approvals.find(fr, number)
    assert (found.state, found.why_void) == (State.VOID, "it is older than 7 days")
    for approve in (True, False):
        fresh = ask(fr, f"subject {approve}")
        world.clock.now += LIFETIME + timedelta(seconds=1)
        with pytest.raises(ConflictError) as caught:
            settle(fr, fresh, approve=approve)
        assert str(caught.value) == (
            f"request {fresh} is void: it is older than 7 days; nothing was done, it has to be asked for again"
        )
        ended = approvals.find(fr, fresh)
        assert (ended.state, ended.settled_by, ended.why_void) == (State.VOID, BOB, None)


def test_whoever_asks_anew_for_what_grew_old_gets_another_number_and_the_reason_is_told(world: World, fr: Node) -> None:
    number = ask(fr)
    world.clock.now += LIFETIME + timedelta(seconds=1)
    assert ask(fr) != number
    with read(fr.engine) as tx:
        (detail,) = tx.execute(select(audit.c.detail).where(audit.c.act == "approval.void")).scalars()
    assert detail == f"request {number}: trust, asked by alice: it is older than 7 days"


@pytest.mark.invariant("I13")
def test_the_asker_is_told_in_words_that_another_person_is_needed(fr: Node) -> None:
    number = ask(fr)
    with pytest.raises(NotAllowedError) as caught:
        approvals.settle(fr, number, {Act.TRUST: lambda *_: None}, approve=True)
    assert str(caught.value) == f"alice asked for request {number}; another person has to settle it"


def test_whoever_asks_is_told_whether_somebody_else_can_approve(fr: Node) -> None:
    text = "Noted as request 7. A second person approves it with: apostille approval approve 7"
    assert str(approvals.awaits(fr, 7)) == text
    assert approvals.awaits(fr, 7).number == 7
    alone = replace(fr, people={ALICE: frozenset(Post), "eve": frozenset((Post.AUDITOR,))})
    ending = "; nobody else is approver here yet: name one under `people` in apostille.yaml"
    assert str(approvals.awaits(alone, 7)) == text + ending


@pytest.mark.invariant("I13")
def test_a_request_that_ends_while_its_act_runs_is_not_done_as_well(fr: Node) -> None:
    number = ask(fr)

    def ends_it(node: Node, tx: Connection, request: Request) -> None:
        approvals.void(node, tx, request.act, request.subject, "distrusted again")

    with pytest.raises(ConflictError, match=f"request {number}"):
        approvals.settle(by(fr, BOB), number, {Act.TRUST: ends_it}, approve=True)
    assert approvals.find(fr, number).state is State.OPEN  # nothing of it stays
    assert settle(fr, number).state is State.DONE
