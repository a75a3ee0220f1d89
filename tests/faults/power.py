"""Power loss, simulated: what a process asked of its files, recorded by strace, and disks that a power cut may leave.

What counts as durable is what POSIX promises and no more. The content of a file is durable as far as a sync of that
file has returned since; a name is durable once its folder was synced. Of everything else any part may be lost: whole
writes, or single sectors of them, in any choice; names in their order.
"""

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.faults.strace import Call, calls

OPTIONS: Final = ("-y", "-xx", "-s", "16777216")
TRACED: Final = (
    "-e",
    "trace=openat,write,pwrite64,pwritev,writev,ftruncate,fallocate,fsync,fdatasync,rename,unlink,mmap",
)
SECTOR = 512
_FILE = re.compile(r"(\d+)<([^>]*)>")
_QUOTED = re.compile(r'"([^"]*)"')
_VOLATILE = "-shm"  # an index in memory, made anew by whoever opens the database first


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a record: what was done to the file `name`, or `marked`."""

    what: str
    name: str = ""
    data: bytes = b""
    place: int = 0  # of a write; of a truncation, the size after it
    new_name: str = ""


class UnknownCallError(Exception):
    """A call on a file of the database that this simulation does not know."""


def marking(marks: Path, what: str) -> str:
    """Code that defines `mark(text)`, after which the text stands in the record as a mark; then `what`."""
    return f"""
import os
_marks = os.open({str(marks)!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def mark(text):
    os.write(_marks, text.encode())
{what}
"""


def record(out: Path, folder: Path, marks: Path) -> Iterator[Step]:
    """The steps that a trace tells of, as far as they are about the database in `folder`, or marks."""
    begun: dict[int, Call] = {}
    for call in calls(out):
        if not call.begun:
            first = begun.pop(call.thread)
            yield from _step(call.name, first.rest, call.rest, folder, marks)
        elif call.ended:
            yield from _step(call.name, call.rest, call.rest, folder, marks)
        else:
            begun[call.thread] = call


def _step(name: str, asked: str, told: str, folder: Path, marks: Path) -> Iterator[Step]:
    """The step of one call that did what it was asked for: `asked` has its arguments, `told` ends with the result."""
    result = told.rpartition(" = ")[2]
    if result.startswith(("-1", "?")):
        return
    paths = [Path(_text(found[2])) for found in _FILE.finditer(asked)]
    strings = [_bytes(found[1]) for found in _QUOTED.finditer(asked)]
    if name in ("unlink", "rename", "openat"):
        named = [folder.joinpath(text.decode()) for text in strings]
        if named[0].parent != folder or not _is_kept(named[0]):
            return
        if name != "openat":
            yield Step(name, named[0].name, new_name=named[-1].name)
        elif "O_CREAT" in asked:
            yield Step("create", named[0].name)
        if "O_TRUNC" in asked:
            yield Step("truncate", named[0].name)
        return
    if not paths:
        return
    path, numbers = paths[0], [int(word) for word in re.findall(r", (\d+)(?=[,) ])", _QUOTED.sub("", asked))]
    if path == marks:
        yield Step("marked", data=strings[0])
    elif path == folder and name in ("fsync", "fdatasync"):
        yield Step("names synced")
    elif path.parent != folder or not _is_kept(path):
        return
    elif name in ("fsync", "fdatasync"):
        yield Step("synced", path.name)
    elif name == "pwrite64":
        if len(strings[0]) != int(result):
            raise UnknownCallError("a write that was done in part, or told in part")
        yield Step("write", path.name, strings[0], numbers[-1])
    elif name == "ftruncate":
        yield Step("truncate", path.name, place=numbers[-1])
    elif name != "mmap" or ("MAP_SHARED" in asked and "PROT_WRITE" in asked):
        raise UnknownCallError(f"{name} of {path.name}")


def _is_kept(path: Path) -> bool:
    return path.name.startswith("apostille.db") and not path.name.endswith(_VOLATILE)


def _bytes(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


def _text(escaped: str) -> str:
    return _bytes(escaped).decode() if escaped.startswith("\\x") else escaped


@dataclass(slots=True)
class _File:
    durable: bytearray
    pending: list[Step] = field(default_factory=list)


class Disk:
    """The files of the database, as far as they are durable, and what is pending."""

    def __init__(self, folder: Path) -> None:
        found = {path.name: _File(bytearray(path.read_bytes())) for path in folder.iterdir() if _is_kept(path)}
        self._names, self._durable_names = dict(found), dict(found)
        self._pending: list[tuple[str, _File | None]] = []  # names in their order, and what they are to mean
        self.marks: list[str] = []

    def do(self, step: Step) -> None:
        """Takes one step."""
        match step.what:
            case "marked":
                self.marks.append(step.data.decode())
            case "create" if step.name not in self._names:
                self._name(step.name, _File(bytearray()))
            case "create":
                pass
            case "unlink":
                self._name(step.name, None)
            case "rename":
                self._name(step.new_name, self._names[step.name])
                self._name(step.name, None)
            case "names synced":
                _apply(self._durable_names, self._pending)
                self._pending.clear()
            case "synced":
                file = self._names[step.name]
                for done in file.pending:
                    _write(file.durable, done, 0, len(done.data))
                file.pending.clear()
            case _:
                self._names[step.name].pending.append(step)

    def _name(self, name: str, file: _File | None) -> None:
        _apply(self._names, [(name, file)])
        self._pending.append((name, file))

    def durable(self) -> dict[str, bytes]:
        """What was synced, and nothing else."""
        return {name: bytes(file.durable) for name, file in self._durable_names.items()}

    def after_a_cut(self, chance: random.Random) -> dict[str, bytes]:
        """What is found after power is lost now: what was synced, and by chance some of the rest."""
        kept, torn = chance.choice((0.0, 0.1, 0.5, 0.9, 1.0)), chance.random() < 0.5
        names = dict(self._durable_names)
        _apply(names, self._pending[: chance.randint(0, len(self._pending))] if kept else [])
        return {name: _content(file, chance, kept, torn=torn) for name, file in names.items()}


def _content(file: _File, chance: random.Random, kept: float, *, torn: bool) -> bytes:
    content = bytearray(file.durable)
    for step in file.pending:
        size = SECTOR if torn and step.what == "write" else max(1, len(step.data))
        for start in range(0, max(1, len(step.data)), size):
            if chance.random() < kept:
                _write(content, step, start, start + size)
    return bytes(content)


def _apply(names: dict[str, _File], changes: Iterable[tuple[str, _File | None]]) -> None:
    for name, file in changes:
        names.pop(name, None)
        if file is not None:
            names[name] = file


def _write(content: bytearray, step: Step, start: int, end: int) -> None:
    """Does to `content` what the step does: of a write, the part from `start` to `end`."""
    size = step.place if step.what == "truncate" else step.place + start
    if step.what == "truncate":
        del content[size:]
    if len(content) < size:
        content += bytes(size - len(content))
    if step.what == "write":
        part = step.data[start:end]
        content[size : size + len(part)] = part
