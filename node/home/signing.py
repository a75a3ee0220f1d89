"""Which of this node's own keys signs what, while a new card is on its way to its peers.

A card in force may name several valid keys of one role. What one peer has to verify is signed by a key of the newest
card that this peer is known to hold; what everybody has to, by a key that everybody is known to hold. So a new key is
used as soon as it can be verified, and no sooner, as long as the old one is valid. Notes can carry several signatures,
of which one that is known is enough: until a peer is known to hold the current card, heads and receipts for it carry
those of the old keys besides, a dropped one included if it knows no other. What a peer holds is told by its cursor.

What a stolen key signs besides the right one is worth no more than what its thief can sign.
"""

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Final

from sqlalchemy import Connection, bindparam, select

from federation.errors import KeyringError
from federation.keyring import Card, OnlineKey, unverified
from federation.model import NodeId, Role
from node.home.context import Node
from node.home.keys import Signer, TlsIdentity, newest_first
from node.store.tables import own_cards, peers

OVERLAP: Final = timedelta(days=14)  # for which an old key stays valid beside a new one: a peer may be away that long
_HELD: Final = (  # asked several times for each page, and made only once
    select(own_cards.c.document)
    .join(peers, peers.c.our_card >= own_cards.c.version)
    .where(peers.c.node == bindparam("peer"))
    .order_by(own_cards.c.version.desc())
    .limit(1)
)
_MOST_BESIDES: Final = 5  # old keys that sign a note besides: with its timestamps, twelve of the sixteen lines


def signer_for(node: Node, tx: Connection, peer: NodeId, role: Role) -> Signer:
    """The key of `role` for what goes to `peer`. Raises LockedError, UsageError."""
    return node.keys.signer_of(key_for(node, tx, peer, role))


def signer_for_all(node: Node, tx: Connection, role: Role) -> Signer:
    """The key of `role` for what any peer may have to verify: cores, agreements. Raises LockedError, UsageError."""
    return node.keys.signer_of(key_for_all(node, tx, role))


def signers_for(node: Node, tx: Connection, peer: NodeId, role: Role) -> tuple[Signer, ...]:
    """The keys of `role` that sign a note for `peer`: the newest one first, alone once the peer holds its card.

    Raises LockedError, UsageError.
    """
    newest, held = node.keys.signer(role, node.card, node.clock()), held_card(tx, peer)
    if held is None or held.version >= node.card.version:
        return (newest,)
    besides = [key for key in newest_first(_valid(node.card, role, node)) if key.kid != newest.kid][:_MOST_BESIDES]
    known = newest_first(_valid(held, role, node))
    if known and not {key.kid for key in known} & {newest.kid, *(key.kid for key in besides)}:
        besides = [*besides[: _MOST_BESIDES - 1], known[0]]
    return (newest, *(node.keys.signer_of(key) for key in besides))


def tls_for(node: Node, tx: Connection, peer: NodeId) -> TlsIdentity:
    """What this node presents when it calls `peer`. Raises LockedError, UsageError."""
    return node.keys.tls_of(key_for(node, tx, peer, Role.TLS))


def tls_for_all(node: Node, tx: Connection) -> TlsIdentity:
    """What this node presents to whoever calls: a server has one certificate. Raises LockedError, UsageError."""
    return node.keys.tls_of(key_for_all(node, tx, Role.TLS))


def key_for(node: Node, tx: Connection, peer: NodeId, role: Role) -> OnlineKey:
    """The key of `role` that one peer is known to be able to verify. Raises UsageError when none is valid."""
    return node.keys.chosen(_usable(node, (held_card(tx, peer),), role), role, node.clock())


def key_for_all(node: Node, tx: Connection, role: Role) -> OnlineKey:
    """The key of `role` that every trusted peer is known to be able to verify.

    For a new `issue` key nobody is waited for longer than OVERLAP: entries are read in their order, so a peer that
    comes back takes the card first. Raises UsageError when no key is valid.
    """
    now, newest = node.clock(), newest_first(_valid(node.card, role, node))[:1]
    settled = role is Role.ISSUE and all(key.valid_from + OVERLAP <= now for key in newest)
    return node.keys.chosen(node.card if settled else _usable(node, _held_by_all(tx), role), role, now)


def held_card(tx: Connection, peer: NodeId) -> Card | None:
    """The newest card of this node that `peer` is known to hold; None when it is no card that is kept here."""
    document = tx.execute(_HELD, {"peer": peer}).scalar()
    return None if document is None else unverified(document)


def _held_by_all(tx: Connection) -> tuple[Card | None, ...]:
    found = tx.execute(select(peers.c.node).where(peers.c.trusted == 1, peers.c.direct == 1)).scalars().all()
    return tuple(held_card(tx, NodeId(peer)) for peer in found)


def _usable(node: Node, held: Iterable[Card | None], role: Role) -> Card:
    """The current card with those keys of `role` that stand on every one of `held` too.

    A card that shares none with it is left out of account: whoever holds no other needs the current one as a file.
    """
    keys = _valid(node.card, role, node)
    for card in held:
        if card is not None and card.version < node.card.version:
            known = {key.kid for key in card.keys}
            keys = tuple(key for key in keys if key.kid in known) or keys
    return replace(node.card, keys=keys) if keys else node.card


def _valid(card: Card, role: Role, node: Node) -> tuple[OnlineKey, ...]:
    """The keys of `role` that are valid now and whose private halves lie here."""
    try:
        valid = card.valid_keys(role, node.clock())
    except KeyringError:
        return ()
    return tuple(key for key in valid if node.keys.holds(role, key.kid))
