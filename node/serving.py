"""What a peer gets when it asks: pages of its feed, heads, proofs. Called by `node.rpc` with the card of whoever calls.

Policy is asked again about every presentation that a page would carry (I11); what may no longer go is taken back
first, and the page then carries its hash. Everything that leaves is signed here and now.
"""

from dataclasses import dataclass

from federation.entries import ErasedItem
from federation.errors import MalformedError, NotFoundError
from federation.keyring import Card
from federation.limits import MAX_NOTE_BYTES
from node import feeds
from node.context import Node
from node.releases import withdraw_what_may_not_go
from node.store.database import read


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a feed, ready for the wire. `checkpoint` is the signed head at the end of `items`."""

    items: tuple[bytes | ErasedItem, ...]
    checkpoint: bytes
    latest: bytes
    receipt: bytes


def pull(node: Node, caller: Card, origin: str, cursor: int, receipt: bytes, max_items: int) -> Page:
    """The page after `cursor` of the feed to `caller`; takes its receipt in first.

    Raises NotFoundError for a feed that is not the caller's, MalformedError for a cursor beyond the feed, and a
    RemoteError for a receipt that does not hold.
    """
    if receipt:
        if len(receipt) > MAX_NOTE_BYTES:
            raise MalformedError("receipt: too long")
        feeds.accept_receipt(node, caller, receipt)
    limit = feeds.page_limit(max_items)
    with read(node.engine) as tx:
        feed = feeds.out_feed(tx, caller.node)
        if origin != feed.origin:
            raise NotFoundError("no such feed")
        if cursor > feed.size:
            raise MalformedError(f"the feed has {feed.size} entries, the cursor says {cursor}")
        count = len(feeds.items_after(tx, caller.node, cursor, limit))
    withdraw_what_may_not_go(node, caller, range(cursor, cursor + count))
    with read(node.engine) as tx:
        feed = feeds.out_feed(tx, caller.node)
        # never more than was checked above: an entry appended meanwhile waits for the next page
        items = tuple(feeds.items_after(tx, caller.node, cursor, count)) if count else ()
        checkpoint = feeds.head(node, tx, feed, cursor + len(items))
        return Page(items, checkpoint, feeds.latest_head(node, tx, feed), feed.receipt)


def checkpoint_at(node: Node, caller: Card, origin: str, size: int) -> bytes:
    """The signed head of the caller's feed at `size`. Raises NotFoundError."""
    with read(node.engine) as tx:
        feed = feeds.out_feed(tx, caller.node)
        if origin != feed.origin:
            raise NotFoundError("no such feed")
        return feeds.head(node, tx, feed, size)
