"""Documentation that is true: pages are followed, links lead somewhere, commands that are named exist.

In a block marked `console`, a line that begins with `$ ` is a command and `> ` continues the line above; all else is
output as shown, which is not compared. A page is one bash session in a temporary folder that looks like a clone. Every
command must end with code 0, or with N where `<!-- exit N -->` stands before the block. A command that ends in `&` is a
server: it must say that it is ready, and end cleanly when the page is over. What `make` is asked for is looked up in
the Makefile and not run.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from node.cli import app
from tests.commands import APOSTILLE, server

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "config").rglob("*.md")])
GUIDE = ROOT / "docs" / "operators-guide.md"
LEAST_OF_THE_GUIDE = 100  # commands: a parser that finds none would pass everything else
PATIENCE_S = 480
_CLONE = ("config", "docs", "tests")  # what pages name by paths inside a clone
_FENCE = re.compile(r"```([a-z]*)")
_EXIT = re.compile(r"<!-- exit ([0-9]+) -->")
_LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_CODE = re.compile(r"`(apostille [^`]+)`")
_TEST = re.compile(r"`(?:tests/)?((?:unit|property|vectors|conformance|faults|e2e)/\w+\.py)`")
_TYPED = re.compile(r"^\s*(?:\$ )?(apostille .*)$")
_NAME = re.compile(r"[a-z][a-z-]*")
_START = r"""
set -o pipefail
exec 3>codes
started=
ready() {
  for _ in $(seq 300); do
    grep -q ^Ready: "$1" && return 0
    kill -0 "$2" || return 1
    sleep 0.1
  done
  return 1
}
"""
_END = r"""
for process in $started; do
  kill "$process"
  wait "$process"
  echo "end $?" >&3
