"""Commands as different people run them, and what they leave in a home.

A person is a process whose real user id is another one and whose effective user id is still that of the home's owner;
or one of the owner, with what sudo says of its caller.
"""

import sqlite3
from dataclasses import dataclass
from pathlib import Path

import pytest

from node.home import people
from tests.commands import APOSTILLE, outside
from tests.commands import run as run_apart

PATIENCE_S = 60
MANY = """
import contextlib, io, json, sys
import typer
from node.cli import app, exits

command, done = typer.main.get_command(app), []
for words in json.load(sys.stdin):
    out, err = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = exits.run(lambda: command.main(args=words, prog_name="apostille", standalone_mode=False))
    done.append((int(code), err.getvalue()))
json.dump(done, sys.stdout)
"""

_AS_SOMEBODY_ELSE = """
import ctypes, os, sys
from pathlib import Path

me, login, way = int(sys.argv.pop(1)), int(sys.argv.pop(1)), sys.argv.pop(1)
os.setresuid(me, me, 0)  # an ordinary account, which the kernel lets do what any may; the 0 is for what is below
if ctypes.CDLL(None).prctl(4, 1):  # PR_SET_DUMPABLE: its /proc is its own again, as after an exec
    sys.exit("CANNOT: prctl")
try:
    Path("/proc/self/loginuid").write_text(str(login))
except OSError as e:
    sys.exit(f"CANNOT: {e}")
if way == "sudo":
    os.setresuid(0, 0, 0)
    os.environ["SUDO_UID"] = str(me)
else:
    os.setresuid(me, 0, 0)
from node.cli import main
main()
"""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    def refused(self, code: int, *words: str) -> None:
        """It ended with `code` and one line that holds `words`."""
        assert self.code == code, (self.code, self.err)
        assert len(self.err.splitlines()) == 1, self.err
        assert all(word in self.err for word in words), self.err

    def ok(self) -> str:
        assert self.code == 0, self.err
        return self.out


def start(code: str, real: int, *words: str, login: int | None = None, stdin: str = "", cwd: Path) -> Done:
    """Python code as a process of the person with that user id."""
    done = run_apart(*words, code=code, input=stdin, cwd=cwd, timeout=PATIENCE_S, person=(login or real, real))
    return Done(done.returncode, done.stdout, done.stderr)


def run(home: Path, who: int, *words: str, login: int | None = None) -> Done:
    """One command, by one person."""
    return start(APOSTILLE, who, "--home", str(home), *words, login=login, cwd=home.parent)


def run_by_sudo(home: Path, who: int, *words: str) -> Done:
    """One command, by one person, as sudo runs it where the kernel has no login account."""
    called = {**outside(), "SUDO_UID": str(who)}
    done = run_apart("--home", str(home), *words, cwd=home.parent, timeout=PATIENCE_S, env=called)
    return Done(done.returncode, done.stdout, done.stderr)


def run_naming_a_login(home: Path, who: int, login: int, way: str, *words: str) -> Done:
    """One command, by one person who first tells the kernel that he logged in as somebody; skips where he cannot."""
    told = (str(who), str(login), way, "--home", str(home), *words)
    done = run_apart(*told, code=_AS_SOMEBODY_ELSE, cwd=home.parent, timeout=PATIENCE_S)
    if done.stderr.startswith("CANNOT"):
        pytest.skip(f"this kernel lets nobody name a login: this test was not run ({done.stderr.strip()})")
    return Done(done.returncode, done.stdout, done.stderr)


def state(home: Path) -> list[str]:
    """Everything in the database of a home."""
    connection = sqlite3.connect(f"file:{home / 'apostille.db'}?mode=ro", uri=True)
    try:
        return list(connection.iterdump())
    finally:
        connection.close()


def rows(home: Path, *acts: str) -> list[tuple[str, str, str]]:
    """Who did these acts, and the details of the audit rows."""
    connection = sqlite3.connect(f"file:{home / 'apostille.db'}?mode=ro", uri=True)
    try:
        found = connection.execute("SELECT by, act, detail FROM audit ORDER BY id").fetchall()
    finally:
        connection.close()
    return [row for row in found if row[1] in acts]


def account(uid: int) -> str:
    return people.name_of(uid)
