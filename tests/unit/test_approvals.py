"""Acts that take two people: what one asked for, another person approves as it was, or nobody does."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Barrier

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, select, update

from federation.errors import (
    ApostilleError,
    AwaitsSecondError,
    ConflictError,
    NotAllowedError,
    NotFoundError,
    PolicyError,
    UsageError,
)
from federation.model import Category
from node import acts, main
from node.cli import approval as commands
from node.home.context import Node
from node.home.people import People, Post
from node.peering import peers
from node.records import approvals
from node.records.approvals import LIFETIME, MAY_ASK, Act, Request, State, bind
from node.sharing import advisories
from node.store.database import read, record, write
from node.store.tables import advisories as drafts
from node.store.tables import approvals as requests
from node.store.tables import audit
from node.store.tables import peers as table
from tests.nodes import DE, FR, World, document, import_document, make_world

ALICE, BOB, CAROL = "alice", "bob", "carol"
EVERYBODY: People = {
    ALICE: frozenset((Post.ANALYST, Post.OPERATOR, Post.APPROVER)),
    BOB: frozenset((Post.APPROVER,)),
    CAROL: frozenset((Post.AUDITOR,)),
}
NAME, PART = "CERT-FR-2026-0001", "/csaf/document/notes/0"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """FR, where alice does the work and bob approves, has distrusted DE."""
    made = make_world(tmp_path)
    made.nodes[FR] = replace(made[FR], people=EVERYBODY)
    peers.distrust(made[FR], DE)
    yield made
    made.close()


@pytest.fixture
def fr(world: World) -> Node:
    return world[FR]


def by(node: Node, actor: str, **people: frozenset[Post]) -> Node:
    """The node as `actor` opens it; `people` replaces who has which post."""
    return replace(node, actor=actor, people=people or node.people)


def noted(ask: Callable[[], object]) -> int:
    """The number of the request that `ask` leaves behind."""
    with pytest.raises(AwaitsSecondError) as caught:
        ask()
    return caught.value.number


def ask_trust(node: Node, reason: str = "they have new keys") -> int:
    return noted(lambda: peers.trust_again(node, DE, reason))


def approve(node: Node, number: int) -> Request:
    return approvals.settle(node, number, acts.registry(), approve=True)


def trusted(node: Node) -> bool:
    with read(node.engine) as tx:
        return bool(tx.execute(select(table.c.trusted).where(table.c.node == DE)).scalar_one())


def rows(node: Node, *prefixes: str) -> list[tuple[str, str, str, str]]:
    """The audit rows whose act begins with one of `prefixes`: who, act, about what, detail."""
    with read(node.engine) as tx:
        found = tx.execute(select(audit).order_by(audit.c.id)).all()
    return [(row.by, row.act, row.subject, row.detail) for row in found if row.act.startswith(prefixes)]


def ask_anything(node: Node, binding: bytes = b"b", about: str = DE, **arguments: str) -> int:
    with write(node.engine) as tx:
        return approvals.ask(node, tx, Act.TRUST, about, arguments, binding, "why not")


def settle_with(node: Node, number: int, act: Callable[[Node, Connection, Request], None]) -> Request:
    """Approves with an act of the test's own."""
    return approvals.settle(node, number, {Act.TRUST: act}, approve=True)


@given(st.lists(st.binary(max_size=6), max_size=4), st.lists(st.binary(max_size=6), max_size=4))
def test_no_two_lists_of_parts_bind_alike(one: list[bytes], two: list[bytes]) -> None:
    assert (bind(*one) == bind(*two)) == (one == two)


def test_parts_that_run_together_bind_apart() -> None:
    assert len({bind("ab", "c"), bind("a", "bc"), bind("abc"), bind("abc", ""), bind("", "abc"), bind()}) == 6
    assert bind("é") == bind("é".encode())


@pytest.mark.invariant("I13")
def test_asking_changes_nothing_but_the_list(fr: Node) -> None:
    number = ask_trust(fr)
    assert not trusted(fr)
    (request,) = approvals.pending(fr)
    assert (request.number, request.act, request.subject, request.state) == (number, Act.TRUST, DE, State.OPEN)
    assert (request.asked_by, request.asked_at, request.reason) == (ALICE, fr.clock(), "they have new keys")
    assert request.arguments["peer"] == DE
    assert rows(fr, "approval", "peer.trust") == [(ALICE, "approval.ask", DE, f"request {number}: trust")]


