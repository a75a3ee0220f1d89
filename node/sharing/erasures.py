"""Erasing what was sent: the entry that says so, and the row of the ledger beside it.

Bytes of an outgoing feed go only together with an entry of the same feed that names them, so that every page and every
proof still adds up. Nothing is sent from a feed whose epoch has ended, but its bytes have to go as well: there the
entry is appended for our own books alone. The caller scrubs after the commit.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

from sqlalchemy import Connection, select

from federation.entries import Erasing, Purge, RecallOrder, Withdrawal
from federation.keyring import Card
from federation.model import JsonObject, NodeId
from node.home.context import Node
from node.peering import control, feeds
from node.peering.feeds import Place
from node.records import ledger as book
from node.records.ledger import Act
from node.store.tables import out_entries, out_feeds

_ACTS: Mapping[type[Erasing], Act] = {Withdrawal: Act.WITHDRAWAL, RecallOrder: Act.RECALL, Purge: Act.PURGE}


def standing(
    tx: Connection, *, own: Collection[int] = (), received: Collection[int] = ()
) -> dict[NodeId, dict[int, tuple[int, ...]]]:
    """The entries whose bytes are held, by peer and epoch: those made from our advisories `own`, and those that pass
    on the inbox items `received`."""
    rows = tx.execute(
        select(out_feeds.c.peer, out_feeds.c.epoch, out_entries.c.seq)
        .join_from(out_entries, out_feeds, out_feeds.c.id == out_entries.c.feed)
        .where(
            out_entries.c.advisory.in_(own) | out_entries.c.inbox.in_(received),
            out_entries.c.data.is_not(None),
        )
        .order_by(out_entries.c.feed, out_entries.c.seq)
    )
    found: dict[NodeId, dict[int, tuple[int, ...]]] = {}
    for row in rows:
        epochs = found.setdefault(NodeId(row.peer), {})
        epochs[row.epoch] = (*epochs.get(row.epoch, ()), row.seq)
    return found


def erase(node: Node, tx: Connection, card: Card, epoch: int, body: Erasing, facts: JsonObject, *, by: str) -> Place:
    """Appends `body` to the feed of `epoch` to a peer, and erases the entries that it names. `facts` go into the
    ledger with them.

    Raises HeldError when law or the peer's version does not let the current feed say so: then nothing is changed.
    """
    feed = feeds.out_feed(tx, card.node, epoch)
    if epoch == feeds.out_feed(tx, card.node).epoch:
        place = control.send(node, tx, card, body)
    else:
        place = feeds.append(node, tx, card.node, body, epoch=epoch)
        if isinstance(body, Withdrawal):  # a recall bars by name; this has to be said where the feed goes on
            control.offer(node, tx, card, replace(body, feed=feed.origin))
    feeds.erase(tx, place.feed, body.seqs, place.seq)
    known = {"entries": list(body.seqs), "leaf_hash": place.leaf_hash.hex(), **facts}
    where = book.Where(card.node, place.feed, feed.origin, place.seq)
    book.add(tx, _ACTS[type(body)], where, known, at=node.clock(), by=by)
    return place