done
"""


@dataclass(frozen=True)
class Command:
    """A command of a page: its text, the number of its line, and the exit code that it should have."""

    text: str
    line: int
    code: int

    @property
    def is_server(self) -> bool:
        return self.text.endswith("&")


def commands(text: str) -> list[Command]:
    """The commands of a page, in order."""
    found: list[Command] = []
    block: str | None = None
    code = 0
    for number, line in enumerate(text.splitlines(), start=1):
        fence = _FENCE.match(line)
        if fence:
            block, code = (fence[1], code) if block is None else (None, 0)
        elif block is None:
            comment = _EXIT.fullmatch(line.strip())
            code = int(comment[1]) if comment else 0 if line.strip() else code
        elif block == "console" and line.startswith("$ "):
            found.append(Command(line[2:].strip(), number, code))
        elif block == "console" and line.startswith("> ") and found:
            found[-1] = Command(f"{found[-1].text}\n{line[2:]}", found[-1].line, code)
    return found


def script(page: list[Command]) -> str:
    """The page as one bash session that writes the line and exit code of each command to a file."""
    parts = [_START]
    for command in page:
        parts.append(f"echo {shlex.quote('$ ' + command.text)}")
        if command.is_server:
            log = f"server-{command.line}.log"
            parts.append(f'{command.text[:-1]} >{log} 2>&1 &\nstarted="$started $!"\nready {log} $!')
        else:
            parts.append(command.text)
        parts.append(f'echo "{command.line} $?" >&3')
    return "\n".join([*parts, _END])


def follow(text: str, folder: Path) -> list[str]:
    """Runs the commands of a page in `folder`; returns what went otherwise than the page says, and the session."""
    page = [command for command in commands(text) if not command.text.startswith("make ")]
    _make_clone(folder)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("APOSTILLE_")}
    environment |= {"HOME": str(folder), "PATH": f"{folder / '.venv' / 'bin'}:{environment['PATH']}"}
    session = folder / "session.log"
    with session.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            ["bash", "-c", script(page)],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            process.wait(PATIENCE_S)
        finally:  # whatever the page has started and not ended is in this group
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    expected = [f"{command.line} {command.code}" for command in page]
    expected += ["end 0" for command in page if command.is_server]
    ended = (folder / "codes").read_text(encoding="utf-8").splitlines()
    if ended == expected:
        return []
    return [
        *(f"line and exit code {line}: not as the page says" for line in ended if line not in expected),
        f"{len(ended)} of {len(expected)} commands ended",
        session.read_text(encoding="utf-8", errors="replace"),
    ]


def _make_clone(folder: Path) -> None:
    for name in _CLONE:
        (folder / name).symlink_to(ROOT / name)
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text("", encoding="utf-8")
    server().program(programs / "apostille", "-c", APOSTILLE)
    python = programs / "python"
    call = f"PYTHONPATH={shlex.quote(str(ROOT))} exec {shlex.quote(sys.executable)}"
    python.write_text(f'#!/bin/sh\n{call} "$@"\n', encoding="utf-8")
    python.chmod(0o755)


def broken_links(text: str, page: Path) -> list[str]:
    """The relative links of a page that lead to no file, or to no heading of a page."""
    broken = []
    for path, heading in _LINK.findall(text):
        target = page.parent / path if path else page
        if "://" in path:
            continue
        if not target.exists() or (heading and heading not in _headings(target)):
            broken.append(f"{path}#{heading}" if heading else path)
    return broken


def _headings(page: Path) -> set[str]:
    """The headings of a page as fragments of links: lower case, punctuation dropped, spaces as dashes."""
    return {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in _HEADING.findall(page.read_text(encoding="utf-8"))
    }


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _wrong(typed: str) -> str | None:
    """What is wrong with a command line of `apostille` as text shows it; None when there is such a command."""
    command: Any = typer.main.get_command(app)
    words = typed.split()[1:]
    options = {"--help", "-h", *(name for parameter in command.params for name in parameter.opts)}
    path = ["apostille"]
    while words:
        word = words.pop(0)
        if word in ("--home", "2>", ">"):
            words[:1] = []
        elif word.startswith("--"):
            if word.partition("=")[0] not in options:
                return f"{' '.join(path)} has no option {word}"
        elif hasattr(command, "list_commands") and _NAME.fullmatch(word):
            child = command.get_command(None, word)
            if child is None:
                return f"{' '.join(path)} has no command {word}"
            command = child
            path.append(word)
            options |= {name for parameter in command.params for name in parameter.opts}
        elif word in ("|", "&", ";", "&&"):
            break
    return None


FOLLOWED = [page for page in PAGES if commands(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", FOLLOWED, ids=_name)
def test_a_page_can_be_followed(page: Path, tmp_path: Path) -> None:
    wrong = follow(page.read_text(encoding="utf-8"), tmp_path)
    assert not wrong, "\n".join(wrong)


def test_the_guide_is_followed_at_length() -> None:
    assert len(commands(GUIDE.read_text(encoding="utf-8"))) >= LEAST_OF_THE_GUIDE


def test_what_make_is_asked_for_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    asked = {
        word
        for page in PAGES
        for text in (
            *(c.text for c in commands(page.read_text(encoding="utf-8"))),
            *re.findall(r"`(make [^`]+)`", page.read_text(encoding="utf-8")),
        )
        if text.startswith("make ")
        for word in text.split()[1:]
        if _NAME.fullmatch(word)
    }
    assert "demo" in asked
    assert asked <= targets


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page.read_text(encoding="utf-8"), page) == []


def test_a_link_that_leads_nowhere_is_noticed() -> None:
    text = "[a](exit-codes.md) [b](nowhere.md) [c](#11-law-packs) [d](protocol.md#14-versions) [e](protocol.md#no-such)"
    assert broken_links(text, GUIDE) == ["nowhere.md", "protocol.md#no-such"]


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    typed = [*_CODE.findall(text), *(m[1] for line in text.splitlines() if (m := _TYPED.match(line)))]
    assert [fault for line in typed if (fault := _wrong(line))] == []


def test_tests_that_are_named_exist() -> None:
    named = {name for page in PAGES for name in _TEST.findall(page.read_text(encoding="utf-8"))}
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / "tests" / name).is_file()] == []


def test_a_command_that_is_not_there_is_noticed() -> None:
    assert _wrong("apostille --home fr advisory release NAME --dry-run") is None
    assert _wrong("apostille advisory publish NAME") == "apostille advisory has no command publish"
    assert _wrong("apostille publish NAME") == "apostille has no command publish"
    assert _wrong("apostille inbox list --every") == "apostille inbox list has no option --every"


def test_a_page_that_does_not_work_is_noticed(tmp_path: Path) -> None:
    right = (
        "```console\n$ X=1\n$ test \\\n> $X = 1\nshown $ output\n```\n<!-- exit 3 -->\n\n```console\n$ (exit 3)\n```\n"
    )
    wrong = "```console\n$ false\n```\n\n```console\n$ sleep 60 &\n```\n"
    ending = "```console\n$ sh -c 'echo Ready:; exec sleep 60' &\n```\n"
    texts = (right, wrong.partition("\n\n")[0], wrong.partition("\n\n")[2].replace("sleep 60", "true"), ending)
    found = []
    for number, text in enumerate(texts):
        folder = tmp_path / str(number)
        folder.mkdir()
        found.append(follow(text, folder))
    assert found[0] == []
    assert "line and exit code 2 1: not as the page says" in found[1]
    assert "line and exit code 2 1: not as the page says" in found[2]
    assert "line and exit code end 143: not as the page says" in found[3]
