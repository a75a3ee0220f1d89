"""Upgrades a home and is killed on the way: `python -m tests.contract.killed HOME WHEN`.

WHEN is a number of steps (a step is a statement, or a hundred instructions of SQLite's machine), `commit`, or `unlink`:
just before the transaction commits, or the file of the card goes. If nothing kills it, it prints how many steps it
took.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from node import main

_INSTRUCTIONS = 100


class _Steps:
    """Counts, and ends the process at the one that is asked for."""

    def __init__(self, when: str) -> None:
        self.when, self.count = when, 0

    def step(self, *_: Any) -> None:
        self.count += 1
        self.reach(str(self.count))

    def reach(self, where: str) -> None:
        if where == self.when:
            os.kill(os.getpid(), signal.SIGKILL)


def run(home: Path, when: str) -> None:
    """Upgrades `home`."""
    steps = _Steps(when)
    event.listen(Engine, "before_cursor_execute", steps.step)
    event.listen(Engine, "commit", lambda connection: steps.reach("commit") if _writes(connection) else None)
    event.listen(Engine, "connect", lambda connection, _: _count_instructions(connection, steps))
    sys.addaudithook(lambda name, details: steps.reach("unlink") if _is_card(name, details) else None)
    main.upgrade_home(home, keep_copy=True)
    print(steps.count)


def _writes(connection: Any) -> bool:
    return bool(connection.get_execution_options().get("writes", False))


def _count_instructions(connection: Any, steps: _Steps) -> None:
    if hasattr(connection, "set_progress_handler"):
        connection.set_progress_handler(steps.step, _INSTRUCTIONS)


def _is_card(name: str, details: tuple[Any, ...]) -> bool:
    return name == "os.remove" and str(details[0]).endswith("card.json")


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2])
