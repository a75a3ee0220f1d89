"""The feeds that this node sends: appending, heads, pages, receipts, proofs.

One feed a peer. An append takes the feed's row by compare-and-swap, so that feeds serialise and no two entries get one
sequence number. Beside each entry lies the root up to it, so a head of any size is signed without recomputing the tree.
What an entry says, and whether it may still go, is decided in `node.releases`.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, update

from federation import checkpoint as notes
from federation import entries, merkle
from federation.checkpoint import Checkpoint
from federation.entries import Body, Delivery, Envelope, ErasedItem, Withdrawal
from federation.errors import MalformedError, NotFoundError, SignatureError
from federation.feed import check_receipt
from federation.keyring import Card
from federation.limits import MAX_PAGE_BYTES, MAX_PAGE_ITEMS, NONCE_BYTES
from federation.merkle import RightEdge
from federation.model import NodeId, Role
from node.context import Node
from node.store.database import one_row, read, write
from node.store.tables import out_entries, out_feeds


@dataclass(frozen=True, slots=True)
class OutFeed:
    """The feed to one peer as it stands. `receipt_size`: how many entries that peer has acknowledged as durable."""

    peer: NodeId
    origin: str
    size: int
    edge: RightEdge
    receipt: bytes
    receipt_size: int


def out_feed(tx: Connection, peer: NodeId) -> OutFeed:
    """The feed to `peer`. Raises NotFoundError."""
    row = tx.execute(select(out_feeds).where(out_feeds.c.peer == peer)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no feed to {peer}: it is not enrolled")
    return OutFeed(peer, row.origin, row.size, merkle.RightEdge.decode(row.edge), row.receipt or b"", row.receipt_size)


def append(node: Node, tx: Connection, peer: NodeId, body: Body, *, advisory: int | None = None) -> int:
    """Appends an entry to the feed to `peer` and returns its sequence number.

    Raises ConflictError when another process appended meanwhile, TooLargeError when the entry could not be sent.
    """
    feed = out_feed(tx, peer)
    data = entries.write(Envelope(feed.origin, feed.size, node.entropy(NONCE_BYTES), body))
    leaf_hash = merkle.leaf_hash(data)
    edge = feed.edge.append(leaf_hash)
    moved = tx.execute(
        update(out_feeds)
        .where(out_feeds.c.peer == peer, out_feeds.c.size == feed.size)
        .values(size=edge.size, edge=edge.encode())
    )
    one_row(moved.rowcount, f"the feed to {peer}")
    tx.execute(
        insert(out_entries).values(
            peer=peer,
            seq=feed.size,
            kind=_kind(body),
            data=data,
            leaf_hash=leaf_hash,
            root=edge.root(),
            advisory=advisory,
        )
    )
    return feed.size


def erase(tx: Connection, peer: NodeId, seqs: tuple[int, ...], eraser: int) -> None:
    """Erases the bytes of entries; their sequence numbers, leaf hashes and roots stay."""
    tx.execute(
        update(out_entries)
        .where(out_entries.c.peer == peer, out_entries.c.seq.in_(seqs), out_entries.c.data.is_not(None))
        .values(data=None, erased_by=eraser)
    )


def items_after(tx: Connection, peer: NodeId, cursor: int, max_items: int) -> list[bytes | ErasedItem]:
    """The next page: closed at 1 MiB or the number of items, but at least one item if there is any."""
    rows = tx.execute(
        select(out_entries.c.seq, out_entries.c.data, out_entries.c.leaf_hash, out_entries.c.erased_by)
        .where(out_entries.c.peer == peer, out_entries.c.seq >= cursor)
        .order_by(out_entries.c.seq)
        .limit(max_items)
    ).yield_per(16)  # a page often closes early: do not read entries that it will not carry
    items: list[bytes | ErasedItem] = []
    size = 0
    for row in rows:
        size += len(row.data or b"")
        if items and size > MAX_PAGE_BYTES:
            break
        items.append(row.data if row.data is not None else ErasedItem(row.seq, row.leaf_hash, row.erased_by))
    rows.close()
    return items


def page_limit(asked: int) -> int:
    """How many items a page may have when the receiver asked for `asked` (0: as many as we like)."""
    return min(asked, MAX_PAGE_ITEMS) if asked else MAX_PAGE_ITEMS


def head(node: Node, tx: Connection, feed: OutFeed, size: int) -> bytes:
    """The signed checkpoint of `feed` at `size`. Raises NotFoundError for a size that it never had."""
    if size > feed.size:
        raise NotFoundError(f"the feed to {feed.peer} has {feed.size} entries, not {size}")
    signer = node.keys.signer(Role.FEED, node.card, node.clock())
    checkpoint = Checkpoint(feed.origin, size, _root_at(tx, feed, size))
    return notes.sign(checkpoint, feed.origin, signer.sign, signer.public)


def latest_head(node: Node, tx: Connection, feed: OutFeed) -> bytes:
    """The newest signed head, with this log's own timestamped cosignature."""
    now = node.clock()
    signer = node.keys.signer(Role.FEED, node.card, now)
    note = head(node, tx, feed, feed.size)
    return notes.cosign(note, feed.origin, int(now.timestamp()), signer.sign, signer.public)


