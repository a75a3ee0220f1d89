"""Nodes of two protocol versions: what each may ask, what goes to the older one, and what does not."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import update

from federation import entries
from federation.entries import Kind, NewCard
from federation.errors import HeldError, UsageError, VersionError
from federation.feed import Ask
from federation.keyring import Card
from node import main
from node.exchange import serving
from node.home.context import Node
from node.peering import peers
from node.sharing import releases
from node.store.database import read, write
from node.store.tables import peers as table
from tests.nodes import DE, FR, World, agree, append_by_hand, document, history, import_document, make_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path)
    agree(made)
    yield made
    made.close()


def card(node: Node, *protocols: int) -> tuple[Card, bytes]:
    """A card of `node` that lists these versions, signed by its roots."""
    made = replace(node.card, protocols=protocols, version=node.card.version + 1)
    return made, main.sign_card(made, node.keys)


def make_old(world: World) -> Card:
    """FR knows DE by a card that lists version 1 only."""
    made, document_ = card(world[DE], 1)
    with write(world[FR].engine) as tx:
        tx.execute(update(table).where(table.c.node == DE).values(card=document_))
    return made


def kinds(world: World) -> list[Kind]:
    """What FR has appended for DE."""
    return [entries.kind_of(entries.read(item).body) for item in history(world[FR], DE) if isinstance(item, bytes)]


@pytest.mark.parametrize(("protocols", "speaks"), [((1,), 1), ((1, 2), 2), ((2, 3), 2), ((2,), 2)])
def test_two_nodes_speak_the_highest_version_that_both_have(
    world: World, protocols: tuple[int, ...], speaks: int
) -> None:
    made, document_ = card(world[DE], *protocols)
    assert made.speaks == speaks
    peers.enrol(world[FR], document_)


def test_a_node_that_shares_no_version_is_told_so(world: World) -> None:
    with pytest.raises(UsageError, match="speaks protocol version 3, 4, this node 1, 2; one must be upgraded"):
        peers.enrol(world[FR], card(world[DE], 3, 4)[1])


@pytest.mark.parametrize(("listed", "asked", "fine"), [
    ((1,), 1, True), ((1,), 2, True), ((1, 2), 2, True), ((1, 2), 1, False), ((1, 2), 3, False), ((1, 2), 0, False),
])  # fmt: skip
def test_nobody_is_talked_down_to_an_older_version(
    world: World, listed: tuple[int, ...], asked: int, fine: bool
) -> None:
    made, _ = card(world[DE], *listed)
    ask = Ask(f"{FR}/feeds/{DE}/1", 0, protocol=asked)
    if fine:
        assert serving.pull(world[FR], made, ask).items
    else:
        with pytest.raises(VersionError):
            serving.pull(world[FR], made, ask)


def test_no_entry_goes_to_a_node_that_could_not_read_it(world: World) -> None:
    make_old(world)
    before = kinds(world)
    with pytest.raises(HeldError, match="speaks protocol version 1, which has no card"):
        append_by_hand(world[FR], DE, NewCard(world[FR].card_bytes))
    assert kinds(world) == before


def test_an_older_node_still_gets_advisories_and_what_it_refused_is_not_answered(world: World) -> None:
    old = make_old(world)
    name = import_document(world[FR], document("X"))
    releases.release(world[FR], name, (DE,))
    assert kinds(world)[-1] is Kind.PRESENTATION
    assert serving.pull(world[FR], old, Ask(f"{FR}/feeds/{DE}/1", 0, protocol=1)).items


@pytest.mark.invariant("I15")
@pytest.mark.parametrize("handling", [{"tlp": "RED", "recipients": [DE]}, {"tlp": "GREEN", "tier": "dual_use"}])
def test_what_must_be_possible_to_recall_does_not_go_to_an_older_node(
    world: World, handling: dict[str, object]
) -> None:
    make_old(world)
    name = import_document(world[FR], document("X"), handling=handling)
    _, (outcome,) = releases.release(world[FR], name, (DE,))
    assert (outcome.presented, outcome.seq) == (None, None)
    assert "cannot answer a recall" in str(outcome.held)
    with write(world[FR].engine) as tx:  # positive control: the same, once it speaks version 2
        tx.execute(update(table).where(table.c.node == DE).values(card=world[DE].card_bytes))
    assert releases.release(world[FR], name, (DE,))[1][0].seq is not None
    with read(world[FR].engine) as tx:
        assert peers.trusted_cards(tx)[DE].speaks == 2
