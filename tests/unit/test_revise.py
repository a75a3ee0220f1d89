"""Later revisions: nothing gets out by oversight, and nobody is left with an earlier one unnoticed."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from federation import strictjson
from federation.errors import AwaitsSecondError, MalformedError, NotAllowedError, NotFoundError, UsageError
from federation.model import Category, Country, JsonObject, NodeId, Tlp
from federation.recall import Reason
from node.desk import inbox
from node.desk.inbox import InboxState
from node.home.people import Post
from node.operation import overview
from node.records import ledger
from node.records.ledger import Act
from node.sharing import advisories, answers, holders, recalls, releases, revisions
from node.sharing.advisories import State
from node.sharing.answers import HolderState
from node.sharing.holders import OldHolder
from node.store import tables
from node.store.database import read
from tests.nodes import DE, FR, IN, World, agree, document, import_document, make_world

NOTE = "/csaf/document/notes/0"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path, FR, DE, IN)
    agree(made)
    yield made
    made.close()


def later(name: str, version: str, **more: Any) -> JsonObject:
    """The document with another tracking version."""
    made = document(name, **more)
    tracking = made["document"]["tracking"]
    lines = [
        {"date": f"2026-11-0{number}T09:00:00Z", "number": str(number), "summary": "A release"}
        for number in range(1, int(version) + 1)
    ]
    tracking.update(version=version, revision_history=lines, current_release_date=lines[-1]["date"])
    tracking["initial_release_date"] = lines[0]["date"]
    return made


def revise(
    world: World, content: JsonObject, name: str = "X", *, tlp: Tlp | None = None, **file: Any
) -> revisions.Revised:
    data = strictjson.encode({"csaf": content, **file} if file else content)
    return revisions.revise(world[FR], name, data, "file.json", tlp=tlp)


def released(world: World, *to: NodeId, name: str = "X", **more: Any) -> int:
    """FR releases what is newest of an advisory, which is imported if it is not there; returns its revision."""
    if not any(summary.name == name for summary in advisories.all_advisories(world[FR])):
        import_document(world[FR], document(name, **more))
    summary, _ = releases.release(world[FR], name, to)
    return summary.revision


def next_to(world: World, version: int, *to: NodeId) -> int:
    revise(world, later("X", str(version)))
    return released(world, *to)


def states(world: World, at: NodeId) -> list[tuple[int, InboxState]]:
    return sorted((item.revision, item.state) for item in inbox.items(world[at], every_state=True))


# Making one


def test_a_later_revision_supersedes_the_one_before(world: World) -> None:
    released(world, DE, IN)
    world.sync_all()
    made = revise(world, later("X", "2", title="A worse flaw"))
    assert (made.made.advisory.revision, made.made.advisory.state, made.made.fresh) == (2, State.DRAFT, True)
    assert states(world, DE) == [(1, InboxState.CURRENT)]
    assert released(world, DE, IN) == 2
    world.sync_all()
    for peer in (DE, IN):
        assert states(world, peer) == [(1, InboxState.SUPERSEDED), (2, InboxState.CURRENT)]
        assert inbox.content(world[peer], "X").item.title == "A worse flaw"
    rows = ledger.rows(world[FR], DE, "X")
    assert [row.revision for row in rows] == [1, 2]
    assert [summary.revision for summary in advisories.all_advisories(world[FR])] == [1, 2]
    assert advisories.content(world[FR], "X", 1)[1]["document"]["title"] == "A flaw"
    with pytest.raises(NotFoundError, match="revision 3"):
        advisories.content(world[FR], "X", 3)
    with read(world[FR].engine) as tx:
        done = select(tables.audit.c.detail).where(tables.audit.c.act == "advisory.issue")
        assert tx.execute(done).scalars().all() == ["revision 1", "revision 2"]


@pytest.mark.parametrize(
    ("content", "name", "text"),
    [
        (later("Y", "2"), "X", "its tracking id is Y"),
        (later("X", "1", title="Other"), "X", "its tracking version is 1, as in revision 1"),
        (later("D", "2"), "D", "never released"),
    ],
)
def test_what_is_no_later_revision_is_refused(world: World, content: JsonObject, name: str, text: str) -> None:
    released(world, DE)
    import_document(world[FR], document("D"))
    with pytest.raises(UsageError, match=text):
        revise(world, content, name)
    with pytest.raises(NotFoundError):
        revise(world, later("Z", "2"), "Z")
    with pytest.raises(MalformedError, match="not valid CSAF"):
        revise(world, later("X", "2") | {"product_tree": {}})
    with pytest.raises(NotAllowedError):
        revisions.revise_from_issued(replace(world[FR], people={"alice": frozenset((Post.AUDITOR,))}), "X")
    assert [s.revision for s in advisories.all_advisories(world[FR])] == [1, 1]


def test_the_same_file_again_changes_nothing_and_another_one_replaces_the_draft(world: World) -> None:
    released(world, DE)
    first = revise(world, later("X", "2"))
    again = revise(world, later("X", "2"))
    assert (first.made.fresh, again.made.fresh, again.made.advisory) == (True, False, first.made.advisory)
    other = revise(world, later("X", "2", title="Mended"))
    assert (other.made.advisory.revision, other.made.advisory.title) == (2, "Mended")
    released(world, DE)
    with pytest.raises(UsageError, match="as in revision 2"):
        revise(world, later("X", "2", title="Mended again"))


def test_the_file_of_an_earlier_revision_is_known_and_releases_nothing(world: World) -> None:
    released(world, DE)
    revise(world, later("X", "2"))
    file = {"csaf": document("X"), "handling": {"tlp": "GREEN"}, "labels": {}}
    made = advisories.import_file(world[FR], strictjson.encode(file), "file.json", tlp=None)
    assert (made.fresh, made.revised, made.advisory.revision) == (False, True, 1)
    with pytest.raises(UsageError, match="apostille advisory revise X FILE"):
        import_document(world[FR], document("X", title="Other"))


def test_two_people_who_revise_at_once_do_not_overwrite_each_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    released(world, DE)
    real = revisions._inherited

    def slow(*arguments: Any) -> Any:
        monkeypatch.undo()
        revise(world, later("X", "2", title="By bob"))
        return real(*arguments)

    monkeypatch.setattr(revisions, "_inherited", slow)
    with pytest.raises(UsageError, match="changed meanwhile"):
        revise(world, later("X", "2", title="By alice"))
    assert advisories.all_advisories(world[FR])[-1].title == "By bob"


# Handling and labels stay


@pytest.mark.invariant("I2")
def test_handling_that_the_file_does_not_give_is_as_before(world: World) -> None:
    strict = {"tlp": "AMBER+STRICT", "storage": ["DE", "FR"], "tier": "sensitive", "purposes": ["detection"]}
    import_document(world[FR], document("X"), handling=strict)
    released(world, DE)
    before = advisories.all_advisories(world[FR])[0].handling
    assert revise(world, later("X", "2")).made.advisory.handling == before
    changed = revise(world, later("X", "2"), handling={"storage": ["FR"]}).made.advisory.handling
    assert changed == replace(before, storage=frozenset((Country("FR"),)))
    assert revise(world, later("X", "2", title="T"), tlp=Tlp.GREEN).made.advisory.handling.tlp is Tlp.GREEN
    labelled = later("X", "2")
    labelled["document"]["distribution"] = {"tlp": {"label": "AMBER"}}
    assert revise(world, labelled).made.advisory.handling == before  # the document has no label for STRICT
    labelled["document"]["distribution"] = {"tlp": {"label": "RED"}}
    with pytest.raises(UsageError, match="RED needs named recipients"):
        revise(world, labelled)


@pytest.mark.invariant("I2")
def test_what_was_raised_stays_raised_by_its_place_or_by_what_it_says(world: World) -> None:
    notes = ("The victim is Acme.", "Nothing.")
    import_document(world[FR], document("X", notes=notes), labels={NOTE: "victim"})
    released(world, DE)
    same_place = revise(world, later("X", "2", notes=("The victim is Acme Ltd.", "Nothing.")))
    assert same_place.kept == {NOTE: Category.VICTIM}
    moved = revise(world, later("X", "2", notes=("Nothing.", *notes)))
    assert moved.kept == {NOTE: Category.VICTIM, "/csaf/document/notes/1": Category.VICTIM}
    _, own = advisories.own_advisory(world[FR], "X")
    raised = {e.path for e in own.elements if Category.VICTIM in e.categories}
    assert raised == moved.kept.keys()
    gone = revise(world, later("X", "2", title="T", notes=("Nothing.",)))
    assert gone.kept == {NOTE: Category.VICTIM}
    with pytest.raises(AwaitsSecondError):  # lowering takes two people, as always
        advisories.label(world[FR], "X", NOTE, Category.EXPLOIT, "there is no victim in it")


OLD, NEW = "The victim is the waterworks of Lyon.", "It struck Lyon, and there the waterworks."
LINK = "https://fr.example/1"
NOTES = [{"category": "general", "text": text} for text in ("Known.", OLD)], {"category": "details", "text": NEW}
LINKS = [{"summary": text, "url": LINK, "category": "self"} for text in ("Known.", OLD)], {"summary": NEW, "url": LINK}
THANKS = [{"summary": text} for text in ("Known.", OLD)], {"organization": NEW}
ON = {"product_ids": ["P-1"]}
# Where the raised part stood, where it stands in other words, and what stands there before and after.
ELSEWHERE: dict[str, tuple[str, str, Any, Any]] = {
    "a note": ("document/notes/1", "document/notes/0", *NOTES),
    "a reference": ("document/references/1", "document/references/0", *LINKS),
    "thanks": ("document/acknowledgments/1/summary", "document/acknowledgments/0/organization", *THANKS),
    "a note on a flaw": ("vulnerabilities/0/notes/1", "vulnerabilities/0/notes/0", *NOTES),
    "a reference of a flaw": ("vulnerabilities/0/references/1", "vulnerabilities/0/references/0", *LINKS),
    "thanks for a flaw": (
        "vulnerabilities/0/acknowledgments/1/summary",
        "vulnerabilities/0/acknowledgments/0/organization",
        *THANKS,
    ),
    "a remediation": (
        "vulnerabilities/0/remediations/1",
        "vulnerabilities/0/remediations/0",
        [{"category": "mitigation", "details": text, **ON} for text in ("Known.", OLD)],
        {"category": "workaround", "details": NEW, **ON},
    ),
    "a threat": (
        "vulnerabilities/0/threats/1",
        "vulnerabilities/0/threats/0",
        [{"category": "impact", "details": text, **ON} for text in ("Known.", OLD)],
        {"category": "exploit_status", "details": NEW, **ON},
    ),
    "an involvement": (
        "vulnerabilities/0/involvements/1",
        "vulnerabilities/0/involvements/0",
        [
            {"party": party, "status": "open", "summary": text}
            for party, text in (("discoverer", "Known."), ("other", OLD))
        ],
        {"party": "vendor", "status": "open", "summary": NEW},
    ),
    "a flaw": (
        "vulnerabilities/1/title",
        "vulnerabilities/0/ids",
        [{"title": text} for text in ("Known.", OLD)],
        {"ids": [{"system_name": NEW, "text": "1"}]},
    ),
    "the publisher": (
        "document/publisher/contact_details",
        "document/publisher/issuing_authority",
        {"contact_details": OLD},
        {"issuing_authority": NEW},
    ),
    "the tracking": (
        "document/tracking/aliases",
        "document/tracking/generator",
        {"aliases": [OLD]},
        {"generator": {"engine": {"name": NEW}}},
    ),
    "the document": (
        "document/aggregate_severity",
        "document/title",
        {"aggregate_severity": {"text": OLD}},
        {"title": NEW},
    ),
    "the AI part": ("reproduction", "transferability", {"reproduction": OLD}, {"transferability": NEW}),
    "a note, now on a flaw": ("document/notes/1", "vulnerabilities/0/notes/0", *NOTES),
}


def with_part(version: str, place: str, part: Any) -> JsonObject:
    """A file in which `part` stands in the list, or as members of the object, in which `place` is."""
    flaw: JsonObject = {"cve": "CVE-2026-0001", "product_status": {"known_affected": ["P-1"]}}
    tree = {"full_product_names": [{"product_id": "P-1", "name": "Pump"}]}
    content = later("X", version, product_tree=tree, vulnerabilities=[flaw])
    if "/" not in place:
        return {"csaf": content, "ai": part}
    names = [name for name in place.split("/")[:-1] if not name.isdecimal()]
    within: Any = content
    for name in names[:-1]:
        within = within[name][0] if name == "vulnerabilities" else within[name]
    if isinstance(part, list):
        within[names[-1]] = part
    else:
        within[names[-1]].update(part)
    return {"csaf": content}


@pytest.mark.invariant("I2")
@pytest.mark.parametrize("which", ELSEWHERE)
def test_a_raised_part_that_is_not_found_again_raises_what_is_new_beside_it(world: World, which: str) -> None:
    was, is_, before, after = ELSEWHERE[which]
    root = "/ai/" if "/" not in was else "/csaf/"
    first = {**with_part("1", was, before), "handling": {"tlp": "GREEN"}, "labels": {f"{root}{was}": "victim"}}
    advisories.import_file(world[FR], strictjson.encode(first), "file.json", tlp=None)
    released(world, DE)
    known = before[:1] if isinstance(before, list) else None
    file = with_part("2", is_, after if known is None else [after, *known])
    made = revise(world, file.pop("csaf"), **file)
    assert made.kept[f"{root}{is_}"] is Category.VICTIM
    assert made.unsure[f"{root}{is_}"] == f"{root}{was}"
    _, own = advisories.own_advisory(world[FR], "X")
    assert {e.path for e in own.elements if Category.VICTIM in e.categories} == made.kept.keys()
    with pytest.raises(AwaitsSecondError):
        advisories.label(world[FR], "X", f"{root}{is_}", Category.PERSONAL, "there is no victim in it")


@pytest.mark.invariant("I2")
def test_a_raised_part_that_moved_is_known_again_by_what_it_says(world: World) -> None:
    import_document(world[FR], document("X", notes=(OLD, "What is known.")), labels={NOTE: "victim"})
    released(world, DE)
    made = revise(world, later("X", "2", notes=("What is known.", OLD, "And more.")))
    assert made.kept == {NOTE: Category.VICTIM, "/csaf/document/notes/1": Category.VICTIM}
    assert made.unsure == {}


@pytest.mark.invariant("I2")
def test_nobody_undoes_a_raised_category_alone_by_moving_the_part_and_wording_it_otherwise(world: World) -> None:
    def notes(*texts: str) -> list[JsonObject]:
        return [{"category": "details", "title": text.partition(" ")[0], "text": text} for text in texts]

    first = document("X")
    first["document"]["notes"] = notes("What is known.", OLD)
    import_document(world[FR], first)
    advisories.label(world[FR], "X", "/csaf/document/notes/1", Category.VICTIM)
    released(world, DE)
    world.sync(DE, FR)
    assert inbox.content(world[DE], "X").csaf["document"]["notes"] == notes("What is known.")
    second = later("X", "2")
    second["document"]["notes"] = notes(f"{OLD}!", "Besides, a second thing is known.", "What is known.")
    made = revise(world, second)
    lost = "/csaf/document/notes/1"
    assert made.unsure == {NOTE: lost}
    assert made.kept == {NOTE: Category.VICTIM, lost: Category.VICTIM}
    released(world, DE)
    world.sync(DE, FR)
    assert inbox.content(world[DE], "X").csaf["document"]["notes"] == notes("What is known.")


@pytest.mark.invariant("I2")
def test_what_stood_beside_a_raised_part_before_is_as_it_was(world: World) -> None:
    notes = ("What is known.", OLD, "The reporter is Jane Doe.")
    labels = {"/csaf/document/notes/1": "victim", "/csaf/document/notes/2": "personal"}
    import_document(world[FR], document("X", notes=notes), labels=labels)
    released(world, DE)
    made = revise(world, later("X", "2", notes=("What is known.", NEW, "The reporter is Jane Doe.")))
    assert made.kept == {path: Category(category) for path, category in labels.items()}
    assert made.unsure == {}


@pytest.mark.invariant("I2")
def test_a_file_may_raise_more_and_not_less(world: World) -> None:
    import_document(world[FR], document("X"), labels={NOTE: "personal"})
    released(world, DE)
    less = revise(world, later("X", "2"), labels={NOTE: "exploit"})
    assert less.kept == {NOTE: Category.PERSONAL}
    more = revise(world, later("X", "2", title="T"), labels={NOTE: "victim"})
    assert more.kept == {}
    replaced = revise(world, later("X", "2"))  # the draft before said victim
    assert replaced.kept == {NOTE: Category.VICTIM}


def test_the_issued_document_is_the_start_of_the_next_revision(world: World) -> None:
    import_document(world[FR], document("X"), labels={NOTE: "victim"}, handling={"tlp": "AMBER"})
    released(world, DE)
    made = revisions.revise_from_issued(world[FR], "X")
    assert made.kept == {NOTE: Category.VICTIM}
    assert made.made.advisory.handling.tlp is Tlp.AMBER
    before, after = (advisories.content(world[FR], "X", revision)[1] for revision in (1, 2))
    tracking = after["document"].pop("tracking")
    before["document"].pop("tracking")
    assert after == before
    assert tracking["version"] == "2"
    assert tracking["revision_history"][-1]["number"] == "2"
    assert released(world, DE) == 2


@pytest.mark.parametrize(("version", "next_"), [("1.4.2", "1.4.3"), ("1.0.9+build.3", "1.0.10")])
def test_the_next_version_follows_the_one_before(world: World, version: str, next_: str) -> None:
    content = document("X")
    content["document"]["tracking"].update(version=version)
    content["document"]["tracking"]["revision_history"][0]["number"] = version
    import_document(world[FR], content)
    released(world, DE)
    revisions.revise_from_issued(world[FR], "X")
    assert advisories.content(world[FR], "X")[1]["document"]["tracking"]["version"] == next_


# Who is left with an earlier one


@pytest.mark.invariant("I15")
def test_a_holder_that_does_not_get_the_new_one_is_listed_until_somebody_decides(world: World) -> None:
    released(world, DE, IN)
    world.sync(IN, FR)
    assert holders.old_holders(world[FR], "X") == ()
    next_to(world, 2, DE)
    assert holders.old_holders(world[FR], "X") == (OldHolder("X", 2, IN, (1,), True, None),)
    assert overview.overview(world[FR]).unsettled == 1
    with pytest.raises(UsageError, match="holds the newest revision or none"):
        holders.leave(world[FR], "X", DE, "no matter")
    for reason in ("", "two\nlines", "x" * 501):
        with pytest.raises(UsageError, match="one line"):
            holders.leave(world[FR], "X", IN, reason)
    holders.leave(world[FR], "X", IN, "an archive")
    assert holders.old_holders(world[FR], "X") == (OldHolder("X", 2, IN, (1,), True, "an archive"),)
    assert overview.overview(world[FR]).unsettled == 0
    with pytest.raises(UsageError, match="by a decision already"):
        holders.leave(world[FR], "X", IN, "again")
    next_to(world, 3, DE)  # the decision was about revision 1, and stands
    assert [(h.peer, h.left) for h in holders.old_holders(world[FR], "X")] == [(IN, "an archive")]
    assert overview.overview(world[FR]).unsettled == 0
    released(world, IN)
    assert holders.old_holders(world[FR], "X") == ()


@pytest.mark.invariant("I15")
def test_a_later_one_that_is_left_behind_too_is_a_new_question(world: World) -> None:
    released(world, DE, IN)
    next_to(world, 2, DE)
    holders.leave(world[FR], "X", IN, "an archive")
    released(world, IN)
    next_to(world, 3, DE)
    assert holders.old_holders(world[FR], "X") == (OldHolder("X", 3, IN, (1, 2), False, None),)
    assert overview.overview(world[FR]).unsettled == 1
    holders.leave(world[FR], "X", IN, "an archive")
    assert overview.overview(world[FR]).unsettled == 0


@pytest.mark.invariant("I15")
def test_those_who_are_left_behind_are_recalled_from_and_nobody_else(world: World) -> None:
    released(world, DE, IN)
    world.sync_all()
    next_to(world, 2, DE)
    order = holders.recall_from_old_holders(world[FR], "X")
    assert (order.revisions, order.reason) == ((1,), Reason.REPLACED)
    assert [(h.node, h.state) for h in order.holders] == [(IN, HolderState.PENDING)]
    assert holders.old_holders(world[FR], "X") == ()
    world.sync_all(2)
    assert states(world, IN) == [(1, InboxState.RECALLED)]
    assert states(world, DE) == [(1, InboxState.SUPERSEDED), (2, InboxState.CURRENT)]
    assert [h.state for h in answers.status(world[FR], "X")[0].holders] == [HolderState.PURGED]
    with pytest.raises(UsageError, match="nobody is left"):
        holders.recall_from_old_holders(world[FR], "X")
    assert released(world, IN) == 2  # the newest one is not recalled
    assert ledger.rows(world[FR], IN, "X", (Act.RECALL,))[0].facts["revisions"] == [1]


@pytest.mark.invariant("I11")
def test_a_recall_from_some_leaves_what_others_have_not_fetched(world: World) -> None:
    released(world, DE, IN)
    revise(world, later("X", "2"))
    released(world, DE)
    holders.leave(world[FR], "X", IN, "its archive")
    next_to(world, 3, IN)
    holders.recall_from_old_holders(world[FR], "X")
    assert [h.node for h in answers.status(world[FR], "X")[0].holders] == [DE]
    world.sync(IN, FR)
    assert states(world, IN) == [(1, InboxState.SUPERSEDED), (3, InboxState.CURRENT)]


@pytest.mark.invariant("I15")
def test_what_was_taken_back_is_held_no_more(world: World) -> None:
    released(world, DE, IN)
    next_to(world, 2, DE)
    assert releases.withdraw(world[FR], "X", IN) != ()
    assert holders.old_holders(world[FR], "X") == ()
    assert overview.overview(world[FR]).withdrawn == ()  # a person did it, and knows
    recalls.give(world[FR], "X", Reason.ERROR, (2,))
    assert overview.overview(world[FR]).unsettled == 0  # a recalled revision is not the newest


def test_a_hand_that_takes_back_names_what_is_there(world: World) -> None:
    released(world, DE, IN)
    world.sync(DE, FR)
    next_to(world, 2, DE, IN)
    world.sync(DE, FR)
    (first,) = releases.withdraw(world[FR], "X", DE, 1)
    assert first == 3
    world.sync(DE, FR)
    assert states(world, DE) == [(1, InboxState.WITHDRAWN), (2, InboxState.CURRENT)]
    for name, revision, peer in (("X", 1, DE), ("X", 3, DE), ("Z", None, DE), ("X", None, NodeId("cert.ke.example"))):
        with pytest.raises(NotFoundError):
            releases.withdraw(world[FR], name, peer, revision)
    assert len(releases.withdraw(world[FR], "X", IN)) == 2
    (row, *_) = ledger.rows(world[FR], DE, acts=(Act.WITHDRAWAL,))
    assert (row.by, row.facts["reason"]) == ("alice", "withdrawn-by-hand")
    with pytest.raises(NotAllowedError):
        releases.withdraw(replace(world[FR], people={"alice": frozenset((Post.OPERATOR,))}), "X", DE)
