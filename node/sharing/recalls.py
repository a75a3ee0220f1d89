"""Recalls: the origin's order to stop using revisions of an advisory and to purge them (I15).

Giving one: signed once, kept for ever, put into the feed to every peer together with the entries that it erases; the
origin's own copy stays, as its record, and is released no more. A peer of protocol version 1 gets a withdrawal.

Receiving one: it may come before the advisory, and bars what it names from then on, whoever delivers it. Every copy
goes, on every feed and from quarantine; the order goes on, as it was signed, to everybody to whom this node passed the
advisory on; and the origin is answered with a signed statement, by the way on which the order came. Of a revision that
its origin signed twice, every disclosure goes too: an incident keeps the signed cores, which hold digests, and so
proves the contradiction without what the advisory said.

Who has to follow an order, and what they answered, is `node.sharing.answers`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, insert, select, update

from federation import entries, recall
from federation.entries import Delivery, Purge, RecallOrder, Withdrawal
from federation.errors import HeldError, NotFoundError, RecalledError, RemoteError, UsageError
from federation.inbound import Advisory, read_core
from federation.keyring import Card, Keyring, unverified
from federation.model import JsonObject, NodeId, Onward, Role
from federation.recall import Reason, Recall
from federation.statement import Kind, Outcome, Subject
from node.desk import inbox
from node.desk.inbox import Disposition, InboxState
from node.home import signing
from node.home.context import Node
from node.home.people import Post
from node.peering import feeds
from node.peering.peers import trusted_cards
from node.records import ledger
from node.records.alarms import Alarm, raise_alarm
from node.records.ledger import LedgerRow
from node.sharing import answers, erasures, relays, statements
from node.sharing.answers import HolderState, Order
from node.store.database import read, record, scrub, storable, write
from node.store.tables import advisories, in_entries, out_entries, out_feeds, peers, recall_holders
from node.store.tables import inbox as inbox_table
from node.store.tables import recalls as recalls_table

_RECALLED: Final = "recalled"  # the rule id where a withdrawal or a purge stands in place of the order


@dataclass(frozen=True, slots=True)
class Reach:
    """What one peer got of an advisory: how many of its entries it acknowledged, has not fetched, and had taken back.

    Others may hold it too where `onward` tells that its terms let the peer share it with peers of its own, and where
    `granted` names those to whom a grant let it go.
    """

    peer: NodeId
    revisions: tuple[int, ...]
    acknowledged: int
    not_fetched: int
    taken_back: int
    onward: bool
    granted: tuple[NodeId, ...]


def give(
    node: Node, name: str, reason: Reason, revisions: Iterable[int] = (), *, to: Collection[NodeId] | None = None
) -> Order:
    """Recalls revisions of our own advisory `name`: all that were issued, unless some are named.

    Every trusted peer is told, whether or not it was sent them, since others may have passed them on; with `to`, only
    those are. It can be ordered again, under the key of now, until everybody who was sent them has answered. Raises
    NotFoundError, UsageError.
    """
    node.allow(Post.ANALYST)
    with write(node.engine) as tx:
        rows = _to_recall(node, tx, name, tuple(revisions))
        now = node.clock()
        signer = signing.signer_for_all(node, tx, Role.ISSUE)
        named = tuple(row.revision for row in rows)
        order = recall.sign(node.id, name, named, reason, now, kid=signer.kid, sign_bytes=signer.sign)
        if tx.execute(select(recalls_table.c.digest).where(recalls_table.c.digest == order.digest)).first() is None:
            _keep(node, tx, order, by=node.actor)
        ids = tuple(row.id for row in rows)
        _mark(tx, order, ids, anew=to is None)
        _tell(node, tx, order, own=ids, to=to, by=node.actor)
    scrub(node.engine)
    return next(given for given in answers.status(node, name) if given.digest == order.digest)


def preview(node: Node, name: str) -> tuple[Reach, ...]:
    """Who was sent which revisions of our own advisory, and who else may hold them. Raises NotFoundError."""
    with read(node.engine) as tx:
        if not _issued(tx, name):
            raise NotFoundError(f"no advisory called {name} was issued here; see: apostille advisory list")
    granted: dict[tuple[bytes, NodeId], set[NodeId]] = {}
    for given in relays.all_grants(node):
        granted.setdefault((given.grant.core_digest, given.grant.relay), set()).update(given.grant.recipients)
    found: dict[NodeId, list[LedgerRow]] = {}
    for row in ledger.rows(node, name=name):
        if row.facts["origin"] == node.id:
            found.setdefault(row.peer, []).append(row)
    return tuple(_reach(peer, rows, granted) for peer, rows in sorted(found.items()))


def check_not_barred(tx: Connection, advisory: Advisory) -> None:
    """Refuses a revision that its origin has recalled. Raises RecalledError."""
    orders = tx.execute(
        select(recalls_table.c.revisions).where(
            recalls_table.c.origin == advisory.origin, recalls_table.c.name == storable(advisory.name)
        )
    ).scalars()
    if any(advisory.revision in revisions for revisions in orders):
        raise RecalledError(f"{advisory.origin} has recalled revision {advisory.revision} of it")


def may_be_barred(tx: Connection, origin: NodeId, data: bytes) -> bool:
    """Whether an entry that did not hold may repeat what `origin`, who delivered it, has recalled: it says that it is
    such a revision, or nobody can read what it is. Then it is no evidence that is kept."""
    orders = tx.execute(
        select(recalls_table.c.name, recalls_table.c.revisions).where(recalls_table.c.origin == origin)
    ).all()
    said = _jti(data) if orders else None
    barred = {f"{origin}/{order.name}/{revision}" for order in orders for revision in order.revisions}
    return bool(orders) and (said is None or storable(said) in barred)


def receive(node: Node, tx: Connection, document: bytes, peer: NodeId, keyring: Keyring) -> None:
    """Takes in an order that a peer brought; the same again changes nothing and is not answered. The caller scrubs.

    (1) signed by the origin that it speaks for; (2) kept, so that it bars what it names; (3) every copy here is purged;
    (4) it goes on to those to whom we passed the advisory on; (5) the origin is answered by the way it came.
    An order of our own that we do not know was lost in a restore: it bars again what we may release.
    Raises a RemoteError.
    """
    now = node.clock()
    order = recall.read(document, lambda author, kid: keyring.key(author, Role.ISSUE, kid, now))  # (1)
    if tx.execute(select(recalls_table.c.digest).where(recalls_table.c.digest == order.digest)).first() is not None:
        return
    _keep(node, tx, order, by=peer)  # (2)
    if order.origin == node.id:
        _mark(tx, order, tuple(row.id for row in _issued(tx, order.name) if row.revision in order.revisions))
        return
    ids, copies = _purge(tx, order)  # (3)
    told = _tell(node, tx, order, received=ids, to=(), by=peer)  # (4)
    _answer(node, tx, order, told, peer, held=copies > 0)  # (5)


def tell_again(node: Node, tx: Connection, document: bytes, *, by: str) -> None:
    """Puts an order of our own, which a restore had lost and which is kept again, into the feed to every peer again.

    Of an order of somebody else nothing is done.
    """
    row = tx.execute(select(recalls_table).where(recalls_table.c.document == document)).one()
    if row.origin == node.id:
        order = _kept(row)
        ids = tuple(issued.id for issued in _issued(tx, order.name) if issued.revision in order.revisions)
        _tell(node, tx, order, own=ids, by=by)


def send_again(node: Node) -> int:
    """Sends orders to those peers of ours that could not be told before and can be now: law changed, or their protocol
    version. Returns how many orders went out."""
    waiting = (HolderState.HELD, HolderState.WITHDRAWN)
    query = select(recall_holders).where(
        recall_holders.c.state.in_(waiting), recall_holders.c.via == recall_holders.c.node
    )
    with read(node.engine) as tx:
        if not any(_card_of(tx, row.node) for row in tx.execute(query).all()):
            return 0
    sent = 0
    with write(node.engine) as tx:
        for row in tx.execute(query).all():
            card = _card_of(tx, row.node)
            if card is None:
                continue
            order = _kept(tx.execute(select(recalls_table).where(recalls_table.c.digest == row.recall)).one())
            ids = tuple(r.id for r in _issued(tx, order.name) if r.revision in order.revisions)
            own = ids if order.origin == node.id else ()
            standing = erasures.standing(tx, own=own, received=_received(tx, order)).get(card.node, {})
            current = feeds.out_feed(tx, card.node).epoch
            try:
                body = RecallOrder(order.document, standing.get(current, ()))
                erasures.erase(node, tx, card, current, body, _facts(order), by=feeds.POLICY)
            except HeldError:
                continue
            answers.note(tx, order.digest, card.node, HolderState.PENDING, node.clock(), via=card.node)
            sent += 1
    if sent:
        scrub(node.engine)
    return sent


def _to_recall(node: Node, tx: Connection, name: str, revisions: tuple[int, ...]) -> list[Row[Any, Any, Any]]:
    """The rows to be recalled, lowest revision first. Raises NotFoundError, UsageError."""
    rows = _issued(tx, name)
    if not rows:
        known = tx.execute(select(advisories.c.id).where(advisories.c.name == name)).first()
        if known is None:
            raise NotFoundError(f"no advisory is called {name}; see: apostille advisory list")
        raise UsageError(f"{name} is a draft: nothing of it has left, so there is nothing to recall")
    unknown = sorted(set(revisions) - {row.revision for row in rows})
    if unknown:
        raise UsageError(f"{name} has no issued revision {', '.join(map(str, unknown))}; see: apostille advisory list")
    chosen = [row for row in rows if not revisions or row.revision in revisions]
    if all(row.recall is not None for row in chosen) and not _unfinished(node, tx, name, chosen):
        raise UsageError(f"{name}: recalled already, and everybody has answered; see: apostille recall status {name}")
    return chosen


def _unfinished(node: Node, tx: Connection, name: str, rows: Sequence[Row[Any, Any, Any]]) -> bool:
    """Whether somebody who was sent one of these revisions, or was ordered to purge it, has not answered for it."""
    orders = [order for order in answers.status_in(tx, node.clock(), name) if order.origin == node.id]
    sent = tx.execute(
        select(advisories.c.revision, out_feeds.c.peer)
        .join_from(out_entries, advisories, advisories.c.id == out_entries.c.advisory)
        .join(out_feeds, out_feeds.c.id == out_entries.c.feed)
        .where(advisories.c.id.in_([row.id for row in rows]))
        .distinct()
    ).all()
    asked = {(row.revision, row.peer) for row in sent}
    answered: set[tuple[int, str]] = set()
    for order in orders:
        for revision in {row.revision for row in rows}.intersection(order.revisions):
            for holder in order.holders:
                (answered if holder.state in answers.ANSWERED else asked).add((revision, holder.node))
    return not asked <= answered


def _issued(tx: Connection, name: str) -> Sequence[Row[Any, Any, Any]]:
    query = select(advisories.c.id, advisories.c.revision, advisories.c.recall).where(
        advisories.c.name == name, advisories.c.core.is_not(None)
    )
    return tx.execute(query.order_by(advisories.c.revision)).all()


def _mark(tx: Connection, order: Recall, ids: tuple[int, ...], *, anew: bool = False) -> None:
    """Notes the order that took these rows back: the first one, or `anew` the newest, that went to everybody."""
    mine = update(advisories).where(advisories.c.id.in_(ids))
    tx.execute((mine if anew else mine.where(advisories.c.recall.is_(None))).values(recall=order.digest))


def _keep(node: Node, tx: Connection, order: Recall, *, by: str) -> None:
    """Keeps an order, which bars what it names from now on."""
    tx.execute(
        insert(recalls_table).values(
            digest=order.digest,
            origin=order.origin,
            name=storable(order.name),
            revisions=list(order.revisions),
            reason=order.reason,
            ordered_at=order.at,
            document=order.document,
            at=node.clock(),
            by=by,
        )
    )
    detail = f"revisions {', '.join(map(str, order.revisions))}: {order.reason}"
    subject = f"{order.origin}/{storable(order.name)}"
    record(tx, at=node.clock(), by=by, act="recall", subject=subject, detail=detail)


def _kept(row: Row[Any]) -> Recall:
    """An order from the store; it was verified when it came."""
    return Recall(
        NodeId(row.origin), row.name, tuple(row.revisions), Reason(row.reason), row.ordered_at, row.digest, row.document
    )


def _purge(tx: Connection, order: Recall) -> tuple[tuple[int, ...], int]:
    """Erases every copy that was received of what the order names, quarantined ones that can be read as that included.

    Returns the inbox items, and how many copies there ever were.
    """
    ids = _received(tx, order)
    places = [
        (row.feed, row.seq)
        for row in tx.execute(select(inbox_table.c.feed, inbox_table.c.seq).where(inbox_table.c.id.in_(ids)))
    ]
    named = {f"{order.origin}/{order.name}/{revision}" for revision in order.revisions}
    aside = tx.execute(
        select(in_entries.c.feed, in_entries.c.seq, in_entries.c.data).where(
            in_entries.c.outcome == Disposition.QUARANTINED, in_entries.c.data.is_not(None)
        )
    )
    places += [(row.feed, row.seq) for row in aside if _jti(row.data) in named]
    for feed, seq in places:
        tx.execute(
            update(in_entries)
            .where(in_entries.c.feed == feed, in_entries.c.seq == seq)
            .values(data=None, outcome=Disposition.RECALLED)
        )
    inbox.forget(tx, select(inbox_table.c.id).where(inbox_table.c.id.in_(ids)), InboxState.RECALLED)
    return ids, len(places)


def _received(tx: Connection, order: Recall) -> tuple[int, ...]:
    """The inbox items that the order names, whatever became of them."""
    names = {order.name, storable(order.name)}
    query = select(inbox_table.c.id).where(
        inbox_table.c.origin == order.origin,
        inbox_table.c.name.in_(names),
        inbox_table.c.revision.in_(order.revisions),
    )
    return tuple(tx.execute(query).scalars())


def _jti(data: bytes) -> str | None:
    """What a stored entry says it is, unverified; None for one that is no advisory or cannot be read."""
    try:
        body = entries.read(data).body
        if not isinstance(body, Delivery):
            return None
        jti = read_core(body.presentation).payload.get("jti")
    except RemoteError:
        return None
    return jti if isinstance(jti, str) else None


def _tell(
    node: Node,
    tx: Connection,
    order: Recall,
    *,
    own: tuple[int, ...] = (),
    received: tuple[int, ...] = (),
    to: Collection[NodeId] | None = None,
    by: str,
) -> dict[NodeId, HolderState]:
    """Puts the order into the feed to everybody who was sent what it names, and erases that; notes who has to answer.

    With `to` None every trusted peer is told besides, and with peers named only those of them. A distrusted peer finds
    the order in its feed if people here trust it again.
    """
    standing = erasures.standing(tx, own=own, received=received)
    sent = set(
        tx.execute(
            select(out_feeds.c.peer)
            .join(out_entries, out_entries.c.feed == out_feeds.c.id)
            .where(out_entries.c.advisory.in_(own) | out_entries.c.inbox.in_(received))
            .distinct()
        ).scalars()
    )
    told: dict[NodeId, HolderState] = {}
    for row in tx.execute(select(peers).where(peers.c.direct == 1).order_by(peers.c.node)).all():
        was_sent = row.node in sent
        if not was_sent and (to is not None or not row.trusted):
            continue
        if to and row.node not in to:
            continue
        card = unverified(row.card)
        if card.speaks < 2 and not was_sent:
            continue
        state = _order_to(node, tx, order, card, standing.get(card.node, {}), by=by)
        if state is HolderState.PENDING and not row.trusted:
            state = HolderState.UNREACHABLE
        told[card.node] = state
        answers.note(tx, order.digest, card.node, state, node.clock(), via=card.node)
    return told


def _order_to(
    node: Node, tx: Connection, order: Recall, card: Card, standing: Mapping[int, tuple[int, ...]], *, by: str
) -> HolderState:
    current, facts = feeds.out_feed(tx, card.node).epoch, _facts(order)
    for epoch in sorted(standing.keys() - {current}):
        erasures.erase(node, tx, card, epoch, RecallOrder(order.document, standing[epoch]), facts, by=by)
    seqs = standing.get(current, ())
    try:
        if card.speaks > 1:
            erasures.erase(node, tx, card, current, RecallOrder(order.document, seqs), facts, by=by)
            return HolderState.PENDING
        if seqs:
            body = Withdrawal(seqs, _RECALLED)
            erasures.erase(node, tx, card, current, body, {"reason": _RECALLED}, by=by)
    except HeldError as e:
        now = node.clock()
        record(tx, at=now, by=feeds.POLICY, act="recall.held", subject=card.node, detail=str(e))
        raise_alarm(tx, Alarm.HELD, f"{card.node} recall", "a recall may not go to this peer", now)
        _erase_silently(node, tx, card, current, seqs, by=by)
        return HolderState.HELD
    return HolderState.WITHDRAWN


def _erase_silently(node: Node, tx: Connection, card: Card, epoch: int, seqs: tuple[int, ...], *, by: str) -> None:
    """Where law does not let a peer be told of a recall: our own copies go all the same, if it lets us say that much.

    Else they stay, and are never served (I11).
    """
    if not seqs or card.speaks < 2:
        return
    try:
        erasures.erase(node, tx, card, epoch, Purge(seqs, _RECALLED), {"reason": _RECALLED}, by=by)
    except HeldError as e:
        record(tx, at=node.clock(), by=feeds.POLICY, act="purge.held", subject=card.node, detail=str(e))


def _facts(order: Recall) -> JsonObject:
    """What the ledger says of an order."""
    return {
        "origin": order.origin,
        "name": order.name,
        "revisions": list(order.revisions),
        "reason": order.reason.value,
        "recall": order.digest.hex(),
    }


def _answer(
    node: Node, tx: Connection, order: Recall, told: Mapping[NodeId, HolderState], via: NodeId, *, held: bool
) -> None:
    passed_on = sorted(peer for peer, state in told.items() if state is HolderState.PENDING)
    body = {
        "recall": order.digest.hex(),
        "outcome": (Outcome.PURGED if held else Outcome.NEVER_HELD).value,
        "passed_on": passed_on,
        "unreachable": sorted(told.keys() - set(passed_on)),
    }
    about = Subject(order.origin, order.name, order.revisions[0] if len(order.revisions) == 1 else None)
    statements.make(node, tx, Kind.PURGE, order.origin, body, via=via, about=about, by=feeds.POLICY)


def _card_of(tx: Connection, peer: str) -> Card | None:
    """The card of a trusted peer that knows recalls."""
    card = trusted_cards(tx).get(NodeId(peer))
    return card if card is not None and card.speaks > 1 else None


def _reach(peer: NodeId, rows: list[LedgerRow], granted: Mapping[tuple[bytes, NodeId], set[NodeId]]) -> Reach:
    standing = [row for row in rows if row.taken_back is None]
    cores = {bytes.fromhex(row.facts["core_digest"]) for row in rows}
    return Reach(
        peer=peer,
        revisions=tuple(sorted({row.revision for row in rows})),
        acknowledged=sum(row.receipt for row in standing),
        not_fetched=sum(not row.receipt for row in standing),
        taken_back=len(rows) - len(standing),
        onward=any(row.facts["onward"] == Onward.PEERS for row in rows),
        granted=tuple(sorted({node for core in cores for node in granted.get((core, peer), ())})),
    )
