"""Grants, and what a relay passes on: no more than origin, law, agreement and the terms of receipt allow together."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from federation import grant
from federation.entries import Granted
from federation.errors import HeldError, NotAllowedError, NotFoundError, UsageError
from federation.model import Attribution, Category, Form, Onward, Purpose, Role, instant_text
from federation.recall import Reason
from node.desk import inbox
from node.desk.inbox import Disposition
from node.home.people import Post
from node.peering import peers
from node.records import ledger
from node.sharing import passing, recalls, relays, releases
from node.sharing.relays import BY_NAME_ONLY
from node.store.database import write
from node.store.tables import agreements
from tests.chains import (
    KE,
    NAME,
    Chain,
    acts,
    arrived,
    give,
    join,
    last_delivery,
    last_entry,
    make_chain,
    pass_on,
    send,
)
from tests.nodes import DE, FR, IN, append_by_hand, document, history, import_document

NOTES = ("First.", "Second.")
ONWARD = {"tlp": "GREEN", "onward": "peers"}
TITLE, FIRST, SECOND = "/csaf/document/title", "/csaf/document/notes/0", "/csaf/document/notes/1"
DEEP_PATH = "/csaf/vulnerabilities/0/notes/0"
SOME = "[{id: some, tlp: [GREEN], share: {identification: full, technical: full, personal: generalised}}]"
DEEP = [{"category": "details", "text": "How deep it goes."}]
THANKS = [{"acknowledgments": [{"names": ["Maria Musterfrau"]}], "notes": DEEP}]


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    """FR, DE and IN in a line, with an agreement between each two neighbours."""
    made = make_chain(tmp_path)
    join(made, FR, DE)
    join(made, DE, IN)
    yield made
    made.close()


def forms(outcome: releases.Outcome) -> dict[str, Form]:
    return {decided.element.path: decided.form for decided in outcome.decision.elements}


def rules(outcome: releases.Outcome) -> set[str]:
    return {rule.id for decided in outcome.decision.elements for rule in decided.rules}


# Grants


def test_a_grant_reaches_its_relay_and_both_know_it(chain: Chain) -> None:
    send(chain)
    given = give(chain)
    assert (given.name, given.revision, given.by) == (NAME, 1, "alice")
    assert given.grant.categories == frozenset(Category) - BY_NAME_ONLY
    (at_relay,) = relays.all_grants(chain[DE])
    assert (at_relay.grant, at_relay.name, at_relay.by) == (given.grant, NAME, FR)
    assert relays.all_grants(chain[FR]) == (given,)
    assert acts(chain, FR, "grant.give")[0][1:3] == ("alice", NAME)
    assert acts(chain, DE, "grant.receive") == [("grant.receive", FR, FR, given.grant.core_digest.hex())]
    assert relays.all_grants(chain[IN]) == ()


def test_the_same_grant_again_changes_nothing(chain: Chain) -> None:
    send(chain)
    until = chain.clock() + timedelta(days=30)
    first, fresh = relays.give(chain[FR], NAME, DE, (IN,), None, until)
    before = len(history(chain[FR], DE))
    again, fresh_again = relays.give(chain[FR], NAME, DE, (IN,), None, until)
    assert (fresh, fresh_again, again) == (True, False, first)
    assert len(history(chain[FR], DE)) == before
    append_by_hand(chain[FR], DE, Granted(first.grant.document))  # a relay that is told twice keeps it once
    assert chain.sync(DE, FR).counts == {Disposition.CONTROL: 2}
    assert len(relays.all_grants(chain[DE])) == 1


GIVEN_WRONG: dict[str, tuple[type[Exception], str, Callable[[Chain], Any]]] = {
    "no such advisory": (NotFoundError, "was signed here", lambda c: give(c, "NONE")),
    "an end that has passed": (UsageError, "before it was given", lambda c: give(c, until=c.clock())),
    "a relay that is no neighbour": (NotFoundError, "exchanges with", lambda c: give(c, relay=IN, to=DE)),
    "a recipient that nobody knows": (UsageError, "--keys-only", lambda c: give(c, to=KE)),
    "the relay as a recipient": (UsageError, "names others", lambda c: give(c, to=DE)),
    "the origin as a recipient": (UsageError, "names others", lambda c: give(c, to=FR)),
}


@pytest.mark.parametrize("name", sorted(GIVEN_WRONG))
def test_what_cannot_be_granted_is_told_and_nothing_is_signed(chain: Chain, name: str) -> None:
    send(chain)
    error, words, act = GIVEN_WRONG[name]
    before = len(history(chain[FR], DE))
    with pytest.raises(error, match=words):
        act(chain)
    assert (len(history(chain[FR], DE)), relays.all_grants(chain[FR])) == (before, ())


def test_a_draft_is_not_granted_and_a_recalled_revision_neither(chain: Chain) -> None:
    import_document(chain[FR], document("DRAFT"))
    with pytest.raises(NotFoundError, match="was signed here"):
        give(chain, "DRAFT")
    send(chain)
    recalls.give(chain[FR], NAME, Reason.ERROR)
    with pytest.raises(UsageError, match="recalled"):
        give(chain)


@pytest.mark.parametrize(
    ("handling", "rule"),
    [
        ({"tlp": "RED", "recipients": [DE, IN]}, "handling/relay-tlp"),
        ({"tlp": "AMBER+STRICT"}, "handling/relay-tlp"),
        ({"tlp": "GREEN", "recipients": [DE]}, "handling/recipients"),
        ({"tlp": "GREEN", "storage": ["DE", "FR"]}, "handling/storage"),
    ],
)
@pytest.mark.invariant("I3")
def test_what_the_handling_forbids_is_not_granted(chain: Chain, handling: dict[str, Any], rule: str) -> None:
    send(chain, handling=handling)
    with pytest.raises(HeldError, match=rule):
        give(chain)
    assert relays.all_grants(chain[FR]) == ()


@pytest.mark.invariant("I3")
def test_the_origins_own_law_is_asked_before_it_grants(tmp_path: Path) -> None:
    chain = make_chain(tmp_path, packs=("eu-gdpr",))
    join(chain, FR, DE)
    send(chain)
    with pytest.raises(HeldError, match=r"personal may not be passed on to cert\.in\.example.*eu-gdpr/transfer"):
        give(chain, categories=[Category.IDENTIFICATION, Category.PERSONAL])
    assert relays.all_grants(chain[FR]) == ()
    given = give(chain, categories=[Category.IDENTIFICATION, Category.VICTIM])
    assert given.grant.categories == {Category.IDENTIFICATION, Category.VICTIM}
    chain.close()


def test_a_grant_may_be_given_while_an_embargo_lasts_and_the_relay_waits(chain: Chain) -> None:
    end = chain.clock() + timedelta(days=5)
    item = send(chain, handling={"tlp": "GREEN", "embargo_until": instant_text(end)})
    give(chain)
    outcome = pass_on(chain, item)
    assert (outcome.presented, rules(outcome)) == (None, {"handling/embargo"})
    chain.clock.now = end
    assert pass_on(chain, item).seq is not None


def test_whoever_is_no_analyst_grants_and_passes_on_nothing(chain: Chain) -> None:
    item = send(chain)
    give(chain)
    for name in (FR, DE):
        chain.nodes[name] = replace(chain[name], people={"alice": frozenset((Post.AUDITOR, Post.OPERATOR))})
    with pytest.raises(NotAllowedError):
        give(chain, until=chain.clock() + timedelta(days=3))
    with pytest.raises(NotAllowedError):
        pass_on(chain, item)
    passing.preview(chain[DE], str(item), (IN,))


@pytest.mark.parametrize("wrong", ["relay", "bringer", "signature", "bytes"])
def test_a_relay_takes_a_grant_for_itself_from_the_origin_and_no_other(tmp_path: Path, wrong: str) -> None:
    chain = make_chain(tmp_path, (FR, DE), (DE, IN), (FR, KE))
    fr = chain[FR]
    signer = fr.keys.signer(Role.ISSUE, fr.card, chain.clock())
    relay = KE if wrong == "relay" else DE
    sign = (lambda _: bytes(64)) if wrong == "signature" else signer.sign
    made = grant.sign(
        FR,
        b"c" * 32,
        relay,
        (IN,),
        [Category.TECHNICAL],
        chain.clock() + timedelta(days=1),
        kid=signer.kid,
        sign_bytes=sign,
    )
    sender = IN if wrong == "bringer" else FR
    append_by_hand(chain[sender], DE, Granted(b"{}" if wrong == "bytes" else made.document))
    assert chain.sync(DE, sender).counts == {Disposition.QUARANTINED: 1}
    codes = {"relay": "BAD_GRANT", "bringer": "BAD_GRANT", "signature": "BAD_SIGNATURE", "bytes": "MALFORMED"}
    assert last_entry(chain, DE, sender)[1] == codes[wrong]
    assert relays.all_grants(chain[DE]) == ()
    chain.close()


# Passing on


@pytest.mark.invariant("I2")
def test_without_a_grant_nothing_is_passed_on_and_the_rule_says_why(chain: Chain) -> None:
    item = send(chain)
    before = len(history(chain[DE], IN))
    outcome = pass_on(chain, item)
    assert (outcome.presented, outcome.seq, rules(outcome)) == (None, None, {"handling/relay-onward"})
    assert (len(history(chain[DE], IN)), ledger.rows(chain[DE])) == (before, ())


@pytest.mark.invariant("I5")
@pytest.mark.invariant("I14")
def test_with_a_grant_it_arrives_as_its_origin_signed_it_and_the_ledger_says_so(chain: Chain) -> None:
    item = send(chain, notes=NOTES)
    given = give(chain)
    outcome = pass_on(chain, item)
    assert chain.sync(IN, DE).counts[Disposition.ADMITTED] == 1
    found = arrived(chain)
    assert (found.item.origin, found.item.peer, found.item.name) == (FR, DE, NAME)
    assert found.csaf == inbox.content(chain[DE], str(item)).csaf
    assert found.core_digest == given.grant.core_digest
    sent = last_delivery(chain, DE, IN)
    assert sent.presentation.core == last_delivery(chain, FR, DE).presentation.core
    assert sent.grant == given.grant.document
    (row,) = ledger.rows(chain[DE], IN)
    assert (row.seq, row.by, row.facts["origin"], row.name, row.revision) == (outcome.seq, "alice", FR, NAME, 1)
    assert row.facts["core_digest"] == given.grant.core_digest.hex()
    assert {path for path, form, _ in row.elements if form is Form.FULL} >= {TITLE, SECOND}
    assert acts(chain, DE, "relay") == [("relay", "alice", NAME, f"{IN} {outcome.seq}")]


def test_what_its_handling_lets_go_on_needs_no_grant(tmp_path: Path) -> None:
    chain = make_chain(tmp_path)
    join(chain, FR, DE, onward="peers")
    join(chain, DE, IN)
    item = send(chain, handling=ONWARD)
    assert pass_on(chain, item).seq is not None
    assert last_delivery(chain, DE, IN).grant == b""
    chain.sync(IN, DE)
    assert arrived(chain).terms.onward is Onward.NONE  # that agreement lets it go no further
    chain.close()


@pytest.mark.invariant("I6")
def test_terms_that_end_the_way_here_count_for_more_than_the_handling(chain: Chain) -> None:
    item = send(chain, handling=ONWARD)  # the agreement with FR allows no onward sharing
    assert rules(pass_on(chain, item)) == {"handling/relay-onward"}
    give(chain)
    assert pass_on(chain, item).seq is not None
    chain.sync(IN, DE)
    assert arrived(chain).terms.onward is Onward.NONE


@pytest.mark.invariant("I2")
def test_the_agreement_that_counts_is_between_relay_and_recipient(tmp_path: Path) -> None:
    chain = make_chain(tmp_path)
    join(chain, FR, DE)
    item = send(chain)
    give(chain)
    assert rules(pass_on(chain, item)) == {"no-agreement"}
    join(chain, DE, IN, grants=f"[{{id: back, from: [{IN}], tlp: [GREEN], share: {{identification: full}}}}]")
    assert pass_on(chain, item).presented is None
    chain.close()


@pytest.mark.invariant("I3")
def test_the_relays_own_law_is_asked(tmp_path: Path) -> None:
    chain = make_chain(tmp_path)
    chain.nodes[DE] = replace(chain[DE], book=make_chain(tmp_path / "law", packs=("eu-gdpr",))[DE].book)
    join(chain, FR, DE)
    join(chain, DE, IN)
    item = send(chain, vulnerabilities=THANKS)
    give(chain, categories=frozenset(Category))
    outcome = pass_on(chain, item)
    held = [d for d in outcome.decision.elements if Category.PERSONAL in d.element.categories]
    assert [d.form for d in held] == [Form.WITHHELD]
    assert {rule.id for rule in held[0].rules} == {"eu-gdpr/transfer"}
    assert b"Musterfrau" not in b"".join(last_delivery(chain, DE, IN).presentation.disclosures)
    chain.close()


def test_a_part_passes_in_the_form_in_which_it_came_or_not_at_all(tmp_path: Path) -> None:
    chain = make_chain(tmp_path)
    join(chain, FR, DE, grants=SOME)
    join(chain, DE, IN)
    item = send(chain, vulnerabilities=THANKS)
    give(chain, categories=frozenset(Category))
    outcome = pass_on(chain, item)
    (person,) = (d for d in outcome.decision.elements if Category.PERSONAL in d.element.categories)
    assert (person.form, person.element.full) == (Form.GENERALISED, None)  # although this agreement shares it in full
    chain.close()


def test_a_part_that_came_whole_is_not_made_general_here(tmp_path: Path) -> None:
    chain = make_chain(tmp_path)
    join(chain, FR, DE)
    join(chain, DE, IN, grants=SOME)
    item = send(chain, vulnerabilities=THANKS)
    give(chain, categories=frozenset(Category))
    outcome = pass_on(chain, item)
    (person,) = (d for d in outcome.decision.elements if Category.PERSONAL in d.element.categories)
    assert (person.form, person.element.generalised) == (Form.WITHHELD, None)
    assert outcome.seq is not None
    chain.close()


def test_the_grant_says_which_kinds_go_on(chain: Chain) -> None:
    item = send(chain, notes=NOTES, vulnerabilities=[{"notes": DEEP}])
    give(chain, categories=[Category.IDENTIFICATION])
    outcome = pass_on(chain, item)
    kept = {d.element.path: [rule.id for rule in d.rules] for d in outcome.decision.elements if d.form is Form.WITHHELD}
    assert kept == {DEEP_PATH: ["relay/grant"]}
    chain.sync(IN, DE)
    assert "vulnerabilities" not in arrived(chain).csaf


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (SECOND, {SECOND}),
        ("/csaf/document/notes/", {FIRST, SECOND}),
        ("technical", {DEEP_PATH}),
        ("/csaf/vulnerabilities", {DEEP_PATH}),
    ],
)
def test_a_person_keeps_parts_back_by_kind_or_by_place(chain: Chain, named: str, expected: set[str]) -> None:
    item = send(chain, notes=NOTES, vulnerabilities=[{"notes": DEEP}])
    give(chain)
    outcome = pass_on(chain, item, named)
    back = {d.element.path for d in outcome.decision.elements if [r.id for r in d.rules] == ["relay/by-hand"]}
    assert back == expected
    chain.sync(IN, DE)
    assert ("vulnerabilities" in arrived(chain).csaf) is (DEEP_PATH not in expected)
    assert len(arrived(chain).csaf["document"].get("notes", ())) == 2 - len(expected & {FIRST, SECOND})


def test_what_nobody_has_cannot_be_kept_back(chain: Chain) -> None:
    item = send(chain)
    give(chain)
    for named in ("everything", "/csaf/document/note", "/csaf/vulnerabilities", "victims", "Technical"):
        with pytest.raises(UsageError, match="no such part"):
            pass_on(chain, item, named)


@pytest.mark.invariant("I4")
def test_what_is_kept_back_is_searched_for_in_the_rest(chain: Chain) -> None:
    secret = "The valve opens when it is told to close."
    item = send(chain, notes=("What is known.", secret, f"They say: {secret}"))
    give(chain)
    outcome = pass_on(chain, item, SECOND)
    assert outcome.presented is not None
    assert outcome.presented.narrowed == ("/csaf/document/notes/2",)
    assert secret.encode() not in b"".join(last_delivery(chain, DE, IN).presentation.disclosures)


@pytest.mark.invariant("I4")
def test_what_is_passed_on_is_valid_csaf_or_stays(chain: Chain) -> None:
    item = send(chain)
    give(chain)
    outcome = pass_on(chain, item, TITLE)  # no document lacks one
    assert (outcome.presented, outcome.seq) == (None, None)
    assert outcome.held is not None
    assert "not valid CSAF" in outcome.held


@pytest.mark.invariant("I4")
def test_what_came_as_no_valid_csaf_goes_no_further(chain: Chain) -> None:
    """A receiver takes what was signed as it is; that all of it may pass is no reason to believe that it is whole."""
    item = send(chain)
    sent = last_delivery(chain, FR, DE)
    raws = sent.presentation.disclosures
    less = tuple(raw for raw in raws if b'"title","A flaw"' not in raw and b'"category","csaf_base"' not in raw)
    assert len(less) == len(raws) - 2
    append_by_hand(chain[FR], DE, replace(sent, presentation=replace(sent.presentation, disclosures=less)))
    chain.sync(DE, FR)
    (careless,) = (found.id for found in inbox.items(chain[DE]) if found.id != item)
    give(chain)
    outcome = pass_on(chain, careless)
    assert outcome.seq is None
    assert "not valid CSAF" in str(outcome.held)


@pytest.mark.invariant("I6")
def test_terms_are_no_wider_than_those_of_receipt(tmp_path: Path) -> None:
    chain = make_chain(tmp_path)
    join(chain, FR, DE, purposes="[remediation]", storage="[DE, FR, IN]", retention_days="10")
    join(chain, DE, IN, purposes="[detection, remediation]", retention_days="90")
    item = send(chain)
    give(chain)
    end = inbox.content(chain[DE], str(item)).terms.retain_until
    assert end is not None
    chain.clock.move(days=2)
    assert pass_on(chain, item).seq is not None
    chain.sync(IN, DE)
    terms = arrived(chain).terms
    assert (set(terms.purposes), set(terms.storage or ())) == ({Purpose.REMEDIATION}, {"DE", "FR", "IN"})
    assert terms.retain_until == end
    chain.close()


@pytest.mark.invariant("I6")
@pytest.mark.parametrize("part", ["storage", "purposes"])
def test_what_the_terms_of_receipt_exclude_is_not_passed_on(tmp_path: Path, part: str) -> None:
    chain = make_chain(tmp_path)
    join(chain, FR, DE, **{"storage": {"storage": "[DE, FR]"}, "purposes": {"purposes": "[remediation]"}}[part])
    join(chain, DE, IN, **({"purposes": "[detection]"} if part == "purposes" else {}))
    item = send(chain)
    give(chain)
    outcome = pass_on(chain, item)
    assert (outcome.presented, rules(outcome)) == (
        None,
        {"handling/storage"} if part == "storage" else {"no-permit"},
    )
    chain.close()


@pytest.mark.parametrize(
    ("received", "agreed", "passes"),
    [
        (Attribution.MAY, Attribution.MUST, True),
        (Attribution.MUST, Attribution.MUST, True),
        (Attribution.MUST, Attribution.MAY, False),
        (Attribution.MUST_NOT, Attribution.MUST_NOT, True),
        (Attribution.MUST_NOT, Attribution.MAY, False),
    ],
)
@pytest.mark.invariant("I6")
def test_what_may_be_said_of_the_provider_is_not_widened(
    tmp_path: Path, received: Attribution, agreed: Attribution, passes: bool
) -> None:
    chain = make_chain(tmp_path)
    join(chain, FR, DE, attribution=received.value)
    join(chain, DE, IN, attribution=agreed.value)
    item = send(chain)
    give(chain)
    outcome = pass_on(chain, item)
    assert (outcome.seq is not None) is passes
    assert passes or "provider's name" in str(outcome.held)
    chain.close()


def test_whoever_must_not_tell_the_provider_passes_on_by_its_grant_alone(tmp_path: Path) -> None:
    chain = make_chain(tmp_path)
    join(chain, FR, DE, onward="peers", attribution="must_not")
    join(chain, DE, IN, attribution="must_not")
    item = send(chain, handling=ONWARD)
    assert rules(pass_on(chain, item)) == {"handling/relay-onward"}
    give(chain)
    assert pass_on(chain, item).seq is not None
    chain.close()


def test_passing_it_on_again_changes_nothing_unless_it_was_refused(tmp_path: Path) -> None:
    chain = make_chain(tmp_path)
    join(chain, FR, DE)
    join(chain, DE, IN)
    item = send(chain)
    give(chain)
    peers.distrust(chain[IN], FR)  # so IN cannot verify it
    first = pass_on(chain, item)
    assert (pass_on(chain, item).seq, pass_on(chain, item).already) == (first.seq, True)
    chain.sync(IN, DE)
    assert last_entry(chain)[1:] == ("UNKNOWN_ORIGIN", None)
    chain.sync(DE, IN)  # IN says so
    again = pass_on(chain, item)
    assert (again.already, again.seq) == (False, (first.seq or 0) + 1)
    chain.close()


def test_a_release_that_was_refused_is_released_again_too(chain: Chain) -> None:
    with write(chain[DE].engine) as tx:
        tx.execute(update(agreements).values(complete=0))  # as if a signature had never come
    import_document(chain[FR], document(NAME))
    _, (first,) = releases.release(chain[FR], NAME, (DE,))
    assert chain.sync(DE, FR).counts[Disposition.REFUSED] == 1
    _, (again,) = releases.release(chain[FR], NAME, (DE,))
    assert (again.already, again.seq) == (True, first.seq)
    chain.sync(FR, DE)
    _, (again,) = releases.release(chain[FR], NAME, (DE,))
    assert (again.already, again.seq) == (False, (first.seq or 0) + 1)
