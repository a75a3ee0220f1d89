"""Through a relay, over real gRPC: two countries without an agreement or a line between them, and a hub that both know.

What the origin signed verifies at the far end, with code that is not ours too; a recall reaches it and its answer comes
back. Then six ways in which a relay could launder what it was given. Each is told as a story: what is honest, that it
works, the attack, and a receiver in which nothing has changed but a row that names what was wrong.
"""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from jwcrypto.jwk import JWK
from sd_jwt.verifier import SDJWTVerifier
from sqlalchemy import func, select

from federation import handling, sdjwt
from federation.base64url import b64url
from federation.entries import Delivery
from federation.model import NodeId, Onward, Role
from federation.recall import Reason
from federation.statement import Kind
from node.desk import inbox
from node.exchange import sync
from node.peering import agreements, peers
from node.records import ledger
from node.rpc.client import PeerLink
from node.sharing import answers, passing, recalls, relays, releases, statements
from node.sharing.answers import HolderState
from node.store.database import read
from node.store.tables import audit, in_entries, in_feeds
from node.store.tables import inbox as inbox_table
from tests.chains import KE, NAME, Chain, last_delivery, last_entry, make_chain, retagged
from tests.e2e.net import Net
from tests.nodes import DE, FR, IN, append_by_hand, document, files_hold, import_document, terms_text

ORIGIN, HUB, FAR, HUB2 = FR, DE, IN, KE
SECRET = "The valve opens when it is told to close."
NOTES = ("What is known.", SECRET)


def name_of(one: NodeId, other: NodeId) -> str:
    """What two neighbours call their agreement."""
    return "-".join(sorted((one.split(".")[1], other.split(".")[1])))


class Lines(Net):
    """A net in which neighbours alone are connected."""

    def pull(self, receiver: NodeId, sender: NodeId) -> sync.Report:
        """One sync over gRPC."""
        node = self.world[receiver]
        card = peers.trusted_card(node, sender)
        with PeerLink(node, replace(card, endpoint=self.addresses[sender])) as link:
            return sync.sync(node, sender, link)


@dataclass(frozen=True, slots=True)
class Figure:
    """The origin, its hub, the far end, and a second hub; advisories go from one neighbour to the next."""

    lines: Lines
    chain: Chain

    def __getitem__(self, name: NodeId) -> Any:
        return self.chain[name]

    def agree(self, one: NodeId, other: NodeId) -> None:
        """An agreement in force between two neighbours, carried by the feeds."""
        text = terms_text(self.chain, agreement=name_of(one, other), parties=f"[{one}, {other}]")
        held = agreements.propose(self[one], text, "agreement.yaml")
        self.lines.pull(other, one)
        agreements.countersign(self[other], held.agreement.digest.hex())
        self.lines.pull(one, other)

    def release(self, name: str = NAME) -> int:
        """The origin releases to the hub, under the handling that is usual: no onward sharing."""
        import_document(self[ORIGIN], document(name, notes=NOTES))
        releases.release(self[ORIGIN], name, (HUB,))
        self.lines.pull(HUB, ORIGIN)
        return next(item.id for item in inbox.items(self[HUB]) if item.name == name)

    def grant(self, name: str = NAME, *, relay: NodeId = HUB, to: NodeId = FAR, days: int = 30) -> relays.Given:
        """The origin lets a relay pass it on to one recipient, and the relay learns of it."""
        until = self.chain.clock() + timedelta(days=days)
        given, _ = relays.give(self[ORIGIN], name, relay, (to,), None, until)
        self.lines.pull(relay, ORIGIN)
        return given

    def pass_on(self, item: int, *, by: NodeId = HUB, to: NodeId = FAR) -> releases.Outcome:
        """The hub passes an item of its inbox on, and the recipient fetches it."""
        _, (outcome,) = passing.pass_on(self[by], str(item), (to,))
        self.lines.pull(to, by)
        return outcome

    def honest(self, item: int, given: relays.Given | None, *, by: NodeId = HUB, to: NodeId = FAR) -> Delivery:
        """What an honest hub would deliver of it."""
        found = inbox.content(self[by], str(item))
        sent = last_delivery(self.chain, found.item.peer, by)
        held = agreements.find(self[by], name_of(by, to))
        allowed = handling.read(found.handling)
        terms = handling.narrow(allowed, held.agreement, found.core_digest, to, self.chain.clock())
        return Delivery(sent.presentation, terms, given.grant.document if given else b"")

    def attack(self, body: Delivery, code: str, rules: list[str], *, by: NodeId = HUB, to: NodeId = FAR) -> None:
        """A hub appends what an honest one would not; the receiver refuses it by name, and nothing else changes."""
        self.lines.pull(to, by)
        before = self._state(to)
        seq = append_by_hand(self[by], to, body)
        report = self.lines.pull(to, by)
        assert report.counts.keys() <= {inbox.Disposition.REFUSED, inbox.Disposition.QUARANTINED}
        _, found, data = last_entry(self.chain, to, by)
        assert (found, data) == (code, None)
        assert not files_hold(self[to], SECRET.encode())
        self[to].engine.dispose()
        assert not files_hold(self[to], SECRET.encode())
        assert self._state(to) == before
        self.lines.pull(by, to)
        told = statements.all_kept(self[by])[-1].statement
        (entry,) = told.body["entries"]
        assert (told.kind, entry["seq"], entry["code"], entry["rules"]) == (Kind.REFUSAL, seq, code, rules)
        with read(self[to].engine) as tx:
            details = tx.execute(select(audit.c.detail).where(audit.c.subject == f"{by} {seq}")).scalars().all()
        assert details == [code]

    def _state(self, at: NodeId) -> list[Any]:
        """What a receiver works with, and all bytes that it holds of others."""
        with read(self[at].engine) as tx:
            kept = tx.execute(
                select(func.count()).select_from(in_entries).where(in_entries.c.data.is_not(None))
            ).scalar_one()
            held = tx.execute(select(inbox_table)).all()
            feeds = tx.execute(select(in_feeds.c.frozen)).scalars().all()
        return [kept, held, feeds, peers.all_peers(self[at]), agreements.all_held(self[at])]


