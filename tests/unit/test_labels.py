"""The label file covers CSAF 2.0 and nothing else, and a label file with a mistake in it is refused as a whole."""

import hashlib
import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from federation.errors import PolicyError
from federation.labels import SENSITIVITY, Kind, LabelSet, load
from federation.model import Category

FILE = Path(__file__).parents[2] / "config" / "labels" / "csaf-2.0.yaml"
PLAIN_VALUES = {
    "/csaf/document/csaf_version",
    *(f"/csaf/document/publisher/{name}" for name in ("name", "category", "namespace")),
    *(
        f"/csaf/document/tracking/{name}"
        for name in ("id", "version", "status", "initial_release_date", "current_release_date")
    ),
}
HEAD = "labels: x\nrules:\n  /csaf: {kind: plain}\n"


@pytest.fixture(scope="module")
def labels() -> LabelSet:
    return load(FILE.read_text("utf-8"), FILE.name)


def packaged_schema() -> Any:
    return json.loads(resources.files("csaf").joinpath("csaf", "v20", "schema", "csaf.json").read_text("utf-8"))


def schema_paths(schema: Any) -> Iterator[tuple[str, str]]:
    """Every path that the schema names, with its type; a recursive branch and a foreign schema end the walk."""

    def walk(part: Any, path: str, within: frozenset[str]) -> Iterator[tuple[str, str]]:
        while part.get("$ref", "").startswith("#"):
            name = part["$ref"].removeprefix("#/$defs/")
            if name in within:
                return
            part, within = schema["$defs"][name], within | {name}
        yield path, part.get("type", "foreign")
        for name, member in part.get("properties", {}).items():
            yield from walk(member, f"{path}/{name}", within)
        if "items" in part:
            yield from walk(part["items"], f"{path}/*", within)

    yield from walk(schema, "/csaf", frozenset())


def assert_covers(labels: LabelSet, schema: Any) -> None:
    paths = dict(schema_paths(schema))
    assert len(paths) > 180
    for path, kind in paths.items():
        steps = path.split("/")
        above = ["/".join(steps[:n]) for n in range(2, len(steps))]
        if any(labels.rules[p][0].kind is Kind.ELEMENT for p in above if p in labels.rules):
            assert path not in labels.rules
            continue
        assert path in labels.rules, f"{path} has no label"
        for rule in labels.rules[path]:
            expected = {"object": dict, "array": list}.get(kind) if rule.kind is not Kind.ELEMENT else None
            assert rule.inside is expected, path
    ours = {path for path in labels.rules if not path.startswith("/ai") and path != "/labels"}
    assert ours <= paths.keys(), f"not in the schema: {ours - paths.keys()}"


@pytest.mark.invariant("I2")
def test_every_path_of_the_schema_has_a_label_and_every_label_a_path(labels: LabelSet) -> None:
    assert_covers(labels, packaged_schema())


@pytest.mark.corpora
@pytest.mark.invariant("I2")
def test_the_schema_as_published_is_covered_too(labels: LabelSet, corpora: Path) -> None:
    text = (corpora / "schemas" / "csaf-2.0" / "csaf_json_schema.json").read_text("utf-8")
    assert_covers(labels, json.loads(text))


def test_what_a_rule_discriminates_by_is_what_the_schema_allows(labels: LabelSet) -> None:
    defs = packaged_schema()["$defs"]
    notes = set(defs["notes_t"]["items"]["properties"]["category"]["enum"])
    for path in ("/csaf/document/notes/*", "/csaf/vulnerabilities/*/notes/*"):
        named = [value for rule in labels.rules[path] for value in (rule.when or {})["category"]]
        assert sorted(named) == sorted(notes)


@pytest.mark.invariant("I6")
def test_exactly_these_values_are_always_plain(labels: LabelSet) -> None:
    plain = {path for path, (rule, *_) in labels.rules.items() if rule.kind is Kind.PLAIN}
    objects = {"/csaf", "/csaf/document", "/csaf/document/publisher", "/csaf/document/tracking"}
    assert plain == PLAIN_VALUES | objects | {"/labels"}


def test_what_csaf_requires_has_a_form_that_can_travel(labels: LabelSet) -> None:
    for path in ("/csaf/document/title", "/csaf/document/category", "/csaf/document/tracking/revision_history"):
        (rule,) = labels.rules[path]
        assert rule.generaliser is not None


def test_the_digest_is_that_of_the_text(labels: LabelSet) -> None:
    assert labels.digest == hashlib.sha256(FILE.read_bytes()).digest()


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("/csaf/document/notes/12", {"category": "details", "text": "t"}, {Category.TECHNICAL}),
        ("/csaf/document/notes/0", {"category": "summary", "text": "t"}, {Category.IDENTIFICATION}),
        ("/csaf/document/notes/0", {"category": "unheard of", "text": "t"}, None),
        ("/csaf/document/notes/0", {"text": "t"}, None),
        ("/csaf/document/notes/0", "no object", None),
        ("/csaf/document/references/0", {"category": "self"}, {Category.IDENTIFICATION}),
        ("/csaf/document/references/0", {"url": "https://x.example"}, {Category.TECHNICAL}),
        ("/csaf/vulnerabilities/3/threats/0", {"category": "target_set"}, {Category.VICTIM}),
        ("/csaf/vulnerabilities/3/threats/0", {"category": "exploit_status"}, {Category.EXPLOIT}),
        ("/csaf/vulnerabilities/3/threats/0", {"category": ["exploit_status"]}, None),
        ("/csaf/document/notes/*", {"category": "summary"}, None),
        ("/csaf/document/notes/01", {"category": "summary"}, None),
        ("/csaf/document/notes/0\n", {"category": "summary"}, None),
        ("/csaf/document/notes/0/text", "t", None),
        ("/csaf/document/x_internal", "t", None),
        ("", {}, None),
        ("csaf", {}, None),
    ],
)
def test_a_rule_is_found_by_path_and_value(
    labels: LabelSet, path: str, value: Any, expected: set[Category] | None
) -> None:
    rule = labels.match(path, value)
    assert (set(rule.categories) if rule else None) == expected


