"""Statements by people and by nodes: to whom they go, by which way, and what they change, which is nothing."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from federation import assertion, statement
from federation.entries import Said
from federation.errors import HeldError, NotAllowedError, NotFoundError, UsageError
from federation.model import Country, NodeId, Role
from federation.policy.engine import rule_book
from federation.policy.packs import load_pack
from federation.statement import Kind, Statement, Subject
from node.desk import inbox
from node.desk.inbox import Disposition, InboxState
from node.home.people import Post
from node.peering import feeds, peers
from node.sharing import releases, statements
from node.sharing.statements import Kept
from node.store.database import read, write
from node.store.tables import agreements, audit, in_entries
from tests.chains import KE, NAME, Chain, acts, arrived, give, join, last_entry, make_chain, pass_on, send
from tests.nodes import DE, FR, IN, append_by_hand, document, history, import_document
from tests.unit.test_statement_format import envelope

WORDS = "Is version 4 hit as well? Ask Maria Musterfrau."
ABOUT = Subject(FR, NAME, 1)


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    """FR, DE and IN in a line; what FR released to DE, DE has passed on to IN."""
    made = make_chain(tmp_path)
    join(made, FR, DE)
    join(made, DE, IN)
    item = send(made)
    give(made)
    pass_on(made, item)
    made.sync(IN, DE)
    made.sync(DE, IN)
    made.sync(FR, DE)
    yield made
    made.close()


def ask(chain: Chain, at: NodeId = IN, kind: Kind = Kind.QUESTION, text: str | None = WORDS) -> Kept:
    """Somebody says something of the advisory that came here."""
    return statements.say(chain[at], arrived(chain, at).item.id, kind, text)


def said_at(chain: Chain, at: NodeId) -> list[tuple[str, NodeId, NodeId]]:
    """Kind, author and recipient of all that a node keeps."""
    return [(k.statement.kind, k.statement.author, k.statement.recipient) for k in statements.all_kept(chain[at])]


def by_hand(chain: Chain, author: NodeId, recipient: NodeId, **changed: Any) -> Statement:
    """A statement under an author's real key that its software would not make."""
    node = chain[author]
    signer = node.keys.signer(Role.ISSUE, node.card, chain.clock())
    about = changed.pop("about", ABOUT)
    kind, body = changed.pop("kind", Kind.QUESTION), changed.pop("body", {"text": WORDS})
    return statement.sign(
        kind, author, recipient, chain.clock(), about, body, kid=signer.kid, sign_bytes=signer.sign, **changed
    )


# To the origin, and back


@pytest.mark.parametrize("kind", list(statement.SPOKEN))
def test_a_neighbour_tells_the_origin_itself(chain: Chain, kind: Kind) -> None:
    text = None if kind is Kind.ACKNOWLEDGE else WORDS
    made = ask(chain, DE, kind, text)
    chain.sync(FR, DE)
    (got,) = statements.all_kept(chain[FR], NAME)
    assert got.statement == made.statement
    assert (got.statement.kind, got.statement.author, got.statement.about) == (kind, DE, ABOUT)
    assert got.statement.body == ({} if text is None else {"text": WORDS})
    assert (got.peer, got.by, made.peer, made.by) == (DE, DE, None, "alice")


@pytest.mark.invariant("I7")
def test_whoever_got_it_from_a_relay_is_heard_through_that_relay_and_answered(chain: Chain) -> None:
    question = ask(chain)
    assert question.statement.recipient == FR
    chain.sync(DE, IN)
    chain.sync(FR, DE)
    (got,) = statements.all_kept(chain[FR])
    assert (got.statement.document, got.peer) == (question.statement.document, DE)  # as it was signed
    answer = statements.reply(chain[FR], got.number, "It is not.")
    assert (answer.statement.kind, answer.statement.recipient, answer.answers) == (Kind.ANSWER, IN, got.number)
    chain.sync(DE, FR)
    chain.sync(IN, DE)
    first, back = statements.all_kept(chain[IN], f"{FR}/{NAME}")
    assert (first.number, back.answers, back.statement.body) == (
        question.number,
        question.number,
        {"text": "It is not."},
    )
    more = statements.reply(chain[IN], back.number, "Thank you.")
    chain.sync(DE, IN)
    chain.sync(FR, DE)
    assert statements.all_kept(chain[FR])[-1].statement == more.statement
    assert [kind for kind, _, _ in said_at(chain, DE)] == [
        "question",
        "answer",
        "answer",
    ]  # the relay knows what it passed


