"""Epochs: how a feed goes on when its history cannot (I8, I16).

A sender that comes from a backup, or one of two copies, has signed what it does not have; a receiver that comes from a
backup may have been shown more than it knows. Then two people at the sender open a new epoch: a feed with a new origin
line, whose entry 0 names the feed before it and the newest head of that which is known to have been signed. Its number
is the second in which it is opened: counting on from what is remembered would use a number twice where both sides have
forgotten an epoch. Nothing is signed in the old epoch any more. What the receiver lacks of it goes into the new one:
cards, agreements, documents and recalls as they were signed, deliveries after policy was asked again, and what was
taken back.

Two people at the receiver accept the new epoch. Entry 0 has to continue from what is held: an epoch is no way to drop
history. What the old epoch brought stays, with its numbers; its open end is written down. When either side is wrong
about what the other holds, it says so and stops, and a further epoch settles it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from typing import Any, Final, NoReturn

from sqlalchemy import Connection, Row, func, select, update

from federation import entries
from federation.checkpoint import MAX_EPOCH, Checkpoint, parse_origin_line
from federation.entries import AgreementOffer, Body, Kind, NewEpoch, RecallOrder, Withdrawal
from federation.errors import ConflictError, MalformedError, RemoteError, UsageError
from federation.feed import PageBytes, VerifiedPage, check_final
from federation.keyring import Card
from federation.model import NodeId
from node.home.context import Node
from node.home.people import Post
from node.peering import agreements, cards, confirm, control, feeds, peers
from node.peering.confirm import FELL_BACK, Known
from node.peering.feeds import OutFeed
from node.records import approvals
from node.records.alarms import Alarm, raise_alarm
from node.records.approvals import Act, Request
from node.sharing import answers, releases
from node.store.database import read, record, write
from node.store.tables import card_deliveries, in_feeds, out_entries, out_feeds, own_cards
from node.store.tables import peers as peers_table

_CARRIED: Final = (Kind.STATEMENT, Kind.GRANT, Kind.RECALL, Kind.PRESENTATION, Kind.WITHDRAWAL)
_COUNTED_FROM: Final = datetime(2026, 1, 1, tzinfo=UTC)  # epochs are numbered by seconds, which last until 2094


class Cause(StrEnum):
    """Why an epoch was opened, as entry 0 tells it."""

    RESTORED = "restored"  # one side comes from a backup
    CLONED = "cloned"  # two copies of the sender ran
    HEALED = "healed"  # people have settled an incident


class Standing(IntEnum):
    """How much is known of what a feed to us has shown, in `in_feeds.restored`."""

    WHOLE = 0
    RESTORED = 1  # we come from a backup, and no page has come since
    CATCHING_UP = 2  # the newest head is known again, and not everything up to there was taken in


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch of a feed, for lists. `settled` counts the entries that its receiver has acknowledged.

    `state` is `current` or `ended`, or what people have to do about it.
    """

    peer: NodeId
    outgoing: bool
    number: int
    origin: str
    size: int
    settled: int
    state: str


def opening(node: Node, peer: NodeId, cause: Cause, reason: str) -> NoReturn:
    """Asks that a new epoch of the feed to `peer` be opened, which takes a second person.

    Raises AwaitsSecondError once that is noted, NotFoundError, UsageError where nothing holds the feed up.
    """
    node.allow(Post.OPERATOR)
    card = peers.trusted_card(node, peer)
    if card.speaks == 1:
        raise UsageError(f"{peer} speaks protocol version 1, which has no epochs: it must be upgraded first")
    with write(node.engine) as tx:
        old, known = _held_up(tx, peer), confirm.newest_known(tx, peer)
        arguments = {
            "peer": peer,
            "cause": cause.value,
            "ends": known.origin,
            "final_size": known.size,
            "lost_here": _lost(tx, old, known) or "nothing that is known of",
        }
        number = approvals.ask(node, tx, Act.OPEN_EPOCH, peer, arguments, _open_binding(old, known, cause), reason)
    raise approvals.awaits(node, number)