@pytest.fixture
def figure(tmp_path: Path) -> Iterator[Figure]:
    """France, its hub in Germany, India at the far end; a second hub in Kenya knows all three."""
    links = ((ORIGIN, HUB), (HUB, FAR), (ORIGIN, HUB2), (HUB, HUB2), (HUB2, FAR))
    with ExitStack() as ends:
        chain = make_chain(tmp_path, *links)
        ends.callback(chain.close)
        made = Figure(Lines(chain, ends), chain)
        for name in chain.nodes:
            made.lines.serve(name)
        for one, other in links:
            made.agree(one, other)
        yield made


@pytest.mark.invariant("I5")
@pytest.mark.invariant("I14")
def test_the_origins_signature_verifies_at_the_far_end_with_code_of_others(figure: Figure) -> None:
    with pytest.raises(Exception, match="only the card is known"):
        figure.lines.pull(FAR, ORIGIN)  # there is no line between the two
    item = figure.release()
    figure.grant()
    outcome = figure.pass_on(item)
    (got,) = inbox.items(figure[FAR])
    found = inbox.content(figure[FAR], str(got.id))
    assert (got.origin, got.peer, found.csaf) == (ORIGIN, HUB, document(NAME, notes=NOTES))
    core, _ = sdjwt.parse(found.compact)
    kid = sdjwt.read_header_and_payload(core).kid
    public = next(key.public for key in figure[ORIGIN].card.keys if (key.role, key.kid) == (Role.ISSUE, kid))
    theirs = JWK(kty="OKP", crv="Ed25519", x=b64url(public))
    claims = SDJWTVerifier(found.compact, lambda _iss, _header: theirs).get_verified_payload()
    assert (claims["iss"], claims["csaf"]) == (ORIGIN, found.csaf)
    wrong = JWK(kty="OKP", crv="Ed25519", x=b64url(figure[HUB].card.keys[0].public))
    with pytest.raises(Exception, match=r"(?i)signature|verif"):
        SDJWTVerifier(found.compact, lambda _iss, _header: wrong).get_verified_payload()
    (row,) = ledger.rows(figure[HUB], FAR)
    assert (row.seq, row.facts["origin"], row.name) == (outcome.seq, ORIGIN, NAME)


@pytest.mark.invariant("I15")
def test_a_recall_reaches_the_far_end_through_the_hub_and_its_answer_comes_back(figure: Figure) -> None:
    item = figure.release()
    figure.grant()
    figure.pass_on(item)
    assert files_hold(figure[FAR], SECRET.encode())
    recalls.give(figure[ORIGIN], NAME, Reason.ERROR)
    figure.lines.pull(HUB, ORIGIN)
    figure.lines.pull(FAR, HUB)
    for name in (HUB, FAR):
        assert inbox.items(figure[name]) == ()
        assert not files_hold(figure[name], SECRET.encode())
    figure.lines.pull(HUB, FAR)
    figure.lines.pull(ORIGIN, HUB)
    (order,) = answers.status(figure[ORIGIN], NAME)
    settled = {holder.node: (holder.state, holder.via) for holder in order.holders}
    assert settled[HUB] == (HolderState.PURGED, HUB)
    assert settled[FAR] == (HolderState.PURGED, HUB)


