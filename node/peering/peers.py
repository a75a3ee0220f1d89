"""Peers: enrolling their cards, distrusting them, and the keyring that follows.

A card is self-signed by its own roots; that those roots are the right ones is for people, who compare the
fingerprint's words by voice. A newer card of a peer that is known must be signed by the roots that are known, whether
it comes as a file or through a feed. A key that it drops still speaks for what stood in a checkpoint that was held
before. Distrust is one person's act and takes effect at the next call; trusting again takes two (I13).
"""

from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, Final, NoReturn

from mnemonic import Mnemonic
from sqlalchemy import Connection, Row, insert, select, update

from federation.checkpoint import Checkpoint, origin_line
from federation.errors import ConflictError, KeyringError, NotFoundError, UsageError
from federation.keyring import Card, Keyring, RootSet, for_newcomers, open_card, unverified
from federation.merkle import EMPTY
from federation.model import SPOKEN_VERSIONS, NodeId, Role
from node.home import owncard
from node.home.certificates import check_certificate
from node.home.context import Node
from node.home.people import Post
from node.records import approvals
from node.records.approvals import Act, Request
from node.store.database import read, record, write
from node.store.tables import in_feeds, key_floors, out_feeds, peer_cards, peers

FIRST_EPOCH = 1
NOTHING_SIGNED: Final = bytes(16)  # in place of the start to which a receiver has shown its newest head


@dataclass(frozen=True, slots=True)
class Peer:
    """A node whose card is enrolled. Not `direct`: its card is known, but nothing is exchanged with it directly."""

    card: Card
    trusted: bool
    direct: bool
    enrolled_at: datetime


@dataclass(frozen=True, slots=True)
class Floor:
    """A key that a newer card dropped: it still speaks for entries of one feed below `size`."""

    node: NodeId
    kid: str
    public: bytes
    size: int


def fingerprint_words(roots: RootSet) -> str:
    """The fingerprint of a root set as twelve words of the BIP 39 list, to be compared by voice."""
    return Mnemonic("english").to_mnemonic(roots.fingerprint())


def enrol(node: Node, data: bytes, *, direct: bool = True) -> Card:
    """Enrols the card in `data`, or a newer card of a peer that is known.

    Without `direct`, only the card is kept, to verify what others pass on: nothing is exchanged with that node itself.
    Raises RemoteError when the card does not hold, UsageError when it is our own or that of a distrusted peer, and
    ConflictError when it does not follow the one we know.
    """
    node.allow(Post.OPERATOR)
    with write(node.engine) as tx:
        row = tx.execute(select(peers).where(peers.c.node == _name_on(data))).one_or_none()
        if row is not None and not row.trusted:
            raise UsageError(f"{row.node} is distrusted; trusting it again takes two people: apostille peer trust")
        if row is None:
            data = for_newcomers(data)
            card = _checked(node, data, None)
            _enrol(node, tx, card, data, direct=direct)
        else:
            card = take_card(node, tx, data, by=node.actor, people=True)
            if direct and not row.direct:
                tx.execute(update(peers).where(peers.c.node == card.node).values(direct=1))
                _make_feeds(node, tx, card.node)
        record(tx, at=node.clock(), by=node.actor, act="peer.enrol", subject=card.node, detail=f"card {card.version}")
    return card


def take_card(node: Node, tx: Connection, data: bytes, by: str, *, people: bool = False) -> Card:
    """Takes a newer card of a node that is known, by the roots that are known; the very same changes nothing.

    Keys that it drops, or ends sooner, keep speaking for the entries below the newest head that each feed had shown.
    Another jurisdiction is taken only where `people` have looked at the card: by whose law the node lives changes.
    Raises a RemoteError, NotFoundError for a node that is not known, ConflictError for a card that does not follow.
    """
    row = tx.execute(select(peers).where(peers.c.node == _name_on(data))).one_or_none()
    if row is None:
        raise NotFoundError("this is the card of a node that is not enrolled here")
    old = unverified(row.card)
    if unverified(data) == old:  # with the signatures of earlier roots, or without
        return old
    card = _checked(node, data, old.roots)
    if card.version <= old.version:
        raise ConflictError(f"{card.node}: card {card.version} does not follow the enrolled card {old.version}")
    if card.jurisdiction != old.jurisdiction and not people:
        raise ConflictError(
            f"{card.node} moves from {old.jurisdiction} to {card.jurisdiction}: look at its new card, and enrol it as a"
            " file: apostille peer enrol CARD"
        )
    now = node.clock()
    _keep_floors(tx, old, card, now)
    tx.execute(update(peers).where(peers.c.node == card.node).values(card=data, card_version=card.version))
    tx.execute(insert(peer_cards).values(node=card.node, version=card.version, document=data, taken_at=now))
    roots = "" if card.roots == old.roots else ", other root keys"
    record(tx, at=now, by=by, act="peer.card", subject=card.node, detail=f"card {card.version}{roots}")
    return card


