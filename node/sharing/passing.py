"""Passing on what was received, for its origin: a relay's release.

What may go is decided in `node.sharing.relays`; the bytes of the core are the origin's, and so is its signature. An
entry is appended with its ledger row in one transaction (I14), and serving asks again (I11). What a sender takes back
from this node is taken back from those to whom it was passed on. Only what may be worked with here is passed on.
"""

from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import Connection, or_, select

from federation.agreement import Agreement
from federation.entries import Delivery, Withdrawal
from federation.entries import read as read_entry
from federation.errors import HeldError, NotFoundError, TermsError, UsageError
from federation.grant import Grant
from federation.keyring import Card, unverified
from federation.model import Category, Element, NodeId
from federation.outbound import present
from node.desk.inbox import InboxState, Item, content
from node.home.context import Node
from node.home.people import Post
from node.peering import feeds
from node.peering.agreements import in_force
from node.peering.cards import introduce
from node.peering.peers import trusted_card, trusted_cards
from node.records import ledger
from node.records.alarms import Alarm, raise_alarm, raise_faults
from node.records.ledger import Act
from node.sharing import erasures, relays, releases, statements
from node.sharing.relays import Received
from node.sharing.releases import Outcome, gain
from node.store.database import read, record, scrub, write
from node.store.tables import inbox, out_entries, peers
from node.store.tables import ledger as ledger_table

_BY_HAND, _UPSTREAM = "withdrawn-by-hand", "withdrawn-upstream"
_VERSION = 2  # an older node takes nothing that its sender has not issued
_MOST_DIGITS = 18  # of a number that a database can hold
KeepBack = Callable[[Element], bool]


def preview(
    node: Node, reference: str, to: Iterable[NodeId], withhold: Iterable[str] = ()
) -> tuple[Item, tuple[Outcome, ...]]:
    """What passing it on would give each peer; nothing is changed. Raises as `pass_on`."""
    item, cards = _named(node, reference, to)
    with read(node.engine) as tx:
        held = _held(node, tx, item)
        _, outcomes = _judge_each(node, tx, held, cards, _keep_back(held, withhold))
    return item, outcomes


def pass_on(
    node: Node, reference: str, to: Iterable[NodeId], withhold: Iterable[str] = ()
) -> tuple[Item, tuple[Outcome, ...]]:
    """Passes an item of the inbox on to each peer, as much as law, agreement and origin allow, less what `withhold`
    names: categories, or paths of parts.

    One transaction: either every peer's outcome stands, or none. Raises NotFoundError, UsageError, HeldError for what
    may not be used here, ConflictError.
    """
    node.allow(Post.ANALYST)
    item, cards = _named(node, reference, to)
    with write(node.engine) as tx:
        held = _held(node, tx, item)
        leaves, outcomes = _judge_each(node, tx, held, cards, _keep_back(held, withhold))
        agreements = in_force(tx, node.clock())
        raise_faults(tx, (fault for outcome in outcomes for fault in outcome.decision.alarms), node.clock())
        outcomes = tuple(
            _append(node, tx, held, outcome, leave, agreements) for outcome, leave in zip(outcomes, leaves, strict=True)
        )
    return item, outcomes


def withdraw(node: Node, reference: str, peer: NodeId) -> tuple[int, ...]:
    """Takes back what was passed on to a peer: one revision by its number in the inbox, or all of them by their name.

    Returns the entries. Raises NotFoundError, and HeldError when law forbids even to say so.
    """
    node.allow(Post.ANALYST)
    card = trusted_card(node, peer)
    with write(node.engine) as tx:
        epochs = erasures.standing(tx, received=_every_item(tx, reference)).get(peer, {})
        for epoch, seqs in epochs.items():
            _take_back(node, tx, card, epoch, seqs, _BY_HAND, by=node.actor)
    if not epochs:
        raise NotFoundError(f"nothing that was passed on of {reference} stands in the feed to {peer}")
    scrub(node.engine)
    return tuple(seq for seqs in epochs.values() for seq in seqs)


