"""`apostille peer incident`: evidence that a peer has broken the protocol, and settling it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli import make, screen, session

if TYPE_CHECKING:
    from node.records.incidents import Incident

app = make.group(
    "Evidence that a peer has broken the protocol: a history told in two ways, taken back or shortened, two documents "
    "under one revision. A feed with a contradiction in it is not taken from until two people settle the incident.",
    "apostille peer incident list",
    "apostille peer incident show 2",
    "apostille peer incident export 2 --out incident.json",
)
_MEANS = {
    "FORK": "It has signed two histories of one feed. What it sends is not taken any more.",
    "ROLLBACK": "It has shown a smaller feed than before. What it sends is not taken any more.",
    "SUSPECTED_FORK": "Its pages do not follow from the history that both share. What it sends is not taken any more.",
    "EQUIVOCATION": "It has signed several documents under one revision. None of them is used.",
}
_Number = Annotated[int, typer.Argument(metavar="N", help="The incident's number.")]


@make.command(app, "list", "apostille peer incident list", "apostille peer incident list --all")
def list_incidents(
    every: Annotated[bool, typer.Option("--all", help="Those too that were settled.")] = False,
    as_json: make.AsJson = False,
) -> None:
    """Lists the incidents that nobody has settled, oldest first."""
    from node.records import incidents

    found = incidents.all_incidents(session.node(), every=every)
    if as_json:
        screen.emit([_data(incident) for incident in found])
        return
    if not found:
        screen.note("There was no incident." if every else "There is no open incident.")
        return
    screen.table(
        ("#No.", "Kind", "Peer", "About", "Opened", "Proves itself", "Settled"),
        [(i.number, i.kind, i.peer, i.about, i.opened_at, i.proves_itself, i.resolved_at) for i in found],
    )


@make.command(app, "show", "apostille peer incident show 2")
def show(number: _Number, as_json: make.AsJson = False) -> None:
    """Shows the evidence: what was signed, and whether a third party can judge it without us."""
    from node.desk import inbox
    from node.records import incidents

    node = session.node()
    found = incidents.find(node, number)
    if as_json:
        screen.emit(_data(found))
        return
    screen.facts(
        [
            ("Incident", found.number),
            ("Kind", found.kind),
            ("What it means", _MEANS.get(found.kind)),
            ("Peer", found.peer),
            ("About", found.about),
            ("Opened", found.opened_at),
            ("Proves itself", "yes: export it" if found.proves_itself else "no: it rests on what this node saw"),
            ("Settled", found.resolved_at),
            ("Settled by", found.resolved_by),
            ("Reason", found.resolution),
        ]
    )
    if found.heads:
        screen.table(
            ("#Size", "Root", "Called its newest"), [(head.size, head.root, head.dated) for head in found.heads]
        )
    if found.cores:
        items = [item for item in inbox.items(node, every_state=True) if item.origin == found.peer]
        numbers = {digest: [i.id for i in items if i.core_digest == digest] for digest in found.cores}
        screen.table(("Core digest", "In the inbox"), numbers.items())
    if found.resolved_at is None:
        choice = " --keep DIGEST" if found.cores else ""
        screen.note(
            f"Talk to {found.peer}. Two people settle it: apostille peer incident resolve {found.number}{choice}"
            ' --reason "..."'
        )


@make.command(app, "export", "apostille peer incident export 2 --out incident.json")
def export(
    number: _Number,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write it; stdout without it.")] = None,
) -> None:
    """Writes the evidence as a file for a third party, who judges it with that peer's card and public standards.

    It holds what was signed, and the card: of a document only what is plain in every advisory, never what it says.
    """
    from node.records import incidents

    found, data = incidents.export(session.node(), number)
    if out is None:
        screen.raw(data)
    else:
        session.write_file(out, data)
        screen.note(f"Wrote {out}.")
    if found.proves_itself:
        screen.note(f"It proves itself to whoever has the card of {found.peer}.")
    else:
        screen.note("It does not prove itself: it rests on what this node saw, and says so.")


@make.command(
    app,
    "resolve",
    'apostille peer incident resolve 2 --reason "they came from a backup, explained by telephone"',
    'apostille peer incident resolve 3 --keep 5f0c1a2b --reason "the other one was a mistake, they say"',
)
def resolve(
    number: _Number,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; the second person reads it.")],
    keep: Annotated[
        str | None,
        typer.Option(metavar="DIGEST", help="Of several documents, the one that is used: how its core digest begins."),
    ] = None,
    neither: Annotated[bool, typer.Option("--neither", help="None of the documents is used.")] = False,
) -> None:
    """Asks that an incident be settled. It takes two people: a second one approves the request.

    The feed is taken from again. If that peer still contradicts itself, the next sync opens a new incident. Exit code
    10 when it is noted; nothing has changed then.
    """
    from node.desk import resolutions

    resolutions.resolve(session.node(), number, reason, keep=keep, neither=neither)


def _data(incident: "Incident") -> dict[str, Any]:
    return {
        "incident": incident.number,
        "kind": incident.kind,
        "peer": incident.peer,
        "about": incident.about,
        "heads": [{"size": head.size, "root": head.root, "dated": head.dated} for head in incident.heads],
        "cores": incident.cores,
        "proves_itself": incident.proves_itself,
        "opened_at": incident.opened_at,
        "resolved_at": incident.resolved_at,
        "resolved_by": incident.resolved_by,
        "resolution": incident.resolution,
    }
