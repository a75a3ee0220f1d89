"""`apostille peer`: enrolling, listing, distrusting other nodes, and trusting them again."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from federation.errors import UsageError
from federation.model import Role
from node.cli import epoch, exits, incident, make, screen, session
from node.cli.cards import card_data, read_card_file, show_card

if TYPE_CHECKING:
    from federation.keyring import Card
    from node.home.context import Node

app = make.group(
    "Other nodes whose cards are enrolled here.",
    "apostille peer enrol cert.de.example.json",
    "apostille peer list",
)
app.add_typer(incident.app, name="incident")
app.add_typer(epoch.app, name="epoch")


@make.command(
    app,
    "enrol",
    "apostille peer enrol cert.de.example.json",
    'apostille peer enrol card.json --fingerprint "twelve words that their operator read to you ..."',
)
def enrol(
    file: Annotated[Path, typer.Argument(help="The peer's card, as `apostille card export` wrote it.")],
    fingerprint: Annotated[
        str | None, typer.Option(metavar="WORDS", help="The twelve words as the peer's operator read them to you.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="The fingerprint was compared by other means.")] = False,
    keys_only: Annotated[
        bool,
        typer.Option("--keys-only", help="Know its card to verify what others pass on for it; exchange nothing."),
    ] = False,
    as_json: make.AsJson = False,
) -> None:
    """Enrols a peer. Its card is a file; that the file is theirs, you find out by comparing twelve words by voice.

    A newer card of a peer that is known is taken without comparing, if the same root keys signed it and the peer is
    still in the same country.
    """
    from node.peering import peers

    data, card = read_card_file(file)
    node = session.node()
    if fingerprint is not None or not _known(node, card):
        _compare(card, fingerprint, yes)
    with exits.reading(file):
        peers.enrol(node, data, direct=not keys_only)
    session.wake()
    if as_json:
        screen.emit(card_data(card))
        return
    if keys_only:
        screen.note(f"The card of {card.node} is known, version {card.version}: what it signed can be verified here.")
        return
    screen.note(
        f"Enrolled {card.node}, card version {card.version}. Nothing is shared with it before an agreement is in force."
    )
    screen.note(f"Next: apostille agreement propose FILE, with {card.node} among its parties.")


@make.command(app, "list", "apostille peer list", "apostille peer list --json")
def list_peers(as_json: make.AsJson = False) -> None:
    """Lists every peer, the distrusted ones too."""
    from node.peering import peers

    node = session.node()
    found, changed = peers.all_peers(node), peers.root_changes(node)
    if as_json:
        screen.emit(
            [
                {
                    **card_data(p.card),
                    "trusted": p.trusted,
                    "direct": p.direct,
                    "enrolled_at": p.enrolled_at,
                    "roots_changed_at": changed.get(p.card.node),
                }
                for p in found
            ]
        )
        return
    if not found:
        screen.note("No peer is enrolled. Take one in with: apostille peer enrol CARD")
        return
    screen.table(
        ("Peer", "Country", "Address", "Trust", "Exchange", "Card", "Keys until", "Enrolled"),
        [
            (
                p.card.node,
                p.card.jurisdiction,
                p.card.endpoint,
                "trusted" if p.trusted else "DISTRUSTED",
                "direct" if p.direct else "card only",
                p.card.version,
                min(max(k.valid_until for k in p.card.keys if k.role is role) for role in Role),
                p.enrolled_at,
            )
            for p in found
        ],
    )
    for p in found:
        if p.card.node in changed:
            words = peers.fingerprint_words(p.card.roots)
            screen.paragraph(
                f"{p.card.node} has other root keys since {screen.cell(changed[p.card.node])}, by leave of the earlier"
                f" ones. Their fingerprint: {words}"
            )


@make.command(app, "distrust", "apostille peer distrust cert.de.example")
def distrust(
    peer: Annotated[str, typer.Argument(metavar="NODE", help="The peer's name, as `apostille peer list` shows it.")],
) -> None:
    """From now on, nothing is taken from this peer or given to it. Trusting it again takes two people."""
    from federation.model import NodeId
    from node.peering import peers

    peers.distrust(session.node(), NodeId(peer))
    session.wake()
    screen.note(f"{peer} is distrusted: nothing is exchanged with it any more.")


@make.command(app, "trust", 'apostille peer trust cert.de.example --reason "new keys, compared by telephone"')
def trust(
    peer: Annotated[str, typer.Argument(metavar="NODE", help="The peer's name, as `apostille peer list` shows it.")],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; the second person reads it.")],
) -> None:
    """Asks that a distrusted peer be trusted again. It takes two people: a second one approves the request.

    Exit code 10 when it is noted; nothing has changed then.
    """
    from federation.model import NodeId
    from node.peering import peers

    peers.trust_again(session.node(), NodeId(peer), reason)


def _known(node: "Node", card: "Card") -> bool:
    from node.peering import peers

    return any(
        (p.card.node, p.card.roots, p.card.jurisdiction) == (card.node, card.roots, card.jurisdiction)
        for p in peers.all_peers(node)
    )


def _compare(card: "Card", fingerprint: str | None, yes: bool) -> None:
    """The one step that no program can do: are these the right root keys? Raises UsageError or RefusedError."""
    from node.peering.peers import fingerprint_words

    words = fingerprint_words(card.roots)
    if fingerprint is not None:
        if fingerprint.lower().split() != words.split():
            raise exits.RefusedError(f"the card of {card.node} has another fingerprint than that: it was not enrolled")
        return
    if yes:
        return
    if not screen.is_person():
        raise UsageError('nobody can be asked here: give --fingerprint "twelve words", or --yes if they were compared')
    show_card(card)
    screen.note("")
    screen.note(f"Telephone {card.node}, at a number that did not come with the card, and let them read their words:")
    screen.note(f"    {words}")
    if not typer.confirm("Are they the same twelve words?", err=True):
        raise exits.RefusedError(f"{card.node} was not enrolled; tell them that somebody sent you another card")
