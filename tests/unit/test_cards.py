"""Cards that travel through feeds: what is taken and what is not, who gets which, and what revoked keys still say."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from federation import agreement as terms
from federation import entries, jws, keyring
from federation.entries import AgreementOffer, Delivery, NewCard
from federation.errors import AwaitsSecondError, NotFoundError, UnreachableError
from federation.feed import PageBytes
from federation.keyring import Card
from federation.model import Country, NodeId, Role
from node import acts, main
from node.desk.inbox import Disposition
from node.exchange import sync
from node.home import prepared
from node.home.context import Node
from node.home.keys import Signer
from node.peering import agreements, cards, feeds, peers, rotation
from node.peering.rotation import Change
from node.records import approvals
from node.records.alarms import Alarm
from node.sharing import releases
from node.store.database import read
from node.store.tables import alarms, audit, in_entries, in_feeds
from tests.chains import Chain, join, last_entry, make_chain, pass_on, send
from tests.nodes import (
    AGREEMENT,
    DE,
    FR,
    IN,
    DirectLink,
    LyingLink,
    World,
    agree,
    append_by_hand,
    arrived,
    document,
    import_document,
    issued,
    make_world,
    release,
    terms_for,
    terms_text,
)

EVERY = tuple(Role)


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


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    """FR exchanges with DE, DE with IN; FR and IN know each other's cards and no more."""
    made = make_chain(tmp_path)
    join(made, FR, DE, onward="peers")
    join(made, DE, IN)
    yield made
    made.close()


def card_of(node: Node, **changed: Any) -> bytes:
    """Another card of `node`, signed by its real roots."""
    card: Card = replace(node.card, **changed)
    return prepared.sign(card.payload(), node.keys.roots())


def bring(world: World, document: bytes, *, sender: NodeId = FR, to: NodeId = DE) -> tuple[str, str | None]:
    """`sender` puts a card into its feed to `to`; what became of it there."""
    append_by_hand(world[sender], to, NewCard(document))
    world.sync(to, sender)
    with read(world[to].engine) as tx:
        row = tx.execute(
            select(in_entries.c.outcome, in_entries.c.code)
            .join(in_feeds, in_feeds.c.id == in_entries.c.feed)
            .where(in_feeds.c.peer == sender)
            .order_by(in_entries.c.seq.desc())
        ).first()
    assert row is not None
    return row.outcome, row.code


def known(world: World, node: NodeId = FR, at: NodeId = DE) -> Card:
    return next(peer.card for peer in peers.all_peers(world[at]) if peer.card.node == node)


def card_alarms(world: World, at: NodeId = DE) -> list[str]:
    with read(world[at].engine) as tx:
        return list(tx.execute(select(alarms.c.subject).where(alarms.c.kind == Alarm.CARD)).scalars())


# What is taken


def test_a_newer_card_by_the_known_roots_is_taken_and_kept_for_proofs(world: World) -> None:
    newer = card_of(world[FR], version=2, endpoint="192.0.2.9:7001")
    assert bring(world, newer) == (Disposition.CONTROL, None)
    assert (known(world).version, known(world).endpoint) == (2, "192.0.2.9:7001")
    assert bring(world, newer) == (Disposition.CONTROL, None)
    assert card_alarms(world) == []


def test_an_older_card_changes_nothing(world: World) -> None:
    skipped = card_of(world[FR], version=2)
    peers.enrol(world[DE], card_of(world[FR], version=3))  # as a file, before the feed brings the one between
    for older in (world[FR].card_bytes, skipped):
        assert bring(world, older) == (Disposition.CONTROL, None)
        assert known(world).version == 3
    assert card_alarms(world) == []
    forged = prepared.sign(
        replace(world[FR].card, version=2, endpoint="192.0.2.66:1").payload(), world[FR].keys.roots()[:1]
    )
    assert bring(world, forged) == (Disposition.QUARANTINED, "BAD_SIGNATURE")
    assert card_alarms(world) == [FR]


