"""A plugin of `tests.mutation`: the long history that proofs are tested on is made once in a process and kept, so that
the processes of the mutants, which are its forks, find it there.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

from tests import evidence

_KEPT = ExitStack()
_make = evidence.make_history


@cache
def _made() -> evidence.History:
    folder = _KEPT.enter_context(tempfile.TemporaryDirectory(prefix="apostille-history-"))
    return _KEPT.enter_context(_make(Path(folder)))


@contextmanager
def kept(folder: Path) -> Iterator[evidence.History]:
    """In the place of `make_history`: the one that is there already."""
    history = _made()
    yield history
    for node in history.chain.nodes.values():
        node.engine.dispose()  # no connection is carried over into a fork


def pytest_configure() -> None:
    """Before any test module is read."""
    evidence.make_history = kept