def test_a_reference_to_products_is_seen_in_the_value(labels: LabelSet) -> None:
    threat = {"category": "impact", "details": "d"}
    rule = labels.match("/csaf/vulnerabilities/0/threats/0", threat)
    assert rule is not None
    assert not rule.needs_products(threat)
    assert rule.needs_products(threat | {"product_ids": ["A"]})
    assert rule.needs_products("not an object")
    status = labels.match("/csaf/vulnerabilities/0/product_status", {})
    assert status is not None
    assert status.needs_products({})


def test_every_category_has_its_place_in_the_order_of_sensitivity() -> None:
    assert set(SENSITIVITY) == set(Category)
    assert len(set(SENSITIVITY.values())) == len(Category)


@pytest.mark.invariant("I2")
@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ("  /csaf/a: {kind: element}", "line 4: /csaf/a: `category`"),
        ("  /csaf/a: {kind: element, category: []}", "`category`"),
        ("  /csaf/a: {kind: element, category: technical}", "`category`"),
        ("  /csaf/a: {kind: element, category: [tecnical]}", "unknown category"),
        ("  /csaf/a: {kind: hidden}", "unknown kind"),
        ("  /csaf/a: {category: [technical]}", "missing kind"),
        ("  /csaf/a: {kind: element, category: [technical], colour: red}", "unknown key colour"),
        ("  /csaf/a: {kind: plain, category: [technical]}", "unknown key category"),
        ("  /csaf/a: {kind: element, category: [technical], generalise: blur}", "unknown generaliser"),
        ("  /csaf/a: {kind: element, category: [technical], generalise: {with: [blur]}}", "unknown generaliser"),
        ("  /csaf/a: {kind: element, category: [technical], generalise: {value: 1}}", "missing with"),
        ("  /csaf/a: {kind: element, category: [technical], generalise: constant}", "needs a value"),
        (
            "  /csaf/a: {kind: element, category: [technical], generalise: {with: month_of_date, value: 1}}",
            "takes no value",
        ),
        ("  /csaf/a: {kind: element, category: [technical], needs_products: maybe}", "`needs_products`"),
        ("  /csaf/a: {kind: element, category: [technical], when: {}}", "`when`"),
        ("  /csaf/a: {kind: element, category: [technical], when: {b: c}}", "`when: b`"),
        ("  /csaf/a: []", "no rule"),
        ("  /csaf/a: plain", "expected keys and values"),
        ("  /csaf: {kind: plain}", "stands twice"),
        (
            "  /csaf/a:\n    - {kind: element, category: [technical]}\n    - {kind: element, category: [victim]}",
            "never counts",
        ),
        (
            "  /csaf/a:\n    - {kind: element, category: [technical], when: {b: [c]}}\n    - {kind: plain}",
            "only elements",
        ),
        ("  /csaf/a/b: {kind: plain}", "/csaf/a has no rule"),
        ("  /csaf/a: {kind: container}", "nothing in it"),
        ("  /csaf/a: {kind: container}\n  /csaf/a/b: {kind: plain}", "plain inside"),
        (
            "  /csaf/a: {kind: element, category: [technical]}\n  /csaf/a/b: {kind: element, category: [technical]}",
            "nothing inside it",
        ),
        (
            "  /csaf/a: {kind: container}\n  /csaf/a/*: {kind: element, category: [victim], generalise: month_of_date}",
            "no alternates",
        ),
        (
            "  /csaf/a: {kind: plain}\n  /csaf/a/*: {kind: plain}\n  /csaf/a/b: {kind: element, category: [source]}",
            "both an object and an array",
        ),
        ("  /csaf/a: {kind: plain}\n  /csaf/a/*: {kind: element, category: [personal]}", "array cannot be plain"),
        ("  csaf: {kind: plain}", "not a path"),
        ("  /csaf/A: {kind: plain}", "not a path"),
        ("extra: 1", "unknown key extra"),
        ("  - x", "line 4"),
    ],
)
def test_a_file_with_a_mistake_is_refused_with_its_place(rules: str, says: str) -> None:
    load(f"{HEAD}  /csaf/ok: {{kind: element, category: [technical]}}\n", "my.yaml")
    with pytest.raises(PolicyError) as refusal:
        load(f"{HEAD}{rules}\n", "my.yaml")
    assert says in str(refusal.value)
    assert str(refusal.value).startswith("my.yaml")


@pytest.mark.parametrize("text", ["", "[]", "labels: x", "labels: x\nrules: 3", "labels: x\nrules:", "{", "a: *b"])
def test_what_is_no_label_file_is_refused(text: str) -> None:
    with pytest.raises(PolicyError):
        load(text, "my.yaml")
