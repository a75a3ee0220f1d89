"""Takes each defence of `defences.toml` out of a copy of the tree and shows that its tests turn red: a test that stays
green without the defence that it names defends nothing.

    python -m tests.defences                 all of them: a quarter of an hour of two idle cores
    python -m tests.defences I5 I8           those of some invariants

The tree that is tested is what git would commit, copied; nothing in the working tree is touched, and nothing in shipped
code knows of this. First every named test must pass in the copy as it is. Then, for each defence: patch, run its tests,
restore. Every one of its tests must fail by itself: a module that cannot be imported, a fixture that breaks, a name
that is not defined or a run without end is no red but a broken entry. Ends with 1 unless all are red.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

ROOT = Path(__file__).parents[1]
_T = TypeVar("_T")
RED = "red"
_LIST = Path(__file__).with_suffix(".toml")
_COPIES = 2  # one for each core of a small machine
_TIMEOUT_S = 240  # for the tests of one defence, most of which take a few seconds
_SANITY_TIMEOUT_S = 600  # for all of one invariant together
_PASSED, _FAILED = 0, 1  # exit codes of pytest; the others say that it could not run the tests
_BROKEN = re.compile(r"^E +(?:NameError|UnboundLocalError|ImportError|ModuleNotFoundError|SyntaxError)\b", re.MULTILINE)
_TAIL = 2000  # characters of pytest's output that tell what went wrong


@dataclass(frozen=True, slots=True)
class Defence:
    """One defence: `old`, which stands once in `file`, becomes `new`, which lacks it; then `tests` (node ids) fail."""

    invariant: str
    about: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.old == self.new or not self.tests:
            raise ValueError(f"{self.about}: it changes nothing, or names no test")


def load() -> tuple[Defence, ...]:
    """Every entry of the list, in its order. Raises TypeError for a member missing or unknown, ValueError."""
    with _LIST.open("rb") as file:
        listed = tomllib.load(file)["defence"]
    return tuple(Defence(**{**entry, "tests": tuple(entry["tests"])}) for entry in listed)


def without(defence: Defence, root: Path) -> str:
    """The text of the defence's file without it. Raises ValueError unless the defence stands there exactly once."""
    text = (root / defence.file).read_text("utf-8")
    count = text.count(defence.old)
    if count != 1:
        raise ValueError(f"{defence.file} holds it {count} times, not once: its entry must follow the code")
    return text.replace(defence.old, defence.new)


def verdict(defence: Defence, root: Path) -> str:
    """RED, or in a few words why not. `root` is a copy of the tree; afterwards it is as it was."""
    place = root / defence.file
    try:
        patched = without(defence, root)
    except ValueError as e:
        return f"BROKEN: {e}"
    original = place.read_bytes()
    place.write_text(patched, "utf-8")
    try:
        code, output = run(defence.tests, root, _TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"BROKEN: no end after {_TIMEOUT_S} s"
    finally:
        place.write_bytes(original)
    if code not in (_PASSED, _FAILED):
        return f"BROKEN: pytest ended with {code}\n{output[-_TAIL:]}"
    if found := _BROKEN.search(output):
        return f"BROKEN: {found[0].split()[-1]}"
    lines = output.splitlines()
    green = [test for test in defence.tests if not any(line.startswith(f"FAILED {test}") for line in lines)]
    return f"NOT RED: {', '.join(green)}" if green else RED


def run(tests: Iterable[str], root: Path, timeout_s: float) -> tuple[int, str]:
    """Exit code and output of pytest for `tests`, in a process of its own. Raises TimeoutExpired."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", *tests],
        cwd=root,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},  # a cached module could outlive the patch
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return done.returncode, done.stdout


def copy_tree(target: Path) -> Path:
    """A copy, in `target`, of the files that git would commit. Returns `target`."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)
    return target


def main(invariants: Sequence[str]) -> int:
    """Runs the defences of `invariants` (of all when none is named), tells how each did, and returns the exit code."""
    chosen = [defence for defence in load() if not invariants or defence.invariant in invariants]
    with tempfile.TemporaryDirectory(prefix="defences-") as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(_COPIES):
            copies.put(copy_tree(Path(folder) / str(number)))

        def in_a_copy(work: Callable[[Path], _T]) -> _T:
            root = copies.get()
            try:
                return work(root)
            finally:
                copies.put(root)

        def judge(defence: Defence) -> str:
            return in_a_copy(lambda root: verdict(defence, root))

        def pass_with(invariant: str) -> tuple[int, str]:
            tests = dict.fromkeys(test for d in chosen if d.invariant == invariant for test in d.tests)
            return in_a_copy(lambda root: run(tests, root, _SANITY_TIMEOUT_S))

        verdicts = []
        with ThreadPoolExecutor(_COPIES) as threads:
            for code, output in threads.map(pass_with, dict.fromkeys(d.invariant for d in chosen)):
                if code != _PASSED:
                    print(f"With every defence in place the tests do not pass:\n{output[-_TAIL:]}")
                    return 1
            for defence, told in zip(chosen, threads.map(judge, chosen), strict=True):
                print(f"{defence.invariant:<4} {defence.about:<78} {told}", flush=True)
                verdicts.append(told)
    red = verdicts.count(RED)
    print(f"{red} of {len(chosen)} defences: their tests turn red without them")
    return 0 if chosen and red == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