def distrust(node: Node, peer: NodeId) -> None:
    """From the next call on, nothing is taken from `peer` or given to it.

    Whoever asked before that it be trusted again did not know of this, and has to ask anew. Raises NotFoundError.
    """
    node.allow(Post.OPERATOR)
    with write(node.engine) as tx:
        if tx.execute(update(peers).where(peers.c.node == peer).values(trusted=0)).rowcount != 1:
            raise NotFoundError(f"no peer is called {peer}; see: apostille peer list")
        approvals.void(node, tx, Act.TRUST, peer, "distrusted again since")
        record(tx, at=node.clock(), by=node.actor, act="peer.distrust", subject=peer)


def trust_again(node: Node, peer: NodeId, reason: str) -> NoReturn:
    """Asks that a distrusted peer be trusted again, which takes a second person.

    Raises AwaitsSecondError once that is noted, NotFoundError, UsageError.
    """
    node.allow(Post.OPERATOR)
    with write(node.engine) as tx:
        row = _known(tx, peer)
        if row.trusted:
            raise UsageError(f"{peer} is trusted; nothing was changed")
        arguments = {
            "peer": peer,
            "card_version": row.card_version,
            "fingerprint": fingerprint_words(unverified(row.card).roots),
        }
        number = approvals.ask(node, tx, Act.TRUST, peer, arguments, _trust_binding(row), reason)
    raise approvals.awaits(node, number)


def carry_out_trust(node: Node, tx: Connection, request: Request) -> None:
    """Trusts the peer again, as it is bound. Raises ConflictError."""
    row = _known(tx, NodeId(request.arguments["peer"]))
    approvals.require_unchanged(request, _trust_binding(row))
    tx.execute(update(peers).where(peers.c.node == row.node).values(trusted=1))
    asked = f"request {request.number}, asked by {request.asked_by}"
    record(tx, at=node.clock(), by=node.actor, act="peer.trust", subject=row.node, detail=asked)


def all_peers(node: Node) -> tuple[Peer, ...]:
    """Every enrolled peer, by node id, distrusted ones too."""
    with read(node.engine) as tx:
        rows = tx.execute(select(peers).order_by(peers.c.node)).all()
    return tuple(Peer(unverified(row.card), bool(row.trusted), bool(row.direct), row.enrolled_at) for row in rows)


def root_changes(node: Node) -> dict[NodeId, datetime]:
    """The peers that have other root keys than those with which they were enrolled, and since when they are known."""
    first: dict[NodeId, RootSet] = {}
    changed: dict[NodeId, tuple[RootSet, datetime]] = {}
    with read(node.engine) as tx:
        rows = tx.execute(select(peer_cards).order_by(peer_cards.c.node, peer_cards.c.version)).all()
    for row in rows:
        name, roots = NodeId(row.node), unverified(row.document).roots
        last = changed[name][0] if name in changed else first.setdefault(name, roots)
        if roots != last:
            changed[name] = (roots, row.taken_at)
    return {name: since for name, (_, since) in changed.items()}


def trusted_card(node: Node, peer: NodeId) -> Card:
    """The card of a peer that is enrolled, trusted, and exchanged with directly. Raises NotFoundError."""
    with read(node.engine) as tx:
        row = _known(tx, peer)
    if not row.trusted:
        raise NotFoundError(f"{peer} is distrusted; nothing is exchanged with it")
    if not row.direct:
        raise NotFoundError(f"of {peer} only the card is known here; to exchange with it: apostille peer enrol CARD")
    return unverified(row.card)


def trusted_cards(tx: Connection) -> dict[NodeId, Card]:
    """The cards of the peers that we exchange with directly and trust."""
    rows = tx.execute(select(peers.c.card).where(peers.c.trusted == 1, peers.c.direct == 1).order_by(peers.c.node))
    return {card.node: card for card in map(unverified, rows.scalars())}


def keyring(node: Node, tx: Connection) -> Keyring:
    """This node's card and those of all trusted peers, direct or not."""
    rows = tx.execute(select(peers.c.node, peers.c.card).where(peers.c.trusted == 1)).all()
    return Keyring({node.id: node.card, **{NodeId(row.node): unverified(row.card) for row in rows}})


