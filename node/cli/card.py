"""`apostille card`: the card by which peers know a node."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli import exits, make, screen, session

if TYPE_CHECKING:
    from federation.keyring import Card
    from node.owncard import OwnCard

app = make.group(
    "The card by which peers know a node: its name, jurisdiction, address and public keys, signed by its root keys.",
    "apostille card show",
    "apostille card export --out cert.fr.example.json",
)


@make.command(app, "show", "apostille card show", "apostille card show cert.de.example.json")
def show(
    file: Annotated[Path | None, typer.Argument(help="A card as a file; this node's own card without it.")] = None,
    as_json: make.AsJson = False,
) -> None:
    """Shows a card: who it is, where it is reached, its keys and how long they are valid, its fingerprint.

    A card that is shown here holds together by itself; that it belongs to who it names is for people to find out, by
    comparing the fingerprint by voice.
    """
    card = read_card_file(file)[1] if file is not None else _own().card
    if as_json:
        screen.emit(card_data(card))
        return
    show_card(card)


@make.command(app, "export", "apostille card export --out cert.fr.example.json", "apostille card export > card.json")
def export(
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write it; stdout without it.")] = None,
) -> None:
    """Writes this node's card as a file for peers. It holds no secret."""
    from federation.keyring import for_newcomers

    data = for_newcomers(_own().document)
    if out is None:
        screen.raw(data)
        return
    session.write_file(out, data)
    screen.note(f"Wrote {out}. Its receivers enrol it with: apostille peer enrol {out.name}")


def read_card_file(path: Path) -> "tuple[bytes, Card]":
    """A card that came as a file. Raises UsageError or RemoteError, naming the file."""
    from federation.keyring import open_card
    from federation.limits import MAX_CARD_BYTES

    data = session.read_file(path, MAX_CARD_BYTES)
    with exits.reading(path):
        return data, open_card(data)


def show_card(card: "Card") -> None:
    """A card on stdout, for people."""
    from node.peers import fingerprint_words

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
    from node.peers import fingerprint_words

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


_PURPOSE = {
    "issue": "issue: signs advisories and agreements",
    "feed": "feed: signs what is sent",
    "receipt": "receipt: acknowledges what came",
    "tls": "tls: protects connections",
}


def _own() -> "OwnCard":
    from node.main import open_database, own_card, read_settings

    home = session.home()
    chosen = read_settings(home)
    return own_card(open_database(home, chosen), chosen)
