"""strace on a process of a node: what it asks of the kernel, in order; and faults in place of what it asked for.

HOLDING is put before the code of a process that is to be watched from its first step; to one that runs already strace
attaches as it is. A fault counts the calls of each thread (`when=3`: the third one of whichever thread makes three). A
process that is to be killed at a call dies before that call is made.
"""

import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 60
HOLDING = """
import time
while "TracerPid:\\t0\\n" in open("/proc/self/status").read():
    time.sleep(0.002)
"""
_LINE = re.compile(r"(\d+) +(?:<\.\.\. )?(\w+)(?: resumed>|\()(.*)")
_NONE = "TracerPid:\t0\n"


@dataclass(frozen=True, slots=True)
class Call:
    """A system call: `begun` and `ended` tell which halves of it this is; strace splits what other threads cut into."""

    thread: int
    name: str
    rest: str
    begun: bool = True
    ended: bool = True


@contextmanager
def attached(process: int, out: Path, *options: str) -> Iterator[None]:
    """Inside, strace watches all threads of `process` and writes to `out`; then it lets go of it."""
    words = ["strace", "-f", "-qqq", "-o", str(out), "-p", str(process), *options]
    tracer = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + PATIENCE_S
        while not _is_traced(process) and tracer.poll() is None:
            assert time.monotonic() < end, "strace did not attach"
            time.sleep(0.002)
        yield
    finally:
        tracer.send_signal(signal.SIGTERM)  # it detaches
        tracer.communicate(timeout=PATIENCE_S)


def _is_traced(process: int) -> bool:
    try:
        return all(_NONE not in (task / "status").read_text() for task in Path(f"/proc/{process}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):  # a thread has ended meanwhile, or all of it
        return not Path(f"/proc/{process}").exists()


def calls(out: Path) -> Iterator[Call]:
    """What strace wrote, in its order."""
    with out.open(encoding="ascii", errors="replace") as lines:
        for line in lines:
            found = _LINE.match(line)
            if found is not None:
                begun, ended = " resumed>" not in line, "<unfinished ...>" not in line
                yield Call(int(found[1]), found[2], found[3], begun, ended)


def most_of_a_thread(out: Path) -> dict[str, int]:
    """Of each system call, how often the thread made it that made it most often."""
    counted = Counter((call.name, call.thread) for call in calls(out) if call.begun)
    most: dict[str, int] = {}
    for (name, _), times in counted.items():
        most[name] = max(times, most.get(name, 0))
    return most
