"""`apostille alerts`: what a person has to look at, and carrying it to people."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from federation.errors import UsageError
from node.cli import exits, make, screen, session

if TYPE_CHECKING:
    from node.records.alarms import Raised

app = make.group(
    "Alarms: what a person has to look at. A running server also carries each new one to the addresses in the file "
    "`alerts` of the home: one URL of apprise to a line, readable by its owner alone.",
    "apostille alerts list",
    "apostille alerts ack 3",
    "apostille alerts test",
)


@make.command(app, "list", "apostille alerts list", "apostille alerts list --all --json")
def list_alarms(
    every: Annotated[bool, typer.Option("--all", help="Those too that were acknowledged, or are over.")] = False,
    as_json: make.AsJson = False,
) -> None:
    """Lists the alarms that nobody has acknowledged, newest first, with what to do about each."""
    from node.records import alarms

    found = alarms.all_alarms(session.node(), every=every)
    if as_json:
        screen.emit([_data(alarm) for alarm in found])
        return
    if not found:
        screen.note("There is no alarm." if every else "There is no open alarm.")
        return
    screen.table(
        (
            "#No.",
            "Kind",
            "About",
            "What",
            "Since",
            "Last",
            "#Times",
            "What to do",
            *(("Acknowledged",) if every else ()),
        ),
        [
            (
                *(a.number, a.kind, a.subject, a.detail, a.first_at, a.last_at, a.count, alarms.ADVICE[a.kind]),
                *((a.acked_by,) if every else ()),
            )
            for a in found
        ],
    )


@make.command(app, "ack", "apostille alerts ack 3", "apostille alerts ack 3 4", "apostille alerts ack --all")
def ack(
    numbers: Annotated[list[int] | None, typer.Argument(metavar="NUMBER...", help="As `alerts list` has them.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every open alarm.")] = False,
    as_json: make.AsJson = False,
) -> None:
    """Notes that you have seen alarms. What is found again after that is a new alarm."""
    from node.records import alarms

    if bool(numbers) is every:
        raise UsageError("name alarms by their numbers, or all of them with --all")
    seen = alarms.acknowledge(session.node(), None if every else numbers)
    if as_json:
        screen.emit([_data(alarm) for alarm in seen])
        return
    for alarm in seen:
        screen.note(f"Acknowledged {alarm.number}: {alarm.kind} {alarm.subject}.")
    if not seen:
        screen.note("Nothing of that was open; nothing was changed.")


@make.command(app, "test", "apostille alerts test")
def send_test(as_json: make.AsJson = False) -> None:
    """Sends a test message to every address in the file `alerts`, and tells which took it.

    Exit code 1 if one did not.
    """
    from node.home.people import Post
    from node.operation import courier
    from node.store.database import record, write

    node = session.node()
    node.allow(Post.OPERATOR)
    found = courier.addresses(node.home)
    if not found:
        path = node.home / courier.FILE_NAME
        raise UsageError(
            f"there is no address: write one to a line into {path}, such as mailto://..., and run chmod 600"
        )
    message = courier.trial_message(node)
    done = [(address, courier.send(address, message)) for address in found]
    with write(node.engine) as tx:
        detail = f"{sum(taken for _, taken in done)} of {len(done)} took it"
        record(tx, at=node.clock(), by=node.actor, act="alerts.test", subject=node.id, detail=detail)
    if as_json:
        screen.emit([{"line": address.line, "scheme": address.scheme, "taken": taken} for address, taken in done])
    else:
        screen.table(
            ("#Line", "Scheme", "Result"),
            [(address.line, address.scheme, "ok" if taken else "failed") for address, taken in done],
        )
    if not all(taken for _, taken in done):
        raise exits.RefusedError("an address did not take the message in time; see that its line is right")


def _data(alarm: "Raised") -> dict[str, Any]:
    from node.records.alarms import ADVICE

    return {
        "alarm": alarm.number,
        "kind": alarm.kind,
        "subject": alarm.subject,
        "detail": alarm.detail,
        "advice": ADVICE[alarm.kind],
        "first_at": alarm.first_at,
        "last_at": alarm.last_at,
        "count": alarm.count,
        "acked_at": alarm.acked_at,
        "acked_by": alarm.acked_by,
        "delivered_at": alarm.delivered_at,
    }
