"""Retention: what may be kept no longer goes, here and in the feeds to peers.

Two things end: what was received, when its terms say so; and what stands in a feed to a peer, when the terms of that
delivery do. The bytes go, with everything that was read out of them; leaf hashes, ledger and audit stay. Serving, the
inbox and passing on look at the same ends at each use (I11): here they are made prompt. Own advisories stay: they are
this node's own record.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, select, update

from federation import entries
from federation.entries import Delivery, Purge, Withdrawal
from federation.errors import HeldError, RemoteError
from federation.keyring import unverified
from federation.model import NodeId, instant
from node.desk import inbox
from node.desk.inbox import Disposition, InboxState
from node.home.context import Node
from node.home.people import Post
from node.peering import feeds
from node.records import ledger as book
from node.records.alarms import Alarm, raise_alarm
from node.records.ledger import Act
from node.sharing import erasures
from node.store.database import AT_ONCE, batches, read, record, scrub, write
from node.store.tables import in_entries, ledger, out_entries, out_feeds, peers
from node.store.tables import inbox as inbox_table

ENDED: Final = "retention-ended"  # a rule id
_GONE: Final = (InboxState.WITHDRAWN, InboxState.RECALLED, InboxState.EXPIRED)


@dataclass(frozen=True, slots=True)
class Ended:
    """What has ended: items of the inbox, entries that were set aside (feed and number), entries of feeds to peers by
    peer and epoch."""

    items: tuple[int, ...]
    set_aside: tuple[tuple[int, int], ...]
    sent: dict[tuple[NodeId, int], tuple[int, ...]]

    def __bool__(self) -> bool:
        return bool(self.items or self.set_aside or self.sent)

    @property
    def sent_count(self) -> int:
        """How many entries of feeds to peers."""
        return sum(map(len, self.sent.values()))


def ended(node: Node) -> Ended:
    """What has ended by now and is still here. Reading only."""
    with read(node.engine) as tx:
        return _ended(tx, node.clock())


def expire(node: Node, *, by: str = feeds.POLICY) -> Ended:
    """Erases what has ended, and says so in the feeds from which it goes. Returns what went.

    A peer that law does not let us tell keeps its entries in our feed, which are never served; that raises an alarm.
    """
    found = ended(node)
    if not found:
        return found
    with write(node.engine) as tx:  # what went meanwhile is left out; what had ended has ended still
        items = _erase_items(tx, found.items)
        set_aside = tuple(place for place in found.set_aside if _erase_entry(tx, place))
        sent = {where: _erase_sent(node, tx, *where, seqs, by) for where, seqs in found.sent.items()}
        if items or set_aside:
            detail = f"{len(items)} items, {len(set_aside)} entries set aside"
            record(tx, at=node.clock(), by=by, act="purge.received", subject=node.id, detail=detail)
    scrub(node.engine)
    return Ended(items, set_aside, {where: seqs for where, seqs in sent.items() if seqs})


def purge(node: Node) -> Ended:
    """The same for a person who does not want to wait."""
    node.allow(Post.OPERATOR)
    return expire(node, by=node.actor)


def _ended(tx: Connection, now: datetime) -> Ended:
    items = select(inbox_table.c.id).where(inbox_table.c.retain_until <= now, inbox_table.c.state.not_in(_GONE))
    sent: dict[tuple[NodeId, int], list[int]] = {}
    for peer, epoch, seq in _ended_deliveries(tx, now):
        sent.setdefault((peer, epoch), []).append(seq)
    return Ended(
        tuple(tx.execute(items.order_by(inbox_table.c.id)).scalars()),
        tuple(_ended_aside(tx, now)),
        {where: tuple(seqs) for where, seqs in sent.items()},
    )


def _ended_deliveries(tx: Connection, now: datetime) -> Iterator[tuple[NodeId, int, int]]:
    """Peer, epoch and number of what stands in a feed after the end that the ledger has of it."""
    rows = tx.execute(
        select(out_feeds.c.peer, out_feeds.c.epoch, out_entries.c.seq, ledger.c.record)
        .join_from(out_entries, out_feeds, out_feeds.c.id == out_entries.c.feed)
        .join(ledger, (ledger.c.feed == out_entries.c.feed) & (ledger.c.seq == out_entries.c.seq))
        .where(ledger.c.kind == Act.RELEASE, out_entries.c.data.is_not(None))
        .order_by(out_entries.c.feed, out_entries.c.seq)
    ).yield_per(AT_ONCE)
    for row in rows:
        until = book.facts_of(row.record)["retain_until"]
        if until is not None and instant(until) <= now:
            yield NodeId(row.peer), row.epoch, row.seq


def _ended_aside(tx: Connection, now: datetime) -> Iterator[tuple[int, int]]:
    """Feed and number of what was set aside and says of itself that it has ended."""
    rows = tx.execute(
        select(in_entries.c.feed, in_entries.c.seq, in_entries.c.data).where(
            in_entries.c.outcome == Disposition.QUARANTINED, in_entries.c.data.is_not(None)
        )
    ).yield_per(AT_ONCE)
    for row in rows:
        try:
            body = entries.read(row.data).body
        except RemoteError:
            continue
        if isinstance(body, Delivery) and body.terms.retain_until is not None and body.terms.retain_until <= now:
            yield row.feed, row.seq


def _erase_items(tx: Connection, items: tuple[int, ...]) -> tuple[int, ...]:
    gone: list[int] = []
    for some in batches(items):
        these = inbox_table.c.id.in_(some) & inbox_table.c.state.not_in(_GONE)
        rows = tx.execute(select(inbox_table.c.id, inbox_table.c.feed, inbox_table.c.seq).where(these)).all()
        inbox.forget(tx, select(inbox_table.c.id).where(these), InboxState.EXPIRED)
        for row in rows:
            _erase_entry(tx, (row.feed, row.seq))
        gone.extend(row.id for row in rows)
    return tuple(gone)


def _erase_entry(tx: Connection, place: tuple[int, int]) -> bool:
    """Erases the bytes of a received entry; returns whether they were there."""
    feed, seq = place
    changed = tx.execute(
        update(in_entries)
        .where(in_entries.c.feed == feed, in_entries.c.seq == seq, in_entries.c.data.is_not(None))
        .values(data=None, outcome=Disposition.EXPIRED)
    )
    return changed.rowcount == 1


def _erase_sent(
    node: Node, tx: Connection, peer: NodeId, epoch: int, seqs: tuple[int, ...], by: str
) -> tuple[int, ...]:
    card = unverified(tx.execute(select(peers.c.card).where(peers.c.node == peer)).scalar_one())
    kind, feed = Purge if card.speaks > 1 else Withdrawal, feeds.out_feed(tx, peer, epoch).id
    standing = (out_entries.c.feed == feed) & out_entries.c.data.is_not(None)
    told: list[int] = []
    try:
        for some in batches(seqs):
            query = select(out_entries.c.seq).where(standing, out_entries.c.seq.in_(some)).order_by(out_entries.c.seq)
            these = tuple(tx.execute(query).scalars())
            if these:
                erasures.erase(node, tx, card, epoch, kind(these, ENDED), {"reason": ENDED}, by=by)
                told.extend(these)
    except HeldError as e:
        record(tx, at=node.clock(), by=feeds.POLICY, act="purge.held", subject=peer, detail=str(e))
        raise_alarm(tx, Alarm.HELD, f"{peer} purge", "a purge may not be told to this peer", node.clock())
    if told:
        detail = f"{len(told)} entries, epoch {epoch}"
        record(tx, at=node.clock(), by=by, act="purge.sent", subject=peer, detail=detail)
    return tuple(told)
