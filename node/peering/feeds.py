"""The feeds that this node sends: appending, heads, pages, receipts, proofs.

One feed a peer. An append takes the feed's row by compare-and-swap, so that feeds serialise and no two entries get one
sequence number. Beside each entry lies the root up to it. What it says, and whether it may still go, is decided in
`node.sharing.releases`.

Disks lose bits, and what was signed cannot be taken back: nothing is sent or signed before it agrees with what else is
stored of it; else DamagedError is raised.
"""

from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, bindparam, func, insert, select, update

from federation import checkpoint as notes
from federation import entries, merkle
from federation.base64url import b64url
from federation.checkpoint import Checkpoint, VerifierKey
from federation.entries import Body, Envelope, ErasedItem
from federation.errors import DamagedError, HeldError, MalformedError, NotFoundError, SignatureError
from federation.feed import check_receipt
from federation.keyring import Card, unverified
from federation.limits import MAX_PAGE_BYTES, MAX_PAGE_ITEMS, NONCE_BYTES
from federation.merkle import EMPTY, RightEdge
from federation.model import NodeId, Role
from node.home import signing
from node.home.context import Node
from node.records import ledger
from node.records.ledger import Act
from node.store.database import one_row, read, write
from node.store.tables import card_deliveries, out_entries, out_feeds, own_cards, peers

POLICY = "policy"  # who did it, where no person did
# Asked many times for each page, and made only once
_CURRENT: Final = (
    select(out_feeds).where(out_feeds.c.peer == bindparam("to")).order_by(out_feeds.c.epoch.desc()).limit(1)
)
_ROOT: Final = select(out_entries.c.root).where(
    out_entries.c.feed == bindparam("of"), out_entries.c.seq == bindparam("at")
)
_recomputed: Final[WeakKeyDictionary[Engine, dict[int, RightEdge]]] = WeakKeyDictionary()  # of each feed, the last one


