"""An auditor's view of proofs: what `apostille proof verify` says, said by a script that has none of our code.

Every exported file holds for both, and both refuse whatever was changed in one, by anybody or by its sender.
"""

import contextlib
import random
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from federation import proof
from federation.errors import ApostilleError
from federation.keyring import unverified
from federation.model import instant_text
from tests.conformance import verify_proof
from tests.evidence import History, make_history
from tests.forgeries import FORGED, opened, sealed
from tests.nodes import DE, FR, IN

SCRIPT = Path(__file__).with_name("verify_proof.py")
CHANGES = 1_000
UNSEEN = "6 a full part said to be general"  # the script has no label file, and says so
REFUSALS = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    with make_history(tmp_path_factory.mktemp("history")) as made:
        yield made


@pytest.fixture(scope="module")
def files(history: History) -> dict[str, bytes]:
    """The proof of every release."""
    return {name: history.export(name).data for name in history.releases}


@pytest.fixture(scope="module")
def cards(history: History, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The cards as files, for the script's command line."""
    folder, words = tmp_path_factory.mktemp("cards"), []
    for number, card in enumerate(history.cards()):
        path = folder / f"{number}.json"
        path.write_bytes(card)
        words += ["--card", str(path)]
    return words


def run(data: bytes, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The script on its own: isolated from this folder and environment."""
    file = folder / "proof.json"
    file.write_bytes(data)
    command = [sys.executable, "-E", "-s", str(SCRIPT), str(file), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd="/")


def by_script(data: bytes, cards: list[bytes]) -> bool:
    """Whether the script accepts a file; in this process, for many of them."""
    with contextlib.suppress(*REFUSALS):
        verify_proof.check(data, cards)
        return True
    return False


def by_us(history: History, data: bytes, cards: list[bytes]) -> bool:
    with contextlib.suppress(ApostilleError):
        proof.verify(data, cards, history.chain[FR].labels)
        return True
    return False


@pytest.mark.invariant("I14")
def test_every_proof_verifies_by_script(
    history: History, files: dict[str, bytes], cards: list[str], tmp_path: Path
) -> None:
    for name, data in files.items():
        done = run(data, tmp_path, *cards, "--without-receipt")
        assert done.returncode == 0, (name, done.stderr)
        shown = proof.verify(data, history.cards(), history.chain[FR].labels)
        told = shown.account
        lines = done.stdout.splitlines()
        expected = {
            "sender": told.sender,
            "recipient": told.peer,
            "origin": told.origin,
            "advisory": told.name,
            "seq": told.seq,
            "released_at": instant_text(told.at),
            "released_by": told.by,
            "acknowledged_at": "none" if shown.acknowledged is None else instant_text(shown.acknowledged.at),
            "taken_back": "none" if shown.erasure is None else shown.erasure.kind,
            "exported_at": instant_text(shown.exported_at),
        }
        for word, value in expected.items():
            assert f"{word} {value}" in lines
        assert [line for line in lines if line.startswith("part ")] == [f"part {p.form} {p.path}" for p in told.parts]
        assert f"row {told.row} {shown.digest.hex()}" in lines
    assert len(files) == len(history.releases) == 14


def test_no_receipt_is_a_failure_unless_one_says_so(files: dict[str, bytes], cards: list[str], tmp_path: Path) -> None:
    assert run(files["FIRST"], tmp_path, *cards).returncode == 0
    done = run(files["LATE"], tmp_path, *cards)
    assert (done.returncode, done.stderr) == (1, "there is no receipt\n")
    assert "acknowledged_at none" in done.stdout
    assert run(files["FIRST"], tmp_path).returncode == 1  # no card: it explains itself
    assert "--card CARD_FILE" in run(files["FIRST"], tmp_path).stderr


@pytest.mark.invariant("I14")
def test_a_thousand_changed_bytes_are_found_by_both(history: History, files: dict[str, bytes]) -> None:
    chosen = random.Random(6)  # noqa: S311 - bytes to change, the same in every run
    cards = history.cards()
    names = sorted(files)
    assert all(by_us(history, files[name], cards) and by_script(files[name], cards) for name in names)  # sanity
    accepted = []
    for _ in range(CHANGES):
        data = bytearray(files[chosen.choice(names)])
        place = chosen.randrange(len(data))
        data[place] ^= chosen.randrange(1, 256)
        if by_us(history, bytes(data), cards) or by_script(bytes(data), cards):
            accepted.append(place)
    assert accepted == []


@pytest.mark.invariant("I14")
@pytest.mark.parametrize("name", sorted(FORGED))
def test_what_its_sender_forges_is_refused_by_both(history: History, files: dict[str, bytes], name: str) -> None:
    release, _, _, forge = FORGED[name]
    forged = sealed(history.chain[history.releases[release][0]], forge(opened(files[release])))
    assert not by_us(history, forged, history.cards())
    assert by_script(forged, history.cards()) is (name == UNSEEN)


def test_both_want_the_same_cards(history: History, files: dict[str, bytes]) -> None:
    everything, newest = history.cards(), history.cards(newest=True)
    for name, data in files.items():
        for cards in (newest, *([c for c in everything if unverified(c).node != node] for node in (FR, DE, IN))):
            assert by_us(history, data, cards) is by_script(data, cards), name
    assert not by_script(files["FIRST"], newest)  # the root keys have changed since
    assert by_script(files["LATE"], newest)


def test_the_times_are_those_of_the_clocks(history: History, files: dict[str, bytes]) -> None:
    says = opened(files["FIRST"])["says"]
    times = [datetime.fromisoformat(says[name]) for name in ("released_at", "acknowledged_at", "exported_at")]
    assert times == sorted(times)
    assert times[2] == history.chain.clock().replace(microsecond=0)
