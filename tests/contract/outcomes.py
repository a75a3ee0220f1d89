"""What two nodes must agree on at the end of a story, and what each must be able to tell."""

from sqlalchemy import select

from federation import merkle
from federation.entries import ErasedItem
from federation.model import NodeId
from node.exchange import sync
from node.records import ledger
from node.records.ledger import Act
from node.store.database import read
from node.store.tables import in_entries, in_feeds, out_feeds
from node.store.tables import ledger as chained
from tests.nodes import DE, FR, World, history


def assert_same_feeds(world: World) -> None:
    """What each of FR and DE has sent is what the other holds, leaf for leaf, and the receipts cover it."""
    for sender, receiver in ((FR, DE), (DE, FR)):
        sent = history(world[sender], receiver)
        assert sync.load_state(world[receiver], sender).state.edge.root() == merkle.root(map(_leaf, sent))
        with read(world[receiver].engine) as tx:
            held = tx.execute(
                select(in_entries.c.seq, in_entries.c.leaf_hash)
                .join(in_feeds, in_feeds.c.id == in_entries.c.feed)
                .where(in_feeds.c.peer == sender)
                .order_by(in_entries.c.seq)
            ).all()
        assert [tuple(row) for row in held] == [(seq, _leaf(item)) for seq, item in enumerate(sent)]
        with read(world[sender].engine) as tx:
            sizes = select(out_feeds.c.size, out_feeds.c.receipt_size).where(out_feeds.c.peer == receiver)
            assert tuple(tx.execute(sizes).one()) == (len(sent), len(sent))


def acts(world: World, name: NodeId) -> list[tuple[str, int]]:
    """The ledger of a node, act and place in the feed; its chain must hold."""
    found = ledger.rows(world[name], acts=tuple(Act))
    assert [row.number for row in found] == list(range(1, len(found) + 1))
    digest = ledger.GENESIS
    with read(world[name].engine) as tx:
        for record, said in tx.execute(select(chained.c.record, chained.c.digest).order_by(chained.c.id)):
            digest = ledger.chained(digest, record)
            assert said == digest
    return [(row.act.value, row.seq) for row in found]


def _leaf(item: bytes | ErasedItem) -> bytes:
    return item.leaf_hash if isinstance(item, ErasedItem) else merkle.leaf_hash(item)
