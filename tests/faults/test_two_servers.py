"""Two `apostille serve` on one home: two clocks of signatures, two cursors, one history. The second never begins.

The story: a server answers its peers; somebody starts another, by mistake or from a second service manager, once or
many at one moment. It ends with a sentence and exit code 2 before it reads a key, and the first one goes on. What the
lock must not do is outlive its holder: after kill -9 the next server starts at once, though the file names a process.

The home listens on port 0, so that it is the lock that decides and not the port.
"""

import fcntl
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import func, select

from federation.model import NodeId
from node.home import lock
from node.home.lock import LOCK_FILE
from node.store.database import read
from node.store.tables import audit
from tests import commands
from tests.e2e.net import Net, make_net, until
from tests.e2e.processes import PATIENCE_S, Serving, ready, serving, settle
from tests.faults.campaign import count
from tests.nodes import DE, FR, agree

RACES = count(10, 100)
RACERS = 4
USAGE = 2
REFUSED_WITHIN_S = 20
# each one says that it stands at the line, and waits there for the shot
_AT_THE_LINE = """
import fcntl, os, pathlib
pathlib.Path(f"{line}.{{os.getpid()}}").touch()
with open("{line}") as shot:
    fcntl.flock(shot, fcntl.LOCK_SH)
"""


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Net]:
    """FR, which any port will do for, and DE, which calls it wherever it listens."""
    with make_net(tmp_path, FR, DE) as net:
        settle(net, FR, DE)
        agree(net.world)
        settings = net.world[FR].home / "apostille.yaml"
        text = settings.read_text("utf-8")
        settings.write_text(text.replace(f'listen: "{net.addresses[FR]}"', 'listen: "127.0.0.1:0"'), "utf-8")
        yield net


def acts(net: Net, name: NodeId) -> int:
    """How many rows the audit trail has."""
    with read(net.world[name].engine) as tx:
        return int(tx.execute(select(func.count()).select_from(audit)).scalar_one())


def answers(net: Net) -> None:
    """Whoever serves FR's home answers DE."""
    address = lock.serving_address(net.world[FR].home)
    assert address is not None
    net.addresses[FR] = address
    net.sync(DE, FR)


def refused(home: Path, code: int, said: str, by: str) -> None:
    assert code == USAGE, said
    assert said == f"apostille: {home} is served already by process {by}\n"


def test_the_second_server_is_refused_and_the_first_goes_on(pair: Net) -> None:
    home = pair.world[FR].home
    with ready(home) as first:
        answers(pair)
        before, state = acts(pair, FR), (home / lock.STATE_FILE).read_bytes()
        for number in (signal.SIGCONT, signal.SIGSTOP):  # one that works, and one that hangs
            first.tell(number)
            done = commands.run("--home", str(home), "serve", timeout=REFUSED_WITHIN_S)
            refused(home, done.returncode, done.stderr, str(first.process.pid))
            assert done.stdout == ""
        first.tell(signal.SIGCONT)
        assert (acts(pair, FR), (home / lock.STATE_FILE).read_bytes()) == (before, state)
        answers(pair)
        assert lock.wake(home)  # and commands find it as before
        assert first.process.poll() is None


def test_after_kill_9_of_the_first_a_third_starts(pair: Net) -> None:
    home = pair.world[FR].home
    for _ in range(2):
        with ready(home) as first:
            answers(pair)
            first.tell(signal.SIGKILL)
            assert first.ended()[0] == -signal.SIGKILL
            assert (home / LOCK_FILE).read_text("ascii").strip() == str(first.process.pid)  # what it left behind
            assert not lock.wake(home)
            with ready(home):
                answers(pair)


def test_of_many_that_start_at_once_exactly_one_serves(pair: Net, tmp_path: Path) -> None:
    home = pair.world[FR].home
    for race in range(RACES):
        line = tmp_path / f"line-{race}"
        with ExitStack() as ends:
            with line.open("w") as shot:
                fcntl.flock(shot, fcntl.LOCK_EX)
                prelude = _AT_THE_LINE.format(line=line)
                racers = [ends.enter_context(serving(home, prelude)) for _ in range(RACERS)]
                until(lambda line=line: len(list(tmp_path.glob(f"{line.name}.*"))) == RACERS, PATIENCE_S)  # type: ignore[misc]
            until(lambda racers=racers: len(running(racers)) == 1, PATIENCE_S)  # type: ignore[misc]
            (winner,) = running(racers)
            assert winner.told() == "READY=1"
            for loser in racers:
                if loser is not winner:
                    code, said = loser.ended()
                    refused(home, code, said, by := re.sub(r".* process |\n", "", said))
                    assert by in ("that is starting", str(winner.process.pid)), f"race {race}"
            answers(pair)
            winner.tell(signal.SIGKILL if race % 2 else signal.SIGTERM)
            winner.ended()
    print(f"{RACES} races of {RACERS} servers: one served, {RACERS - 1} were refused, each time")


def running(racers: list[Serving]) -> list[Serving]:
    return [racer for racer in racers if racer.process.poll() is None]