def carry_out_open(node: Node, tx: Connection, request: Request) -> None:
    """Opens the epoch, as it is bound, and puts into it what the receiver lacks. Raises ConflictError, HeldError."""
    peer, cause = NodeId(request.arguments["peer"]), Cause(request.arguments["cause"])
    card = peers.trusted_cards(tx).get(peer)
    if card is None:
        raise ConflictError(f"{peer} is not trusted any more")
    try:
        old = _held_up(tx, peer)
    except UsageError as e:
        raise ConflictError(f"the feed to {peer} goes on again") from e
    known = confirm.newest_known(tx, peer)
    approvals.require_unchanged(request, _open_binding(old, known, cause))
    lost, number, covered = _lost(tx, old, known), _next(node, old, known), _cover(tx, old)
    peers.open_out_feed(node, tx, peer, number)
    control.send(node, tx, card, NewEpoch(known.origin, known.head, cause.value))
    _forget_cards(tx, peer, covered)
    cards.deliver(node, tx)
    held_back = _send_again(node, tx, card, covered)
    now, asked = node.clock(), f"request {request.number}, asked by {request.asked_by}"
    detail = f"epoch {number}, {cause}; lost here: {lost or 'nothing that is known of'}; {asked}"
    record(tx, at=now, by=node.actor, act="epoch.open", subject=peer, detail=detail)
    if lost:
        text = f"{lost}: what was released, recalled or taken back there has to be done again; ask {peer} what it holds"
        raise_alarm(tx, Alarm.RESTORED, peer, text, now)
    if held_back:
        text = f"{held_back} deliveries that may not go any more are not in epoch {number}"
        raise_alarm(tx, Alarm.HELD, f"{peer} epoch", text, now)


def accepting(node: Node, peer: NodeId, reason: str) -> NoReturn:
    """Asks that the epoch which `peer` has opened be accepted, which takes a second person.

    Raises AwaitsSecondError once that is noted, NotFoundError, UsageError where there is none or an incident is open.
    """
    node.allow(Post.OPERATOR)
    peers.trusted_card(node, peer)
    with write(node.engine) as tx:
        row = _offered(tx, peer)
        newest = Checkpoint.of(row.newest).size if row.newest else 0
        arguments = {
            "peer": peer,
            "epoch": row.offered_epoch,
            "ends": row.origin,
            "held": row.size,
            "shown": newest,
            "never_came": newest - row.size,
        }
        number = approvals.ask(node, tx, Act.ACCEPT_EPOCH, peer, arguments, _accept_binding(row), reason)
    raise approvals.awaits(node, number)


def carry_out_accept(node: Node, tx: Connection, request: Request) -> None:
    """Begins to take from the new epoch, as it is bound; the next sync checks how it begins. Raises ConflictError."""
    peer = NodeId(request.arguments["peer"])
    try:
        row = _offered(tx, peer)
    except UsageError as e:
        raise ConflictError(f"{peer} offers no new epoch any more") from e
    approvals.require_unchanged(request, _accept_binding(row))
    peers.open_in_feed(node, tx, peer, row.offered_epoch)
    begun = (in_feeds.c.peer == peer) & (in_feeds.c.epoch == row.offered_epoch)
    standing = Standing.RESTORED if row.restored else Standing.WHOLE  # of this epoch, too, it may have known more
    tx.execute(update(in_feeds).where(begun).values(restored=standing))
    detail = f"epoch {row.offered_epoch} after {row.epoch}; request {request.number}, asked by {request.asked_by}"
    record(tx, at=node.clock(), by=node.actor, act="epoch.accept", subject=peer, detail=detail)