def follow_withdrawal(node: Node, tx: Connection, feed: int, seqs: tuple[int, ...]) -> None:
    """A sender took entries of its feed back: so does this node, from everybody to whom it has passed them on.

    Where a peer may not even be told so, an alarm tells a person; it is never served (I11). The caller scrubs.
    """
    items = tx.execute(select(inbox.c.id).where(inbox.c.feed == feed, inbox.c.seq.in_(seqs))).scalars().all()
    cards = map(unverified, tx.execute(select(peers.c.card).where(peers.c.direct == 1)).scalars())
    by_peer = {card.node: card for card in cards}  # whoever is distrusted finds it in the feed if that changes
    for peer, epochs in sorted(erasures.standing(tx, received=items).items()):
        try:
            with tx.begin_nested():
                for epoch, going in epochs.items():
                    _take_back(node, tx, by_peer[peer], epoch, going, _UPSTREAM, by=feeds.POLICY)
        except HeldError:
            raise_alarm(tx, Alarm.HELD, f"{peer} withdrawal", "what was passed on cannot be taken back", node.clock())


def _take_back(
    node: Node, tx: Connection, card: Card, epoch: int, seqs: tuple[int, ...], reason: str, *, by: str
) -> None:
    place = erasures.erase(node, tx, card, epoch, Withdrawal(seqs, reason), {"reason": reason}, by=by)
    detail = f"entries {', '.join(map(str, seqs))} by {place.seq}"
    record(tx, at=node.clock(), by=by, act="relay.withdraw", subject=card.node, detail=detail)


def _every_item(tx: Connection, reference: str) -> tuple[int, ...]:
    """The inbox items that a person means: all deliveries of one revision by a number, of all by a name."""
    meant = or_(inbox.c.name == reference, inbox.c.origin + "/" + inbox.c.name == reference)
    if reference.isascii() and reference.isdecimal() and len(reference) <= _MOST_DIGITS:  # no peer can name a number
        meant = inbox.c.core_digest.in_(select(inbox.c.core_digest).where(inbox.c.id == int(reference)))
    return tuple(tx.execute(select(inbox.c.id).where(meant)).scalars())


def _named(node: Node, reference: str, to: Iterable[NodeId]) -> tuple[Item, tuple[Card, ...]]:
    """The item, and the cards of those it is to go to."""
    item = content(node, reference).item
    chosen = tuple(dict.fromkeys(to))
    if not chosen:
        raise UsageError("say to whom: --to PEER")
    back = sorted({item.origin, item.peer} & set(chosen))
    if back:
        raise UsageError(f"{item.name} came from {back[0]}: it is not passed back")
    return item, tuple(trusted_card(node, peer) for peer in chosen)


def _held(node: Node, tx: Connection, item: Item) -> Received:
    held = relays.received(node, tx, item.id)
    if held.state is not InboxState.CURRENT:
        raise HeldError(f"{item.name} was superseded; what is current is passed on")
    return held


def _keep_back(held: Received, withhold: Iterable[str]) -> KeepBack:
    """The parts that a person names. Raises UsageError for what is neither a category nor the path of a part."""
    named = tuple(withhold)
    paths = tuple(f"{name.rstrip('/')}/" for name in named if name.startswith("/"))
    unknown = sorted({name for name in named if not name.startswith("/")} - set(Category))
    parts = [f"{element.path}/" for element in held.advisory.elements]
    unknown += [path for path in paths if not any(part.startswith(path) for part in parts)]
    if unknown:
        raise UsageError(
            f"--withhold {unknown[0].rstrip('/')}: {held.name} has no such part here, and no category is called that"
        )
    return lambda element: bool(element.categories & set(named)) or f"{element.path}/".startswith(paths)


def _judge_each(
    node: Node, tx: Connection, held: Received, cards: tuple[Card, ...], keep_back: KeepBack
) -> tuple[tuple[Grant | None, ...], tuple[Outcome, ...]]:
    leaves = tuple(relays.grant_for(node, tx, held, card.node) if held.needs_grant else None for card in cards)
    agreements = in_force(tx, node.clock())
    return leaves, tuple(
        _judge(node, held, card, agreements, leave, keep_back) for card, leave in zip(cards, leaves, strict=True)
    )


