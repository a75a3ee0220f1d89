"""Peers that contradict themselves: what is kept of it, and whether it proves itself."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from federation import checkpoint, contradiction
from federation.base64url import from_b64url
from federation.checkpoint import Checkpoint
from federation.keyring import unverified
from federation.model import Role
from node.home.context import Node
from node.peering import rotation
from node.peering.rotation import Change
from node.records import incidents
from node.store.database import read
from node.store.tables import in_feeds
from node.store.tables import incidents as table
from tests.lies import (
    LIES,
    ORIGIN,
    fork,
    only,
    open_alarms,
    roll_back,
    sign_again,
)
from tests.nodes import (
    DE,
    FR,
    ForgedFeed,
    World,
    agree,
    history,
    issued,
    make_world,
    payload_of,
    release,
    signed_core,
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path)
    agree(made)
    release(made, "A")
    made.sync(DE, FR)
    yield made
    made.close()


@pytest.fixture
def de(world: World) -> Node:
    return world[DE]


@pytest.mark.invariant("I8")
@pytest.mark.parametrize("kind", LIES)
def test_evidence_of_each_lie_is_kept_with_the_card_and_says_whether_it_proves_itself(world: World, kind: str) -> None:
    lie, proves = LIES[kind]
    assert incidents.all_incidents(world[DE]) == ()  # the honest sync left none
    assert open_alarms(world[DE]) == []
    lie(world)
    found = only(world[DE])
    about = "A/1" if kind == "EQUIVOCATION" else ORIGIN
    assert (found.kind, found.peer, found.about, found.proves_itself) == (kind, FR, about, proves)
    assert open_alarms(world[DE]) == [(kind, FR)]
    with read(world[DE].engine) as tx:
        evidence = json.loads(tx.execute(select(table.c.evidence)).scalar_one())
    assert unverified(from_b64url(evidence["card"])) == world[FR].card
    assert from_b64url(evidence["card"]) == world[FR].card_bytes  # as it was signed, not only what it says
    again, data = incidents.export(world[DE], found.number)
    file = json.loads(data)
    assert again == found
    assert (file["incident"], file["proves_itself"]) == (kind, proves)
    assert data == json.dumps(file, sort_keys=True, separators=(",", ":")).encode() + b"\n"


@pytest.mark.invariant("I8")
def test_a_rollback_shows_when_its_sender_called_which_head_its_newest_and_proves_nothing(
    world: World, de: Node
) -> None:
    """By its clock, that is: the smaller head may be the earlier one."""
    roll_back(world)
    assert status_of(de) == "ROLLBACK"  # nothing more is taken from it all the same
    dated = {head.dated: head.size for head in only(de).heads if head.dated is not None}
    assert dated[min(dated)] > dated[max(dated)]
    assert not only(de).proves_itself
    file = json.loads(incidents.export(de, only(de).number)[1])
    assert (file["about"], file["proves_itself"]) == (ORIGIN, False)
    assert {Checkpoint.of(from_b64url(note)).size for note in file["heads"]} == set(dated.values())


def status_of(node: Node) -> str | None:
    """The code of what froze the feed from FR."""
    with read(node.engine) as tx:
        frozen: str | None = tx.execute(select(in_feeds.c.frozen).where(in_feeds.c.peer == FR)).scalar_one()
    return frozen


@pytest.mark.invariant("I8")
def test_a_proof_holds_nothing_that_does_not_count(world: World, de: Node) -> None:
    fork(world)
    _, data = incidents.export(de, only(de).number)
    file = json.loads(data)
    assert file.keys() == {"cards", "heads", "incident", "proves_itself"}
    assert len(file["cards"]) == 1
    notes = [
        head(world, 3, b"1" * 32, time=1000),
        head(world, 3, b"2" * 32, time=2000),
        head(world, 2, b"x" * 32, time=3000),
    ]
    assert {len(_lines(note)) for note in notes} == {2}
    found = contradiction.fork(notes, FR, (world[FR].card_bytes,) * 3)
    assert found is not None
    assert [len(_lines(note)) for note in found.heads] == [1, 1]
    assert len(found.cards) == 1


def _lines(note: bytes) -> list[str]:
    """The signature lines of a note."""
    return note.decode().rpartition("\n\n")[2].splitlines()


def test_a_peer_that_signs_many_documents_fills_no_disk(world: World, de: Node) -> None:
    first = len(incidents.all_incidents(de))
    for later_s in range(1, 13):
        sign_again(world, later_s)
    assert len(incidents.all_incidents(de)) == first + 1
    assert len(only(de).cores) == 8
    assert only(de).proves_itself
    assert open_alarms(de) == [("EQUIVOCATION", FR)]


@pytest.mark.invariant("I8")
def test_heads_under_keys_of_two_cards_prove_a_fork_with_both(world: World) -> None:
    """The first key is on no card any more when the second head is signed."""
    fr, de = world[FR], world[DE]
    size, cards = len(history(fr, DE)), [fr.card_bytes]
    honest = ForgedFeed(fr, DE, history(fr, DE)).head(size)
    for _ in range(2):
        rotation.change(fr, Change(rotate=(Role.FEED,)))
        fr.own.reload()
        world.sync(DE, FR)
        world.clock.move(days=15)
        cards.append(fr.card_bytes)
    other = ForgedFeed(fr, DE, history(fr, DE)).head(size, root=b"r" * 32)
    with read(de.engine) as tx:
        assert incidents._cards(tx, FR) == tuple(cards)
    found = contradiction.fork((honest, other), FR, cards)
    assert found is not None
    assert found.cards == (cards[1], cards[2])  # the newest that has each key
    assert contradiction.fork((honest, other), FR, cards[:1]) is None
    assert contradiction.fork((honest, other), FR, cards[2:]) is None


# What is no contradiction


def head(world: World, size: int, root: bytes, *, time: int = 0, origin: str = ORIGIN) -> bytes:
    fr = world[FR]
    signer = fr.keys.signer(Role.FEED, fr.card, world.clock())
    note = checkpoint.sign(Checkpoint(origin, size, root), origin, signer.sign, signer.public)
    return checkpoint.cosign(note, origin, time, signer.sign, signer.public) if time else note


def test_heads_that_agree_prove_nothing(world: World) -> None:
    cards = (world[FR].card_bytes,)
    one, two = head(world, 3, b"1" * 32, time=1000), head(world, 4, b"2" * 32, time=2000)
    assert contradiction.fork((one, two, one), FR, cards) is None
    fork_of_another = head(world, 3, b"x" * 32, time=3000, origin=f"{FR}/feeds/{DE}/2")
    assert contradiction.fork((one, fork_of_another), FR, cards) is None
    assert (
        contradiction.fork((two, head(world, 3, b"1" * 32, time=3000)), FR, cards) is None
    )  # smaller, and dated later
    assert contradiction.fork((one, head(world, 3, b"x" * 32)), DE, cards) is None  # not that node's feed
    assert contradiction.fork((one, head(world, 3, b"x" * 32)), FR, (world[DE].card_bytes,)) is None
    assert contradiction.fork((b"", b"no note", one), FR, cards) is None
    empty = hashlib.sha256(b"").digest()
    assert contradiction.fork((head(world, 0, empty),), FR, cards) is None
    assert contradiction.fork((head(world, 0, b"x" * 32),), FR, cards) is not None


def test_cores_that_agree_prove_nothing(world: World) -> None:
    fr, cards = world[FR], (world[FR].card_bytes,)
    core = issued(fr, "A").core
    payload = payload_of(core)
    other = signed_core(fr, {**payload, "iat": payload["iat"] + 1})
    proof = contradiction.equivocation((other, core, other), FR, cards)  # sanity
    assert proof is not None
    assert proof.cores == tuple(sorted((core, other)))
    assert contradiction.equivocation((core, core), FR, cards) is None
    assert contradiction.equivocation((core, signed_core(fr, {**payload, "jti": f"{FR}/A/2"})), FR, cards) is None
    assert contradiction.equivocation((core, other), DE, cards) is None
    forged = other[:-8] + b"AAAAAAAA"
    assert contradiction.equivocation((core, forged), FR, cards) is None
    assert contradiction.equivocation((core, b"a.b.c", b""), FR, cards) is None


@given(st.lists(st.binary(max_size=80), max_size=4))
def test_any_bytes_prove_nothing_and_break_nothing(notes: list[bytes]) -> None:
    for judge in (contradiction.fork, contradiction.equivocation):
        assert judge(notes, FR, ()) is None