def test_whoever_asks_is_told_what_a_second_person_types(fr: Node) -> None:
    with pytest.raises(AwaitsSecondError, match=r"request 1\. A second .*: apostille approval approve 1$"):
        peers.trust_again(fr, DE, "they have new keys")
    alone = by(fr, ALICE, alice=frozenset(Post))
    with pytest.raises(AwaitsSecondError, match="nobody else is approver here yet"):
        peers.trust_again(alone, DE, "they have new keys")


@pytest.mark.invariant("I13")
def test_a_second_person_approves_and_it_is_done(fr: Node) -> None:
    number = ask_trust(fr)
    request = approve(by(fr, BOB), number)
    assert trusted(fr)
    assert (request.state, request.asked_by, request.settled_by) == (State.DONE, ALICE, BOB)
    assert approvals.pending(fr) == ()
    assert rows(fr, "approval.done", "peer.trust") == [
        (BOB, "peer.trust", DE, f"request {number}, asked by {ALICE}"),
        (BOB, "approval.done", DE, f"request {number}: trust, asked by {ALICE}"),
    ]


@pytest.mark.invariant("I13")
@pytest.mark.parametrize("answer", [True, False])
def test_whoever_asked_settles_nothing(fr: Node, answer: bool) -> None:
    number = ask_trust(fr)
    with pytest.raises(NotAllowedError, match="another person"):
        approvals.settle(fr, number, acts.registry(), approve=answer)
    assert not trusted(fr)
    assert approvals.find(fr, number).state is State.OPEN


@pytest.mark.invariant("I13")
@pytest.mark.parametrize(("first", "then"), [("uid 0", "root"), ("root", "uid 0"), ("uid 061001", "uid 61001")])
def test_another_name_of_the_same_account_is_no_second_person(fr: Node, first: str, then: str) -> None:
    both = {first: frozenset(Post), then: frozenset(Post)}
    number = ask_trust(by(fr, first, **both))
    with pytest.raises(NotAllowedError, match="another person"):
        approve(by(fr, then, **both), number)
    assert not trusted(fr)


@pytest.mark.invariant("I13")
def test_an_account_that_was_renamed_meanwhile_is_no_second_person(fr: Node) -> None:
    """What counts is the user id at the time of asking, not the one that the old name leads to now."""
    number = ask_trust(by(fr, "root", root=frozenset(Post)))
    with write(fr.engine) as tx:  # as if root had been called otherwise then
        tx.execute(update(requests).values(asked_by="old-name"))
    people = {"old-name": frozenset(Post), "root": frozenset(Post)}
    with pytest.raises(NotAllowedError, match="another person"):
        approve(by(fr, "root", **people), number)


@pytest.mark.invariant("I13")
@pytest.mark.parametrize("answer", [True, False])
def test_only_an_approver_settles(fr: Node, answer: bool) -> None:
    number = ask_trust(fr)
    for somebody in (CAROL, "stranger"):
        with pytest.raises(NotAllowedError, match=f"{somebody} is no approver here; ask alice or bob"):
            approvals.settle(by(fr, somebody), number, acts.registry(), approve=answer)
    assert approvals.find(fr, number).state is State.OPEN


def test_posts_count_as_they_are_when_it_is_approved(fr: Node) -> None:
    number = ask_trust(fr)
    no_more = {**EVERYBODY, BOB: frozenset((Post.AUDITOR,))}
    with pytest.raises(NotAllowedError):
        approve(by(fr, BOB, **no_more), number)
    newly = {**EVERYBODY, CAROL: frozenset((Post.APPROVER,))}
    assert approve(by(fr, CAROL, **newly), number).state is State.DONE


@pytest.mark.invariant("I13")
@pytest.mark.parametrize("left_with", [None, frozenset((Post.APPROVER, Post.ANALYST))])
def test_a_request_is_void_once_its_asker_may_not_ask_any_more(fr: Node, left_with: frozenset[Post] | None) -> None:
    number = ask_trust(fr)
    people = {BOB: EVERYBODY[BOB]} | ({} if left_with is None else {ALICE: left_with})
    later = by(fr, BOB, **people)
    assert approvals.pending(later) == ()
    with pytest.raises(ConflictError, match=f"void: {ALICE}, who asked for it, is no operator here any more"):
        approve(later, number)
    assert not trusted(fr)
    with pytest.raises(UsageError, match="void already"):  # and it stays void when the post comes back
        approve(by(fr, BOB), number)
    assert rows(fr, "approval.void")[0][0] == BOB


