"""Exported incidents, judged by `verify_incident.py` as a third party would: without our code, by the peer's card."""

import base64
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from federation import contradiction
from federation.checkpoint import Checkpoint
from federation.errors import SuspectedForkError
from federation.feed import Ask
from federation.model import Role
from node.exchange import sync
from node.peering import rotation
from node.peering.rotation import Change
from node.records import incidents
from tests.conformance import verify_incident
from tests.lies import LIES, fork, only, roll_back
from tests.nodes import DE, FR, IN, ForgedFeed, LyingLink, World, agree, history, make_node, make_world, release

SCRIPT = Path(__file__).with_name("verify_incident.py")
FLIPS = 300


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """FR and DE at the beginning of every lie."""
    made = make_world(tmp_path_factory.mktemp("incident"), FR, DE, IN)
    agree(made)
    release(made, "A")
    made.sync_all()
    yield made
    made.close()


def run(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """The script by itself, isolated from this folder and environment."""
    command = [sys.executable, "-E", "-s", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=60, cwd="/")


def judged(data: bytes, card: bytes) -> str | None:
    """What `check` of the script proves; None for whatever the script would end with 1 for."""
    try:
        return verify_incident.check(data, card)
    except verify_incident.WRONG:
        return None


@pytest.mark.invariant("I8")
@pytest.mark.parametrize("kind", LIES)
def test_a_third_party_proves_what_proves_itself_and_nothing_else(tmp_path: Path, kind: str) -> None:
    world = make_world(tmp_path)
    agree(world)
    release(world, "A")
    world.sync(DE, FR)
    lie, proves = LIES[kind]
    lie(world)
    file, card, other = (tmp_path / name for name in ("incident.json", "card.json", "other.json"))
    file.write_bytes(incidents.export(world[DE], only(world[DE]).number)[1])
    card.write_bytes(world[FR].card_bytes)
    other.write_bytes(world[DE].card_bytes)
    done = run(file, "--card", card)
    assert done.returncode == (0 if proves else 1), done.stdout
    assert done.stdout.startswith(b"proved: cert.fr.example " if proves else b"not proved: ")
    assert (b"proves nothing to a third party" in done.stdout) is not proves
    assert run("-", "--card", card, stdin=file.read_bytes()).returncode == done.returncode
    assert run(file, "--card", other).returncode == 1  # it accuses nobody else
    world.close()


@pytest.fixture(scope="module")
def forked(world: World) -> tuple[bytes, bytes]:
    """The exported FORK, and the card of FR."""
    fork(world)
    return incidents.export(world[DE], only(world[DE]).number)[1], world[FR].card_bytes


@pytest.mark.invariant("I8")
def test_no_byte_of_a_proof_can_be_changed(forked: tuple[bytes, bytes]) -> None:
    data, card = forked
    assert judged(data, card) == judged(data, card)
    assert judged(data, card) is not None  # the positive control
    chance = random.Random(20261121)  # noqa: S311 - the same changes in every run
    proved = []
    for _ in range(FLIPS):
        place = chance.randrange(len(data))
        value = chance.choice([byte for byte in range(256) if byte != data[place]])
        if judged(data[:place] + bytes([value]) + data[place + 1 :], card) is not None:
            proved.append((place, value))
    assert proved == []


@pytest.mark.invariant("I8")
def test_no_bit_of_what_is_signed_can_be_changed(forked: tuple[bytes, bytes]) -> None:
    """The same below the encoding: in the bytes of the heads and the card."""
    data, card = forked
    file = json.loads(data)
    chance = random.Random(20261122)  # noqa: S311 - the same changes in every run
    for member in ("heads", "cards"):
        for number, text in enumerate(file[member]):
            raw = bytearray(_unb64(text))
            for _ in range(60):
                place, bit = chance.randrange(len(raw)), 1 << chance.randrange(8)
                raw[place] ^= bit
                changed = {**file, member: [*file[member]]}
                changed[member][number] = _b64(bytes(raw))
                assert judged(_spelt(changed), card) is None, (member, number, place, bit)
                raw[place] ^= bit


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "one head twice": lambda f: f.update(heads=[f["heads"][0]] * 2),
    "one head": lambda f: f.update(heads=f["heads"][:1]),
    "no head": lambda f: f.update(heads=[]),
    "three heads": lambda f: f["heads"].append(f["heads"][0]),
    "a card twice": lambda f: f["cards"].append(f["cards"][0]),
    "no card": lambda f: f.update(cards=[]),
    "another kind": lambda f: f.update(incident="ROLLBACK"),
    "an unknown kind": lambda f: f.update(incident="LIE"),
    "a member more": lambda f: f.update(note="they did it again"),
    "a member less": lambda f: f.pop("cards"),
    "it claims nothing": lambda f: f.update(proves_itself=False),
    "it claims something else": lambda f: f.update(proves_itself=1),
}


