"""The full campaign of row 11: the targets of `tests.faults.fuzz`, and those that need nodes, by atheris, which is
guided by what each execution reaches. `pip install 'apostille[fuzz]'` brings it; it has no wheel for Python 3.13 and
later.

    python -m tests.faults.campaign_fuzz --executions 500000 delivery     one target
    python -m tests.faults.campaign_fuzz --executions 300000              all of them, one after another
    python -m tests.faults.campaign_fuzz --seconds 60 --corpus DIR        each for a minute, from what DIR holds

Each target is a process of its own. What it has found ends it, and is told with its seed, the traceback and a file of
the bytes, TARGET-crash-DIGEST.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import FunctionType, ModuleType

from tests.faults.fuzz import TARGETS, Target, bounded, execute
from tests.faults.fuzzworld import NAMES, make_scene, targets

_SAID = ("Done", "INFO: Seed")
_RUNS = re.compile(r"^Done (\d+) runs", re.MULTILINE)
_TAIL = 6_000  # characters that tell what was found


def main(arguments: Sequence[str]) -> int:
    """Runs targets, each in a process of its own; ends with 1 when one of them has found something."""
    every = (*TARGETS, *NAMES)
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign_fuzz")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default: all of {', '.join(every)}")
    parser.add_argument("--executions", type=int, default=0, help="of each target; 0 for no limit")
    parser.add_argument("--seconds", type=int, default=0, help="for each target; 0 for no limit")
    parser.add_argument("--seed", type=int, default=0, help="0 for another one each time; it is told")
    parser.add_argument("--corpus", type=Path, help="a folder that keeps what was found interesting, by target")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.targets if name not in every]:
        parser.error(f"no such target: {', '.join(unknown)}")
    if options.alone:
        return _alone(options.targets[0], options)
    failed = executions = 0
    for name in options.targets or every:
        given = [f"--{key}={getattr(options, key)}" for key in ("executions", "seconds", "seed")]
        given += [f"--corpus={options.corpus}"] if options.corpus else []
        began = time.monotonic()
        words = [sys.executable, "-m", "tests.faults.campaign_fuzz", "--alone", *given, name]
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
        said = "; ".join(line for line in done.stderr.splitlines() if line.startswith(_SAID))
        verdict = "nothing found" if done.returncode == 0 else "FOUND"
        executions += sum(int(number) for number in _RUNS.findall(done.stderr))
        print(f"{name:<12} {verdict} in {time.monotonic() - began:.0f} s; {said}", flush=True)
        if done.returncode:
            failed = 1
            print(f"{done.stdout}{done.stderr}"[-_TAIL:], flush=True)
    print(f"{executions} executions", flush=True)
    return failed


@contextmanager
def _made(name: str, folder: Path) -> Iterator[Target]:
    if name in TARGETS:
        yield TARGETS[name]()
        return
    with make_scene(folder) as scene:
        yield targets(scene)[name]


def _alone(name: str, options: argparse.Namespace) -> int:
    """One target by atheris, which ends the process."""
    import atheris

    with tempfile.TemporaryDirectory() as made, _made(name, Path(made)) as target, bounded(memory=False):
        _instrument(atheris)
        corpus = Path(made) / "corpus" if options.corpus is None else options.corpus / name
        corpus.mkdir(parents=True, exist_ok=True)
        for number, sample in enumerate(target.samples):
            (corpus / f"sample-{number}").write_bytes(sample)

        def change(data: bytes, most: int, seed: int) -> bytes:
            return target.mutate(data, Random(seed))[:most]  # noqa: S311

        flags = [f"-max_total_time={options.seconds}", f"-runs={options.executions or -1}"]
        flags += [f"-seed={options.seed}", "-max_len=65536", "-len_control=0", "-timeout=60", "-rss_limit_mb=1024"]
        arguments = [name, *flags, f"-artifact_prefix={name}-", str(corpus)]
        atheris.Setup(arguments, lambda data: _one(target, data), custom_mutator=change)
        atheris.Fuzz()
    return 0


def _one(target: Target, data: bytes) -> None:
    execute(target, data)


def _instrument(atheris: ModuleType) -> None:
    """Has the functions of the readers tell what they reach. They are changed in place: other modules hold them."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("federation", "config"):
            for function in list(_functions(vars(module), name)):
                function.__code__ = atheris.instrument_func(function).__code__


def _functions(members: dict[str, object], module: str) -> Iterator[FunctionType]:
    for value in members.values():
        bare = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if isinstance(bare, FunctionType) and bare.__module__ == module:
            yield bare
        elif isinstance(bare, type) and bare.__module__ == module:
            yield from _functions(dict(vars(bare)), module)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