@pytest.mark.invariant("I12")
def test_what_is_said_changes_nothing_but_what_was_said(chain: Chain) -> None:
    before = inbox.content(chain[DE], NAME)
    ask(chain)
    assert chain.sync(DE, IN).counts == {Disposition.CONTROL: 1}
    assert chain.sync(FR, DE).counts == {Disposition.CONTROL: 1}
    assert inbox.content(chain[DE], NAME) == before


@pytest.mark.invariant("I17")
def test_no_row_of_the_audit_holds_what_somebody_wrote(chain: Chain) -> None:
    ask(chain)
    chain.sync(DE, IN)
    chain.sync(FR, DE)
    statements.reply(chain[FR], 1, WORDS)
    for name in (FR, DE, IN):
        with read(chain[name].engine) as tx:
            rows = [*tx.execute(select(audit)).all(), *tx.execute(select(in_entries.c.detail)).all()]
        assert "Musterfrau" not in str(rows)
    assert [act[:2] for act in acts(chain, FR, "statement")] == [("statement", DE), ("statement", "alice")]


def test_the_same_statement_by_another_way_is_kept_once(chain: Chain) -> None:
    made = ask(chain)
    append_by_hand(chain[IN], DE, Said(made.statement.document))
    chain.sync(DE, IN)
    assert chain.sync(FR, DE).counts == {Disposition.CONTROL: 1}
    assert len(statements.all_kept(chain[DE])) == 1


def test_a_statement_about_something_that_is_gone_can_still_be_made(chain: Chain) -> None:
    item = arrived(chain).item
    with write(chain[IN].engine) as tx:
        inbox.withdraw(tx, item.feed, (item.seq,))
    assert statements.say(chain[IN], item.id, Kind.QUESTION, WORDS).statement.about == ABOUT
    (left,) = inbox.items(chain[IN], every_state=True)
    assert left.state is InboxState.WITHDRAWN


# What people may not say


def test_whoever_is_no_analyst_says_nothing(chain: Chain) -> None:
    chain.nodes[IN] = replace(chain[IN], people={"alice": frozenset((Post.AUDITOR, Post.OPERATOR))})
    with pytest.raises(NotAllowedError):
        ask(chain)
    with pytest.raises(NotAllowedError):
        statements.reply(chain[IN], 1, WORDS)
    assert statements.all_kept(chain[IN]) == ()


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        (Kind.QUESTION, None, "takes a text"),
        (Kind.QUESTION, " \n ", "takes a text"),
        (Kind.CORRECTION, "x" * 20_001, "1 to 20000 characters"),
        (Kind.AFFECTS, "half \ud800 of a pair", "UTF-8"),
        (Kind.ACKNOWLEDGE, "and more", "says all by itself"),
        (Kind.ANSWER, "to nothing", "people say: acknowledge"),
        (Kind.REFUSAL, None, "people say"),
        (Kind.PURGE, None, "people say"),
    ],
)
def test_what_cannot_be_said_is_told_and_nothing_is_signed(
    chain: Chain, kind: Kind, text: str | None, words: str
) -> None:
    before = len(history(chain[IN], DE))
    with pytest.raises(UsageError, match=words):
        ask(chain, IN, kind, text)
    assert (len(history(chain[IN], DE)), statements.all_kept(chain[IN])) == (before, ())


def test_a_text_may_be_as_long_as_the_limit_and_in_any_script(chain: Chain) -> None:
    text = "जि" * 10_000
    ask(chain, DE, Kind.QUESTION, text)
    assert chain.sync(FR, DE).counts == {Disposition.CONTROL: 1}
    assert statements.find(chain[FR], 1).statement.body == {"text": text}


