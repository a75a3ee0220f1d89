"""Peers: enrolling their cards, distrusting them, and the keyring that follows.

A card is self-signed by its own roots; that those roots are the right ones is for people, who compare the
fingerprint's words by voice. A card of a peer that is known already must be signed by the roots that are known.
Distrust is one person's act and takes effect at the next call; trusting again takes two people and is not offered
here.
"""

from dataclasses import dataclass
from datetime import datetime

from mnemonic import Mnemonic
from sqlalchemy import Connection, insert, select, update

from federation.checkpoint import origin_line
from federation.errors import ConflictError, NotFoundError, UsageError
from federation.keyring import PROTOCOL_VERSION, Card, Keyring, RootSet, open_card
from federation.merkle import EMPTY
from federation.model import NodeId, Role
from node.certificates import check_certificate
from node.context import Node
from node.store.database import read, record, write
from node.store.tables import in_feeds, out_feeds, peers

EPOCH = 1


@dataclass(frozen=True, slots=True)
class Peer:
    """A node whose card is enrolled."""

    card: Card
    trusted: bool
    enrolled_at: datetime


def fingerprint_words(roots: RootSet) -> str:
    """The fingerprint of a root set as twelve words of the BIP 39 list, to be compared by voice."""
    return Mnemonic("english").to_mnemonic(roots.fingerprint())


def enrol(node: Node, data: bytes) -> Card:
    """Enrols the card in `data`, or a newer card of a peer that is known.

    Raises RemoteError when the card does not hold, UsageError when it is our own, older than the one we know, or
    signed by other roots.
    """
    card = open_card(data)
    if card.node == node.id:
        raise UsageError("this is the card of this node itself")
    if PROTOCOL_VERSION not in card.protocols:
        spoken = ", ".join(map(str, card.protocols))
        raise UsageError(
            f"{card.node} speaks protocol version {spoken}, this node {PROTOCOL_VERSION}; one must be upgraded"
        )
    for key in card.keys:
        if key.role is Role.TLS:
            check_certificate(key.public, card.node)
    now = node.clock()
    with write(node.engine) as tx:
        row = tx.execute(select(peers).where(peers.c.node == card.node)).one_or_none()
        if row is None:
            tx.execute(
                insert(peers).values(
                    node=card.node,
                    card=data,
                    card_version=card.version,
                    trusted=1,
                    enrolled_at=now,
                    enrolled_by=node.actor,
                )
            )
            _make_feeds(tx, node.id, card.node)
        elif not row.trusted:
            raise UsageError(f"{card.node} is distrusted; trusting it again takes two people")
        elif row.card != data:
            _check_successor(open_card(row.card), card)
            tx.execute(update(peers).where(peers.c.node == card.node).values(card=data, card_version=card.version))
        record(tx, at=now, by=node.actor, act="peer.enrol", subject=card.node, detail=f"card {card.version}")
    return card


def distrust(node: Node, peer: NodeId) -> None:
    """From the next call on, nothing is taken from `peer` or given to it. Raises NotFoundError."""
    with write(node.engine) as tx:
        if tx.execute(update(peers).where(peers.c.node == peer).values(trusted=0)).rowcount != 1:
            raise NotFoundError(f"no peer is called {peer}; see: apostille peer list")
        record(tx, at=node.clock(), by=node.actor, act="peer.distrust", subject=peer)


def all_peers(node: Node) -> tuple[Peer, ...]:
    """Every enrolled peer, by node id, distrusted ones too."""
    with read(node.engine) as tx:
        rows = tx.execute(select(peers).order_by(peers.c.node)).all()
    return tuple(Peer(open_card(row.card), bool(row.trusted), row.enrolled_at) for row in rows)


def trusted_card(node: Node, peer: NodeId) -> Card:
    """The card of a peer that is enrolled and trusted. Raises NotFoundError."""
    with read(node.engine) as tx:
        row = tx.execute(select(peers.c.card, peers.c.trusted).where(peers.c.node == peer)).one_or_none()
    if row is None:
        raise NotFoundError(f"no peer is called {peer}; see: apostille peer list")
    if not row.trusted:
        raise NotFoundError(f"{peer} is distrusted; nothing is exchanged with it")
    return open_card(row.card)


def keyring(node: Node, tx: Connection) -> Keyring:
    """This node's card and those of all trusted peers."""
    rows = tx.execute(select(peers.c.node, peers.c.card).where(peers.c.trusted == 1)).all()
    return Keyring({node.id: node.card, **{NodeId(row.node): open_card(row.card) for row in rows}})


def _make_feeds(tx: Connection, me: NodeId, peer: NodeId) -> None:
    edge = EMPTY.encode()
    tx.execute(
        insert(out_feeds).values(peer=peer, origin=origin_line(me, peer, EPOCH), size=0, edge=edge, receipt_size=0)
    )
    tx.execute(
        insert(in_feeds).values(
            peer=peer, origin=origin_line(peer, me, EPOCH), size=0, edge=edge, head=b"", newest=b"", pending=[]
        )
    )


def _check_successor(old: Card, new: Card) -> None:
    if new.roots != old.roots:
        raise UsageError(
            f"{new.node}: this card has other root keys than the enrolled one; compare fingerprints by voice"
        )
    if new.version <= old.version:
        raise ConflictError(f"{new.node}: card {new.version} does not follow the enrolled card {old.version}")