@pytest.mark.invariant("I13")
def test_a_request_lives_for_a_week(world: World, fr: Node) -> None:
    number = ask_trust(fr)
    world.clock.now += LIFETIME
    assert [request.number for request in approvals.pending(fr)] == [number]
    world.clock.now += timedelta(seconds=1)
    assert approvals.pending(fr) == ()
    assert (approvals.find(fr, number).state, approvals.find(fr, number).settled_at) == (State.VOID, None)
    with pytest.raises(ConflictError, match="older than 7 days"):
        approve(by(fr, BOB), number)
    assert not trusted(fr)
    fresh = ask_trust(fr)
    assert fresh != number
    assert approve(by(fr, BOB), fresh).state is State.DONE


@pytest.mark.invariant("I13")
def test_another_card_meanwhile_voids_the_request(world: World, fr: Node) -> None:
    number = ask_trust(fr)
    newer = main.sign_card(replace(world[DE].card, version=2, endpoint="192.0.2.66:1"), world[DE].keys)
    with write(fr.engine) as tx:
        peers.take_card(fr, tx, newer, by=DE)
    with pytest.raises(ConflictError, match="request 1 is void: what it is about has changed since"):
        approve(by(fr, BOB), number)
    assert not trusted(fr)
    assert approvals.find(fr, number).state is State.VOID
    assert rows(fr, "approval.void") == [
        (BOB, "approval.void", DE, "request 1: trust, asked by alice: what it is about has changed since")
    ]


@pytest.mark.invariant("I13")
def test_whoever_distrusts_a_peer_again_voids_what_was_asked_before(fr: Node) -> None:
    number = ask_trust(fr)
    peers.distrust(fr, DE)
    with pytest.raises(UsageError, match="void already"):
        approve(by(fr, BOB), number)
    assert not trusted(fr)


def test_refusing_closes_a_request(fr: Node) -> None:
    number = ask_trust(fr)
    assert approvals.settle(by(fr, BOB), number, acts.registry(), approve=False).state is State.REFUSED
    with pytest.raises(UsageError, match="refused already, by bob"):
        approve(by(fr, BOB), number)
    assert not trusted(fr)
    assert rows(fr, "approval.refused") == [(BOB, "approval.refused", DE, f"request {number}: trust, asked by alice")]


def test_what_is_done_is_not_done_twice(fr: Node) -> None:
    number = ask_trust(fr)
    approve(by(fr, BOB), number)
    peers.distrust(fr, DE)
    with pytest.raises(UsageError, match="done already, by bob"):
        approve(by(fr, BOB), number)
    assert not trusted(fr)


def test_two_approvers_at_once_do_it_once(fr: Node) -> None:
    number, done, both = ask_anything(fr), [], Barrier(2)
    people = {**EVERYBODY, CAROL: frozenset((Post.APPROVER,))}

    def settle(name: str) -> str:
        both.wait()
        try:
            settle_with(by(fr, name, **people), number, lambda *_: done.append(name))
        except ApostilleError as e:
            return type(e).__name__
        return "done"

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(settle, (BOB, CAROL))) == ["UsageError", "done"]
    assert len(done) == 1


def test_a_peer_that_is_trusted_or_unknown_is_not_asked_for(world: World, fr: Node) -> None:
    with pytest.raises(NotFoundError):
        peers.trust_again(fr, FR, "itself")
    approve(by(fr, BOB), ask_trust(fr))
    with pytest.raises(UsageError, match="is trusted"):
        peers.trust_again(fr, DE, "once more")
    assert approvals.pending(fr) == ()


def test_asking_takes_the_post_of_the_act(fr: Node) -> None:
    for act, post in MAY_ASK.items():
        without = by(fr, ALICE, alice=frozenset(Post) - {post})
        with write(fr.engine) as tx, pytest.raises(NotAllowedError, match=f"no {post} here"):
            approvals.ask(without, tx, act, "it", {}, b"", "because")
    with pytest.raises(NotAllowedError):
        peers.trust_again(by(fr, BOB), DE, "I would like it")
    assert approvals.all_requests(fr) == ()


