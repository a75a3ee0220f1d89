"""What is exported is valid CSAF 2.0, and what is not is refused without quoting it."""

import copy
from typing import Any

import pytest

from federation import csaf
from federation.csaf import Problem
from federation.errors import MalformedError
from federation.model import Tlp

DOCUMENT: dict[str, Any] = {
    "document": {
        "category": "csaf_base",
        "csaf_version": "2.0",
        "publisher": {"category": "vendor", "name": "Example", "namespace": "https://vendor.example"},
        "title": "A title",
        "tracking": {
            "current_release_date": "2026-11-21T09:30:00Z",
            "id": "EX-1",
            "initial_release_date": "2026-11-21T09:30:00Z",
            "revision_history": [{"date": "2026-11-21T09:30:00Z", "number": "1", "summary": "First"}],
            "status": "final",
            "version": "1",
        },
    },
    "product_tree": {"full_product_names": [{"name": "Example", "product_id": "P1"}]},
    "vulnerabilities": [{"product_status": {"fixed": ["P1"]}}],
}


def changed(*path: str | int, to: Any) -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    place: Any = document
    for step in path[:-1]:
        place = place.setdefault(step, {}) if isinstance(place, dict) else place[step]
    place[path[-1]] = to
    return document


def test_a_valid_document_has_no_problems() -> None:
    assert csaf.problems(DOCUMENT) == ()
    csaf.check(DOCUMENT)


def test_csaf_2_1_is_not_what_is_judged() -> None:
    with pytest.raises(MalformedError, match="schema at /document/csaf_version"):
        csaf.check(changed("document", "csaf_version", to="2.1"))


def test_a_mandatory_test_is_named_with_its_place_and_without_the_value() -> None:
    document = changed("vulnerabilities", 0, "product_status", "fixed", to=["Acme secret pump"])
    assert csaf.problems(document) == (Problem("6.1.1", "/vulnerabilities/0/product_status/fixed/0"),)
    with pytest.raises(MalformedError) as refusal:
        csaf.check(document)
    assert "Acme" not in str(refusal.value)


@pytest.mark.invariant("I17")
def test_a_member_name_that_carries_data_is_not_repeated() -> None:
    document = changed("document", "category", to="csaf_vex")
    document["vulnerabilities"][0] |= {"cve": "CVE-2026-0001", "product_status": {"Ada Lovelace, +44": ["P1"]}}
    with pytest.raises(MalformedError) as refusal:
        csaf.check(document)
    assert "/product_status/?" in str(refusal.value)
    assert "Ada" not in str(refusal.value)


def test_a_long_list_of_problems_is_cut() -> None:
    document = changed("vulnerabilities", to=[{"product_status": {"fixed": [f"X{n}"]}} for n in range(20)])
    with pytest.raises(MalformedError, match="and 12 more"):
        csaf.check(document)


@pytest.mark.parametrize("document", [{}, {"document": None}, {"document": []}, {"document": {"tracking": 3}}])
def test_what_is_no_csaf_at_all_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(MalformedError):
        csaf.check(document)


def test_a_validator_that_fails_counts_as_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(document: Any, preset: str) -> Any:
        raise KeyError("Acme secret pump")

    monkeypatch.setattr("csaf.csaf.v20.validate", fail)
    with pytest.raises(MalformedError) as refusal:
        csaf.check(DOCUMENT)
    assert "Acme" not in str(refusal.value)
    assert refusal.value.__cause__ is None


@pytest.mark.parametrize("label", ["WHITE", "GREEN", "AMBER", "RED"])
def test_a_label_is_read_and_mapped_there_and_back(label: str) -> None:
    document = changed("document", "distribution", "tlp", "label", to=label)
    csaf.check(document)
    assert csaf.tlp_label(document) == label
    assert csaf.expected_label(csaf.tlp_from_label(label)) == label


def test_every_tlp_level_has_a_label() -> None:
    assert csaf.expected_label(Tlp.CLEAR) == "WHITE"
    assert csaf.expected_label(Tlp.AMBER_STRICT) == "AMBER"
    assert {csaf.expected_label(tlp) for tlp in Tlp} == {"WHITE", "GREEN", "AMBER", "RED"}


def test_a_missing_label_is_none_and_a_strange_one_an_error() -> None:
    assert csaf.tlp_label(DOCUMENT) is None
    assert csaf.tlp_label({}) is None
    assert csaf.tlp_label(changed("document", "distribution", to={"text": "x"})) is None
    for strange in (["RED"], None, 1):
        with pytest.raises(MalformedError):
            csaf.tlp_label(changed("document", "distribution", "tlp", "label", to=strange))
    with pytest.raises(MalformedError):
        csaf.tlp_label(changed("document", "distribution", to="RED"))


@pytest.mark.invariant("I2")
@pytest.mark.parametrize("label", ["CLEAR", "AMBER+STRICT", "white", "", "PURPLE"])
def test_an_unknown_label_is_not_guessed(label: str) -> None:
    with pytest.raises(MalformedError):
        csaf.tlp_from_label(label)
