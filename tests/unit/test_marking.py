"""What may be withheld is hidden, what no label names is hidden too, and raising a category can only narrow."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from federation.errors import PolicyError
from federation.labels import LabelSet, load
from federation.marking import issue_claims, mark
from federation.model import Category
from federation.sdjwt import NOTHING, Hide, Salts, process, walk

FILE = Path(__file__).parents[2] / "config" / "labels" / "csaf-2.0.yaml"
CSAF: dict[str, Any] = {
    "document": {
        "acknowledgments": [{"names": ["Ada Lovelace"], "organization": "Analytical Society"}],
        "category": "csaf_security_advisory",
        "csaf_version": "2.0",
        "lang": "en",
        "notes": [{"category": "summary", "text": "In short."}, {"category": "details", "text": "At length."}],
        "publisher": {
            "category": "vendor",
            "name": "Example",
            "namespace": "https://vendor.example",
            "contact_details": "mail us",
        },
        "references": [{"category": "self", "summary": "This", "url": "https://vendor.example/1"}],
        "title": "Pump explodes",
        "tracking": {
            "aliases": ["EX-ONE"],
            "current_release_date": "2026-11-21T09:30:00Z",
            "id": "EX-1",
            "initial_release_date": "2026-11-21T09:30:00Z",
            "revision_history": [{"date": "2026-11-21T09:30:00Z", "number": "1", "summary": "Found by Ada"}],
            "status": "final",
            "version": "1",
        },
    },
    "product_tree": {"full_product_names": [{"name": "Acme Pump", "product_id": "P1"}]},
    "vulnerabilities": [
        {
            "cve": "CVE-2026-0001",
            "discovery_date": "2026-10-05T00:00:00Z",
            "product_status": {"known_affected": ["P1"]},
            "threats": [{"category": "exploit_status", "details": "Used since May", "product_ids": ["P1"]}],
        }
    ],
}
AI = {"model": {"vendor": "Acme", "name": "acme-7b"}, "deployer": "A hospital"}
PLAIN = {
    "csaf": {
        "document": {
            "csaf_version": "2.0",
            "publisher": {"category": "vendor", "name": "Example", "namespace": "https://vendor.example"},
            "tracking": {
                "current_release_date": "2026-11-21T09:30:00Z",
                "id": "EX-1",
                "initial_release_date": "2026-11-21T09:30:00Z",
                "status": "final",
                "version": "1",
            },
        }
    },
    "labels": {},
}


def counted(size: int) -> bytes:
    return b"".join(n.to_bytes(4, "big") for n in range(size // 4 + 1))[:size]


def fresh() -> Salts:
    """Salts that never repeat within a test, and are the same in every run."""
    calls = iter(range(1_000_000))
    return Salts(lambda size: (next(calls).to_bytes(4, "big") + counted(size))[:size])


@pytest.fixture(scope="module")
def labels() -> LabelSet:
    return load(FILE.read_text("utf-8"), FILE.name)


def forms_at(marked: Any, *path: str | int) -> tuple[Any, ...]:
    for step in path:
        marked = (marked.value if isinstance(marked, Hide) else marked)[step]
    assert isinstance(marked, Hide)
    return marked.forms


@pytest.mark.invariant("I6")
def test_only_what_the_protocol_lists_stays_plain(labels: LabelSet) -> None:
    payload, _, unlabelled = _issued(labels, CSAF, AI, {})
    assert process(payload, []).claims == PLAIN
    assert unlabelled == ()


def test_everything_comes_back_with_all_disclosures(labels: LabelSet) -> None:
    payload, disclosures, _ = _issued(labels, CSAF, AI, {})
    by_path = {node.path: node for node in walk(payload, disclosures)}
    assert len(by_path) < len(disclosures)  # some have two forms
    marked = mark(CSAF, AI, labels, {})
    assert _unmarked(marked.claims) == {"csaf": CSAF, "ai": AI}


def test_a_document_without_an_ai_part_has_no_ai_claim(labels: LabelSet) -> None:
    assert mark(CSAF, None, labels, {}).claims.keys() == {"csaf"}


def test_generalised_forms_stand_beside_the_full_ones(labels: LabelSet) -> None:
    claims = mark(CSAF, AI, labels, {}).claims
    assert forms_at(claims, "csaf", "document", "title") == ("Pump explodes", "Security advisory")
    assert forms_at(claims, "csaf", "document", "category") == ("csaf_security_advisory", "csaf_base")
    names = forms_at(claims, "csaf", "document", "acknowledgments", 0, "names")
    assert names == (["Ada Lovelace"], ["Security researcher"])
    assert forms_at(claims, "ai", "model") == (AI["model"], {"vendor": "Acme"})
    assert forms_at(claims, "csaf", "vulnerabilities", 0, "discovery_date")[1] == "2026-10-01T00:00:00Z"
    assert len(forms_at(claims, "csaf", "document", "notes", 0)) == 1


def test_what_is_general_already_gets_no_second_form(labels: LabelSet) -> None:
    document = copy.deepcopy(CSAF)
    document["document"]["category"] = "csaf_base"
    claims = mark(document, None, labels, {}).claims
    assert forms_at(claims, "csaf", "document", "category") == ("csaf_base",)
    assert len(forms_at(claims, "csaf", "vulnerabilities", 0, "product_status")) == 1


@pytest.mark.invariant("I2")
@pytest.mark.parametrize(
    ("place", "name", "value", "path"),
    [
        (("document",), "x_case", {"victim": "A hospital"}, "/csaf/document/x_case"),
        (("document", "tracking"), "x/y~z", "A hospital", "/csaf/document/tracking/x~1y~0z"),
        (("document", "publisher"), "name", {"victim": "A hospital"}, "/csaf/document/publisher/name"),
        (("document", "tracking"), "id", ["A hospital"], "/csaf/document/tracking/id"),
        (("document",), "tracking", "A hospital", "/csaf/document/tracking"),
        (("document",), "notes", "A hospital", "/csaf/document/notes"),
        (("document",), "notes", {"0": {"category": "summary", "text": "A hospital"}}, "/csaf/document/notes"),
        (("document",), "notes", [], "/csaf/document/notes"),
        (("document", "notes"), 0, {"category": "new", "text": "A hospital"}, "/csaf/document/notes/0"),
        (("vulnerabilities",), 0, ["A hospital"], "/csaf/vulnerabilities/0"),
        (("vulnerabilities", 0), "x_case", "A hospital", "/csaf/vulnerabilities/0/x_case"),
        ((), "x_case", "A hospital", "/csaf/x_case"),
    ],
)
def test_what_no_label_expects_is_hidden_and_reported(
    labels: LabelSet, place: tuple[str | int, ...], name: Any, value: Any, path: str
) -> None:
    document = copy.deepcopy(CSAF)
    inner: Any = document
    for step in place:
        inner = inner[step]
    inner[name] = value
    payload, _, unlabelled = _issued(labels, document, None, {})
    assert unlabelled == (path,)
    assert "hospital" not in json.dumps(payload)


@pytest.mark.invariant("I2")
def test_a_raised_category_travels_with_every_form_of_its_element(labels: LabelSet) -> None:
    raised = {"/csaf/document/title": Category.VICTIM, "/csaf/document/notes/0": Category.EXPLOIT}
    payload, disclosures, _ = _issued(labels, CSAF, AI, raised)
    nodes = walk(payload, disclosures)
    entries = {node.disclosure.name: node.disclosure.value for node in nodes if node.path.startswith("/labels/")}
    paths = {node.digest: node.path for node in nodes}
    found = sorted((paths[str(digest)], category) for digest, category in entries.items())
    assert found == [
        ("/csaf/document/notes/0", "exploit"),
        ("/csaf/document/title", "victim"),
        ("/csaf/document/title", "victim"),
    ]
    assert "exploit" not in json.dumps(payload)


def test_the_payload_does_not_tell_whether_something_was_raised(labels: LabelSet) -> None:
    quiet, _, _ = _issued(labels, CSAF, None, {})
    raised, _, _ = _issued(labels, CSAF, None, {"/csaf/document/title": Category.VICTIM})
    assert quiet.keys() == raised.keys()
    assert len(quiet["labels"]["_sd"]) == len(raised["labels"]["_sd"]) == 4


@pytest.mark.invariant("I13")
@pytest.mark.parametrize(
    ("pointer", "category"),
    [
        ("/csaf/document/acknowledgments/0/names", Category.IDENTIFICATION),
        ("/csaf/vulnerabilities/0/threats/0", Category.TECHNICAL),
        ("/csaf/document/x_case", Category.SOURCE),
    ],
)
def test_lowering_needs_approval(labels: LabelSet, pointer: str, category: Category) -> None:
    document = copy.deepcopy(CSAF)
    document["document"]["x_case"] = 1
    with pytest.raises(PolicyError, match=r"lowering .* needs approval"):
        mark(document, None, labels, {pointer: category})


@pytest.mark.parametrize(
    ("pointer", "near"),
    [
        ("/csaf/document/notes/7", "/csaf/document/notes/1"),
        ("/csaf/document/notes", "/csaf/document/notes/0, /csaf/document/notes/1"),
        ("/csaf/document/notes/1/text", "/csaf/document/notes/1"),
        ("/csaf/document/titel", "/csaf/document/title"),
        ("/csaf/document/publisher/name", "/csaf/document/publisher/contact_details"),
    ],
)
def test_a_pointer_that_names_no_element_is_answered_with_the_nearest(
    labels: LabelSet, pointer: str, near: str
) -> None:
    with pytest.raises(PolicyError, match="names no element") as refusal:
        mark(CSAF, None, labels, {pointer: Category.SOURCE})
    assert near in str(refusal.value)


def _issued(
    labels: LabelSet, csaf: Any, ai: Any, raised: dict[str, Category]
) -> tuple[dict[str, Any], tuple[Any, ...], tuple[str, ...]]:
    concealed = issue_claims(csaf, ai, labels, raised, salts=fresh())
    return concealed.payload, concealed.disclosures, concealed.unlabelled


def _unmarked(value: Any) -> Any:
    if isinstance(value, Hide):
        return _unmarked(value.value)
    if isinstance(value, dict):
        return {name: _unmarked(member) for name, member in value.items()}
    return [_unmarked(item) for item in value] if isinstance(value, list) else value


def _hides(value: Any) -> Iterator[Hide]:
    if isinstance(value, Hide):
        yield value
        yield from _hides(value.value)
    for member in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _hides(member)


@pytest.mark.corpora
def test_no_path_of_the_real_documents_is_without_a_label(labels: LabelSet, corpora: Path) -> None:
    verdicts = map(json.loads, (corpora / "csaf-real" / "EXPECTED-bsi-validator.jsonl").read_text("utf-8").splitlines())
    valid = [corpora / v["file"] for v in verdicts if v["schema_valid"] and not v["failed_mandatory"]]
    assert len(valid) > 500
    for file in valid:
        document = json.loads(file.read_text("utf-8"))
        marked = mark(document, None, labels, {})
        assert marked.unlabelled == (), file.name
        assert _unmarked(marked.claims) == {"csaf": document}, file.name
        assert any(hide.generalised is not NOTHING for hide in _hides(marked.claims)), file.name
