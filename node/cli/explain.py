"""`apostille explain`: why a peer gets which parts of an advisory."""

from typing import Annotated

import typer

from node.cli import make, screen, session

app = make.single()
_SHOWN_PATHS = 8


@make.command(
    app,
    "explain",
    "apostille explain CERT-FR-2026-0131 cert.de.example",
    "apostille explain CERT-FR-2026-0131 cert.in.example --all",
)
def explain(
    name: Annotated[str, typer.Argument(help="One of this node's own advisories.")],
    peer: Annotated[str, typer.Argument(help="Who would get it.")],
    every: Annotated[bool, typer.Option("--all", help="List every part, however many a rule decides.")] = False,
    as_json: make.AsJson = False,
) -> None:
    """Tells, rule by rule, which parts of an advisory a peer would get now: whole, generalised or not at all.

    Each rule is named with the article or clause that it rests on. What is withheld comes first. Nothing is changed.
    """
    from federation.model import Form, NodeId
    from federation.policy.explain import by_rule
    from node.cli import releasing
    from node.sharing import releases

    summary, outcome = releases.explain(session.node(), name, NodeId(peer))
    if as_json:
        screen.emit(
            {"advisory": summary.name, "revision": summary.revision, **releasing.outcome_data(outcome, verbose=True)}
        )
        return
    number = releasing.counts(outcome.decision)
    screen.facts(
        [
            ("Advisory", f"{summary.name}, revision {summary.revision}, TLP:{summary.handling.tlp}"),
            ("For", outcome.peer),
            ("Result", releasing.result(outcome, dry_run=True)),
            ("Parts", ", ".join(f"{number[form]} {form}" for form in Form)),
        ]
    )
    for row, paths in by_rule(outcome.decision):
        screen.heading(f"{row.form.upper()}: {row.says}")
        screen.facts([("  rule", row.rule_id), ("  rests on", row.basis)])
        shown = paths if every else paths[:_SHOWN_PATHS]
        screen.paragraph("\n".join(shown), indent=4)
        if len(paths) > len(shown):
            screen.paragraph(f"and {len(paths) - len(shown)} more (--all lists them)", indent=4)
    screen.note("")
    releasing.say_extras(outcome)
