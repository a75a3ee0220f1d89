"""What a peer gets when it asks: pages of its feed, heads, proofs. Called by `node.rpc` with the card of whoever calls.

Policy is asked again about every presentation that a page would carry (I11); what may no longer go is taken back
first, and the page then carries its hash. Everything that leaves is signed here and now.
"""

from dataclasses import dataclass

from federation.entries import ErasedItem
from federation.errors import DamagedError, MalformedError, NotFoundError, RemoteError, VersionError
from federation.feed import Ask
from federation.keyring import Card
from federation.limits import MAX_NOTE_BYTES
from federation.merkle import MAX_TREE_SIZE
from federation.model import SPOKEN_VERSIONS
from node.home.context import Node
from node.peering import confirm, feeds
from node.records.alarms import Alarm, raise_alarm
from node.sharing.releases import withdraw_what_may_not_go
from node.store.database import read, write


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a feed, ready for the wire. `checkpoint` is the signed head at the end of `items`.

    `epoch` is 0, or that of the feed in whose place another one has begun; then there is nothing else.
    """

    items: tuple[bytes | ErasedItem, ...]
    checkpoint: bytes
    latest: bytes
    receipt: bytes
    epoch: int = 0


def pull(node: Node, caller: Card, ask: Ask, max_items: int = 0) -> Page:
    """The page that the caller asks for.

    (1) in a protocol version that both speak; (2) of its current feed, else it is told the current epoch; (3) what it
    shows is what we have (`node.peering.confirm`); (4) its receipt is taken in; (5) policy is asked again about what
    the page would carry. Raises VersionError, NotFoundError for a feed that is not the caller's, UnconfirmedError,
    MalformedError for a cursor beyond the feed, and a RemoteError for a receipt or a head that does not hold;
    DamagedError, with an alarm, when what lies here is not what was stored.
    """
    try:
        return _pull(node, caller, ask, max_items)
    except DamagedError as e:
        with write(node.engine) as tx:
            raise_alarm(tx, Alarm.DAMAGED, f"{caller.node} feed", str(e), node.clock())
        raise


def _pull(node: Node, caller: Card, ask: Ask, max_items: int) -> Page:
    check_version(caller, ask.protocol)  # (1)
    if max(len(ask.receipt), len(ask.newest)) > MAX_NOTE_BYTES:
        raise MalformedError("pull: a note is too long")
    if ask.cursor > MAX_TREE_SIZE:  # one of protocol version 1 is kept as it is
        raise MalformedError("pull: the cursor is out of range")
    with read(node.engine) as tx:
        feed = feeds.out_feed(tx, caller.node)
        feeds.check_end(tx, feed)
    if ask.origin != feed.origin:  # (2)
        return Page((), b"", b"", b"", epoch=confirm.current_epoch(node, caller, ask))
    confirm.confirm(node, caller, ask)  # (3)
    if ask.receipt:
        feeds.accept_receipt(node, caller, ask.receipt)  # (4)
    limit = feeds.page_limit(max_items)
    with read(node.engine) as tx:
        feed = feeds.out_feed(tx, caller.node)
        if ask.cursor > feed.size:
            raise MalformedError(f"the feed has {feed.size} entries, the cursor says {ask.cursor}")
        count = len(feeds.items_after(tx, feed.id, ask.cursor, limit))
    feeds.note_cards(node, feed, ask.cursor)
    try:
        withdraw_what_may_not_go(node, caller, range(ask.cursor, ask.cursor + count))  # (5)
    except RemoteError as e:  # it was sound when it was appended
        raise DamagedError(f"what was to be sent to {caller.node} cannot be read any more") from e
    with read(node.engine) as tx:
        feed = feeds.out_feed(tx, caller.node)
        # never more than was checked above: an entry appended meanwhile waits for the next page
        items = tuple(feeds.items_after(tx, feed.id, ask.cursor, count)) if count else ()
        checkpoint = feeds.head(node, tx, feed, ask.cursor + len(items))
        return Page(items, checkpoint, feeds.latest_head(node, tx, feed), feed.receipt)


def checkpoint_at(node: Node, caller: Card, origin: str, size: int) -> bytes:
    """The signed head of the caller's feed at `size`. Raises NotFoundError, UnconfirmedError."""
    feed = _confirmed(node, caller, origin, size)
    with read(node.engine) as tx:
        return feeds.head(node, tx, feed, size)


def prove(
    node: Node, caller: Card, origin: str, *, leaf: int | None, from_size: int | None, size: int
) -> tuple[tuple[bytes, ...], bytes]:
    """The hashes of a proof, with the signed head that it leads to. Raises NotFoundError, UnconfirmedError."""
    _confirmed(node, caller, origin, size)
    return feeds.prove(node, caller.node, origin, leaf=leaf, from_size=from_size, size=size)


def check_version(caller: Card, protocol: int) -> None:
    """Refuses a version that we do not speak, and one below what both cards allow. Raises VersionError."""
    if protocol not in SPOKEN_VERSIONS or protocol < caller.speaks:
        spoken = ", ".join(map(str, SPOKEN_VERSIONS))
        raise VersionError(f"{caller.node} asks in protocol version {protocol}; this node speaks {spoken}")


def _confirmed(node: Node, caller: Card, origin: str, size: int) -> feeds.OutFeed:
    with read(node.engine) as tx:
        feed = feeds.out_feed(tx, caller.node)
    if origin != feed.origin or size > feed.size:
        raise NotFoundError("no such feed, or it is not that long")
    confirm.check_confirmed(node, feed, size)
    return feed