@pytest.mark.invariant("I12")
def test_two_cards_of_one_version_are_a_contradiction_that_people_must_see(world: World) -> None:
    first = card_of(world[FR], version=2)
    assert bring(world, first) == (Disposition.CONTROL, None)
    kept = known(world)
    second = card_of(world[FR], version=2, endpoint="192.0.2.66:1")
    assert bring(world, second) == (Disposition.QUARANTINED, "BAD_CARD")
    assert (known(world), card_alarms(world)) == (kept, [FR])
    assert bring(world, card_of(world[FR], version=1, endpoint="192.0.2.66:1")) == (Disposition.QUARANTINED, "BAD_CARD")
    assert known(world) == kept


def test_the_same_card_with_fewer_signatures_is_the_same_card(world: World) -> None:
    newer = card_of(world[FR], version=2)
    assert bring(world, newer) == (Disposition.CONTROL, None)
    parsed = jws.parse(newer, max_bytes=1 << 16, typ=keyring.JWS_TYPE)
    fewer = jws.serialise(jws.SignedDocument(parsed.payload, parsed.signatures[:2]))
    assert fewer != newer
    assert bring(world, fewer) == (Disposition.CONTROL, None)
    assert card_alarms(world) == []


@pytest.mark.invariant("I12")
def test_a_card_by_other_roots_is_not_taken_whoever_brings_it(world: World, tmp_path: Path) -> None:
    main.init_home(
        tmp_path / "impostor", FR, Country("FR"), "127.0.0.1:1", "127.0.0.1:1", roots=3, threshold=2, packs=()
    )
    impostor = main.open_node(tmp_path / "impostor")
    before = known(world)
    assert bring(world, card_of(impostor, version=9)) == (Disposition.QUARANTINED, "BAD_SIGNATURE")
    fewer = keyring.RootSet(1, before.roots.keys)
    assert bring(world, card_of(world[FR], version=9, roots=fewer)) == (Disposition.CONTROL, None)  # by both thresholds
    one = prepared.sign(replace(world[FR].card, version=10, roots=fewer).payload(), world[FR].keys.roots()[:1])
    assert bring(world, one) == (Disposition.CONTROL, None)
    assert known(world).version == 10
    forged = prepared.sign(
        replace(world[FR].card, version=11, roots=before.roots).payload(), impostor.keys.roots(), hand_over=True
    )
    assert bring(world, forged) == (Disposition.QUARANTINED, "BAD_SIGNATURE")
    assert (known(world).version, card_alarms(world)) == (10, [FR])
    impostor.engine.dispose()


def test_a_node_that_speaks_no_version_of_ours_any_more_is_not_followed(world: World) -> None:
    assert bring(world, card_of(world[FR], version=2, protocols=(77,))) == (Disposition.QUARANTINED, "VERSION")
    assert (known(world).version, card_alarms(world)) == (1, [FR])


@pytest.mark.invariant("I12")
def test_another_jurisdiction_is_taken_only_from_a_file_that_people_looked_at(world: World) -> None:
    moved = card_of(world[FR], version=2, jurisdiction=Country("BE"))
    assert bring(world, moved) == (Disposition.QUARANTINED, "BAD_CARD")
    assert (known(world).jurisdiction, card_alarms(world)) == ("FR", [FR])
    peers.enrol(world[DE], moved)
    assert known(world).jurisdiction == "BE"


def test_a_certificate_in_whose_place_another_is_accepted_is_not_taken_from_a_feed_either(world: World) -> None:
    tls = next(key for key in world[DE].card.keys if key.role is Role.TLS)  # made for another node
    assert bring(world, card_of(world[FR], version=2, keys=(*world[FR].card.keys, tls))) == (
        Disposition.QUARANTINED,
        "MALFORMED",
    )
    assert known(world).version == 1


def test_a_card_that_drops_its_own_feed_key_in_the_very_feed_that_carries_it(world: World) -> None:
    fr = world[FR]
    (old,) = (key.kid for key in fr.card.keys if key.role is Role.FEED)
    rotation.change(fr, Change(rotate=(Role.FEED,)))
    release(world, "A")
    rotation.change(fr, rotation.retire(fr, old, at_once=True))
    release(world, "B")
    for _ in range(2):
        world.sync(DE, FR)
    assert arrived(world) == ["A", "B"]
    assert [key.kid for key in known(world).keys if key.role is Role.FEED] == [
        key.kid for key in fr.card.keys if key.role is Role.FEED
    ]


