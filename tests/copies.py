"""Copies of whole homes, as backups, snapshots and careless people make them; and the two people who put things right.

`put_back` is the honest way: a backup by our own command, and its restore. `clone` is a second machine that runs the
same home. `roll_back` puts an old copy of a home back without telling anybody: a snapshot of the machine.

A `Recorder` sits at the links. It keeps every head that was signed, with the leaf hashes that the sender had under it
then, and every receipt that was given: whatever two copies of a node sign differently stands there twice.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from federation.checkpoint import Checkpoint, parse_origin_line
from federation.errors import AwaitsSecondError, UnreachableError
from federation.feed import Ask, PageBytes
from federation.model import NodeId
from node import acts, main
from node.exchange import epochs
from node.exchange.epochs import Cause
from node.home.context import Node
from node.operation import backup
from node.operation.backup import Restored
from node.peering import feeds
from node.records import approvals
from node.store import sqlite
from node.store.database import read
from tests.nodes import DirectLink, World


def save(node: Node, target: Path) -> Path:
    """A backup of the node's home, with its passphrase."""
    backup.make(node, target, roots=False, passphrase=True)
    return target


def copy_home(node: Node, home: Path) -> Path:
    """A copy of a home by hand, its database in one state."""
    shutil.copytree(node.home, home, ignore=shutil.ignore_patterns(f"{main.DATABASE_FILE}*", "serve.*"))
    sqlite.copy(node.engine, home / main.DATABASE_FILE)
    return home


def started(world: World, like: Node, home: Path) -> Node:
    """A process that has just started on `home`, with the world's clock and people."""
    return replace(main.open_node(home), clock=world.clock, actor=like.actor, people=like.people)


def clone(world: World, name: NodeId, home: Path) -> Node:
    """A second machine that runs a copy of the node's home; it is not in the world."""
    return started(world, world[name], copy_home(world[name], home))


def roll_back(world: World, name: NodeId, saved: Path) -> Node:
    """The node after its home was exchanged for a copy that was made before, by hand."""
    old = world[name]
    old.engine.dispose()
    shutil.rmtree(old.home)
    shutil.copytree(saved, old.home)
    world.nodes[name] = started(world, old, old.home)
    return world.nodes[name]


def put_back(world: World, name: NodeId, saved: Path, *, lost: bool = False) -> Restored:
    """Restores a backup over the node's home, which is lost before, or moved aside."""
    old = world[name]
    old.engine.dispose()
    if lost:
        shutil.rmtree(old.home)
    done = backup.restore(old.home, saved, replace=not lost, open_node=lambda home: started(world, old, home))
    world.nodes[name] = started(world, old, old.home)
    return done


def second_person(node: Node, ask: Callable[[], object]) -> None:
    """Whatever `ask` asks for is approved by bob."""
    with pytest.raises(AwaitsSecondError) as noted:
        ask()
    approvals.settle(replace(node, actor="bob"), noted.value.number, acts.registry(), approve=True)


def open_epoch(node: Node, peer: NodeId, cause: Cause = Cause.RESTORED) -> None:
    """Two people open a new epoch of the feed to `peer`."""
    second_person(node, lambda: epochs.opening(node, peer, cause, "telephoned"))


def accept_epoch(node: Node, peer: NodeId) -> None:
    """Two people accept the new epoch of the feed from `peer`."""
    second_person(node, lambda: epochs.accepting(node, peer, "telephoned"))


class Recorder:
    """What was ever signed, by whichever copy of a node."""

    def __init__(self) -> None:
        self.leaves: dict[tuple[str, int], set[bytes]] = {}
        self.heads: dict[tuple[str, int], set[bytes]] = {}
        self.receipts: dict[str, list[int]] = {}

    def link(self, sender: Node, receiver: Node, *, page: int = 0, pages: int | None = None) -> "RecordedLink":
        """The honest way to this copy of the sender; after `pages` pulls it is cut, before the next is sent."""
        return RecordedLink(self, DirectLink(sender, receiver, page), pages)

    @property
    def signed_twice(self) -> list[tuple[str, int]]:
        """The sequence numbers that were signed for different entries, by feed, and the sizes with several roots."""
        seqs = [place for place, found in self.leaves.items() if len(found) > 1]
        return sorted({*seqs, *(place for place, found in self.heads.items() if len(found) > 1)})

    @property
    def receipts_that_fell(self) -> list[str]:
        """The feeds of which a receipt was given for less than an earlier one."""
        return [origin for origin, sizes in self.receipts.items() if sizes != sorted(sizes)]

    def note(self, sender: Node, receiver: NodeId, signed: bytes) -> None:
        """Keeps one signed head."""
        head = Checkpoint.of(signed)
        self.heads.setdefault((head.origin, head.size), set()).add(head.root)
        with read(sender.engine) as tx:
            feed = feeds.out_feed(tx, receiver, parse_origin_line(head.origin)[2])
            for seq, leaf in enumerate(feeds.leaf_hashes(tx, feed.id, head.size)):
                self.leaves.setdefault((head.origin, seq), set()).add(leaf)


class RecordedLink:
    """`node.exchange.sync.Link` to one copy of a sender."""

    def __init__(self, recorder: Recorder, honest: DirectLink, pages: int | None) -> None:
        self.recorder, self.honest, self.pages = recorder, honest, pages

    def pull(self, ask: Ask) -> PageBytes:
        if self.pages == 0:
            raise UnreachableError("the line was cut")
        self.pages = None if self.pages is None else self.pages - 1
        if ask.receipt:
            head = Checkpoint.of(ask.receipt)
            self.recorder.receipts.setdefault(head.origin, []).append(head.size)
        page = self.honest.pull(ask)
        for note in filter(None, (page.checkpoint, page.latest)):
            self.recorder.note(self.honest.server, self.honest.caller.id, note)
        return page

    def checkpoint(self, origin: str, size: int) -> bytes:
        note = self.honest.checkpoint(origin, size)
        self.recorder.note(self.honest.server, self.honest.caller.id, note)
        return note
