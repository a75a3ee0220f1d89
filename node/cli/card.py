"""`apostille card`: the card by which peers know a node."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from federation.errors import NotFoundError, UsageError
from node.cli import exits, key, make, screen, session
from node.cli.cards import card_data, show_card

if TYPE_CHECKING:
    from federation.keyring import Card
    from node.home.owncard import OwnCard

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
    comparing the fingerprint by voice. A file from `--prepare` is shown as well, with the signatures that it lacks.
    """
    card, missing = _read_any(file) if file is not None else (_own().card, 0)
    if as_json:
        screen.emit(card_data(card))
        return
    show_card(card)
    if missing:
        screen.note(f"Not signed yet: {missing} of {card.roots.threshold} signatures of its own root keys are missing.")


@make.command(
    app,
    "export",
    "apostille card export --out cert.fr.example.json",
    "apostille card export > card.json",
    "apostille card export --version 5 --out roots-changed.json",
)
def export(
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write it; stdout without it.")] = None,
    version: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="An earlier card, with all its signatures: for a peer that missed a change of root keys."
        ),
    ] = None,
) -> None:
    """Writes this node's card as a file for peers. It holds no secret."""
    from federation.keyring import for_newcomers

    data = for_newcomers(_own().document) if version is None else _earlier(version)
    if out is None:
        screen.raw(data)
        return
    session.write_file(out, data)
    screen.note(f"Wrote {out}. Its receivers enrol it with: apostille peer enrol {out.name}")


@make.command(
    app,
    "sign",
    "apostille card sign card-to-sign.json --roots /media/root-1",
    "apostille card sign new-roots.json --roots /media/old-root-1 --hand-over",
)
def sign(
    file: Annotated[Path, typer.Argument(help="The card, as --prepare wrote it, or with signatures already.")],
    roots: Annotated[Path, typer.Option(metavar="DIR", help="Where the root keys lie: files called root-*.pem.")],
    salt: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The node's keys/salt, if no copy lies beside the root keys.")
    ] = None,
    passphrase: Annotated[
        Path | None,
        typer.Option("--passphrase-file", metavar="FILE", help="What opens the root keys; else it is asked."),
    ] = None,
    hand_over: Annotated[
        bool,
        typer.Option("--hand-over", help="Sign with root keys that the card does not name: they are replaced by it."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write it; over the file without it.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="It was looked at: do not ask.")] = False,
    as_json: make.AsJson = False,
) -> None:
    """Signs a card with root keys, on the machine where they are kept. It needs no home.

    Signatures are added to those that are there, so the file can go from one root key to the next.
    """
    from federation.limits import MAX_CARD_BYTES
    from node.home import prepared
    from node.home.keys import offline_roots

    data = session.read_file(file, MAX_CARD_BYTES)
    with exits.reading(file):
        card, *_ = prepared.read(data)
        _look_at(card, yes)
        done = prepared.sign(data, offline_roots(roots, salt, _passphrase(passphrase)), hand_over=hand_over)
    session.write_file(out or file, done)
    _, count, others = prepared.read(done)
    if as_json:
        screen.emit({**card_data(card), "signatures": count, "by_others": others, "file": str(out or file)})
        return
    screen.note(f"Wrote {out or file}: it has {count} of the {card.roots.threshold} root signatures that it needs.")
    if others:
        screen.note(f"{others} other root keys have signed as well: as many must as the card before demands.")
    if count >= card.roots.threshold:
        screen.note(f"Where the node runs: apostille card install {(out or file).name}")


@make.command(
    app,
    "install",
    "apostille card install card-to-sign.json",
    'apostille card install new-roots.json --reason "one root key was lost"',
)
def install(
    file: Annotated[Path, typer.Argument(help="The signed card.")],
    reason: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Why the root keys change; the second person reads it.")
    ] = None,
    as_json: make.AsJson = False,
) -> None:
    """Puts a card in force that was prepared here and signed elsewhere, and brings it to the peers.

    A card with other root keys takes two people: exit code 10 when it is noted; nothing has changed then.
    """
    from federation.limits import MAX_CARD_BYTES
    from node.peering import rotation

    node = session.node()
    data = session.read_file(file, MAX_CARD_BYTES)
    with exits.reading(file):
        card = rotation.install(node, data, reason)
    key.installed(node, card, as_json=as_json)