def test_only_what_was_said_to_this_node_is_answered(chain: Chain) -> None:
    own = ask(chain)
    chain.sync(DE, IN)
    with pytest.raises(UsageError, match="nothing to answer"):
        statements.reply(chain[IN], own.number, "to myself")
    with pytest.raises(UsageError, match="nothing to answer"):
        statements.reply(chain[DE], 1, "for another")
    with pytest.raises(NotFoundError):
        statements.reply(chain[IN], 99, "x")
    with pytest.raises(NotFoundError):
        statements.say(chain[IN], 99, Kind.QUESTION, "x")


def test_the_very_same_in_the_same_second_is_said_once(chain: Chain) -> None:
    ask(chain)
    with pytest.raises(UsageError, match="a moment ago"):
        ask(chain)
    chain.clock.move(seconds=1)
    assert ask(chain).number == 2


def test_an_origin_that_nobody_here_can_reach_is_told_of(chain: Chain) -> None:
    peers.distrust(chain[IN], DE)
    with pytest.raises(UsageError, match=f"{FR} cannot be told"):
        ask(chain)
    assert statements.all_kept(chain[IN]) == ()


def test_law_may_hold_a_statement_back(chain: Chain) -> None:
    under_law(chain, IN)
    with pytest.raises(HeldError, match="test/one"):
        ask(chain)
    assert statements.all_kept(chain[IN]) == ()


def under_law(chain: Chain, name: NodeId) -> None:
    """A node lives under a law that forbids statements from now on."""
    countries = [Country(code) for code in ("DE", "FR", "IN", "KE")]
    text = """
pack: test
version: 1
jurisdiction: null
title: A law of this test
status: example
checked_on: 2026-11-21
source: none
rules: |
  @id("test/one") @basis("a law") @says("Nothing is said.")
  forbid (principal, action == Action::"notify", resource) when { resource.kind == Control::"statement" };
"""
    pack = load_pack(text, "test.yaml", countries)
    chain.nodes[name] = replace(chain[name], book=rule_book((pack,), countries))


# Passing statements on: one hop, between those two, and nothing else

NOT_PASSED_ON: dict[str, Callable[[Chain], Statement]] = {
    "about nothing": lambda c: by_hand(c, IN, FR, about=None),
    "about something that was not passed on": lambda c: by_hand(c, IN, FR, about=Subject(FR, "OTHER", 1)),
    "about something of a third node": lambda c: by_hand(c, IN, FR, about=Subject(KE, NAME, 1)),
    "about something of the author": lambda c: by_hand(c, IN, FR, about=Subject(IN, NAME, 1)),
    "between two of whom none is its origin": lambda c: by_hand(c, IN, KE),
    "for a node that nobody knows": lambda c: by_hand(c, IN, NodeId("cert.xx.example")),
    "that has made a hop before": lambda c: by_hand(c, FR, IN),
}


@pytest.mark.invariant("I2")
@pytest.mark.parametrize("name", sorted(NOT_PASSED_ON))
def test_a_relay_passes_statements_on_between_those_for_whom_it_passed_advisories_on(tmp_path: Path, name: str) -> None:
    chain = make_chain(tmp_path, (FR, DE), (DE, IN), (DE, KE))
    join(chain, FR, DE)
    join(chain, DE, IN)
    item = send(chain)
    give(chain)
    pass_on(chain, item)
    chain.sync_all(2)
    before = {peer: len(history(chain[DE], peer)) for peer in (FR, IN)}
    append_by_hand(chain[IN], DE, Said(NOT_PASSED_ON[name](chain).document))
    assert chain.sync(DE, IN).counts == {Disposition.REFUSED: 1}
    assert last_entry(chain, DE, IN) == ("refused", "NOT_ADMITTED", None)
    assert {peer: len(history(chain[DE], peer)) for peer in (FR, IN)} == before
    assert statements.all_kept(chain[DE]) == ()
    append_by_hand(chain[IN], DE, Said(by_hand(chain, IN, FR).document))
    assert chain.sync(DE, IN).counts == {Disposition.CONTROL: 1}  # sanity
    assert len(history(chain[DE], FR)) == before[FR] + 1
    chain.close()


