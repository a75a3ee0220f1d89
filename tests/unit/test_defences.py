"""The list of defences fits the tree: each stands where its entry says, and its tests exist. `python -m tests.defences`
takes them out one by one and runs those tests."""

import ast
import re
from functools import cache

import pytest

from tests.defences import ROOT, Defence, load, without
from tests.unit.test_house import INVARIANTS

DEFENCES = load()
ATTACKS = 24  # rows of the matrix in docs/security.md
by_name = pytest.mark.parametrize("defence", DEFENCES, ids=lambda defence: re.sub(r"\W+", " ", defence.about))


@cache
def _tests_in(file: str) -> frozenset[str]:
    """The node ids of a test file, without parameters."""
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    found = {f"{file}::{node.name}" for node in tree.body if isinstance(node, ast.FunctionDef)}
    for group in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        found |= {f"{file}::{group.name}::{node.name}" for node in group.body if isinstance(node, ast.FunctionDef)}
    return frozenset(found)


@by_name
def test_a_defence_stands_exactly_where_its_entry_says(defence: Defence) -> None:
    assert without(defence, ROOT)


@by_name
def test_the_tests_of_a_defence_exist(defence: Defence) -> None:
    for test in defence.tests:
        assert test.partition("[")[0] in _tests_in(test.partition("::")[0])


@pytest.mark.parametrize("invariant", INVARIANTS)
def test_every_invariant_has_a_defence_that_is_taken_out(invariant: str) -> None:
    assert any(defence.invariant == invariant for defence in DEFENCES)


def test_no_defence_is_listed_twice() -> None:
    assert len({defence.about for defence in DEFENCES}) == len(DEFENCES)
    rows = (f"A{number}" for number in range(1, ATTACKS + 1))
    assert {defence.invariant for defence in DEFENCES} <= {*INVARIANTS, *rows}