@make.command(app, "renew", "apostille card renew", "apostille card renew --prepare card-to-sign.json")
def renew(file: key.Prepare = None, version: key.Version = None, as_json: make.AsJson = False) -> None:
    """Makes a new card with the same keys: after the advertised address was changed in the settings, or an upgrade."""
    from node.peering.rotation import Change

    key.apply(Change(endpoint=key.advertised(), version=version), file, as_json=as_json)


@make.command(
    app,
    "new-roots",
    'apostille card new-roots --roots 5 --threshold 3 --reason "one root key was lost"',
    "apostille card new-roots --prepare new-roots.json",
)
def new_roots(
    roots: Annotated[int, typer.Option(help="How many root keys.")] = 3,
    threshold: Annotated[int, typer.Option(help="How many of them must sign a card.")] = 2,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Why; the second person reads it.")] = None,
    file: key.Prepare = None,
    version: key.Version = None,
    as_json: make.AsJson = False,
) -> None:
    """Makes new root keys, in the folder roots/ of the home, and a card that hands the node over to them.

    As many old root keys must sign it as their threshold says, and it takes two people: exit code 10 when it is noted.
    Peers follow by themselves. Where the old root keys are offline, --prepare writes the card for them to sign with
    `apostille card sign --hand-over`; then `apostille card install`.
    """
    from node.home import prepared
    from node.peering import rotation

    if file is None and reason is None:
        raise UsageError("other root keys take a second person: say why with --reason")
    node = session.node()
    if file is None:
        rotation.change_roots(node, roots, threshold, reason or "", version)
    document = rotation.new_roots(node, roots, threshold, version)
    session.write_file(file, document)
    key.tell(prepared.read(document)[0], as_json=as_json)
    screen.note(f"Wrote {file}, signed by the new root keys, which lie in {node.home}/roots: move them offline.")
    screen.note(f"Where the old ones are: apostille card sign {file.name} --roots DIR --hand-over")
    screen.note(f"Then, here: apostille card install {file.name} --reason TEXT")


def _read_any(path: Path) -> "tuple[Card, int]":
    """A card that came as a file, and how many signatures of its own root keys it lacks."""
    from federation.limits import MAX_CARD_BYTES
    from node.home import prepared

    with exits.reading(path):
        card, count, _ = prepared.read(session.read_file(path, MAX_CARD_BYTES))
    return card, max(0, card.roots.threshold - count)


def _look_at(card: "Card", yes: bool) -> None:
    """Shows what is about to be signed, and asks. Raises UsageError where nobody can be asked."""
    if yes:
        return
    if not screen.is_person():
        raise UsageError("nobody can be asked here: look at it with apostille card show FILE, then sign with --yes")
    show_card(card)
    if not typer.confirm(f"Sign card {card.version} of {card.node}?", err=True):
        raise exits.RefusedError("nothing was signed")


def _passphrase(file: Path | None) -> bytes:
    from node.main import given_passphrase

    given = given_passphrase(file)
    if given is not None:
        return given
    if not screen.is_person():
        raise UsageError("nobody can be asked for the passphrase: give --passphrase-file, or APOSTILLE_PASSPHRASE")
    asked: str = typer.prompt("Passphrase of the root keys", hide_input=True, err=True)
    return asked.encode()


def _earlier(version: int) -> bytes:
    """A card of this node as it was installed. Raises NotFoundError."""
    from federation.keyring import unverified
    from node.home import owncard
    from node.main import open_database, read_settings
    from node.store.database import read

    home = session.home()
    with read(open_database(home, read_settings(home))) as tx:
        found = [document for document in owncard.history(tx) if unverified(document).version == version]
    if not found:
        raise NotFoundError(f"this node never had a card {version}; see: apostille key list")
    return found[0]


def _own() -> "OwnCard":
    from node.main import open_database, own_card, read_settings

    home = session.home()
    chosen = read_settings(home)
    return own_card(open_database(home, chosen), chosen)