# Cards of others


@pytest.mark.invariant("I12")
def test_a_third_nodes_card_is_taken_by_its_own_roots_alone(three: World) -> None:
    forged = prepared.sign(replace(three[IN].card, version=2).payload(), three[FR].keys.roots(), hand_over=True)
    assert bring(three, forged)[0] == Disposition.QUARANTINED
    assert known(three, IN).version == 1
    assert bring(three, card_of(three[IN], version=2)) == (Disposition.CONTROL, None)
    assert known(three, IN).version == 2


def test_a_card_of_a_node_that_is_not_enrolled_says_nothing_to_us(world: World, tmp_path: Path) -> None:
    other = make_world(tmp_path / "other", IN)
    assert bring(world, card_of(other[IN], version=2)) == (Disposition.CONTROL, None)
    assert [peer.card.node for peer in peers.all_peers(world[DE])] == [FR]
    with read(world[DE].engine) as tx:
        assert tx.execute(select(audit.c.by, audit.c.subject).where(audit.c.act == "card.unknown")).all() == [(FR, IN)]
    assert card_alarms(world) == []
    other.close()


def test_the_card_of_a_distrusted_node_is_not_taken_from_others(three: World) -> None:
    peers.distrust(three[DE], IN)
    assert bring(three, card_of(three[IN], version=2)) == (Disposition.QUARANTINED, "BAD_CARD")
    assert known(three, IN).version == 1


def test_our_own_card_comes_back_and_a_forged_one_is_noticed(world: World) -> None:
    assert bring(world, world[DE].card_bytes) == (Disposition.CONTROL, None)
    assert card_alarms(world) == []
    assert bring(world, card_of(world[DE], version=2)) == (Disposition.QUARANTINED, "BAD_CARD")
    assert (world[DE].card.version, card_alarms(world)) == (1, [FR])


def test_a_relay_passes_on_the_newer_cards_of_origins_and_of_recipients(chain: Chain) -> None:
    item = send(chain, handling={"tlp": "GREEN", "onward": "peers"})
    for _ in range(2):  # nobody to pass it on to yet
        rotation.change(chain[FR], Change(rotate=(Role.ISSUE,)))
        chain.sync_all()
    assert known(chain, FR, IN).version == 1
    assert pass_on(chain, item).seq is not None
    chain.sync(IN, DE)
    assert known(chain, FR, IN).version == 3  # it came before the advisory
    rotation.change(chain[FR], Change(rotate=(Role.ISSUE,)))
    chain.sync_all(2)
    assert known(chain, FR, IN).version == 4
    rotation.change(chain[IN], Change(rotate=(Role.ISSUE,)))
    chain.sync_all(2)
    assert known(chain, IN, FR).version == 2


def test_what_an_origin_signed_with_a_new_key_is_verified_beyond_the_relay(chain: Chain) -> None:
    rotation.change(chain[FR], Change(rotate=EVERY))
    chain.sync_all(2)
    item = send(chain, handling={"tlp": "GREEN", "onward": "peers"})
    pass_on(chain, item)
    chain.sync(IN, DE)
    assert last_entry(chain)[:2] == (Disposition.ADMITTED, None)


def test_a_card_that_came_as_a_file_goes_on_as_well(chain: Chain) -> None:
    pass_on(chain, send(chain, handling={"tlp": "GREEN", "onward": "peers"}))
    peers.enrol(chain[DE], card_of(chain[FR], version=2))
    chain.sync(IN, DE)
    assert known(chain, FR, IN).version == 1
    for _ in range(2):
        cards.catch_up(chain[DE])
    chain.sync(IN, DE)
    assert known(chain, FR, IN).version == 2


# Who gets our own


def card_entries(world: World, to: NodeId) -> int:
    with read(world[FR].engine) as tx:
        feed = feeds.out_feed(tx, to)
        items = feeds.items_after(tx, feed.id, 0, 500)
    return sum(isinstance(entries.read(i).body, NewCard) for i in items if isinstance(i, bytes))


