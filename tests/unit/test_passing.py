"""What was passed on and has not gone yet is judged again; what is taken back here is taken back there."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from federation import entries
from federation.entries import ErasedItem, Withdrawal
from federation.errors import HeldError, NotAllowedError, NotFoundError, UsageError
from federation.model import Country, NodeId
from federation.policy.engine import rule_book
from federation.policy.packs import load_pack
from node import main
from node.desk import inbox
from node.desk.inbox import Disposition, InboxState
from node.home.context import Node
from node.home.people import Post
from node.operation import overview
from node.peering import peers
from node.records import ledger
from node.records.ledger import Act
from node.rpc import tls
from node.sharing import passing, relays, releases
from node.store.database import read, write
from node.store.tables import alarms
from node.store.tables import inbox as inbox_table
from tests.chains import KE, NAME, Chain, acts, arrived, give, join, last_entry, make_chain, pass_on, send
from tests.nodes import DE, FR, IN, document, files_hold, history, import_document

ONWARD = {"tlp": "GREEN", "onward": "peers"}
SECRET = "The valve opens when it is told to close."


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    """FR, DE and IN in a line, with an agreement between each two neighbours."""
    made = make_chain(tmp_path)
    join(made, FR, DE)
    join(made, DE, IN)
    yield made
    made.close()


def withdrawals(chain: Chain) -> list[Withdrawal]:
    """What DE took back from IN."""
    bodies = [entries.read(data).body for data in history(chain[DE], IN) if isinstance(data, bytes)]
    return [body for body in bodies if isinstance(body, Withdrawal)]


def _state(state: InboxState) -> Callable[[Chain, int], None]:
    def change(chain: Chain, item: int) -> None:
        with write(chain[DE].engine) as tx:
            tx.execute(update(inbox_table).where(inbox_table.c.id == item).values(state=state))

    return change


def _end_of_grant(chain: Chain, _: int) -> None:
    chain.clock.move(days=31)


def _end_of_retention(chain: Chain, _: int) -> None:
    chain.clock.move(days=20)


def _end_of_agreement(chain: Chain, _: int) -> None:
    chain.clock.move(days=201)


def _distrust(chain: Chain, _: int) -> None:
    peers.distrust(chain[DE], FR)


def _withdrawn(chain: Chain, item: int) -> None:
    found = inbox.content(chain[DE], str(item)).item
    with write(chain[DE].engine) as tx:
        inbox.withdraw(tx, found.feed, (found.seq,))


AGAIN: dict[str, tuple[Callable[[Chain, int], None], bool]] = {
    "nothing happens": (lambda _, __: None, True),
    "a newer delivery came": (_state(InboxState.SUPERSEDED), True),
    "it is disputed": (_state(InboxState.EQUIVOCATION), False),
    "it is recalled": (_state(InboxState.RECALLED), False),
    "it has had its time": (_state(InboxState.EXPIRED), False),
    "its sender took it back": (_withdrawn, False),
    "the grant has ended": (_end_of_grant, False),
    "the retention has ended": (_end_of_retention, False),
    "the agreement has ended": (_end_of_agreement, False),
    "its origin is distrusted": (_distrust, False),
}


@pytest.mark.invariant("I11")
@pytest.mark.parametrize("name", sorted(AGAIN))
def test_what_has_not_gone_yet_is_judged_again_when_it_is_asked_for(tmp_path: Path, name: str) -> None:
    chain = make_chain(tmp_path)
    join(chain, FR, DE, retention_days="15" if name == "the retention has ended" else "199")
    join(chain, DE, IN)
    item = send(chain, notes=(SECRET,))
    give(chain, until=chain.clock() + timedelta(days=400 if name == "the agreement has ended" else 30))
    entry = pass_on(chain, item)
    change, goes = AGAIN[name]
    change(chain, item)
    counts = chain.sync(IN, DE).counts
    if goes:
        assert counts[Disposition.ADMITTED] == 1
        assert arrived(chain).item.origin == FR
    else:
        assert (counts[Disposition.ERASED], Disposition.ADMITTED in counts) == (1, False)
        assert withdrawals(chain) == [Withdrawal((entry.seq or 0,), "no-longer-permitted")]
        assert isinstance(history(chain[DE], IN)[entry.seq or 0], ErasedItem)
        assert not files_hold(chain[IN], SECRET.encode())
        assert [row.taken_back is not None for row in ledger.rows(chain[DE], IN)] == [True]
    chain.close()


@pytest.mark.invariant("I11")
def test_a_part_that_law_forbids_meanwhile_takes_the_entry_back(chain: Chain) -> None:
    item = send(chain, vulnerabilities=[{"notes": [{"category": "details", "text": SECRET}]}])
    give(chain)
    entry = pass_on(chain, item)
    under_law(
        chain, 'action == Action::"relay", resource) when { resource.categories.contains(Category::"technical") }'
    )
    assert chain.sync(IN, DE).counts[Disposition.ERASED] == 1
    assert withdrawals(chain) == [Withdrawal((entry.seq or 0,), "no-longer-permitted")]


def under_law(chain: Chain, forbidden: str) -> None:
    """DE lives under one more law from now on."""
    text = f"""
