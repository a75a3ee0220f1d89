"""The last hop: what a relay delivers is kept only if its origin lets it go as far as here. The relay is the attacker.

It has its real keys, an agreement in force with the receiver, and everything that the origin sent it.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from federation import grant, handling
from federation.entries import Delivery
from federation.model import Attribution, Category, Country, Presentation, Purpose, Role, instant_text
from federation.policy.engine import rule_book
from federation.policy.packs import load_pack
from node.desk import inbox
from node.desk.inbox import Disposition
from node.peering import agreements, peers
from node.peering.agreements import Held
from node.sharing import advisories, statements
from node.store.database import read
from tests.chains import (
    KE,
    NAME,
    Chain,
    arrived,
    give,
    join,
    last_delivery,
    last_entry,
    make_chain,
    pass_on,
    retagged,
    send,
)
from tests.nodes import DE, FR, IN, append_by_hand, files_hold, payload_of, signed_core

SECRET = "The valve opens when it is told to close."
DEEP = [{"notes": [{"category": "details", "text": SECRET}]}]
NOT_ADMITTED, QUARANTINED = ("refused", "NOT_ADMITTED", None), "quarantined"


@dataclass(frozen=True, slots=True)
class Hop:
    """A chain, the agreement of its last hop, and what the relay would deliver if it were honest."""

    chain: Chain
    held: Held
    honest: Delivery

    def deliver(self, body: Delivery) -> tuple[str, str | None, bytes | None]:
        """What becomes at IN of what DE appends by hand: outcome, code, stored bytes."""
        append_by_hand(self.chain[DE], IN, body)
        self.chain.sync(IN, DE)
        return last_entry(self.chain)

    def told(self) -> tuple[str, list[str]]:
        """Code and rules that IN has told DE of the newest entry that it did not take."""
        self.chain.sync(DE, IN)
        body = statements.all_kept(self.chain[DE])[-1].statement.body
        return body["entries"][-1]["code"], body["entries"][-1]["rules"]

    def signed(self, **changed: Any) -> bytes:
        """A grant by FR as the honest one, with other parts."""
        return signed_grant(self.chain, hashlib.sha256(self.honest.presentation.core).digest(), **changed)


def signed_grant(chain: Chain, core_digest: bytes, **changed: Any) -> bytes:
    author = changed.pop("author", FR)
    parts = {
        "core_digest": core_digest,
        "relay": DE,
        "recipients": (IN,),
        "categories": tuple(Category),
        "until": chain.clock() + timedelta(days=30),
        **changed,
    }
    signer = chain[author].keys.signer(Role.ISSUE, chain[author].card, chain.clock())
    return grant.sign(author, **parts, kid=signer.kid, sign_bytes=signer.sign).document


def everything(chain: Chain, held: Held, **given: Any) -> Delivery:
    """All that DE has of the newest advisory of FR, as a delivery to IN under their agreement; no grant."""
    presentation = last_delivery(chain, FR, DE).presentation
    allowed = handling.read(payload_of(presentation.core)["handling"])
    digest = hashlib.sha256(presentation.core).digest()
    return Delivery(presentation, handling.narrow(allowed, held.agreement, digest, IN, chain.clock()), **given)


@pytest.fixture
def hop(tmp_path: Path) -> Iterator[Hop]:
    chain = make_chain(tmp_path)
    join(chain, FR, DE)
    held = join(chain, DE, IN)
    send(chain, vulnerabilities=DEEP)
    body = everything(chain, held)
    made = Hop(chain, held, body)
    yield replace(made, honest=replace(body, grant=made.signed()))
    chain.close()


def under(tmp_path: Path, allowed: dict[str, Any], **terms: Any) -> Hop:
    """The same for an advisory with other handling, delivered with a grant."""
    chain = make_chain(tmp_path)
    join(chain, FR, DE, **terms)
    held = join(chain, DE, IN, **terms)
    send(chain, handling=allowed, vulnerabilities=DEEP)
    body = everything(chain, held)
    made = Hop(chain, held, body)
    return replace(made, honest=replace(body, grant=made.signed()))


def test_the_honest_delivery_is_kept(hop: Hop) -> None:
    assert hop.deliver(hop.honest)[:2] == ("admitted", None)
    assert files_hold(hop.chain[IN], SECRET.encode())


GRANTS: dict[str, tuple[str, Callable[[Hop], bytes]]] = {
    "for another relay": ("BAD_GRANT", lambda h: h.signed(relay=KE)),
    "for another recipient": ("BAD_GRANT", lambda h: h.signed(recipients=(KE, FR))),
    "for another core": ("BAD_GRANT", lambda h: signed_grant(h.chain, b"c" * 32)),
    "for less than what arrived": ("BAD_GRANT", lambda h: h.signed(categories=(Category.IDENTIFICATION,))),
    "that has ended": ("BAD_GRANT", lambda h: h.signed(until=h.chain.clock())),
    "by the relay itself": ("BAD_GRANT", lambda h: h.signed(author=DE)),
    "by the recipient": ("BAD_GRANT", lambda h: h.signed(author=IN)),
    "that is cut short": ("MALFORMED", lambda h: h.honest.grant[:-1]),
    "with other recipients": ("MALFORMED", lambda h: h.honest.grant.replace(b"payload", b"payloads")),
    "under a signature that does not hold": ("BAD_SIGNATURE", lambda h: _broken(h.honest.grant)),
}


def _broken(document: bytes) -> bytes:
    place = document.index(b'"signature":"') + 20
    return document[:place] + (b"A" if document[place : place + 1] != b"A" else b"B") + document[place + 1 :]


@pytest.mark.invariant("I2")
@pytest.mark.invariant("I10")
@pytest.mark.parametrize("name", sorted(GRANTS))
def test_a_grant_that_does_not_cover_it_is_named_and_nothing_is_kept(hop: Hop, name: str) -> None:
    code, forged = GRANTS[name]
    assert hop.deliver(replace(hop.honest, grant=forged(hop))) == (QUARANTINED, code, None)
    assert not files_hold(hop.chain[IN], SECRET.encode())
    assert inbox.items(hop.chain[IN], every_state=True) == ()
    assert hop.told() == (code, [])
    assert hop.deliver(hop.honest)[:2] == ("admitted", None)  # and the feed goes on


@pytest.mark.invariant("I2")
def test_without_a_grant_it_is_refused_by_its_rule(hop: Hop) -> None:
    assert hop.deliver(replace(hop.honest, grant=b"")) == NOT_ADMITTED
    assert not files_hold(hop.chain[IN], SECRET.encode())
    assert hop.told() == ("NOT_ADMITTED", ["relay/no-grant"])


@pytest.mark.invariant("I2")
def test_a_grant_is_checked_although_the_handling_needs_none(tmp_path: Path) -> None:
    hop = under(tmp_path, {"tlp": "GREEN", "onward": "peers"}, onward="peers")
    assert hop.deliver(replace(hop.honest, grant=hop.signed(relay=KE)))[1] == "BAD_GRANT"
    assert hop.deliver(replace(hop.honest, grant=b""))[:2] == ("admitted", None)
    hop.chain.close()


@pytest.mark.invariant("I3")
@pytest.mark.parametrize("allowed", [{"tlp": "AMBER+STRICT"}, {"tlp": "RED", "recipients": [DE, IN]}])
def test_red_and_amber_strict_are_never_passed_on(tmp_path: Path, allowed: dict[str, Any]) -> None:
    hop = under(tmp_path, allowed)
    assert hop.deliver(hop.honest) == NOT_ADMITTED
    assert hop.told() == ("NOT_ADMITTED", ["handling/relay-tlp"])
    hop.chain.close()


@pytest.mark.invariant("I11")
def test_nothing_is_taken_from_a_relay_while_its_embargo_lasts(tmp_path: Path) -> None:
    chain = make_chain(tmp_path)
    end = chain.clock().replace(microsecond=0) + timedelta(days=5)
    chain.close()
    hop = under(tmp_path / "hop", {"tlp": "GREEN", "embargo_until": instant_text(end)})
    assert hop.deliver(hop.honest) == NOT_ADMITTED
    assert hop.told() == ("NOT_ADMITTED", ["handling/embargo"])
    hop.chain.clock.now = end - timedelta(seconds=301)
    assert hop.deliver(hop.honest) == NOT_ADMITTED
    hop.chain.clock.now = end - timedelta(seconds=300)  # its clock may lead ours
    assert hop.deliver(hop.honest)[:2] == ("admitted", None)
    hop.chain.close()


def test_an_origin_needs_no_grant_and_sends_none(hop: Hop) -> None:
    chain = hop.chain
    name = "CERT-FR-2026-0002"
    send(chain, name)
    sent = last_delivery(chain, FR, DE)
    append_by_hand(chain[FR], DE, replace(sent, grant=signed_grant(chain, sent.terms.core_digest)))
    chain.sync(DE, FR)
    assert last_entry(chain, DE, FR)[:2] == (QUARANTINED, "MALFORMED")
    append_by_hand(chain[FR], DE, sent)
    chain.sync(DE, FR)
    assert last_entry(chain, DE, FR)[:2] == ("admitted", None)


@pytest.mark.invariant("I6")
@pytest.mark.parametrize("part", ["purposes", "retention", "storage", "recipient", "core", "attribution"])
def test_terms_of_the_last_hop_are_no_wider_than_handling_and_its_own_agreement(tmp_path: Path, part: str) -> None:
    hop = under(tmp_path, {"tlp": "GREEN", "storage": ["DE", "FR", "IN"]}, retention_days="10")
    wider: dict[str, dict[str, Any]] = {
        "purposes": {"purposes": frozenset(Purpose)},
        "retention": {"retain_until": None},
        "storage": {"storage": None},
        "recipient": {"recipient": KE},
        "core": {"core_digest": b"c" * 32},
        "attribution": {"attribution": Attribution.MUST_NOT},
    }
    assert hop.deliver(replace(hop.honest, terms=replace(hop.honest.terms, **wider[part]))) == (
        QUARANTINED,
        "BAD_TERMS",
        None,
    )
    assert not files_hold(hop.chain[IN], SECRET.encode())
    hop.chain.close()


@pytest.mark.invariant("I2")
def test_the_agreement_of_origin_and_relay_is_none_of_ours(hop: Hop) -> None:
    first = agreements.find(hop.chain[FR], "fr-de").agreement.digest
    assert hop.deliver(replace(hop.honest, terms=replace(hop.honest.terms, agreement_digest=first))) == NOT_ADMITTED


@pytest.mark.invariant("I6")
@pytest.mark.parametrize("changed", [{"onward": "peers"}, {"tlp": "CLEAR"}, {"purposes": ["research"]}])
def test_handling_that_was_changed_on_the_way_is_no_handling(hop: Hop, changed: dict[str, Any]) -> None:
    core = retagged(hop.honest.presentation.core, **changed)
    digest = hashlib.sha256(core).digest()
    body = Delivery(
        Presentation(core, hop.honest.presentation.disclosures),
        replace(hop.honest.terms, core_digest=digest),
        signed_grant(hop.chain, digest),
    )
    assert hop.deliver(body) == (QUARANTINED, "BAD_SIGNATURE", None)


@pytest.mark.invariant("I5")
def test_a_relay_cannot_add_a_part_or_issue_in_the_origins_name(hop: Hop) -> None:
    presentation = hop.honest.presentation
    more = Presentation(presentation.core, (*presentation.disclosures, b'["c2FsdA","extra","text"]'))
    assert hop.deliver(replace(hop.honest, presentation=more)) == (QUARANTINED, "BAD_SIGNATURE", None)
    core = signed_core(hop.chain[DE], payload_of(presentation.core))
    own = Presentation(core, presentation.disclosures)
    assert hop.deliver(replace(hop.honest, presentation=own)) == (QUARANTINED, "UNKNOWN_KEY", None)


@pytest.mark.invariant("I5")
def test_a_relay_may_withhold_whatever_it_likes(hop: Hop) -> None:
    presentation = hop.honest.presentation
    fewer = tuple(raw for raw in presentation.disclosures if SECRET.encode() not in raw)
    assert len(fewer) < len(presentation.disclosures)
    assert hop.deliver(replace(hop.honest, presentation=replace(presentation, disclosures=fewer)))[0] == "admitted"
    found = arrived(hop.chain)
    assert (found.item.origin, SECRET in str(found.csaf)) == (FR, False)


def test_an_origin_whose_card_is_not_known_is_quarantined_without_its_bytes(tmp_path: Path) -> None:
    chain = make_chain(tmp_path)
    join(chain, FR, DE)
    held = join(chain, DE, IN)
    peers.distrust(chain[IN], FR)  # as good as unknown
    send(chain, vulnerabilities=DEEP)
    body = everything(chain, held)
    hop = Hop(chain, held, body)
    assert hop.deliver(replace(body, grant=hop.signed())) == (QUARANTINED, "UNKNOWN_ORIGIN", None)
    assert not files_hold(chain[IN], SECRET.encode())
    chain.close()


@pytest.mark.invariant("I3")
def test_the_receivers_law_knows_from_which_country_it_came(hop: Hop) -> None:
    countries = [Country(code) for code in ("DE", "FR", "IN")]
    text = """