@dataclass(frozen=True, slots=True)
class OutFeed:
    """The current feed to one peer. `receipt_size`: how many entries that peer has acknowledged as durable.

    `shown_to`, `shown` and `refused_at` belong to `node.peering.confirm`: the process to which the receiver has shown
    its newest head, that head, and the cursor from which it asked in vain.
    """

    id: int
    peer: NodeId
    epoch: int
    origin: str
    size: int
    edge: RightEdge
    receipt: bytes
    receipt_size: int
    shown_to: bytes
    shown: bytes
    refused_at: int | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where an entry stands: the row of its feed, its number there, and its leaf hash."""

    feed: int
    seq: int
    leaf_hash: bytes


def out_feed(tx: Connection, peer: NodeId, epoch: int | None = None) -> OutFeed:
    """The feed to `peer`, the current one unless an epoch is named. Raises NotFoundError."""
    query = _CURRENT if epoch is None else _CURRENT.where(out_feeds.c.epoch == epoch)
    row = tx.execute(query, {"to": peer}).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no feed to {peer}: it is not enrolled")
    return OutFeed(
        id=row.id,
        peer=peer,
        epoch=row.epoch,
        origin=row.origin,
        size=row.size,
        edge=merkle.RightEdge.decode(row.edge),
        receipt=row.receipt or b"",
        receipt_size=row.receipt_size,
        shown_to=row.shown_to or b"",
        shown=row.shown or b"",
        refused_at=row.refused_at,
    )


def append(
    node: Node,
    tx: Connection,
    peer: NodeId,
    body: Body,
    *,
    advisory: int | None = None,
    inbox: int | None = None,
    epoch: int | None = None,
) -> Place:
    """Appends an entry to the feed to `peer`. `advisory` or `inbox` is the local row that it was made from.

    The current feed, unless an ended `epoch` is named: what is appended there is never sent, and says to our own books
    what became of its entries. Raises ConflictError when another process appended meanwhile, TooLargeError when the
    entry could not be sent, HeldError for what the peer's protocol version does not have, and DamagedError.
    """
    feed = out_feed(tx, peer, epoch)
    kind = entries.kind_of(body)
    version = unverified(tx.execute(select(peers.c.card).where(peers.c.node == peer)).scalar_one()).speaks
    if not entries.spoken_by(body, version):
        raise HeldError(f"{peer} speaks protocol version {version}, which has no {kind}: it must be upgraded first")
    data = entries.write(Envelope(feed.origin, feed.size, node.entropy(NONCE_BYTES), body))
    leaf_hash = merkle.leaf_hash(data)
    edge = feed.edge.append(leaf_hash)
    moved = tx.execute(
        update(out_feeds)
        .where(out_feeds.c.id == feed.id, out_feeds.c.size == feed.size)
        .values(size=edge.size, edge=edge.encode())
    )
    one_row(moved.rowcount, f"the feed to {peer}")
    check_end(tx, feed)
    tx.execute(
        insert(out_entries).values(
            feed=feed.id,
            seq=feed.size,
            kind=kind,
            data=data,
            leaf_hash=leaf_hash,
            root=edge.root(),
            advisory=advisory,
            inbox=inbox,
        )
    )
    return Place(feed.id, feed.size, leaf_hash)


def erase(tx: Connection, feed: int, seqs: tuple[int, ...], eraser: int) -> None:
    """Erases the bytes of entries; their sequence numbers, leaf hashes and roots stay."""
    tx.execute(
        update(out_entries)
        .where(out_entries.c.feed == feed, out_entries.c.seq.in_(seqs), out_entries.c.data.is_not(None))
        .values(data=None, erased_by=eraser)
    )


def items_after(tx: Connection, feed: int, cursor: int, max_items: int) -> list[bytes | ErasedItem]:
    """The next page: closed at 1 MiB or the number of items, but at least one item if there is any.

    Raises DamagedError for bytes that are not those that were appended.
    """
    rows = tx.execute(
        select(out_entries.c.seq, out_entries.c.data, out_entries.c.leaf_hash, out_entries.c.erased_by)
        .where(out_entries.c.feed == feed, out_entries.c.seq >= cursor)
        .order_by(out_entries.c.seq)
        .limit(max_items)
    ).yield_per(16)  # a page often closes early: do not read entries that it will not carry
    items: list[bytes | ErasedItem] = []
    size = 0
    for row in rows:
        size += len(row.data or b"")
        if items and size > MAX_PAGE_BYTES:
            break
        if row.data is not None and merkle.leaf_hash(row.data) != row.leaf_hash:
            raise DamagedError(f"entry {row.seq} of feed {feed} is not what it was")
        items.append(row.data if row.data is not None else ErasedItem(row.seq, row.leaf_hash, row.erased_by))
    rows.close()
    return items


def page_limit(asked: int) -> int:
    """How many items a page may have when the receiver asked for `asked` (0: as many as we like)."""
    return min(asked, MAX_PAGE_ITEMS) if asked else MAX_PAGE_ITEMS


def head(node: Node, tx: Connection, feed: OutFeed, size: int) -> bytes:
    """The signed checkpoint of `feed` at `size`. Raises NotFoundError for a size that it never had, DamagedError."""
    if size > feed.size:
        raise NotFoundError(f"the feed to {feed.peer} has {feed.size} entries, not {size}")
    signer, *besides = signing.signers_for(node, tx, feed.peer, Role.FEED)
    checkpoint = Checkpoint(feed.origin, size, _checked_root(tx, feed, size))
    note = notes.sign(checkpoint, feed.origin, signer.sign, signer.public)
    for old in besides:
        note = notes.sign_besides(note, feed.origin, old.sign, old.public)
    return note


def latest_head(node: Node, tx: Connection, feed: OutFeed) -> bytes:
    """The newest signed head, with this log's own timestamped cosignature."""
    note, now_s = head(node, tx, feed, feed.size), int(node.clock().timestamp())
    for signer in signing.signers_for(node, tx, feed.peer, Role.FEED):
        note = notes.cosign(note, feed.origin, now_s, signer.sign, signer.public)
    return note


def note_cards(node: Node, feed: OutFeed, cursor: int) -> None:
    """What the receiver's cursor says of our cards that it holds: one that comes from a backup may hold less again."""
    delivered = (card_deliveries.c.peer == feed.peer) & (card_deliveries.c.feed == feed.id)
    with read(node.engine) as tx:
        rows = tx.execute(select(card_deliveries.c.version, card_deliveries.c.seq).where(delivered)).all()
        if not rows:
            return
        held = max((row.version for row in rows if row.seq < cursor), default=None)
        if held is None:
            before = own_cards.c.version < min(row.version for row in rows)
            held = tx.execute(select(func.max(own_cards.c.version)).where(before)).scalar_one()
        known = tx.execute(select(peers.c.our_card).where(peers.c.node == feed.peer)).scalar_one()
    if held is not None and held != known:
        with write(node.engine) as tx:
            tx.execute(update(peers).where(peers.c.node == feed.peer).values(our_card=held))


def own_feed_keys(tx: Connection, feed: OutFeed) -> tuple[VerifierKey, ...]:
    """Every feed key that this node has ever had, under the name of `feed`: for heads that it may have signed."""
    found: dict[bytes, VerifierKey] = {}
    for document in tx.execute(select(own_cards.c.document).order_by(own_cards.c.version.desc())).scalars():
        for key in unverified(document).keys:
            if key.role is Role.FEED:
                found.setdefault(key.public, VerifierKey(feed.origin, key.public))
    return tuple(found.values())


