"""The way out: one signature for each revision, and what leaves is judged as its receiver will open it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from federation import csaf, outbound, sdjwt
from federation.csaf import Problem
from federation.errors import HandlingError, HeldError, MalformedError, UsageError
from federation.handling import read as read_handling
from federation.model import Category, Decision, Element, ElementDecision, Form, JsonObject, Tlp
from federation.outbound import Draft, OwnAdvisory, check_draft, issue, open_as_receiver, open_in_full, present, reopen
from node.home.context import Node
from tests.nodes import DE, FR, document, make_node

NAME = "CERT-FR-2026-0007"
HANDLING: JsonObject = {
    "tlp": "GREEN",
    "home": "FR",
    "storage": None,
    "onward": "none",
    "purposes": ["remediation"],
    "retain_until": None,
    "embargo_until": None,
    "tier": "standard",
    "recipients": None,
}
NOTES = ("The first note.", "The second note.", "The third note.")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    made = make_node(tmp_path_factory.mktemp("outbound"), FR, "FR")
    yield made
    made.engine.dispose()


def draft(node: Node, content: JsonObject | None = None, **changed: Any) -> Draft:
    content = content or document(NAME, notes=NOTES)
    made = Draft(FR, NAME, 1, node.clock(), read_handling(HANDLING), content, None, {})
    return replace(made, **changed)


def own(node: Node, made: Draft) -> OwnAdvisory:
    signed = issue(made, node.labels, kid="k", sign=lambda _: bytes(64), entropy=node.entropy)
    return reopen(signed.core, signed.disclosures, node.labels)


def decision(advisory: OwnAdvisory, choose: Callable[[Element], Form] = lambda _: Form.FULL) -> Decision:
    elements = tuple(ElementDecision(element, choose(element), ()) for element in advisory.elements)
    return Decision(DE, b"a" * 32, elements, (), (), None)


def without(*paths: str) -> Callable[[Element], Form]:
    return lambda element: Form.WITHHELD if element.path in paths else Form.FULL


def test_what_leaves_in_full_is_the_document_as_its_author_wrote_it(node: Node) -> None:
    made = draft(node)
    advisory = own(node, made)
    presented = present(advisory, decision(advisory))
    assert presented.narrowed == ()
    assert open_as_receiver(presented.presentation)["csaf"] == made.csaf
    assert open_in_full(advisory)["csaf"] == made.csaf


@pytest.mark.invariant("I5")
def test_every_audience_gets_the_same_core(node: Node) -> None:
    advisory = own(node, draft(node))
    less = present(advisory, decision(advisory, without("/csaf/document/notes/1")))
    assert less.presentation.core == present(advisory, decision(advisory)).presentation.core
    assert [n["text"] for n in open_as_receiver(less.presentation)["csaf"]["document"]["notes"]] == [NOTES[0], NOTES[2]]
    assert not any(NOTES[1].encode() in raw for raw in less.presentation.disclosures)


def test_the_core_says_whose_it_is_and_which_revision(node: Node) -> None:
    made = draft(node, revision=7)
    payload = own(node, made).payload
    assert payload["jti"] == f"{FR}/{NAME}/7"
    assert (payload["v"], payload["iss"], payload["iat"]) == (1, FR, int(made.issued_at.timestamp()))
    assert payload["handling"] == HANDLING


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"csaf": {}}, MalformedError, "not valid CSAF"),
        ({"csaf": document(NAME, vulnerabilities=[])}, MalformedError, "not valid CSAF"),
        ({"name": "other"}, UsageError, "tracking id"),
        ({"handling": replace(read_handling(HANDLING), tlp=Tlp.RED)}, HandlingError, "recipients"),
    ],
)
def test_a_draft_that_contradicts_itself_is_not_issued(
    node: Node, change: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        issue(draft(node, **change), node.labels, kid="k", sign=lambda _: bytes(64), entropy=node.entropy)


@pytest.mark.parametrize(
    ("label", "tlp", "fine"),
    [
        ("GREEN", "GREEN", True),
        ("WHITE", "GREEN", False),
        ("WHITE", "CLEAR", True),
        ("AMBER", "AMBER+STRICT", True),
        ("RED", "AMBER", False),
    ],
)
def test_the_documents_own_label_and_the_handling_agree(node: Node, label: str, tlp: str, fine: bool) -> None:
    content = document(NAME)
    content["document"]["distribution"] = {"tlp": {"label": label}}
    made = draft(node, content, handling=read_handling({**HANDLING, "tlp": tlp}))
    if fine:
        check_draft(made)
    else:
        with pytest.raises(UsageError, match="must agree"):
            check_draft(made)


def test_what_no_entry_could_carry_is_not_signed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "MAX_ENTRY_BYTES", 1 << 10)
    with pytest.raises(UsageError, match="over the 1024"):
        own(node, draft(node))


# What really leaves is judged (I4)


@pytest.mark.invariant("I4")
def test_a_name_that_was_withheld_takes_the_note_that_repeats_it_along(node: Node) -> None:
    content = document(NAME, notes=("Nothing here.", "Found by Hedwig Sommerfeld in June.", "Nothing there."))
    content["document"]["acknowledgments"] = [{"names": ["Hedwig Sommerfeld"]}]
    advisory = own(node, draft(node, content))
    presented = present(advisory, decision(advisory, _personal))
    assert presented.narrowed == ("/csaf/document/notes/1",)
    assert not any(b"Sommerfeld" in raw for raw in presented.presentation.disclosures)
    texts = [note["text"] for note in open_as_receiver(presented.presentation)["csaf"]["document"]["notes"]]
    assert texts == ["Nothing here.", "Nothing there."]


def _personal(element: Element) -> Form:
    return Form.WITHHELD if Category.PERSONAL in element.categories else Form.FULL


@pytest.mark.invariant("I4")
def test_a_name_in_the_plain_part_holds_the_release(node: Node) -> None:
    content = document(NAME)
    content["document"]["publisher"]["name"] = "CERT of Hedwig Sommerfeld"
    content["document"]["acknowledgments"] = [{"names": ["Hedwig Sommerfeld"]}]
    advisory = own(node, draft(node, content))
    present(advisory, decision(advisory))  # sanity
    with pytest.raises(HeldError, match="always plain") as caught:
        present(advisory, decision(advisory, _personal))
    assert "Sommerfeld" not in str(caught.value)  # I17


# Narrowing to valid CSAF: paths of the document that leaves are not those of the signed one


def _faulty(monkeypatch: pytest.MonkeyPatch, fault: Callable[[JsonObject], str | None]) -> None:
    """Makes the validator find a fault where `fault` says, in the document that it is given."""

    def problems(content: JsonObject) -> tuple[Problem, ...]:
        path = fault(content)
        return () if path is None else (Problem("6.1.99", path),)

    monkeypatch.setattr(csaf, "problems", problems)


def _third_note(content: JsonObject) -> str | None:
    texts = [note["text"] for note in content["document"].get("notes", [])]
    return f"/document/notes/{texts.index(NOTES[2])}/text" if NOTES[2] in texts else None


@pytest.mark.parametrize("withheld", [(), (0,), (1,), (0, 1)])
def test_the_element_at_fault_is_found_where_earlier_items_are_withheld(
    node: Node, monkeypatch: pytest.MonkeyPatch, withheld: tuple[int, ...]
) -> None:
    advisory = own(node, draft(node, document(NAME, notes=NOTES)))
    chosen = decision(advisory, _csaf_base(*(f"/csaf/document/notes/{index}" for index in withheld)))
    _faulty(monkeypatch, _third_note)
    presented = present(advisory, chosen)
    assert presented.narrowed == ("/csaf/document/notes/2",)
    left = [note["text"] for note in open_as_receiver(presented.presentation)["csaf"]["document"].get("notes", [])]
    assert left == [text for index, text in enumerate(NOTES[:2]) if index not in withheld]


def _csaf_base(*paths: str) -> Callable[[Element], Form]:
    """Everything but `paths`, the document's category in its general form."""

    def choose(element: Element) -> Form:
        if element.path in paths:
            return Form.WITHHELD
        return Form.GENERALISED if element.path == "/csaf/document/category" else Form.FULL

    return choose


