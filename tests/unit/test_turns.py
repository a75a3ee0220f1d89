"""Syncs take turns: a peer whose feed never ends keeps nobody from another one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from federation.entries import AgreementOffer
from federation.feed import Ask, PageBytes
from federation.keyring import Card
from node.desk import inbox
from node.home.context import Node
from node.operation import scheduler
from node.operation.scheduler import Polls
from tests.e2e.net import until
from tests.nodes import DE, FR, IN, DirectLink, ForgedFeed, World, agree, entry, history, make_world, release

ORIGIN = f"{IN}/feeds/{DE}/1"


class Endless(ForgedFeed):
    """A feed of IN to DE that has one more page whenever it is asked."""

    def pull(self, ask: Ask) -> PageBytes:
        while len(self.items) <= ask.cursor:
            self.items = (*self.items, entry(ORIGIN, len(self.items), AgreementOffer(b"none")))
        return super().pull(ask)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path, FR, DE, IN)
    agree(made)
    yield made
    made.close()


class Lines:
    """What `Polls` calls in place of a link over the network."""

    def __init__(self, world: World) -> None:
        self.world, self.opened = world, {FR: 0, IN: 0}
        self.endless = Endless(world[IN], DE, history(world[IN], DE), page=1)

    @contextmanager
    def __call__(self, node: Node, card: Card) -> Iterator[Any]:
        self.opened[card.node] += 1
        link: Any = self.endless if card.node == IN else DirectLink(self.world[FR], node, page=1)
        link.close = link.notify = lambda: None
        yield link


@pytest.fixture
def lines(world: World) -> Lines:
    return Lines(world)


def test_a_feed_without_end_keeps_no_other_peer_waiting(
    world: World, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "SYNC_THREADS", 1)
    monkeypatch.setattr(scheduler, "TURN_S", 0.2)
    release(world, "A", "B", "C")
    polls = Polls(replace(world[DE], poll_interval_s=1), lines)
    polls.start()
    try:
        until(lambda: lines.opened[IN] > 1 and len(inbox.items(world[DE])) == 3, 60)
    finally:
        polls.stop()


def test_what_did_not_fit_into_one_turn_comes_in_the_next(
    world: World, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "TURN_S", 0.0)  # a page each
    release(world, "A", "B", "C")
    polls = Polls(replace(world[DE], poll_interval_s=3600), lines)
    polls.start()
    try:
        until(lambda: len(inbox.items(world[DE])) == 3, 60)
    finally:
        polls.stop()
    assert lines.opened[FR] >= 3
