"""Fixtures of the end-to-end tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.net import Net, make_net
from tests.nodes import DE, FR, IN


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    """FR and DE, enrolled with each other."""
    with make_net(tmp_path, FR, DE) as made:
        yield made


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Net]:
    """FR, DE and IN, all enrolled with each other."""
    with make_net(tmp_path, FR, DE, IN) as made:
        yield made
