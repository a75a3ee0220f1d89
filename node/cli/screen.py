"""What people and scripts see: tables, facts, JSON, progress; and the cleaning of text that a peer wrote.

Data goes to stdout, notes and progress to stderr. Nothing is read as markup. A terminal gets colours unless NO_COLOR is
set; anything else gets plain text, so wide that no cell is folded. Rich is imported when first drawn with.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from federation.model import instant_text
from node.home import inert

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_PLAIN_WIDTH = 10_000  # columns of a table in a pipe: it is as wide as what stands in it
_PROGRESS_AFTER_S = 1.0
_FOLDED, _LEAST_WIDTH = 4, 20  # columns by which what is folded is indented, and that are left for it
_MAX_CELL = 300  # characters; a peer chooses how long its titles are
_MAX_LIST = 2_000  # characters of all its items together: a row of a table stays one line of a pipe
_PRINTED: list[bool] = []  # whether something stands on stdout already
_STYLES = {
    "full": "green",
    "generalised": "yellow",
    "withheld": "red",
    "ok": "green",
    "warn": "yellow",
    "fail": "bold red",
    "in force": "green",
    "proposed": "yellow",
    "pending": "yellow",
    "expired": "red",
    "trusted": "green",
    "DISTRUSTED": "bold red",
    "issued": "green",
    "draft": "yellow",
    "admitted": "green",
    "quarantined": "yellow",
    "refused": "red",
}


class Alarming(str):
    """A value that is drawn so that nobody overlooks it."""

    __slots__ = ()


def clean(text: object) -> str:
    """`text` without anything that could steer a terminal or reorder what is read; line breaks become spaces."""
    return inert.line(str(text))


def cell(value: object) -> str:
    """A value as it stands in a table: instants in UTC, lists with commas, nothing as a dash, long text cut short."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}Z"
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, (list, tuple, set, frozenset)):
        return (
            _cut(", ".join(map(cell, value if isinstance(value, (list, tuple)) else sorted(value))), _MAX_LIST) or "-"
        )
    return _cut(clean(value), _MAX_CELL)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout, apart from what stands before it. A column named `#…` holds numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        drawn.add_column(
            clean(column.removeprefix("#")), justify="right" if column.startswith("#") else "left", overflow="fold"
        )
    for row in rows:
        texts = [cell(value) for value in row]
        drawn.add_row(*(Text(text, style=_STYLES.get(text, "")) for text in texts))
    _print(drawn, apart=True)


def facts(pairs: Iterable[tuple[str, object]]) -> None:
    """Names and values, one a line, on stdout. A name that is indented stays so where it is folded."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    drawn = Table.grid(padding=(0, 2))
    for name, value in pairs:
        text = cell(value)
        style = "bold red" if isinstance(value, Alarming) else _STYLES.get(text, "")
        label = _cut(clean(name), _MAX_CELL)
        words = label.lstrip(" ")
        drawn.add_row(Padding(Text(words, style="bold"), (0, 0, 0, len(label) - len(words))), Text(text, style=style))
    _print(drawn)


def heading(text: str) -> None:
    """A heading on stdout, apart from what stands before it. Only its first line stands where our own lines begin."""
    from rich.text import Text

    width = max(_LEAST_WIDTH, _console(sys.stdout).width - _FOLDED)
    lines = Text(clean(text), style="bold").wrap(_console(sys.stdout), width)
    _print(Text("\n" + " " * _FOLDED).join(lines), apart=True)


def paragraph(text: str, *, indent: int = 0) -> None:
    """Text on stdout, its own line breaks kept, everything else cleaned."""
    from rich.padding import Padding
    from rich.text import Text

    lines = "\n".join(map(clean, text.splitlines()))
    _print(Padding(Text(lines), (0, 0, 0, indent), expand=False))


def emit(data: object) -> None:
    """`data` as one line of JSON on stdout."""
    sys.stdout.write(json_text(plain(data)) + "\n")


def json_text(data: object, indent: int | None = None) -> str:
    """JSON of ASCII without controls: the same data, and a terminal shows it as it is."""
    separators = (",", ":") if indent is None else None
    return json.dumps(data, indent=indent, separators=separators)


def plain(data: object) -> Any:
    """`data` in JSON's own types: instants as 2026-11-21T09:30:00Z, bytes in hex, sets sorted."""
    if isinstance(data, datetime):
        return instant_text(data)
    if isinstance(data, bytes):
        return data.hex()
    if isinstance(data, Mapping):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, (set, frozenset)):
        return sorted(plain(value) for value in data)
    if isinstance(data, (list, tuple)):
        return [plain(value) for value in data]
    return data


def note(text: str) -> None:
    """A line for people, on stderr."""
    sys.stderr.write(clean(text) + "\n")
    sys.stderr.flush()


def raw(data: bytes) -> None:
    """Bytes as they are, on stdout."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def is_person() -> bool:
    """Whether somebody sits at both ends, so that a question can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Gives a function to call with how much is done. A bar appears on a terminal's stderr after a second of work."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=_console(sys.stderr),
        transient=True,
    )
    task, began = bar.add_task(clean(label), total=total), time.monotonic()

    def advance(done: int) -> None:
        bar.update(task, completed=done)
        if not bar.live.is_started and time.monotonic() - began >= _PROGRESS_AFTER_S:
            bar.start()

    try:
        yield advance
    finally:
        bar.stop()


def _print(drawn: "RenderableType", *, apart: bool = False) -> None:
    console = _console(sys.stdout)
    if apart and _PRINTED:
        console.print()
    _PRINTED.append(True)
    if sys.stdout.isatty():
        console.print(drawn)
        return
    with console.capture() as captured:
        console.print(drawn)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def _console(stream: Any) -> "Console":
    from rich.console import Console

    width = None if stream.isatty() else _PLAIN_WIDTH
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