def accept_receipt(node: Node, peer: Card, receipt: bytes) -> None:
    """Stores a receipt that says more than the one held.

    (1) a head of this feed that we signed, cosigned by the peer's receipt key; (2) its root is ours at that size; (3)
    it grows. Raises a RemoteError; an older receipt is ignored.
    """
    now = node.clock()
    with write(node.engine) as tx:
        feed = out_feed(tx, peer.node)
        ours = node.card.note_keys(Role.FEED, feed.origin, now)
        seen = check_receipt(receipt, feed.origin, ours, peer.note_keys(Role.RECEIPT, peer.node, now))  # (1)
        if seen.size > feed.size or seen.root != _root_at(tx, feed, seen.size):  # (2)
            raise SignatureError(f"receipt of {peer.node}: its root is not that of our feed at {seen.size}")
        if seen.size > feed.receipt_size:  # (3)
            tx.execute(
                update(out_feeds)
                .where(out_feeds.c.peer == peer.node, out_feeds.c.receipt_size < seen.size)
                .values(receipt=receipt, receipt_size=seen.size, receipt_at=now)
            )


def prove(
    node: Node, peer: NodeId, origin: str, *, leaf: int | None, from_size: int | None, size: int
) -> tuple[tuple[bytes, ...], bytes]:
    """Proof hashes and the signed head at `size`: inclusion of `leaf`, or consistency from `from_size`.

    Raises NotFoundError or MalformedError.
    """
    with read(node.engine) as tx:
        feed = out_feed(tx, peer)
        if origin != feed.origin or size > feed.size:
            raise NotFoundError("no such feed, or it is not that long")
        leaves = (
            tx.execute(
                select(out_entries.c.leaf_hash)
                .where(out_entries.c.peer == peer, out_entries.c.seq < size)
                .order_by(out_entries.c.seq)
            )
            .scalars()
            .all()
        )
        note = head(node, tx, feed, size)
    if leaf is not None and leaf < size:
        return merkle.inclusion_proof(leaves, leaf), note
    if from_size is not None and 0 < from_size <= size:
        return merkle.consistency_proof(leaves, from_size), note
    raise MalformedError("proof: the leaf or the first size lies outside the feed")


def unseen(node: Node) -> tuple[NodeId, ...]:
    """The peers who have not acknowledged everything that is in their feed."""
    with read(node.engine) as tx:
        rows = tx.execute(select(out_feeds.c.peer).where(out_feeds.c.size > out_feeds.c.receipt_size)).scalars().all()
    return tuple(NodeId(peer) for peer in rows)


def _root_at(tx: Connection, feed: OutFeed, size: int) -> bytes:
    if size == feed.size:
        return feed.edge.root()
    if size == 0:
        return merkle.EMPTY.root()
    root: bytes = tx.execute(
        select(out_entries.c.root).where(out_entries.c.peer == feed.peer, out_entries.c.seq == size - 1)
    ).scalar_one()
    return root


def _kind(body: Body) -> str:
    if isinstance(body, Delivery):
        return "presentation"
    return "withdrawal" if isinstance(body, Withdrawal) else "agreement"
