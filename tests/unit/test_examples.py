"""The examples that ship: valid, consistent, and fit to show what redaction does.

The strictest test signs each one as its origin would, withholds one category at a time and lets the guard search what
is left: no withheld term may recur, save in the one note that is there to be caught.
"""

import ipaddress
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from csaf.csaf.v20 import validate

from federation import csaf, handling, outbound
from federation.elements import PRODUCT_TREE
from federation.labels import LabelSet
from federation.labels import load as load_labels
from federation.marking import mark
from federation.model import Category, Decision, ElementDecision, Form, Tlp, instant, node_id
from federation.outbound import Draft
from federation.policy.decide import with_products

CONFIG = Path(str(resources.files("config")))
EXAMPLES = CONFIG / "examples"
HOMES = {"fr": "FR", "de": "DE", "in": "IN"}
ADVISORIES = sorted(path for origin in HOMES for path in (EXAMPLES / origin).glob("*.json"))
CASES = sorted((EXAMPLES / "cases").glob("*.yaml"))
ON_PURPOSE = ("fr/training-data-extraction.json", "/csaf/vulnerabilities/0/notes/0")
NOW = datetime(2026, 11, 15, tzinfo=UTC)

# Victims, and those who must stay unknown: each is named once, in its own note.
NAMED_ONCE = (
    "Comptoir Belleroche",
    "Fermat-Duplessis",
    "Montclairval",
    "Bruyère",
    "Saint-Avelin",
    "Direction Hespéride",
    "Boréal-Transit",
    "Nordlicht Rechenzentren",
    "Ahrensfeld",
    "Niederwaldau",
    "Grotewind",
    "Meghapura",
    "Indrapalli",
    "Kovalampur",
    "Bharosa",
    "PEACOCK-2",
    "Suvarnagiri",
)
AI_MEMBERS = {
    "artifact_type",
    "developer",
    "deployer",
    "model",
    "observed",
    "taxonomy",
    "avid",
    "reproduction",
    "transferability",
    "safety_or_security",
    "harm_class",
    "eu_ai_act_risk",
    "ai_assisted_discovery",
}
LABELLED = re.compile(
    r"/csaf/(?:document/(?:notes|references)"
    r"|vulnerabilities/\d+/(?:notes|references|remediations|threats|involvements))/\d+"
)
DOCUMENTATION = [
    ipaddress.ip_network(net) for net in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
]
STANDARDS = {"https://www.first.org/tlp/"}
_IPV4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])")
_IPV6 = re.compile(r"(?<![0-9a-f:])[0-9a-f]{1,4}(?::[0-9a-f]{0,4}){3,7}(?![0-9a-f:])")
_URL = re.compile(r"https?://([^/\s\"?#]+)")
_EMAIL = re.compile(r"[\w.+-]+@([\w.-]*\.[a-z]{2,})")
_DOMAIN = re.compile(
    r"\b(?:[a-z0-9-]+\.)+(?:com|org|net|io|ai|fr|de|in|eu|info|app|dev|cloud|co|gov|edu)\b(?!\.?[\w-])", re.IGNORECASE
)


def relative(path: Path) -> str:
    return path.relative_to(EXAMPLES).as_posix()


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def resolve(content: Any, pointer: str) -> Any:
    for step in pointer.split("/")[1:]:
        content = content[int(step)] if isinstance(content, list) else content[step]
    return content


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def finders(document: dict[str, Any]) -> list[str]:
    holders = [document["document"], *document["vulnerabilities"]]
    return [name for h in holders for a in h.get("acknowledgments", ()) for name in a.get("names", ())]


def draft(path: Path) -> Draft:
    content = load(path)
    given = {"home": HOMES[path.parent.name], **content["handling"]}
    return Draft(
        origin=node_id(f"cert.{path.parent.name}.example"),
        name=content["csaf"]["document"]["tracking"]["id"],
        revision=1,
        issued_at=NOW,
        handling=handling.read(given),
        csaf=content["csaf"],
        ai=content.get("ai"),
        raised={pointer: Category(category) for pointer, category in content["labels"].items()},
    )