def test_the_very_same_asked_again_has_the_same_number(fr: Node) -> None:
    number = ask_trust(fr)
    assert ask_trust(fr, "a second thought") == number
    assert approvals.find(fr, number).reason == "they have new keys"
    assert len(rows(fr, "approval.ask")) == 1


def test_a_second_person_who_asks_for_the_same_can_approve_it(fr: Node) -> None:
    number = ask_trust(fr)
    dan = by(fr, "dan", **EVERYBODY, dan=frozenset(Post))
    assert ask_trust(dan) == number
    assert approve(dan, number).state is State.DONE


@pytest.mark.invariant("I13")
def test_asking_for_something_else_voids_what_was_asked_before(fr: Node) -> None:
    first = ask_anything(fr, b"one")
    other, elsewhere = ask_anything(fr, b"two"), ask_anything(fr, b"one", about="another peer")
    assert [approvals.find(fr, number).state for number in (first, other, elsewhere)] == [
        State.VOID,
        State.OPEN,
        State.OPEN,
    ]
    assert ask_anything(fr, b"two", way="another") != other  # other arguments are another request, whatever it binds
    assert approvals.find(fr, other).state is State.VOID
    with pytest.raises(UsageError, match="void already"):
        settle_with(by(fr, BOB), first, lambda *_: pytest.fail("a void request was carried out"))


def test_a_new_asker_does_not_inherit_a_request_that_nobody_can_approve(fr: Node) -> None:
    number = ask_trust(fr)
    olga = by(fr, "olga", olga=frozenset((Post.OPERATOR,)), bob=EVERYBODY[BOB])
    fresh = ask_trust(olga)
    assert fresh != number
    assert approve(by(olga, BOB), fresh).asked_by == "olga"


@pytest.mark.parametrize("reason", ["", "  ", "x" * 501, "two\nlines", "bell\a"])
def test_a_request_has_a_reason_that_can_be_read(fr: Node, reason: str) -> None:
    with pytest.raises(UsageError, match="reason"):
        peers.trust_again(fr, DE, reason)
    assert approvals.all_requests(fr) == ()


def test_an_act_that_fails_leaves_the_request_open_and_no_trace(fr: Node) -> None:
    number = ask_anything(fr)

    def fails(node: Node, tx: Connection, request: Request) -> None:
        record(tx, at=node.clock(), by=node.actor, act="test.half", subject=request.subject)
        raise NotFoundError("something is missing")

    with pytest.raises(NotFoundError):
        settle_with(by(fr, BOB), number, fails)
    assert rows(fr, "test", "approval.done", "approval.void") == []
    assert approvals.find(fr, number).state is State.OPEN


@pytest.mark.invariant("I13")
def test_an_act_that_finds_something_changed_is_undone_and_the_request_is_void(fr: Node) -> None:
    number = ask_anything(fr)

    def conflicts(node: Node, tx: Connection, request: Request) -> None:
        record(tx, at=node.clock(), by=node.actor, act="test.half", subject=request.subject)
        raise ConflictError("the feed moved")

    with pytest.raises(ConflictError, match="void: the feed moved; nothing was done"):
        settle_with(by(fr, BOB), number, conflicts)
    assert rows(fr, "test") == []
    assert approvals.find(fr, number).state is State.VOID


def test_an_act_that_nobody_brings_is_not_done(fr: Node) -> None:
    number = ask_anything(fr)
    with pytest.raises(UsageError, match="cannot carry out trust"):
        approvals.settle(by(fr, BOB), number, {}, approve=True)
    assert approvals.find(fr, number).state is State.OPEN


def test_a_number_that_there_is_not_is_not_found(fr: Node) -> None:
    with pytest.raises(NotFoundError, match="there is no request 7"):
        approvals.find(fr, 7)
    with pytest.raises(NotFoundError, match="there is no request 7"):
        approve(by(fr, BOB), 7)


