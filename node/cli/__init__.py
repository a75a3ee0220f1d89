"""The command line. `main` is the entry point of the console script `apostille`.

A module for each noun, imported when that noun is used; `screen` is what people see, `exits` the one place that turns
errors into exit codes. Commands call use cases and print: nothing is decided here.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from node.cli import exits, session
from node.cli.make import Entry, Root, root, show_help_if_alone

_SET_UP, _AGREE, _WORK, _RECEIVE = "Set up and run", "Peers and agreements", "Your advisories", "What came in"
_CATALOGUE = {
    "init": Entry(_SET_UP, "node.cli.init", "Make a node: keys, card, settings, database."),
    "serve": Entry(_SET_UP, "node.cli.serve", "Run the node until it is told to stop."),
    "status": Entry(_SET_UP, "node.cli.status", "How the node and its feeds are doing."),
    "alerts": Entry(_SET_UP, "node.cli.alerts", "What a person has to look at, and who is told."),
    "doctor": Entry(_SET_UP, "node.cli.doctor", "Check the home, keys, database, clock and disk."),
    "backup": Entry(_SET_UP, "node.cli.backup", "Copy the home into one file; check such a file."),
    "restore": Entry(_SET_UP, "node.cli.restore", "Put a backup in the place of a home."),
    "upgrade": Entry(_SET_UP, "node.cli.upgrade", "Bring the database to the schema of this version."),
    "demo": Entry(_SET_UP, "node.cli.demo", "Three nodes on this machine share advisories: see it work."),
    "card": Entry(_AGREE, "node.cli.card", "The card by which peers know this node."),
    "key": Entry(_AGREE, "node.cli.key", "The keys in daily use: list, rotate, retire."),
    "peer": Entry(_AGREE, "node.cli.peer", "Enrol, list, distrust and trust other nodes."),
    "agreement": Entry(_AGREE, "node.cli.agreement", "Sharing agreements: write, sign, look at."),
    "people": Entry(_AGREE, "node.cli.people", "Who may do what on this node."),
    "approval": Entry(_AGREE, "node.cli.approval", "What takes two people: ask, approve, refuse."),
    "case": Entry(_WORK, "node.cli.case", "Private cases; they never leave this node."),
    "advisory": Entry(_WORK, "node.cli.advisory", "Draft, import, label, release advisories."),
    "recall": Entry(_WORK, "node.cli.recall", "Take an advisory back from everybody who holds it."),
    "explain": Entry(_WORK, "node.cli.explain", "Why a peer gets which parts of an advisory."),
    "ledger": Entry(_WORK, "node.cli.ledger", "What was disclosed, to whom, by which rule."),
    "proof": Entry(_WORK, "node.cli.proof", "Show an auditor what was disclosed, and check what others show."),
    "sync": Entry(_RECEIVE, "node.cli.sync", "Fetch now what peers have for this node."),
    "inbox": Entry(_RECEIVE, "node.cli.inbox", "Advisories that peers sent."),
    "statement": Entry(_RECEIVE, "node.cli.statement", "What nodes say to each other about advisories."),
    "relay": Entry(_RECEIVE, "node.cli.relay", "Pass a received advisory on, for its origin."),
    "purge": Entry(_RECEIVE, "node.cli.purge", "Erase what may be kept no longer."),
    "quarantine": Entry(_RECEIVE, "node.cli.quarantine", "Entries that were set aside, and why."),
}


class _Commands(Root):
    catalogue = _CATALOGUE


app = root(
    _Commands,
    "Share signed security advisories with other nodes, each peer getting what law and agreement allow.",
    "apostille init --id cert.fr.example --jurisdiction FR --listen 192.0.2.7:7443",
    "apostille --home /srv/apostille status",
    "apostille advisory release --help",
)


def _version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        typer.echo(f"apostille {version('apostille')}")
    except PackageNotFoundError:
        typer.echo("apostille (run from its source tree)")
    raise typer.Exit


@app.callback(invoke_without_command=True)
def _begin(
    ctx: typer.Context,
    home: Annotated[
        Path | None,
        typer.Option(
            "--home",
            envvar=session.HOME_VARIABLE,
            metavar="DIR",
            readable=False,  # typer would ask for the real account; what counts is whether the home opens
            help="The node's folder.  [default: ~/.apostille]",
        ),
    ] = None,
    version: Annotated[  # noqa: ARG001 - its callback has answered before
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    session.choose_home(home)
    show_help_if_alone(ctx)


def main() -> None:
    """Runs the command that the process was called with, and ends the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # text that the terminal's encoding lacks is shown as codes
    command = typer.main.get_command(app)
    sys.exit(int(exits.run(lambda: command.main(prog_name="apostille", standalone_mode=False))))