@pytest.fixture(scope="module")
def labels() -> LabelSet:
    return load_labels((CONFIG / "labels" / "csaf-2.0.yaml").read_text(encoding="utf-8"), "csaf-2.0.yaml")


each_advisory = pytest.mark.parametrize("path", ADVISORIES, ids=relative)
each_case = pytest.mark.parametrize("path", CASES, ids=relative)


def test_four_advisories_and_one_case_a_country() -> None:
    assert Counter(path.parent.name for path in ADVISORIES) == {"fr": 4, "de": 4, "in": 4}
    assert sorted(path.name[:2] for path in CASES) == ["DE", "FR", "IN"]
    assert len({load(path)["csaf"]["document"]["tracking"]["id"] for path in ADVISORIES}) == len(ADVISORIES)


def test_what_the_demo_needs_is_there() -> None:
    contents = [load(path) for path in ADVISORIES]
    categories = {category for content in contents for category in content["labels"].values()}
    assert {"personal", "victim", "exploit", "indicator", "source"} <= categories
    assert all({"personal", "exploit"} <= set(content["labels"].values()) for content in contents)
    levels = Counter(content["handling"]["tlp"] for content in contents)
    assert levels == {"CLEAR": 2, "GREEN": 3, "AMBER": 5, "AMBER+STRICT": 1, "RED": 1}
    embargoes = [content["handling"]["embargo_until"] for content in contents if content["handling"]["embargo_until"]]
    assert len(embargoes) == 2
    assert all(instant(text).year == 2027 for text in embargoes)
    kinds = {content["csaf"]["document"]["category"] for content in contents}
    assert kinds == {"csaf_security_advisory", "csaf_vex", "csaf_security_incident_response"}
    assert {content["handling"]["tier"] for content in contents} == {"standard", "sensitive", "dual_use"}


@each_advisory
def test_valid_csaf(path: Path) -> None:
    report = validate(load(path)["csaf"], preset="basic")
    failed = {
        result.id: [(error.instance_path, error.message) for error in result.errors]
        for result in report.results
        if not result.passed and not result.skipped
    }
    assert report.overall_valid, failed


@each_advisory
def test_form_of_the_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    content = json.loads(text)
    assert text == json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    assert content.keys() - {"ai"} == {"csaf", "labels", "handling"}
    assert content.get("ai", {}).keys() <= AI_MEMBERS
    # A generalised product tree keeps the ids: they must say nothing.
    ids = re.findall(r'"product_id": "([^"]*)"', text)
    assert ids == [f"CSAFPID-{number:04}" for number in range(1, len(ids) + 1)]
    tracking = content["csaf"]["document"]["tracking"]
    dates = [revision["date"] for revision in tracking["revision_history"]]
    assert all(instant(date) < NOW and instant(date).year == 2026 for date in dates)
    assert "cve" not in json.dumps(content["csaf"]["vulnerabilities"][0].get("ids", [])).lower()


@each_advisory
def test_handling_agrees_with_the_document(path: Path) -> None:
    content = load(path)
    given = content["handling"]
    read = handling.read({"home": HOMES[path.parent.name], **given})
    assert csaf.tlp_label(content["csaf"]) == csaf.expected_label(read.tlp)
    assert content["csaf"]["document"]["distribution"]["tlp"]["url"] == "https://www.first.org/tlp/"
    if read.tlp is Tlp.RED:
        assert read.recipients is not None
        assert len(read.recipients) == 2


@each_advisory
def test_labels_name_array_items_and_only_raise(path: Path, labels: LabelSet) -> None:
    content = load(path)
    for pointer in content["labels"]:
        assert LABELLED.fullmatch(pointer), pointer
        assert isinstance(resolve(content, pointer), dict)
    made = draft(path)
    assert mark(made.csaf, made.ai, labels, made.raised).unlabelled == ()


@each_advisory
def test_finders_are_named_in_acknowledgments_only(path: Path) -> None:
    content = load(path)
    names = finders(content["csaf"])
    assert names
    texts = list(strings(content))
    for name in names:
        family = name.split()[-1].casefold()
        mentions = [text for text in texts if family in text.casefold() and text != name]
        # A finder's firm or address may bear the family name; the guard looks for the full one.
        full = [text for text in mentions if name.casefold() in text.casefold()]
        assert len(full) == (relative(path) == ON_PURPOSE[0])
    for text in (content["csaf"]["document"]["title"], *(v["title"] for v in content["csaf"]["vulnerabilities"])):
        assert not any(part.casefold() in text.casefold() for name in names for part in name.split())


