"""Recalls: an order of the origin follows its advisory everywhere, every copy goes, and each holder answers (I15)."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pycountry
import pytest
from sqlalchemy import func, select, update

from federation import entries, jws, recall
from federation.entries import Delivery, ErasedItem, Purge, RecallOrder, Withdrawal
from federation.errors import HeldError, NotAllowedError, NotFoundError, UsageError
from federation.model import Country, NodeId, Presentation, Role
from federation.policy.engine import RuleBook, rule_book
from federation.policy.packs import LawPack
from federation.policy.rules import parse
from federation.policy.schema import Control
from federation.recall import Reason
from federation.statement import Kind, Outcome
from node import (
    advisories,
    agreements,
    answers,
    inbox,
    ledger,
    main,
    passing,
    peers,
    recalls,
    relays,
    releases,
    statements,
)
from node.advisories import State
from node.agreements import Held
from node.alarms import Alarm
from node.answers import HolderState
from node.inbox import Disposition, InboxState
from node.ledger import Act
from node.people import Post
from node.store import tables
from node.store.database import read, write
from tests.chains import Chain, give, join, last_entry, make_chain, pass_on, send
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
    reopen,
    rows,
    signed_core,
    terms_for,
)

SECRET = "The passphrase of the pump is kestrel-nine."
BYTES = SECRET.encode()
FORBID_RECALLS = (
    '@id("test/silence") @basis("a law") @says("Nothing may be told.")\n'
    'forbid (principal, action == Action::"notify", resource) when { %s };\n'
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


def released(world: World, name: str = "X", *to: NodeId, **handling: Any) -> None:
    """FR releases an advisory that holds SECRET."""
    made = import_document(world[FR], document(name, notes=(SECRET,)), handling={"tlp": "GREEN", **handling})
    releases.release(world[FR], made, to or (DE,))


def passed_on(chain: Chain) -> None:
    """What FR released to DE, DE passed on to IN."""
    item = send(chain, "X", notes=(SECRET,))
    give(chain, "X")
    assert pass_on(chain, item).seq is not None
    chain.sync(IN, DE)
    assert files_hold(chain[IN], BYTES)


def holders(world: World, name: str = "X", at: NodeId = FR) -> dict[NodeId, tuple[NodeId, HolderState]]:
    """Who has to follow the newest recall of an advisory: via whom, and how it stands."""
    return {holder.node: (holder.via, holder.state) for holder in answers.status(world[at], name)[0].holders}


def said(world: World, at: NodeId, author: NodeId) -> list[dict[str, Any]]:
    """The answers to recalls that one node keeps of another."""
    return [
        kept.statement.body
        for kept in statements.all_kept(world[at])
        if (kept.statement.kind, kept.statement.author) == (Kind.PURGE, author)
    ]


def last(world: World, sender: NodeId, recipient: NodeId) -> entries.Body:
    """The newest entry in a feed."""
    data = history(world[sender], recipient)[-1]
    assert isinstance(data, bytes)
    return entries.read(data).body


def items(world: World, at: NodeId = DE) -> list[tuple[str, int, InboxState]]:
    return [(i.name, i.revision, i.state) for i in sorted(inbox.items(world[at], every_state=True), key=lambda i: i.id)]


def silenced(when: str) -> RuleBook:
    """A law that forbids control messages."""
    pack = LawPack(
        id="test",
        version=1,
        jurisdiction=None,
        title="test",
        status="example",
        checked_on=date(2026, 11, 21),
        source="test",
        groups=MappingProxyType({}),
        safeguards=MappingProxyType({}),
        rules=parse(FORBID_RECALLS % when, "test", "forbid"),
        duties=parse("", "test", "permit"),
    )
    return rule_book((pack,), tuple(Country(c.alpha_2) for c in pycountry.countries))


def forbidding(*kinds: Control) -> RuleBook:
    """A law that forbids control messages of these kinds."""
    return silenced(" || ".join(f'resource.kind == Control::"{kind}"' for kind in kinds))


def make_old(world: World, at: NodeId, peer: NodeId) -> None:
    """One node knows another by a card that lists version 1 only."""
    made = replace(world[peer].card, protocols=(1,), version=world[peer].card.version + 1)
    with write(world[at].engine) as tx:
        card = main.sign_card(made, world[peer].keys)
        tx.execute(update(tables.peers).where(tables.peers.c.node == peer).values(card=card))


def signed_recall(world: World, author: NodeId, name: str, *revisions: int, origin: NodeId | None = None) -> bytes:
    """An order under the real key of `author`, in the name of `origin` if one is given."""
    node = world[author]
    signer = node.keys.signer(Role.ISSUE, node.card, world.clock())
    made = recall.sign(
        origin or author, name, revisions, Reason.ERROR, world.clock(), kid=signer.kid, sign_bytes=signer.sign
    )
    return made.document


def outcome_of_last(world: World, at: NodeId, sender: NodeId) -> tuple[str, str | None]:
    """What became of the newest entry that a node holds of another."""
    with read(world[at].engine) as tx:
        row = tx.execute(
            select(tables.in_entries.c.outcome, tables.in_entries.c.code)
            .join(tables.in_feeds, tables.in_feeds.c.id == tables.in_entries.c.feed)
            .where(tables.in_feeds.c.peer == sender)
            .order_by(tables.in_entries.c.seq.desc())
        ).first()
    assert row is not None
    return row.outcome, row.code


def again(world: World, held: Held, **members: Any) -> Delivery:
    """The advisory X for DE, signed again with other members, in full."""
    presentation = issued(world[FR], "X")
    core = signed_core(world[FR], payload_of(presentation.core) | members)
    terms = replace(terms_for(world[FR], DE, "X", held), core_digest=hashlib.sha256(core).digest())
    return Delivery(Presentation(core, presentation.disclosures), terms)


def count(world: World, at: NodeId, table: Any) -> int:
    with read(world[at].engine) as tx:
        return int(tx.execute(select(func.count()).select_from(table)).scalar_one())


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
    for name, revisions, text in (
        ("draft", (), "is a draft"),
        ("X", (2,), "no issued revision 2"),
        ("X", (1, 7), "no issued revision 7"),
    ):
        with pytest.raises(UsageError, match=text):
            recalls.give(world[FR], name, Reason.ERROR, revisions)
    with pytest.raises(NotFoundError, match="no advisory is called Z"):
        recalls.give(world[FR], "Z", Reason.ERROR)
    with pytest.raises(NotAllowedError):
        recalls.give(replace(world[FR], people={"alice": frozenset((Post.OPERATOR,))}), "X", Reason.ERROR)
    assert count(world, FR, tables.out_entries) == before
    recalls.give(world[FR], "X", Reason.ERROR)
    with pytest.raises(UsageError, match="recalled already"):
        recalls.give(world[FR], "X", Reason.ERROR)


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
        append_by_hand(world[sender], DE, RecallOrder(_document(world), ()))
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
    signed = jws.parse(_document(world), max_bytes=1 << 18, typ=recall.JWS_TYPE)
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


def _document(world: World, at: NodeId = FR) -> bytes:
    """The order that a node keeps, as it was signed."""
    with read(world[at].engine) as tx:
        document_: bytes = tx.execute(select(tables.recalls.c.document)).scalar_one()
    return document_


# Relays


@pytest.mark.invariant("I15")
def test_a_recall_follows_what_was_passed_on_and_the_answer_comes_back(chain: Chain) -> None:
    passed_on(chain)
    order = recalls.give(chain[FR], "X", Reason.CONSENT)
    chain.sync(DE, FR)
    assert not files_hold(chain[DE], BYTES)  # neither what came nor what went on
    chain.sync(IN, DE)
    assert not files_hold(chain[IN], BYTES)
    assert items(chain, IN) == [("X", 1, InboxState.RECALLED)]
    chain.sync(FR, DE)
    assert holders(chain) == {DE: (DE, HolderState.PURGED), IN: (DE, HolderState.PENDING)}
    chain.sync(DE, IN)
    assert holders(chain, at=DE) == {IN: (IN, HolderState.PURGED)}
    chain.sync(FR, DE)
    assert holders(chain) == {DE: (DE, HolderState.PURGED), IN: (DE, HolderState.PURGED)}
    assert said(chain, FR, DE)[0]["passed_on"] == [IN]
    assert said(chain, FR, IN)[0] == {
        "recall": order.digest.hex(),
        "outcome": Outcome.PURGED,
        "passed_on": [],
        "unreachable": [],
    }
    assert _document(chain) == _document(chain, IN)  # as it was signed


@pytest.mark.invariant("I15")
def test_a_recall_is_passed_on_even_after_the_agreement_has_ended(chain: Chain) -> None:
    passed_on(chain)
    chain.clock.move(days=201)
    assert agreements.find(chain[DE], "de-in").state(chain.clock()) == "expired"
    recalls.give(chain[FR], "X", Reason.CONSENT)
    chain.sync(DE, FR)
    chain.sync(IN, DE)
    chain.sync(DE, IN)
    chain.sync(FR, DE)
    assert holders(chain)[IN] == (DE, HolderState.PURGED)
    assert not files_hold(chain[IN], BYTES)


@pytest.mark.invariant("I15")
def test_an_order_that_comes_by_two_ways_is_answered_once(world: World) -> None:
    released(world)
    world.sync(DE, FR)
    _grant_and_pass_on(world)
    world.sync(IN, DE)
    assert files_hold(world[IN], BYTES)
    recalls.give(world[FR], "X", Reason.CONSENT)
    world.sync(IN, FR)
    world.sync(DE, FR)
    world.sync(IN, DE)
    assert count(world, IN, tables.statements) == 1
    world.sync(FR, IN)
    world.sync(FR, DE)
    assert holders(world) == {DE: (DE, HolderState.PURGED), IN: (IN, HolderState.PURGED)}
    assert said(world, FR, DE)[0]["passed_on"] == [IN]


def _grant_and_pass_on(world: World) -> None:
    """DE passes X on to IN under a grant of FR."""
    relays.give(world[FR], "X", DE, (IN,), None, world.clock() + timedelta(days=30))
    world.sync(DE, FR)
    _, (outcome,) = passing.pass_on(world[DE], "X", (IN,))
    assert outcome.seq is not None


@pytest.mark.invariant("I15")
def test_who_is_out_of_a_relays_reach_is_told_to_the_origin(chain: Chain) -> None:
    passed_on(chain)
    peers.distrust(chain[DE], IN)
    recalls.give(chain[FR], "X", Reason.CONSENT)
    chain.sync(DE, FR)
    chain.sync(FR, DE)
    assert holders(chain) == {DE: (DE, HolderState.PURGED), IN: (DE, HolderState.UNREACHABLE)}
    assert not files_hold(chain[DE], BYTES)  # its copies go all the same
    with write(chain[DE].engine) as tx:  # two people trust it again: the order lies in its feed
        tx.execute(update(tables.peers).values(trusted=1))
    chain.sync(IN, DE)
    chain.sync(DE, IN)
    chain.sync(FR, DE)
    assert holders(chain)[IN] == (DE, HolderState.PURGED)
    assert not files_hold(chain[IN], BYTES)


@pytest.mark.invariant("I12")
def test_what_a_relay_says_of_another_does_not_overwrite_what_that_one_says(world: World) -> None:
    released(world, "X", DE, IN)
    world.sync_all()
    order = recalls.give(world[FR], "X", Reason.CONSENT)
    world.sync(IN, FR)
    world.sync(FR, IN)
    assert holders(world)[IN] == (IN, HolderState.PURGED)
    body = {"recall": order.digest.hex(), "outcome": "purged", "passed_on": [DE, FR], "unreachable": [IN]}
    with write(world[DE].engine) as tx:
        statements.make(world[DE], tx, Kind.PURGE, FR, body, via=FR, by="alice")
    world.sync(FR, DE)
    assert holders(world) == {DE: (DE, HolderState.PURGED), IN: (IN, HolderState.PURGED)}


def test_an_answer_that_nobody_waits_for_goes_nowhere(chain: Chain) -> None:
    body = {"recall": "ab" * 32, "outcome": "purged", "passed_on": [], "unreachable": []}
    with write(chain[IN].engine) as tx:
        statements.make(chain[IN], tx, Kind.PURGE, FR, body, via=DE, by="alice")
    before = len(history(chain[DE], FR))
    chain.sync(DE, IN)
    assert last_entry(chain, DE, IN) == (Disposition.REFUSED, "NOT_ADMITTED", None)
    assert len(history(chain[DE], FR)) == before
    assert said(chain, DE, IN) == []


# Who cannot be told


@pytest.mark.invariant("I15")
def test_an_older_peer_gets_a_withdrawal(world: World) -> None:
    released(world)
    for peer in (DE, IN):
        make_old(world, FR, peer)
    recalls.give(world[FR], "X", Reason.ERROR)
    assert holders(world) == {DE: (DE, HolderState.WITHDRAWN)}
    body = last(world, FR, DE)
    assert isinstance(body, Withdrawal)
    assert isinstance(history(world[FR], DE)[body.seqs[0]], ErasedItem)
    assert recalls.send_again(world[FR]) == 0
    with write(world[FR].engine) as tx:  # it was upgraded
        tx.execute(update(tables.peers).where(tables.peers.c.node == DE).values(card=world[DE].card_bytes))
    assert recalls.send_again(world[FR]) == 1
    assert holders(world) == {DE: (DE, HolderState.PENDING)}
    world.sync(DE, FR)
    world.sync(FR, DE)
    assert holders(world) == {DE: (DE, HolderState.NEVER_HELD)}


@pytest.mark.invariant("I15")
@pytest.mark.parametrize("silent", [(Control.RECALL,), (Control.RECALL, Control.PURGE, Control.WITHDRAWAL)])
def test_law_that_forbids_to_tell_holds_the_order_and_nothing_more_goes_out(
    world: World, silent: tuple[Control, ...]
) -> None:
    released(world)
    quiet = replace(world[FR], book=forbidding(*silent))
    recalls.give(quiet, "X", Reason.LEGAL)
    assert holders(world) == {DE: (DE, HolderState.HELD), IN: (IN, HolderState.HELD)}
    with read(quiet.engine) as tx:
        raised = tx.execute(select(tables.alarms.c.kind, tables.alarms.c.subject)).all()
    assert (Alarm.HELD, f"{DE} recall") in raised
    item = history(quiet, DE)[3]
    if len(silent) == 1:
        assert isinstance(last(world, FR, DE), Purge)
        assert isinstance(item, ErasedItem)
    else:
        assert isinstance(item, bytes)
        with pytest.raises(HeldError):  # nothing is served to it rather than that
            releases.withdraw_what_may_not_go(quiet, world[DE].card, range(4))
        assert world.sync(IN, FR).counts == {}
    assert recalls.send_again(quiet) == 0
    assert recalls.send_again(world[FR]) == 2  # law allows it now
    world.sync(DE, FR)
    world.sync(FR, DE)
    assert holders(world)[DE] == (DE, HolderState.NEVER_HELD)
    assert not files_hold(world[DE], BYTES)


@pytest.mark.invariant("I15")
def test_a_distrusted_holder_is_shown_and_finds_the_order_when_it_is_trusted_again(world: World) -> None:
    released(world)
    world.sync(DE, FR)
    peers.distrust(world[FR], DE)
    recalls.give(world[FR], "X", Reason.ERROR)
    assert holders(world)[DE] == (DE, HolderState.UNREACHABLE)
    assert isinstance(last(world, FR, DE), RecallOrder)


@pytest.mark.invariant("I15")
def test_an_epoch_that_has_ended_is_emptied_too(world: World) -> None:
    released(world)
    world.sync(DE, FR)
    with write(world[FR].engine) as tx:
        peers.open_out_feed(world[FR], tx, DE, 2)
    recalls.give(world[FR], "X", Reason.ERROR)
    with read(world[FR].engine) as tx:
        stored = tx.execute(
            select(tables.out_entries.c.kind, tables.out_entries.c.data, tables.out_feeds.c.epoch)
            .join(tables.out_feeds, tables.out_feeds.c.id == tables.out_entries.c.feed)
            .where(tables.out_feeds.c.peer == DE)
            .order_by(tables.out_feeds.c.epoch, tables.out_entries.c.seq)
        ).all()
    old = [row for row in stored if row.epoch == 1]
    new = [entries.read(row.data).body for row in stored if row.epoch == 2]
    assert [row.data is None for row in old if row.kind == "presentation"] == [True]
    assert old[-1].kind == "recall"
    assert [body.seqs for body in new if isinstance(body, RecallOrder)] == [()]
    assert [row.taken_back for row in ledger.rows(world[FR], DE, "X")] == [(Act.RECALL, world.clock())]
    with read(world[FR].engine) as tx:
        (owed,) = answers.owed(tx, DE)
        assert answers.owed(tx, FR) == ()
    assert owed == new[0].document  # type: ignore[union-attr] # it is the order, as was just seen


# Missing answers


@pytest.mark.invariant("I15")
def test_an_answer_is_missed_after_seven_days_and_said_once(world: World) -> None:
    released(world)
    order = recalls.give(world[FR], "X", Reason.ERROR)
    subject = f"X {order.digest.hex()[:12]}"

    def raised() -> list[tuple[str, str, int]]:
        with read(world[FR].engine) as tx:
            found = tx.execute(select(tables.alarms).where(tables.alarms.c.kind == Alarm.RECALL)).all()
        return [(row.subject, row.detail, row._mapping["count"]) for row in found]

    world.clock.move(days=6, hours=23)
    answers.check(world[FR])
    assert raised() == []
    assert not any(holder.overdue for holder in answers.status(world[FR])[0].holders)
    world.sync(IN, FR)
    world.sync(FR, IN)
    world.clock.move(hours=1)
    answers.check(world[FR])
    answers.check(world[FR])
    assert raised() == [(subject, f"no answer from {DE}; see: apostille recall status", 1)]
    assert [(h.node, h.overdue) for h in answers.status(world[FR])[0].holders] == [(DE, True), (IN, False)]
    answers.check(world[DE])  # whose recall it is has to miss it, nobody else
    assert count(world, DE, tables.alarms) == 0


@pytest.mark.invariant("I15")
def test_an_order_of_our_own_that_was_lost_bars_again(world: World) -> None:
    released(world)
    order = signed_recall(world, FR, "X", 1)
    append_by_hand(world[DE], FR, RecallOrder(order, ()))
    world.sync(FR, DE)
    with pytest.raises(UsageError, match="is recalled"):
        releases.release(world[FR], "X", (IN,))
    assert said(world, DE, FR) == []


def test_the_order_in_a_feed_says_whether_it_was_fetched(world: World) -> None:
    released(world)
    recalls.give(world[FR], "X", Reason.ERROR)
    world.sync(DE, FR)
    assert [(h.node, h.fetched) for h in answers.status(world[FR])[0].holders] == [(DE, True), (IN, False)]
    reopen(world, FR)
    assert [h.fetched for h in answers.status(world[FR], "X")[0].holders] == [True, False]
    assert answers.status(world[FR], "Y") == ()
