"""Releasing and serving: nothing without an agreement, all of it in the ledger, policy asked again at delivery."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from federation import agreement as terms
from federation import entries, jws
from federation.checkpoint import cosign
from federation.entries import AgreementOffer, Delivery, ErasedItem, Withdrawal
from federation.errors import (
    ConflictError,
    MalformedError,
    NotFoundError,
    SignatureError,
    UnconfirmedError,
    UnknownOriginError,
    UsageError,
    WrongFeedError,
)
from federation.feed import Ask
from federation.model import Category, Form, Role
from node.desk import inbox
from node.desk.inbox import Disposition
from node.exchange import serving, sync
from node.peering import agreements, feeds, peers
from node.records import ledger
from node.sharing import advisories, releases
from node.sharing.advisories import State
from node.store import tables
from node.store.database import read, write
from node.store.tables import out_entries
from tests.nodes import (
    AGREEMENT,
    DE,
    FR,
    IN,
    ForgedFeed,
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
    terms_text,
)

ORIGIN = f"{FR}/feeds/{DE}/1"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path)
    yield made
    made.close()


def released(world: World, name: str = "X", **more: Any) -> releases.Outcome:
    _, (outcome,) = releases.release(world[FR], import_document(world[FR], document(name), **more), (DE,))
    return outcome


def count(world: World, table: Any = out_entries) -> int:
    with read(world[FR].engine) as tx:
        found: int = tx.execute(select(func.count()).select_from(table)).scalar_one()
    return found


@pytest.mark.invariant("I2")
def test_without_an_agreement_nothing_leaves(world: World) -> None:
    outcome = released(world)
    assert (outcome.presented, outcome.seq) == (None, None)
    assert {e.form for e in outcome.decision.elements} == {Form.WITHHELD}
    assert (count(world), count(world, tables.ledger)) == (0, 0)
    assert world.sync(DE, FR).counts == {}


@pytest.mark.invariant("I2")
@pytest.mark.parametrize("stage", ["proposed", "pending", "expired", "one way"])
def test_an_agreement_counts_only_with_every_signature_and_inside_its_dates(world: World, stage: str) -> None:
    fr, de = world[FR], world[DE]
    text = terms_text(world)
    if stage == "pending":
        text = terms_text(
            world,
            valid_from="2098-01-01T00:00:00Z",
            sunset_review="2098-06-01T00:00:00Z",
            valid_until="2099-01-01T00:00:00Z",
        )
    if stage == "one way":
        text = terms_text(world, grants=f"[{{id: b, from: [{DE}], tlp: [GREEN], share: {{identification: full}}}}]")
    held = agreements.propose(fr, text, "a.yaml")
    if stage != "proposed":
        world.sync(DE, FR)
        agreements.countersign(de, held.agreement.digest.hex())
        world.sync(FR, DE)
    if stage == "expired":
        world.clock.now = held.agreement.valid_until
    state = agreements.find(fr, AGREEMENT).state(world.clock())
    assert state == {"one way": "in force"}.get(stage, stage)
    assert released(world).presented is None
    assert ledger.rows(world[FR]) == ()


def test_a_preview_changes_nothing(world: World) -> None:
    agree(world)
    name = import_document(world[FR], document("X"))
    before = count(world)
    summary, (outcome,) = releases.preview(world[FR], name)
    assert (summary.state, outcome.seq) == (State.DRAFT, None)
    assert outcome.presented is not None
    assert (count(world), ledger.rows(world[FR])) == (before, ())


@pytest.mark.invariant("I14")
def test_every_disclosure_has_its_row_and_the_receipt_comes_from_the_peer(world: World) -> None:
    held = agree(world)
    outcome = released(world)
    (row,) = ledger.rows(world[FR])
    assert (row.peer, row.seq, row.name, row.by, row.at) == (DE, outcome.seq, "X", "alice", world.clock())
    assert row.facts["agreement"] == held.agreement.digest.hex()
    assert {path for path, _, _ in row.elements} == {e.element.path for e in outcome.decision.elements}
    assert all(rules for _, _, rules in row.elements)
    assert (row.receipt, row.taken_back) == (False, None)
    link = world.link(DE, FR)
    page = link.pull(Ask(ORIGIN, outcome.seq or 0, b"", sync.load_state(world[DE], FR).state.newest))
    assert page.items
    assert not ledger.rows(world[FR])[0].receipt  # sent is not acknowledged
    world.sync(DE, FR)
    assert ledger.rows(world[FR])[0].receipt
    assert ledger.rows(world[FR], IN) == ()
    assert len(ledger.rows(world[FR], DE, "X")) == 1


@pytest.mark.invariant("I14")
def test_no_entry_without_its_row_and_no_row_without_its_entry(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    agree(world)
    name = import_document(world[FR], document("X"))
    before = count(world)

    def fails(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(releases, "record", fails)  # after the entry, after the row
        with pytest.raises(KeyboardInterrupt):
            releases.release(world[FR], name)
    assert (count(world), ledger.rows(world[FR])) == (before, ())
    assert advisories.all_advisories(world[FR])[0].state is State.DRAFT
    assert releases.release(world[FR], name)[1][0].seq == before


@pytest.mark.invariant("I5")
def test_releasing_again_signs_and_sends_nothing_new(world: World) -> None:
    agree(world)
    first = released(world)
    core = issued(world[FR], "X").core
    _, (second,) = releases.release(world[FR], "X")
    assert second.already
    assert (second.seq, issued(world[FR], "X").core) == (first.seq, core)
    assert len(ledger.rows(world[FR])) == 1


def test_an_issued_advisory_is_not_changed_any_more(world: World) -> None:
    agree(world)
    released(world)
    with pytest.raises(UsageError, match="signed already"):
        advisories.label(world[FR], "X", "/csaf/document/notes/0", Category.VICTIM)
    with pytest.raises(UsageError, match="other content"):
        import_document(world[FR], document("X", title="Another title"))


def test_nobody_to_release_to_is_a_mistake(world: World) -> None:
    name = import_document(world[FR], document("X"))
    with pytest.raises(NotFoundError):
        releases.release(world[FR], name, (IN,))
    peers.distrust(world[FR], DE)
    with pytest.raises(NotFoundError, match="distrusted"):
        releases.release(world[FR], name, (DE,))
    with pytest.raises(UsageError, match="no peer"):
        releases.release(world[FR], name)


def test_the_law_takes_a_name_out_for_one_peer_and_not_for_the_other(tmp_path: Path) -> None:
    world = make_world(tmp_path, FR, DE, IN, packs=("eu-gdpr",))
    agree(world)
    content = document("X", notes=("Nothing.", "Thanks to Hedwig Sommerfeld."))
    content["document"]["acknowledgments"] = [{"names": ["Hedwig Sommerfeld"]}]
    _, outcomes = releases.release(world[FR], import_document(world[FR], content))
    by_peer = {outcome.peer: outcome.presented for outcome in outcomes}
    to_de, to_india = by_peer[DE], by_peer[IN]
    assert to_de is not None
    assert to_india is not None
    assert to_de.narrowed == ()
    assert to_india.narrowed == ("/csaf/document/notes/1",)  # the guard (I4)
    world.sync_all()
    assert files_hold(world[DE], b"Sommerfeld")
    assert not files_hold(world[IN], b"Sommerfeld")
    assert to_de.presentation.core == to_india.presentation.core  # I5
    world.close()


# Serving asks again (I11)


@pytest.mark.invariant("I11")
@pytest.mark.parametrize("end", ["agreement", "handling", "new version"])
def test_what_may_no_longer_go_is_taken_back_in_place_of_being_sent(world: World, end: str) -> None:
    held = agree(world)
    handling = {"tlp": "GREEN"}
    if end == "handling":
        handling["retain_until"] = terms_text(world).splitlines()[5].partition(": ")[2]
    outcome = released(world, handling=handling)
    assert outcome.seq is not None
    if end == "new version":
        less = "\n  - {id: all, tlp: [AMBER], share: {identification: full}}"
        fr = world[FR]
        text = terms_text(world, version=2, previous=f'"{held.agreement.digest.hex()}"', grants=less)
        later = agreements.propose(fr, text, "v2.yaml")
        signature = agreements._sign(world[DE], later.agreement)
        document_ = jws.with_signature(jws.parse(later.document, typ=terms.JWS_TYPE, max_bytes=1 << 20), signature)
        agreements.receive_file(fr, jws.serialise(document_))
    else:
        world.clock.move(days=199 if end == "handling" else 201)
    counts = world.sync(DE, FR).counts
    assert Disposition.ADMITTED not in counts
    assert counts[Disposition.ERASED] == 1
    assert inbox.items(world[DE], every_state=True) == ()
    (row,) = ledger.rows(world[FR])
    assert row.taken_back == (ledger.Act.WITHDRAWAL, world.clock())
    items = history(world[FR], DE)
    erased = items[outcome.seq]
    assert isinstance(erased, ErasedItem)
    eraser = items[erased.erased_by]
    assert isinstance(eraser, bytes)
    assert entries.read(eraser).body == Withdrawal((outcome.seq,), "no-longer-permitted")
    assert world.sync(DE, FR).counts == {}  # once


@pytest.mark.invariant("I11")
def test_what_is_still_permitted_is_not_taken_back(world: World) -> None:
    agree(world)
    outcome = released(world)
    world.clock.move(days=198)
    assert world.sync(DE, FR).counts == {Disposition.ADMITTED: 1}
    assert outcome.seq == len(history(world[FR], DE)) - 1


# Pages, heads, receipts, proofs


def test_a_feed_is_shown_to_its_receiver_only(tmp_path: Path) -> None:
    world = make_world(tmp_path, FR, DE, IN)
    agree(world)
    released(world)
    with pytest.raises(NotFoundError):
        serving.pull(world[FR], world[IN].card, Ask(ORIGIN, 0, b""), 0)
    with pytest.raises(NotFoundError):
        serving.checkpoint_at(world[FR], world[IN].card, ORIGIN, 0)
    with pytest.raises(NotFoundError):
        serving.prove(world[FR], world[IN].card, ORIGIN, leaf=0, from_size=None, size=1)
    with pytest.raises(UnconfirmedError):
        serving.pull(world[FR], world[DE].card, Ask(f"{FR}/feeds/{DE}/2", 0, b""), 0)
    with pytest.raises(NotFoundError):
        serving.checkpoint_at(world[FR], world[DE].card, ORIGIN, 99)
    with pytest.raises(MalformedError):
        serving.pull(world[FR], world[DE].card, Ask(ORIGIN, 99), 0)
    world.close()


@pytest.mark.parametrize("asked", [1, 2, 600])
def test_a_page_has_as_many_items_as_asked_and_at_least_one(world: World, asked: int) -> None:
    for number in range(3):
        append_by_hand(world[FR], DE, AgreementOffer(b"%d" % number * (200 << 10)))
    page = serving.pull(world[FR], world[DE].card, Ask(ORIGIN, 0, b""), asked)
    assert len(page.items) == min(asked, 3)


def test_a_page_closes_at_its_size_but_carries_the_largest_entry(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        append_by_hand(world[FR], DE, AgreementOffer(b"%d" % number * 1000))
    monkeypatch.setattr(feeds, "MAX_PAGE_BYTES", 2200)
    assert len(serving.pull(world[FR], world[DE].card, Ask(ORIGIN, 0, b""), 0).items) == 2
    monkeypatch.setattr(feeds, "MAX_PAGE_BYTES", 10)
    assert len(serving.pull(world[FR], world[DE].card, Ask(ORIGIN, 0, b""), 0).items) == 1


def _receipt(world: World, note: bytes) -> bytes:
    signer = world[DE].keys.signer(Role.RECEIPT, world[DE].card, world.clock())
    return cosign(note, DE, int(world.clock().timestamp()), signer.sign, signer.public)


@pytest.mark.invariant("I14")
def test_only_a_receipt_for_our_own_history_counts(world: World) -> None:
    agree(world)
    released(world)
    world.sync(DE, FR)
    with read(world[FR].engine) as tx:
        feed = feeds.out_feed(tx, DE)
    assert feed.receipt_size == feed.size
    older = _receipt(world, serving.checkpoint_at(world[FR], world[DE].card, ORIGIN, 1))
    feeds.accept_receipt(world[FR], world[DE].card, older)  # ignored: it says less
    with read(world[FR].engine) as tx:
        assert feeds.out_feed(tx, DE) == feed
    theirs = _receipt(world, serving.checkpoint_at(world[DE], world[FR].card, f"{DE}/feeds/{FR}/1", 0))
    with pytest.raises(WrongFeedError):
        serving.pull(world[FR], world[DE].card, Ask(ORIGIN, 0, theirs), 0)
    with pytest.raises(SignatureError):
        feeds.accept_receipt(world[FR], world[DE].card, serving.checkpoint_at(world[FR], world[DE].card, ORIGIN, 1))
    with pytest.raises(MalformedError):
        serving.pull(world[FR], world[DE].card, Ask(ORIGIN, 0, b"x" * 20_000), 0)


@pytest.mark.invariant("I14")
def test_a_receipt_for_another_root_of_ours_is_refused(world: World) -> None:
    agree(world)
    fr = world[FR]
    other = ForgedFeed(fr, DE, [entry(ORIGIN, 0, AgreementOffer(b"x")), *history(fr, DE)[1:]])
    for size in (len(other.items), len(other.items) + 1):
        with pytest.raises(SignatureError, match="root"):
            feeds.accept_receipt(fr, world[DE].card, _receipt(world, other.head(size)))


@pytest.mark.invariant("I9")
def test_appends_serialise_on_the_feed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fr = world[FR]
    real = feeds.out_feed
    with write(fr.engine) as tx:
        old = real(tx, DE)
    append_by_hand(fr, DE, AgreementOffer(b"first"))
    monkeypatch.setattr(feeds, "out_feed", lambda *_: old)  # read before another process appended
    with pytest.raises(ConflictError):
        append_by_hand(fr, DE, AgreementOffer(b"second"))
    monkeypatch.undo()
    assert len(history(fr, DE)) == 1


def test_unseen_names_who_has_not_acknowledged(world: World) -> None:
    agree(world)
    assert feeds.unseen(world[FR]) == ()
    released(world)
    assert feeds.unseen(world[FR]) == (DE,)
    world.sync(DE, FR)
    assert feeds.unseen(world[FR]) == ()


# Agreements at a node


def test_a_proposal_is_checked_before_it_is_signed(world: World) -> None:
    fr = world[FR]
    for text, rule in (
        (terms_text(world, parties=f"[{DE}, {IN}]"), "no party"),
        (terms_text(world, parties=f"[{FR}, {IN}]"), "enrol"),
        (terms_text(world, version=2, previous="ab" * 32), "must name version 1"),
        (
            terms_text(
                world,
                valid_from="2020-01-01T00:00:00Z",
                sunset_review="2020-02-01T00:00:00Z",
                valid_until="2020-03-01T00:00:00Z",
            ),
            "ended",
        ),
    ):
        with pytest.raises(UsageError, match=rule):
            agreements.propose(fr, text, "a.yaml")
    assert agreements.all_held(fr) == ()
    agreements.propose(fr, terms_text(world), "a.yaml")
    with pytest.raises(UsageError, match="other terms"):
        agreements.propose(fr, terms_text(world, purposes="[research]"), "a.yaml")


def test_nobody_countersigns_twice_or_what_is_not_there(world: World) -> None:
    held = agree(world)
    with pytest.raises(UsageError, match="signed by this node already"):
        agreements.countersign(world[DE], held.agreement.digest.hex())
    with pytest.raises(NotFoundError):
        agreements.find(world[DE], "no-such")


@pytest.mark.invariant("I2")
@pytest.mark.parametrize("forged", ["by the proposer", "by a stranger", "unknown key"])
def test_a_signature_that_does_not_hold_puts_nothing_in_force(world: World, forged: str) -> None:
    fr, de = world[FR], world[DE]
    agreement = terms.from_yaml(terms_text(world), "a.yaml")
    good = agreements._sign(fr, agreement)
    signer = fr.keys.signer(Role.ISSUE, fr.card, world.clock())
    kid = {
        "by the proposer": f"{DE}/{de.keys.signer(Role.ISSUE, de.card, world.clock()).kid}",
        "by a stranger": f"{IN}/{signer.kid}",
        "unknown key": f"{DE}/{signer.kid}",
    }[forged]
    bad = jws.sign(agreement.canonical, terms.JWS_TYPE, kid, signer.sign)
    append_by_hand(fr, DE, AgreementOffer(jws.serialise(jws.SignedDocument(agreement.canonical, (good, bad)))))
    assert world.sync(DE, FR).counts == {Disposition.QUARANTINED: 1}
    assert agreements.all_held(de) == ()
    with read(de.engine) as tx:
        assert agreements.in_force(tx, world.clock()) == {}


def test_signatures_are_only_ever_added(world: World) -> None:
    held = agree(world)
    fr = world[FR]
    only_mine = jws.serialise(jws.SignedDocument(held.agreement.canonical, (agreements._sign(fr, held.agreement),)))
    assert agreements.receive_file(fr, only_mine).signed_by == {FR, DE}
    with pytest.raises(UnknownOriginError):
        agreements.receive_file(fr, _signed_by_stranger(world))
    assert agreements.find(fr, AGREEMENT).missing == ()


def _signed_by_stranger(world: World) -> bytes:
    agreement = terms.from_yaml(terms_text(world, parties=f"[{FR}, {IN}]", version=1, agreement="other"), "a.yaml")
    signer = world[FR].keys.signer(Role.ISSUE, world[FR].card, world.clock())
    signature = jws.sign(agreement.canonical, terms.JWS_TYPE, f"{IN}/k", signer.sign)
    return jws.serialise(jws.SignedDocument(agreement.canonical, (signature,)))


def test_delivery_and_presentation_are_what_the_ledger_says(world: World) -> None:
    agree(world)
    outcome = released(world)
    assert outcome.seq is not None
    stored = history(world[FR], DE)[outcome.seq]
    assert isinstance(stored, bytes)
    body = entries.read(stored).body
    assert isinstance(body, Delivery)
    assert outcome.presented is not None
    assert body.presentation == outcome.presented.presentation
    assert body.terms.core_digest.hex() == ledger.rows(world[FR])[0].facts["core_digest"]


def test_a_draft_of_which_nothing_leaves_stays_a_draft(world: World) -> None:
    fr = world[FR]
    name = import_document(fr, document("RED"), handling={"tlp": "RED", "recipients": ["cert.ke.example"]})
    _, outcomes = releases.release(fr, name)
    assert all(outcome.presented is None for outcome in outcomes)
    (summary,) = (advisory for advisory in advisories.all_advisories(fr) if advisory.name == name)
    assert summary.state is advisories.State.DRAFT
