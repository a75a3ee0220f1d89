"""Generalisers say less, and saying it twice says the same."""

from typing import Any

import pytest

from federation.generalise import GENERALISERS, NEEDS_PARAMETER

TREE = {
    "branches": [
        {
            "category": "vendor",
            "name": "Acme",
            "branches": [
                {"category": "product_version", "name": "1", "product": {"name": "Acme Pump 1", "product_id": "P1"}},
                {"category": "product_version", "name": "2", "product": {"name": "Acme Pump 2", "product_id": "P2"}},
            ],
        }
    ],
    "full_product_names": [
        {"name": "Acme Base", "product_id": "B", "product_identification_helper": {"purl": "pkg:generic/acme"}}
    ],
    "relationships": [
        {
            "category": "installed_on",
            "full_product_name": {"name": "Acme Pump 1 on Base", "product_id": "P1B"},
            "product_reference": "P1",
            "relates_to_product_reference": "B",
        }
    ],
    "product_groups": [{"group_id": "G", "product_ids": ["P1", "P2"], "summary": "Acme pumps"}],
}
NEUTRAL = {
    "full_product_names": [
        {"name": "Product 1", "product_id": "P1"},
        {"name": "Product 2", "product_id": "P2"},
        {"name": "Product 3", "product_id": "B"},
        {"name": "Product 4", "product_id": "P1B"},
    ],
    "product_groups": [{"group_id": "G", "product_ids": ["P1", "P2"]}],
}
CASES: list[tuple[str, Any, Any, Any]] = [
    ("constant", "Acme pump explodes", "Security advisory", "Security advisory"),
    ("person_to_role", ["A. Turing", "G. Hopper"], "Security researcher", ["Security researcher"]),
    ("person_to_role", [], "Security researcher", None),
    ("person_to_role", "A. Turing", "Security researcher", None),
    ("vendor_only", {"vendor": "Acme", "name": "m", "version": "2", "hash": "00"}, None, {"vendor": "Acme"}),
    ("vendor_only", {"name": "m"}, None, None),
    ("vendor_only", {"vendor": ["Acme"]}, None, None),
    ("vendor_only", "acme/m", None, None),
    ("month_of_date", "2026-11-21T09:30:00.123Z", None, "2026-11-01T00:00:00Z"),
    ("month_of_date", "2026-12-01T00:30:00+02:00", None, "2026-11-01T00:00:00Z"),
    ("month_of_date", "0999-02-03t04:05:06z", None, "0999-02-01T00:00:00Z"),
    ("month_of_date", "2026-11-21T09:30:00", None, None),
    ("month_of_date", "2026-11-21", None, None),
    ("month_of_date", "0001-01-01T00:00:00+10:00", None, None),
    ("month_of_date", "yesterday", None, None),
    ("month_of_date", 2026, None, None),
    ("severity_band", {"text": "Important", "namespace": "https://acme.example"}, None, {"text": "High"}),
    ("severity_band", {"text": " moderate "}, None, {"text": "Medium"}),
    ("severity_band", {"text": "9.8"}, None, {"text": "Critical"}),
    ("severity_band", {"text": "0"}, None, {"text": "None"}),
    ("severity_band", {"text": "10.1"}, None, None),
    ("severity_band", {"text": "nan"}, None, None),
    ("severity_band", {"text": "-1"}, None, None),
    ("severity_band", {"text": "bad for Acme"}, None, None),
    ("severity_band", {}, None, None),
    (
        "revision_dates",
        [{"date": "2026-11-21T09:30:00Z", "number": "1", "summary": "Acme told us", "legacy_version": "A"}],
        None,
        [{"date": "2026-11-21T09:30:00Z", "number": "1", "summary": "Revision"}],
    ),
    ("revision_dates", [{"number": "1", "summary": "s"}], None, None),
    ("revision_dates", [], None, None),
    ("revision_dates", {}, None, None),
    ("status_by_id", {"fixed": ["A"], "known_affected": ["B"]}, None, {"fixed": ["A"], "known_affected": ["B"]}),
    ("status_by_id", {"fixed": ["A"], "x_owner": "Acme"}, None, {"fixed": ["A"]}),
    ("status_by_id", {"fixed": [{"name": "Acme"}]}, None, None),
    ("status_by_id", ["A"], None, None),
    ("neutral_products", TREE, None, NEUTRAL),
    ("neutral_products", {"product_groups": [{"group_id": "G", "product_ids": ["A", "B"]}]}, None, None),
    ("neutral_products", {"branches": [{"category": "vendor", "name": "Acme"}]}, None, None),
    ("neutral_products", {"branches": "Acme"}, None, None),
    ("neutral_products", {"full_product_names": [{"name": "no id"}]}, None, None),
    ("neutral_products", {"full_product_names": 3}, None, None),
    ("neutral_products", {"full_product_names": [{"product_id": ["not", "text"]}]}, None, None),
    ("neutral_products", [], None, None),
]


@pytest.mark.parametrize(("name", "value", "parameter", "expected"), CASES)
def test_it_says_less_and_saying_it_twice_says_the_same(name: str, value: Any, parameter: Any, expected: Any) -> None:
    generalise = GENERALISERS[name]
    assert generalise(value, parameter) == expected
    if expected is not None:
        assert generalise(expected, parameter) == expected


def test_every_generaliser_is_tried_here() -> None:
    assert {name for name, *_ in CASES} == set(GENERALISERS)
    assert set(GENERALISERS) >= NEEDS_PARAMETER


@pytest.mark.parametrize("name", sorted(GENERALISERS))
@pytest.mark.parametrize("value", [None, True, 0, 1.5, "", "x", [], [None], {}, {"x": None}, [[]], [{}]])
def test_no_value_makes_one_fail(name: str, value: Any) -> None:
    general = GENERALISERS[name](value, "parameter")
    assert GENERALISERS[name](general, "parameter") == general or general is None


def test_the_value_itself_is_left_alone() -> None:
    before = repr(TREE)
    GENERALISERS["neutral_products"](TREE, None)
    assert repr(TREE) == before