@pytest.mark.invariant("I8")
@pytest.mark.parametrize("name", CHANGES)
def test_a_file_of_another_form_proves_nothing(forked: tuple[bytes, bytes], name: str) -> None:
    data, card = forked
    file = json.loads(data)
    CHANGES[name](file)
    assert judged(_spelt(file), card) is None


@pytest.mark.invariant("I8")
def test_honest_heads_dressed_up_as_an_incident_prove_nothing(world: World, forked: tuple[bytes, bytes]) -> None:
    data, card = forked
    fr = world[FR]
    honest = ForgedFeed(fr, IN, history(fr, IN))
    count = len(history(fr, IN))
    for kind, notes in (
        ("FORK", [honest.head(count), honest.head(count - 1)]),
        ("FORK", [honest.head(count), honest.head(count)]),
        ("FORK", [honest.head(0)]),
        ("FORK", [honest.latest(count), honest.latest(count - 1)]),
    ):
        file = {**json.loads(data), "incident": kind, "heads": [_b64(note) for note in notes]}
        assert judged(_spelt(file), card) is None, (kind, notes)
    forgery = ForgedFeed(world[DE], IN, history(fr, IN))  # DE signs heads of FR's feed with its own key
    forgery.origin = honest.origin
    file = {**json.loads(data), "heads": [_b64(forgery.head(3)), _b64(forgery.head(3, b"x" * 32))]}
    assert judged(_spelt(file), card) is None


@pytest.mark.invariant("I8")
def test_a_card_that_somebody_made_up_counts_for_nothing(world: World, tmp_path: Path) -> None:
    """IN makes a card in the name of FR, with root keys and a feed key of its own, and signs two heads with that."""
    other = make_node(tmp_path, FR, "FR", packs=("eu-gdpr",))  # a home of that name with keys that nobody knows
    forger = replace(other, clock=world.clock)
    assert forger.card.roots != world[FR].card.roots
    forged = ForgedFeed(forger, DE, history(world[FR], DE))
    file = {
        "incident": "FORK",
        "proves_itself": True,
        "heads": [_b64(note) for note in (forged.head(1), forged.head(1, b"x" * 32))],
        "cards": [_b64(forger.card_bytes)],
    }
    assert judged(_spelt(file), forger.card_bytes) is not None  # the positive control
    assert judged(_spelt(file), world[FR].card_bytes) is None
    other.engine.dispose()


