"""What every kind of test shares: the public documents, and a run that fails when a test that must run was skipped."""

import os
from pathlib import Path

import pytest

_NO_SKIPS = "APOSTILLE_NO_SKIPS"
_CORPORA = "APOSTILLE_CORPORA"
_NO_HISTORY = "no git history"


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


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Where APOSTILLE_NO_SKIPS is set, as in CI, a skip is a failure; without public documents, theirs are not."""
    if not os.environ.get(_NO_SKIPS) or exitstatus:
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    assert reporter is not None
    skipped = [str(report.longrepr) for report in reporter.stats.get("skipped", [])]
    if not os.environ.get(_CORPORA):
        skipped = [reason for reason in skipped if _CORPORA not in reason]
    skipped = [reason for reason in skipped if _NO_HISTORY not in reason]  # a tree that was copied, not cloned
    if skipped:
        reporter.write_line(f"{len(skipped)} tests that must run here were skipped", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
