"""`apostille approval`: what waits for a second person, and that person's answer."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli import make, screen, session

if TYPE_CHECKING:
    from node.records.approvals import Request

app = make.group(
    "Acts that take two people. One person's command notes a request; a second person, who is an approver and nobody "
    "else than the first, approves or refuses it here. What was asked for and has changed since is not done.",
    "apostille approval list",
    "apostille approval show 3",
    "apostille approval approve 3",
)

_DOES = {
    "trust": "Trust this peer again: what agreements in force allow is exchanged with it from then on.",
    "resolve": "Settle this incident and take from that feed again.",
    "open-epoch": "Open a new epoch of the feed to this peer; the old epoch stays readable and ends.",
    "accept-epoch": "Accept the new epoch that this peer has opened, and take from it.",
    "roots": "Install this card, whose root keys are others than those known until now.",
    "label": "Lower the category of this part of a draft, so that more may be shared of it.",
}
_Number = Annotated[int, typer.Argument(metavar="N", help="The request's number.")]


@make.command(app, "list", "apostille approval list", "apostille approval list --all")
def list_requests(
    every: Annotated[bool, typer.Option("--all", help="Those too that are done, refused or void.")] = False,
    as_json: make.AsJson = False,
) -> None:
    """Lists the requests that wait for a second person."""
    from node.records import approvals

    node = session.node()
    found = approvals.all_requests(node) if every else approvals.pending(node)
    if as_json:
        screen.emit([_data(request) for request in found])
        return
    if not found:
        screen.note("There is no request." if every else "Nothing waits for a second person.")
        return
    screen.table(
        ("#No.", "Act", "About", "Asked by", "Asked", "Void after", "State", "Reason"),
        [(r.number, r.act, r.subject, r.asked_by, r.asked_at, r.until, r.state, r.reason) for r in found],
    )


@make.command(app, "show", "apostille approval show 3")
def show(number: _Number, as_json: make.AsJson = False) -> None:
    """Shows exactly what would be done, who asked for it, and why."""
    from node.records import approvals

    request = approvals.find(session.node(), number)
    if as_json:
        screen.emit(_data(request))
        return
    screen.facts(
        [
            ("Request", request.number),
            ("What it does", _DOES[request.act]),
            ("About", request.subject),
            *((f"  {name.replace('_', ' ')}", value) for name, value in request.arguments.items()),
            ("Reason", request.reason),
            ("Asked by", request.asked_by),
            ("Asked", request.asked_at),
            ("State", f"{request.state}: {request.why_void}" if request.why_void else request.state),
            ("Void after" if request.settled_at is None else "Settled", request.settled_at or request.until),
            ("Settled by", request.settled_by),
            ("Binds", request.binding),
        ]
    )


@make.command(app, "approve", "apostille approval approve 3")
def approve(number: _Number, as_json: make.AsJson = False) -> None:
    """Approves a request, and with that does what it asks for; look at it before with `apostille approval show`.

    Whoever asked cannot approve. A request is void after a week, and once something that it is about has changed.
    """
    _settle(number, approve=True, as_json=as_json)


@make.command(app, "refuse", "apostille approval refuse 3")
def refuse(number: _Number, as_json: make.AsJson = False) -> None:
    """Refuses a request: nothing is done, and it is closed."""
    _settle(number, approve=False, as_json=as_json)


def _settle(number: int, *, approve: bool, as_json: bool) -> None:
    from node import acts
    from node.records import approvals

    request = approvals.settle(session.node(), number, acts.registry(), approve=approve)
    session.wake()
    if as_json:
        screen.emit(_data(request))
        return
    outcome = "Approved and done" if approve else "Refused; nothing was done"
    screen.note(f"{outcome}: request {number}, {request.act} {request.subject}, asked by {request.asked_by}.")


def _data(request: "Request") -> dict[str, Any]:
    return {
        "request": request.number,
        "act": request.act,
        "does": _DOES[request.act],
        "subject": request.subject,
        "arguments": request.arguments,
        "binding": request.binding,
        "reason": request.reason,
        "asked_by": request.asked_by,
        "asked_at": request.asked_at,
        "until": request.until,
        "state": request.state,
        "why_void": request.why_void,
        "settled_by": request.settled_by,
        "settled_at": request.settled_at,
    }
