"""How often a campaign runs: a few times with all tests, the full count where APOSTILLE_FULL is set (`make faults`).

And what it needs of the machine: without that it is skipped and says so; CI has all of it."""

import os
import shutil

import pytest

FULL = bool(os.environ.get("APOSTILLE_FULL"))


def count(short: int, full: int) -> int:
    """`short` runs, or `full` of them in a full campaign."""
    return full if FULL else short


def needs(*programs: str, root: bool = False) -> pytest.MarkDecorator:
    """Skips a test where a program is not installed, or, with `root`, where another user runs it."""
    missing = [program for program in programs if shutil.which(program) is None]
    why = [f"{program} is not installed" for program in missing] + ["it takes root"] * (root and os.getuid() != 0)
    return pytest.mark.skipif(bool(why), reason=f"{', '.join(why)}: this campaign was not run")