@pytest.mark.invariant("I8")
def test_keys_count_by_the_card_that_the_third_party_has(tmp_path: Path) -> None:
    """FR changes its feed key twice between two heads: the file brings older cards, which the same roots signed."""
    world = make_world(tmp_path)
    agree(world)
    fr, cards = world[FR], [world[FR].card_bytes]
    size = len(history(fr, DE))
    heads = [ForgedFeed(fr, DE, history(fr, DE)).head(size)]
    for _ in range(2):
        rotation.change(fr, Change(rotate=(Role.FEED,)))
        fr.own.reload()
        world.clock.move(days=15)
        cards.append(fr.card_bytes)
    heads.append(ForgedFeed(fr, DE, history(fr, DE)).head(size, root=b"r" * 32))
    found = contradiction.fork(heads, FR, cards)
    assert found is not None
    file: dict[str, Any] = {
        "incident": "FORK",
        "proves_itself": True,
        "heads": [_b64(note) for note in found.heads],
        "cards": [_b64(card) for card in found.cards],
    }
    for card in cards:  # any card of theirs will do: the root keys are the same
        assert judged(_spelt(file), card) is not None
    assert judged(_spelt(file), world[DE].card_bytes) is None
    assert judged(_spelt({**file, "cards": file["cards"][:1]}), cards[-1]) is None
    assert judged(_spelt({**file, "cards": [_b64(card) for card in cards]}), cards[-1]) is None  # one is not needed
    assert judged(_spelt({**file, "cards": [_b64(world[DE].card_bytes)]}), cards[-1]) is None
    world.close()


@pytest.mark.invariant("I8")
def test_what_rests_on_our_word_is_never_proved(tmp_path: Path) -> None:
    """A rollback: exported, and told as what it is."""
    world = make_world(tmp_path)
    agree(world)
    release(world, "A", "B")
    world.sync(DE, FR)
    roll_back(world)
    data = incidents.export(world[DE], only(world[DE]).number)[1]
    assert judged(data, world[FR].card_bytes) is None
    dressed = {name: value for name, value in json.loads(data).items() if name != "about"}
    assert judged(_spelt({**dressed, "proves_itself": True}), world[FR].card_bytes) is None
    world.close()


@pytest.mark.invariant("I8")
def test_a_clock_that_was_ahead_makes_nobody_a_liar(tmp_path: Path) -> None:
    """FR answers honestly, dates a head ten minutes ahead, and has its clock mended: the larger head seems older, and
    whoever got the answers may not say that FR took entries back."""
    world = make_world(tmp_path)
    agree(world)
    link, asked = world.link(DE, FR), sync.load_state(world[DE], FR).state
    ask = Ask(asked.origin, asked.cursor, b"", asked.newest, False, protocol=2)
    now = world.clock()
    world.clock.move(minutes=10)
    ahead = link.pull(ask).latest
    world.clock.now = now + timedelta(minutes=1)
    release(world, "A")
    world.sync(DE, FR)
    mended = link.pull(ask).latest
    dated = [contradiction.dated(note, FR, [world[FR].card_bytes]) for note in (mended, ahead)]
    sizes = [Checkpoint.of(note).size for note in (mended, ahead)]
    assert None not in dated
    assert sizes[0] > sizes[1]
    assert dated[0] is not None
    assert dated[1] is not None
    assert dated[1] - dated[0] > 60
    file = {
        "incident": "ROLLBACK",
        "proves_itself": True,
        "cards": [_b64(world[FR].card_bytes)],
        "heads": [_b64(_one_line(note)) for note in (mended, ahead)],
    }
    assert judged(_spelt(file), world[FR].card_bytes) is None
    assert judged(_spelt({**file, "incident": "FORK"}), world[FR].card_bytes) is None
    world.close()


def _one_line(note: bytes) -> bytes:
    """A note with its last signature line alone: that with the time."""
    body, _, lines = note.rpartition(b"\n\n")
    return body + b"\n\n" + lines.splitlines(keepends=True)[-1]


def test_a_page_that_does_not_follow_is_told_as_a_suspicion(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    agree(world)
    world.sync(DE, FR)
    release(world, "A", "B")
    link = LyingLink(world.link(DE, FR), lambda page: replace(page, items=page.items[1:]))
    with pytest.raises(SuspectedForkError):
        sync.sync(world[DE], FR, link)
    found, data = incidents.export(world[DE], only(world[DE]).number)
    assert not found.proves_itself
    assert judged(data, world[FR].card_bytes) is None
    world.close()


def _spelt(file: dict[str, Any]) -> bytes:
    return json.dumps(file, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
