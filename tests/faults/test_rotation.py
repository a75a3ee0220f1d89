"""Rotations under load, and killed: no call fails that a retry does not mend, no gap, and the newest keys are used.

Real gRPC with mutual TLS between two nodes of one process: both release and pull all the time while every online key on
both sides is replaced again and again. Beside that, real processes that are killed in the middle of a rotation.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from federation.checkpoint import VerifierKey, open_checkpoint
from federation.errors import ApostilleError, RemoteError
from federation.keyring import Card
from federation.model import Country, NodeId, Role
from node import main
from node.desk import inbox
from node.exchange import sync
from node.home import signing
from node.peering import cards, feeds, rotation
from node.peering.rotation import Change
from node.rpc.client import PeerLink
from node.sharing import releases
from node.store.database import read
from node.store.tables import in_entries, peers
from tests.e2e.net import Net, make_net, until
from tests.faults.campaign import count
from tests.faults.zygote import Zygote
from tests.nodes import DE, FR, PEOPLE, agree, document, import_document

ROTATIONS = count(10, 200)
KILLS = count(8, 200)
BETWEEN_S = 15  # on the nodes' clock; all of them fit into the hour for which a new certificate is valid beforehand
OVERLAP = timedelta(seconds=7 * BETWEEN_S)  # a call that began before as many rotations has had its time
PATIENCE_S = 120.0
RETRIES = 3
SYNC_EVERY_S = 0.05
RELEASE_EVERY_S = 1.0  # so that a sync comes to an end, and the next one opens a connection of its own


class Load:
    """Both nodes release and pull until they are told to stop."""

    def __init__(self, net: Net) -> None:
        self._net = net
        self._stop = threading.Event()
        self.released: dict[NodeId, list[str]] = {FR: [], DE: []}
        self.syncs, self.mended = 0, 0
        self.unmended: list[str] = []
        self._pool = ThreadPoolExecutor(4)
        self._work = [self._pool.submit(self._release, me) for me in self.released]
        self._work += [self._pool.submit(self._pull, me, other) for me, other in PAIRS]

    def stop(self) -> None:
        """Ends all four; raises what any of them raised."""
        self._stop.set()
        for work in self._work:
            work.result(PATIENCE_S)
        self._pool.shutdown()

    def _release(self, me: NodeId) -> None:
        node = self._net.world[me]
        while not self._stop.wait(RELEASE_EVERY_S):
            name = f"{me[5:7].upper()}-{len(self.released[me])}"
            import_document(node, document(name))
            releases.release(node, name)
            self.released[me].append(name)

    def _pull(self, me: NodeId, other: NodeId) -> None:
        """Syncs again and again. One that never catches up ends with the key that it began with: then the next attempt
        has to get further."""
        while not self._stop.wait(SYNC_EVERY_S):
            failed, reached = 0, self._cursor(me, other)
            while failed <= RETRIES:
                try:
                    self._net.sync(me, other)
                    break
                except ApostilleError as e:
                    now = self._cursor(me, other)
                    failed, reached = (failed + 1, reached) if now == reached else (1, now)
                    self.mended += 1
                    if failed > RETRIES:
                        self.unmended.append(f"{me}: {type(e).__name__} {e}")
            self.syncs += 1

    def _cursor(self, me: NodeId, other: NodeId) -> int:
        return sync.load_state(self._net.world[me], other).state.cursor


PAIRS = ((FR, DE), (DE, FR))


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    with make_net(tmp_path, FR, DE) as made:
        agree(made.world)
        for name in (FR, DE):
            made.serve(name)
        yield made


def test_every_key_on_both_sides_is_replaced_under_load_without_a_gap(net: Net) -> None:
    world, first = net.world, {name: _kids(net.world[name].card) for name in (FR, DE)}
    load = Load(net)
    try:
        for number in range(ROTATIONS):
            for name in (FR, DE):
                rotation.change(world[name], Change(rotate=tuple(Role), overlap=OVERLAP))
            until(lambda: not any(cards.waiting(world[name]) for name in (FR, DE)), PATIENCE_S)
            world.clock.move(seconds=BETWEEN_S)
            assert world[FR].card.version == world[DE].card.version == number + 2
    finally:
        load.stop()
    for me, other in PAIRS:
        net.sync(me, other)
        net.sync(other, me)
    assert load.unmended == []
    for me, other in PAIRS:
        _check_no_gap(net, me, other, load.released[other])
        _check_newest_keys(net, me, other)
        assert not first[me] & _kids(world[me].card)
        assert not first[me] & {kid for _, kid in world[me].keys.stored()}
    total = sum(map(len, load.released.values()))
    print(f"{ROTATIONS} rotations of all keys: {total} advisories, {load.syncs} syncs, {load.mended} needed a retry")


def _kids(card: Card) -> set[str]:
    return {key.kid for key in card.keys}


def _check_no_gap(net: Net, me: NodeId, other: NodeId, released: list[str]) -> None:
    """Everything that `other` released came to `me`, once, and both have the same tree."""
    state = sync.load_state(net.world[me], other).state
    with read(net.world[other].engine) as tx:
        feed = feeds.out_feed(tx, me)
    assert (state.edge.root(), feed.receipt_size) == (feed.edge.root(), feed.size)
    assert sorted(item.name for item in inbox.items(net.world[me], every_state=True)) == sorted(released)
    with read(net.world[me].engine) as tx:
        outcomes = set(tx.execute(select(in_entries.c.outcome)).scalars())
    assert outcomes == {"admitted", "control"}


def _check_newest_keys(net: Net, me: NodeId, other: NodeId) -> None:
    """`me` signs for `other`, and shows it on a connection, nothing but the newest keys."""
    node = net.world[me]
    newest = {role: next(key for key in node.card.keys if key.role is role) for role in Role}
    with read(node.engine) as tx:
        assert {role: signing.key_for(node, tx, other, role) for role in Role} == newest
        assert {role: signing.key_for_all(node, tx, role) for role in Role} == newest
        feed = feeds.out_feed(tx, other)
        head = feeds.head(node, tx, feed, feed.size)
    assert head.count("— ".encode()) == 1
    open_checkpoint(head, feed.origin, VerifierKey(feed.origin, newest[Role.FEED].public))
    only = replace(node.card, endpoint=net.addresses[me], keys=(newest[Role.TLS],))
    with PeerLink(net.world[other], only) as link:  # which pins the newest certificate alone
        link.notify()


def test_a_peer_that_was_cut_off_through_many_rotations_catches_up_within_the_overlap(net: Net) -> None:
    world = net.world
    for number in range(5):
        rotation.change(world[FR], Change(rotate=tuple(Role)))
        name = f"FR-{number}"
        import_document(world[FR], document(name))
        releases.release(world[FR], name)
        world.clock.move(seconds=BETWEEN_S)
    net.sync(DE, FR)
    net.sync(FR, DE)
    assert {item.name for item in inbox.items(world[DE])} == {f"FR-{number}" for number in range(5)}
    with read(world[FR].engine) as tx:
        assert tx.execute(select(peers.c.our_card)).scalar_one() == 6


# Killed in the middle


@pytest.fixture
def home(tmp_path: Path) -> Path:
    main.init_home(tmp_path / "fr", FR, Country("FR"), "127.0.0.1:1", "127.0.0.1:1", roots=1, threshold=1, packs=())
    return tmp_path / "fr"


def test_a_rotation_that_is_killed_leaves_the_old_card_or_the_new_one(home: Path, tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)  # noqa: S311 - told below, so that a run can be repeated
    chance = random.Random(seed)  # noqa: S311
    (tmp_path / "logs").mkdir()
    took_s, killed, versions = 0.0, 0, [1]
    with Zygote(tmp_path / "logs") as zygote:
        for run in range(KILLS + 2):
            began = time.monotonic()
            process = zygote.start(home, "key", "rotate", "--all", "--overlap", "3s")
            if run > 1:  # the second one measures how long it takes
                threading.Event().wait(chance.uniform(0, took_s))  # the moment is what the test is about
                killed += _kill(zygote, process)
            else:
                assert zygote.wait(process) == 0, zygote.log(process)
                took_s = time.monotonic() - began
            versions.append(_check_home(home, f"seed {seed}, run {run}"))
            assert versions[-1] - versions[-2] in (0, 1)
            _until_nothing_overlaps()
    assert killed > KILLS // 8
    node = replace(main.open_node(home), actor="alice", people=PEOPLE)
    rotation.prune(node, unused=True)
    assert {kid for _, kid in node.keys.stored()} == {
        key.kid for key in node.card.keys if key.valid_until > main.utc_now()
    }
    node.engine.dispose()


def _until_nothing_overlaps() -> None:
    """The old keys end a second after their rotation, so that no card fills up."""
    end = time.monotonic() + 1.1
    until(lambda: time.monotonic() > end)


def _kill(zygote: Zygote, process: int) -> int:
    if not zygote.ended(process):
        os.kill(process, signal.SIGKILL)
    return int(zygote.wait(process) == -signal.SIGKILL)


def _check_home(home: Path, what: str) -> int:
    """The home opens, and the newest key of each role on its card is there and opens; returns the card's version."""
    node = main.open_node(home)
    try:
        for role in Role:
            node.keys.check(next(key for key in node.card.keys if key.role is role))
    except RemoteError as e:
        pytest.fail(f"{what}: {e}")
    finally:
        node.engine.dispose()
    return node.card.version
