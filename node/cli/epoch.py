"""`apostille peer epoch`: what to do when a feed cannot go on."""

from typing import Annotated

import typer

from node.cli import make, screen, session

app = make.group(
    "Epochs of the feeds to and from a peer. When a node comes from a backup, or two copies of one have run, a feed "
    "cannot go on: its sender opens a new epoch, its receiver accepts it, and each takes two people there.",
    "apostille peer epoch list",
    'apostille peer epoch open cert.de.example --reason "our disk failed, restored last night\'s backup"',
    'apostille peer epoch accept cert.fr.example --reason "they restored a backup; telephoned with their operator"',
)
_Peer = Annotated[str, typer.Argument(metavar="NODE", help="The peer's name, as `apostille peer list` shows it.")]
_Reason = Annotated[str, typer.Option(metavar="TEXT", help="Why; the second person reads it.")]


@make.command(app, "list", "apostille peer epoch list", "apostille peer epoch list cert.de.example --json")
def list_epochs(
    peer: Annotated[str | None, typer.Argument(metavar="NODE", help="Those with this peer only.")] = None,
    as_json: make.AsJson = False,
) -> None:
    """Lists every epoch of every feed, those that have ended too, and where people have to act."""
    from federation.model import NodeId
    from node.exchange import epochs

    found = epochs.all_epochs(session.node(), None if peer is None else NodeId(peer))
    if as_json:
        screen.emit(
            [
                {
                    "peer": epoch.peer,
                    "direction": "out" if epoch.outgoing else "in",
                    "epoch": epoch.number,
                    "feed": epoch.origin,
                    "size": epoch.size,
                    "acknowledged": epoch.settled,
                    "state": epoch.state,
                }
                for epoch in found
            ]
        )
        return
    if not found:
        screen.note("There is no feed: no peer is enrolled that this node exchanges with.")
        return
    screen.table(
        ("Peer", "Direction", "#Epoch", "#Entries", "#Acknowledged", "State"),
        [(e.peer, "to it" if e.outgoing else "from it", e.number, e.size, e.settled, e.state) for e in found],
    )


@make.command(
    app,
    "open",
    'apostille peer epoch open cert.de.example --reason "restored last night\'s backup"',
    'apostille peer epoch open cert.de.example --cause cloned --reason "a snapshot of this machine ran beside it"',
)
def open_epoch(
    peer: _Peer,
    reason: _Reason,
    cause: Annotated[str, typer.Option(help="What the peer is told: restored, cloned, or healed.")] = "restored",
) -> None:
    """Asks that a new epoch of our feed to this peer be opened. It takes two people: a second one approves the request.

    Only for a feed that cannot go on: the peer has asked, and could not be answered. The old epoch ends and stays
    readable here. What the peer lacks of it goes into the new one, after policy was asked again; what was signed and is
    not here any more is named, and has to be done again by people.

    Exit code 10 when it is noted; nothing has changed then.
    """
    from federation.errors import UsageError
    from federation.model import NodeId
    from node.exchange import epochs

    if cause not in tuple(epochs.Cause):
        raise UsageError(f"--cause: {cause} is none of {', '.join(epochs.Cause)}")
    epochs.opening(session.node(), NodeId(peer), epochs.Cause(cause), reason)


@make.command(
    app,
    "accept",
    'apostille peer epoch accept cert.fr.example --reason "they restored a backup; telephoned with their operator"',
)
def accept(peer: _Peer, reason: _Reason) -> None:
    """Asks that the new epoch which this peer has opened be accepted. It takes two people: a second one approves.

    Telephone the peer first: an epoch is how a feed goes on after a restore, and what somebody would say who wants you
    to forget what you were sent. What you hold stays. The new epoch must begin where the old one was last shown to end;
    if it does not, the feed is frozen.

    Exit code 10 when it is noted; nothing has changed then.
    """
    from federation.model import NodeId
    from node.exchange import epochs

    epochs.accepting(session.node(), NodeId(peer), reason)
