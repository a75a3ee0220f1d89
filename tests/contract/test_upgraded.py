"""Two nodes that the first version made go on after their upgrade as if nothing had been."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from federation.errors import HeldError
from federation.model import NodeId
from node import agreements, inbox, ledger, main, sync
from node.context import Node
from node.inbox import InboxState
from tests.contract import version_1
from tests.contract.outcomes import acts, assert_same_feeds
from tests.contract.stores import FILE, POSTGRESQL, new_database
from tests.nodes import AGREEMENT, DE, FR, IN, PEOPLE, Clock, World, release


@pytest.fixture(params=[FILE, POSTGRESQL])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """FR and DE, upgraded; DE's database is a file, FR's a file or on a server."""
    clock = Clock(version_1.clock() + timedelta(minutes=1))

    def node(name: str) -> Node:
        home = version_1.make_home(tmp_path, name)
        if name == "fr" and request.param == POSTGRESQL:
            version_1.move_to_server(home, new_database())
        main.upgrade_home(home, keep_copy=False)
        return replace(main.open_node(home), clock=clock, actor="alice", people=PEOPLE)

    made = World({FR: node("fr"), DE: node("de")}, clock)
    yield made
    made.close()


def names(world: World, receiver: NodeId, state: InboxState) -> set[str]:
    return {item.name for item in inbox.items(world[receiver], every_state=True) if item.state is state}


@pytest.mark.invariant("I9")
def test_they_go_on_exchanging_and_their_histories_are_one(world: World) -> None:
    before = acts(world, FR)
    world.sync_all(2)
    assert_same_feeds(world)
    release(world, "NEW")
    world.sync_all(2)
    assert_same_feeds(world)
    assert "NEW" in names(world, DE, InboxState.CURRENT)
    after = acts(world, FR)
    assert after[: len(before)] == before
    assert [act for act, _ in after[len(before) :]].count("release") == 2  # to DE, and to IN, which has not come yet


def test_what_was_there_is_there(world: World) -> None:
    assert names(world, FR, InboxState.CURRENT) == {"DE-2026-1", "DE-2026-4", "IN-2026-1"}
    assert names(world, FR, InboxState.WITHDRAWN) == {"DE-2026-2"}
    assert names(world, FR, InboxState.EQUIVOCATION) == {"DE-2026-3"}
    assert inbox.content(world[FR], "DE-2026-1").csaf["document"]["title"] == "A flaw found in Bonn"
    assert names(world, DE, InboxState.CURRENT) == {f"FR-2026-{number:02}" for number in range(1, 13)}
    assert agreements.find(world[DE], AGREEMENT).missing == ()
    disclosed = ledger.rows(world[FR])
    assert len(disclosed) == 15
    assert [row.seq for row in disclosed if row.taken_back is not None] == [16]
    assert [row.facts["name"] for row in disclosed if not row.receipt] == ["FR-2026-15"]


@pytest.mark.invariant("I8")
def test_a_feed_that_was_frozen_stays_so(world: World) -> None:
    with pytest.raises(HeldError, match="FORK"):
        sync.load_state(world[FR], IN)
