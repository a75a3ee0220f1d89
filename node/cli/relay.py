"""`apostille relay`: passing a received advisory on to another peer, for its origin."""

from typing import Annotated

import typer

from federation.errors import HeldError, UsageError
from node.cli import exits, make, screen, session

app = make.single()


@make.command(
    app,
    "relay",
    "apostille relay 3 --to cert.in.example --preview",
    "apostille relay 3 --to cert.in.example --withhold exploit --withhold /csaf/document/notes/1",
    "apostille relay 3 --to cert.in.example --withdraw",
)
def relay(
    reference: Annotated[str, typer.Argument(metavar="ID", help="Its number in `inbox list`, or its name.")],
    to: Annotated[list[str], typer.Option("--to", metavar="PEER", help="To this peer; may be given several times.")],
    withhold: Annotated[
        list[str] | None,
        typer.Option(metavar="CATEGORY|PATH", help="Keep parts of this kind, or below this path, back."),
    ] = None,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Take back what was passed on to these peers.")] = False,
    preview: Annotated[bool, typer.Option("--preview", help="Show what would be passed on; send nothing.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show every part, not only the rules.")] = False,
    as_json: make.AsJson = False,
) -> None:
    """Passes an advisory of the inbox on, as its origin signed it, or less of it.

    The origin must allow that, by the handling or by a grant for these recipients; and law, and an agreement between
    this node and the recipient. Exit code 1 when nothing is passed on to anybody, 6 when something is held.
    """
    from federation.model import NodeId
    from node.cli import releasing, revising
    from node.sharing import passing

    if withdraw:
        _withdraw(reference, to, as_json=as_json, alone=not (withhold or preview))
        return
    act, node = passing.preview if preview else passing.pass_on, session.node()
    item, outcomes = act(node, reference, map(NodeId, to), withhold or ())
    name = f"{item.origin}/{item.name}"
    if not preview and any(outcome.seq is not None for outcome in outcomes):
        session.wake()
    if as_json:
        shown = [releasing.outcome_data(outcome, verbose=verbose) for outcome in outcomes]
        about = {"id": item.id, "origin": item.origin, "advisory": item.name, "revision": item.revision}
        unsettled = [] if preview else [revising.data(holder) for holder in revising.open_holders(node, name)]
        screen.emit({**about, "preview": preview, "peers": shown, "unsettled": unsettled})
    else:
        screen.facts(
            [("Advisory", f"{item.name}, revision {item.revision}"), ("Origin", item.origin), ("TLP", item.tlp)]
        )
        releasing.show_outcomes(outcomes, dry_run=preview, verbose=verbose)
    if preview:
        return
    if not as_json:
        revising.say_unsettled(node, name, relayed=True)
    held = [outcome.peer for outcome in outcomes if outcome.held is not None]
    if held:
        raise HeldError(f"{item.name} is held for {', '.join(held)}: a person must look at why")
    if all(outcome.seq is None for outcome in outcomes):
        raise exits.RefusedError(f"nothing of {item.name} was passed on; the table says by which rules")


def _withdraw(reference: str, to: list[str], *, as_json: bool, alone: bool) -> None:
    """Raises UsageError where more was asked for than that."""
    from federation.model import NodeId
    from node.sharing import passing

    if not alone:
        raise UsageError("--withdraw takes back all of it: it goes with neither --withhold nor --preview")
    node = session.node()
    taken = {peer: passing.withdraw(node, reference, NodeId(peer)) for peer in to}
    session.wake()
    if as_json:
        screen.emit([{"peer": peer, "entries": entries} for peer, entries in taken.items()])
        return
    for peer, entries in taken.items():
        screen.note(f"Taken back from {peer}: entry {', '.join(map(str, entries))}.")
