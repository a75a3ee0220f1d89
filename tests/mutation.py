"""Mutation testing: how much of the code that verifies and decides can be changed, one small step at a time, before a
test notices. `docs/mutation.md` has the figure and the survivors.

    python -m pip install 'mutmut>=3.8,<4'
    python -m tests.mutation FOLDER                   everything: about an hour and a half of one core
    python -m tests.mutation FOLDER sdjwt policy      some parts

Each part is copied into a tree of its own in FOLDER and mutated there with the fast tests that are its own; nothing in
the working tree is touched. A FOLDER that is there already is brought up to date, and only what is new, has changed or
survived is run again. Ends with 1 when fewer than 90 of 100 mutants were killed.

Mutants of lines that only raise one of our errors with one text are not made (`_TEXT_ONLY`): they change no more than
that text. mutmut leaves alone what is decorated (properties, cached functions) and what stands outside functions.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.defences import copy_tree

LEAST = 0.9
_TEXT_ONLY = r"""^\s*raise \w+Error\(f?"[^"]*"\)( from \w+)?( +#.*)?$"""
_DATA = ("config", "docs", "protos", "bench")
_KILLED = frozenset({1, 3})  # exit codes of pytest: a test failed, or the run broke
_ENDLESS = frozenset({36, 24, 152, 255, -24, -9})  # stopped after several times the time that its tests take


@dataclass(frozen=True, slots=True)
class Part:
    """Modules that are mutated together, and the tests that are to notice."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


PARTS = {
    "sdjwt": Part(
        tuple(f"federation/sdjwt/{name}.py" for name in ("verify", "walk", "disclosure", "compact", "profile")),
        ("unit/test_sdjwt_verify.py", "unit/test_sdjwt_limits.py", "unit/test_sdjwt_issue.py", "vectors"),
    ),
    "feed": Part(
        tuple(f"federation/{name}.py" for name in ("feed", "merkle", "checkpoint", "jws", "ed25519")),
        (
            *(f"unit/test_{name}.py" for name in ("feed", "feed_limits", "merkle", "checkpoint", "jws", "ed25519")),
            "vectors/test_vectors.py",
        ),
    ),
    "policy": Part(
        ("federation/policy/*.py",),
        (
            *(f"unit/test_policy_{name}.py" for name in ("decide", "engine", "packs", "questions")),
            *(f"unit/test_{name}.py" for name in ("guard", "outbound")),
        ),
    ),
    "approvals": Part(("node/records/approvals.py",), ("unit/test_approval_records.py", "unit/test_approvals.py")),
    "inbound": Part(
        ("federation/inbound.py", "federation/contradiction.py"),
        ("unit/test_inbound.py", "unit/test_inbound_unread.py", "unit/test_incidents.py"),
    ),
    "proof": Part(("federation/proof.py",), ("unit/test_proof.py",)),
}


def prepare(part: Part, folder: Path) -> None:
    """Brings the tree in `folder` up to date and writes mutmut's settings into it."""
    folder.mkdir(parents=True, exist_ok=True)
    copy_tree(folder)
    settings: dict[str, Sequence[str]] = {
        "source_paths": ("federation", "node"),
        "only_mutate": part.modules,
        "also_copy": _DATA,
        "do_not_mutate_patterns": (_TEXT_ONLY,),
        "pytest_add_cli_args": (
            "-pno:cacheprovider",
            "--hypothesis-profile=ci",
            "-ptests.computed_once",
        ),
        "pytest_add_cli_args_test_selection": tuple(f"tests/{test}" for test in part.tests),
    }
    lines = [f"{name}=\n    " + "\n    ".join(values) for name, values in settings.items()]
    # Mutants that never end are told from slow ones by 6 times their tests' time (fixtures not counted) and 24 s more.
    lines += [
        "timeout_multiplier=6",
        "timeout_constant=4",
        "use_git_change_detection=false",
        "track_dependencies=false",
    ]
    (folder / "setup.cfg").write_text("[mutmut]\n" + "\n".join(lines) + "\n", "utf-8")


def outcomes(folder: Path) -> dict[str, dict[str, int | None]]:
    """For each mutated module in `folder`, what became of each of its mutants."""
    found = {}
    for path in sorted((folder / "mutants").rglob("*.py.meta")):
        mutants = json.loads(path.read_bytes())["exit_code_by_key"]
        if mutants:
            found[str(path.relative_to(folder / "mutants")).removesuffix(".meta")] = mutants
    return found


def mutate(part: Part, folder: Path) -> None:
    """Runs every mutant of `part` that no test has noticed yet. Raises CalledProcessError when mutmut cannot run."""
    stood = _unnoticed(folder) if folder.exists() else []
    prepare(part, folder)
    if stood:
        # Which test runs which function is found anew; what was killed stays killed, since tests are only added.
        (folder / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)
        _run(folder, *stood)
    if not stood or any(code is None for mutants in outcomes(folder).values() for code in mutants.values()):
        _run(folder)


def _run(folder: Path, *mutants: str) -> None:
    command = [
        sys.executable,
        "-m",
        "mutmut",
        "run",
        "--max-children",
        os.environ.get("MUTANTS_AT_ONCE", "1"),
        *mutants,
    ]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(command, cwd=folder, env=environment, check=True)


def _unnoticed(folder: Path) -> list[str]:
    found = (mutant for mutants in outcomes(folder).values() for mutant in mutants.items())
    return [name for name, code in found if not _noticed(code)]


def _noticed(code: int | None) -> bool:
    return code in _KILLED or code in _ENDLESS


def report(folders: Sequence[Path]) -> float:
    """Prints what became of the mutants of each module, and returns the share that was noticed."""
    total: Counter[str] = Counter()
    print(f"{'module':<40} {'mutants':>8} {'killed':>8} {'endless':>8} {'survived':>8} {'share':>7}")
    for folder in folders:
        for module, mutants in outcomes(folder).items():
            count = Counter(
                "killed" if code in _KILLED else "endless" if code in _ENDLESS else "survived"
                for code in mutants.values()
            )
            total += count
            _line(module, count)
    return _line("all", total)


def _line(name: str, count: Counter[str]) -> float:
    mutants = count.total()
    share = (count["killed"] + count["endless"]) / max(1, mutants)
    counts = "".join(f" {count[outcome]:>8}" for outcome in ("killed", "endless", "survived"))
    print(f"{name:<40} {mutants:>8}{counts} {100 * share:>6.1f}%")
    return share


def main(arguments: Sequence[str]) -> int:
    """`FOLDER [PART ...]`: runs the parts (all when none is named), prints the table, returns the exit code."""
    if not arguments or not set(arguments[1:]) <= set(PARTS):
        print(f"python -m tests.mutation FOLDER [{'|'.join(PARTS)} ...]", file=sys.stderr)
        return 2
    folder, names = Path(arguments[0]).resolve(), arguments[1:] or tuple(PARTS)
    for name in names:
        mutate(PARTS[name], folder / name)
    share = report([folder / name for name in names])
    return 0 if share >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
