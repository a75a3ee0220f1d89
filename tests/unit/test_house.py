"""The house itself: no module grows too long to read, and every invariant has tests that name it."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_LINES = 500
INVARIANTS = tuple(f"I{number}" for number in range(1, 19))


def modules() -> list[Path]:
    """Every module that people wrote."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.splitlines() if "_pb2" not in name and (ROOT / name).exists()]


def test_no_module_is_over_500_lines() -> None:
    long = {path.name: lines for path in modules() if (lines := len(path.read_text("utf-8").splitlines())) > MOST_LINES}
    assert long == {}


@pytest.mark.parametrize("invariant", INVARIANTS)
def test_every_invariant_has_a_test_that_names_it(invariant: str) -> None:
    named = re.compile(rf'invariant\("{invariant}"\)')
    tests = [path for path in modules() if path.is_relative_to(ROOT / "tests")]
    assert any(named.search(path.read_text("utf-8")) for path in tests)
