"""`apostille doctor`: is this home fit to run, and what to do where it is not. `node.operation.checkup` looks."""

from node.cli import exits, make, screen, session

app = make.single()


@make.command(app, "doctor", "apostille doctor", "apostille doctor --json")
def doctor(as_json: make.AsJson = False) -> None:
    """Checks home, keys, card, database, clock, disk, law packs, agreements and the installation. Changes nothing.

    ok: as it should be. warn: works now, but somebody should act. fail: must be mended; then the exit code is 1.
    """
    from node.operation.checkup import Verdict, examine

    found = examine(session.home())
    if as_json:
        screen.emit([{"check": f.check, "verdict": f.verdict, "found": f.found, "do": f.advice} for f in found])
    else:
        screen.table(
            ("Check", "Verdict", "Found", "What to do"), [(f.check, f.verdict, f.found, f.advice) for f in found]
        )
    failed = [finding.check for finding in found if finding.verdict is Verdict.FAIL]
    if failed:
        raise exits.RefusedError(f"not fit to run: {', '.join(failed)}")
