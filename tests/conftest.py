"""Fixtures that every kind of test shares."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def corpora() -> Path:
    """The folder of public documents and vectors that APOSTILLE_CORPORA names; skips the test where there is none."""
    folder = os.environ.get("APOSTILLE_CORPORA")
    if not folder:
        pytest.skip("APOSTILLE_CORPORA is not set: 1 test of public documents not run")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"APOSTILLE_CORPORA names no folder: {folder}")
    return path