def approve(node: Node, number: int) -> None:
    """What a second person does."""
    approvals.settle(replace(node, actor="bob"), number, acts.registry(), approve=True)
    node.own.reload()


def test_who_is_enrolled_with_an_older_file_is_brought_the_current_card(world: World, tmp_path: Path) -> None:
    fr, old_file = world[FR], world[FR].card_bytes
    rotation.change(fr, Change(rotate=EVERY))
    other = make_world(tmp_path / "other", IN)
    india = replace(other[IN], clock=world.clock)
    peers.enrol(india, old_file)
    peers.enrol(fr, india.card_bytes)
    world.nodes[IN] = india
    for _ in range(2):
        cards.catch_up(fr)
    assert card_entries(world, IN) == 1
    world.sync(IN, FR)
    assert known(world, FR, IN) == fr.card


def test_who_is_trusted_again_is_brought_what_it_missed(three: World) -> None:
    fr = three[FR]
    peers.distrust(fr, DE)
    rotation.change(fr, Change(rotate=(Role.FEED,)))
    assert (card_entries(three, DE), card_entries(three, IN)) == (0, 1)
    cards.catch_up(fr)
    assert card_entries(three, DE) == 0
    with pytest.raises(AwaitsSecondError) as asked:
        peers.trust_again(fr, DE, "looked at")
    approve(fr, asked.value.number)
    cards.catch_up(fr)
    three.sync(DE, FR)
    assert known(three, FR, DE) == fr.card


def test_who_missed_a_change_of_root_keys_is_brought_that_card_too_and_none_that_it_can_do_without(
    three: World,
) -> None:
    fr = three[FR]
    peers.distrust(fr, DE)
    rotation.change(fr, Change(rotate=(Role.FEED,)))
    with pytest.raises(AwaitsSecondError) as asked:
        rotation.change_roots(fr, 2, 1, "yearly")
    approve(fr, asked.value.number)
    for _ in range(2):
        rotation.change(fr, Change(rotate=(Role.FEED,)))
    with pytest.raises(AwaitsSecondError) as asked:
        peers.trust_again(fr, DE, "looked at")
    approve(fr, asked.value.number)
    cards.catch_up(fr)
    assert card_entries(three, DE) == 2
    three.sync(DE, FR)
    assert known(three, FR, DE) == fr.card


# Keys that a newer card dropped


def stolen_key(node: Node) -> Signer:
    return node.keys.signer(Role.ISSUE, node.card, node.clock())


@pytest.mark.invariant("I5")
def test_what_stood_in_a_head_before_its_key_was_revoked_is_admitted_and_what_came_later_is_not(world: World) -> None:
    fr = world[FR]
    old = stolen_key(fr)
    for name in ("A", "B"):
        release(world, name)
    take_one(world)
    assert arrived(world) == ["A"]
    late = Delivery(issued(fr, import_document(fr, document("FORGED"))), terms_for(fr, DE, "FORGED", held(fr)))
    rotation.change(fr, Change(rotate=(Role.ISSUE,)))
    rotation.change(fr, rotation.retire(fr, old.kid, at_once=True))
    peers.enrol(world[DE], fr.card_bytes)  # the news is faster than the feed
    append_by_hand(fr, DE, late)
    release(world, "C")
    world.sync(DE, FR)
    assert arrived(world) == ["A", "B", "C"]
    with read(world[DE].engine) as tx:
        codes = tx.execute(select(in_entries.c.code).where(in_entries.c.code.is_not(None))).scalars().all()
    assert codes == ["UNKNOWN_KEY"]


def held(fr: Node) -> agreements.Held:
    return agreements.find(fr, AGREEMENT)


def take_one(world: World) -> None:
    """One page of one entry is taken in, under the head over all; then the line is cut."""
    cut = LyingLink(DirectLink(world[FR], world[DE], page=1))

    def after_one(page: PageBytes) -> PageBytes:
        if cut.pulls > 1:
            raise UnreachableError("cut")
        return page

    cut.rewrite = after_one
    with pytest.raises(UnreachableError):
        sync.sync(world[DE], FR, cut)


