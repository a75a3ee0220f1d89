"""Cards that are signed where the root keys are kept, and cards with other root keys: what may be put in force."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from federation import jws, keyring
from federation.errors import (
    AwaitsSecondError,
    ConflictError,
    HeldError,
    LockedError,
    NotAllowedError,
    SignatureError,
    UsageError,
)
from federation.keyring import Card
from federation.model import Role
from node import acts
from node.home import keys, prepared
from node.home.context import Node
from node.peering import peers, rotation
from node.peering.rotation import Change
from node.records import approvals
from node.records.approvals import State
from node.store.database import read, write
from node.store.tables import approvals as approvals_table
from node.store.tables import audit
from tests.nodes import (
    DE,
    FR,
    IN,
    PEOPLE,
    World,
    agree,
    arrived,
    make_node,
    make_world,
    release,
    reopen,
)

EVERY = tuple(Role)
DAY = timedelta(days=1)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path)
    agree(made)
    yield made
    made.close()


def newest(node: Node, role: Role) -> str:
    """The id of the newest key of `role` on the current card."""
    return next(key.kid for key in node.card.keys if key.role is role)


# Cards that are signed elsewhere


def offline(node: Node, folder: Path) -> list[Path]:
    """Moves each root key to a medium of its own, with the salt."""
    media = []
    for path in sorted((node.home / "roots").glob("root-*.pem")):
        medium = folder / path.stem
        medium.mkdir(parents=True)
        shutil.move(path, medium / path.name)
        shutil.copy(node.home / "roots" / "salt", medium / "salt")
        media.append(medium)
    return media


def roots_in(medium: Path, node: Node) -> tuple[keys.Signer, ...]:
    return keys.offline_roots(medium, None, (node.home / "passphrase").read_bytes().strip())


def test_a_card_is_prepared_signed_on_two_media_and_installed(world: World, tmp_path: Path) -> None:
    fr = reopen(world, FR)
    media = offline(fr, tmp_path / "media")
    with pytest.raises(UsageError, match="--prepare"):
        rotation.change(fr, Change(rotate=EVERY))
    assert len(fr.keys.stored()) == 4
    data = rotation.prepare(fr, Change(rotate=EVERY))
    assert (prepared.read(data)[1], fr.card.version) == (0, 1)
    once = prepared.sign(data, roots_in(media[0], fr))
    assert prepared.read(once)[1] == 1
    with pytest.raises(SignatureError, match="1 of 2"):
        rotation.install(fr, once)
    assert prepared.sign(once, roots_in(media[0], fr)) == once
    rotation.install(fr, prepared.sign(once, roots_in(media[2], fr)))
    assert fr.card.version == 2
    world.sync(DE, FR)
    assert peers.trusted_card(world[DE], FR) == fr.card


def test_root_keys_elsewhere_need_their_salt_and_passphrase(world: World, tmp_path: Path) -> None:
    fr = world[FR]
    (medium, *_) = offline(fr, tmp_path / "media")
    with pytest.raises(LockedError, match="passphrase"):
        keys.offline_roots(medium, None, b"wrong")
    (medium / "salt").unlink()
    with pytest.raises(UsageError, match="--salt"):
        roots_in(medium, fr)
    passphrase = (fr.home / "passphrase").read_bytes().strip()
    assert len(keys.offline_roots(medium, fr.home / "keys" / "salt", passphrase)) == 1
    with pytest.raises(UsageError, match="no root keys"):
        roots_in(tmp_path, fr)


def by_hand(fr: Node, **changed: object) -> bytes:
    card: Card = replace(fr.card, version=fr.card.version + 1, **changed)  # type: ignore[arg-type]  # any member
    return prepared.sign(card.payload(), fr.keys.roots())


def test_what_does_not_follow_the_current_card_is_not_installed(world: World, tmp_path: Path) -> None:
    fr, de = world[FR], world[DE]
    current = fr.card
    stolen = prepared.sign(rotation.prepare(fr, Change(rotate=EVERY)), fr.keys.roots())
    elsewhere = next(key for key in prepared.read(stolen)[0].keys if key.role is Role.FEED)
    fr.keys.remove(Role.FEED, elsewhere.kid)
    longer = tuple(replace(key, valid_until=key.valid_until + DAY) for key in current.keys)
    without = tuple(key for key in current.keys if key.role is not Role.TLS)
    for card, error, words in (
        (by_hand(fr, jurisdiction=de.jurisdiction), UsageError, "not of this node"),
        (
            prepared.sign(replace(current, issued_at=current.issued_at + DAY).payload(), fr.keys.roots()),
            ConflictError,
            "follow",
        ),
        (by_hand(fr, keys=longer), UsageError, "later end"),
        (by_hand(fr, keys=without), UsageError, "no tls key"),
        (stolen, UsageError, "missing"),
        (de.card_bytes, SignatureError, "0 of 2 enrolled"),
    ):
        with pytest.raises(error, match=words):
            rotation.install(fr, card)
        assert fr.card == current
    with read(fr.engine) as tx:
        assert tx.execute(select(audit).where(audit.c.act == "card.install")).all() == []


def test_a_private_key_that_is_not_that_of_the_card_is_noticed(world: World) -> None:
    fr = world[FR]
    document = prepared.sign(rotation.prepare(fr, Change(rotate=EVERY)), fr.keys.roots())
    card, *_ = prepared.read(document)
    for role in Role:
        new = next(key for key in card.keys if key.role is role)
        place = fr.home / "keys" / f"{role}-{new.kid}.pem"
        kept = place.read_bytes()
        place.write_bytes((fr.home / "keys" / f"{role}-{newest(fr, role)}.pem").read_bytes())
        with pytest.raises(UsageError, match="not the private half"):
            rotation.install(reopen(world, FR), document)
        place.write_bytes(kept)
    rotation.install(reopen(world, FR), document)


def test_a_card_that_was_prepared_too_long_ago_would_cut_peers_off(world: World) -> None:
    fr = world[FR]
    document = prepared.sign(rotation.prepare(fr, Change(rotate=(Role.TLS,))), fr.keys.roots())
    world.clock.move(days=15)
    with pytest.raises(HeldError, match="cut off"):
        rotation.install(fr, document)
    assert fr.card.version == 1


def test_of_two_cards_that_were_prepared_at_once_only_one_is_installed(world: World) -> None:
    fr = world[FR]
    one, other = (
        prepared.sign(rotation.prepare(fr, Change(rotate=(role,))), fr.keys.roots()) for role in (Role.FEED, Role.TLS)
    )
    rotation.install(fr, one)
    with pytest.raises(ConflictError):
        rotation.install(fr, other)
    assert [key.role for key in fr.card.keys].count(Role.TLS) == 1


# Other root keys


def approve(node: Node, number: int) -> None:
    second = replace(node, actor="bob")
    assert approvals.settle(second, number, acts.registry(), approve=True).state is State.DONE
    node.own.reload()


def change_roots(node: Node, reason: str = "one root key was lost") -> None:
    document = rotation.new_roots(node, 2, 1)
    with pytest.raises(AwaitsSecondError) as asked:
        rotation.install(node, document, reason)
    approve(node, asked.value.number)


@pytest.mark.invariant("I13")
def test_other_root_keys_take_two_people_the_old_threshold_and_the_new(world: World) -> None:
    fr, before = world[FR], world[FR].card.roots
    document = rotation.new_roots(fr, 2, 2)
    with pytest.raises(UsageError, match="--reason"):
        rotation.install(fr, document)
    with pytest.raises(AwaitsSecondError) as asked:
        rotation.install(fr, document, "yearly")
    assert fr.card.version == 1
    request = approvals.find(fr, asked.value.number)
    assert request.arguments["fingerprint"] == peers.fingerprint_words(prepared.read(document)[0].roots)
    with pytest.raises(NotAllowedError):
        approvals.settle(fr, asked.value.number, acts.registry(), approve=True)
    approve(fr, asked.value.number)
    assert (fr.card.version, len(fr.card.roots.keys), fr.card.roots.threshold) == (2, 2, 2)
    assert fr.card.roots != before
    world.sync(DE, FR)
    assert peers.trusted_card(world[DE], FR).roots == fr.card.roots
    assert peers.root_changes(world[DE]).keys() == {FR}


def test_a_change_of_roots_that_was_asked_for_is_void_once_another_card_was_installed(world: World) -> None:
    fr = world[FR]
    with pytest.raises(AwaitsSecondError) as asked:
        rotation.install(fr, rotation.new_roots(fr, 2, 1), "yearly")
    rotation.change(fr, Change(rotate=(Role.FEED,)))
    with pytest.raises(ConflictError, match="void"):
        approve(fr, asked.value.number)
    assert (fr.card.version, len(fr.card.roots.keys)) == (2, 3)


@pytest.mark.invariant("I13")
def test_the_second_person_approves_the_very_card_that_was_asked_for(world: World) -> None:
    fr = world[FR]
    asked_for, other = (rotation.new_roots(fr, 2, 1) for _ in range(2))
    with pytest.raises(AwaitsSecondError) as asked:
        rotation.install(fr, asked_for, "yearly")
    with write(fr.engine) as tx:
        row = tx.execute(select(approvals_table)).one()
        put_in_its_place = {**row.arguments, "arguments": {**row.arguments["arguments"], "document": other.decode()}}
        tx.execute(update(approvals_table).values(arguments=put_in_its_place))
    with pytest.raises(ConflictError, match="void"):
        approve(fr, asked.value.number)
    assert fr.card.version == 1


@pytest.mark.parametrize("missing", ["old", "new"])
def test_neither_the_old_root_keys_nor_the_new_change_roots_alone(world: World, missing: str) -> None:
    fr = world[FR]
    document = rotation.new_roots(fr, 3, 2)
    parsed = jws.parse(document, max_bytes=1 << 16, typ=keyring.JWS_TYPE)
    old = {keyring.root_key_id(key) for key in fr.card.roots.keys}
    kept = [s for s in parsed.signatures if (s.kid in old) == (missing == "new")]
    other = [s for s in parsed.signatures if s not in kept][:1]  # one is below the threshold
    document = jws.serialise(jws.SignedDocument(parsed.payload, (*kept, *other)))
    with pytest.raises(SignatureError, match="1 of 2"):
        rotation.install(fr, document, "alone")
    assert approvals.pending(fr) == ()


def test_new_root_keys_where_the_old_ones_are_offline(world: World, tmp_path: Path) -> None:
    fr = reopen(world, FR)
    media = offline(fr, tmp_path / "media")
    document = rotation.new_roots(fr, 3, 2)
    with pytest.raises(SignatureError, match="0 of 2 enrolled"):
        rotation.install(fr, document, "yearly")
    with pytest.raises(UsageError, match="--hand-over"):
        prepared.sign(document, roots_in(media[0], fr))
    for medium in media[:2]:
        document = prepared.sign(document, roots_in(medium, fr), hand_over=True)
    with pytest.raises(AwaitsSecondError) as asked:
        rotation.install(fr, document, "yearly")
    approve(fr, asked.value.number)
    world.sync(DE, FR)
    assert peers.trusted_card(world[DE], FR).roots == fr.card.roots


def test_after_a_change_of_roots_the_new_ones_sign_alone_and_the_old_ones_count_no_more(world: World) -> None:
    fr, old = world[FR], world[FR].keys.roots()
    change_roots(fr)
    by_old = prepared.sign(replace(fr.card, version=3).payload(), old, hand_over=True)
    with pytest.raises(SignatureError):
        rotation.install(fr, by_old)
    rotation.change(fr, Change(rotate=EVERY))
    world.sync(DE, FR)
    assert peers.trusted_card(world[DE], FR) == fr.card
    assert fr.card.version == 3


def test_a_peer_that_was_away_follows_a_change_of_roots_and_all_that_came_after(world: World) -> None:
    fr = world[FR]
    change_roots(fr)
    for _ in range(2):
        rotation.change(fr, Change(rotate=EVERY))
    release(world, "A")
    world.clock.move(days=10)
    world.sync(DE, FR)
    assert (arrived(world), peers.trusted_card(world[DE], FR)) == (["A"], fr.card)


def test_a_newcomer_verifies_the_exported_card_by_the_new_roots_alone(world: World, tmp_path: Path) -> None:
    fr = world[FR]
    change_roots(fr)
    with pytest.raises(SignatureError):  # it names root keys that a newcomer has never seen
        keyring.open_card(fr.card_bytes)
    assert keyring.open_card(keyring.for_newcomers(fr.card_bytes)) == fr.card
    peers.enrol(world[DE], fr.card_bytes)
    assert peers.trusted_card(world[DE], FR) == fr.card
    peers.enrol(world[DE], keyring.for_newcomers(fr.card_bytes))  # the same card, with fewer signatures
    assert peers.trusted_card(world[DE], FR) == fr.card
    newcomer = replace(make_node(tmp_path / "newcomer", IN, "IN"), actor="alice", people=PEOPLE)
    peers.enrol(newcomer, fr.card_bytes)  # all signatures, of which it can check half
    assert peers.trusted_card(newcomer, FR) == fr.card
    newcomer.engine.dispose()
