"""Backup and restore as people use them: real processes beside a server that runs, and peers over real gRPC."""

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from federation.errors import DeniedError, EpochError
from node.exchange import epochs
from tests import commands
from tests.copies import accept_epoch, open_epoch, put_back, save
from tests.e2e.net import Net, names_in_inbox, until
from tests.nodes import DE, FR, agree, document, import_document, make_world, release

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60


def run(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command, from start to end."""
    return commands.run("--home", str(home), *words, timeout=PATIENCE_S)


def told(home: Path, *words: str) -> Any:
    """What a command prints with --json."""
    done = run(home, *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refused(done: subprocess.CompletedProcess[str], code: int, word: str) -> None:
    """It ended with `code` and one line that holds `word`."""
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
    assert word in done.stderr


@contextmanager
def served(home: Path) -> Iterator[None]:
    """Inside, a process serves the home."""
    process = commands.Running("--home", str(home), "serve")
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("Ready:"):
                break
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """FR, with a peer, an agreement, something released and a draft; nothing of this process is open on it."""
    world = make_world(tmp_path)
    agree(world)
    release(world, "A")
    import_document(world[FR], document("DRAFT"))
    world.sync_all()
    world.close()
    settings = world[FR].home / "apostille.yaml"
    settings.write_text(settings.read_text().replace("127.0.0.1:7001", "127.0.0.1:0"))
    return world[FR].home


def test_a_backup_is_made_beside_a_server_and_put_back_without_one(home: Path, tmp_path: Path) -> None:
    saved = tmp_path / "backup.tar"
    with served(home):
        made = told(home, "backup", str(saved))
        refused(run(home, "restore", "--replace", str(saved)), 2, "is served already")
    shown = told(tmp_path / "nowhere", "backup", "--verify", str(saved))
    assert {**shown, "sha256": made["sha256"]} == made
    assert (shown["node"], shown["database"], len(shown["feeds"])) == (FR, "apostille.db", 2)
    refused(run(home, "backup", str(saved)), 2, "exists already")
    refused(run(home, "restore", str(saved)), 2, "--replace")
    restored = told(home, "restore", "--replace", str(saved))
    assert restored["drafts"] == ["DRAFT"]
    assert restored["carried"] == {
        "cards": 0,
        "distrusted": [],
        "frozen": [],
        "left": 0,
        "received": 0,
        "recalls": 0,
        "sent": 0,
    }
    assert Path(restored["aside"]).is_dir()
    with served(home):
        assert told(home, "status")["issued"] == 1


def test_people_are_told_what_happened_and_what_to_look_at(home: Path, tmp_path: Path) -> None:
    saved = tmp_path / "backup.tar"
    done = run(home, "backup", "--with-roots", "--with-passphrase", str(saved))
    assert (done.returncode, f"apostille backup --verify {saved.name}" in done.stderr) == (0, True)
    assert "each as it should be" in run(home, "backup", "--verify", str(saved)).stdout
    done = run(tmp_path / "new", "restore", str(saved))
    assert done.returncode == 0
    assert "drafts of that time: DRAFT" in done.stderr
    assert "apostille peer list" in done.stderr
    assert (tmp_path / "new" / "roots" / "root-1.pem").is_file()
    done = run(tmp_path / "new", "restore", "--by-hand")
    assert done.stderr.startswith("Marked: this home was put back.")
    assert told(tmp_path / "new", "restore", "--by-hand") == {"drafts": ["DRAFT"]}


def test_mistakes_get_one_sentence(home: Path, tmp_path: Path) -> None:
    saved = tmp_path / "backup.tar"
    run(home, "backup", str(saved))
    refused(run(home, "restore"), 2, "--by-hand")
    refused(run(home, "restore", "--by-hand", str(saved)), 2, "--by-hand")
    refused(run(home, "backup", "--verify", str(tmp_path / "nothing")), 2, "No such file")
    with saved.open("r+b") as file:
        file.seek(100_000)
        file.write(b"\xff" * 10)
    refused(run(home, "backup", "--verify", str(saved)), 2, "is damaged at")
    refused(run(tmp_path / "new", "restore", str(saved)), 2, "is damaged at")
    refused(run(home, "peer", "epoch", "open", DE, "--reason", "x"), 2, "nothing holds up")
    refused(
        run(home, "peer", "epoch", "open", DE, "--reason", "x", "--cause", "boredom"), 2, "restored, cloned, healed"
    )
    refused(run(home, "peer", "epoch", "accept", DE, "--reason", "x"), 2, "opened no epoch")
    refused(run(home, "peer", "epoch", "accept", "cert.in.example", "--reason", "x"), 3, "apostille peer list")


def test_epochs_are_listed(home: Path) -> None:
    assert told(home, "peer", "epoch", "list") == [
        {
            "peer": DE,
            "direction": direction,
            "epoch": 1,
            "feed": f"{sender}/feeds/{receiver}/1",
            "size": size,
            "acknowledged": size,
            "state": "current",
        }
        for direction, sender, receiver, size in (("out", FR, DE, 3), ("in", DE, FR, 2))
    ]
    assert told(home, "peer", "epoch", "list", "cert.in.example") == []
    assert "to it" in run(home, "peer", "epoch", "list").stdout


@pytest.mark.invariant("I16")
def test_a_feed_goes_on_over_the_network_after_a_restore(net: Net, tmp_path: Path) -> None:
    world = net.world
    agree(world)
    saved = save(world[FR], tmp_path / "backup.tar")
    net.serve(FR)
    net.serve(DE)
    release(world, "LOST")
    net.sync(DE, FR)
    put_back(world, FR, saved, lost=True)
    net.serve(FR)
    release(world, "B")
    net.sync(FR, DE)
    with pytest.raises(DeniedError, match="signs nothing for us now"):
        net.sync(DE, FR)
    open_epoch(world[FR], DE)
    with pytest.raises(EpochError) as offered:
        net.sync(DE, FR)
    assert offered.value.epoch > 1
    accept_epoch(world[DE], FR)
    polls = net.polls(DE)
    polls.start()
    until(lambda: names_in_inbox(world[DE]) == {"LOST", "B"})
    states = [epoch.state for epoch in epochs.all_epochs(world[DE], FR) if not epoch.outgoing]
    assert states == ["ended", "current"]