def test_signed_paths_count_what_was_signed(node: Node) -> None:
    advisory = own(node, draft(node))
    chosen = present(advisory, decision(advisory, without("/csaf/document/notes/0"))).presentation
    nodes = sdjwt.process(advisory.payload, chosen.disclosures).nodes
    signed_path = outbound._signed_path
    assert signed_path("/csaf/document/notes/0/text", nodes) == "/csaf/document/notes/1/text"
    assert signed_path("/csaf/document/notes/1", nodes) == "/csaf/document/notes/2"
    assert signed_path("/csaf/document/notes/9", nodes) == "/csaf/document/notes/9"
    assert signed_path("/csaf/document/title", nodes) == "/csaf/document/title"


def test_the_category_gives_way_before_any_content_does(node: Node) -> None:
    content = document(NAME, notes=NOTES, product_tree={"full_product_names": [{"product_id": "P1", "name": "Thing"}]})
    content["document"]["category"] = "csaf_security_advisory"
    content["vulnerabilities"] = [
        {"notes": [{"category": "summary", "text": "A flaw."}], "product_status": {"known_affected": ["P1"]}}
    ]
    advisory = own(node, draft(node, content))

    def no_products(element: Element) -> Form:
        return Form.WITHHELD if element.needs_products or element.path == "/csaf/product_tree" else Form.FULL

    presented = present(advisory, decision(advisory, no_products))
    assert presented.narrowed == ("/csaf/document/category",)
    opened = open_as_receiver(presented.presentation)["csaf"]
    assert opened["document"]["category"] == "csaf_base"
    csaf.check(opened)


def test_what_cannot_be_narrowed_is_held(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    advisory = own(node, draft(node))
    _faulty(monkeypatch, lambda _: "/document/tracking/id")
    with pytest.raises(HeldError, match=r"6\.1\.99.*cannot be narrowed"):
        present(advisory, decision(advisory, without("/csaf/document/notes/0")))


def test_narrowing_ends(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    advisory = own(node, draft(node))
    _faulty(monkeypatch, lambda content: "/document/notes/0" if content["document"].get("notes") else "/document")
    with pytest.raises(HeldError):
        present(advisory, decision(advisory, without("/csaf/document/title")))
