"""From disclosures to elements and back: complete, never wider than the labels, and nobody's word is needed for it."""

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from federation import csaf
from federation.elements import elements, selection
from federation.errors import MalformedError, UsageError
from federation.labels import LabelSet, load
from federation.marking import issue_claims
from federation.model import Category, Element, Form
from federation.sdjwt import Hide, Node, Salts, conceal, process, walk

FILE = Path(__file__).parents[2] / "config" / "labels" / "csaf-2.0.yaml"
TREE = "/csaf/product_tree"
NAMES = "/csaf/document/acknowledgments/0/names"
CSAF: dict[str, Any] = {
    "document": {
        "acknowledgments": [{"names": ["Ada Lovelace"], "organization": "Analytical Society"}],
        "category": "csaf_base",
        "csaf_version": "2.0",
        "notes": [{"category": "summary", "text": "In short."}, {"category": "details", "text": "At length."}],
        "publisher": {"category": "vendor", "name": "Example", "namespace": "https://vendor.example"},
        "title": "Pump explodes",
        "tracking": {
            "current_release_date": "2026-11-21T09:30:00Z",
            "id": "EX-1",
            "initial_release_date": "2026-11-21T09:30:00Z",
            "revision_history": [{"date": "2026-11-21T09:30:00Z", "number": "1", "summary": "First release"}],
            "status": "final",
            "version": "1",
        },
    },
    "product_tree": {"full_product_names": [{"name": "Acme Pump", "product_id": "P1"}]},
    "vulnerabilities": [
        {
            "cve": "CVE-2026-0001",
            "product_status": {"known_affected": ["P1"]},
            "threats": [{"category": "exploit_status", "details": "Used since May", "product_ids": ["P1"]}],
        }
    ],
}
AI = {"model": {"vendor": "Acme", "name": "acme-7b"}, "deployer": "A hospital"}
Held = tuple[dict[str, Any], tuple[Node, ...]]
Choice = Callable[[Element], Form]


