"""Cards on their way, as control messages: this node's own to its peers, and those of others to whoever needs them.

A newer card goes to every peer that is exchanged with directly, as an entry of its feed; the peer's cursor tells when
it holds it. A card under other root keys than the one before goes even if a newer one exists, since the root keys of
the one before vouch for it. A node that passed something on for its origin passes on that origin's newer cards as well,
and to the origin those of the recipients, so that signatures verify at both ends.

Whoever brings a card vouches for nothing: a card is taken by the root keys of the one that is known.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress

from sqlalchemy import Connection, delete, insert, select

from federation import entries
from federation.entries import Kind, NewCard
from federation.errors import (
    CardError,
    ConflictError,
    HeldError,
    NotFoundError,
    SignatureError,
    UsageError,
    VersionError,
)
from federation.keyring import Card, open_card, unverified
from federation.model import NodeId
from node.home import owncard
from node.home.context import Node
from node.peering import control, feeds, peers
from node.store.database import read, record, write
from node.store.tables import card_deliveries, inbox, out_entries, out_feeds, peer_cards
from node.store.tables import peers as peers_table

_SINCE = 2  # the protocol version that has cards in feeds


def deliver(node: Node, tx: Connection) -> None:
    """Appends the current card, just installed, to the feed of every trusted peer; raises an alarm where it is held."""
    history = owncard.history(tx)
    for card in peers.trusted_cards(tx).values():
        for document in _owed_to(tx, card.node, history):
            place = control.offer(node, tx, card, NewCard(document))
            if place is not None:
                _note(tx, card.node, unverified(document).version, place)


def catch_up(node: Node) -> None:
    """Appends what a peer still lacks: our card to one that was enrolled, or is trusted again, since it was installed,
    or whose feed has begun anew; and newer cards of those for whom something was passed on. Often there is nothing.

    What law holds back, or an older protocol version does not have, was told when it was first tried.
    """
    with read(node.engine) as tx:
        due = [card.node for card in _reachable(tx) if _owes(tx, card.node)]
    if not due:
        return
    with write(node.engine) as tx:
        history = owncard.history(tx)
        for card in _reachable(tx):
            with suppress(HeldError):
                for document in _owed_to(tx, card.node, history):
                    _note(tx, card.node, unverified(document).version, control.send(node, tx, card, NewCard(document)))
            for other in _passed_between(tx, card.node):
                introduce(node, tx, card, other)


def introduce(node: Node, tx: Connection, to: Card, other: NodeId) -> None:
    """Appends to the feed of `to` the newer cards of `other` that have come here and have not gone there.

    To be called before something of `other` is passed on, since `to` may not know the key that signed it. Where law
    holds the card back, nothing is appended.
    """
    if to.speaks < _SINCE:
        return
    with suppress(HeldError):
        for document in _unsent(tx, to.node, other):
            control.send(node, tx, to, NewCard(document))


def receive(node: Node, tx: Connection, document: bytes, peer: NodeId) -> None:
    """Takes in a card that a peer's feed brought: the peer's own, or one that it passes on.

    (1) a card of a node that is not enrolled here says nothing to us; (2) neither does our own; (3) the node is not
    distrusted; (4) it still speaks a protocol version of ours; (5) one that is older than the one we know changes
    nothing if it is authentic; (6) a newer one follows from the one we know, by its root keys, in the same
    jurisdiction. It then goes on to those who need it.
    Raises a RemoteError, of which CardError says that people must look.
    """
    card = unverified(document)
    row = tx.execute(select(peers_table).where(peers_table.c.node == card.node)).one_or_none()
    if card.node == node.id:  # (2)
        if card not in map(unverified, owncard.history(tx)):
            raise CardError(f"{peer} brings card {card.version} of this node itself, which was not made here")
        return
    if row is None:  # (1)
        record(tx, at=node.clock(), by=peer, act="card.unknown", subject=card.node, detail=f"card {card.version}")
        return
    known = unverified(row.card)
    if card == known:
        return
    if not row.trusted:  # (3)
        raise CardError(f"{card.node} is distrusted: its card is looked at when it is trusted again")
    if not card.speaks:  # (4)
        raise VersionError(f"{card.node}: by its new card it speaks no protocol version of this node any more")
    if card.version <= known.version:
        _check_older(tx, card, document)  # (5)
        return
    try:
        peers.take_card(node, tx, document, by=peer)  # (6)
    except (ConflictError, UsageError, NotFoundError) as e:
        raise CardError(str(e)) from e
    _forward(node, tx, card.node, peer)


def waiting(node: Node) -> tuple[NodeId, ...]:
    """The trusted peers that are not known to hold the current card."""
    with read(node.engine) as tx:
        query = select(peers_table.c.node).where(
            peers_table.c.trusted == 1, peers_table.c.direct == 1, peers_table.c.our_card < node.card.version
        )
        return tuple(map(NodeId, tx.execute(query.order_by(peers_table.c.node)).scalars().all()))


def _check_older(tx: Connection, card: Card, document: bytes) -> None:
    """A card that is no newer than the one we know: authentic, and not another one under the same version.

    Raises CardError or SignatureError.
    """
    history = tx.execute(
        select(peer_cards.c.document).where(peer_cards.c.node == card.node).order_by(peer_cards.c.version)
    ).scalars()
    held = [unverified(data) for data in history]
    if card in held:
        return
    before = [other.roots for other in held if other.version < card.version]
    try:
        open_card(document, before[-1] if before else None)
    except SignatureError as e:
        raise SignatureError(
            f"card {card.version} of {card.node} is older than the known one, and does not hold"
        ) from e
    if not before and card.roots not in [other.roots for other in held]:
        raise CardError(f"card {card.version} of {card.node} is older than any that is known, with other root keys")
    if any(other.version == card.version for other in held):
        raise CardError(f"{card.node} has signed two cards of version {card.version}")


def _forward(node: Node, tx: Connection, other: NodeId, bringer: NodeId) -> None:
    for card in _reachable(tx):
        if card.node != bringer and other in _passed_between(tx, card.node):
            introduce(node, tx, card, other)


def _reachable(tx: Connection) -> tuple[Card, ...]:
    return tuple(card for card in peers.trusted_cards(tx).values() if card.speaks >= _SINCE)


def _owes(tx: Connection, peer: NodeId) -> bool:
    return bool(_owed_to(tx, peer, owncard.history(tx))) or any(
        _unsent(tx, peer, other) for other in _passed_between(tx, peer)
    )


def _owed_to(tx: Connection, peer: NodeId, history: Iterable[bytes]) -> list[bytes]:
    """The own cards that `peer` is not known to hold and that its current feed does not bring yet."""
    held = tx.execute(select(peers_table.c.our_card).where(peers_table.c.node == peer)).scalar_one()
    feed = feeds.out_feed(tx, peer).id
    brought = tx.execute(
        select(card_deliveries.c.version).where(card_deliveries.c.peer == peer, card_deliveries.c.feed == feed)
    ).scalars()
    done = {*brought.all()}
    return [
        document
        for document in _to_follow(tuple(history))
        if (version := unverified(document).version) > held and version not in done
    ]


def _to_follow(history: Sequence[bytes]) -> list[bytes]:
    """Of cards in their order: those that one must have to follow to the last, and the last, but not the first."""
    cards = [unverified(document).roots for document in history]
    last = len(history) - 1
    return [history[n] for n in range(1, len(history)) if n == last or cards[n] != cards[n - 1]]


def _unsent(tx: Connection, peer: NodeId, other: NodeId) -> list[bytes]:
    """The newer cards of `other` that the current feed to `peer` does not bring yet."""
    history = tx.execute(
        select(peer_cards.c.document).where(peer_cards.c.node == other).order_by(peer_cards.c.version)
    ).scalars()
    follow = _to_follow(history.all())
    if not follow:
        return []
    sent = tx.execute(
        select(out_entries.c.data).where(
            out_entries.c.feed == feeds.out_feed(tx, peer).id,
            out_entries.c.kind == Kind.CARD,
            out_entries.c.data.is_not(None),
        )
    ).scalars()
    bodies = [entries.read(data).body for data in sent]
    gone = {body.document for body in bodies if isinstance(body, NewCard)}
    return [document for document in follow if document not in gone]


def _passed_between(tx: Connection, peer: NodeId) -> set[NodeId]:
    """The nodes whose cards `peer` needs of us: origins of what we passed on to it, and who has what we passed on of
    its own."""
    passed = (
        select(inbox.c.origin, out_feeds.c.peer)
        .join(out_entries, out_entries.c.inbox == inbox.c.id)
        .join(out_feeds, out_feeds.c.id == out_entries.c.feed)
        .where((out_feeds.c.peer == peer) | (inbox.c.origin == peer))
        .distinct()
    )
    pairs = tx.execute(passed).all()
    return {NodeId(name) for pair in pairs for name in pair} - {peer}


def _note(tx: Connection, peer: NodeId, version: int, place: feeds.Place) -> None:
    names = {"peer": peer, "version": version}
    tx.execute(delete(card_deliveries).filter_by(**names))  # of an earlier epoch
    tx.execute(insert(card_deliveries).values(feed=place.feed, seq=place.seq, **names))
