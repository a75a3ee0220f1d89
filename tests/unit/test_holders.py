"""Who is left with an earlier revision behind a relay: the relay knows, and the origin is told through whom."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from federation.errors import NotFoundError, UsageError
from federation.model import NodeId
from federation.recall import Reason
from node.desk import inbox
from node.operation import overview
from node.sharing import holders, passing, recalls, releases, revisions
from node.sharing.holders import Beyond, OldHolder
from tests.chains import KE, NAME, Chain, give, join, make_chain, pass_on, send
from tests.nodes import DE, FR, IN

ONWARD = {"tlp": "GREEN", "onward": "peers"}
THERE = f"{FR}/{NAME}"


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    """FR to DE to IN, and what DE was sent it may pass on where the handling lets it."""
    made = make_chain(tmp_path)
    join(made, FR, DE, onward="peers")
    join(made, DE, IN, onward="peers")
    yield made
    made.close()


def revised(chain: Chain, *to: NodeId) -> int:
    """FR releases the next revision; returns its number in the inbox of DE."""
    revisions.revise_from_issued(chain[FR], NAME)
    releases.release(chain[FR], NAME, to or (DE,))
    chain.sync(DE, FR)
    return max(item.id for item in inbox.items(chain[DE], every_state=True))


def unsettled(chain: Chain, at: NodeId) -> tuple[int, tuple[str, ...]]:
    found = overview.overview(chain[at])
    return found.unsettled, found.unsettled_of


# At the relay


SETTLED: dict[str, Callable[[Chain, int], object]] = {
    "the new one is passed on": pass_on,
    "the earlier one is taken back": lambda chain, _: passing.withdraw(chain[DE], THERE, IN),
    "the origin recalls the earlier one": lambda chain, _: recalls.give(chain[FR], NAME, Reason.REPLACED, (1,)),
    "the origin recalls the new one": lambda chain, _: recalls.give(chain[FR], NAME, Reason.ERROR, (2,)),
    "the origin takes both back": lambda chain, _: releases.withdraw(chain[FR], NAME, DE),
}


@pytest.mark.invariant("I15")
@pytest.mark.parametrize("way", SETTLED)
def test_a_relay_is_told_who_is_left_with_what_it_passed_on_until_that_is_settled(chain: Chain, way: str) -> None:
    pass_on(chain, send(chain, handling=ONWARD))
    assert holders.old_holders(chain[DE], THERE) == ()
    assert unsettled(chain, DE) == (0, ())
    later = revised(chain)
    assert holders.old_holders(chain[DE], THERE) == (OldHolder(THERE, 2, IN, (1,), False, None),)
    chain.sync(IN, DE)
    assert holders.old_holders(chain[DE], THERE) == (OldHolder(THERE, 2, IN, (1,), True, None),)
    assert unsettled(chain, DE) == (1, (THERE,))
    SETTLED[way](chain, later)
    chain.sync(DE, FR)
    assert holders.old_holders(chain[DE], THERE) == ()
    assert unsettled(chain, DE) == (0, ())


@pytest.mark.invariant("I15")
def test_every_peer_of_a_relay_counts_for_itself_and_by_all_that_it_holds(tmp_path: Path) -> None:
    chain = make_chain(tmp_path, (FR, DE), (DE, IN), (DE, KE))
    for other in (FR, IN, KE):
        join(chain, DE, other, onward="peers")
    first = send(chain, handling=ONWARD)
    for recipient in (IN, KE):
        pass_on(chain, first, to=recipient)
    pass_on(chain, revised(chain), to=KE)
    assert [(h.peer, h.revisions) for h in holders.old_holders(chain[DE], THERE)] == [(IN, (1,))]
    revised(chain)
    found = [(h.peer, h.revisions, h.newest) for h in holders.old_holders(chain[DE], THERE)]
    assert found == [(IN, (1,), 3), (KE, (1, 2), 3)]
    assert unsettled(chain, DE) == (2, (THERE,))
    chain.close()


def test_a_relay_neither_recalls_nor_records_that_somebody_keeps_it(chain: Chain) -> None:
    pass_on(chain, send(chain, handling=ONWARD))
    revised(chain)
    for act in (
        lambda: holders.leave(chain[DE], THERE, IN, "an archive"),
        lambda: holders.recall_from_old_holders(chain[DE], THERE),
    ):
        with pytest.raises(UsageError, match=f"apostille relay {THERE} --to PEER"):
            act()
    for name in (f"{DE}/{NAME}", f"{FR}/Z", NAME):
        with pytest.raises(NotFoundError, match="no advisory is called"):
            holders.old_holders(chain[DE], name)
    assert unsettled(chain, DE) == (1, (THERE,))


# At the origin


@pytest.mark.invariant("I15")
def test_the_origin_is_told_through_whom_others_may_be_left_with_an_earlier_one(chain: Chain) -> None:
    pass_on(chain, send(chain, handling=ONWARD))
    assert holders.beyond(chain[FR], NAME) == ()  # there is no later one
    revised(chain)
    assert holders.old_holders(chain[FR], NAME) == ()
    assert holders.beyond(chain[FR], NAME) == (Beyond(2, DE, (1,), True, ()),)
    assert unsettled(chain, FR) == (0, ())  # perhaps nobody is
    assert holders.beyond(chain[DE], THERE) == ()
    recalls.give(chain[FR], NAME, Reason.REPLACED, (1,))
    assert holders.beyond(chain[FR], NAME) == ()


@pytest.mark.invariant("I15")
def test_so_is_whom_a_grant_names(chain: Chain) -> None:
    send(chain)
    give(chain)
    revised(chain)
    assert holders.beyond(chain[FR], NAME) == (Beyond(2, DE, (1,), False, (IN,)),)
    give(chain)  # for the new one: nobody is left with that
    assert holders.beyond(chain[FR], NAME) == (Beyond(2, DE, (1,), False, (IN,)),)
    releases.withdraw(chain[FR], NAME, DE, 1)
    assert holders.beyond(chain[FR], NAME) == ()


def test_whoever_was_sent_the_new_one_is_not_left_behind_a_relay(tmp_path: Path) -> None:
    chain = make_chain(tmp_path, (FR, DE), (DE, IN), (FR, IN))
    join(chain, FR, DE)
    join(chain, FR, IN)
    send(chain)
    give(chain)
    revised(chain)
    assert [beyond.granted for beyond in holders.beyond(chain[FR], NAME)] == [(IN,)]
    releases.release(chain[FR], NAME, (IN,))
    assert holders.beyond(chain[FR], NAME) == ()
    chain.close()


def test_what_may_not_be_passed_on_stays_with_whom_it_was_sent_to(chain: Chain) -> None:
    send(chain)
    revised(chain)
    assert holders.beyond(chain[FR], NAME) == ()
