"""Working with what came in: marks, assignment, our own notes, comparing; and what happens when it has to go."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select

from federation.errors import ApostilleError, HeldError, NotAllowedError, NotFoundError, UsageError
from federation.model import instant_text
from federation.recall import Reason
from federation.strictjson import encode
from node.desk import inbox, work
from node.desk.inbox import InboxState, Item
from node.desk.work import Change, Difference
from node.home.context import Node
from node.home.people import Post
from node.peering import agreements
from node.sharing import recalls, releases, retention, revisions
from node.store.database import read
from node.store.tables import annotations, audit, out_entries
from tests.nodes import (
    DE,
    FR,
    PEOPLE,
    World,
    agree,
    document,
    files_hold,
    import_document,
    make_world,
    release,
    terms_text,
)

CANARY = "our own words: xylophone"
OFFICE = {
    "alice": frozenset((Post.ANALYST,)),
    "bob": frozenset((Post.OPERATOR, Post.APPROVER)),
    "carol": frozenset((Post.AUDITOR,)),
}
_SHARES_LESS = "\n  - {id: all, tlp: [GREEN], share: {identification: full, technical: full}}"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """FR has sent A and B to DE, where alice works, bob operates and carol audits."""
    made = make_world(tmp_path)
    agree(made)
    release(made, "A", "B")
    made.sync(DE, FR)
    made.nodes[DE] = replace(made[DE], people=OFFICE)
    yield made
    made.close()


@pytest.fixture
def de(world: World) -> Node:
    return world[DE]


def rows(node: Node) -> list[tuple[str, str, str, str]]:
    """The audit rows of the desk: who, act, about what, detail."""
    with read(node.engine) as tx:
        found = tx.execute(select(audit).order_by(audit.c.id)).all()
    return [(r.by, r.act, r.subject, r.detail) for r in found if r.act.startswith("inbox.")]


def item(node: Node, name: str = "A") -> Item:
    return inbox.find(node, name)


def test_whoever_reads_first_stays_noted(world: World, de: Node) -> None:
    assert (item(de).read_at, item(de).read_by) == (None, None)
    work.mark_read(de, "A")
    first = world.clock()
    world.clock.move(hours=1)
    work.mark_read(replace(de, actor="dave", people={**OFFICE, "dave": frozenset((Post.ANALYST,))}), "A")
    assert (item(de).read_at, item(de).read_by) == (first, "alice")
    assert item(de, "B").read_at is None
    assert rows(de) == [("alice", "inbox.read", f"{FR}/A/1", f"number {item(de).id}")]


@pytest.mark.parametrize(("who", "reads"), [("alice", True), ("bob", False), ("carol", False), ("nobody", False)])
def test_what_is_shown_counts_as_read_only_by_whoever_works_with_it(de: Node, who: str, reads: bool) -> None:
    work.mark_shown(replace(de, actor=who), item(de))
    assert (item(de).read_by == who) is reads
    assert len(rows(de)) == int(reads)


def test_an_item_is_assigned_to_an_analyst_and_to_nobody_else(de: Node) -> None:
    assert work.assign(de, "A", "alice").assigned_to == "alice"
    assert work.assign(de, "B", "ME").assigned_to == "alice"
    for account in ("carol", "nobody"):
        with pytest.raises(UsageError, match=f"{account} is no analyst here; these are: alice"):
            work.assign(de, "A", account)
    assert work.assign(de, "A", None).assigned_to is None
    work.assign(de, "A", None)  # the same again is told nobody
    assert [(act, detail.partition(": ")[2]) for _, act, _, detail in rows(de)] == [
        ("inbox.assign", "alice"),
        ("inbox.assign", "alice"),
        ("inbox.assign", "nobody"),
    ]


def test_what_was_done_can_be_undone(world: World, de: Node) -> None:
    done = work.action(de, "A")
    assert (done.actioned_at, done.actioned_by) == (world.clock(), "alice")
    work.action(de, "A")
    assert work.action(de, "A", undo=True).actioned_at is None
    assert work.action(de, "A", undo=True).actioned_by is None
    assert [detail.partition(": ")[2] for _, _, _, detail in rows(de)] == ["", "undone"]


@pytest.mark.parametrize("who", ["bob", "carol", "nobody"])
def test_only_an_analyst_works_at_the_desk(de: Node, who: str) -> None:
    other = replace(de, actor=who)
    before = item(de)
    acts: tuple[Callable[[], Item], ...] = (
        lambda: work.mark_read(other, "A"),
        lambda: work.assign(other, "A", "alice"),
        lambda: work.action(other, "A"),
        lambda: work.annotate(other, "A", CANARY),
    )
    for act in acts:
        with pytest.raises(NotAllowedError, match=f"{who} is no analyst here; ask alice"):
            act()
    assert item(de) == before
    assert rows(de) == []


# Our own words


@pytest.mark.invariant("I12")
@pytest.mark.invariant("I17")
def test_our_words_stand_apart_and_go_nowhere(world: World, de: Node) -> None:
    before = inbox.content(de, "A")
    work.annotate(de, "A", f"  {CANARY}\nsecond line  ")
    world.clock.move(hours=1)
    work.annotate(de, str(item(de).id), "more")
    notes = work.annotations_of(de, item(de))
    assert [(n.by, n.text) for n in notes] == [("alice", f"{CANARY}\nsecond line"), ("alice", "more")]
    assert notes[0].at < notes[1].at
    assert work.annotations_of(de, item(de, "B")) == ()
    found = inbox.content(de, "A")
    assert (found.csaf, found.compact, found.terms) == (before.csaf, before.compact, before.terms)
    assert files_hold(de, CANARY.encode())
    with read(de.engine) as tx:
        every = [str(tuple(row)) for row in tx.execute(select(audit)).all()]
        sent = tx.execute(select(out_entries.c.data)).scalars().all()
    assert not any("xylophone" in text for text in every)
    assert not any(b"xylophone" in (data or b"") for data in sent)
    assert [(act, detail) for _, act, _, detail in rows(de)] == [("inbox.annotate", f"number {item(de).id}")] * 2


@pytest.mark.parametrize("text", ["", " \n", "x" * 20_001, "\udcff"])
def test_an_annotation_is_a_text(de: Node, text: str) -> None:
    with pytest.raises(UsageError):
        work.annotate(de, "A", text)
    with read(de.engine) as tx:
        assert tx.execute(select(func.count()).select_from(annotations)).scalar_one() == 0


@pytest.mark.invariant("I11")
@pytest.mark.invariant("I15")
@pytest.mark.parametrize("way", ["withdrawn", "recalled", "expired"])
def test_of_what_is_gone_our_words_stay_and_nothing_else(tmp_path: Path, way: str) -> None:
    world = make_world(tmp_path)
    fr, de = world[FR], world[DE]
    agree(world)
    soon = instant_text(world.clock() + timedelta(days=2))
    releases.release(
        fr, import_document(fr, document("A", title="teapot"), handling={"tlp": "GREEN", "retain_until": soon})
    )
    world.sync(DE, FR)
    work.annotate(de, "A", CANARY)
    number = str(item(de).id)
    if way == "expired":
        world.clock.move(days=3)
    else:
        releases.withdraw(fr, "A", DE) if way == "withdrawn" else recalls.give(fr, "A", Reason.ERROR)
        world.sync(DE, FR)
    check_that_only_ours_is_left(de, number, InboxState(way), [CANARY])
    work.annotate(de, number, "and it was gone")
    retention.expire(de)
    check_that_only_ours_is_left(de, number, InboxState(way), [CANARY, "and it was gone"])
    de.engine.dispose()
    assert files_hold(de, CANARY.encode())
    assert not files_hold(de, b"teapot")
    world.close()


def check_that_only_ours_is_left(de: Node, number: str, state: InboxState, ours: list[str]) -> None:
    gone = item(de, number)
    assert gone.state is state
    assert gone.gone
    assert "teapot" not in gone.title
    assert [note.text for note in work.annotations_of(de, gone)] == ours
    with pytest.raises(HeldError):
        inbox.content(de, number)
    with pytest.raises(HeldError):
        work.mark_read(de, number)
    with pytest.raises(HeldError):
        work.action(de, number)
    with pytest.raises(HeldError):
        work.assign(de, number, "alice")
    with pytest.raises((HeldError, NotFoundError)):
        work.diff(de, number)


# Comparing


def changes(node: Node, *references: str) -> dict[str, tuple[Difference, Any, Any]]:
    _, _, found = work.diff(node, *references)
    return {change.pointer: (change.difference, change.earlier, change.later) for change in found}


def revise(world: World, name: str, labels: Mapping[str, str] = MappingProxyType({}), **changed: Any) -> None:
    """FR makes and releases the next revision of an advisory."""
    content = document(name, **changed)
    content["document"]["tracking"]["version"] = "2"
    content["document"]["tracking"]["revision_history"].append(
        {"date": "2026-11-02T09:00:00Z", "number": "2", "summary": "More"}
    )
    content["document"]["tracking"]["current_release_date"] = "2026-11-02T09:00:00Z"
    data = encode({"csaf": content, "handling": {"tlp": "GREEN"}, "labels": dict(labels)})
    revisions.revise(world[FR], name, data, "file.json", tlp=None)
    releases.release(world[FR], name)
    world.sync(DE, FR)


def test_two_revisions_are_compared_part_by_part(world: World, de: Node) -> None:
    revise(world, "A", title="Another title", notes=("What is known.", "And more."))
    earlier, later, _ = work.diff(de, "A")
    assert [(earlier.revision, earlier.state), (later.revision, later.state)] == [
        (1, InboxState.SUPERSEDED),
        (2, InboxState.CURRENT),
    ]
    found = changes(de, "A")
    assert found["/csaf/document/title"] == (Difference.CHANGED, "Title of A", "Another title")
    assert found["/csaf/document/tracking/version"] == (Difference.CHANGED, "1", "2")
    assert found["/csaf/document/notes/1"][0] is Difference.ONLY_LATER
    assert "/csaf/document/notes/0" not in found
    assert not any(pointer.startswith(("/handling", "/terms")) for pointer in found)
    assert changes(de, str(earlier.id), str(later.id)) == changes(de, str(later.id), str(earlier.id)) == found


def test_what_is_withheld_from_the_later_one_is_told(world: World, de: Node) -> None:
    """The second revision says the same as the first, but for a label, and that category is shared no more."""
    (old,) = agreements.all_held(world[FR])
    world.nodes[DE] = replace(de, people=PEOPLE)  # somebody there has to sign, too
    text = terms_text(world, version=2, previous=f'"{old.agreement.digest.hex()}"', grants=_SHARES_LESS)
    agree(world, text)
    revise(world, "A", {"/csaf/document/notes/0": "exploit"}, title="Title of A")
    found = changes(de, "A")
    ((how, earlier, later),) = [found[pointer] for pointer in found if pointer.startswith("/csaf/document/notes")]
    assert (how, later) == (Difference.ONLY_EARLIER, None)
    assert "What is known." in str(earlier)
    assert found["/terms/agreement"][0] is Difference.CHANGED


def test_there_is_nothing_to_compare_with(world: World, de: Node) -> None:
    with pytest.raises(NotFoundError, match="nothing is here that came before"):
        work.diff(de, "A")
    with pytest.raises(UsageError, match="two advisories"):
        work.diff(de, "A", "B")
    with pytest.raises(UsageError, match="the same delivery"):
        work.diff(de, "A", str(item(de).id))
    with pytest.raises(ApostilleError):
        work.diff(de, "none")


def differences(earlier: Any, later: Any) -> list[Change]:
    return list(work._differences(earlier, later, "", ""))


def test_a_member_that_is_gone_does_not_make_all_after_it_differ() -> None:
    assert differences({"l": ["a", "b", "c"]}, {"l": ["b", "c"]}) == [
        Change("/l/0", Difference.ONLY_EARLIER, "a", None)
    ]
    assert differences(["a", {"t": 1}, "c"], ["a", {"t": 2}, "c"]) == [Change("/1/t", Difference.CHANGED, 1, 2)]
    assert differences({"a/b": {"~": 1}}, {"a/b": {"~": True}}) == [Change("/a~1b/~0", Difference.CHANGED, 1, True)]
    assert differences({"a": [1]}, {"a": {"0": 1}}) == [Change("/a", Difference.CHANGED, [1], {"0": 1})]
    assert differences({"a": None}, {}) == [Change("/a", Difference.ONLY_EARLIER, None, None)]
    long = [str(n) for n in range(1_500)]
    assert differences(long, long[1:])[-1] == Change("/1499", Difference.ONLY_EARLIER, "1499", None)


_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=2),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text("ab/~", max_size=2), inside, max_size=3),
    max_leaves=10,
)


@given(_JSON, _JSON)
def test_nothing_differs_exactly_when_both_say_the_same(one: Any, two: Any) -> None:
    assert (differences(one, two) == []) == (work._spelt(one) == work._spelt(two))
    assert differences(one, one) == []
