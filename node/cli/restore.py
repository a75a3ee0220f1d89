"""`apostille restore`: puts a backup in the place of a home."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from federation.errors import UsageError
from node.cli import make, screen, session

if TYPE_CHECKING:
    from node.operation.backup import Restored

app = make.single()


@make.command(
    app,
    "restore",
    "apostille --home /srv/apostille restore /media/safe/cert.fr.example-2026-11-22.tar",
    "apostille --home /srv/apostille restore --replace /media/safe/cert.fr.example-2026-11-22.tar",
    "apostille --home /srv/apostille restore --by-hand",
)
def restore(
    file: Annotated[Path | None, typer.Argument(help="A backup, as `apostille backup` wrote it.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Move the home that is there aside; it is not deleted.")
    ] = False,
    by_hand: Annotated[
        bool, typer.Option("--by-hand", help="The home was put back by other means: say so, before it serves.")
    ] = False,
    as_json: make.AsJson = False,
) -> None:
    """Puts a backup in the place of a home that is missing or empty, or with --replace of one that is there.

    The server must not run. Before anything else the file is checked to the last byte. Of a home that is replaced,
    everything that was recalled, taken back, purged or distrusted since the backup stays so, if it can be read.

    A restored node does not know what it has signed since. It signs nothing for a peer before that peer has shown what
    it holds, and sends nothing to anybody before every peer was heard, or a quarter of an hour has passed. Where
    entries are lost, two people open a new epoch: apostille peer epoch open PEER.

    With PostgreSQL, load the dump into the database that the settings name, then run this.
    """
    from node.operation import backup

    if (file is None) is not by_hand or (by_hand and replace):
        raise UsageError("name a backup, or say --by-hand where no file of ours was used")
    if file is None:
        drafts = backup.mark_by_hand(session.home())
        if as_json:
            screen.emit({"drafts": drafts})
            return
        screen.note("Marked: this home was put back.")
        _say_what_next(drafts)
        return
    done = backup.restore(session.home(), file, replace=replace)
    if as_json:
        screen.emit(_data(done))
        return
    screen.facts(
        [
            ("Restored", done.node),
            ("State of", done.made_at),
            ("Replaced home", done.aside),
            *_carried(done),
        ]
    )
    _say_what_next(done.drafts)


def _carried(done: "Restored") -> list[tuple[str, object]]:
    carried = done.carried
    if carried is None:
        return [("Carried over", f"nothing: {done.why_not}")] if done.why_not else []
    gone = f"{carried.received} received, {carried.sent} sent"
    return [
        ("Recalls brought over", carried.recalls),
        ("Entries gone again", gone),
        ("Newer cards", carried.cards),
        ("Distrusted again", carried.distrusted),
        ("Feeds frozen again", carried.frozen),
        ("Could not be applied", carried.left),
    ]


def _say_what_next(drafts: tuple[str, ...]) -> None:
    screen.note("What happened here since is not known to this home any more. Before you serve, look at:")
    screen.note("  apostille peer list        a peer that was distrusted since may be trusted again")
    if drafts:
        screen.note(f"  drafts of that time: {', '.join(drafts)}")
        screen.note("    one that was released since is with peers already; released again, it is a new revision")
    screen.note(
        "Then: apostille serve. It hears its peers first; alarms and `apostille peer epoch list` tell what is lost."
    )


def _data(done: "Restored") -> dict[str, object]:
    carried = done.carried
    return {
        "node": done.node,
        "made_at": done.made_at,
        "aside": None if done.aside is None else str(done.aside),
        "carried": None
        if carried is None
        else {
            "recalls": carried.recalls,
            "received": carried.received,
            "sent": carried.sent,
            "cards": carried.cards,
            "distrusted": carried.distrusted,
            "frozen": carried.frozen,
            "left": carried.left,
        },
        "why_not": done.why_not or None,
        "drafts": done.drafts,
    }
