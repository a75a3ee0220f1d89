"""`apostille ledger verify`, `proof export` and `proof verify` as people use them: real processes on a home."""

import json
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from node.sharing import releases
from tests import commands
from tests.nodes import DE, FR, World, agree, document, import_document, make_world

ROOT = Path(__file__).parents[2]
WORDS = ("X marks the spot", "Maria Musterfrau")


@dataclass(frozen=True, slots=True)
class Place:
    """A world of which FR has released `SENT`, acknowledged, and `LATE`, not fetched yet; and the cards as files."""

    world: World
    folder: Path

    @property
    def cards(self) -> tuple[str, ...]:
        return "--card", "fr.json", "--card", "de.json"

    def run(self, *words: str, home: bool = True) -> subprocess.CompletedProcess[str]:
        """A command, from start to end; without a home, none of it can be read."""
        where = ["--home", str(self.world[FR].home)] if home else []
        nowhere = {**commands.outside(), "HOME": str(self.folder / "nobody")}
        return commands.run(*where, *words, cwd=self.folder, env=nowhere, timeout=60)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    world = make_world(folder / "nodes")
    agree(world)
    content = document("SENT", title="Old title", notes=(WORDS[0],))
    content["document"]["acknowledgments"] = [{"names": [WORDS[1]]}]
    releases.release(world[FR], import_document(world[FR], content))
    world.sync_all(2)
    releases.release(world[FR], import_document(world[FR], document("LATE")))
    for name, file in ((FR, "fr.json"), (DE, "de.json")):
        (folder / file).write_bytes(world[name].card_bytes)
    yield Place(world, folder)
    world.close()


def test_a_proof_is_exported_and_checked_without_a_home(place: Place) -> None:
    made = place.run("proof", "export", "SENT", DE, "--out", "proof.json")
    assert (made.returncode, made.stdout) == (0, "")
    assert "apostille proof verify proof.json" in made.stderr
    done = place.run("proof", "verify", "proof.json", *place.cards, home=False)
    assert done.returncode == 0, done.stderr
    for words in (
        "SENT, revision 1",
        FR,
        DE,
        "Acknowledged",
        "/csaf/document/title",
        "full",
        "What this file does not",
    ):
        assert words in done.stdout
    assert not any(words in done.stdout for words in (*WORDS, "Old title"))
    content = place.run("proof", "verify", "proof.json", *place.cards, "--content", home=False)
    assert all(words in content.stdout for words in (*WORDS, "Old title"))


def test_a_script_reads_it_as_json(place: Place) -> None:
    file = place.folder / "script.json"
    file.write_text(place.run("proof", "export", "SENT", DE, "--revision", "1").stdout, encoding="ascii")
    found = json.loads(place.run("proof", "verify", "script.json", *place.cards, "--json", home=False).stdout)
    assert (found["sender"], found["recipient"], found["advisory"], found["revision"]) == (FR, DE, "SENT", 1)
    assert {part["form"] for part in found["parts"]} == {"full"}
    assert found["bytes_arrived"] is True
    assert len(found["not_proved"]) == 6
    assert "csaf" not in found
    content = place.run("proof", "verify", "script.json", *place.cards, "--content", "--json", home=False)
    assert json.loads(content.stdout)["csaf"]["document"]["title"] == "Old title"


def test_without_a_receipt_it_ends_with_code_1_unless_that_is_accepted(place: Place) -> None:
    made = place.run("proof", "export", "LATE", DE, "--out", "late.json")
    assert "It has no receipt" in made.stderr
    done = place.run("proof", "verify", "late.json", *place.cards, home=False)
    assert done.returncode == 1
    assert "there is no receipt" in done.stderr
    assert "NO RECEIPT" in done.stdout
    assert f"That it reached {DE} at all" in done.stdout
    assert place.run("proof", "verify", "late.json", *place.cards, "--without-receipt", home=False).returncode == 0


def test_what_does_not_hold_or_is_not_there_is_one_sentence(place: Place) -> None:
    place.run("proof", "export", "SENT", DE, "--out", "good.json")
    good = (place.folder / "good.json").read_bytes()
    (place.folder / "bad.json").write_bytes(good.replace(b"A", b"B", 1))
    for words, code, sentence in (
        (("proof", "verify", "bad.json", *place.cards), 8, "bad.json: "),
        (("proof", "verify", "good.json", "--card", "fr.json"), 2, f"give the card of {DE}"),
        (("proof", "verify", "nowhere.json", *place.cards), 2, "cannot be read"),
        (("proof", "export", "NONE", DE), 3, "never released"),
        (("proof", "export", "SENT", DE, "--entry", "999"), 3, "not as that revision or entry"),
    ):
        done = place.run(*words)
        assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
        assert sentence in done.stderr


def test_the_ledger_is_verified_and_ends_with_code_1_when_something_does_not_agree(place: Place) -> None:
    done = place.run("ledger", "verify")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["Findings", "0"]
    found = json.loads(place.run("ledger", "verify", "--json").stdout)
    assert found["findings"] == []
    assert (found["sent"], found["received"]) == (4, 2)
    with closing(sqlite3.connect(place.world[FR].home / "apostille.db")) as file:
        file.execute("UPDATE ledger SET by = 'bob' WHERE id = 1")
        file.commit()
        wrong = place.run("ledger", "verify")
        as_json = place.run("ledger", "verify", "--json")
        file.execute(
            "UPDATE ledger SET by = (SELECT json_extract(CAST(record AS TEXT), '$.by') FROM ledger) WHERE id = 1"
        )
        file.commit()
    assert (wrong.returncode, as_json.returncode) == (1, 1)
    assert "beside its record stands another by" in wrong.stdout
    assert wrong.stderr.startswith("apostille: 1 finding")
    assert json.loads(as_json.stdout)["findings"] == [
        {"place": "ledger row 1", "says": "beside its record stands another by"}
    ]
    assert place.run("ledger", "verify").returncode == 0
