"""However releases, syncs, lost replies, small pages and restarts are mixed, every receiver ends with what was sent."""

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from federation import merkle
from federation.entries import ErasedItem
from federation.errors import UnreachableError
from federation.model import NodeId
from node.desk import inbox
from node.exchange import sync
from node.peering import agreements
from node.records import ledger
from node.sharing import releases
from node.store.database import read
from node.store.tables import in_entries, in_feeds, out_feeds
from tests.nodes import (
    AGREEMENT,
    DE,
    FR,
    IN,
    DirectLink,
    LyingLink,
    World,
    agree,
    document,
    history,
    import_document,
    make_world,
    reopen,
    terms_text,
)

NAMES = (FR, DE, IN)
PAIRS = tuple((a, b) for a in NAMES for b in NAMES if a != b)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("release"), st.sampled_from(NAMES), st.just(0)),
        st.tuples(st.just("sync"), st.sampled_from(PAIRS), st.integers(0, 2)),
        st.tuples(st.just("lost"), st.sampled_from(PAIRS), st.integers(1, 2)),
        st.tuples(st.just("restart"), st.sampled_from(NAMES), st.just(0)),
        st.tuples(st.just("agree"), st.sampled_from(NAMES), st.just(0)),
        st.tuples(st.just("later"), st.just(FR), st.sampled_from([1, 90])),
    ),
    min_size=4,
    max_size=10,
)


class _Run:
    """One example: a world, and what was released in it."""

    def __init__(self, folder: Path) -> None:
        self.world: World = make_world(folder, *NAMES)
        agree(self.world)
        self.count = 0
        self.steps: dict[str, Callable[..., None]] = {
            "release": self.release,
            "sync": self.sync,
            "lost": self.lost,
            "restart": self.restart,
            "agree": self.agree,
            "later": lambda _, days: self.world.clock.move(days=days),
        }

    def release(self, name: NodeId, _: int) -> None:
        self.count += 1
        node = self.world[name]
        releases.release(node, import_document(node, document(f"ADV-{self.count}")))

    def sync(self, pair: tuple[NodeId, NodeId], page: int, lost: int = 0) -> None:
        receiver, sender = pair
        link = DirectLink(self.world[sender], self.world[receiver], page)
        with suppress(UnreachableError):
            sync.sync(self.world[receiver], sender, LyingLink(link, lost=lost))

    def restart(self, name: NodeId, _: int) -> None:
        reopen(self.world, name)

    def lost(self, pair: tuple[NodeId, NodeId], lost: int) -> None:
        self.sync(pair, 1, lost)

    def agree(self, name: NodeId, _: int) -> None:
        self.count += 1
        text = terms_text(self.world, agreement=f"more-{self.count}")
        agreements.propose(self.world[name], text, "more.yaml")


def _leaf(item: bytes | ErasedItem) -> bytes:
    return item.leaf_hash if isinstance(item, ErasedItem) else merkle.leaf_hash(item)


@pytest.mark.invariant("I8")
@pytest.mark.invariant("I9")
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(STEPS)
def test_nodes_converge_under_any_order_of_delivery(steps: list[tuple[str, object, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = _Run(Path(folder))
        for kind, who, number in steps:
            run.steps[kind](who, number)
        world = run.world
        world.sync_all(3)
        for receiver, sender in PAIRS:
            sent = history(world[sender], receiver)
            with read(world[receiver].engine) as tx:
                rows = tx.execute(
                    select(in_entries)
                    .join(in_feeds, in_feeds.c.id == in_entries.c.feed)
                    .where(in_feeds.c.peer == sender)
                    .order_by(in_entries.c.seq)
                ).all()
            assert [row.seq for row in rows] == list(range(len(sent)))  # no loss, no repetition, in order
            assert [row.leaf_hash for row in rows] == [_leaf(item) for item in sent]
            assert sync.load_state(world[receiver], sender).state.edge.root() == merkle.root(map(_leaf, sent))
            assert {row.outcome for row in rows} <= {"admitted", "control", "erased", "withdrawn"}
            with read(world[sender].engine) as tx:
                feed = tx.execute(select(out_feeds).where(out_feeds.c.peer == receiver)).one()
            assert feed.receipt_size == feed.size == len(sent)
            got = {(i.name, i.seq) for i in inbox.items(world[receiver], every_state=True) if i.peer == sender}
            gave = {(r.name, r.seq) for r in ledger.rows(world[sender], receiver) if r.taken_back is None}
            assert got == gave
            assert all(row.receipt for row in ledger.rows(world[sender], receiver))
        before = [history(world[sender], receiver) for receiver, sender in PAIRS]
        world.sync_all()
        assert before == [history(world[sender], receiver) for receiver, sender in PAIRS]
        assert agreements.find(world[FR], AGREEMENT).missing == ()
        world.close()
