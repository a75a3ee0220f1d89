"""`apostille upgrade`: brings the database of a home to the schema of this version."""

from typing import Annotated

import typer

from node.cli import make, screen, session

app = make.single()


@make.command(app, "upgrade", "apostille upgrade", "apostille --home /srv/apostille upgrade --no-copy")
def upgrade(
    no_copy: Annotated[bool, typer.Option("--no-copy", help="Keep no copy of the database as it was.")] = False,
    as_json: make.AsJson = False,
) -> None:
    """Brings the database to the schema that this version works with: all of it, or nothing when it is interrupted.

    Stop the server first. The database as it was is kept beside it, unless --no-copy is given, until something is
    erased; one on a PostgreSQL server is not copied, so dump it before. When there is nothing to do, nothing is done.
    """
    from node.main import upgrade_home

    done = upgrade_home(session.home(), keep_copy=not no_copy)
    if as_json:
        screen.emit({"before": done.before, "after": done.after, "copy": None if done.copy is None else str(done.copy)})
    elif done.before == done.after:
        screen.note(f"The database has schema {done.after} already: nothing to do.")
    else:
        screen.facts([("Schema before", done.before), ("Schema now", done.after), ("Copy", done.copy)])
    if done.copy is not None:
        screen.note(f"{done.copy} is the database as it was, with everything in it.")
        screen.note(
            "Delete it once you are content; the first thing that is erased or recalled from now on takes it along."
        )