def all_epochs(node: Node, peer: NodeId | None = None) -> tuple[Epoch, ...]:
    """Every epoch of every feed, those of one peer if it is named; the ended ones are still here."""
    with read(node.engine) as tx:
        going = tx.execute(select(out_feeds).order_by(out_feeds.c.epoch)).all()
        coming = tx.execute(select(in_feeds).order_by(in_feeds.c.epoch)).all()
    found = [
        *(_listed(row, True, row.receipt_size, _state_out(row)) for row in going),
        *(_listed(row, False, row.cosigned, _state_in(row)) for row in coming),
    ]
    last = {(epoch.peer, epoch.outgoing): epoch.number for epoch in found}
    told = (e if e.number == last[e.peer, e.outgoing] else replace(e, state="ended") for e in found)
    wanted = (epoch for epoch in told if peer in (None, epoch.peer))
    return tuple(sorted(wanted, key=lambda epoch: (epoch.peer, not epoch.outgoing, epoch.number)))


def check_claim(peer: NodeId, held: int, page: PageBytes) -> None:
    """Refuses a page that names an epoch which cannot follow the one that is held. Raises MalformedError."""
    if page.items or page.checkpoint or page.latest or page.receipt:
        raise MalformedError(f"{peer}: a page names another epoch, and holds more than that")
    if not held < page.epoch <= MAX_EPOCH:
        raise MalformedError(f"{peer}: says that epoch {page.epoch} follows epoch {held}")


def check_beginning(node: Node, peer: NodeId, epoch: int, standing: Standing, page: VerifiedPage) -> None:
    """The first page of a later epoch begins by naming the feed that it continues: the newest of which a head is held,
    and a final head that is no less than that; where we come from a backup it may be a later feed.

    Raises MalformedError, or a FeedFrozenError: an epoch is no way to drop history.
    """
    before, first = _before(node, peer, epoch), page.entries[0].envelope
    body = first.body if first is not None else None
    if not isinstance(body, NewEpoch):
        raise MalformedError(f"{peer}: epoch {epoch} does not begin by naming the feed that it continues")
    if body.previous == before.origin:
        check_final(body.final, before.origin, before.newest)
        return
    sender, receiver, previous = parse_origin_line(body.previous)
    follows = (sender, receiver) == (peer, node.id) and before.epoch < previous < epoch
    if not follows or standing is Standing.WHOLE:
        raise MalformedError(f"{peer}: epoch {epoch} does not continue {before.origin}, whose end is held here")


def ends(node: Node, peer: NodeId, epoch: int, page: PageBytes) -> tuple[bytes, ...]:
    """The two heads that contradict each other where `check_beginning` froze a feed: the one that was shown, and the
    final one that entry 0 names."""
    if epoch == 1 or not page.items or not isinstance(page.items[0], bytes):
        return ()
    try:
        body = entries.read(page.items[0]).body
    except RemoteError:
        return ()
    before = _before(node, peer, epoch)
    return (before.newest, body.final) if isinstance(body, NewEpoch) else ()


def row_of(tx: Connection, peer: NodeId, origin: str) -> int:
    """The row of an earlier epoch of the feed from `peer`; 0 where nothing was ever held of it."""
    found = tx.execute(select(in_feeds.c.id).where(in_feeds.c.peer == peer, in_feeds.c.origin == origin)).scalar()
    return found or 0


def note_beginning(node: Node, tx: Connection, peer: NodeId, body: NewEpoch) -> None:
    """Writes down what of the feed before will never come, now that the one that continues it has begun."""
    row = tx.execute(select(in_feeds.c.size, in_feeds.c.newest).where(in_feeds.c.origin == body.previous)).one_or_none()
    held = row.size if row is not None else 0
    final = Checkpoint.of(body.final).size if body.final else 0
    if final > held:
        detail = f"entries {held} to {final - 1} of {body.previous} never came; what stands of them comes again"
        record(tx, at=node.clock(), by=peer, act="epoch.gap", subject=peer, detail=detail)
        raise_alarm(tx, Alarm.EPOCH, peer, detail, node.clock())


