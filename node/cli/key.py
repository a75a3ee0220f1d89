"""`apostille key`: the keys in daily use: which there are, new ones beside them, old ones away."""

import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from federation.errors import UsageError
from federation.model import Role
from node.cli import make, screen, session
from node.cli.cards import card_data

if TYPE_CHECKING:
    from federation.keyring import Card
    from node.home.context import Node
    from node.peering.rotation import Change

app = make.group(
    "The keys in daily use. New ones are put beside the old ones on a new card, which the feeds bring to the peers; "
    "each is served with the new keys as soon as it holds the card. Root keys sign the card: see apostille card.",
    "apostille key list",
    "apostille key rotate --all",
)
_SPAN = re.compile(r"([1-9][0-9]{0,4})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

Prepare = Annotated[
    Path | None,
    typer.Option("--prepare", metavar="FILE", help="Write the card, to be signed where the root keys are kept."),
]
Version = Annotated[
    int | None,
    typer.Option("--version", metavar="N", help="The card's number, if it must be higher, as after a restore."),
]


@make.command(app, "list", "apostille key list", "apostille key list --json")
def list_keys(as_json: make.AsJson = False) -> None:
    """Lists the keys: what each is for, until when, whether it is used, and which peers lack the current card.

    A key is `next` until every peer can verify it, `current` while something is signed with it, and `old` while it is
    valid beside its successor.
    """
    from node.peering import cards, rotation

    node = session.node()
    states, waiting = rotation.key_states(node), cards.waiting(node)
    if as_json:
        keys = [
            {
                "role": s.key.role,
                "kid": s.key.kid,
                "valid_from": s.key.valid_from,
                "valid_until": s.key.valid_until,
                "state": s.state,
                "cards": s.versions,
                "private": s.private,
            }
            for s in states
        ]
        screen.emit({"card": node.card.version, "keys": keys, "waiting": waiting})
        return
    screen.table(
        ("Key for", "Id", "Valid from", "Valid until", "State", "On cards", "Private half"),
        [
            (s.key.role, s.key.kid, s.key.valid_from, s.key.valid_until, s.state, _span(s.versions), _where(s.private))
            for s in states
        ],
    )
    _say_who_waits(node)


@make.command(
    app,
    "rotate",
    "apostille key rotate --all",
    "apostille key rotate tls --overlap 30d",
    "apostille key rotate --all --prepare card-to-sign.json",
)
def rotate(
    roles: Annotated[
        list[str] | None, typer.Argument(metavar="ROLE", help="Which keys: issue, feed, receipt, tls.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All four.")] = False,
    overlap: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="How long the old keys stay valid, such as 36h; 14d without it, and an old issue key keeps its end.",
        ),
    ] = None,
    file: Prepare = None,
    version: Version = None,
    as_json: make.AsJson = False,
) -> None:
    """Makes new keys and a card that names them beside the old ones, and brings it to the peers.

    With the root keys in this home, the card is signed and in force at once. Where they are kept offline, --prepare
    writes it to a file: sign that with `apostille card sign`, then `apostille card install`.
    """
    from node.peering.rotation import Change

    chosen = _roles(roles or [], every)
    span = None if overlap is None else parse_span(overlap)
    apply(Change(rotate=chosen, overlap=span, endpoint=advertised(), version=version), file, as_json=as_json)


@make.command(
    app,
    "retire",
    "apostille key retire 5f0c1a2b3c4d5e6f",
    "apostille key retire 5f0c1a2b3c4d5e6f --now",
)
def retire(
    kid: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `apostille key list` shows it.")],
    at_once: Annotated[
        bool, typer.Option("--now", help="It was stolen: do not wait for peers who know no other.")
    ] = False,
    file: Prepare = None,
    as_json: make.AsJson = False,
) -> None:
    """Takes a key off the card, so that peers believe it no more; make another one first with `apostille key rotate`.

    What an issue key has signed is refused from then on, unless its receiver was shown it before: what is on its way
    has to be issued anew.
    """
    from dataclasses import replace

    from node.peering import rotation

    change = rotation.retire(session.node(), kid, at_once=at_once)
    apply(replace(change, endpoint=advertised()), file, as_json=as_json)


@make.command(app, "prune", "apostille key prune", "apostille key prune --unused")
def prune(
    unused: Annotated[
        bool, typer.Option("--unused", help="Those too that are on no card; not while a prepared card is being signed.")
    ] = False,
    as_json: make.AsJson = False,
) -> None:
    """Deletes private keys that nothing is signed with any more. `apostille key rotate` does so too."""
    from node.peering import rotation

    gone = rotation.prune(session.node(), unused=unused)
    if as_json:
        screen.emit([{"role": role, "kid": kid} for role, kid in gone])
        return
    screen.note(f"Deleted {len(gone)} private keys." if gone else "Every private key is still needed.")


def apply(change: "Change", file: Path | None, *, as_json: bool) -> None:
    """Makes the card that is wanted: in force at once, or as a file to be signed."""
    from node.home import prepared
    from node.peering import rotation

    node = session.node()
    if file is not None:
        data = rotation.prepare(node, change)
        session.write_file(file, data)
        tell(prepared.read(data)[0], as_json=as_json)
        screen.note(f"Wrote {file}. Sign it where the root keys are: apostille card sign {file.name} --roots DIR")
        screen.note(f"Then, here: apostille card install {file.name}")
        return
    installed(node, rotation.change(node, change), as_json=as_json)


def installed(node: "Node", card: "Card", *, as_json: bool) -> None:
    """What to say, and whom to wake, once a card is in force."""
    session.wake()
    tell(card, as_json=as_json)
    if not as_json:
        screen.note(f"Card {card.version} is in force.")
        _say_who_waits(node)


def tell(card: "Card", *, as_json: bool) -> None:
    """A card for scripts, if they want one."""
    if as_json:
        screen.emit(card_data(card))


def advertised() -> str:
    """The address that every new card names: the one that the settings advertise."""
    from node.main import read_settings

    return read_settings(session.home()).advertise


def parse_span(text: str) -> timedelta:
    """A time such as 36h. Raises UsageError."""
    match = _SPAN.fullmatch(text)
    if match is None:
        raise UsageError(f"--overlap: {text} is no time; write a number with s, m, h or d, such as 36h or 14d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _roles(given: list[str], every: bool) -> tuple[Role, ...]:
    unknown = sorted(set(given) - set(Role))
    if unknown:
        raise UsageError(f"no key is for {', '.join(unknown)}: {', '.join(Role)}")
    if bool(given) == every:
        raise UsageError(f"which keys? Name some of {', '.join(Role)}, or say --all")
    return tuple(Role) if every else tuple(map(Role, given))


def _say_who_waits(node: "Node") -> None:
    from node.peering import cards

    waiting = cards.waiting(node)
    if waiting:
        screen.note(
            f"Not known to hold card {node.card.version} yet: {', '.join(waiting)}. The feed brings it; the old"
        )
        screen.note("keys serve them meanwhile. To one that is away for long, give the file of: apostille card export")


def _span(versions: tuple[int, ...]) -> str:
    return str(versions[0]) if len(versions) == 1 else f"{versions[0]}-{versions[-1]}"


def _where(private: bool) -> Any:
    return "here" if private else "missing"