pack: test
version: 1
jurisdiction: IN
title: A law of this test
status: example
checked_on: 2026-11-21
source: none
rules: |
  @id("test/one") @basis("a law") @says("Nothing is taken from there.")
  forbid (principal, action == Action::"store", resource) when { resource.sender_country == Country::"DE" };
"""
    chain = hop.chain
    chain.nodes[IN] = replace(chain[IN], book=rule_book((load_pack(text, "test.yaml", countries),), countries))
    assert hop.deliver(hop.honest) == NOT_ADMITTED
    assert hop.told() == ("NOT_ADMITTED", ["test/one"])


@pytest.mark.invariant("I2")
@pytest.mark.invariant("I5")
def test_a_copy_of_one_relay_is_not_passed_on_by_the_next(tmp_path: Path) -> None:
    chain = make_chain(tmp_path, (FR, DE), (DE, IN), (IN, KE))
    for one, other in chain.links:
        join(chain, one, other)
    item = send(chain)
    give(chain)
    pass_on(chain, item)
    assert chain.sync(IN, DE).counts[Disposition.ADMITTED] == 1
    found = arrived(chain)
    outcome = pass_on(chain, found.item.id, to=KE, by=IN)
    assert outcome.seq is None  # an honest one does not
    held = agreements.find(chain[IN], "in-ke")
    with read(chain[FR].engine) as tx:
        _, own = advisories.own_advisory(chain[FR], NAME, tx)
    terms = handling.narrow(own.handling, held.agreement, own.core_digest, KE, chain.clock())
    append_by_hand(chain[IN], KE, replace(last_delivery(chain, DE, IN), terms=terms))
    chain.sync(KE, IN)
    assert last_entry(chain, KE, IN) == (QUARANTINED, "BAD_GRANT", None)
    chain.close()


def test_where_the_handling_lets_it_it_goes_from_relay_to_relay(tmp_path: Path) -> None:
    chain = make_chain(tmp_path, (FR, DE), (DE, IN), (IN, KE))
    for one, other in chain.links:
        join(chain, one, other, onward="peers")
    item = send(chain, handling={"tlp": "GREEN", "onward": "peers"})
    pass_on(chain, item)
    chain.sync(IN, DE)
    pass_on(chain, arrived(chain).item.id, to=KE, by=IN)
    chain.sync(KE, IN)
    assert (arrived(chain, KE).item.origin, arrived(chain, KE).item.peer) == (FR, IN)
    chain.close()
