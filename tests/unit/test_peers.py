"""Enrolling, replacing and distrusting cards: nobody comes in by himself, and nobody comes back by himself."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import func, select

from federation.errors import (
    ApostilleError,
    ConflictError,
    NotFoundError,
    RemoteError,
    SignatureError,
    UnknownOriginError,
    UsageError,
)
from federation.keyring import Card, OnlineKey, RootSet, key_id
from federation.model import NodeId, Role
from node import main
from node.exchange import sync
from node.home.context import Node
from node.peering import peers
from node.store.database import read
from node.store.tables import in_feeds, out_feeds
from node.store.tables import peers as table
from tests.nodes import DE, FR, IN, World, make_node, make_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path)
    yield made
    made.close()


def card_of(node: Node, **changed: object) -> bytes:
    """Another card of `node`, signed by its real roots."""
    card: Card = replace(node.card, **changed)  # type: ignore[arg-type]
    return main.sign_card(card, node.keys)


def test_enrolling_makes_a_feed_each_way(world: World) -> None:
    (peer,) = peers.all_peers(world[FR])
    assert (peer.card, peer.trusted) == (world[DE].card, True)
    with read(world[FR].engine) as tx:
        assert tx.execute(select(out_feeds.c.origin)).scalars().all() == [f"{FR}/feeds/{DE}/1"]
        assert tx.execute(select(in_feeds.c.origin)).scalars().all() == [f"{DE}/feeds/{FR}/1"]
    assert len(peers.fingerprint_words(peer.card.roots).split()) == 12


def test_a_card_that_does_not_hold_changes_nothing(world: World, tmp_path: Path) -> None:
    stranger = make_node(tmp_path / "more", IN, "IN")
    for data in (b"", b"{}", stranger.card_bytes[:-1], stranger.card_bytes.replace(b"A", b"B", 1)):
        with pytest.raises(RemoteError):
            peers.enrol(world[FR], data)
    assert [peer.card.node for peer in peers.all_peers(world[FR])] == [DE]
    stranger.engine.dispose()


def test_our_own_card_is_no_peers(world: World) -> None:
    with pytest.raises(UsageError, match="itself"):
        peers.enrol(world[FR], world[FR].card_bytes)


def test_the_same_card_again_changes_nothing(world: World) -> None:
    peers.enrol(world[FR], world[DE].card_bytes)
    with read(world[FR].engine) as tx:
        assert tx.execute(select(func.count()).select_from(table)).scalar_one() == 1


def test_a_newer_card_by_the_same_roots_replaces_the_old_one(world: World) -> None:
    peers.enrol(world[FR], card_of(world[DE], version=2, endpoint="192.0.2.9:7001"))
    assert peers.trusted_card(world[FR], DE).endpoint == "192.0.2.9:7001"
    assert peers.trusted_card(world[FR], DE).version == 2


@pytest.mark.parametrize("version", [1, 2])
def test_versions_only_grow(world: World, version: int) -> None:
    peers.enrol(world[FR], card_of(world[DE], version=3))
    for old in (version, 3):
        with pytest.raises(ConflictError):
            peers.enrol(world[FR], card_of(world[DE], version=old, endpoint="192.0.2.66:1"))
    assert peers.trusted_card(world[FR], DE).endpoint == world[DE].card.endpoint


def test_other_roots_are_not_taken_however_new_the_card(world: World, tmp_path: Path) -> None:
    home = tmp_path / "impostor"
    main.init_home(home, DE, world[DE].jurisdiction, "127.0.0.1:1", "127.0.0.1:1", roots=3, threshold=2, packs=())
    impostor = main.open_node(home)
    with pytest.raises(SignatureError, match="0 of 2 enrolled root"):
        peers.enrol(world[FR], card_of(impostor, version=9))
    fewer = RootSet(1, world[DE].card.roots.keys)
    with pytest.raises(SignatureError, match="1 of 2 enrolled root"):
        peers.enrol(world[FR], card_of(world[DE], version=9, roots=fewer))
    assert peers.trusted_card(world[FR], DE) == world[DE].card
    impostor.engine.dispose()


def test_distrust_is_at_once_and_one_person_does_not_take_it_back(world: World) -> None:
    fr = world[FR]
    peers.distrust(fr, DE)
    with pytest.raises(NotFoundError, match="distrusted"):
        peers.trusted_card(fr, DE)
    with pytest.raises(NotFoundError):
        world.sync(FR, DE)
    with read(fr.engine) as tx, pytest.raises(UnknownOriginError):
        peers.keyring(fr, tx).card(DE)
    with pytest.raises(UsageError, match="two people"):
        peers.enrol(fr, card_of(world[DE], version=2))
    assert [peer.trusted for peer in peers.all_peers(fr)] == [False]
    with pytest.raises(UsageError, match="two people"):
        peers.enrol(fr, world[DE].card_bytes)  # the card that is known already gives no trust back
    assert [peer.trusted for peer in peers.all_peers(fr)] == [False]


def test_nobody_distrusts_or_asks_whom_he_does_not_know(world: World) -> None:
    stranger = NodeId("cert.ke.example")
    with pytest.raises(NotFoundError):
        peers.distrust(world[FR], stranger)
    with pytest.raises(NotFoundError):
        peers.trusted_card(world[FR], stranger)
    with pytest.raises(NotFoundError):
        sync.load_state(world[FR], stranger)


def test_a_card_whose_tls_key_is_no_certificate_is_not_enrolled(world: World) -> None:
    known = world[DE].card.keys[0]
    garbage = OnlineKey(Role.TLS, key_id(Role.TLS, b"garbage"), b"garbage", known.valid_from, known.valid_until)
    with pytest.raises(ApostilleError):
        peers.enrol(world[FR], card_of(world[DE], version=2, keys=(*world[DE].card.keys, garbage)))
    assert peers.trusted_card(world[FR], DE).version == 1
