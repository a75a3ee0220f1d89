"""New keys and cards of a node: added beside the old ones, used with each peer as soon as it can verify them."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from federation import keyring
from federation.checkpoint import Checkpoint, VerifierKey, open_checkpoint
from federation.errors import (
    HeldError,
    NotAllowedError,
    NotFoundError,
    UnreachableError,
    UsageError,
)
from federation.feed import PageBytes
from federation.model import NodeId, Role
from node import main
from node.desk import inbox
from node.exchange import sync
from node.home import keys, signing
from node.home.context import Node
from node.home.people import Post
from node.operation import checkup
from node.operation.checkup import Verdict
from node.peering import cards, feeds, peers, rotation
from node.peering.rotation import Change
from node.sharing import releases
from node.store.database import read
from node.store.tables import in_entries
from node.store.tables import peers as peers_table
from tests.nodes import (
    DE,
    FR,
    IN,
    LyingLink,
    World,
    agree,
    arrived,
    document,
    import_document,
    make_world,
    release,
    reopen,
)

EVERY = tuple(Role)
ORIGIN = f"{FR}/feeds/{DE}/1"
DAY = timedelta(days=1)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path)
    agree(made)
    yield made
    made.close()


@pytest.fixture
def three(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path, FR, DE, IN)
    yield made
    made.close()


def newest(node: Node, role: Role) -> str:
    """The id of the newest key of `role` on the current card."""
    return next(key.kid for key in node.card.keys if key.role is role)


def used(world: World, peer: NodeId, role: Role) -> str:
    """The id of the key that FR uses towards one peer."""
    with read(world[FR].engine) as tx:
        return signing.key_for(world[FR], tx, peer, role).kid


def used_for_all(world: World, role: Role) -> str:
    with read(world[FR].engine) as tx:
        return signing.key_for_all(world[FR], tx, role).kid


def signs(world: World, role: Role = Role.FEED) -> list[str]:
    """The ids of the keys with which FR signs a note for DE."""
    with read(world[FR].engine) as tx:
        return [signer.kid for signer in signing.signers_for(world[FR], tx, DE, role)]


def holds(world: World, peer: NodeId = DE) -> int:
    """The newest card of FR that it knows `peer` to hold."""
    with read(world[FR].engine) as tx:
        return int(tx.execute(select(peers_table.c.our_card).where(peers_table.c.node == peer)).scalar_one())


def later(world: World, **span: float) -> None:
    world.clock.move(**span)


# What a rotation makes


def test_new_keys_stand_beside_the_old_ones_which_end_with_the_overlap(world: World) -> None:
    fr = world[FR]
    old = {key.role: key for key in fr.card.keys}
    later(world, days=100)
    now = world.clock().replace(microsecond=0)
    card = rotation.change(fr, Change(rotate=(Role.FEED, Role.TLS), overlap=timedelta(days=3)))
    assert (card.version, fr.card) == (2, card)
    by_role = {role: [key for key in card.keys if key.role is role] for role in Role}
    for role in (Role.FEED, Role.TLS):
        new, kept = by_role[role]
        assert (new.valid_from, new.valid_until) == (now, now + keys.ONLINE_VALIDITY)
        assert kept == replace(old[role], valid_until=now + timedelta(days=3))
    assert [by_role[role] for role in (Role.ISSUE, Role.RECEIPT)] == [[old[Role.ISSUE]], [old[Role.RECEIPT]]]
    fr.keys.check(by_role[Role.TLS][0])
    assert keyring.open_card(fr.card_bytes) == card


def test_a_rotation_never_lengthens_a_key(world: World) -> None:
    fr, end = world[FR], world[FR].card.keys[0].valid_until
    world.clock.now = end - DAY
    card = rotation.change(fr, Change(rotate=EVERY))
    assert sorted(key.valid_until for key in card.keys)[:4] == [end] * 4


@pytest.mark.invariant("I5")
def test_an_old_issue_key_keeps_its_end_because_what_it_signed_goes_on_being_released(three: World) -> None:
    agree(three)
    release_to(three, "A", DE)
    end = three[FR].card.keys[0].valid_until
    rotation.change(three[FR], Change(rotate=EVERY))
    assert [key.valid_until for key in three[FR].card.keys if key.role is Role.ISSUE][1] == end
    for _ in range(4):
        three.sync_all()
        later(three, days=10)
    release_to(three, "A", IN)
    three.sync(IN, FR)
    assert [item.name for item in inbox.items(three[IN])] == ["A"]
    short = rotation.change(three[FR], Change(rotate=(Role.ISSUE,), overlap=DAY))
    assert {
        key.valid_until for key in short.keys if key.role is Role.ISSUE and key.kid != newest(three[FR], Role.ISSUE)
    } == {three.clock().replace(microsecond=0) + DAY}


def release_to(world: World, name: str, peer: NodeId) -> None:
    import_document(world[FR], document(name))
    releases.release(world[FR], name, (peer,))


def test_a_card_holds_only_so_many_keys(world: World) -> None:
    fr = world[FR]
    for _ in range(7):
        rotation.change(fr, Change(rotate=EVERY))
    assert len(fr.card.keys) == keyring.MAX_KEYS
    before = set(fr.keys.stored())
    with pytest.raises(UsageError, match="at most 32"):
        rotation.change(fr, Change(rotate=(Role.FEED,)))
    assert (fr.card.version, set(fr.keys.stored())) == (8, before)
    later(world, days=15)
    assert rotation.change(fr, Change(rotate=(Role.FEED,))).version == 9


def test_a_card_that_would_say_nothing_new_is_not_made(world: World) -> None:
    fr = world[FR]
    for wanted in (Change(), Change(endpoint=fr.card.endpoint)):
        with pytest.raises(UsageError, match="all of that already"):
            rotation.change(fr, wanted)
    assert rotation.change(fr, Change(endpoint="192.0.2.9:7443")).endpoint == "192.0.2.9:7443"
    world.sync(DE, FR)
    assert peers.trusted_card(world[DE], FR).endpoint == "192.0.2.9:7443"
    with pytest.raises(UsageError, match="higher number"):
        rotation.change(fr, Change(rotate=EVERY, version=2))
    assert rotation.change(fr, Change(rotate=EVERY, version=9)).version == 9


def test_only_an_operator_changes_keys(world: World) -> None:
    fr = replace(world[FR], people={"alice": frozenset(Post) - {Post.OPERATOR}})
    for act in (
        lambda: rotation.change(fr, Change(rotate=EVERY)),
        lambda: rotation.prepare(fr, Change(rotate=EVERY)),
        lambda: rotation.install(fr, fr.card_bytes),
        lambda: rotation.new_roots(fr, 3, 2),
        lambda: rotation.prune(fr),
    ):
        with pytest.raises(NotAllowedError):
            act()
    assert (fr.card.version, len(fr.keys.stored()), len(fr.keys.roots())) == (1, 4, 3)


# Which key is used towards whom


@pytest.mark.invariant("I9")
def test_each_peer_gets_the_new_keys_once_its_cursor_shows_that_it_holds_them(three: World) -> None:
    fr = three[FR]
    old = {role: newest(fr, role) for role in Role}
    rotation.change(fr, Change(rotate=EVERY))
    new = {role: newest(fr, role) for role in Role}
    assert {used(three, peer, role) for peer in (DE, IN) for role in Role} == set(old.values())
    three.sync(DE, FR)
    assert (holds(three, DE), holds(three, IN)) == (2, 1)
    assert {role: used(three, DE, role) for role in Role} == new
    assert {role: used(three, IN, role) for role in Role} == old
    assert {role: used_for_all(three, role) for role in Role} == old
    assert cards.waiting(fr) == (IN,)
    three.sync(IN, FR)
    assert {role: used_for_all(three, role) for role in Role} == new
    assert cards.waiting(fr) == ()


def test_nobody_is_waited_for_once_the_old_key_has_ended(three: World) -> None:
    fr = three[FR]
    rotation.change(fr, Change(rotate=EVERY, overlap=timedelta(days=30)))
    three.sync(DE, FR)
    later(three, days=15)
    assert used_for_all(three, Role.ISSUE) == newest(fr, Role.ISSUE)  # what it signs comes after the card
    assert used_for_all(three, Role.TLS) != newest(fr, Role.TLS)
    later(three, days=16)
    assert used_for_all(three, Role.TLS) == newest(fr, Role.TLS)
    assert used(three, IN, Role.FEED) == newest(fr, Role.FEED)


def test_a_distrusted_peer_holds_nobody_up(three: World) -> None:
    fr = three[FR]
    rotation.change(fr, Change(rotate=EVERY))
    three.sync(DE, FR)
    peers.distrust(fr, IN)
    assert used_for_all(three, Role.TLS) == newest(fr, Role.TLS)


def test_until_the_peer_holds_the_card_heads_are_signed_by_old_and_new_key(world: World) -> None:
    fr = world[FR]
    (old,) = signs(world)
    rotation.change(fr, Change(rotate=(Role.FEED,)))
    assert signs(world) == [newest(fr, Role.FEED), old]
    with read(fr.engine) as tx:
        feed = feeds.out_feed(tx, DE)
        head, latest = feeds.head(fr, tx, feed, feed.size), feeds.latest_head(fr, tx, feed)
    for kid in signs(world):
        key = next(key for key in fr.card.keys if key.kid == kid)
        for note in (head, latest):
            assert open_checkpoint(note, ORIGIN, VerifierKey(ORIGIN, key.public)) == Checkpoint.of(head)
    assert (head.count("— ".encode()), latest.count("— ".encode())) == (2, 4)
    world.sync(DE, FR)
    assert signs(world) == [newest(fr, Role.FEED)]


def test_many_rotations_in_a_row_do_not_overfill_a_note(world: World) -> None:
    for _ in range(20):
        rotation.change(world[FR], Change(rotate=(Role.FEED,)))
        rotation.change(world[DE], Change(rotate=(Role.RECEIPT,)))
    release(world, "A")
    for _ in range(2):
        world.sync_all()
    assert arrived(world) == ["A"]
    assert signs(world) == [newest(world[FR], Role.FEED)]


def test_the_exchange_goes_on_through_rotations_of_everything_on_both_sides(world: World) -> None:
    for number in range(6):
        for name in (FR, DE):
            rotation.change(world[name], Change(rotate=EVERY))
        release(world, f"A-{number}")
        world.sync_all()
        later(world, days=15)
    world.sync_all()
    assert arrived(world) == [f"A-{number}" for number in range(6)]
    with read(world[DE].engine) as tx:
        assert set(tx.execute(select(in_entries.c.outcome)).scalars()) == {"control", "admitted"}


@pytest.mark.invariant("I9")
def test_a_receiver_that_dies_between_commit_and_receipt_goes_on_although_the_old_key_is_gone(world: World) -> None:
    fr, old = world[FR], signs(world)[0]
    rotation.change(fr, Change(rotate=(Role.FEED,)))
    rotation.change(fr, rotation.retire(fr, old, at_once=True))
    release(world, "A")
    assert old in signs(world)  # the only one that the peer knows
    link = LyingLink(world.link(DE, FR))

    def dies(page: PageBytes) -> PageBytes:
        if link.pulls == 2:
            raise UnreachableError("killed after the commit of the first page")
        return page

    link.rewrite = dies
    with pytest.raises(UnreachableError):
        sync.sync(world[DE], FR, link)
    assert arrived(world) == ["A"]
    release(world, "B")
    world.sync(DE, FR)
    assert arrived(world) == ["A", "B"]
    assert signs(world) == [newest(fr, Role.FEED)]


def test_a_receiver_from_a_backup_that_lacks_the_card_is_served_with_the_old_key_again(
    world: World, tmp_path: Path
) -> None:
    fr, de = world[FR], world[DE]
    world.sync_all()
    de.engine.dispose()
    shutil.copytree(de.home, tmp_path / "backup")
    reopen(world, DE)
    rotation.change(fr, Change(rotate=(Role.FEED, Role.ISSUE)))
    world.sync(DE, FR)
    assert holds(world) == 2
    world[DE].engine.dispose()
    shutil.rmtree(de.home)
    shutil.copytree(tmp_path / "backup", de.home)
    reopen(world, DE)
    assert peers.trusted_card(world[DE], FR).version == 1
    release(world, "A")
    world.sync(DE, FR)
    assert (arrived(world), peers.trusted_card(world[DE], FR).version) == (["A"], 2)


def test_a_restart_in_the_middle_of_a_rotation_changes_nothing(world: World) -> None:
    old = signs(world)
    rotation.change(world[FR], Change(rotate=(Role.FEED,)))
    fr = reopen(world, FR)
    assert fr.card.version == 2
    assert signs(world) == [newest(fr, Role.FEED), *old]
    release(world, "A")
    world.sync(DE, FR)
    assert arrived(world) == ["A"]


# Retiring and deleting


def test_a_key_is_retired_once_every_peer_can_do_without_it(three: World) -> None:
    fr, old = three[FR], newest(three[FR], Role.FEED)
    with pytest.raises(UsageError, match="the only valid"):
        rotation.retire(fr, old)
    with pytest.raises(NotFoundError):
        rotation.retire(fr, "0" * 16)
    rotation.change(fr, Change(rotate=(Role.FEED,)))
    three.sync(DE, FR)
    with pytest.raises(HeldError, match=IN):
        rotation.retire(fr, old)
    three.sync(IN, FR)
    rotation.change(fr, rotation.retire(fr, old))
    assert old not in {key.kid for key in fr.card.keys}
    three.sync_all()
    assert peers.trusted_card(three[IN], FR).version == 3


def test_a_stolen_key_goes_at_once_and_the_feed_still_brings_the_card(world: World) -> None:
    fr, old = world[FR], newest(world[FR], Role.ISSUE)
    feed_key = newest(fr, Role.FEED)
    rotation.change(fr, Change(rotate=(Role.ISSUE, Role.FEED)))
    for kid in (old, feed_key):
        rotation.change(fr, rotation.retire(fr, kid, at_once=True))
    assert used_for_all(world, Role.ISSUE) == newest(fr, Role.ISSUE)
    release(world, "A")
    world.sync(DE, FR)
    assert (arrived(world), peers.trusted_card(world[DE], FR)) == (["A"], fr.card)


def test_private_keys_are_deleted_when_nothing_is_signed_with_them_any_more(world: World) -> None:
    fr = world[FR]
    first = {(key.role, key.kid) for key in fr.card.keys}
    rotation.prepare(fr, Change(rotate=(Role.FEED,)))  # waits for its signatures
    unused = set(fr.keys.stored()) - first
    rotation.change(fr, Change(rotate=EVERY))
    assert rotation.prune(fr) == ()
    later(world, days=15)  # the old ones have ended, but DE knows no others
    gone = set(rotation.prune(fr))
    assert {role for role, _ in gone} == {Role.TLS}
    release(world, "A")
    world.sync(DE, FR)
    assert arrived(world) == ["A"]
    assert gone | set(rotation.prune(fr)) == first
    assert set(rotation.prune(fr, unused=True)) == unused
    assert {kid for _, kid in fr.keys.stored()} == {newest(fr, role) for role in Role}
    release(world, "B")
    world.sync_all()
    assert arrived(world) == ["A", "B"]


def test_a_key_file_that_is_missing_does_not_stop_a_node_that_has_another_valid_one(world: World) -> None:
    fr = world[FR]
    rotation.change(fr, Change(rotate=(Role.FEED,)))
    world.sync(DE, FR)
    fr.keys.remove(Role.FEED, newest(fr, Role.FEED))
    release(world, "A")
    world.sync(DE, FR)
    assert arrived(world) == ["A"]
    fr.keys.remove(Role.FEED, signs(world)[0])
    with pytest.raises(UsageError, match="missing"):
        world.sync(DE, FR)


def test_the_list_of_keys_says_which_are_used_and_which_wait(three: World) -> None:
    fr = three[FR]

    def feed_states() -> list[tuple[str, tuple[int, ...]]]:
        return [(s.state, s.versions) for s in rotation.key_states(fr) if s.key.role is Role.FEED]

    assert feed_states() == [("current", (1,))]
    rotation.change(fr, Change(rotate=(Role.FEED,)))
    assert feed_states() == [("next", (2,)), ("current", (1, 2))]
    three.sync(DE, FR)
    assert feed_states() == [("current", (2,)), ("current", (1, 2))]
    three.sync(IN, FR)
    assert feed_states() == [("current", (2,)), ("old", (1, 2))]
    later(three, days=15)
    assert feed_states() == [("current", (2,)), ("ended", (1, 2))]
    rotation.change(fr, Change(rotate=(Role.TLS,)))
    assert feed_states() == [("current", (2, 3))]


def test_endings_are_told_thirty_days_ahead_but_not_of_keys_that_have_a_successor(world: World) -> None:
    fr, end = world[FR], world[FR].card.keys[0].valid_until
    assert rotation.endings(fr) == []
    world.clock.now = end - timedelta(days=29)
    subjects = [subject for subject, _ in rotation.endings(fr)]
    of_peer = [f"{role} key of {DE}" for role in Role]
    assert sorted(subjects) == sorted([*(f"own {role} key" for role in Role), *of_peer])
    rotation.change(fr, Change(rotate=EVERY))
    assert sorted(subject for subject, _ in rotation.endings(fr)) == sorted(of_peer)


def test_doctor_finds_key_files_that_no_card_names(world: World) -> None:
    fr = world[FR]
    rotation.prepare(fr, Change(rotate=(Role.FEED,)))
    findings = [finding for finding in checkup.examine(fr.home) if finding.check == "key files"]
    assert [(finding.verdict, "1 " in finding.found) for finding in findings] == [(Verdict.WARN, True)]
    rotation.prune(fr, unused=True)
    assert [f.verdict for f in checkup.examine(fr.home) if f.check == "key files"] == [Verdict.OK]
    assert main.own_card(fr.engine, main.read_settings(fr.home)).card == fr.card
