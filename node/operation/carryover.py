"""What goes from a home that is replaced into the one that was put back in its place.

A backup is older than what it replaces. Whatever was taken out of use since must not come back by that: recalled,
withdrawn and expired copies, distrust, a frozen feed; nor may a promise be forgotten: the heads that were shown to this
node and those that its receivers showed, and how far it has cosigned. All of it only takes away, or is verified by its
signatures. What was received, released or agreed on since the backup is not brought over: it comes again from the
peers, or people do it again; the replaced home stays as it was.

`gather` reads the old database and changes nothing; when it cannot be read to the end, nothing of it is used.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, insert, select, update

from federation import entries
from federation.checkpoint import Checkpoint
from federation.entries import Purge, Withdrawal
from federation.errors import HeldError, LocalError, RemoteError
from federation.keyring import Card, open_card, unverified
from federation.model import NodeId
from node.desk import inbox
from node.desk.inbox import Disposition, InboxState
from node.exchange.epochs import Standing
from node.home import owncard
from node.home.context import Node
from node.peering import confirm, peers
from node.records.approvals import Act, State
from node.records.approvals import void as request_void
from node.sharing import advisories, erasures, recalls
from node.store.tables import approvals, in_entries, in_feeds, incidents, out_entries, out_feeds, peer_cards
from node.store.tables import inbox as inbox_table
from node.store.tables import peers as peers_table
from node.store.tables import recalls as recalls_table

_GONE: Final = {
    Disposition.WITHDRAWN: InboxState.WITHDRAWN,
    Disposition.RECALLED: InboxState.RECALLED,
    Disposition.EXPIRED: InboxState.EXPIRED,
}


@dataclass(frozen=True, slots=True)
class Erased:
    """An entry whose bytes were gone in the old home: its feed and place, its leaf, and why it went."""

    origin: str
    seq: int
    leaf_hash: bytes
    why: str


@dataclass(frozen=True, slots=True)
class Old:
    """What the home that is replaced knew."""

    own_cards: tuple[bytes, ...]
    peer_cards: tuple[bytes, ...]
    distrusted: frozenset[str]
    recalls: tuple[tuple[bytes, str], ...]
    received: tuple[Erased, ...]
    sent: tuple[tuple[Erased, type[Withdrawal | Purge]], ...]
    shown_to_us: Mapping[str, tuple[bytes, int]]
    shown_by_peers: Mapping[str, bytes]
    frozen: Mapping[str, str]
    incidents: tuple[dict[str, Any], ...]


@dataclass(slots=True)
class Carried:
    """How much was brought over."""

    cards: int = 0
    distrusted: list[str] = field(default_factory=list)
    recalls: int = 0
    received: int = 0
    sent: int = 0
    frozen: list[str] = field(default_factory=list)
    left: int = 0  # what could not be: of recalls the key is not known any more, of purges law forbids the notice


def gather(tx: Connection) -> Old:
    """Everything that may be brought over, from the database of the replaced home. Raises a DatabaseError or a
    RemoteError when it is damaged."""
    coming = tx.execute(select(in_feeds)).all()
    return Old(
        own_cards=owncard.history(tx),
        peer_cards=tuple(tx.execute(select(peer_cards.c.document).order_by(peer_cards.c.version)).scalars()),
        distrusted=frozenset(tx.execute(select(peers_table.c.node).where(peers_table.c.trusted == 0)).scalars()),
        recalls=tuple((row.document, row.by) for row in tx.execute(select(recalls_table).order_by(recalls_table.c.at))),
        received=tuple(_received(tx)),
        sent=tuple(_sent(tx)),
        shown_to_us={row.origin: (row.newest, row.cosigned) for row in coming},
        shown_by_peers={
            row.origin: max((n for n in (row.shown, row.receipt) if n), key=_size, default=b"")
            for row in tx.execute(select(out_feeds))
        },
        frozen={row.origin: row.frozen for row in coming if row.frozen},
        incidents=tuple(
            row._asdict() for row in tx.execute(select(incidents).where(incidents.c.resolved_at.is_(None)))
        ),
    )


def bring(node: Node, tx: Connection, old: Old, by: str) -> Carried:
    """Brings it over into the database of `node`, which was put back. The caller scrubs after the commit."""
    done = Carried()
    _promises(tx, old)  # before cards: a key that one drops speaks for what the largest head covers
    _cards(node, tx, old, done, by)
    _incidents(tx, old, done)
    _distrust(tx, old, done)
    _recalls(node, tx, old, done, by)
    _erase_received(tx, old, done)
    _erase_sent(node, tx, old, done, by)
    return done


def mark(node: Node, tx: Connection) -> None:
    """Marks a database as one that was put back: no feed signs or is believed as before, no revision has a number that
    may have been used, and what two people were asked for has to be asked for again."""
    tx.execute(update(in_feeds).values(restored=Standing.RESTORED))
    tx.execute(update(out_feeds).values(shown_to=None))
    rows = tx.execute(select(out_feeds.c.peer, out_feeds.c.id).order_by(out_feeds.c.epoch)).all()
    current = {row.peer: row.id for row in rows}
    tx.execute(update(out_feeds).where(out_feeds.c.id.in_(current.values())).values(refused_at=None))
    waiting = select(approvals.c.act, approvals.c.subject).where(approvals.c.state == State.OPEN).distinct()
    for row in tx.execute(waiting).all():
        request_void(node, tx, Act(row.act), row.subject, "the database was put back from a backup")
    confirm.begin_wait(tx)
    advisories.number_anew(node, tx)


def _received(tx: Connection) -> Iterator[Erased]:
    rows = tx.execute(
        select(in_feeds.c.origin, in_entries.c.seq, in_entries.c.leaf_hash, in_entries.c.outcome)
        .join(in_feeds, in_feeds.c.id == in_entries.c.feed)
        .where(in_entries.c.data.is_(None), in_entries.c.outcome.in_(tuple(_GONE)))
    )
    return (Erased(row.origin, row.seq, row.leaf_hash, row.outcome) for row in rows.all())


def _sent(tx: Connection) -> Iterator[tuple[Erased, type[Withdrawal | Purge]]]:
    """What was taken back or purged; recalled entries go with the orders."""
    eraser = out_entries.alias()
    rows = tx.execute(
        select(out_feeds.c.origin, out_entries.c.seq, out_entries.c.leaf_hash, eraser.c.data)
        .join(out_feeds, out_feeds.c.id == out_entries.c.feed)
        .join(eraser, (eraser.c.feed == out_entries.c.feed) & (eraser.c.seq == out_entries.c.erased_by))
        .order_by(out_entries.c.feed, out_entries.c.seq)
    )
    for row in rows.all():
        body = entries.read(row.data).body
        if isinstance(body, Withdrawal | Purge):
            yield Erased(row.origin, row.seq, row.leaf_hash, body.reason), type(body)


def _promises(tx: Connection, old: Old) -> None:
    """Heads that were shown to us and by us are remembered, where the old home knew larger ones."""
    for row in tx.execute(select(in_feeds)).all():
        newest, cosigned = old.shown_to_us.get(row.origin, (b"", 0))
        values = {"cosigned": max(cosigned, row.cosigned)}
        if _size(newest) > _size(row.newest):
            values["newest"] = newest
        tx.execute(update(in_feeds).where(in_feeds.c.id == row.id).values(**values))
    for row in tx.execute(select(out_feeds)).all():
        shown = old.shown_by_peers.get(row.origin, b"")
        if _size(shown) > _size(row.shown or b""):
            tx.execute(update(out_feeds).where(out_feeds.c.id == row.id).values(shown=shown))


def _cards(node: Node, tx: Connection, old: Old, done: Carried, by: str) -> None:
    """Newer cards, each by the root keys of the one before; of our own those whose keys lie here."""
    now = node.clock()
    for document in old.own_cards:
        *_, newest = owncard.history(tx)
        card, before = unverified(document), unverified(newest)
        if card.version > before.version and _holds_keys(node, card):
            with suppress(RemoteError):
                owncard.store(tx, open_card(document, before.roots), document, at=now, by=by)
                done.cards += 1
    for document in old.peer_cards:
        known = tx.execute(
            select(peers_table.c.card_version).where(peers_table.c.node == unverified(document).node)
        ).scalar()
        if known is not None and unverified(document).version > known:
            with suppress(RemoteError, LocalError), tx.begin_nested():
                peers.take_card(node, tx, document, by=by)
                done.cards += 1


def _holds_keys(node: Node, card: Card) -> bool:
    return all(node.keys.holds(key.role, key.kid) for key in card.keys if key.valid_at(node.clock()))


def _incidents(tx: Connection, old: Old, done: Carried) -> None:
    for origin, code in sorted(old.frozen.items()):
        frozen = update(in_feeds).where(in_feeds.c.origin == origin, in_feeds.c.frozen.is_(None)).values(frozen=code)
        if tx.execute(frozen).rowcount:
            done.frozen.append(origin)
    for members in old.incidents:
        same = [incidents.c[name] == members[name] for name in ("kind", "peer", "subject")]
        known = tx.execute(select(peers_table.c.node).where(peers_table.c.node == members["peer"])).first()
        if known is not None and tx.execute(select(incidents.c.id).where(*same)).first() is None:
            tx.execute(insert(incidents).values({name: value for name, value in members.items() if name != "id"}))


def _distrust(tx: Connection, old: Old, done: Carried) -> None:
    for name in sorted(old.distrusted):
        trusted = (peers_table.c.node == name) & (peers_table.c.trusted == 1)
        if tx.execute(update(peers_table).where(trusted).values(trusted=0)).rowcount:
            done.distrusted.append(name)


def _recalls(node: Node, tx: Connection, old: Old, done: Carried, by: str) -> None:
    """Orders that came, or were given here, since the backup: they take effect as when they first came."""
    known = set(tx.execute(select(recalls_table.c.document)).scalars())
    for document, bringer in old.recalls:
        if document in known:
            continue
        try:
            with tx.begin_nested():
                recalls.receive(node, tx, document, NodeId(bringer), peers.keyring(node, tx))
                recalls.tell_again(node, tx, document, by=by)
        except RemoteError:
            done.left += 1
        else:
            done.recalls += 1


def _erase_received(tx: Connection, old: Old, done: Carried) -> None:
    feeds_here = {row.origin: row.id for row in tx.execute(select(in_feeds.c.origin, in_feeds.c.id))}
    for erased in old.received:
        place = (in_entries.c.feed == feeds_here.get(erased.origin)) & (in_entries.c.seq == erased.seq)
        same = place & (in_entries.c.leaf_hash == erased.leaf_hash) & in_entries.c.data.is_not(None)
        if tx.execute(update(in_entries).where(same).values(data=None, outcome=erased.why)).rowcount:
            item = (inbox_table.c.feed == feeds_here[erased.origin]) & (inbox_table.c.seq == erased.seq)
            inbox.forget(tx, select(inbox_table.c.id).where(item), _GONE[Disposition(erased.why)])
            done.received += 1


def _erase_sent(node: Node, tx: Connection, old: Old, done: Carried, by: str) -> None:
    """Taken back again, by entries of today: those that said so have gone with the old home."""
    rows = tx.execute(select(out_feeds.c.origin, out_feeds.c.id, out_feeds.c.peer, out_feeds.c.epoch)).all()
    feeds_here = {row.origin: row for row in rows}
    groups: dict[tuple[str, str, type[Withdrawal | Purge]], list[int]] = {}
    for erased, kind in old.sent:
        feed = feeds_here.get(erased.origin)
        same = (out_entries.c.seq == erased.seq) & (out_entries.c.leaf_hash == erased.leaf_hash)
        stands = select(out_entries.c.seq).where(same, out_entries.c.data.is_not(None))
        if feed is not None and tx.execute(stands.where(out_entries.c.feed == feed.id)).first() is not None:
            groups.setdefault((erased.origin, erased.why, kind), []).append(erased.seq)
    for (origin, reason, kind), seqs in groups.items():
        feed = feeds_here[origin]
        card = unverified(tx.execute(select(peers_table.c.card).where(peers_table.c.node == feed.peer)).scalar_one())
        try:
            with tx.begin_nested():
                body = kind(tuple(seqs), reason)
                erasures.erase(node, tx, card, feed.epoch, body, {"reason": reason}, by=by)
        except HeldError:
            done.left += len(seqs)
        else:
            done.sent += len(seqs)


def _size(note: bytes) -> int:
    return Checkpoint.of(note).size if note else -1