def accept_receipt(node: Node, peer: Card, receipt: bytes) -> None:
    """Stores a receipt that says more than the one held, with a row of the ledger.

    (1) a head of this feed that we signed, cosigned by the peer's receipt key; (2) its root is ours at that size; (3)
    it grows.
    Raises a RemoteError; an older receipt is ignored.
    """
    now = node.clock()
    keys = peer.note_keys(Role.RECEIPT, peer.node, now)
    with read(node.engine) as tx:
        feed = out_feed(tx, peer.node)
        seen = check_receipt(receipt, feed.origin, own_feed_keys(tx, feed), keys)  # (1)
        if seen.size > feed.size or seen.root != root_at(tx, feed, seen.size):  # (2)
            raise SignatureError(f"receipt of {peer.node}: its root is not that of our feed at {seen.size}")
    if seen.size <= feed.receipt_size:  # (3)
        return
    with write(node.engine) as tx:
        grown = tx.execute(
            update(out_feeds)
            .where(out_feeds.c.id == feed.id, out_feeds.c.receipt_size < seen.size)
            .values(receipt=receipt, receipt_size=seen.size, receipt_at=now)
        )
        if grown.rowcount != 1:
            return
        facts = {"size": seen.size, "root": seen.root.hex(), "receipt": b64url(receipt)}
        where = ledger.Where(peer.node, feed.id, feed.origin, seen.size - 1)
        ledger.add(tx, Act.RECEIPT, where, facts, at=now, by=peer.node)
        known = select(func.max(card_deliveries.c.version)).where(
            card_deliveries.c.feed == feed.id, card_deliveries.c.seq < seen.size
        )
        version = tx.execute(known).scalar_one()
        if version is not None:
            tx.execute(
                update(peers).where(peers.c.node == peer.node, peers.c.our_card < version).values(our_card=version)
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
        leaves = leaf_hashes(tx, feed.id, size)
        note = head(node, tx, feed, size)
    if leaf is not None and leaf < size:
        return merkle.inclusion_proof(leaves, leaf), note
    if from_size is not None and 0 < from_size <= size:
        return merkle.consistency_proof(leaves, from_size), note
    raise MalformedError("proof: the leaf or the first size lies outside the feed")


def leaf_hashes(tx: Connection, feed: int, size: int, start: int = 0) -> list[bytes]:
    """The first `size` leaf hashes of a feed, from number `start` on."""
    rows = tx.execute(
        select(out_entries.c.leaf_hash)
        .where(out_entries.c.feed == feed, out_entries.c.seq >= start, out_entries.c.seq < size)
        .order_by(out_entries.c.seq)
    )
    return list(rows.scalars())


def unseen(node: Node) -> tuple[NodeId, ...]:
    """The peers who have not acknowledged everything that is in their feed."""
    newest = select(func.max(out_feeds.c.id)).group_by(out_feeds.c.peer)
    with read(node.engine) as tx:
        rows = tx.execute(
            select(out_feeds.c.peer)
            .join(peers, peers.c.node == out_feeds.c.peer)
            .where(out_feeds.c.id.in_(newest), out_feeds.c.size > out_feeds.c.receipt_size, peers.c.direct == 1)
        ).scalars()
        return tuple(map(NodeId, rows.all()))


def root_at(tx: Connection, feed: OutFeed, size: int) -> bytes:
    """The root of the first `size` entries, which the feed must have."""
    if size == feed.size:
        return feed.edge.root()
    if size == 0:
        return merkle.EMPTY.root()
    root: bytes = tx.execute(_ROOT, {"of": feed.id, "at": size - 1}).scalar_one()
    return root


def _checked_root(tx: Connection, feed: OutFeed, size: int) -> bytes:
    """The root at `size`, which is to be signed. Two places note the last one; an earlier one is computed again."""
    if size == feed.size:
        check_end(tx, feed)
        return feed.edge.root()
    known = _recomputed.setdefault(tx.engine, {})
    before, root = known.get(feed.id, EMPTY), root_at(tx, feed, size)
    for start in (before, EMPTY) if before.size <= size else (EMPTY,):  # a database may have been put back meanwhile
        edge = start.extend(leaf_hashes(tx, feed.id, size, start.size))
        if edge.root() == root:
            known[feed.id] = edge
            return root
    raise DamagedError(f"the tree of {feed.origin} is not what it was at {size}")


def check_end(tx: Connection, feed: OutFeed) -> None:
    """The edge that the feed grows from has the root that its last entry notes. Raises DamagedError."""
    noted = tx.execute(_ROOT, {"of": feed.id, "at": feed.size - 1}).scalar_one() if feed.size else EMPTY.root()
    if (feed.edge.size, feed.edge.root()) != (feed.size, noted):
        raise DamagedError(f"the tree of {feed.origin} is not what it was at its end")
