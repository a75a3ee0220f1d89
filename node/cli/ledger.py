"""`apostille ledger`: the account of every disclosure, and whether it agrees with what was sent and signed."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli import exits, make, screen, session

if TYPE_CHECKING:
    from node.records.ledger import LedgerRow

app = make.group(
    "The account of every disclosure: what went to whom, which parts, under which agreement and rules, by whom.",
    "apostille ledger list",
    "apostille ledger list --peer cert.de.example --json",
    "apostille ledger verify",
)


@make.command(
    app,
    "list",
    "apostille ledger list --peer cert.de.example",
    "apostille ledger list --advisory CERT-FR-2026-0131 --elements",
)
def list_rows(
    peer: Annotated[str | None, typer.Option(metavar="PEER", help="Only what went to this peer.")] = None,
    advisory: Annotated[str | None, typer.Option(metavar="NAME", help="Only this advisory.")] = None,
    elements: Annotated[
        bool, typer.Option("--elements", help="Every part with its form and the rules that decided.")
    ] = False,
    as_json: make.AsJson = False,
) -> None:
    """Lists disclosures, oldest first. Acknowledged: the peer has signed that it holds the entry durably."""
    from federation.model import Form, NodeId
    from node.records import ledger

    rows = ledger.rows(session.node(), NodeId(peer) if peer is not None else None, advisory)
    if as_json:
        screen.emit([_data(row, elements=elements) for row in rows])
        return
    if not rows:
        screen.note("Nothing was disclosed.")
        return
    if not elements:
        screen.table(
            ("When", "By", "Peer", "#Entry", "Advisory", "#Rev.", "#Full", "#Gen.", "#Withheld", "Agreement", "State"),
            [
                (
                    row.at,
                    row.by,
                    row.peer,
                    row.seq,
                    row.name,
                    row.revision,
                    *(
                        sum(f is form for _, f, _ in row.elements)
                        for form in (Form.FULL, Form.GENERALISED, Form.WITHHELD)
                    ),
                    row.facts["agreement"][:12],
                    _state(row),
                )
                for row in rows
            ],
        )
        return
    for row in rows:
        screen.heading(
            f"{row.name} revision {row.revision} to {row.peer}, entry {row.seq}, {screen.cell(row.at)} by {row.by}"
        )
        screen.facts(
            [("  agreement", row.facts["agreement"]), ("  core", row.facts["core_digest"]), ("  state", _state(row))]
        )
        screen.table(("Part", "Form", "Rules"), row.elements)


@make.command(app, "verify", "apostille ledger verify", "apostille ledger verify --json")
def verify(as_json: make.AsJson = False) -> None:
    """Checks all that this node says of the past against what was sent and what peers signed; changes nothing.

    Every hash and signature is computed again: the ledger's chain, the feeds both ways, receipts, the inbox, own
    advisories, agreements, recalls and statements. Ends with code 1 when anything does not agree. Works beside a
    running server.
    """
    from node.audit import verify as checks

    node = session.node()
    with screen.progress("Checking rows", checks.count(node)) as advance:
        report = checks.verify(node, advance)
    if as_json:
        screen.emit(
            {
                "ledger_rows": report.ledger_rows,
                "sent": report.sent,
                "received": report.received,
                "findings": [{"place": finding.place, "says": finding.says} for finding in report.findings],
            }
        )
    else:
        screen.facts(
            [
                ("Ledger rows", report.ledger_rows),
                ("Entries sent", report.sent),
                ("Entries received", report.received),
                ("Findings", len(report.findings)),
            ]
        )
        if report.findings:
            screen.table(("Place", "Finding"), [(finding.place, finding.says) for finding in report.findings])
    if report.findings:
        number = f"{len(report.findings)} finding{'s' if len(report.findings) > 1 else ''}"
        raise exits.RefusedError(f"{number}: keep the database as it is, and compare it with a backup")


_TAKEN_BACK = {"withdrawal": "withdrawn", "recall": "recalled", "purge": "purged"}


def _state(row: "LedgerRow") -> str:
    if row.taken_back is not None:
        act, at = row.taken_back
        return f"{_TAKEN_BACK[act]} {screen.cell(at)}"
    return "acknowledged" if row.receipt else "not yet fetched"


def _data(row: "LedgerRow", *, elements: bool) -> dict[str, Any]:
    data: dict[str, Any] = {
        "at": row.at,
        "by": row.by,
        "peer": row.peer,
        "entry": row.seq,
        "advisory": row.name,
        "revision": row.revision,
        "row": row.number,
        "feed": row.feed,
        "core_digest": row.facts["core_digest"],
        "agreement": row.facts["agreement"],
        "taken_back": None if row.taken_back is None else row.taken_back[0],
        "taken_back_at": None if row.taken_back is None else row.taken_back[1],
        "receipt": row.receipt,
    }
    if elements:
        data["elements"] = [{"path": path, "form": form, "rules": rules} for path, form, rules in row.elements]
    return data