@pytest.mark.invariant("I17")
def test_no_audit_row_holds_the_reason(fr: Node) -> None:
    number = ask_trust(fr, "Jane Roe telephoned")
    approve(by(fr, BOB), number)
    assert not any("Jane" in part for row in rows(fr, "") for part in row)


def test_every_act_is_described_and_has_a_post(fr: Node) -> None:
    assert set(MAY_ASK) == set(Act) == set(commands._DOES)
    assert set(acts.registry()) <= set(Act)


class TestLabel:
    """Lowering the category of a part of a draft."""

    @pytest.fixture(autouse=True)
    def _draft(self, fr: Node) -> None:
        import_document(fr, document(NAME, notes=("How to do it.", "More of it.")))
        advisories.label(fr, NAME, PART, Category.EXPLOIT)

    @staticmethod
    def raised(node: Node) -> dict[str, str]:
        with read(node.engine) as tx:
            draft = tx.execute(select(drafts.c.draft)).scalar_one()
        labels: dict[str, str] = draft["raised"]
        return labels

    @staticmethod
    def lower(node: Node, category: Category = Category.TECHNICAL) -> int:
        return noted(lambda: advisories.label(node, NAME, PART, category, "it is public now"))

    @pytest.mark.invariant("I13")
    def test_lowering_takes_a_reason_and_a_second_person(self, fr: Node) -> None:
        with pytest.raises(UsageError, match=r"raised to exploit; lowering it to technical takes a second person"):
            advisories.label(fr, NAME, PART, Category.TECHNICAL)
        number = self.lower(fr)
        assert self.raised(fr) == {PART: "exploit"}
        request = approvals.find(fr, number)
        assert request.arguments == {
            "advisory": NAME,
            "revision": 1,
            "pointer": PART,
            "from": "exploit",
            "to": "technical",
        }
        with pytest.raises(NotAllowedError):
            approve(fr, number)
        assert self.raised(fr) == {PART: "exploit"}
        approve(by(fr, BOB), number)
        assert self.raised(fr) == {PART: "technical"}
        assert rows(fr, "advisory.label")[-1] == (
            BOB,
            "advisory.label",
            NAME,
            f"{PART} technical, request {number}, asked by {ALICE}",
        )

    def test_raising_takes_one(self, fr: Node) -> None:
        advisories.label(fr, NAME, "/csaf/document/notes/1", Category.VICTIM)
        assert self.raised(fr) == {PART: "exploit", "/csaf/document/notes/1": "victim"}
        assert approvals.all_requests(fr) == ()

    @pytest.mark.invariant("I13")
    def test_a_draft_that_changed_meanwhile_voids_the_request(self, fr: Node) -> None:
        number = self.lower(fr)
        advisories.label(fr, NAME, "/csaf/document/notes/1", Category.VICTIM)
        with pytest.raises(ConflictError, match="has changed since"):
            approve(by(fr, BOB), number)
        assert self.raised(fr)[PART] == "exploit"

    @pytest.mark.invariant("I13")
    def test_a_draft_that_was_signed_meanwhile_voids_the_request(self, fr: Node) -> None:
        number = self.lower(fr)
        with write(fr.engine) as tx:
            _, own = advisories.issue(fr, tx, NAME)
        (part,) = (element for element in own.elements if element.path == PART)
        assert Category.EXPLOIT in part.categories  # signing does not wait, and goes by the higher category
        with pytest.raises(ConflictError, match="has changed since"):
            approve(by(fr, BOB), number)

    def test_another_category_is_another_request(self, fr: Node) -> None:
        first, second = self.lower(fr), self.lower(fr, Category.REMEDIATION)
        assert (approvals.find(fr, first).state, approvals.find(fr, second).state) == (State.VOID, State.OPEN)

    def test_what_no_element_may_have_is_not_even_asked(self, fr: Node) -> None:
        with pytest.raises(PolicyError, match="names no element"):
            advisories.label(fr, NAME, "/csaf/document/nothing", Category.TECHNICAL, "why not")
        content = document("CERT-FR-2026-0002")
        content["document"]["notes"].append({"category": "description", "title": "Details", "text": "How to do it."})
        technical = import_document(fr, content)
        with pytest.raises(PolicyError, match="lowering technical to severity"):
            advisories.label(fr, technical, "/csaf/document/notes/1", Category.SEVERITY, "why not")
        assert approvals.all_requests(fr) == ()
