"""What commands write, as people and programs see it: in a pipe, as JSON, with colours forced, on a terminal."""

import fcntl
import json
import os
import pty
import re
import struct
import termios
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.commands import Running, outside
from tests.e2e.processes import PATIENCE_S

TERMINALS = {"80 columns": 80, "200 columns": 200}
BETWEEN = "<<<between two commands>>>"
MANY = f"""
import json, os, sys
from pathlib import Path
import typer
from functools import cache
from nacl.pwhash import argon2id
from node import main
from node.cli import app, exits, screen

argon2id.kdf, main.load_labels = cache(argon2id.kdf), cache(main.load_labels)  # what is slow is done once
command = typer.main.get_command(app)
for words in json.loads(Path(sys.argv.pop()).read_text()):
    screen._PRINTED.clear()
    exits.run(lambda: command.main(args=words, prog_name="apostille", standalone_mode=False))
    for stream in (sys.stdout, sys.stderr):
        print("\\n{BETWEEN}", file=stream, flush=True)
"""


def run_all(home: Path, lines: Sequence[Sequence[str]], mode: str) -> tuple[list[str], list[str]]:
    """What each of these commands writes to stdout and to stderr, one after the other in one process."""
    script = home.parent / "commands.json"
    script.write_text(json.dumps([["--home", str(home), *line] for line in lines]), "utf-8")
    env = outside() | {"TERM": "xterm-256color"} | ({"FORCE_COLOR": "1"} if mode == "colours" else {})
    env.pop("NO_COLOR", None)
    if mode in TERMINALS:
        out, err = on_terminal(script, env, TERMINALS[mode])
    else:
        with Running(str(script), code=MANY, env=env, cwd=home.parent) as process:
            out, err = process.communicate(timeout=3 * PATIENCE_S)
    assert BETWEEN in out, err
    both = [[part.removesuffix("\n") for part in text.split(f"{BETWEEN}\n")][:-1] for text in (out, err)]
    assert len(both[0]) == len(both[1]) == len(lines), err
    return both[0], both[1]


def on_terminal(script: Path, env: dict[str, str], columns: int, code: str = MANY) -> tuple[str, str]:
    """What `code` writes that is given a file, with a terminal as stdout, and to stderr."""
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    parts: list[bytes] = []

    def read() -> None:
        with suppress(OSError):  # what a terminal says at its end
            while True:
                parts.append(os.read(master, 1 << 16))

    reader = threading.Thread(target=read)
    try:
        process = Running(str(script), code=code, env=env, cwd=script.parent, stdout=terminal)
    finally:
        os.close(terminal)
    reader.start()
    with process:
        _, err = process.communicate(timeout=3 * PATIENCE_S)
    reader.join(PATIENCE_S)
    os.close(master)
    return b"".join(parts).decode("utf-8").replace("\r\n", "\n"), err


def json_faults(text: str) -> list[str]:
    """What is wrong with JSON on stdout: one line of ASCII without controls."""
    if text and not re.fullmatch(r"(?:[\x20-\x7e]+\n)?", text):
        return [f"not one line of ASCII: {text[:80]!r}"]
    try:
        json.loads(text or "0")
    except ValueError as e:
        return [f"not JSON: {e}"]
    return []