def _before(node: Node, peer: NodeId, epoch: int) -> Row[Any]:
    """The feed that an epoch has to continue: the newest one of which a head is held, else the first."""
    with read(node.engine) as tx:
        rows = tx.execute(
            select(in_feeds).where(in_feeds.c.peer == peer, in_feeds.c.epoch < epoch).order_by(in_feeds.c.epoch)
        ).all()
    return next((row for row in reversed(rows) if row.newest), rows[0])


def _held_up(tx: Connection, peer: NodeId) -> OutFeed:
    """The feed to `peer`, which cannot go on. Raises UsageError when it can."""
    feed = feeds.out_feed(tx, peer)
    if feed.refused_at is None:
        raise UsageError(
            f"nothing holds up the feed to {peer}: a new epoch is opened once it has asked and could not be answered,"
            " so that the epoch begins where it stands"
        )
    return feed


def _next(node: Node, old: OutFeed, known: Known) -> int:
    now = int((node.clock() - _COUNTED_FROM).total_seconds())
    return max(old.epoch + 1, known.epoch + 1, now)


def _lost(tx: Connection, old: OutFeed, known: Known) -> str:
    """The entries that were signed and are not here, in words; empty where none is known."""
    if known.epoch > old.epoch:
        return f"entries of {old.origin} from {old.receipt_size} on, and all {known.size} of {known.origin}"
    return f"entries {old.receipt_size} to {known.size - 1} of {known.origin}" if confirm.is_lost(tx, old) else ""


def _cover(tx: Connection, old: OutFeed) -> dict[int, int]:
    """Of each epoch so far, by its row, from where on the receiver lacks what stood in it; it is kept there."""
    rows = tx.execute(select(out_feeds).where(out_feeds.c.peer == old.peer)).all()
    covered = {row.id: row.refused_at or 0 for row in rows}
    if old.refused_at is not None:
        covered[old.id] = min(old.receipt_size, old.refused_at)
    if old.refused_at == FELL_BACK:
        covered = dict.fromkeys(covered, 0)
    for row, since in covered.items():
        tx.execute(update(out_feeds).where(out_feeds.c.id == row).values(refused_at=since))
    return covered


def _forget_cards(tx: Connection, peer: NodeId, covered: Mapping[int, int]) -> None:
    """A card of ours that lies in what the receiver lacks is not held there: it is sent again."""
    rows = tx.execute(select(card_deliveries).where(card_deliveries.c.peer == peer)).all()
    lacking = [row.version for row in rows if row.seq >= covered.get(row.feed, 0)]
    if not lacking:
        return
    before = select(func.max(own_cards.c.version)).where(own_cards.c.version < min(lacking))
    held = tx.execute(before).scalar_one()
    if held is not None:
        older = (peers_table.c.node == peer) & (peers_table.c.our_card > held)
        tx.execute(update(peers_table).where(older).values(our_card=held))


def _send_again(node: Node, tx: Connection, card: Card, covered: Mapping[int, int]) -> int:
    """Puts into the new epoch what the receiver lacks of those before; returns how many deliveries may not go any more.

    Agreements first; each recall without entries to erase, as it bars by name; last what was taken back of that which
    the receiver holds.
    """
    for document in agreements.with_peer(tx, node.id, card.node, node.clock()):
        control.offer(node, tx, card, AgreementOffer(document))
    lacking = {kind: tuple(_lacking(tx, covered, kind)) for kind in _CARRIED}
    for feed, seq in (*lacking[Kind.STATEMENT], *lacking[Kind.GRANT]):
        control.offer(node, tx, card, _body(tx, feed, seq))
    orders = [_body(tx, feed, seq) for feed, seq in lacking[Kind.RECALL]]
    documents = {order.document for order in orders if isinstance(order, RecallOrder)}
    for document in sorted(documents | set(answers.owed(tx, card.node))):
        control.offer(node, tx, card, RecallOrder(document, ()))
    standing = _standing(tx, covered)
    held_back = releases.deliver_again(
        node, tx, card, [place for place in lacking[Kind.PRESENTATION] if place in standing]
    )
    rows = tx.execute(select(out_feeds.c.origin, out_feeds.c.id).where(out_feeds.c.id.in_(tuple(covered))))
    feeds_of = {row.origin: row.id for row in rows}
    origins = {feed: origin for origin, feed in feeds_of.items()}
    for feed, seq in lacking[Kind.WITHDRAWAL]:
        body = _body(tx, feed, seq)
        if isinstance(body, Withdrawal):
            ended = body.feed or origins[feed]
            held = tuple(seq for seq in body.seqs if seq < covered[feeds_of[ended]])
            if held:
                control.offer(node, tx, card, Withdrawal(held, body.reason, ended))
    return held_back


