"""What tests of epochs do: a node that has lost entries, and the people who open and accept a new epoch."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from federation import entries
from federation.errors import (
    AwaitsSecondError,
    EpochError,
    UnconfirmedError,
)
from node import acts
from node.desk import inbox
from node.exchange import epochs
from node.exchange.epochs import Cause
from node.home.context import Node
from node.peering import feeds
from node.records import approvals
from node.records.alarms import Alarm
from node.store.database import read
from node.store.tables import alarms
from tests.copies import accept_epoch, open_epoch, put_back, save
from tests.nodes import (
    DE,
    FR,
    World,
    history,
    release,
)


def lose(world: World, folder: Path, *lost: str) -> None:
    """FR is put back to a state before it released `lost`, which DE has; it has heard DE since."""
    saved = save(world[FR], folder / "backup.tar")
    release(world, *lost or ("LOST",))
    world.sync(DE, FR)
    put_back(world, FR, saved, lost=True)
    world.sync(FR, DE)


def refused(world: World) -> None:
    with pytest.raises(UnconfirmedError):
        world.sync(DE, FR)


def offered(world: World) -> int:
    with pytest.raises(EpochError) as told:
        world.sync(DE, FR)
    return told.value.epoch


def go_on(world: World) -> None:
    """What four people do once DE was refused."""
    refused(world)
    open_epoch(world[FR], DE)
    offered(world)
    accept_epoch(world[DE], FR)
    world.sync(DE, FR)


def noted(ask: Callable[[], object]) -> int:
    with pytest.raises(AwaitsSecondError) as waiting:
        ask()
    return waiting.value.number


def approve(node: Node, number: int) -> approvals.Request:
    return approvals.settle(replace(node, actor="bob"), number, acts.registry(), approve=True)


def ask_to_open(node: Node) -> int:
    return noted(lambda: epochs.opening(node, DE, Cause.RESTORED, "restored last night's backup"))


def ask_to_accept(node: Node) -> int:
    return noted(lambda: epochs.accepting(node, FR, "telephoned"))


def bodies(world: World) -> list[entries.Body]:
    return [entries.read(data).body for data in history(world[FR], DE) if isinstance(data, bytes)]


def found(node: Node, kind: Alarm) -> list[tuple[str, str]]:
    with read(node.engine) as tx:
        rows = tx.execute(select(alarms.c.subject, alarms.c.detail).where(alarms.c.kind == kind)).all()
    return [(row.subject, row.detail) for row in rows]


def item(node: Node, name: str) -> inbox.Item:
    return max((i for i in inbox.items(node, every_state=True) if i.name == name), key=lambda i: i.id)


def current(world: World) -> feeds.OutFeed:
    """The feed from FR to DE, of its newest epoch."""
    with read(world[FR].engine) as tx:
        return feeds.out_feed(tx, DE)