@pytest.mark.invariant("I12")
def test_a_question_reaches_the_origin_through_the_hub_and_the_answer_comes_back(figure: Figure) -> None:
    item = figure.release()
    figure.grant()
    figure.pass_on(item)
    (got,) = inbox.items(figure[FAR])
    statements.say(figure[FAR], got.id, Kind.QUESTION, "Is version 4 hit as well?")
    figure.lines.pull(HUB, FAR)
    figure.lines.pull(ORIGIN, HUB)
    (question,) = statements.all_kept(figure[ORIGIN], NAME)
    statements.reply(figure[ORIGIN], question.number, "It is not.")
    figure.lines.pull(HUB, ORIGIN)
    figure.lines.pull(FAR, HUB)
    answer = statements.all_kept(figure[FAR], NAME)[-1]
    assert (answer.statement.author, answer.statement.body, answer.peer) == (ORIGIN, {"text": "It is not."}, HUB)


# Six ways to launder


@pytest.mark.invariant("I2")
@pytest.mark.invariant("I10")
def test_1_a_grant_is_stripped(figure: Figure) -> None:
    item = figure.release()
    given = figure.grant()
    honest = figure.honest(item, given)
    figure.attack(replace(honest, grant=b""), "NOT_ADMITTED", ["relay/no-grant"])
    _works(figure, honest)


@pytest.mark.invariant("I6")
@pytest.mark.invariant("I10")
def test_2_the_handling_is_tagged_anew(figure: Figure) -> None:
    item = figure.release()
    honest = figure.honest(item, figure.grant())
    core = retagged(honest.presentation.core, onward="peers", tlp="CLEAR")
    terms = replace(honest.terms, core_digest=hashlib.sha256(core).digest())
    for grant in (b"", honest.grant):
        body = Delivery(replace(honest.presentation, core=core), terms, grant)
        figure.attack(body, "BAD_SIGNATURE", [])
    _works(figure, honest)


@pytest.mark.invariant("I6")
@pytest.mark.invariant("I10")
def test_3_the_terms_are_widened(figure: Figure) -> None:
    item = figure.release()
    honest = figure.honest(item, figure.grant())
    figure.attack(replace(honest, terms=replace(honest.terms, onward=Onward.PEERS)), "BAD_TERMS", [])
    _works(figure, honest)


@pytest.mark.invariant("I11")
@pytest.mark.invariant("I10")
def test_4_the_grant_has_ended(figure: Figure) -> None:
    item = figure.release()
    honest = figure.honest(item, figure.grant(days=3))
    figure.chain.clock.move(days=3)
    figure.attack(honest, "BAD_GRANT", [])
    _works(figure, figure.honest(item, figure.grant(days=9)))


@pytest.mark.invariant("I2")
@pytest.mark.invariant("I10")
def test_5_the_grant_is_for_another_recipient(figure: Figure) -> None:
    item = figure.release()
    given = figure.grant(to=FAR)
    honest = figure.honest(item, given, to=HUB2)
    figure.attack(honest, "BAD_GRANT", [], to=HUB2)
    figure.pass_on(item)
    assert [found.origin for found in inbox.items(figure[FAR])] == [ORIGIN]


@pytest.mark.invariant("I2")
@pytest.mark.invariant("I10")
def test_6_what_one_hub_passed_on_the_next_passes_on_again(figure: Figure) -> None:
    item = figure.release()
    first = figure.grant(to=HUB2)
    figure.pass_on(item, to=HUB2)
    (copy,) = inbox.items(figure[HUB2])
    assert copy.peer == HUB
    body = figure.honest(copy.id, first, by=HUB2, to=FAR)
    figure.attack(body, "BAD_GRANT", [], by=HUB2)
    figure.attack(replace(body, grant=b""), "NOT_ADMITTED", ["relay/no-grant"], by=HUB2)
    figure.pass_on(copy.id, by=HUB2)  # an honest one does not even try
    assert inbox.items(figure[FAR]) == ()
    figure.grant(relay=HUB2, to=FAR)  # and with a grant of its own it may
    figure.pass_on(copy.id, by=HUB2)
    (got,) = inbox.items(figure[FAR])
    assert (got.origin, got.peer) == (ORIGIN, HUB2)


def _works(figure: Figure, honest: Delivery) -> None:
    """The positive control: the same, unchanged, is taken."""
    append_by_hand(figure[HUB], FAR, honest)
    figure.lines.pull(FAR, HUB)
    (got,) = inbox.items(figure[FAR])
    assert (got.origin, got.peer) == (ORIGIN, HUB)
    assert files_hold(figure[FAR], SECRET.encode())
