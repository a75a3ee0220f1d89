"""`apostille demo`: three nodes on this machine, from first key to verified export."""

from pathlib import Path
from typing import Annotated

import typer

from node.cli import make

app = make.single()


@make.command(app, "demo", "apostille demo", "apostille demo --dir /tmp/three-nodes --verbose")
def demo(
    folder: Annotated[
        Path | None,
        typer.Option("--dir", metavar="DIR", help="Keep the three homes in this folder, which must be new or empty."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the temporary folder in place.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show each command.")] = False,
) -> None:
    """Runs three nodes on this machine that enrol each other, agree, share and sync; then shows who got what, and why.

    It takes about a minute, touches no other home, and leaves nothing behind unless asked to.
    """
    from node import demo as play

    raise typer.Exit(play.run(folder, keep=keep, verbose=verbose))
