"""Epochs: how a feed goes on when its history cannot (I8, I16).

A sender that comes from a backup, or one of two copies, has signed what it does not have; a receiver that comes from a
backup may have been shown more than it knows. Then two people at the sender open a new epoch: a feed with a new origin
line, whose entry 0 names the feed before it and the newest head of that which is known to have been signed. Nothing is
signed in the old epoch any more. What the receiver lacks of it goes into the new one: cards, agreements, documents and
recalls as they were signed, deliveries after policy was asked again, and what was taken back.

Two people at the receiver accept the new epoch. Entry 0 has to continue from what is held: an epoch is no way to drop
history. What the old epoch brought stays, with its numbers; its open end is written down. When either side is wrong
about what the other holds, it says so and stops, and a further epoch settles it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any, Final, NoReturn

from sqlalchemy import Connection, Row, func, select, update

from federation import entries, feed
from federation.checkpoint import MAX_EPOCH, Checkpoint, origin_line, parse_origin_line
from federation.entries import Delivery, Granted, NewEpoch, RecallOrder, Said, Withdrawal
from federation.errors import ConflictError, MalformedError, UsageError
from federation.feed import PageBytes, PageEntry
from federation.keyring import Card
from federation.model import JsonObject, NodeId
from node import agreements, answers, approvals, cards, confirm, control, feeds, passing, peers, releases
from node.alarms import Alarm, raise_alarm
from node.approvals import Act, Request
from node.confirm import FELL_BACK, Known
from node.context import Node
from node.feeds import OutFeed
from node.people import Post
from node.store.database import read, record, write
from node.store.tables import card_deliveries, in_feeds, out_entries, out_feeds, own_cards
from node.store.tables import peers as peers_table

_MOST_SKIPPED: Final = 16  # a sender may open another epoch before one is taken up, but hardly more often than that


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
            "epoch": _next(old, known),
            "cause": cause.value,
            "ends": known.origin,
            "final_size": known.place[1],
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
    lost, number, covered = _lost(tx, old, known), _next(old, known), _cover(tx, old)
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
        going = tx.execute(select(out_feeds).order_by(out_feeds.c.peer, out_feeds.c.epoch)).all()
        coming = tx.execute(select(in_feeds).order_by(in_feeds.c.peer, in_feeds.c.epoch)).all()
        last = {(rows is going, row.peer): row.id for rows in (going, coming) for row in rows}
        found = [
            _listed(row, True, row.receipt_size, _state_out(tx, row) if last[True, row.peer] == row.id else "ended")
            for row in going
        ]
        found += [
            _listed(row, False, row.cosigned, _state_in(row) if last[False, row.peer] == row.id else "ended")
            for row in coming
        ]
    wanted = (epoch for epoch in found if peer in (None, epoch.peer))
    return tuple(sorted(wanted, key=lambda epoch: (epoch.peer, not epoch.outgoing, epoch.number)))


def check_claim(peer: NodeId, held: int, standing: Standing, page: PageBytes) -> None:
    """Refuses a page that names an epoch which cannot follow the one that is held. Raises MalformedError."""
    if page.items or page.checkpoint or page.latest or page.receipt:
        raise MalformedError(f"{peer}: a page names another epoch, and holds more than that")
    if not held < page.epoch <= MAX_EPOCH:
        raise MalformedError(f"{peer}: says that epoch {page.epoch} follows epoch {held}")
    if page.epoch > held + _MOST_SKIPPED and standing is Standing.WHOLE:
        raise MalformedError(f"{peer}: jumps from epoch {held} to epoch {page.epoch}")


def check_beginning(
    tx: Connection, peer: NodeId, epoch: int, standing: Standing, page: Sequence[PageEntry]
) -> tuple[bytes, ...]:
    """The first page of a later epoch begins by naming the feed that it continues: the one of which something is held,
    or a later one if we come from a backup. Returns the two heads that say how that one ended: as it was shown here,
    and as the sender has it.

    The caller passes them to `feed.check_final`. Raises MalformedError.
    """
    body = page[0].envelope.body if page[0].envelope else None
    rows = tx.execute(
        select(in_feeds).where(in_feeds.c.peer == peer, in_feeds.c.epoch < epoch).order_by(in_feeds.c.epoch)
    ).all()
    if not rows or not isinstance(body, NewEpoch):
        raise MalformedError(f"{peer}: epoch {epoch} does not begin by naming the feed that it continues")
    before = next((row for row in reversed(rows) if row.newest), rows[0])
    if body.previous == before.origin:
        return before.origin, before.newest, body.final
    raise MalformedError(f"{peer}: epoch {epoch} does not continue {before.origin}, of which we hold the end")