def test_nothing_goes_by_a_relay_to_a_node_that_it_does_not_trust_any_more(chain: Chain) -> None:
    ask(chain)
    peers.distrust(chain[DE], FR)
    assert chain.sync(DE, IN).counts == {Disposition.REFUSED: 1}
    assert last_entry(chain, DE, IN) == ("refused", "NOT_ADMITTED", None)


def test_law_at_the_relay_holds_a_statement_back(chain: Chain) -> None:
    ask(chain)
    under_law(chain, DE)
    assert chain.sync(DE, IN).counts == {Disposition.REFUSED: 1}
    assert said_at(chain, DE) == []


@pytest.mark.invariant("I12")
def test_a_statement_that_its_author_did_not_sign_is_set_aside(chain: Chain) -> None:
    forged = by_hand(chain, IN, FR).document.replace(b'"signature":"', b'"signature":"AA')
    append_by_hand(chain[IN], DE, Said(forged))
    assert chain.sync(DE, IN).counts == {Disposition.QUARANTINED: 1}
    assert (said_at(chain, DE), last_entry(chain, DE, IN)[1]) == ([], "MALFORMED")


def test_a_statement_by_somebody_whose_card_is_not_known_is_set_aside(chain: Chain) -> None:
    peers.distrust(chain[FR], IN)
    ask(chain)
    chain.sync(DE, IN)
    assert chain.sync(FR, DE).counts == {Disposition.QUARANTINED: 1}
    assert last_entry(chain, FR, DE)[1] == "UNKNOWN_ORIGIN"


def test_a_kind_that_this_version_does_not_know_is_kept_and_passed_on(chain: Chain) -> None:
    node = chain[IN]
    signer = node.keys.signer(Role.ISSUE, node.card, chain.clock())
    members = envelope(statement="embargo-vote", to=FR, body={"until": 3})
    made = assertion.sign(members, statement.JWS_TYPE, IN, signer.kid, signer.sign)
    append_by_hand(node, DE, Said(made.document))
    assert chain.sync(DE, IN).counts == {Disposition.CONTROL: 1}
    assert chain.sync(FR, DE).counts == {Disposition.CONTROL: 1}
    (kept,) = statements.all_kept(chain[FR], NAME)
    assert (kept.statement.kind, kept.statement.body, kept.statement.author) == ("embargo-vote", {"until": 3}, IN)


# What nodes say by themselves


def test_a_refusal_is_shown_with_the_advisory_that_was_refused(tmp_path: Path) -> None:
    chain = make_chain(tmp_path)
    join(chain, FR, DE)
    join(chain, DE, IN)
    item = send(chain)
    give(chain)
    peers.distrust(chain[IN], FR)
    entry = pass_on(chain, item)
    chain.sync(IN, DE)
    chain.sync(DE, IN)
    for name in (NAME, f"{FR}/{NAME}"):
        (kept,) = statements.all_kept(chain[DE], name)
        assert (kept.statement.kind, kept.statement.author, kept.by) == (Kind.REFUSAL, IN, IN)
        assert kept.statement.body["entries"][0]["seq"] == entry.seq
    assert statements.all_kept(chain[DE], "OTHER") == ()
    (own,) = statements.all_kept(chain[IN])
    assert (own.by, own.peer, own.concerns) == ("policy", None, ())
    assert entry.seq is not None
    with read(chain[DE].engine) as tx:
        feed = feeds.out_feed(tx, IN)
        assert statements.refused(tx, feed, entry.seq)
        assert not statements.refused(tx, feed, entry.seq - 1)
        assert not statements.refused(tx, replace(feed, origin=f"{DE}/feeds/{IN}/2"), entry.seq)
        assert not statements.refused(tx, replace(feed, peer=FR), entry.seq)
    chain.close()


