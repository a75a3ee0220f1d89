"""Who has to follow a recall, and what each of them has answered (I15).

The origin knows the peers that it told, and learns from their answers to whom they passed the advisory on; a relay
knows those to whom it passed it on itself. An answer is a signed statement, an assertion by its author (I12): kept with
its name, shown, and missed after seven days.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import Connection, Row, insert, select, update

from federation.entries import Said
from federation.errors import NotAdmittedError
from federation.model import NodeId
from federation.recall import Reason
from federation.statement import Outcome, Statement
from node.home.context import Node
from node.peering import control
from node.peering.peers import trusted_cards
from node.records import ledger
from node.records.alarms import Alarm, raise_alarm
from node.records.ledger import Act
from node.store.database import read, write
from node.store.tables import alarms, recall_holders, recalls

OVERDUE: Final = timedelta(days=7)  # whoever was off over a week-end and a holiday has answered by then


class HolderState(StrEnum):
    """What is known of one node's copies."""

    PENDING = "pending"  # the order is in the feed to it; it has not answered
    PURGED = "purged"  # it says that its copies are gone
    NEVER_HELD = "never-held"  # it says that it had none; it takes none from now on
    WITHDRAWN = "withdrawn"  # its protocol version has no recalls: our deliveries to it were taken back
    HELD = "held"  # law does not let us tell it: a person must look
    UNREACHABLE = "unreachable"  # distrusted, or out of reach of the relay that passed the advisory on to it


ANSWERED: Final = (HolderState.PURGED, HolderState.NEVER_HELD)
_SAYS: Final = {Outcome.PURGED: HolderState.PURGED, Outcome.NEVER_HELD: HolderState.NEVER_HELD}
_IN_FEED: Final = (HolderState.PENDING, HolderState.UNREACHABLE)
_UNANSWERED: Final = (HolderState.PENDING, HolderState.HELD, HolderState.UNREACHABLE)


@dataclass(frozen=True, slots=True)
class Holder:
    """One node that has to purge. `via` is the peer by whose feed the order goes to it, itself for a peer of ours.

    `fetched` tells whether it has acknowledged the entry with the order; None where the order went another way.
    """

    node: NodeId
    via: NodeId
    state: HolderState
    at: datetime
    fetched: bool | None
    overdue: bool


@dataclass(frozen=True, slots=True)
class Order:
    """One recall and who has to follow it. `by` is the local user who gave it, or the peer it came from."""

    digest: bytes
    origin: NodeId
    name: str
    revisions: tuple[int, ...]
    reason: Reason
    at: datetime
    by: str
    holders: tuple[Holder, ...]


def status(node: Node, name: str | None = None) -> tuple[Order, ...]:
    """Every recall that was given or taken in, newest first, with those who have to follow it."""
    fetched = {(row.facts["recall"], row.peer): row.receipt for row in ledger.rows(node, name=name, acts=(Act.RECALL,))}
    with read(node.engine) as tx:
        return status_in(tx, node.clock(), name, fetched)


def status_in(
    tx: Connection,
    now: datetime,
    name: str | None,
    fetched: Mapping[tuple[str, NodeId], bool] = MappingProxyType({}),
) -> tuple[Order, ...]:
    """`status` inside a transaction. `fetched`: whose receipt covers which order, by its digest in hex."""
    query = select(recalls).order_by(recalls.c.at.desc(), recalls.c.digest)
    if name is not None:
        query = query.where(recalls.c.name == name)
    rows = tx.execute(query).all()
    by_order: dict[bytes, list[Row[Any]]] = {}
    for row in tx.execute(select(recall_holders).order_by(recall_holders.c.node)).all():
        by_order.setdefault(bytes(row.recall), []).append(row)
    return tuple(_order(now, row, by_order.get(bytes(row.digest), []), fetched) for row in rows)


def note(tx: Connection, digest: bytes, holder: NodeId, state: HolderState, at: datetime, *, via: NodeId) -> None:
    """Notes how a holder stands. `via` counts for one that was not known."""
    changed = tx.execute(
        update(recall_holders)
        .where(recall_holders.c.recall == digest, recall_holders.c.node == holder)
        .values(state=state, at=at)
    )
    if changed.rowcount == 0:
        tx.execute(insert(recall_holders).values(recall=digest, node=holder, via=via, state=state, at=at))


