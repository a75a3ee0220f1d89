"""Recalls: an order of the origin bars and purges what it names wherever it lies, and nobody else gives one (I15)."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from federation import jws, recall
from federation.entries import Delivery, ErasedItem, RecallOrder
from federation.errors import HeldError, NotAllowedError, NotFoundError, UsageError
from federation.model import NodeId, Role
from federation.recall import Reason
from federation.statement import Outcome
from federation.strictjson import encode
from node.desk import inbox
from node.desk.inbox import Disposition, InboxState
from node.home.people import Post
from node.peering import agreements, peers, rotation
from node.peering.rotation import Change
from node.records import ledger
from node.records.ledger import Act
from node.sharing import advisories, answers, recalls, releases, revisions
from node.sharing.advisories import State
from node.sharing.answers import HolderState
from node.sharing.holders import recall_from_old_holders
from node.store import tables
from node.store.database import read
from tests.chains import Chain, give, join, make_chain, send
from tests.nodes import (
    AGREEMENT,
    DE,
    FR,
    IN,
    World,
    agree,
    append_by_hand,
    document,
    files_hold,
    history,
    import_document,
    issued,
    make_world,
    payload_of,
    rows,
    terms_for,
)
from tests.recalling import (
    BYTES,
    SECRET,
    again,
    count,
    document_of,
    holders,
    items,
    last,
    outcome_of_last,
    released,
    said,
    signed_recall,
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """FR, DE and IN, all in agreement."""
    made = make_world(tmp_path, FR, DE, IN)
    agree(made)
    yield made
    made.close()


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    """FR to DE to IN, where FR and IN exchange nothing."""
    made = make_chain(tmp_path)
    join(made, FR, DE)
    join(made, DE, IN)
    yield made
    made.close()


# What a recall does


@pytest.mark.invariant("I15")
def test_a_recall_purges_what_was_delivered_and_everybody_answers(world: World) -> None:
    released(world)
    released(world, "Y")
    world.sync_all()
    assert files_hold(world[DE], BYTES)  # positive control
    order = recalls.give(world[FR], "X", Reason.CONSENT)
    assert (order.revisions, order.by) == ((1,), "alice")
    assert holders(world) == {DE: (DE, HolderState.PENDING), IN: (IN, HolderState.PENDING)}
    world.sync(DE, FR)
    world.sync(IN, FR)
    assert items(world) == [("X", 1, InboxState.RECALLED), ("Y", 1, InboxState.CURRENT)]
    with pytest.raises(HeldError, match="recalled by its origin"):
        inbox.content(world[DE], "X")
    world.sync(FR, DE)
    world.sync(FR, IN)
    assert holders(world) == {DE: (DE, HolderState.PURGED), IN: (IN, HolderState.NEVER_HELD)}
    (answer,) = said(world, FR, DE)
    assert answer == {
        "recall": order.digest.hex(),
        "outcome": Outcome.PURGED,
        "passed_on": [],
        "unreachable": [],
    }
    recalls.give(world[FR], "Y", Reason.CONSENT)
    world.sync(DE, FR)
    assert not files_hold(world[DE], BYTES)
    assert files_hold(world[FR], BYTES)  # the origin's own record stays


@pytest.mark.invariant("I15")
def test_what_was_not_fetched_yet_never_arrives(world: World) -> None:
    released(world)
    recalls.give(world[FR], "X", Reason.MISDIRECTED)
    counts = world.sync(DE, FR).counts
    assert counts == {Disposition.ERASED: 1, Disposition.CONTROL: 1}
    assert not files_hold(world[DE], BYTES)
    assert inbox.items(world[DE], every_state=True) == ()
    world.sync(FR, DE)
    assert holders(world)[DE] == (DE, HolderState.NEVER_HELD)
    order = last(world, FR, DE)
    assert isinstance(order, RecallOrder)
    erased = history(world[FR], DE)[order.seqs[0]]
    assert isinstance(erased, ErasedItem)
    assert erased.erased_by == len(history(world[FR], DE)) - 1


@pytest.mark.invariant("I14")
@pytest.mark.invariant("I15")
def test_the_ledger_says_what_a_recall_erased(world: World) -> None:
    released(world)
    order = recalls.give(world[FR], "X", Reason.LEGAL)
    (row,) = ledger.rows(world[FR], DE, "X", (Act.RECALL,))
    seq = len(history(world[FR], DE)) - 1
    assert (row.seq, row.by, row.facts["recall"]) == (seq, "alice", order.digest.hex())
    assert (row.facts["revisions"], row.facts["entries"], row.facts["reason"]) == ([1], [seq - 1], "legal")
    (release,) = ledger.rows(world[FR], DE, "X")
    assert release.taken_back == (Act.RECALL, world.clock())


@pytest.mark.invariant("I15")
def test_the_origin_releases_a_recalled_revision_no_more(world: World) -> None:
    released(world)
    recalls.give(world[FR], "X", Reason.ERROR)
    for act in (releases.release, releases.preview):
        with pytest.raises(UsageError, match="is recalled and is released no more"):
            act(world[FR], "X", (IN,))
    (summary,) = advisories.all_advisories(world[FR])
    assert summary.state is State.RECALLED
    assert SECRET in str(advisories.content(world[FR], "X")[1])


def test_what_cannot_be_recalled_is_said_so(world: World) -> None:
    import_document(world[FR], document("draft"))
    released(world)
    before = count(world, FR, tables.out_entries)
    for name, numbers, text in (
        ("draft", (), "is a draft"),
        ("X", (2,), "no issued revision 2"),
        ("X", (1, 7), "no issued revision 7"),
    ):
        with pytest.raises(UsageError, match=text):
            recalls.give(world[FR], name, Reason.ERROR, numbers)
    with pytest.raises(NotFoundError, match="no advisory is called Z"):
        recalls.give(world[FR], "Z", Reason.ERROR)
    with pytest.raises(NotAllowedError):
        recalls.give(replace(world[FR], people={"alice": frozenset((Post.OPERATOR,))}), "X", Reason.ERROR)
    assert count(world, FR, tables.out_entries) == before
    recalls.give(world[FR], "X", Reason.ERROR)
    world.sync_all(2)
    with pytest.raises(UsageError, match="recalled already, and everybody has answered"):
        recalls.give(world[FR], "X", Reason.ERROR)


@pytest.mark.invariant("I15")
def test_a_recall_of_everything_reaches_what_a_recall_from_some_left_standing(world: World) -> None:
    fr = world[FR]
    released(world, "X", DE, IN)
    world.sync_all()
    content = document("X")
    content["document"]["tracking"]["version"] = "2"
    content["document"]["tracking"]["revision_history"].append(
        {"date": "2026-11-02T09:00:00Z", "number": "2", "summary": "Less"}
    )
    file = encode({"csaf": content, "handling": {"tlp": "GREEN"}, "labels": {}})
    revisions.revise(fr, "X", file, "file.json", tlp=None)
    releases.release(fr, "X", (DE,))
    world.sync_all()
    recall_from_old_holders(fr, "X")  # IN has the first one and no other
    world.sync_all(2)
    assert files_hold(world[DE], BYTES)
    order = recalls.give(fr, "X", Reason.LEGAL)
    assert order.revisions == (1, 2)
    world.sync_all(2)
    assert not any(files_hold(world[name], BYTES) for name in (DE, IN))
    assert {holder.state for given in answers.status(fr) for holder in given.holders} == {HolderState.PURGED}


@pytest.mark.invariant("I15")
def test_an_order_under_a_key_that_was_retired_meanwhile_is_given_again(world: World) -> None:
    fr, de = world[FR], world[DE]
    released(world)
    world.sync_all()
    first = recalls.give(fr, "X", Reason.LEGAL)
    stolen = fr.keys.signer(Role.ISSUE, fr.card, fr.clock()).kid
    rotation.change(fr, Change(rotate=(Role.ISSUE,)))
    rotation.change(fr, rotation.retire(fr, stolen, at_once=True))
    world.clock.move(minutes=3)
    peers.enrol(de, fr.card_bytes)  # by hand, before the feed brings the card
    world.sync_all(2)
    assert files_hold(de, BYTES)
    second = recalls.give(fr, "X", Reason.LEGAL)
    assert second.digest != first.digest
    world.sync_all(2)
    assert not files_hold(de, BYTES)
    answered = {(given.digest, h.node): h.state for given in answers.status(fr) for h in given.holders}
    assert answered[first.digest, DE] is answered[second.digest, DE] is HolderState.PURGED


@pytest.mark.invariant("I14")
def test_a_recall_that_fails_half_way_leaves_no_trace(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    released(world)
    before = (count(world, FR, tables.out_entries), count(world, FR, tables.ledger), files_hold(world[FR], BYTES))

    def fails(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(answers, "note", fails)  # after the order, the entry and its row
        with pytest.raises(KeyboardInterrupt):
            recalls.give(world[FR], "X", Reason.ERROR)
    assert answers.status(world[FR]) == ()
    assert (count(world, FR, tables.out_entries), count(world, FR, tables.ledger), True) == before
    recalls.give(world[FR], "X", Reason.ERROR)


def test_who_would_have_to_be_reached_is_seen_before(world: World) -> None:
    released(world, "X", DE, IN, onward="peers")
    world.sync(DE, FR)
    seen = recalls.preview(world[FR], "X")
    assert [(r.peer, r.revisions, r.acknowledged, r.not_fetched, r.taken_back) for r in seen] == [
        (DE, (1,), 1, 0, 0),
        (IN, (1,), 0, 1, 0),
    ]
    assert [(r.onward, r.granted) for r in seen] == [(False, ())] * 2  # the agreement lets nobody pass it on
    with pytest.raises(NotFoundError):
        recalls.preview(world[FR], "Z")
    assert answers.status(world[FR]) == ()


def test_a_grant_and_terms_that_let_it_go_on_are_seen_before(chain: Chain) -> None:
    send(chain, "X")
    give(chain, "X")
    (reach,) = recalls.preview(chain[FR], "X")
    assert (reach.peer, reach.onward, reach.granted) == (DE, False, (IN,))


# What arrives later, or elsewhere


@pytest.mark.invariant("I15")
def test_a_recall_that_comes_first_bars_the_advisory_whoever_delivers_it(world: World) -> None:
    held = agreements.find(world[FR], AGREEMENT)
    presentation = issued(world[FR], import_document(world[FR], document("X", notes=(SECRET,))))
    recalls.give(world[FR], "X", Reason.EMBARGO)
    append_by_hand(world[FR], DE, Delivery(presentation, terms_for(world[FR], DE, "X", held)))
    counts = world.sync(DE, FR).counts
    assert counts == {Disposition.CONTROL: 1, Disposition.REFUSED: 1}
    assert rows(world)[-1][1:] == (Disposition.REFUSED, "RECALLED")
    assert not files_hold(world[DE], BYTES)
    world.sync(FR, DE)
    assert holders(world)[DE] == (DE, HolderState.NEVER_HELD)


@pytest.mark.invariant("I15")
def test_only_the_named_revisions_are_barred(world: World) -> None:
    released(world)
    recalls.give(world[FR], "X", Reason.REPLACED, (1,))
    held = agreements.find(world[FR], AGREEMENT)
    for revision, outcome in ((1, Disposition.REFUSED), (2, Disposition.ADMITTED)):
        append_by_hand(world[FR], DE, again(world, held, jti=f"{FR}/X/{revision}"))
        world.sync(DE, FR)
        assert rows(world)[-1][1] == outcome


@pytest.mark.invariant("I15")
def test_a_copy_in_quarantine_goes_too(world: World) -> None:
    held = agreements.find(world[FR], AGREEMENT)
    presentation = issued(world[FR], import_document(world[FR], document("X", notes=(SECRET,))))
    bad = replace(terms_for(world[FR], DE, "X", held), recipient=IN)
    append_by_hand(world[FR], DE, Delivery(presentation, bad))
    world.sync(DE, FR)
    assert rows(world)[-1][1:] == (Disposition.QUARANTINED, "BAD_TERMS")
    assert files_hold(world[DE], BYTES)
    recalls.give(world[FR], "X", Reason.CONSENT)
    world.sync(DE, FR)
    assert rows(world)[-2][1:] == (Disposition.RECALLED, "BAD_TERMS")
    assert not files_hold(world[DE], BYTES)
    world.sync(FR, DE)
    assert holders(world)[DE] == (DE, HolderState.PURGED)


@pytest.mark.invariant("I15")
def test_what_is_disputed_goes_and_its_proof_stays(world: World) -> None:
    released(world)
    held = agreements.find(world[FR], AGREEMENT)
    other = again(world, held, iat=payload_of(issued(world[FR], "X").core)["iat"] - 1)
    append_by_hand(world[FR], DE, other)
    world.sync(DE, FR)
    assert {state for _, _, state in items(world)} == {InboxState.EQUIVOCATION}
    recalls.give(world[FR], "X", Reason.CONSENT)
    world.sync(DE, FR)
    assert {state for _, _, state in items(world)} == {InboxState.RECALLED}
    assert not files_hold(world[DE], BYTES)
    with read(world[DE].engine) as tx:
        evidence = tx.execute(select(tables.incidents.c.evidence)).scalar_one()
    assert other.presentation.core in evidence  # two signed cores, whose digests say nothing


@pytest.mark.invariant("I15")
def test_the_same_order_again_changes_nothing_and_is_not_answered(world: World) -> None:
    released(world)
    world.sync_all()
    order = recalls.give(world[FR], "X", Reason.ERROR)
    world.sync(DE, FR)
    before = (count(world, DE, tables.statements), count(world, DE, tables.recalls))
    for sender in (FR, IN):
        append_by_hand(world[sender], DE, RecallOrder(document_of(world), ()))
        world.sync(DE, sender)
    assert (count(world, DE, tables.statements), count(world, DE, tables.recalls)) == before == (1, 1)
    assert [given.digest for given in answers.status(world[DE])] == [order.digest]


@pytest.mark.invariant("I15")
@pytest.mark.parametrize(
    ("origin", "outcome", "code"),
    [
        (IN, Disposition.CONTROL, None),  # in its own name: about an advisory X of IN, which nobody has
        (FR, Disposition.QUARANTINED, "UNKNOWN_KEY"),
        (NodeId("cert.ke.example"), Disposition.QUARANTINED, "UNKNOWN_ORIGIN"),
    ],
)
def test_nobody_recalls_what_another_has_signed(
    world: World, origin: NodeId, outcome: Disposition, code: str | None
) -> None:
    released(world)
    world.sync(DE, FR)
    before = items(world)
    append_by_hand(world[IN], DE, RecallOrder(signed_recall(world, IN, "X", 1, origin=origin), ()))
    world.sync(DE, IN)
    assert outcome_of_last(world, DE, IN) == (outcome, code)
    assert items(world) == before == [("X", 1, InboxState.CURRENT)]
    assert SECRET in str(inbox.content(world[DE], "X").csaf)


@pytest.mark.invariant("I15")
def test_an_order_whose_signature_does_not_hold_is_set_aside(world: World) -> None:
    released(world)
    world.sync(DE, FR)
    order = signed_recall(world, FR, "Y", 1)
    signed = jws.parse(order, max_bytes=len(order), typ=recall.JWS_TYPE)
    other = jws.SignedDocument(signed.payload.replace(b'"Y"', b'"X"'), signed.signatures)
    append_by_hand(world[FR], DE, RecallOrder(jws.serialise(other), ()))
    world.sync(DE, FR)
    assert outcome_of_last(world, DE, FR) == (Disposition.QUARANTINED, "BAD_SIGNATURE")
    assert items(world) == [("X", 1, InboxState.CURRENT)]


@pytest.mark.invariant("I15")
def test_nobody_keeps_an_order_away_by_saying_the_same_in_its_own_name(world: World) -> None:
    released(world)
    world.sync(DE, FR)
    order = recalls.give(world[FR], "X", Reason.CONSENT)
    # attack: IN has the order, signs its very words, and is faster than the origin
    signed = jws.parse(document_of(world), max_bytes=1 << 18, typ=recall.JWS_TYPE)
    signer = world[IN].keys.signer(Role.ISSUE, world[IN].card, world.clock())
    same = jws.sign(signed.payload, recall.JWS_TYPE, f"{IN}/{signer.kid}", signer.sign)
    copy = jws.serialise(jws.SignedDocument(signed.payload, (same,)))
    append_by_hand(world[IN], DE, RecallOrder(copy, ()))
    world.sync(DE, IN)
    assert items(world) == [("X", 1, InboxState.CURRENT)]
    world.sync(DE, FR)
    assert items(world) == [("X", 1, InboxState.RECALLED)]
    assert {given.digest for given in answers.status(world[DE])} > {order.digest}


@pytest.mark.invariant("I15")
def test_two_who_answer_in_the_same_words_are_both_heard(world: World) -> None:
    released(world, "X", DE, IN)
    world.sync_all()
    recalls.give(world[FR], "X", Reason.CONSENT)
    for receiver, sender in ((DE, FR), (IN, FR), (FR, DE), (FR, IN)):
        world.sync(receiver, sender)
    assert said(world, FR, DE) == said(world, FR, IN)
    assert holders(world) == {DE: (DE, HolderState.PURGED), IN: (IN, HolderState.PURGED)}
