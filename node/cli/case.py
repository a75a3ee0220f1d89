"""`apostille case`: private cases."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli import make, screen, session

if TYPE_CHECKING:
    from node.sharing.cases import Case

app = make.group(
    "Private records of what you work on. A case never leaves this node: advisories are drafted from named fields.",
    "apostille case open case.yaml",
    "apostille case list",
)
_FIELDS = (
    ("summary", "Summary"),
    ("details", "Technical details"),
    ("exploit", "Exploit"),
    ("indicators", "Indicators of compromise"),
    ("victim", "Affected organisation"),
    ("products", "Products"),
    ("severity", "Severity"),
    ("remediation", "Remediation"),
    ("internal_notes", "Internal notes (never copied)"),
)


@make.command(app, "open", "apostille case open case.yaml")
def open_case(
    file: Annotated[
        Path, typer.Argument(help="The case as YAML: case, title, summary, handling, and what else is known.")
    ],
    as_json: make.AsJson = False,
) -> None:
    """Opens a case from a file. The reporter's name is encrypted at rest."""
    from federation.limits import MAX_DOCUMENT_BYTES
    from node.sharing import cases

    text = session.read_text(file, MAX_DOCUMENT_BYTES)
    opened = cases.open_case(session.node(), text, str(file))
    if as_json:
        screen.emit(_data(opened))
        return
    screen.note(f"Opened {opened.name}. Next: apostille advisory draft {opened.name}")


@make.command(app, "list", "apostille case list")
def list_cases(as_json: make.AsJson = False) -> None:
    """Lists every case."""
    from node.sharing import cases

    found = cases.all_cases(session.node())
    if as_json:
        screen.emit([_data(case) for case in found])
        return
    if not found:
        screen.note("There is no case. Open one with: apostille case open FILE")
        return
    screen.table(("Case", "Title", "Opened", "By"), [(c.name, c.title, c.opened_at, c.opened_by) for c in found])


@make.command(app, "show", "apostille case show FR-2026-017", "apostille case show FR-2026-017 --reporter")
def show(
    name: Annotated[str, typer.Argument(help="The case's name.")],
    reporter: Annotated[
        bool, typer.Option("--reporter", help="Show who reported it; that you looked is recorded.")
    ] = False,
    as_json: make.AsJson = False,
) -> None:
    """Shows a case. Who reported it stays sealed unless you ask."""
    from node.sharing import cases

    case = cases.show_case(session.node(), name, with_reporter=reporter)
    if as_json:
        shown = {**_data(case), "record": case.record}
        screen.emit({**shown, "reporter": case.reporter} if reporter else shown)
        return
    screen.facts([("Case", case.name), ("Title", case.title), ("Opened", case.opened_at), ("By", case.opened_by)])
    if reporter:
        screen.facts([("Reporter", _text(case.reporter) if case.reporter else "none was recorded")])
    for field, name_of_field in _FIELDS:
        if field in case.record:
            screen.heading(name_of_field)
            screen.paragraph(_text(case.record[field]), indent=2)
    screen.heading("Handling of what is drafted from it")
    screen.facts((f"  {key}", value) for key, value in case.record["handling"].items())


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(_text(item) for item in value)
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)


def _data(case: "Case") -> dict[str, Any]:
    return {"case": case.name, "title": case.title, "opened_at": case.opened_at, "opened_by": case.opened_by}
