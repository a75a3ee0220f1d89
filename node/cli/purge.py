"""`apostille purge`: erasing what may be kept no longer, without waiting for the server to do it."""

from typing import Annotated

import typer

from federation.errors import UsageError
from node.cli import make, screen, session

app = make.single()


@make.command(app, "purge", "apostille purge --expired --dry-run", "apostille purge --expired")
def purge(
    expired: Annotated[bool, typer.Option("--expired", help="What its terms let nobody keep any longer.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count it; erase nothing.")] = False,
    as_json: make.AsJson = False,
) -> None:
    """Erases what may be kept no longer: received advisories, and deliveries that stand in feeds to peers.

    A server does the same every hour and before it accepts calls. What has ended is not used or sent meanwhile either.
    """
    from node.sharing import retention

    if not expired:
        raise UsageError("say what to purge: --expired")
    node = session.node()
    found = retention.ended(node) if dry_run else retention.purge(node)
    if not dry_run and found.sent:
        session.wake()
    if as_json:
        screen.emit(
            {
                "dry_run": dry_run,
                "inbox": len(found.items),
                "set_aside": len(found.set_aside),
                "deliveries": found.sent_count,
            }
        )
        return
    screen.facts(
        [
            ("Received advisories", len(found.items)),
            ("Entries set aside", len(found.set_aside)),
            ("Deliveries in feeds to peers", found.sent_count),
        ]
    )
    screen.note("Nothing was erased." if dry_run or not found else "Erased. Leaf hashes and the ledger stay.")
