"""`apostille init`: makes a node."""

from pathlib import Path
from typing import Annotated

import typer

from federation.errors import MalformedError, UsageError
from node.cli import make, screen, session

app = make.single()


@make.command(
    app,
    "init",
    "apostille init --id cert.fr.example --jurisdiction FR --listen 192.0.2.7:7443",
    "apostille --home /tmp/practice init --id cert.de.example --jurisdiction DE --listen 0",
)
def init(
    node_name: Annotated[
        str,
        typer.Option("--id", metavar="NAME", help="The node's name, a lower-case DNS name such as cert.fr.example."),
    ],
    jurisdiction: Annotated[
        str, typer.Option(metavar="CC", help="The country whose law this node lives under, such as FR.")
    ],
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where the server binds; 0 takes a free port of this machine.")
    ],
    advertise: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="The address that peers dial, if it is another one.")
    ] = None,
    roots: Annotated[int, typer.Option(help="How many root keys; they sign the node's card and nothing else.")] = 3,
    threshold: Annotated[int, typer.Option(help="How many of them must sign a card.")] = 2,
    database: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="An empty PostgreSQL database, without its password; else a file in the home."
        ),
    ] = None,
    law_pack: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A law pack to decide by; all that ship, unless some are named."),
    ] = None,
    as_json: make.AsJson = False,
) -> None:
    """Makes a node: its keys, its card, its settings and its database, in a folder that only you can read."""
    from config.settings import database_url, known_country
    from federation.model import node_id
    from node.main import PASSPHRASE_FILE, init_home
    from node.peering.peers import fingerprint_words

    try:
        name = node_id(node_name)
    except MalformedError as e:
        raise UsageError(f"--id: {e}") from e
    try:
        country = known_country(jurisdiction)
    except MalformedError as e:
        raise UsageError(f"--jurisdiction: {e}") from e
    home = session.home()
    bound = session.bind_address(listen)
    endpoint = session.reachable_address(advertise or bound)
    packs = tuple(law_pack or session.law_packs())
    server = None if database is None else database_url(database, "--database")
    card = init_home(home, name, country, bound, endpoint, roots=roots, threshold=threshold, packs=packs, server=server)
    words = fingerprint_words(card.roots)
    own_passphrase = (home / PASSPHRASE_FILE).is_file()
    if as_json:
        screen.emit(
            {
                "home": str(home.absolute()),
                "node": card.node,
                "jurisdiction": card.jurisdiction,
                "listen": bound,
                "advertise": endpoint,
                "law_packs": packs,
                "root_keys": roots,
                "root_threshold": threshold,
                "fingerprint": words,
            }
        )
        return
    screen.facts(
        [
            ("Node", card.node),
            ("Jurisdiction", card.jurisdiction),
            ("Listens on", bound),
            ("Peers dial", endpoint),
            ("Law packs", packs),
            ("Fingerprint", words),
        ]
    )
    _say_what_next(home, roots, threshold, own_passphrase)


def _say_what_next(home: Path, roots: int, threshold: int, own_passphrase: bool) -> None:
    prefix = "apostille" if home == session.DEFAULT_HOME.expanduser() else f"apostille --home {home}"
    screen.note("")
    screen.note(f"Keys: {home}/keys holds those in daily use; {home}/roots holds {roots} root keys.")
    screen.note(f"      Move the root keys offline: {threshold} of them can speak for this node for ever.")
    if own_passphrase:
        screen.note(f"      {home}/passphrase opens them. Keep a copy elsewhere; back the folder up as a whole.")
    screen.note("The fingerprint is what you read to a peer by telephone, so that it knows the card is yours.")
    screen.note(
        "You hold every post here. Some acts take a second person: name people in apostille.yaml (apostille people)."
    )
    screen.note("Next:")
    screen.note(f"  {prefix} card export --out card.json       give this file to your peers")
    screen.note(f"  {prefix} peer enrol THEIR-CARD.json        take theirs in")
    screen.note(f"  {prefix} serve                             run the node")
