"""A store of each kind, for the tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.stores import KINDS, Store, new_store


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A store with the tables of a new node, of every kind that the test asks for."""
    with new_store(request.param, tmp_path) as made:
        yield made
