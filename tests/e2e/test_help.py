"""Help: every command shows an example, and asking for it imports nothing heavy.

The time that help takes is not measured here; what would make it slow is: the modules that were imported.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
_HEAVY = ("grpc", "sqlalchemy", "cedarpy", "csaf", "federation.policy", "cryptography", "rich")
_WALK = """
import json, sys
import typer
from node.cli import app, main

def walk(command, context, path):
    yield " ".join(path), command.get_help(context)
    for name in command.list_commands(context) if hasattr(command, "list_commands") else ():
        child = command.get_command(context, name)
        yield from walk(child, child.context_class(child, info_name=name, parent=context), [*path, name])

root = typer.main.get_command(app)
helps = dict(walk(root, root.context_class(root, info_name="apostille"), ["apostille"]))
print(json.dumps({"helps": helps, "modules": sorted(sys.modules)}))
"""
_ALL = 40  # about as many commands and groups as there are, so that a walk that finds nothing is noticed


def _python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("APOSTILLE_")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**environment, "PYTHONPATH": str(ROOT)},
        timeout=60,
    )


@pytest.fixture(scope="module")
def walked() -> dict[str, Any]:
    """The help of every command, and the modules that were imported for all of it."""
    done = _python(_WALK)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_command_has_an_example(walked: dict[str, Any]) -> None:
    helps: dict[str, str] = walked["helps"]
    assert len(helps) >= _ALL
    for path, text in helps.items():
        _, _, after = text.partition("Example")
        shown = [line.split() for line in after.splitlines()]
        words = path.split()[1:]
        fitting = [line for line in shown if line and line[0] == "apostille" and all(word in line for word in words)]
        assert fitting, f"{path} --help shows no example of itself"


def test_every_command_says_what_it_does(walked: dict[str, Any]) -> None:
    for path, text in walked["helps"].items():
        about = text.split("\n\n")[1].strip()
        assert about.rstrip().endswith("."), f"{path}: {about}"


def test_every_command_that_prints_data_takes_json(walked: dict[str, Any]) -> None:
    without = {path for path, text in walked["helps"].items() if "Commands:" not in text and "--json" not in text}
    assert without == {
        "apostille",
        "apostille serve",
        "apostille demo",
        "apostille card export",
        "apostille peer distrust",
        "apostille peer trust",
        "apostille peer incident export",
        "apostille peer incident resolve",
        "apostille peer epoch open",
        "apostille peer epoch accept",
        "apostille agreement template",
        "apostille advisory label",
        "apostille inbox export",
        "apostille proof export",
    }


def test_help_imports_nothing_heavy(walked: dict[str, Any]) -> None:
    loaded = [name for name in walked["modules"] if name.startswith(_HEAVY)]
    assert loaded == []


def test_the_overview_imports_no_command() -> None:
    done = _python("import sys; from node.cli import main\ntry: main()\nfinally: print(*sys.modules)", "--help")
    assert done.returncode == 0
    assert "Peers and agreements:" in done.stdout
    assert "node.cli.advisory" not in done.stdout.split()
    assert "node.cli.screen" in done.stdout.split()


def test_a_group_alone_shows_its_help_and_counts_as_wrong_use() -> None:
    done = _python("from node.cli import main; main()", "inbox")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "apostille inbox export 3" in done.stderr


@pytest.mark.parametrize(
    ("typed", "meant"), [(("agrement",), "agreement"), (("advisory", "relase"), "release"), (("statu",), "status")]
)
def test_a_typing_mistake_gets_a_suggestion(typed: tuple[str, ...], meant: str) -> None:
    done = _python("from node.cli import main; main()", *typed)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"Did you mean '{meant}'" in done.stderr  # the nearest stands first
