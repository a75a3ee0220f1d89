"""A plugin of `tests.mutation`: what is slow and the same for every mutant is made once in a process and kept, so that
the processes of the mutants, which are its forks, find it there. Labels, stretched passwords, and the long history that
proofs are tested on.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

from nacl.pwhash import argon2id

from federation import labels
from tests import evidence

_KEPT = ExitStack()
_make = evidence.make_history


@cache
def _history() -> evidence.History:
    folder = _KEPT.enter_context(tempfile.TemporaryDirectory(prefix="apostille-history-"))
    return _KEPT.enter_context(_make(Path(folder)))


@contextmanager
def kept(folder: Path) -> Iterator[evidence.History]:
    """In the place of `make_history`: the one that is there already."""
    history = _history()
    yield history
    for node in history.chain.nodes.values():
        node.engine.dispose()  # no connection is carried over into a fork


# Before any test module is read.
evidence.make_history = kept
argon2id.kdf = cache(argon2id.kdf)
labels.load = cache(labels.load)
