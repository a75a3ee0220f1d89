"""Whole stories between two nodes, whatever each keeps its data in: the outcome is the same."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from federation.entries import AgreementOffer
from federation.errors import ForkError, HeldError
from federation.model import instant_text
from node.desk import inbox
from node.desk.inbox import Disposition, InboxState
from node.exchange import sync
from node.records import ledger
from node.sharing import releases
from node.store.database import read
from node.store.tables import alarms, audit, in_entries, incidents, out_entries
from tests.contract.outcomes import acts, assert_same_feeds
from tests.contract.stores import FILE, MEMORY, POSTGRESQL, place
from tests.nodes import (
    DE,
    FR,
    ForgedFeed,
    World,
    agree,
    arrived,
    document,
    entry,
    history,
    import_document,
    make_world,
    release,
    reopen,
    rows,
)

ORIGIN = f"{FR}/feeds/{DE}/1"
PAIRS = ((MEMORY, MEMORY), (FILE, FILE), (POSTGRESQL, POSTGRESQL), (POSTGRESQL, FILE), (FILE, POSTGRESQL))
LASTING = [pair for pair in PAIRS if MEMORY not in pair]


@pytest.fixture(params=PAIRS, ids=lambda pair: "-".join(pair))
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """FR and DE with an agreement in force, each over a store of the kind that its place in the pair says."""
    sender, receiver = request.param
    made = make_world(tmp_path, databases={FR: place(sender), DE: place(receiver)})
    agree(made)
    yield made
    made.close()


@pytest.mark.invariant("I9")
@pytest.mark.invariant("I14")
def test_what_is_released_arrives_and_is_acknowledged(world: World) -> None:
    before = len(history(world[FR], DE))
    release(world, "A", "B")
    odd = document("C", title="NUL \0 is no text to PostgreSQL")
    releases.release(world[FR], import_document(world[FR], odd))
    assert world.sync(DE, FR).counts == {Disposition.ADMITTED: 3}
    world.sync(FR, DE)
    assert arrived(world) == ["A", "B", "C"]
    titles = {item.title for item in inbox.items(world[DE])}
    assert titles == {"Title of A", "Title of B", "NUL \ufffd is no text to PostgreSQL"}
    assert inbox.content(world[DE], "C").csaf["document"]["title"] == odd["document"]["title"]  # read from its bytes
    assert_same_feeds(world)
    assert [seq for act, seq in acts(world, FR) if act == "release"] == [before, before + 1, before + 2]
    assert all(row.receipt for row in ledger.rows(world[FR]))


@pytest.mark.invariant("I11")
def test_what_is_taken_back_is_erased_on_both_sides(world: World) -> None:
    soon = instant_text(world.clock() + timedelta(days=2))
    brief = document("BRIEF", title="Kept for two days", notes=("CANARY-IN-THE-FILES",))
    handling = {"tlp": "GREEN", "retain_until": soon}
    release(world, "A")
    releases.release(world[FR], import_document(world[FR], brief, handling=handling))
    release(world, "B")
    world.sync(DE, FR)
    world.clock.move(days=3)
    eraser = len(history(world[FR], DE))
    taken = releases.withdraw_what_may_not_go(world[FR], world[DE].card, range(eraser))
    assert taken == (eraser - 2,)
    world.sync(DE, FR)
    world.sync(FR, DE)
    assert_same_feeds(world)
    states = {item.name: item.state for item in inbox.items(world[DE], every_state=True)}
    assert states == {"A": InboxState.CURRENT, "BRIEF": InboxState.WITHDRAWN, "B": InboxState.CURRENT}
    for name, table in ((FR, out_entries), (DE, in_entries)):
        with read(world[name].engine) as tx:
            gone = tx.execute(select(table.c.seq).where(table.c.data.is_(None))).scalars().all()
        assert gone == [eraser - 2]
    assert ("withdrawal", eraser) in acts(world, FR)


@pytest.mark.invariant("I8")
def test_a_fork_freezes_the_feed_and_its_evidence_is_kept(world: World) -> None:
    release(world, "A")
    world.sync(DE, FR)
    items = history(world[FR], DE)
    forged = ForgedFeed(world[FR], DE, [entry(ORIGIN, 0, AgreementOffer(b"rewritten")), *items[1:]])
    with pytest.raises(ForkError):
        sync.sync(world[DE], FR, forged)
    with read(world[DE].engine) as tx:
        assert tx.execute(select(incidents.c.kind, incidents.c.subject)).all() == [("FORK", ORIGIN)]
        assert tx.execute(select(alarms.c.kind, alarms.c.subject, alarms.c.count)).all() == [("FORK", FR, 1)]
        assert tx.execute(select(audit.c.detail).where(audit.c.act == "feed.frozen")).scalars().all() == ["FORK"]
    release(world, "B")
    with pytest.raises(HeldError, match="FORK"):
        world.sync(DE, FR)
    assert arrived(world) == ["A"]


@pytest.mark.invariant("I9")
@pytest.mark.parametrize("world", LASTING, ids=lambda pair: "-".join(pair), indirect=True)
def test_after_a_restart_both_go_on_where_they_were(world: World) -> None:
    release(world, "A")
    world.sync(DE, FR)
    for name in (FR, DE):
        reopen(world, name)
    world.sync_all(2)
    release(world, "B")
    world.sync(DE, FR)
    world.sync(FR, DE)
    assert arrived(world) == ["A", "B"]
    assert_same_feeds(world)


@pytest.mark.invariant("I9")
@pytest.mark.parametrize("world", LASTING, ids=lambda pair: "-".join(pair), indirect=True)
def test_several_who_fetch_the_same_at_once_take_each_entry_in_once(world: World) -> None:
    release(world, *(f"A-{number}" for number in range(8)))

    def fetch(page: int) -> None:
        link = world.link(DE, FR)
        link.page = page
        sync.sync(world[DE], FR, link)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(fetch, (1, 1, 2, 3)))
    world.sync(FR, DE)
    assert arrived(world) == [f"A-{number}" for number in range(8)]
    assert {outcome for _, outcome, _ in rows(world)} == {"admitted", "control"}
    assert_same_feeds(world)