def test_victims_and_sources_are_named_once_where_a_label_says_so() -> None:
    guarded = {"victim", "source"}
    contents = [load(path) for path in ADVISORIES]
    everything = [text for content in contents for text in strings(content)]
    labelled = [
        text
        for content in contents
        for pointer, category in content["labels"].items()
        if category in guarded
        for text in strings(resolve(content, pointer))
    ]
    for name in NAMED_ONCE:
        assert sum(name in text for text in everything) == 1, name
        assert sum(name in text for text in labelled) == 1, name


@pytest.mark.invariant("I4")
@each_advisory
def test_nothing_withheld_recurs_elsewhere(path: Path, labels: LabelSet) -> None:
    issued = outbound.issue(draft(path), labels, kid="example", sign=lambda _: bytes(64), entropy=os.urandom)
    advisory = outbound.reopen(issued.core, issued.disclosures, labels)
    delicate = {Category.PERSONAL, Category.VICTIM, Category.SOURCE, Category.INDICATOR, Category.EXPLOIT}
    for withheld in (delicate, *({category} for category in Category)):
        decided = []
        for element in advisory.elements:
            form = Form.FULL if element.full is not None else Form.GENERALISED
            if element.categories & withheld:
                form = Form.GENERALISED if element.generalised is not None else Form.WITHHELD
            decided.append(ElementDecision(element, form, ()))
        assert any(d.element.path == PRODUCT_TREE for d in decided)
        decision = Decision(node_id("cert.es.example"), bytes(32), with_products(decided), (), (), None)
        narrowed = set(outbound.present(advisory, decision).narrowed) - {"/csaf/document/category"}
        caught = relative(path) == ON_PURPOSE[0] and Category.PERSONAL in withheld
        assert narrowed == ({ON_PURPOSE[1]} if caught else set()), withheld


@pytest.mark.parametrize("path", [*ADVISORIES, *CASES, EXAMPLES / "README.md"], ids=relative)
def test_nothing_real_is_named(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for host in _URL.findall(text):
        assert host.endswith(".example") or any(f"://{host}/" in known for known in STANDARDS), host
    for host in _EMAIL.findall(text):
        assert host.endswith(".example") or host.startswith("example."), host
    for address in [*_IPV4.findall(text), *(found for found in _IPV6.findall(text.lower()) if "::" in found)]:
        ip = ipaddress.ip_address(address)
        assert any(ip in network for network in DOCUMENTATION), address
    for standard in STANDARDS:
        text = text.replace(standard, "")
    assert _DOMAIN.findall(text) == []


@each_case
def test_case_has_what_a_draft_needs(path: Path) -> None:
    case = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert case["case"] == path.stem
    assert {
        "title",
        "summary",
        "details",
        "products",
        "remediation",
        "reporter",
        "internal_notes",
        "handling",
    } <= case.keys()
    assert case["reporter"].keys() == {"name", "email", "credit"}
    assert isinstance(case["reporter"]["credit"], bool)
    assert all(set(product) == {"vendor", "product", "version"} for product in case["products"])
    assert all(isinstance(product["version"], str) for product in case["products"])
    assert Tlp(case["handling"]["tlp"])
    assert case["severity"].keys() <= {"cvss_v3"}
    assert len(case["internal_notes"]) > 400


@pytest.mark.invariant("I1")
@each_case
def test_no_line_of_internal_notes_is_in_an_advisory(path: Path) -> None:
    case = yaml.safe_load(path.read_text(encoding="utf-8"))
    shared = " ".join(text for advisory in ADVISORIES for text in strings(load(advisory)))
    for line in case["internal_notes"].splitlines():
        assert line.strip() not in shared
    if not case["reporter"]["credit"]:
        assert case["reporter"]["name"] not in shared
        assert case["reporter"]["email"] not in shared
