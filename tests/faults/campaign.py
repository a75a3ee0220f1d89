"""How often a campaign runs: a few times with all tests, the full count where APOSTILLE_FULL is set (`make faults`)."""

import os

FULL = bool(os.environ.get("APOSTILLE_FULL"))


def count(short: int, full: int) -> int:
    """`short` runs, or `full` of them in a full campaign."""
    return full if FULL else short
