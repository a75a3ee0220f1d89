"""New keys and cards of a node: added beside the old ones, used with each peer as soon as it can verify them."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from federation import jws, keyring
from federation.checkpoint import Checkpoint, VerifierKey, open_checkpoint
from federation.errors import (
    AwaitsSecondError,
    ConflictError,
    HeldError,
    LockedError,
    NotAllowedError,
    NotFoundError,
    SignatureError,
    UnreachableError,
    UsageError,
)
from federation.feed import PageBytes
from federation.keyring import Card
from federation.model import NodeId, Role
from node import (
    acts,
    approvals,
    cards,
    checkup,
    feeds,
    inbox,
    keys,
    main,
    peers,
    prepared,
    releases,
    rotation,
    signing,
    sync,
)
from node.approvals import State
from node.checkup import Verdict
from node.context import Node
from node.people import Post
from node.rotation import Change
from node.store.database import read, write
from node.store.tables import approvals as approvals_table
from node.store.tables import audit, in_entries
from node.store.tables import peers as peers_table
from tests.nodes import (
    DE,
    FR,
    IN,
    PEOPLE,
    LyingLink,
    World,
    agree,
    arrived,
    document,
    import_document,
    make_node,
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
    later(world, days=15)
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
    later(world, days=10)
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


def test_doctor_finds_key_files_that_no_card_names(world: World) -> None:
    fr = world[FR]
    rotation.prepare(fr, Change(rotate=(Role.FEED,)))
    findings = [finding for finding in checkup.examine(fr.home) if finding.check == "key files"]
    assert [(finding.verdict, "1 " in finding.found) for finding in findings] == [(Verdict.WARN, True)]
    rotation.prune(fr, unused=True)
    assert [f.verdict for f in checkup.examine(fr.home) if f.check == "key files"] == [Verdict.OK]
    assert main.own_card(fr.engine, main.read_settings(fr.home)).card == fr.card
