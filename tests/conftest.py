"""What every kind of test shares: the public documents, the order of the files, the end of processes that were started,
and a run that fails when a test that must run was skipped."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import jsonpath
import pytest
from nacl.pwhash import argon2id

from federation import labels
from tests import commands

_NO_SKIPS = "APOSTILLE_NO_SKIPS"
_CORPORA = "APOSTILLE_CORPORA"
_NO_HISTORY = "no git history"
_LONGEST = (  # files; they begin, so that no worker of a run is left alone with one of them at its end
    "faults/test_kill.py",
    "e2e/test_corpora.py",
    "e2e/test_docs.py",
)


@pytest.fixture(scope="session")
def corpora() -> Path:
    """The folder of public documents and vectors that APOSTILLE_CORPORA names; skips the test where there is none."""
    folder = os.environ.get(_CORPORA)
    if not folder:
        pytest.skip(f"{_CORPORA} is not set: 1 test of public documents not run")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"{_CORPORA} names no folder: {folder}")
    return path


@pytest.fixture(scope="session", autouse=True)
def _the_same_is_computed_once() -> Iterator[None]:
    """Passwords that are slow to stretch, the table of labels, and the queries that the validator of CSAF makes of the
    same texts for each document: values of their arguments and nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argon2id, "kdf", cache(argon2id.kdf))
        patch.setattr(jsonpath.DEFAULT_ENV, "compile", cache(jsonpath.DEFAULT_ENV.compile))
        patch.setattr("node.main.load_labels", cache(labels.load))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_process_stays() -> Iterator[None]:
    yield
    commands.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; all else stays in its order."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Where APOSTILLE_NO_SKIPS is set, as in CI, a skip is a failure; without public documents, theirs are not."""
    if not os.environ.get(_NO_SKIPS) or exitstatus:
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:  # a worker of a run on several cores: whoever started it counts
        return
    skipped = [str(report.longrepr) for report in reporter.stats.get("skipped", [])]
    if not os.environ.get(_CORPORA):
        skipped = [reason for reason in skipped if _CORPORA not in reason]
    skipped = [reason for reason in skipped if _NO_HISTORY not in reason]  # a tree that was copied, not cloned
    if skipped:
        reporter.write_line(f"{len(skipped)} tests that must run here were skipped", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