pack: test
version: 1
jurisdiction: DE
title: A law of this test
status: example
checked_on: 2026-11-21
source: none
rules: |
  @id("test/one") @basis("a law") @says("It is forbidden.")
  forbid (principal, {forbidden};
"""
    countries = [Country(code) for code in ("DE", "FR", "IN", "KE")]
    book = rule_book((load_pack(text, "test.yaml", countries),), countries)
    chain.nodes[DE] = replace(chain[DE], book=book)


# Taken back


@pytest.mark.invariant("I15")
def test_what_its_origin_takes_back_is_taken_back_from_everybody_to_whom_it_was_passed_on(tmp_path: Path) -> None:
    chain = make_chain(tmp_path, (FR, DE), (DE, IN), (DE, KE))
    join(chain, FR, DE)
    join(chain, DE, IN)
    join(chain, DE, KE)
    item = send(chain, notes=(SECRET,))
    for recipient in (IN, KE):
        give(chain, to=recipient)
        pass_on(chain, item, to=recipient)
    chain.sync(IN, DE)  # one has fetched it, the other has not
    assert files_hold(chain[IN], SECRET.encode())
    with write(chain[FR].engine) as tx:
        place = [row.seq for row in ledger.rows(chain[FR], DE)]
        releases.take_back(chain[FR], tx, chain[DE].card, tuple(place), "withdrawn-by-hand", by="alice")
    chain.sync(DE, FR)
    assert chain.sync(IN, DE).counts == {Disposition.CONTROL: 1}
    assert chain.sync(KE, DE).counts[Disposition.ERASED] == 1
    for name in (DE, IN, KE):
        assert inbox.items(chain[name]) == ()
        assert not files_hold(chain[name], SECRET.encode())
    assert [body.reason for body in withdrawals(chain)] == ["withdrawn-upstream"]
    assert len(ledger.rows(chain[DE], acts=(Act.WITHDRAWAL,))) == 2
    chain.close()


def test_a_person_takes_back_what_was_passed_on(chain: Chain) -> None:
    item = send(chain, notes=(SECRET,))
    give(chain)
    entry = pass_on(chain, item)
    chain.sync(IN, DE)
    with pytest.raises(NotFoundError, match="nothing that was passed on"):
        passing.withdraw(chain[DE], "OTHER", IN)
    with pytest.raises(NotFoundError, match="nothing that was passed on"):
        passing.withdraw(chain[DE], "9" * 30, IN)
    assert passing.withdraw(chain[DE], str(item), IN) == (entry.seq,)
    assert acts(chain, DE, "relay.withdraw")[0][1:3] == ("alice", IN)
    assert files_hold(chain[IN], SECRET.encode())
    assert chain.sync(IN, DE).counts == {Disposition.CONTROL: 1}
    assert inbox.items(chain[IN]) == ()
    assert not files_hold(chain[IN], SECRET.encode())
    assert [found.state for found in inbox.items(chain[DE])] == [InboxState.CURRENT]  # here it is used as before
    with pytest.raises(NotFoundError):
        passing.withdraw(chain[DE], NAME, IN)
    assert pass_on(chain, item).already is False  # and it can be passed on anew
    chain.nodes[DE] = replace(chain[DE], people={"alice": frozenset((Post.OPERATOR,))})
    with pytest.raises(NotAllowedError):
        passing.withdraw(chain[DE], NAME, IN)


def test_whoever_is_distrusted_finds_what_was_taken_back_when_it_is_trusted_again(chain: Chain) -> None:
    item = send(chain, notes=(SECRET,))
    give(chain)
    pass_on(chain, item)
    chain.sync(IN, DE)
    peers.distrust(chain[DE], IN)
    with write(chain[FR].engine) as tx:
        place = tuple(row.seq for row in ledger.rows(chain[FR], DE))
        releases.take_back(chain[FR], tx, chain[DE].card, place, "withdrawn-by-hand", by="alice")
    chain.sync(DE, FR)
    assert [body.reason for body in withdrawals(chain)] == ["withdrawn-upstream"]
    assert not files_hold(chain[DE], SECRET.encode())  # nothing of it is left here


@pytest.mark.invariant("I15")
def test_a_disputed_advisory_stays_as_evidence_and_is_taken_back_from_others_all_the_same(chain: Chain) -> None:
    item = send(chain)
    give(chain)
    pass_on(chain, item)
    chain.sync(IN, DE)
    _state(InboxState.EQUIVOCATION)(chain, item)
    with write(chain[FR].engine) as tx:
        place = tuple(row.seq for row in ledger.rows(chain[FR], DE))
        releases.take_back(chain[FR], tx, chain[DE].card, place, "withdrawn-by-hand", by="alice")
    chain.sync(DE, FR)
    chain.sync(IN, DE)
    (kept,) = inbox.items(chain[DE], every_state=True)
    assert (kept.state, inbox.items(chain[IN])) == (InboxState.EQUIVOCATION, ())


def test_a_peer_that_may_not_even_be_told_does_not_keep_the_others_waiting(chain: Chain) -> None:
    item = send(chain)
    give(chain)
    entry = pass_on(chain, item)
    under_law(chain, 'action == Action::"notify", resource)')
    with write(chain[FR].engine) as tx:
        place = tuple(row.seq for row in ledger.rows(chain[FR], DE))
        releases.take_back(chain[FR], tx, chain[DE].card, place, "withdrawn-by-hand", by="alice")
    assert chain.sync(DE, FR).counts[Disposition.CONTROL] == 1
    assert inbox.items(chain[DE]) == ()  # here it is gone
    with read(chain[DE].engine) as tx:
        assert tx.execute(select(alarms.c.subject)).scalars().all() == [f"{IN} withdrawal"]
    assert withdrawals(chain) == []
    with pytest.raises(HeldError):
        chain.sync(IN, DE)  # and it is not served
    assert last_entry(chain)[0] == "control"
    assert not isinstance(history(chain[DE], IN)[entry.seq or 0], ErasedItem)


# What a relay cannot do to what is there already


def test_a_relay_does_not_put_its_copy_in_the_place_of_the_origins_own(tmp_path: Path) -> None:
    chain = make_chain(tmp_path, (FR, DE), (DE, IN), (FR, IN))
    for one, other in chain.links:
        join(chain, one, other)
    item = send(chain, notes=("First.", "Second."))
    give(chain)
    pass_on(chain, item, "/csaf/document/notes/1")
    releases.release(chain[FR], NAME, (IN,))
    chain.sync(IN, FR)
    chain.sync(IN, DE)
    whole = arrived(chain)
    assert (whole.item.peer, len(whole.csaf["document"]["notes"])) == (FR, 2)
    chain.close()


def test_the_origins_own_takes_the_place_of_what_was_passed_on(tmp_path: Path) -> None:
    chain = make_chain(tmp_path, (FR, DE), (DE, IN), (FR, IN))
    for one, other in chain.links:
        join(chain, one, other)
    item = send(chain, notes=("First.", "Second."))
    give(chain)
    pass_on(chain, item, "/csaf/document/notes/1")
    chain.sync(IN, DE)
    assert arrived(chain).item.peer == DE
    releases.release(chain[FR], NAME, (IN,))
    chain.sync(IN, FR)
    assert arrived(chain).item.peer == FR
    chain.close()


def test_nodes_of_which_only_the_card_is_known_are_no_peers(chain: Chain) -> None:
    fr = chain[FR]
    assert [exchange.peer for exchange in overview.overview(fr).exchanges] == [DE]
    assert [card.node for card in tls.trusted_cards(fr)] == [DE]  # whose key opens a connection
    import_document(fr, document("X"))
    _, outcomes = releases.release(fr, "X")
    assert [outcome.peer for outcome in outcomes] == [DE]
    with pytest.raises(NotFoundError, match="only the card is known"):
        chain.sync(IN, FR)
    peers.enrol(fr, chain[IN].card_bytes)  # whoever was known by the card becomes a peer
    assert [card.node for card in tls.trusted_cards(fr)] == [DE, IN]


# What may be passed on at all


def test_only_what_is_current_is_passed_on(chain: Chain) -> None:
    item = send(chain)
    give(chain)
    feed = inbox.content(chain[DE], str(item)).item
    for state in (InboxState.SUPERSEDED, InboxState.EQUIVOCATION):
        _state(state)(chain, item)
        with pytest.raises(HeldError):
            pass_on(chain, item)
    _state(InboxState.CURRENT)(chain, item)
    with write(chain[DE].engine) as tx:
        inbox.withdraw(tx, feed.feed, (feed.seq,))
    with pytest.raises(HeldError, match="gone"):
        pass_on(chain, item)
    with pytest.raises(NotFoundError):
        pass_on(chain, 99)


def test_what_has_had_its_time_is_not_passed_on(tmp_path: Path) -> None:
    chain = make_chain(tmp_path)
    join(chain, FR, DE, retention_days="10")
    join(chain, DE, IN)
    item = send(chain)
    give(chain)
    chain.clock.move(days=10)
    with pytest.raises(HeldError, match="retention ended"):
        pass_on(chain, item)
    with read(chain[DE].engine) as tx, pytest.raises(HeldError, match="retention has ended"):
        relays.received(chain[DE], tx, item)
    chain.close()


def test_what_an_origin_signed_that_is_distrusted_now_stays_here(chain: Chain) -> None:
    item = send(chain)
    give(chain)
    peers.distrust(chain[DE], FR)
    with pytest.raises(HeldError, match="not trusted"):
        pass_on(chain, item)


def test_nothing_is_passed_back_or_to_nobody(chain: Chain) -> None:
    item = send(chain)
    give(chain)
    with pytest.raises(UsageError, match="not passed back"):
        pass_on(chain, item, to=FR)
    with pytest.raises(UsageError, match="say to whom"):
        passing.pass_on(chain[DE], str(item), ())
    with pytest.raises(NotFoundError):
        pass_on(chain, item, to=NodeId("cert.xx.example"))


def test_an_older_node_is_sent_nothing_that_is_passed_on(tmp_path: Path) -> None:
    chain = make_chain(tmp_path)
    join(chain, FR, DE, onward="peers")
    join(chain, DE, IN)
    item = send(chain, handling=ONWARD)
    peers.enrol(chain[DE], older(chain[IN]))
    outcome = pass_on(chain, item)
    assert (outcome.seq, "takes nothing that is passed on" in str(outcome.held)) == (None, True)
    chain.close()


def older(node: Node) -> bytes:
    """The next card of a node, which speaks the first protocol version alone."""
    return main.sign_card(replace(node.card, protocols=(1,), version=node.card.version + 1), node.keys)
