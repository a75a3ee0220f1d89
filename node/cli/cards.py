"""Cards of nodes as commands read, show and tell them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from node.cli import exits, screen, session

if TYPE_CHECKING:
    from federation.keyring import Card

_PURPOSE = {
    "issue": "issue: signs advisories and agreements",
    "feed": "feed: signs what is sent",
    "receipt": "receipt: acknowledges what came",
    "tls": "tls: protects connections",
}


def read_card_file(path: Path) -> "tuple[bytes, Card]":
    """A card that came as a file. Raises UsageError or RemoteError, naming the file."""
    from federation.keyring import for_newcomers, open_card
    from federation.limits import MAX_CARD_BYTES

    data = session.read_file(path, MAX_CARD_BYTES)
    with exits.reading(path):
        return data, open_card(for_newcomers(data))  # one that changed root keys is signed by the earlier ones too


def show_card(card: "Card") -> None:
    """A card on stdout, for people."""
    from node.peering.peers import fingerprint_words

    screen.facts(
        [
            ("Node", card.node),
            ("Jurisdiction", card.jurisdiction),
            ("Address", card.endpoint),
            ("Card", f"version {card.version} of {screen.cell(card.issued_at)}"),
            ("Root keys", f"{len(card.roots.keys)}, of which {card.roots.threshold} must sign a card"),
            ("Fingerprint", fingerprint_words(card.roots)),
        ]
    )
    rows = [(_PURPOSE[key.role], key.kid, key.valid_from, key.valid_until) for key in card.keys]
    screen.table(("Key for", "Id", "Valid from", "Valid until"), rows)


def card_data(card: "Card") -> dict[str, Any]:
    """A card for scripts."""
    from node.peering.peers import fingerprint_words

    return {
        "node": card.node,
        "jurisdiction": card.jurisdiction,
        "endpoint": card.endpoint,
        "version": card.version,
        "issued_at": card.issued_at,
        "protocols": card.protocols,
        "root_keys": len(card.roots.keys),
        "root_threshold": card.roots.threshold,
        "fingerprint": fingerprint_words(card.roots),
        "keys": [
            {"role": key.role, "kid": key.kid, "valid_from": key.valid_from, "valid_until": key.valid_until}
            for key in card.keys
        ],
    }