def _lacking(tx: Connection, covered: Mapping[int, int], kind: Kind) -> Iterator[tuple[int, int]]:
    """Feed and number of the entries of a kind that the receiver lacks and whose bytes are here, in their order."""
    for feed in sorted(covered):
        of_kind = (out_entries.c.feed == feed) & (out_entries.c.kind == kind) & out_entries.c.data.is_not(None)
        query = select(out_entries.c.seq).where(of_kind, out_entries.c.seq >= covered[feed])
        for seq in tx.execute(query.order_by(out_entries.c.seq)).scalars().all():
            yield feed, seq


def _body(tx: Connection, feed: int, seq: int) -> Body:
    query = select(out_entries.c.data).where(out_entries.c.feed == feed, out_entries.c.seq == seq)
    return entries.read(tx.execute(query).scalar_one()).body


def _standing(tx: Connection, covered: Mapping[int, int]) -> frozenset[tuple[int, int]]:
    """Feed and number of the newest delivery of each own or received advisory that was not taken back."""
    rows = tx.execute(
        select(out_entries.c.advisory, out_entries.c.inbox, out_entries.c.feed, out_entries.c.seq)
        .where(
            out_entries.c.feed.in_(tuple(covered)),
            out_entries.c.kind == Kind.PRESENTATION,
            out_entries.c.data.is_not(None),
        )
        .order_by(out_entries.c.feed, out_entries.c.seq)
    )
    newest = {(row.advisory, row.inbox): (row.feed, row.seq) for row in rows}
    return frozenset(newest.values())


def _offered(tx: Connection, peer: NodeId) -> Row[Any]:
    """The feed from `peer` that has ended for it. Raises UsageError."""
    row = tx.execute(select(in_feeds).where(in_feeds.c.peer == peer).order_by(in_feeds.c.epoch.desc()).limit(1)).one()
    if row.frozen:
        raise UsageError(
            f"the feed from {peer} is frozen: {row.frozen}. First settle that: apostille peer incident list"
        )
    if row.offered_epoch is None or row.offered_epoch <= row.epoch:
        raise UsageError(f"{peer} has opened no epoch that is not accepted here; see: apostille peer epoch list")
    return row


def _open_binding(old: OutFeed, known: Known, cause: Cause) -> bytes:
    final = Checkpoint.of(known.head).body() if known.head else b""
    return approvals.bind(old.origin, known.origin, final, cause.value)


def _accept_binding(row: Row[Any]) -> bytes:
    return approvals.bind(row.origin, str(row.offered_epoch), str(row.size), row.newest)


def _listed(row: Row[Any], outgoing: bool, settled: int, state: str) -> Epoch:
    return Epoch(NodeId(row.peer), outgoing, row.epoch, row.origin, row.size, settled, state)


def _state_out(row: Row[Any]) -> str:
    return "current" if row.refused_at is None else "waits for a new epoch"


def _state_in(row: Row[Any]) -> str:
    if row.frozen:
        return f"frozen: {row.frozen}"
    offered = row.offered_epoch is not None and row.offered_epoch > row.epoch
    return f"epoch {row.offered_epoch} is offered" if offered else "current"