def refuse_by_hand(chain: Chain, *seqs: int) -> None:
    """IN tells DE, in a statement for each, that it did not take entries; whether or not that is so."""
    for seq in seqs:
        entry = {"seq": seq, "leaf_hash": "ab" * 32, "code": "X", "rules": []}
        body = {"feed": f"{DE}/feeds/{IN}/1", "entries": [entry]}
        append_by_hand(chain[IN], DE, Said(by_hand(chain, IN, DE, kind=Kind.REFUSAL, body=body, about=None).document))
    chain.sync(DE, IN)


def test_of_the_refusals_of_a_peer_only_some_are_read_for_one_release(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statements, "_MAX_REFUSALS", 3)
    opened: list[bytes] = []
    real = statement.reread

    def reread(document_: bytes) -> Statement:
        opened.append(document_)
        return real(document_)

    monkeypatch.setattr(statement, "reread", reread)
    with read(chain[DE].engine) as tx:
        feed = feeds.out_feed(tx, IN)
    seq = feed.size - 1  # what DE has passed on

    def refused() -> bool:
        opened.clear()
        with read(chain[DE].engine) as tx:
            return statements.refused(tx, feed, seq)

    refuse_by_hand(chain, 100, 101)
    assert (refused(), len(opened)) == (False, 2)
    refuse_by_hand(chain, *range(102, 110))
    assert (refused(), len(opened)) == (False, 3)
    refuse_by_hand(chain, seq)
    assert (refused(), len(opened)) == (False, 3)  # it counts as taken: nothing is sent again


def test_a_refusal_from_before_the_release_is_not_read(chain: Chain) -> None:
    with read(chain[DE].engine) as tx:
        feed = feeds.out_feed(tx, IN)
    refuse_by_hand(chain, feed.size, feed.size + 1)  # what there is not yet
    chain.clock.move(minutes=1)
    item = send(chain, "LATER")
    give(chain, "LATER")
    entry = pass_on(chain, item)
    assert entry.seq in (feed.size, feed.size + 1)
    with read(chain[DE].engine) as tx:
        assert not statements.refused(tx, feed, entry.seq)
    refuse_by_hand(chain, entry.seq)
    with read(chain[DE].engine) as tx:
        assert statements.refused(tx, feed, entry.seq)


@pytest.mark.parametrize("feed", [f"{DE}/feeds/{IN}/1", "no feed\0 at all"])
def test_a_refusal_may_name_what_there_is_not(chain: Chain, feed: str) -> None:
    entry = {"seq": 10**40, "leaf_hash": "ab" * 32, "code": "X", "rules": []}
    body = {"feed": feed, "entries": [entry]}
    append_by_hand(chain[IN], DE, Said(by_hand(chain, IN, DE, kind=Kind.REFUSAL, body=body, about=None).document))
    assert chain.sync(DE, IN).counts == {Disposition.CONTROL: 1}
    (kept,) = statements.all_kept(chain[DE])
    assert kept.concerns == ()
    assert statements.all_kept(chain[DE], NAME) == ()


def test_a_refusal_of_an_own_release_is_found_by_its_name(tmp_path: Path) -> None:
    chain = make_chain(tmp_path)
    join(chain, FR, DE)
    with write(chain[DE].engine) as tx:
        tx.execute(update(agreements).values(complete=0))
    import_document(chain[FR], document(NAME))
    releases.release(chain[FR], NAME, (DE,))
    chain.sync(DE, FR)
    chain.sync(FR, DE)
    (kept,) = statements.all_kept(chain[FR], f"{FR}/{NAME}")
    assert kept.statement.body["entries"][0]["code"] == "NOT_ADMITTED"
    chain.close()


def test_numbers_are_given_in_the_order_in_which_things_were_said(chain: Chain) -> None:
    for _ in range(3):
        ask(chain)
        chain.clock.move(seconds=1)
    chain.sync(DE, IN)
    assert [kept.number for kept in statements.all_kept(chain[DE])] == [1, 2, 3]
    ages = [kept.statement.at for kept in statements.all_kept(chain[DE])]
    assert ages == sorted(ages)
    assert ages[-1] - ages[0] == timedelta(seconds=2)
