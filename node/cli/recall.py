"""`apostille recall`: taking an advisory back from everybody who holds it, and who has answered."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from federation.recall import Reason
from node.cli import make, screen, session

if TYPE_CHECKING:
    from node.sharing.answers import Holder, Order

_ORDER = "order"


class _Short(TyperGroup):
    """`recall NAME` is `recall order NAME`: whoever has to be fast need not know the longer form."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = [_ORDER, *args]
        return super().resolve_command(ctx, args)


app = make.group(
    "Recalls: an order, signed by this node, to stop using revisions of one of its advisories and to purge every copy. "
    "It follows the advisory to everybody, relays included, and each of them answers. `recall NAME` is short for "
    "`recall order NAME`.",
    "apostille recall preview CERT-FR-2026-0131",
    "apostille recall CERT-FR-2026-0131 --reason consent",
    "apostille recall status",
)
app.info.cls = _Short


@make.command(
    app,
    _ORDER,
    "apostille recall order CERT-FR-2026-0131 --reason error",
    "apostille recall order CERT-FR-2026-0131 --reason replaced --revision 1",
)
def order(
    name: Annotated[str, typer.Argument(help="The advisory's name.")],
    reason: Annotated[Reason, typer.Option(help="Why. Peers see this word, and nothing else of the reason.")],
    revision: Annotated[
        list[int] | None,
        typer.Option("--revision", metavar="N", help="Only this revision; may be given several times."),
    ] = None,
    as_json: make.AsJson = False,
) -> None:
    """Recalls an advisory at once: every issued revision, unless --revision names some. It cannot be undone.

    Every peer is told, whether or not it was sent the advisory. This node's own copy stays, and is released no more.
    The order can be given again, until everybody has answered.
    """
    from node.sharing import recalls

    given = recalls.give(session.node(), name, reason, revision or ())
    session.wake()
    if as_json:
        screen.emit(_data(given))
        return
    _show(given)
    screen.note(f"Who has answered is shown by: apostille recall status {name}")


@make.command(app, "preview", "apostille recall preview CERT-FR-2026-0131")
def preview(name: Annotated[str, typer.Argument(help="The advisory's name.")], as_json: make.AsJson = False) -> None:
    """Shows who holds an advisory of this node: what a recall has to reach. Nothing is changed.

    Not fetched: still in the feed, erased there by a recall. May pass it on: others may hold it too.
    """
    from node.sharing import recalls

    found = recalls.preview(session.node(), name)
    if as_json:
        screen.emit(
            [
                {
                    "peer": reach.peer,
                    "revisions": reach.revisions,
                    "acknowledged": reach.acknowledged,
                    "not_fetched": reach.not_fetched,
                    "taken_back": reach.taken_back,
                    "may_pass_on": reach.onward,
                    "granted_to": reach.granted,
                }
                for reach in found
            ]
        )
        return
    if not found:
        screen.note(f"Nobody was sent {name}.")
        return
    screen.table(
        ("Peer", "Revisions", "#Acknowledged", "#Not fetched", "#Taken back", "May pass it on"),
        [
            (
                reach.peer,
                reach.revisions,
                reach.acknowledged,
                reach.not_fetched,
                reach.taken_back,
                "to its peers" if reach.onward else reach.granted or "no",
            )
            for reach in found
        ],
    )


@make.command(app, "status", "apostille recall status", "apostille recall status CERT-FR-2026-0131 --json")
def status(
    name: Annotated[str | None, typer.Argument(help="Only recalls of this advisory.")] = None,
    as_json: make.AsJson = False,
) -> None:
    """Shows recalls, given or taken in, with everybody who has to follow them and what each has answered.

    Via: the peer by whose feed the order goes there. An answer is what that node says of itself, signed by it.
    """
    from node.sharing import answers

    found = answers.status(session.node(), name)
    if as_json:
        screen.emit([_data(given) for given in found])
        return
    if not found:
        screen.note("There is no recall." if name is None else f"{name} was not recalled.")
        return
    for given in found:
        _show(given)


def _show(given: "Order") -> None:
    revisions = ", ".join(map(str, given.revisions))
    screen.heading(
        f"{given.name} revision {revisions} of {given.origin}: {given.reason}, {screen.cell(given.at)} by {given.by}"
    )
    if not given.holders:
        screen.note("It went to nobody: nobody was sent the advisory from here.")
        return
    screen.table(
        ("Holder", "Via", "State", "Since", "Order"),
        [(holder.node, holder.via, _state(holder), holder.at, _order_state(holder)) for holder in given.holders],
    )


def _state(holder: "Holder") -> str:
    return f"OVERDUE: {holder.state}" if holder.overdue else holder.state


def _order_state(holder: "Holder") -> str | None:
    return None if holder.fetched is None else "acknowledged" if holder.fetched else "not yet fetched"


def _data(given: "Order") -> dict[str, Any]:
    return {
        "recall": given.digest,
        "origin": given.origin,
        "advisory": given.name,
        "revisions": given.revisions,
        "reason": given.reason,
        "at": given.at,
        "by": given.by,
        "holders": [
            {
                "node": holder.node,
                "via": holder.via,
                "state": holder.state,
                "since": holder.at,
                "order_acknowledged": holder.fetched,
                "overdue": holder.overdue,
            }
            for holder in given.holders
        ],
    }
