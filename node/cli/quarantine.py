"""`apostille quarantine`: entries that were set aside, and why."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from federation.errors import HeldError
from node.cli import make, screen, session

if TYPE_CHECKING:
    from node.records.quarantine import SetAside

app = make.group(
    "Entries that peers sent and this node did not use. Quarantined: set aside and kept, because something in them is "
    "wrong. Refused: not kept, because no agreement covers them or law forbids it.",
    "apostille quarantine list",
    "apostille quarantine show cert.de.example 17",
)


@make.command(app, "list", "apostille quarantine list")
def list_entries(as_json: make.AsJson = False) -> None:
    """Lists every entry that was set aside, newest first."""
    from node.records import quarantine

    found = quarantine.all_set_aside(session.node())
    if as_json:
        screen.emit([_data(entry) for entry in found])
        return
    if not found:
        screen.note("Nothing was set aside.")
        return
    screen.table(
        ("Peer", "#Entry", "Received", "Outcome", "Code", "Reason"),
        [(e.peer, e.seq, e.received_at, e.outcome, e.code, e.detail) for e in found],
    )


@make.command(
    app,
    "show",
    "apostille quarantine show cert.de.example 17",
    "apostille quarantine show cert.de.example 17 --out entry-17.bin",
)
def show(
    peer: Annotated[str, typer.Argument(help="Who sent it.")],
    entry: Annotated[int, typer.Argument(metavar="ENTRY", min=0, help="Its number in that peer's feed.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the bytes to a file. Handle it as you would malware.")
    ] = None,
    as_json: make.AsJson = False,
) -> None:
    """Shows why an entry was set aside. Its bytes are never shown, only written to a file if you ask for one."""
    from federation.model import NodeId
    from node.records import quarantine

    found, data = quarantine.set_aside(session.node(), NodeId(peer), entry)
    if out is not None and data is None:
        raise HeldError(f"entry {entry} of {peer} was {found.outcome}, so its bytes were never kept")
    if out is not None and data is not None:
        session.write_file(out, data)
        screen.note(
            f"Wrote {out}, {len(data)} bytes that were found wanting: do not open them with anything you trust."
        )
    if as_json:
        screen.emit(_data(found))
        return
    screen.facts(
        [
            ("Peer", found.peer),
            ("Entry", found.seq),
            ("Outcome", found.outcome),
            ("Code", found.code),
            ("Reason", found.detail),
            ("Received", found.received_at),
            ("Size", "not kept" if found.size is None else f"{found.size} bytes"),
            ("SHA-256", found.sha256),
            ("Leaf hash", found.leaf_hash),
        ]
    )


def _data(entry: "SetAside") -> dict[str, Any]:
    return {
        "peer": entry.peer,
        "entry": entry.seq,
        "outcome": entry.outcome,
        "code": entry.code,
        "reason": entry.detail,
        "received_at": entry.received_at,
        "size": entry.size,
        "sha256": entry.sha256,
        "leaf_hash": entry.leaf_hash,
    }