def test_a_planned_rotation_takes_nothing_back(world: World) -> None:
    for name in ("A", "B"):
        release(world, name)
    rotation.change(world[FR], Change(rotate=EVERY))
    peers.enrol(world[DE], world[FR].card_bytes)
    world.clock.move(days=20)
    world.sync(DE, FR)
    assert arrived(world) == ["A", "B"]


def test_a_key_that_is_shortened_speaks_for_what_stood_in_a_head_once_it_has_ended(world: World) -> None:
    fr = world[FR]
    for name in ("A", "B"):
        release(world, name)
    take_one(world)
    rotation.change(fr, Change(rotate=(Role.ISSUE,), overlap=timedelta(days=1)))
    peers.enrol(world[DE], fr.card_bytes)
    world.clock.move(days=2)
    world.sync(DE, FR)
    assert arrived(world) == ["A", "B"]


def test_a_revoked_key_counts_through_a_relay_as_little_as_from_its_origin(chain: Chain) -> None:
    onward = {"tlp": "GREEN", "onward": "peers"}
    first, late = (send(chain, name, handling=onward) for name in ("EARLY", "LATE"))
    pass_on(chain, first)
    chain.sync(IN, DE)
    assert last_entry(chain)[:2] == (Disposition.ADMITTED, None)
    old = stolen_key(chain[FR]).kid
    rotation.change(chain[FR], Change(rotate=(Role.ISSUE,)))
    rotation.change(chain[FR], rotation.retire(chain[FR], old, at_once=True))
    peers.enrol(chain[IN], chain[FR].card_bytes, direct=False)
    pass_on(chain, late)
    chain.sync(IN, DE)
    assert last_entry(chain)[:2] == (Disposition.QUARANTINED, "UNKNOWN_KEY")


def test_signatures_under_agreements_stay_valid_when_their_keys_are_revoked(three: World) -> None:
    fr = three[FR]
    held_ = agreements.propose(fr, terms_text(three), "agreement.yaml")
    three.sync_all()
    old = stolen_key(fr).kid
    rotation.change(fr, Change(rotate=(Role.ISSUE,)))
    rotation.change(fr, rotation.retire(fr, old, at_once=True))
    three.sync_all()
    for node in (three[DE], three[IN]):
        agreements.countersign(node, held_.agreement.digest.hex())
    three.sync_all(3)
    for node in three.nodes.values():
        with read(node.engine) as tx:
            assert held_.agreement.digest in agreements.in_force(tx, three.clock())


@pytest.mark.invariant("I12")
def test_a_revoked_key_signs_no_new_agreement(three: World) -> None:
    fr = three[FR]
    old = stolen_key(fr)
    rotation.change(fr, Change(rotate=(Role.ISSUE,)))
    rotation.change(fr, rotation.retire(fr, old.kid, at_once=True))
    three.sync_all()
    text = terms_text(three, agreement="forged-2026")
    forged_ = terms.from_yaml(text, "forged.yaml")
    signature = jws.sign(forged_.canonical, terms.JWS_TYPE, f"{FR}/{old.kid}", old.sign)
    append_by_hand(fr, DE, AgreementOffer(jws.serialise(jws.SignedDocument(forged_.canonical, (signature,)))))
    three.sync(DE, FR)
    with pytest.raises(NotFoundError):
        agreements.find(three[DE], "forged-2026")


def test_what_a_key_that_is_over_has_signed_is_not_released_but_revised(three: World) -> None:
    agree(three)
    fr = three[FR]
    import_document(fr, document("A"))
    releases.release(fr, "A", (DE,))
    old = stolen_key(fr).kid
    rotation.change(fr, Change(rotate=(Role.ISSUE,)))
    assert releases.preview(fr, "A", (IN,))[1][0].held is None
    rotation.change(fr, rotation.retire(fr, old, at_once=True))
    _, (outcome,) = releases.release(fr, "A", (IN,))
    assert (outcome.seq, outcome.presented) == (None, None)
    assert "revise" in str(outcome.held)
    import_document(fr, document("B"))
    assert releases.release(fr, "B", (IN,))[1][0].held is None
