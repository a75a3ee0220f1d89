"""What receivers show of the feeds that this node sends, and what may be signed because of it (I16).

A node that comes from a backup, or of which a second copy runs, does not know what it has signed. Its receivers do:
with each call they show the largest head of ours that they were ever shown. Nothing but a new epoch, which two people
open (`node.exchange.epochs`), makes an exception to these rules:

1. A page is signed only for a receiver whose head is one of ours: our tree has its root at its size. Where it is not,
   something was signed that is not here any more. The head is kept; it is the final one of this epoch.
2. A receiver that comes from a backup itself shows less than it was shown. That is enough for a process to which it
   has shown its head before, or for a feed in which nothing was signed yet, and for no other: neither of the two could
   tell what was signed last.
3. Outside of a page, nothing is signed above what the receiver has shown or acknowledged.
4. A receiver that asks for an epoch that has ended is told the current one, which signs nothing there. If it holds
   more or less of the ended one than the current one was opened for, a further epoch has to follow.
5. After a restore nothing is signed for anybody before every peer has been heard: it has pulled from us, and all that
   it had for us at first contact was taken in, recalls included. Peers that stay away are waited for no longer than
   PATIENCE; what they had sent is passed on to nobody until they have been heard (`unheard`).

A receiver of protocol version 1 has no more than its receipt to show, and cannot be told of epochs.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from sqlalchemy import Connection, delete, insert, select, update

from federation import entries
from federation.checkpoint import Checkpoint, VerifierKey, parse_origin_line
from federation.entries import NewEpoch
from federation.errors import MalformedError, NotFoundError, SignatureError, UnconfirmedError
from federation.feed import Ask, signed_head
from federation.keyring import Card
from federation.model import NodeId, instant, instant_text
from node.home.context import Node
from node.peering import feeds
from node.peering.feeds import OutFeed
from node.peering.peers import NOTHING_SIGNED
from node.records.alarms import Alarm, raise_alarm
from node.store.database import read, record, write
from node.store.tables import alarms, in_feeds, meta, out_entries, out_feeds, peers

PATIENCE: Final = timedelta(minutes=15)  # every peer that is up asks us, and is asked, at least that often
FELL_BACK: Final = -1  # in place of a cursor: the receiver has gone back to an epoch that ended
_RESTORED: Final = "restored"  # the key in `meta`: when the wait for the peers began; empty before the first call


@dataclass(frozen=True, slots=True)
class Known:
    """What is known to have been signed last for a peer: a head of the feed `origin`, empty if none is known."""

    origin: str
    head: bytes

    @property
    def epoch(self) -> int:
        """The epoch of that feed."""
        return parse_origin_line(self.origin)[2]

    @property
    def size(self) -> int:
        """How many entries it had."""
        return Checkpoint.of(self.head).size if self.head else 0

    @property
    def place(self) -> tuple[int, int]:
        """By which heads of all epochs are in one order."""
        return self.epoch, self.size if self.head else -1


def confirm(node: Node, peer: Card, ask: Ask) -> None:
    """Lets the current feed to `peer` sign a page, after rules 1, 2 and 5.

    Raises UnconfirmedError, SignatureError for a head that none of our keys signed, and MalformedError for a cursor
    that does not fit it.
    """
    with read(node.engine) as tx:
        feed = feeds.out_feed(tx, peer.node)
        shown = ask.newest or (ask.receipt if ask.protocol == 1 else b"")
        keys = feeds.own_feed_keys(tx, feed)
    seen = _seen(node, feed.origin, shown, ask, peer.node, keys)
    with read(node.engine) as tx:
        lost = ask.cursor > feed.size or (seen is not None and not _is_ours(tx, feed, seen)) or is_lost(tx, feed)
    if lost:  # rule 1
        _refuse(node, feed, shown, ask.cursor, "it holds more of our feed than we do, or another one")
        raise UnconfirmedError(
            f"{peer.node} holds entries of our feed to it that are not ours any more: this node comes from a backup"
            f" or is a copy. {_next_step(peer.node)}"
        )
    if ask.restored and feed.shown_to not in (node.start, NOTHING_SIGNED):  # rule 2
        _refuse(node, feed, shown, ask.cursor, "it comes from a backup, and has shown nothing since this node started")
        raise UnconfirmedError(
            f"{peer.node} comes from a backup and this node has just started: neither can show what was signed last."
            f" {_next_step(peer.node)}"
        )
    known = Checkpoint.of(feed.shown).size if feed.shown else -1
    if feed.shown_to != node.start or feed.refused_at is not None or (seen is not None and seen.size > known):
        grown = {"shown": shown} if seen is not None and seen.size > known else {}
        with write(node.engine) as tx:
            mine = update(out_feeds).where(out_feeds.c.id == feed.id)
            tx.execute(mine.values(shown_to=node.start, refused_at=None, **grown))
    _wait_for_peers(node)  # rule 5


def check_confirmed(node: Node, feed: OutFeed, size: int) -> None:
    """Refuses to sign a head of `feed` outside of a page, unless it lies in what the receiver has shown (rule 3).

    Raises UnconfirmedError.
    """
    if feed.shown_to != node.start:
        raise UnconfirmedError(f"{feed.peer} has not pulled since this node started")
    if size > max(feed.receipt_size, Checkpoint.of(feed.shown).size if feed.shown else 0):
        raise UnconfirmedError(f"{feed.peer} has not shown that it holds {size} entries of our feed to it")
    _wait_for_peers(node)


def current_epoch(node: Node, peer: Card, ask: Ask) -> int:
    """The epoch of the current feed, for a receiver that asks for another one of our feeds to it (rule 4).

    Raises NotFoundError for what is no feed to this peer; UnconfirmedError when the current one could not be taken from
    where the receiver stands, SignatureError and MalformedError as `confirm`.
    """
    try:
        sender, receiver, epoch = parse_origin_line(ask.origin)
    except MalformedError as e:
        raise NotFoundError("no such feed") from e
    with read(node.engine) as tx:
        feed = feeds.out_feed(tx, peer.node)
        if (sender, receiver) != (node.id, peer.node) or ask.protocol == 1:
            raise NotFoundError("no such feed")
        keys = feeds.own_feed_keys(tx, replace(feed, origin=ask.origin))
    seen = _seen(node, ask.origin, ask.newest, ask, peer.node, keys)
    if epoch > feed.epoch:
        _refuse(node, feed, ask.newest, feed.size, f"it holds epoch {epoch} of our feed, which is not ours any more")
        raise UnconfirmedError(
            f"{peer.node} holds an epoch of our feed to it that is not ours any more: this node comes from a backup."
            f" {_next_step(peer.node)}"
        )
    with read(node.engine) as tx:
        begins = beginning(tx, feed)
        beyond = begins.previous == ask.origin and seen is not None and not _within(begins.final, seen)
        back = feed.refused_at == FELL_BACK or _fell_back(tx, feed, epoch, ask.cursor)
    if beyond or back:
        why = "it holds more of that than we ended it with" if beyond else "it has lost what it held after that"
        _refuse(node, feed, ask.newest, FELL_BACK if back else 0, why)
        raise UnconfirmedError(
            f"{peer.node} asks for epoch {epoch} of our feed, and {why}: epoch {feed.epoch} does not continue from"
            f" there. {_next_step(peer.node)}"
        )
    return feed.epoch


def is_lost(tx: Connection, feed: OutFeed) -> bool:
    """Whether a head was shown that our tree does not have: this feed never signs again."""
    return bool(feed.shown) and not _is_ours(tx, feed, Checkpoint.of(feed.shown))


def newest_known(tx: Connection, peer: NodeId) -> Known:
    """The newest head of our feeds to `peer` that is known to have been signed: one that it showed or cosigned.

    Nothing is signed to find out. Where none is known, the first epoch, without a head.
    """
    rows = tx.execute(
        select(out_feeds.c.origin, out_feeds.c.shown, out_feeds.c.receipt)
        .where(out_feeds.c.peer == peer)
        .order_by(out_feeds.c.epoch)
    ).all()
    found = [Known(rows[0].origin, b"")]
    found += [_known(note) for row in rows for note in (row.receipt, row.shown) if note]
    return max(found, key=lambda known: known.place)


def beginning(tx: Connection, feed: OutFeed) -> NewEpoch:
    """What entry 0 of a later epoch says."""
    data = tx.execute(
        select(out_entries.c.data).where(out_entries.c.feed == feed.id, out_entries.c.seq == 0)
    ).scalar_one()
    body = entries.read(data).body
    if not isinstance(body, NewEpoch):
        raise NotFoundError(f"{feed.origin} does not begin as a later epoch does")
    return body


def begin_wait(tx: Connection) -> None:
    """For a database that was put back: from the first call on, the peers are waited for (rule 5)."""
    tx.execute(delete(meta).where(meta.c.key == _RESTORED))
    tx.execute(insert(meta).values(key=_RESTORED, value=""))


def unheard(tx: Connection) -> frozenset[NodeId]:
    """The peers whose feeds have not been taken in since this node was put back, as far as they reached at first
    contact."""
    rows = tx.execute(select(in_feeds.c.peer, in_feeds.c.restored).order_by(in_feeds.c.peer, in_feeds.c.epoch)).all()
    current = {row.peer: row.restored for row in rows}
    return frozenset(NodeId(peer) for peer, restored in current.items() if restored)


def _seen(
    node: Node, origin: str, shown: bytes, ask: Ask, peer: NodeId, keys: Collection[VerifierKey]
) -> Checkpoint | None:
    """The head of `origin` that the receiver shows. Raises SignatureError, MalformedError."""
    if not shown:
        if ask.cursor and ask.protocol > 1:
            raise MalformedError("pull: a cursor without the newest head that was shown")
        return None
    try:
        seen = signed_head(shown, origin, tuple(keys))
    except SignatureError:
        _raise_once(node, peer, "it shows a head that none of our keys signed: it errs, or a backup lacks a newer key")
        raise
    if ask.protocol > 1 and ask.cursor > seen.size:
        raise MalformedError("pull: a cursor beyond the newest head that was shown")
    return seen


def _is_ours(tx: Connection, feed: OutFeed, seen: Checkpoint) -> bool:
    fits = seen.origin == feed.origin and seen.size <= feed.size
    return fits and feeds.root_at(tx, feed, seen.size) == seen.root


def _within(final: bytes, seen: Checkpoint) -> bool:
    """Whether a feed that ended at `final` can hold the head `seen`."""
    if not final:
        return seen.size == 0
    last = Checkpoint.of(final)
    return seen.size < last.size or (seen.size, seen.root) == (last.size, last.root)


def _fell_back(tx: Connection, feed: OutFeed, epoch: int, cursor: int) -> bool:
    """Whether a receiver that stands at `cursor` in an ended epoch lacks what no later one brings again.

    `refused_at` of an ended epoch says from where on all that stood in it went into the one after it.
    """
    rows = tx.execute(
        select(out_feeds.c.epoch, out_feeds.c.refused_at).where(
            out_feeds.c.peer == feed.peer, out_feeds.c.epoch >= epoch, out_feeds.c.epoch < feed.epoch
        )
    ).all()
    return any((cursor if row.epoch == epoch else 0) < (row.refused_at or 0) for row in rows)


def _refuse(node: Node, feed: OutFeed, shown: bytes, at: int, why: str) -> None:
    """Keeps what was shown and from where the receiver asked, for a new epoch, and raises an alarm; once."""
    newest = max((note for note in (shown, feed.shown) if note), key=lambda note: _known(note).place, default=b"")
    if (feed.shown_to, feed.shown, feed.refused_at) == (b"", newest, at):
        return
    with write(node.engine) as tx:
        values = {"shown_to": None, "shown": newest or None, "refused_at": at}
        tx.execute(update(out_feeds).where(out_feeds.c.id == feed.id).values(**values))
        raise_alarm(tx, Alarm.RESTORED, feed.peer, f"{why}; see: apostille peer epoch list", node.clock())


def _known(note: bytes) -> Known:
    return Known(Checkpoint.of(note).origin, note)


def _raise_once(node: Node, peer: NodeId, detail: str) -> None:
    """Raises the alarm unless this very one is open: a peer may ask as often as its quota allows."""
    said = (alarms.c.kind == Alarm.RESTORED) & (alarms.c.subject == peer) & (alarms.c.detail == detail)
    with read(node.engine) as tx:
        if tx.execute(select(alarms.c.id).where(said, alarms.c.acked_at.is_(None))).first() is not None:
            return
    with write(node.engine) as tx:
        raise_alarm(tx, Alarm.RESTORED, peer, detail, node.clock())


def _next_step(peer: NodeId) -> str:
    return f"Two people open a new epoch: apostille peer epoch open {peer}"


def _wait_for_peers(node: Node) -> None:
    """Refuses while peers that are to be waited for have not been heard. Raises UnconfirmedError."""
    now = node.clock()
    with read(node.engine) as tx:
        begun = tx.execute(select(meta.c.value).where(meta.c.key == _RESTORED)).scalar_one_or_none()
        if begun is None:
            return
        missing = _missing(tx)
    over = not missing or (begun != "" and now >= instant(begun) + PATIENCE)
    if over or not begun:
        with write(node.engine) as tx:
            taken = tx.execute(delete(meta).where(meta.c.key == _RESTORED, meta.c.value == begun)).rowcount
            if over and taken:
                detail = f"not heard: {', '.join(missing) or 'nobody'}"
                record(tx, at=now, by=feeds.POLICY, act="restore.over", subject=node.id, detail=detail)
            elif taken:
                begins = instant_text(now.replace(microsecond=0))
                tx.execute(insert(meta).values(key=_RESTORED, value=begins))
    if not over:
        raise UnconfirmedError(
            "this node was put back from a backup, and hears its peers before it sends anything, so that what was"
            f" recalled since is gone first; not heard yet: {', '.join(missing)}"
        )


def _missing(tx: Connection) -> tuple[NodeId, ...]:
    """The trusted peers that have not asked us, or that we have not heard, since this node was put back.

    A feed that is frozen is not waited for: people have to settle that.
    """
    going = tx.execute(
        select(out_feeds.c.peer, out_feeds.c.shown_to, out_feeds.c.refused_at)
        .join(peers, peers.c.node == out_feeds.c.peer)
        .where(peers.c.trusted == 1, peers.c.direct == 1)
        .order_by(out_feeds.c.peer, out_feeds.c.epoch)
    ).all()
    asked = {r.peer: r.shown_to not in (None, NOTHING_SIGNED) or r.refused_at is not None for r in going}
    frozen = set(tx.execute(select(in_feeds.c.peer).where(in_feeds.c.frozen.is_not(None))).scalars())
    silent = unheard(tx) - frozen
    return tuple(NodeId(peer) for peer, has_asked in asked.items() if not has_asked or peer in silent)
