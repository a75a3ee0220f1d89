"""A hostile peer with real keys: what it signs beyond its rights is set aside, and nothing else stops."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import select

from federation import agreement as terms
from federation import feed, jws, keyring, sdjwt
from federation.base64url import b64url
from federation.entries import AgreementOffer, Delivery, Withdrawal
from federation.errors import (
    FeedFrozenError,
    ForkError,
    LocalError,
    NotFoundError,
)
from federation.feed import Ask
from federation.keyring import OnlineKey, key_id
from federation.model import JsonObject, Presentation, Role
from federation.strictjson import decode, encode
from node import main
from node.desk import inbox
from node.desk.inbox import Disposition, InboxState
from node.exchange import sync
from node.home import keys as node_keys
from node.home import owncard
from node.home.context import Node
from node.peering import agreements, peers
from node.records import ledger
from node.sharing import releases
from node.store.database import read, write
from node.store.tables import in_entries, in_feeds
from tests.nodes import (
    AGREEMENT,
    DE,
    FR,
    IN,
    ForgedFeed,
    LyingLink,
    World,
    agree,
    append_by_hand,
    document,
    entry,
    files_hold,
    history,
    import_document,
    issued,
    make_world,
    payload_of,
    signed_core,
    terms_for,
    terms_text,
)

Change = Callable[[JsonObject], object]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path, FR, DE)
    yield made
    made.close()


@pytest.fixture
def three(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path, FR, DE, IN)
    yield made
    made.close()


def _digest(raw: bytes) -> str:
    return b64url(hashlib.sha256(b64url(raw).encode()).digest())


def _replaced(presentation: Presentation, path: str, value: object) -> tuple[JsonObject, tuple[bytes, ...]]:
    """Payload and disclosures with another value at `path`, as an origin could have signed them."""
    payload = payload_of(presentation.core)
    node = next(n for n in sdjwt.walk(payload, presentation.disclosures) if n.path == path)
    old = node.disclosure.raw
    content = decode(old, max_bytes=1 << 20, what="x")
    new = encode([*content[:-1], value])
    swapped = encode(payload).replace(_digest(old).encode(), _digest(new).encode())
    return decode(swapped, max_bytes=1 << 20, what="x"), tuple(
        new if raw == old else raw for raw in presentation.disclosures
    )


def _send(world: World, name: str, change: Change = lambda _: None, *, put: tuple[str, object] | None = None) -> None:
    """FR, who has its real keys, delivers to DE what its own software would never sign."""
    fr = world[FR]
    held = agreements.find(fr, AGREEMENT)
    presentation = issued(fr, import_document(fr, document(name)))
    made = terms_for(fr, DE, name, held)
    payload, disclosures = payload_of(presentation.core), presentation.disclosures
    if put is not None:
        payload, disclosures = _replaced(presentation, *put)
    change(payload)
    core = signed_core(fr, payload)
    made = replace(made, core_digest=hashlib.sha256(core).digest())
    append_by_hand(fr, DE, Delivery(Presentation(core, disclosures), made))


def _last(world: World) -> tuple[str, bytes | None, str]:
    """Disposition, stored bytes and detail of the last entry that DE holds from FR."""
    with read(world[DE].engine) as tx:
        row = tx.execute(
            select(in_entries)
            .join(in_feeds, in_feeds.c.id == in_entries.c.feed)
            .where(in_feeds.c.peer == FR)
            .order_by(in_entries.c.seq.desc())
        ).first()
    assert row is not None
    return row.outcome, row.data, row.detail or ""


# One bad entry stops the feed (I10)


@pytest.mark.invariant("I10")
@pytest.mark.parametrize("iat", [10**12, 1 << 39])
def test_an_instant_beyond_the_calendar_is_quarantined_and_the_feed_goes_on(world: World, iat: int) -> None:
    agree(world)
    _send(world, "BAD", lambda payload: payload.update(iat=iat))
    _send(world, "GOOD")
    assert world.sync(DE, FR).counts == {Disposition.QUARANTINED: 1, Disposition.ADMITTED: 1}


@pytest.mark.invariant("I10")
@pytest.mark.parametrize("title", [["x"], {"a": 1}, 10**40, None])
def test_a_title_that_is_no_text_does_not_stop_the_feed(world: World, title: object) -> None:
    agree(world)
    _send(world, "BAD", put=("/csaf/document/title", title))
    _send(world, "GOOD")
    counts = world.sync(DE, FR).counts
    assert sum(counts.values()) == 2
    assert all(isinstance(item.title, str) for item in inbox.items(world[DE]))


# What may not be stored is stored (I10)


@pytest.mark.invariant("I10")
def test_what_the_origin_forbids_to_store_here_never_reaches_disk(world: World) -> None:
    agree(world)
    fr = world[FR]
    held = agreements.find(fr, AGREEMENT)
    name = import_document(fr, document("X", title="CANARY-STORAGE"), handling={"tlp": "GREEN", "storage": ["FR"]})
    presentation, made = issued(fr, name), terms_for(fr, DE, name, held)
    append_by_hand(fr, DE, Delivery(presentation, made))  # our own sender would not: handling/storage forbids it
    world.sync(DE, FR)
    outcome, data, _ = _last(world)
    assert not files_hold(world[DE], b"CANARY-STORAGE")
    assert (outcome, data) == (Disposition.REFUSED, None)


@pytest.mark.invariant("I10")
def test_of_a_refused_entry_not_even_a_member_name_is_kept(world: World) -> None:
    agree(world)
    fr = world[FR]
    held = agreements.find(fr, AGREEMENT)
    presentation = issued(fr, import_document(fr, document("X")))
    payload = payload_of(presentation.core)
    raw = encode(["c2FsdHNhbHRzYWx0c2FsdA", "CANARY-NAME", "x"])
    payload["csaf"]["document"].setdefault("_sd", []).append(_digest(raw))
    core = signed_core(fr, payload)
    made = replace(terms_for(fr, DE, "X", held), core_digest=hashlib.sha256(core).digest())
    append_by_hand(fr, DE, Delivery(Presentation(core, (*presentation.disclosures, raw)), made))
    assert world.sync(DE, FR).counts == {Disposition.REFUSED: 1}
    assert "CANARY" not in _last(world)[2]  # I17: names of members are the sender's text
    assert not files_hold(world[DE], b"CANARY-NAME")


@pytest.mark.invariant("I17")
def test_error_texts_do_not_carry_what_a_peer_wrote(world: World) -> None:
    agree(world)
    _send(world, "X", lambda payload: payload.update(iss="CANARY iss \x1b[2J" + "x" * 10_000))
    world.sync(DE, FR)
    outcome, _, detail = _last(world)
    assert outcome == Disposition.QUARANTINED
    assert "CANARY" not in detail
    assert len(detail) < 500


# Expiry at each use (I11)


@pytest.mark.invariant("I11")
def test_an_entry_whose_retention_ended_before_delivery_is_withdrawn_in_place_of_sent(world: World) -> None:
    agree(world, retention_days=2)
    fr = world[FR]
    releases.release(fr, import_document(fr, document("X", title="CANARY-RETENTION")), (DE,))
    world.clock.move(days=3)
    world.sync(DE, FR)
    assert not files_hold(world[DE], b"CANARY-RETENTION")
    (row,) = ledger.rows(fr, DE)
    assert row.taken_back is not None


@pytest.mark.invariant("I11")
def test_what_a_sender_took_back_is_gone_from_the_receivers_files(world: World) -> None:
    agree(world)
    fr, de = world[FR], world[DE]
    releases.release(fr, import_document(fr, document("X", title="CANARY-TITLE", notes=("CANARY-NOTE",))), (DE,))
    world.sync(DE, FR)
    assert files_hold(de, b"CANARY-NOTE")
    assert files_hold(de, b"CANARY-TITLE")
    (item,) = inbox.items(de)
    append_by_hand(fr, DE, Withdrawal((item.seq,), "no-longer-permitted"))
    world.sync(DE, FR)
    assert not files_hold(de, b"CANARY-NOTE"), "in the write-ahead log"
    assert not files_hold(de, b"CANARY-TITLE"), "in the inbox row or the write-ahead log"


@pytest.mark.invariant("I11")
def test_what_a_sender_withdrew_before_delivery_is_gone_from_its_own_feed(world: World) -> None:
    agree(world)
    fr = world[FR]
    releases.release(fr, import_document(fr, document("X")), (DE,))
    (nonce,) = [body[body.index(b"\x1a\x10") + 2 :][:16] for body in history(fr, DE)[-1:] if isinstance(body, bytes)]
    world.clock.move(days=201)
    world.sync(DE, FR)
    assert not files_hold(fr, nonce), "with the nonce, the hash that stays tells something"


# Forks (I8)


@pytest.mark.invariant("I8")
def test_one_page_with_two_signed_roots_of_one_size_is_a_fork(world: World) -> None:
    agree(world)
    fr, de = world[FR], world[DE]
    cursor = sync.load_state(de, FR).state.cursor
    honest = ForgedFeed(fr, DE, history(fr, DE))
    page = replace(
        honest.pull(Ask(honest.origin, cursor)),
        latest=honest.latest(cursor, root=b"r" * 32),
    )
    state = sync.load_state(de, FR).state
    with pytest.raises(ForkError):
        feed.verify_page(state, page, fr.card.note_keys(Role.FEED, state.origin, fr.clock()))


@pytest.mark.invariant("I8")
def test_pages_that_lead_to_another_root_than_the_newest_head_once_shown_are_a_fork(world: World) -> None:
    agree(world)
    fr, de = world[FR], world[DE]
    for name in ("A", "B"):
        releases.release(fr, import_document(fr, document(name)), (DE,))
    shown = ForgedFeed(fr, DE, history(fr, DE), page=1)
    cut = LyingLink(shown)
    cut.rewrite = lambda page: page if cut.pulls == 1 else _unreachable()
    with pytest.raises(NotFoundError):
        sync.sync(de, FR, cut)  # one page of two, under a newest head that covers both
    other = [*history(fr, DE)[:-1], _entry_of(fr, len(history(fr, DE)) - 1)]
    with pytest.raises(FeedFrozenError):
        sync.sync(de, FR, ForgedFeed(fr, DE, other))


def _unreachable() -> feed.PageBytes:
    raise NotFoundError("the link broke")


def _entry_of(fr: Node, seq: int) -> bytes:
    return entry(f"{FR}/feeds/{DE}/1", seq, AgreementOffer(b"another history"))


@pytest.mark.invariant("I8")
def test_a_second_freeze_does_not_overwrite_the_first_ones_evidence(world: World) -> None:
    agree(world)
    fr, de = world[FR], world[DE]
    items = history(fr, DE)
    forged = ForgedFeed(fr, DE, [_entry_of(fr, 0), *items[1:]])
    rolled_back = ForgedFeed(fr, DE, items[:1])

    def meanwhile(page: feed.PageBytes) -> feed.PageBytes:
        with pytest.raises(ForkError):
            sync.sync(de, FR, forged)
        return page

    with pytest.raises(FeedFrozenError):
        sync.sync(de, FR, LyingLink(rolled_back, meanwhile))
    with read(de.engine) as tx:
        assert tx.execute(select(in_feeds.c.frozen).where(in_feeds.c.peer == FR)).scalar_one() == "FORK"


# Equivocation


@pytest.mark.invariant("I12")
def test_withdrawing_the_first_core_does_not_hide_an_equivocation(world: World) -> None:
    agree(world)
    de = world[DE]
    _send(world, "X")
    world.sync(DE, FR)
    (item,) = inbox.items(de)
    append_by_hand(world[FR], DE, Withdrawal((item.seq,), "no-longer-permitted"))
    held = agreements.find(world[FR], AGREEMENT)
    payload = payload_of(issued(world[FR], "X").core)
    payload["iat"] += 1
    core = signed_core(world[FR], payload)
    made = replace(terms_for(world[FR], DE, "X", held), core_digest=hashlib.sha256(core).digest())
    append_by_hand(world[FR], DE, Delivery(Presentation(core, issued(world[FR], "X").disclosures), made))
    world.sync(DE, FR)
    assert [i.state for i in inbox.items(de, every_state=True)] == [InboxState.EQUIVOCATION, InboxState.WITHDRAWN]
    assert inbox.items(de) == ()


@pytest.mark.invariant("I12")
def test_a_name_that_two_origins_use_is_not_taken_for_either(three: World) -> None:
    agree(three)
    for sender in (FR, IN):
        releases.release(three[sender], import_document(three[sender], document("SAME-NAME")), (DE,))
        three.sync(DE, sender)
    with pytest.raises(LocalError):
        inbox.content(three[DE], "SAME-NAME")


# Agreements


@pytest.mark.invariant("I12")
def test_two_peers_cannot_put_our_agreement_out_of_force_by_one_of_their_own(three: World) -> None:
    held = agree(three)
    fr, de, india = three[FR], three[DE], three[IN]
    text = terms_text(three, parties=f"[{DE}, {IN}]", version=2, previous="ab" * 32)
    other = terms.from_yaml(text, "other.yaml")
    signatures = tuple(agreements._sign(node, other) for node in (de, india))
    signed = jws.serialise(jws.SignedDocument(other.canonical, signatures))
    append_by_hand(de, FR, AgreementOffer(signed))
    three.sync(FR, DE)
    with read(fr.engine) as tx:
        assert held.agreement.digest in agreements.in_force(tx, three.clock())
    assert agreements.find(fr, AGREEMENT).agreement.digest == held.agreement.digest


@pytest.mark.invariant("I12")
def test_an_id_that_two_proposals_share_is_not_countersigned_by_guess(world: World) -> None:
    fr, de = world[FR], world[DE]
    agreements.propose(de, terms_text(world, parties=f"[{FR}, {DE}]"), "honest.yaml")
    world.sync(FR, DE)
    wider = terms_text(world, parties=f"[{FR}, {DE}]", purposes="[law_enforcement, research]")
    other = terms.from_yaml(wider, "wider.yaml")
    document_ = jws.serialise(jws.SignedDocument(other.canonical, (agreements._sign(de, other),)))
    append_by_hand(de, FR, AgreementOffer(document_))
    world.sync(FR, DE)
    with pytest.raises(LocalError):
        agreements.countersign(fr, AGREEMENT)


def test_agreements_can_be_listed_after_a_party_was_distrusted(three: World) -> None:
    agree(three)
    peers.distrust(three[FR], IN)
    assert [held.agreement.id for held in agreements.all_held(three[FR])] == [AGREEMENT]
    assert agreements.find(three[FR], AGREEMENT).agreement.parties == (DE, FR, IN)


def test_agreements_can_be_listed_after_the_keys_that_signed_them_have_expired(world: World) -> None:
    agree(world)
    world.clock.move(days=400)
    assert agreements.find(world[FR], AGREEMENT).state(world.clock()) == "expired"


# Peers and keys


def _card(world: World, *keys: OnlineKey, version: int = 2) -> bytes:
    fr = world[FR]
    card = replace(fr.card, version=version, keys=(*fr.card.keys, *keys))
    return main.sign_card(card, fr.keys)


def test_the_feed_goes_on_after_the_feed_key_was_replaced(world: World) -> None:
    agree(world)
    fr, de = world[FR], world[DE]
    now = world.clock().replace(microsecond=0)
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    key = OnlineKey(Role.FEED, key_id(Role.FEED, public), public, now, now.replace(year=now.year + 1))
    passphrase = (fr.home / "passphrase").read_bytes().strip()
    node_keys.write_private(
        fr.home / "keys" / f"feed-{key.kid}.pem", node_keys._pem(private, node_keys.stretch(fr.home, passphrase))
    )
    card = _card(world, key)
    peers.enrol(de, card)
    with write(fr.engine) as tx:
        owncard.store(tx, keyring.open_card(card), card, at=now, by="alice")
    fr.own.reload()
    releases.release(world[FR], import_document(world[FR], document("X")), (DE,))
    assert world.sync(DE, FR).counts == {Disposition.ADMITTED: 1}  # its receipt is for a head that the old key signed


def test_distrust_takes_effect_in_the_middle_of_a_sync(world: World) -> None:
    agree(world)
    fr, de = world[FR], world[DE]
    for name in ("A", "B"):
        releases.release(fr, import_document(fr, document(name)), (DE,))
    link = LyingLink(ForgedFeed(fr, DE, history(fr, DE), page=1))

    def meanwhile(page: feed.PageBytes) -> feed.PageBytes:
        if link.pulls == 1:
            peers.distrust(de, FR)
        return page

    link.rewrite = meanwhile
    with pytest.raises(NotFoundError):
        sync.sync(de, FR, link)
    with read(de.engine) as tx:
        assert tx.execute(select(in_entries.c.outcome).where(in_entries.c.outcome == "quarantined")).all() == []


@pytest.mark.invariant("I12")
def test_an_origin_does_not_choose_its_home(world: World) -> None:
    agree(world)
    _send(world, "X", lambda payload: payload["handling"].update(home="US"))
    assert world.sync(DE, FR).counts == {Disposition.QUARANTINED: 1}


@pytest.mark.parametrize("version", [True, 1.0])
def test_a_version_that_only_equals_one_is_refused(world: World, version: object) -> None:
    agree(world)
    _send(world, "X", lambda payload: payload.update(v=version))
    assert world.sync(DE, FR).counts == {Disposition.QUARANTINED: 1}


@pytest.mark.invariant("I12")
def test_an_agreement_between_others_is_not_taken_in(three: World) -> None:
    fr, de, india = three[FR], three[DE], three[IN]
    other = terms.from_yaml(terms_text(three, agreement="theirs", parties=f"[{DE}, {IN}]"), "theirs.yaml")
    signed = jws.SignedDocument(other.canonical, tuple(agreements._sign(node, other) for node in (de, india)))
    append_by_hand(de, FR, AgreementOffer(jws.serialise(signed)))
    assert three.sync(FR, DE).counts == {Disposition.REFUSED: 1}
    assert agreements.all_held(fr) == ()
