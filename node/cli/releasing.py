"""Showing what a release comes to: for each peer what leaves, and the rules that keep the rest here."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from federation.errors import HeldError
from federation.model import Decision, Form, JsonObject, NodeId
from federation.outbound import open_as_receiver
from federation.policy.explain import by_rule, explain
from node.cli import exits, revising, screen, session
from node.cli.summaries import summary_data
from node.sharing import releases
from node.sharing.advisories import Summary
from node.sharing.releases import Outcome

_NOTHING = "nothing leaves"


def run(name: str, to: Iterable[str], *, dry_run: bool, verbose: bool, as_json: bool) -> None:
    """Releases, or shows what that would do. Raises RefusedError when nothing left, HeldError if anything is held."""
    node = session.node()
    peers = tuple(map(NodeId, to))
    summary, outcomes = (releases.preview if dry_run else releases.release)(node, name, peers)
    if not dry_run and any(outcome.seq is not None for outcome in outcomes):
        session.wake()
    if as_json:
        shown = [outcome_data(outcome, verbose=verbose) for outcome in outcomes]
        unsettled = [] if dry_run else [revising.data(holder) for holder in revising.open_holders(node, name)]
        screen.emit({**summary_data(summary), "dry_run": dry_run, "peers": shown, "unsettled": unsettled})
    else:
        _show(summary, outcomes, dry_run=dry_run, verbose=verbose)
    if dry_run:
        return
    if not as_json:
        revising.say_unsettled(node, name)
    held = [outcome.peer for outcome in outcomes if outcome.held is not None]
    if held:
        raise HeldError(f"{name} is held for {', '.join(held)}: a person must look at why")
    if all(outcome.seq is None for outcome in outcomes):
        raise exits.RefusedError(f"nothing of {name} left; see: apostille explain {name} PEER")


def seen_by(name: str, peer: str) -> tuple[Summary, JsonObject, JsonObject | None]:
    """The document and AI part as `peer` would get them now. Raises NotFoundError, HeldError, RefusedError."""
    summary, outcome = releases.explain(session.node(), name, NodeId(peer))
    if outcome.held is not None:
        raise HeldError(f"{name} is held for {peer}: {outcome.held}")
    if outcome.presented is None:
        raise exits.RefusedError(f"{peer} would get nothing of {name}; see: apostille explain {name} {peer}")
    claims = open_as_receiver(outcome.presented.presentation)
    return summary, claims["csaf"], claims.get("ai")


def counts(decision: Decision) -> Counter[Form]:
    """How many parts leave in each form."""
    return Counter(decided.form for decided in decision.elements)


def result(outcome: Outcome, *, dry_run: bool) -> str:
    """What came of it, in a few words."""
    if outcome.held is not None:
        return f"HELD: {outcome.held}"
    if outcome.presented is None:
        return _NOTHING
    if outcome.already:
        return f"unchanged since entry {outcome.seq}"
    return "would be released" if dry_run else f"released as entry {outcome.seq}"


def outcome_data(outcome: Outcome, *, verbose: bool) -> dict[str, Any]:
    """The outcome for one peer, for scripts; `elements` only with `verbose`."""
    decision = outcome.decision
    number = counts(decision)
    data: dict[str, Any] = {
        "peer": outcome.peer,
        "full": number[Form.FULL],
        "generalised": number[Form.GENERALISED],
        "withheld": number[Form.WITHHELD],
        "entry": outcome.seq,
        "already": outcome.already,
        "leaves": outcome.presented is not None,
        "held": outcome.held,
        "agreement": decision.agreement_digest,
        "narrowed": outcome.presented.narrowed if outcome.presented else [],
        "owed": [{"rule": rule.id, "basis": rule.basis, "says": rule.says} for rule in decision.owed],
        "alarms": decision.alarms,
        "next_change_at": decision.next_change_at,
        "rules": [_rule(row.form, row.rule_id, row.basis, row.says, paths) for row, paths in by_rule(decision)],
    }
    if verbose:
        data["elements"] = [
            {"path": row.path, "categories": row.categories, "form": row.form, "rule": row.rule_id}
            for row in explain(decision)
        ]
    return data


def say_extras(outcome: Outcome) -> None:
    """What else there is to know about a decision, in sentences."""
    for rule in outcome.decision.owed:
        screen.note(f"{outcome.peer}: a duty to send applies: {rule.says} ({rule.id}, {rule.basis})")
    for alarm in outcome.decision.alarms:
        screen.note(f"{outcome.peer}: ALARM: {alarm}")
    if outcome.decision.next_change_at is not None:
        screen.note(
            f"{outcome.peer}: time alone may change this from {screen.cell(outcome.decision.next_change_at)} on."
        )


def _show(summary: Summary, outcomes: tuple[Outcome, ...], *, dry_run: bool, verbose: bool) -> None:
    screen.facts([("Advisory", f"{summary.name}, revision {summary.revision}"), ("TLP", summary.handling.tlp)])
    show_outcomes(outcomes, dry_run=dry_run, verbose=verbose)


def show_outcomes(outcomes: tuple[Outcome, ...], *, dry_run: bool, verbose: bool) -> None:
    """What leaves for each peer, and the rules that keep the rest here."""
    screen.table(
        ("Peer", "#Full", "#Generalised", "#Withheld", "Result"),
        [
            (
                outcome.peer,
                *(counts(outcome.decision)[form] for form in (Form.FULL, Form.GENERALISED, Form.WITHHELD)),
                result(outcome, dry_run=dry_run),
            )
            for outcome in outcomes
        ],
    )
    rows = [
        (outcome.peer, row.form, len(paths), row.rule_id, row.basis, row.says)
        for outcome in outcomes
        for row, paths in by_rule(outcome.decision)
        if verbose or row.form is not Form.FULL
    ]
    if rows:
        screen.table(("Peer", "Form", "#Parts", "Rule", "Legal basis", "Why"), rows)
    if verbose:
        for outcome in outcomes:
            screen.heading(f"Every part, for {outcome.peer}")
            screen.table(
                ("Part", "Categories", "Form", "Rule"),
                [(row.path, row.categories, row.form, row.rule_id) for row in explain(outcome.decision)],
            )
    for outcome in outcomes:
        say_extras(outcome)
    if dry_run:
        screen.note("Nothing was signed or sent.")


def _rule(form: Form, rule: str, basis: str, says: str, paths: tuple[str, ...]) -> dict[str, Any]:
    return {"form": form, "rule": rule, "basis": basis, "says": says, "paths": paths}