def _judge(
    node: Node,
    held: Received,
    card: Card,
    agreements: dict[bytes, Agreement],
    leave: Grant | None,
    keep_back: KeepBack,
) -> Outcome:
    """The best outcome that an agreement in force between this node and the peer allows."""
    covering = sorted((a for a in agreements.values() if a.covers(node.id, card.node)), key=lambda a: a.id)
    outcomes = (_judge_under(node, held, card, agreement, leave, keep_back) for agreement in covering or (None,))
    return max(outcomes, key=gain)


def _judge_under(
    node: Node,
    held: Received,
    card: Card,
    agreement: Agreement | None,
    leave: Grant | None,
    keep_back: KeepBack,
) -> Outcome:
    decision = relays.judge(node, held, card, agreement, leave, keep_back)
    if agreement is None or not decision.shares_anything:
        held_back = "a duty to send it conflicts with the rules that withhold it" if decision.owed else None
        return Outcome(card.node, decision, None, held_back, None)
    if card.speaks < _VERSION:
        why = f"{card.node} speaks protocol version {card.speaks}, which takes nothing that is passed on"
        return Outcome(card.node, decision, None, why, None)
    try:
        presented = present(held.advisory, decision)
        relays.narrowed_terms(node, held, card.node, agreement)
    except (HeldError, TermsError) as e:
        return Outcome(card.node, decision, None, str(e), None)
    return Outcome(card.node, presented.decision, presented, None, None)


def _append(
    node: Node,
    tx: Connection,
    held: Received,
    outcome: Outcome,
    leave: Grant | None,
    agreements: dict[bytes, Agreement],
) -> Outcome:
    if outcome.presented is None or outcome.decision.agreement_digest is None:
        return outcome
    agreement = agreements[outcome.decision.agreement_digest]
    elements = ledger.account(outcome.decision)
    grant = b"" if leave is None else leave.document
    again = _standing(tx, outcome.peer, held, agreement, elements, grant)
    if again is not None:
        return Outcome(outcome.peer, outcome.decision, outcome.presented, None, again, already=True)
    terms = relays.narrowed_terms(node, held, outcome.peer, agreement)
    body = Delivery(outcome.presented.presentation, terms, grant)
    introduce(node, tx, trusted_cards(tx)[outcome.peer], held.origin)
    place = feeds.append(node, tx, outcome.peer, body, inbox=held.item)
    releases.enter(node, tx, outcome.peer, place, held.origin, held.name, held.revision, terms, elements, act="relay")
    return Outcome(outcome.peer, outcome.decision, outcome.presented, None, place.seq)


def _standing(
    tx: Connection, peer: NodeId, held: Received, agreement: Agreement, elements: list[list[Any]], grant: bytes
) -> int | None:
    """The newest entry that passes this core on to the peer, if it stands, was not refused, and says the very same."""
    feed = feeds.out_feed(tx, peer)
    row = tx.execute(
        select(ledger_table.c.seq, ledger_table.c.record, out_entries.c.data)
        .join(out_entries, (out_entries.c.feed == ledger_table.c.feed) & (out_entries.c.seq == ledger_table.c.seq))
        .join(inbox, inbox.c.id == out_entries.c.inbox)
        .where(
            ledger_table.c.kind == Act.RELEASE,
            out_entries.c.feed == feed.id,
            inbox.c.core_digest == held.advisory.core_digest,
            out_entries.c.data.is_not(None),
        )
        .order_by(ledger_table.c.seq.desc())
        .limit(1)
    ).one_or_none()
    if row is None or statements.refused(tx, feed, row.seq):
        return None
    facts, body = ledger.facts_of(row.record), read_entry(row.data).body
    told = (facts["elements"], facts["agreement"], body.grant if isinstance(body, Delivery) else b"")
    return int(row.seq) if told == (elements, agreement.digest.hex(), grant) else None
