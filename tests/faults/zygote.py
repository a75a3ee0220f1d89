"""Processes of nodes that start at once: a process that has imported everything forks one for each command.

Starting a node's command takes over a second of imports, and campaigns start thousands. The zygote is a clean process
that never used gRPC before it forks. What it starts are real processes, to be killed by their ids.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parents[2]


class Zygote:
    """A context manager. `start` runs `apostille --home HOME ARGUMENTS` in a new process and returns its id."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "GRPC_VERBOSITY": "NONE"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def start(self, home: Path, *arguments: str) -> int:
        """A new process; what it prints goes to `FOLDER/PID.log`."""
        return int(self._ask("start", str(self._folder), str(home), *arguments))

    def wait(self, process: int) -> int:
        """The exit code once it has ended; minus the signal if it was killed."""
        return int(self._ask("wait", str(process)))

    def ended(self, process: int) -> bool:
        """Whether it has ended."""
        return self._ask("ended", str(process)) == "True"

    def log(self, process: int) -> str:
        """What a process printed."""
        return (self._folder / f"{process}.log").read_text(encoding="utf-8", errors="replace")

    def _ask(self, *words: str) -> str:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the zygote has ended"
        return answer.strip()


def _main() -> None:
    import node.cli
    import node.cli.serve
    import node.cli.sync
    import node.main
    import node.operation.serve  # noqa: F401 - imported so that children need not

    ended: dict[int, int] = {}
    for line in sys.stdin:
        word, *rest = json.loads(line)
        if word == "start":
            print(_fork(*rest), flush=True)
            continue
        process = int(rest[0])
        if process not in ended:
            found, status = os.waitpid(process, 0 if word == "wait" else os.WNOHANG)
            if found:
                ended[process] = os.waitstatus_to_exitcode(status)
        print(ended[process] if word == "wait" else process in ended, flush=True)


def _fork(folder: str, home: str, *arguments: str) -> int:
    process = os.fork()
    if process:
        return process
    log = os.open(f"{folder}/{os.getpid()}.log", os.O_WRONLY | os.O_CREAT, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for old, new in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(old, new)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - the streams of this process
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    sys.argv = ["apostille", "--home", home, *arguments]
    from node.cli import main

    try:
        main()
    except SystemExit as e:
        sys.stdout.flush()
        os._exit(e.code if isinstance(e.code, int) else 1)
    os._exit(0)


if __name__ == "__main__":
    _main()