def receive(node: Node, tx: Connection, said: Statement, peer: NodeId) -> None:
    """Takes in a statement of kind `purge` that `peer` brought: the answer of its author to a recall.

    To our own recall it settles its author, and adds those to whom the author passed the advisory on; what these say
    themselves counts for more than what a relay says of them. To another's it goes on towards the origin, as it was
    signed, if one brings it to whom we passed the advisory on. Raises NotAdmittedError for any other.
    """
    digest = bytes.fromhex(said.body["recall"])
    row = tx.execute(select(recalls.c.origin, recalls.c.by).where(recalls.c.digest == digest)).one_or_none()
    now, known, state = node.clock(), _known(tx, digest), _SAYS[Outcome(said.body["outcome"])]
    if said.recipient != node.id:
        if row is None or said.recipient != row.origin or peer not in known:
            raise NotAdmittedError(f"statement for {said.recipient}: it answers no recall that went on from here")
        if said.author in known:
            note(tx, digest, said.author, state, now, via=peer)
        _pass_back(node, tx, said, (row.origin, row.by), peer)
    elif row is not None and row.origin == node.id:
        note(tx, digest, said.author, state, now, via=peer)
        _settle_earlier(tx, digest, said.author, state, now)
        for listed, theirs in (("passed_on", HolderState.PENDING), ("unreachable", HolderState.UNREACHABLE)):
            for other in map(NodeId, said.body[listed]):
                if other not in {*known, node.id, said.author}:
                    note(tx, digest, other, theirs, now, via=said.author)


def owed(tx: Connection, peer: NodeId) -> tuple[bytes, ...]:
    """The orders in the feed to `peer` that it has not answered, as they were signed: for a feed that begins anew."""
    query = (
        select(recalls.c.document)
        .join(recall_holders, recall_holders.c.recall == recalls.c.digest)
        .where(recall_holders.c.node == peer, recall_holders.c.via == peer, recall_holders.c.state.in_(_IN_FEED))
        .order_by(recalls.c.at, recalls.c.digest)
    )
    return tuple(tx.execute(query).scalars())


def check(node: Node) -> None:
    """Raises an alarm, once, for each recall of ours that somebody has not answered after seven days."""
    late = {
        f"{order.name} {order.digest.hex()[:12]}": [holder.node for holder in order.holders if holder.overdue]
        for order in status(node)
        if order.origin == node.id
    }
    if not any(late.values()):
        return
    with write(node.engine) as tx:
        for subject, missing in late.items():
            raised = select(alarms.c.id).where(alarms.c.kind == Alarm.RECALL, alarms.c.subject == subject)
            if missing and tx.execute(raised).first() is None:
                detail = f"no answer from {', '.join(missing)}; see: apostille recall status"
                raise_alarm(tx, Alarm.RECALL, subject, detail, node.clock())


def _settle_earlier(tx: Connection, digest: bytes, holder: NodeId, state: HolderState, now: datetime) -> None:
    """Whoever has answered an order has answered for earlier ones about no more revisions, which did not reach it."""
    given = tx.execute(select(recalls).where(recalls.c.digest == digest)).one()
    earlier = tx.execute(
        select(recalls.c.digest, recalls.c.revisions)
        .join(recall_holders, recall_holders.c.recall == recalls.c.digest)
        .where(recalls.c.origin == given.origin, recalls.c.name == given.name, recalls.c.at <= given.at)
        .where(recall_holders.c.node == holder, recall_holders.c.state.in_(_UNANSWERED))
    ).all()
    for row in earlier:
        if set(row.revisions) <= set(given.revisions):
            note(tx, row.digest, holder, state, now, via=holder)


def _known(tx: Connection, digest: bytes) -> frozenset[str]:
    return frozenset(tx.execute(select(recall_holders.c.node).where(recall_holders.c.recall == digest)).scalars())


def _pass_back(node: Node, tx: Connection, said: Statement, way: Iterable[str], peer: NodeId) -> None:
    """Passes an answer on to the first on `way` with whom we exchange: the origin, or who brought us the order."""
    cards = trusted_cards(tx)
    card = next((cards[NodeId(name)] for name in way if name in cards), None)
    if card is not None and card.node != peer and card.speaks > 1:
        control.offer(node, tx, card, Said(said.document))


def _order(now: datetime, row: Row[Any], holders: list[Row[Any]], fetched: Mapping[tuple[str, NodeId], bool]) -> Order:
    return Order(
        digest=row.digest,
        origin=NodeId(row.origin),
        name=row.name,
        revisions=tuple(row.revisions),
        reason=Reason(row.reason),
        at=row.at,
        by=row.by,
        holders=tuple(
            Holder(
                node=NodeId(holder.node),
                via=NodeId(holder.via),
                state=HolderState(holder.state),
                at=holder.at,
                fetched=fetched.get((row.digest.hex(), NodeId(holder.node))),
                overdue=holder.state in _UNANSWERED and now - holder.at >= OVERDUE,
            )
            for holder in holders
        ),
    )