def fresh() -> Salts:
    calls = iter(range(1_000_000))

    def entropy(size: int) -> bytes:
        first = next(calls)
        return b"".join((first << 20 | n).to_bytes(8, "big") for n in range(size // 8 + 1))[:size]

    return Salts(entropy)


@pytest.fixture(scope="module")
def labels() -> LabelSet:
    return load(FILE.read_text("utf-8"), FILE.name)


def issued(labels: LabelSet, raised: dict[str, Category] | None = None, document: Any = None) -> Held:
    concealed = issue_claims(document or CSAF, None if document else AI, labels, raised or {}, salts=fresh())
    return concealed.payload, walk(concealed.payload, concealed.disclosures)


def received(held: Held, chosen: Iterable[tuple[Element, Form]]) -> tuple[Held, dict[str, Any]]:
    """What a receiver has after a presentation of `chosen`: its nodes, and the claims."""
    payload, nodes = held
    processed = process(payload, selection(chosen, nodes))
    return (payload, processed.nodes), processed.claims


def by_path(found: Sequence[Element]) -> dict[str, Element]:
    assert len({element.path for element in found}) == len(found)
    return {element.path: element for element in found}


def full(_: Element) -> Form:
    return Form.FULL


def without_details(element: Element) -> Form:
    """As an agreement says that shares identification, severity and remediation, and products without their names."""
    allowed = {Category.IDENTIFICATION, Category.SEVERITY, Category.REMEDIATION}
    if element.path in ("/csaf/document/title", "/csaf/document/category"):
        return Form.GENERALISED
    if element.categories <= allowed:
        return Form.FULL
    return Form.GENERALISED if element.generalised and Category.PRODUCT in element.categories else Form.WITHHELD


def without_products(element: Element) -> Form:
    if element.path == "/csaf/document/category":
        return Form.GENERALISED
    return Form.WITHHELD if element.needs_products or Category.PRODUCT in element.categories else Form.FULL


def least(element: Element) -> Form:
    """Only what CSAF requires, in its generalised form."""
    required = ("/csaf/document/title", "/csaf/document/category", "/csaf/document/tracking/revision_history")
    return Form.GENERALISED if element.path in required else Form.WITHHELD


def chosen(found: Sequence[Element], choose: Choice) -> list[tuple[Element, Form]]:
    return [(element, choose(element)) for element in found]


def test_all_elements_in_full_make_the_document_again(labels: LabelSet) -> None:
    held = issued(labels)
    _, claims = received(held, chosen(elements(*held, labels), full))
    assert claims == {"csaf": CSAF, "ai": AI, "labels": {}}


def test_elements_are_what_policy_judges(labels: LabelSet) -> None:
    found = by_path(elements(*issued(labels), labels))
    assert sorted(found) == [
        "/ai/deployer",
        "/ai/model",
        NAMES,
        "/csaf/document/acknowledgments/0/organization",
        "/csaf/document/category",
        "/csaf/document/notes/0",
        "/csaf/document/notes/1",
        "/csaf/document/title",
        "/csaf/document/tracking/revision_history",
        TREE,
        "/csaf/vulnerabilities/0/cve",
        "/csaf/vulnerabilities/0/product_status",
        "/csaf/vulnerabilities/0/threats/0",
    ]
    assert found[NAMES].categories == {Category.PERSONAL}
    assert found[NAMES].full
    assert found[NAMES].generalised
    assert len(found[NAMES].parents) == 2
    assert found["/csaf/document/notes/1"].categories == {Category.TECHNICAL}
    assert found["/csaf/vulnerabilities/0/threats/0"].needs_products
    assert not found["/csaf/vulnerabilities/0/cve"].needs_products


def test_a_value_that_was_general_from_the_start_is_the_generalised_form(labels: LabelSet) -> None:
    held = issued(labels)
    found = by_path(elements(*held, labels))
    for path in ("/csaf/document/category", "/csaf/vulnerabilities/0/product_status"):
        assert found[path].full is None
        assert found[path].generalised is not None
    for form in (Form.FULL, Form.GENERALISED):
        _, claims = received(held, [(found["/csaf/document/category"], form)])
        assert claims["csaf"]["document"]["category"] == "csaf_base"


@pytest.mark.invariant("I5")
def test_a_receiver_sees_the_same_elements_and_which_form_it_holds(labels: LabelSet) -> None:
    held = issued(labels)
    at_origin = elements(*held, labels)
    theirs, claims = received(held, chosen(at_origin, without_details))
    assert "Ada" not in json.dumps(claims)
    assert "Acme Pump" not in json.dumps(claims)
    assert claims["ai"] == {"model": {"vendor": "Acme"}}
    csaf.check(claims["csaf"])
    for element in elements(*theirs, labels):
        origin = by_path(at_origin)[element.path]
        form = without_details(origin)
        assert element.categories == origin.categories
        assert element.parents == origin.parents
        assert element.generalised == (origin.generalised if form is Form.GENERALISED else None)
        assert element.full == (None if form is Form.GENERALISED else origin.full)


def test_a_relay_withholds_more_and_the_rest_still_holds(labels: LabelSet) -> None:
    held = issued(labels)
    at_relay, _ = received(held, chosen(elements(*held, labels), without_details))
    held_there = elements(*at_relay, labels)
    _, claims = received(at_relay, [(e, Form.FULL) for e in held_there if least(e) is not Form.WITHHELD])
    assert claims["csaf"].keys() == {"document"}
    assert claims["csaf"]["document"]["title"] == "Security advisory"  # no fuller form is held
    csaf.check(claims["csaf"])


@pytest.mark.invariant("I2")
def test_a_raised_category_reaches_the_receiver_and_adds_to_the_others(labels: LabelSet) -> None:
    pointer = "/csaf/document/notes/0"
    held = issued(labels, {pointer: Category.VICTIM, NAMES: Category.SOURCE})
    found = by_path(elements(*held, labels))
    assert found[pointer].categories == {Category.IDENTIFICATION, Category.VICTIM}
    theirs, claims = received(held, [(found[pointer], Form.FULL)])
    assert claims["labels"] == {found[pointer].full: "victim"}  # of the names not even the entry came
    (element,) = elements(*theirs, labels)
    assert element == found[pointer]
    theirs, _ = received(held, [(found[NAMES], Form.GENERALISED)])
    (element,) = elements(*theirs, labels)
    assert element.categories == {Category.PERSONAL, Category.SOURCE}


@pytest.mark.invariant("I2")
def test_an_unknown_raised_category_withholds(labels: LabelSet) -> None:
    payload, nodes = issued(labels)
    title = by_path(elements(payload, nodes, labels))["/csaf/document/title"]
    assert title.categories
    entry, disclosures = conceal(
        {"labels": {str(title.full): Hide("top-secret")}}, salts=Salts(lambda n: bytes(i % 251 for i in range(n)))
    )
    raised = payload | entry
    nodes = walk(raised, [*(node.disclosure for node in nodes), *disclosures])
    title = by_path(elements(raised, nodes, labels))["/csaf/document/title"]
    assert title.categories == frozenset()


@pytest.mark.invariant("I2")
def test_an_unlabelled_part_is_an_element_without_categories(labels: LabelSet) -> None:
    document = CSAF | {"x_case": {"victim": "A hospital"}}
    found = by_path(elements(*issued(labels, document=document), labels))
    assert found["/csaf/x_case"].categories == frozenset()
    assert found["/csaf/x_case"].parents == ()


@pytest.mark.invariant("I2")
@pytest.mark.parametrize(
    ("claims", "withheld"),
    [
        # a container that carries a text of its own would bring it along with any of its notes
        (
            {"document": {"notes": Hide(["A hospital", Hide({"category": "summary", "text": "t"})])}},
            {"/csaf/document/notes", "/csaf/document/notes/1"},
        ),
        (
            {"vulnerabilities": Hide([Hide({"cve": Hide("CVE-2026-0001"), "title": "A hospital"})])},
            {"/csaf/vulnerabilities/0", "/csaf/vulnerabilities/0/cve"},
        ),
        ({"document": {"notes": Hide("A hospital")}}, {"/csaf/document/notes"}),
        # finer than our labels: the inside of an element has no label
        (
            {"document": {"distribution": Hide({"text": Hide("A hospital")})}},
            {"/csaf/document/distribution/text"},
        ),
        # what must be plain is hidden, and with it everything inside
        (
            {"document": Hide({"title": Hide("Pump explodes")})},
            {"/csaf/document", "/csaf/document/title"},
        ),
        # names passed off as a role: both count as full, and one path cannot have two
        (
            {"document": {"acknowledgments": Hide([Hide({"names": Hide(["Ada"], ["Countess of Lovelace"])})])}},
            {NAMES},
        ),
        # two containers of one name: the forms inside have different ways down
        (
            {
                "document": {
                    "acknowledgments": Hide(
                        [Hide({"names": Hide(["Ada"])})], [Hide({"names": Hide(["Security researcher"])})]
                    )
                }
            },
            {NAMES},
        ),
    ],
)
def test_what_another_label_file_made_does_not_travel(labels: LabelSet, claims: Any, withheld: set[str]) -> None:
    payload, disclosures = conceal({"csaf": claims}, salts=fresh())
    found = by_path(elements(payload, walk(payload, disclosures), labels))
    assert {path for path, element in found.items() if not element.categories} == withheld


@pytest.mark.invariant("I4")
def test_a_name_passed_off_as_a_role_counts_as_full(labels: LabelSet) -> None:
    claims = {"document": {"acknowledgments": Hide([Hide({"names": Hide(["Ada"], ["Countess of Lovelace"])})])}}
    payload, disclosures = conceal({"csaf": claims}, salts=fresh())
    shown = [d for d in disclosures if d.value != ["Ada"]]
    (element,) = elements(payload, walk(payload, shown), labels)
    assert element.full is not None
    assert element.generalised is None


@pytest.mark.invariant("I6")
@pytest.mark.parametrize(
    "payload",
    [
        {"csaf": {"document": {"title": "Pump explodes"}}},
        {"csaf": {"document": {"notes": []}}},
        {"csaf": {"product_tree": {}}},
        {"csaf": {"document": {"tracking": {"id": {"victim": "A hospital"}}}}},
        {"csaf": {"document": {"publisher": "A hospital"}}},
        {"csaf": {"document": {"publisher": ["A hospital"]}}},
        {"csaf": ["A hospital"]},
        {"ai": {"_sd": []}},
        {"labels": {"x": "victim"}},
        {"labels": {"_sd": [], "x": "victim"}},
        {"labels": "victim"},
    ],
)
def test_a_core_with_something_plain_that_should_not_be_is_refused(labels: LabelSet, payload: dict[str, Any]) -> None:
    elements({"csaf": {"document": {"csaf_version": "2.0"}}, "labels": {"_sd": []}}, (), labels)
    with pytest.raises(MalformedError) as refusal:
        elements(payload, (), labels)
    assert "hospital" not in str(refusal.value)


@pytest.mark.parametrize("claims", [{"labels": Hide({"x": Hide("victim")})}, {"labels": {"x": Hide({"y": Hide(1)})}}])
def test_entries_of_labels_are_direct_disclosures(labels: LabelSet, claims: dict[str, Any]) -> None:
    payload, disclosures = conceal(claims, salts=fresh())
    with pytest.raises(MalformedError):
        elements(payload, walk(payload, disclosures), labels)


def test_what_refers_to_products_needs_their_definitions(labels: LabelSet) -> None:
    held = issued(labels)
    found = by_path(elements(*held, labels))
    threat = (found["/csaf/vulnerabilities/0/threats/0"], Form.FULL)
    for tree in ([], [(found[TREE], Form.WITHHELD)]):
        with pytest.raises(UsageError, match="refers to products"):
            selection([threat, *tree], held[1])
    assert selection([threat, (found[TREE], Form.GENERALISED)], held[1])


def test_a_form_that_is_not_held_cannot_be_chosen(labels: LabelSet) -> None:
    held = issued(labels)
    note = by_path(elements(*held, labels))["/csaf/document/notes/0"]
    with pytest.raises(UsageError, match="not held in generalised form"):
        selection([(note, Form.GENERALISED)], held[1])


def test_disclosures_come_in_the_order_of_the_document_whatever_was_chosen_first(labels: LabelSet) -> None:
    held = issued(labels)
    pairs = chosen(elements(*held, labels), full)
    assert selection(pairs, held[1]) == selection(reversed(pairs), held[1])
    assert selection([], held[1]) == ()


@pytest.mark.corpora
def test_real_documents_survive_every_choice(
    labels: LabelSet, corpora: Path, record_property: Callable[[str, object], None]
) -> None:
    verdicts = map(json.loads, (corpora / "csaf-real" / "EXPECTED-bsi-validator.jsonl").read_text("utf-8").splitlines())
    files = [corpora / v["file"] for v in verdicts if v["schema_valid"] and not v["failed_mandatory"]]
    sizes = []
    for file in files[:: len(files) // 62]:
        document = json.loads(file.read_text("utf-8"))
        if csaf.problems(document):  # some are valid for the other validator only
            continue
        held = issued(labels, document=document)
        found = elements(*held, labels)
        sizes.append(len(found))
        assert all(element.categories for element in found), file.name
        _, claims = received(held, chosen(found, full))
        assert claims["csaf"] == document, file.name
        for choose in (without_details, without_products, least):
            _, claims = received(held, chosen(found, choose))
            assert csaf.problems(claims["csaf"]) == (), (file.name, choose.__name__)
    assert len(sizes) >= 60
    record_property("elements_median", statistics.median(sizes))
