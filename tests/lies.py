"""Four ways in which a peer contradicts itself, each after an honest sync."""

import hashlib
from collections.abc import Callable
from dataclasses import replace

import pytest

from federation.entries import AgreementOffer, Delivery
from federation.errors import (
    ForkError,
    RollbackError,
    SuspectedForkError,
)
from federation.feed import PageBytes
from federation.model import Presentation
from node.exchange import sync
from node.home.context import Node
from node.peering import agreements
from node.records import alarms, incidents
from node.records.incidents import Incident
from tests.nodes import (
    AGREEMENT,
    DE,
    FR,
    ForgedFeed,
    LyingLink,
    World,
    append_by_hand,
    entry,
    history,
    issued,
    payload_of,
    release,
    signed_core,
    terms_for,
)

ORIGIN = f"{FR}/feeds/{DE}/1"


def rewritten(world: World) -> ForgedFeed:
    """FR tells another history of what DE holds already."""
    return ForgedFeed(world[FR], DE, [entry(ORIGIN, 0, AgreementOffer(b"rewritten")), *history(world[FR], DE)[1:]])


def fork(world: World) -> None:
    with pytest.raises(ForkError):
        sync.sync(world[DE], FR, rewritten(world))


def shortened(world: World) -> ForgedFeed:
    return ForgedFeed(world[FR], DE, history(world[FR], DE)[:-1])


def roll_back(world: World) -> None:
    world.clock.move(minutes=2)
    with pytest.raises(RollbackError):
        sync.sync(world[DE], FR, shortened(world))


def suspect(world: World) -> None:
    def drop(page: PageBytes) -> PageBytes:
        return replace(page, items=page.items[1:])

    release(world, "B", "C")
    with pytest.raises(SuspectedForkError):
        sync.sync(world[DE], FR, LyingLink(world.link(DE, FR), drop))


def sign_again(world: World, later_s: int = 1, name: str = "A") -> bytes:
    """FR signs another core under the revision of `name` and delivers it. Returns its digest."""
    fr = world[FR]
    presentation = issued(fr, name)
    payload = payload_of(presentation.core)
    payload["iat"] += later_s
    core = signed_core(fr, payload)
    digest = hashlib.sha256(core).digest()
    terms = replace(terms_for(fr, DE, name, agreements.find(fr, AGREEMENT)), core_digest=digest)
    append_by_hand(fr, DE, Delivery(Presentation(core, presentation.disclosures), terms))
    world.clock.move(minutes=1)
    world.sync(DE, FR)
    return digest


def equivocate(world: World) -> None:
    sign_again(world)


LIES: dict[str, tuple[Callable[[World], None], bool]] = {
    "FORK": (fork, True),
    "ROLLBACK": (roll_back, False),
    "SUSPECTED_FORK": (suspect, False),
    "EQUIVOCATION": (equivocate, True),
}


def only(node: Node) -> Incident:
    (found,) = incidents.all_incidents(node)
    return found


def open_alarms(node: Node) -> list[tuple[str, str]]:
    return [(alarm.kind.value, alarm.subject) for alarm in alarms.all_alarms(node)]