def earlier_key(node: Node, tx: Connection, name: NodeId, role: Role, kid: str) -> bytes:
    """A key that any card of `name` ever had, valid or not, for what was verified before. Raises KeyringError."""
    query = select(peer_cards.c.document).where(peer_cards.c.node == name)
    documents = owncard.history(tx) if name == node.id else tx.execute(query).scalars().all()
    for document in documents:
        for key in unverified(document).keys:
            if key.role is role and key.kid == kid:
                return key.public
    raise KeyringError(f"{name} has never had a {role} key of that id")


def floors(tx: Connection, feed: int) -> tuple[Floor, ...]:
    """The dropped keys that still speak for the beginning of a feed."""
    rows = tx.execute(select(key_floors).where(key_floors.c.feed == feed)).all()
    return tuple(Floor(NodeId(row.node), row.kid, row.public, row.size) for row in rows)


def _checked(node: Node, data: bytes, before: RootSet | None) -> Card:
    """The card, fit to be enrolled. Raises a RemoteError, UsageError."""
    card = open_card(data, before)
    if card.node == node.id:
        raise UsageError("this is the card of this node itself")
    if not card.speaks:
        spoken, ours = (", ".join(map(str, versions)) for versions in (card.protocols, SPOKEN_VERSIONS))
        raise UsageError(f"{card.node} speaks protocol version {spoken}, this node {ours}; one must be upgraded")
    for key in card.keys:
        if key.role is Role.TLS:
            check_certificate(key.public, card.node)
    return card


def _enrol(node: Node, tx: Connection, card: Card, data: bytes, *, direct: bool) -> None:
    now = node.clock()
    tx.execute(
        insert(peers).values(
            node=card.node,
            card=data,
            card_version=card.version,
            trusted=1,
            direct=int(direct),
            our_card=node.own.oldest_of_use(tx, now),
            enrolled_at=now,
            enrolled_by=node.actor,
        )
    )
    tx.execute(insert(peer_cards).values(node=card.node, version=card.version, document=data, taken_at=now))
    if direct:
        _make_feeds(node, tx, card.node)


def _make_feeds(node: Node, tx: Connection, peer: NodeId) -> None:
    open_out_feed(node, tx, peer, FIRST_EPOCH)
    open_in_feed(node, tx, peer, FIRST_EPOCH)


def open_out_feed(node: Node, tx: Connection, peer: NodeId, epoch: int) -> None:
    """Begins the feed of `epoch` to `peer`, empty. Nothing was ever signed in it, which a restore takes back."""
    tx.execute(
        insert(out_feeds).values(
            peer=peer,
            epoch=epoch,
            origin=origin_line(node.id, peer, epoch),
            size=0,
            edge=EMPTY.encode(),
            receipt_size=0,
            shown_to=NOTHING_SIGNED,
            opened_at=node.clock(),
        )
    )


def open_in_feed(node: Node, tx: Connection, peer: NodeId, epoch: int) -> None:
    """Begins what is held of the feed of `epoch` from `peer`: nothing yet."""
    tx.execute(
        insert(in_feeds).values(
            peer=peer,
            epoch=epoch,
            origin=origin_line(peer, node.id, epoch),
            size=0,
            edge=EMPTY.encode(),
            head=b"",
            newest=b"",
            pending=[],
            cosigned=0,
            restored=0,
        )
    )


def _keep_floors(tx: Connection, old: Card, new: Card, now: datetime) -> None:
    """For each valid `issue` key that goes or ends sooner: up to where every feed is covered by a head held before."""
    ends = {key.kid: key.valid_until for key in new.keys if key.role is Role.ISSUE}
    valid = (key for key in old.keys if key.role is Role.ISSUE and key.valid_at(now))
    lost = [key for key in valid if key.kid not in ends or ends[key.kid] < key.valid_until]
    feeds = tx.execute(select(in_feeds.c.id, in_feeds.c.newest)).all() if lost else ()
    for key in lost:
        for feed in feeds:
            size = Checkpoint.of(feed.newest).size if feed.newest else 0
            names = {"node": old.node, "kid": key.kid, "feed": feed.id}
            if tx.execute(update(key_floors).filter_by(**names).values(size=size)).rowcount == 0:
                tx.execute(insert(key_floors).values(public=key.public, size=size, **names))


def _known(tx: Connection, peer: NodeId) -> Row[Any]:
    row = tx.execute(select(peers).where(peers.c.node == peer)).one_or_none()
    if row is None:
        raise NotFoundError(f"no peer is called {peer}; see: apostille peer list")
    return row


def _trust_binding(row: Row[Any]) -> bytes:
    return approvals.bind(row.node, sha256(row.card).digest(), str(row.trusted))


def _name_on(data: bytes) -> NodeId:
    """The node that a card names, unverified. Raises MalformedError or TooLargeError."""
    return unverified(data).node
