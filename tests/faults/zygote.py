"""Processes of nodes for campaigns that kill them, by their ids; see `tests.commands` for how they start."""

from pathlib import Path
from types import TracebackType
from typing import Self

from tests import commands


class Zygote:
    """A context manager. `start` runs `apostille --home HOME ARGUMENTS` in a new process and returns its id."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: dict[int, commands.Running] = {}

    def __enter__(self) -> Self:
        self._folder.mkdir(exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._started.values():
            process.kill()
            process.wait()

    def start(self, home: Path, *arguments: str, code: str = commands.APOSTILLE) -> int:
        """A new process, which runs `code`; what it prints goes to `FOLDER/PID.log`."""
        part = self._folder / "part"
        with part.open("w", encoding="utf-8") as log:
            made = commands.Running("--home", str(home), *arguments, code=code, stdout=log, stderr=log)
        part.rename(self._folder / f"{made.pid}.log")
        self._started[made.pid] = made
        return made.pid

    def wait(self, process: int) -> int:
        """The exit code once it has ended; minus the signal if it was killed."""
        return self._started[process].wait()

    def ended(self, process: int) -> bool:
        """Whether it has ended."""
        return self._started[process].poll() is not None

    def log(self, process: int) -> str:
        """What a process printed."""
        return (self._folder / f"{process}.log").read_text(encoding="utf-8", errors="replace")
