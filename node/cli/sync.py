"""`apostille sync`: fetching now."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from federation.errors import ApostilleError
from node.cli import exits, make, screen, session

if TYPE_CHECKING:
    from federation.keyring import Card
    from node.exchange.sync import Report
    from node.home.context import Node

app = make.single()


@make.command(app, "sync", "apostille sync", "apostille sync cert.de.example")
def sync(
    peer: Annotated[str | None, typer.Argument(help="Only from this peer; from every trusted one without it.")] = None,
    as_json: make.AsJson = False,
) -> None:
    """Fetches what peers have for this node, now. A running server does the same by itself.

    A peer that fails does not stop the others; the exit code is that of the first failure.
    """
    from federation.model import NodeId
    from node.home.people import Post
    from node.peering import peers

    node = session.node()
    node.allow(Post.OPERATOR)
    if peer is not None:
        cards: tuple[Card, ...] = (peers.trusted_card(node, NodeId(peer)),)
    else:
        cards = tuple(known.card for known in peers.all_peers(node) if known.trusted and known.direct)
    if not cards:
        screen.note("There is no peer to fetch from. Take one in with: apostille peer enrol CARD")
    done: list[tuple[Report, ApostilleError | None]] = [_fetch(node, card) for card in cards]
    if any(report.entries for report, _ in done):
        session.wake()  # what came may have to be answered: signatures on agreements go round
    if as_json:
        screen.emit([_data(report, error) for report, error in done])
    elif cards:
        screen.table(
            ("Peer", "#Entries", "#Admitted", "#Agreements etc.", "#Quarantined", "#Refused", "Result"),
            [
                (report.peer, report.entries, *_counts(report), "ok" if error is None else "failed")
                for report, error in done
            ],
        )
    failed = [error for _, error in done if error is not None]
    for error in failed[1:]:
        screen.note(f"apostille: {exits.sentence_of(error)}")
    if failed:
        raise failed[0]


def _fetch(node: "Node", card: "Card") -> "tuple[Report, ApostilleError | None]":
    from node.exchange import sync as syncing
    from node.rpc.client import PeerLink

    reached = syncing.Report(card.node)

    with screen.progress(f"Fetching from {card.node}") as advance:

        def keep(report: "Report") -> None:
            nonlocal reached
            reached = report
            advance(report.entries)

        try:
            with exits.reading(card.node), PeerLink(node, card) as link:
                return syncing.sync(node, card.node, link, keep), None
        except ApostilleError as e:
            return reached, e


def _counts(report: "Report") -> tuple[int, ...]:
    from node.desk.inbox import Disposition

    order = (Disposition.ADMITTED, Disposition.CONTROL, Disposition.QUARANTINED, Disposition.REFUSED)
    return tuple(report.counts.get(outcome, 0) for outcome in order)


def _data(report: "Report", error: ApostilleError | None) -> dict[str, Any]:
    return {
        "peer": report.peer,
        "entries": report.entries,
        "pages": report.pages,
        "counts": {outcome.value: number for outcome, number in report.counts.items()},
        "error": None if error is None else getattr(error, "code", type(error).__name__),
        "reason": None if error is None else screen.clean(exits.sentence_of(error)),
    }
