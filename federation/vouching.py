"""Which cards in a file from somebody else are believed, by cards that were got in another way.

A card holds by itself; that it is the right one takes somebody who vouches for it. A card is believed if it was given,
if it has the root keys of one that was given, or if it follows one: newer, and signed by that one's root keys, card by
card. An older card under other root keys is not: whoever made those could have signed a newer card with them as well.
For nodes whose cards need not be given, the file alone may vouch, and the result tells.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from federation import keyring
from federation.errors import KeyringError, MalformedError, RemoteError, SignatureError, UsageError
from federation.keyring import Card, OnlineKey, RootSet
from federation.model import NodeId, Role


class How(StrEnum):
    """Why a card in a file is believed."""

    GIVEN = "given"  # it is a card that was given
    SAME_ROOTS = "same roots"  # signed by the root keys of a card that was given
    FOLLOWS = "follows"  # newer, and signed by the root keys of one that is believed
    FILE = "file alone"  # nothing else vouches for it


@dataclass(frozen=True, slots=True)
class Vouched:
    """A card in a file, and why it is believed."""

    card: Card
    how: How


@dataclass(frozen=True, slots=True)
class Cards:
    """The cards of a file with the keys on them, by node and version."""

    vouched: tuple[Vouched, ...]

    def keys(self, node: NodeId, role: Role) -> tuple[OnlineKey, ...]:
        """Every key of that role; one that stands on several cards comes with the validity on each."""
        return tuple(key for v in self.vouched if v.card.node == node for key in v.card.keys if key.role is role)

    def issue_key(self, node: NodeId, kid: str, fits: Callable[[OnlineKey], bool] = lambda _: True) -> bytes:
        """The `issue` key of that id, if it fits. Raises KeyringError."""
        for key in self.keys(node, Role.ISSUE):
            if key.kid == kid and fits(key):
                return key.public
        raise KeyringError(f"no card in the file has such an issue key of {node} for that time")


def vouch(documents: Sequence[bytes], given: Sequence[bytes], needed: Collection[NodeId]) -> Cards:
    """The cards `documents`, each with why it is believed, by the cards `given`.

    (1) each holds by itself; (2) they stand by node and version, each once; (3) no version of a card has two contents;
    (4) a card of every node of `needed` is given, (5) and every card of these is believed.
    Raises UsageError at (4), else MalformedError, TooLargeError or SignatureError.
    """
    anchors, cards = [_open(document) for document in given], [_open(document) for document in documents]  # (1)
    names = [(card.node, card.version) for card in cards]
    if names != sorted(set(names)):  # (2)
        raise MalformedError("the cards in the file are not in order, or one stands twice")
    one = {(card.node, card.version): card for card in cards}
    if any(one.setdefault((card.node, card.version), card) != card for card in anchors):  # (3)
        raise SignatureError("two cards of one node have one version and two contents")
    for node in sorted(needed):
        if all(card.node != node for card in anchors):  # (4)
            raise UsageError(f"give the card of {node} as well: --card FILE; a file cannot vouch for itself")
    believed = _believed(cards, documents, anchors)
    for card in cards:
        if card.node in needed and card not in believed:  # (5)
            raise SignatureError(
                f"card {card.version} of {card.node} in the file does not follow from the card that was given: if that"
                " node has changed its root keys since, give the card that was current then as well"
            )
    return Cards(tuple(Vouched(card, believed.get(card, How.FILE)) for card in cards))


def _believed(cards: Sequence[Card], documents: Sequence[bytes], anchors: Sequence[Card]) -> dict[Card, How]:
    found = {card: How.GIVEN for card in cards if card in anchors}
    roots = {(card.node, card.roots) for card in anchors}
    found |= {card: How.SAME_ROOTS for card in cards if card not in found and (card.node, card.roots) in roots}
    known, before = [*anchors, *found], -1
    while before != len(found):  # one card that follows may lead to the next
        before = len(found)
        for card, document in zip(cards, documents, strict=True):
            if card not in found and any(_follows(document, card, other) for other in known):
                found[card] = How.FOLLOWS
                known.append(card)
    return found


def _follows(document: bytes, card: Card, other: Card) -> bool:
    if other.node != card.node:
        return False
    return other.roots == card.roots or (other.version < card.version and _signed_by(document, other.roots))


def _signed_by(document: bytes, roots: RootSet) -> bool:
    try:
        keyring.open_card(document, roots)
    except RemoteError:
        return False
    return True


def _open(document: bytes) -> Card:
    """The card, which holds by itself. Signatures of earlier roots are left out of account here."""
    return keyring.open_card(keyring.for_newcomers(document))
