"""What one peer gets of one advisory, and why: agreements, handling, law, time, and products that need their tree."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cedarpy
import pycountry
import pytest

from federation.agreement import Agreement, from_yaml
from federation.errors import NotAdmittedError, PolicyError
from federation.model import (
    Category,
    Country,
    Decision,
    Element,
    Form,
    Handling,
    NodeId,
    Onward,
    Purpose,
    Tier,
    Tlp,
)
from federation.policy.compile import permits_of
from federation.policy.decide import decide, may_store
from federation.policy.engine import RuleBook, rule_book
from federation.policy.explain import by_rule, explain
from federation.policy.facts import Place, Question, Situation, situation
from federation.policy.packs import load_pack
from federation.policy.rules import load
from federation.policy.schema import Action, schema_text

COUNTRIES = tuple(Country(c.alpha_2) for c in pycountry.countries)
GDPR = (Path(__file__).parents[2] / "config" / "packs" / "eu-gdpr.yaml").read_text(encoding="utf-8")
FR, IN, KE = NodeId("cert.fr.example"), NodeId("cert.in.example"), NodeId("cert.ke.example")
NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)

TERMS = """
agreement: fr-in
version: 1
parties: [cert.fr.example, cert.in.example]
valid_from: "2026-01-01T00:00:00Z"
valid_until: "2027-01-01T00:00:00Z"
sunset_review: "2026-12-01T00:00:00Z"
purposes: [remediation]
grants:
  - id: basics
    from: [cert.fr.example]
    tlp: [CLEAR, GREEN, AMBER]
    tiers: [standard, sensitive]
    share:
      {identification: full, technical: full, product: full, remediation: full, personal: full, exploit: generalised}
"""
HANDLING = Handling(
    tlp=Tlp.GREEN,
    home=Country("FR"),
    storage=None,
    onward=Onward.NONE,
    purposes=frozenset((Purpose.REMEDIATION, Purpose.DETECTION)),
    retain_until=None,
    embargo_until=None,
    tier=Tier.STANDARD,
    recipients=None,
)


def agreement(old: str = "", new: str = "") -> Agreement:
    assert old in TERMS
    return from_yaml(TERMS.replace(old, new) if old else TERMS, "fr-in.yaml")


def element(path: str, *categories: Category, general: bool = True, full: bool = True, needs: bool = False) -> Element:
    return Element(
        path=path,
        categories=frozenset(categories),
        full=f"{path}:full" if full else None,
        generalised=f"{path}:general" if general else None,
        parents=(),
        needs_products=needs,
    )


TITLE = element("/csaf/document/title", Category.IDENTIFICATION)
EXPLOIT = element("/csaf/vulnerabilities/0/notes/1", Category.EXPLOIT)
NAME = element("/csaf/document/acknowledgments/0/names", Category.PERSONAL)
VICTIM = element("/csaf/document/notes/2", Category.VICTIM)
TREE = element("/csaf/product_tree", Category.PRODUCT)
STATUS = element("/csaf/vulnerabilities/0/product_status", Category.TECHNICAL, needs=True)
UNLABELLED = element("/csaf/x")


def book(*packs: str) -> RuleBook:
    return rule_book((load_pack(text, "pack", COUNTRIES) for text in packs), COUNTRIES)


def decided(elements: list[Element], **changes: Any) -> Decision:
    given: dict[str, Any] = {
        "elements": elements,
        "handling": HANDLING,
        "origin": FR,
        "sender": FR,
        "recipient": IN,
        "recipient_country": Country("IN"),
        "agreement": agreement(),
        "book": book(),
        "now": NOW,
    }
    return decide(**(given | changes))


def decided_situation() -> Situation:
    here, there = Place(Country("FR"), frozenset()), Place(Country("IN"), frozenset())
    return situation(
        handling=HANDLING,
        origin=FR,
        sender=FR,
        sender_place=here,
        recipient=IN,
        recipient_place=there,
        home=here,
        safeguards=frozenset(),
        now=NOW,
    )


def forms(decision: Decision) -> list[Form]:
    return [d.form for d in decision.elements]


def ids(decision: Decision) -> list[list[str]]:
    return [[rule.id for rule in d.rules] for d in decision.elements]


def test_each_element_goes_in_the_fullest_form_that_its_clause_allows() -> None:
    terms = agreement()
    decision = decided([TITLE, EXPLOIT, VICTIM], agreement=terms)
    assert forms(decision) == [Form.FULL, Form.GENERALISED, Form.WITHHELD]
    assert ids(decision) == [["fr-in/1#basics:full"], ["no-permit"], ["no-permit"]]
    assert decision.elements[0].rules[0].basis == "agreement fr-in version 1, clause basics"
    assert "exploit in full" in decision.elements[1].rules[0].says
    assert decision.agreement_digest == terms.digest
    assert decision.alarms == ()
    assert decision.shares_anything


def test_what_was_general_from_the_start_leaves_whole_when_its_full_form_may() -> None:
    only_general = element("/csaf/document/title", Category.IDENTIFICATION, full=False)
    decision = decided([only_general])
    assert forms(decision) == [Form.FULL]
    assert ids(decision) == [["fr-in/1#basics:full"]]


@pytest.mark.invariant("I2")
def test_an_element_without_a_general_form_or_any_form_is_withheld() -> None:
    bare = element("/csaf/a", Category.EXPLOIT, general=False)
    nothing = element("/csaf/b", Category.TECHNICAL, general=False, full=False)
    decision = decided([bare, nothing])
    assert forms(decision) == [Form.WITHHELD, Form.WITHHELD]
    assert ids(decision) == [["no-permit"], ["no-form"]]


@pytest.mark.invariant("I2")
def test_a_permit_must_cover_every_category_of_an_element() -> None:
    assert forms(decided([element("/csaf/a", Category.TECHNICAL, Category.VICTIM)])) == [Form.WITHHELD]
    assert forms(decided([element("/csaf/a", Category.TECHNICAL, Category.EXPLOIT)])) == [Form.GENERALISED]


@pytest.mark.invariant("I2")
def test_an_element_without_a_label_is_withheld() -> None:
    decision = decided([UNLABELLED])
    assert forms(decision) == [Form.WITHHELD]
    assert ids(decision) == [["handling/unlabelled"]]


@pytest.mark.invariant("I2")
@pytest.mark.parametrize(
    "changes",
    [
        {"agreement": None},
        {"now": datetime(2027, 1, 1, tzinfo=UTC)},
        {"now": datetime(2025, 12, 31, 23, 59, 59, tzinfo=UTC)},
        {"recipient": KE, "recipient_country": Country("KE")},
        {"sender": KE, "origin": KE},
    ],
)
def test_without_an_agreement_in_force_between_the_two_nothing_leaves(changes: dict[str, Any]) -> None:
    assert decided([TITLE]).shares_anything
    decision = decided([TITLE, VICTIM], **changes)
    assert forms(decision) == [Form.WITHHELD, Form.WITHHELD]
    assert ids(decision) == [["no-agreement"], ["no-agreement"]]
    assert decision.agreement_digest is None


@pytest.mark.invariant("I2")
@pytest.mark.parametrize(
    "changes",
    [
        {"handling": replace(HANDLING, tlp=Tlp.AMBER_STRICT)},  # no clause shares that label
        {"handling": replace(HANDLING, tier=Tier.DUAL_USE)},
        {"handling": replace(HANDLING, purposes=frozenset((Purpose.RESEARCH,)))},
        {"agreement": agreement("purposes: [remediation]", "purposes: [remediation]\nstorage: [FR]")},
        {"agreement": replace(agreement(), storage=frozenset())},
        {"agreement": agreement("    from: [cert.fr.example]", "    from: [cert.in.example]")},
        {"agreement": agreement("    from: [cert.fr.example]", "    to: [cert.fr.example]")},
    ],
)
def test_outside_the_clause_there_is_no_permit(changes: dict[str, Any]) -> None:
    assert ids(decided([TITLE], **changes)) == [["no-permit"]]


@pytest.mark.invariant("I2")
def test_a_permit_never_covers_an_entry_of_no_category() -> None:
    # no built-in forbid stands in the way of storing here: the permit itself has to refuse
    facts = decided_situation()
    permits = permits_of(agreement(), FR, IN)
    assert book().ask(Question(Action.STORE, frozenset((Category.TECHNICAL,)), Form.FULL, facts), permits).allowed
    assert not book().ask(Question(Action.STORE, frozenset(), Form.FULL, facts), permits).allowed


@pytest.mark.parametrize(
    ("handling", "expected"),
    [
        (replace(HANDLING, storage=frozenset((Country("IN"),))), []),
        (replace(HANDLING, storage=frozenset((Country("FR"),))), ["handling/storage"]),
        (replace(HANDLING, recipients=frozenset((IN,))), []),
        (replace(HANDLING, recipients=frozenset((KE,))), ["handling/recipients"]),
    ],
)
def test_the_handling_of_the_origin_beats_the_agreement(handling: Handling, expected: list[str]) -> None:
    decision = decided([TITLE], handling=handling)
    assert [i for i in ids(decision)[0] if not i.startswith("fr-in/")] == expected
    assert forms(decision) == [Form.WITHHELD if expected else Form.FULL]


@pytest.mark.invariant("I3")
def test_the_law_withholds_what_the_agreement_shares_until_the_agreement_brings_a_safeguard() -> None:
    law = book(GDPR)
    # honest: no law pack, and the name goes
    assert forms(decided([NAME])) == [Form.FULL]
    # the law: personal data to a country without an adequacy decision goes as a role only
    decision = decided([NAME], book=law)
    assert forms(decision) == [Form.GENERALISED]
    assert ids(decision) == [["eu-gdpr/transfer"]]
    assert decision.elements[0].rules[0].basis == "Regulation (EU) 2016/679, Art. 44-46"
    # a safeguard of Article 46 in the agreement lifts it; one that no law knows does not
    held = agreement("purposes: [remediation]", "purposes: [remediation]\nsafeguards: [gdpr-46-2-c]")
    assert forms(decided([NAME], book=law, agreement=held)) == [Form.FULL]
    vain = agreement("purposes: [remediation]", "purposes: [remediation]\nsafeguards: [a-promise]")
    assert forms(decided([NAME], book=law, agreement=vain)) == [Form.GENERALISED]
    # adequate, or not from Europe at all: no objection
    assert forms(decided([NAME], book=law, recipient_country=Country("NZ"))) == [Form.FULL]
    assert forms(decided([NAME], book=law, handling=replace(HANDLING, home=Country("KE")))) == [Form.FULL]
    # Canada's decision covers businesses, and a CERT is none
    assert forms(decided([NAME], book=law, recipient_country=Country("CA"))) == [Form.GENERALISED]


@pytest.mark.invariant("I2")
def test_a_relay_needs_the_origin_s_word_and_stands_under_its_own_law() -> None:
    onward = replace(HANDLING, onward=Onward.PEERS, home=Country("KE"))
    relayed: dict[str, Any] = {"origin": KE, "handling": onward, "sender_country": Country("FR")}
    assert forms(decided([TITLE], **relayed)) == [Form.FULL]
    # no onward sharing, or an embargo: the relay is refused
    decision = decided([TITLE], **(relayed | {"handling": replace(onward, onward=Onward.NONE)}))
    assert ids(decision) == [["handling/relay-onward"]]
    decision = decided([TITLE], **(relayed | {"handling": replace(onward, embargo_until=NOW + HOUR)}))
    assert ids(decision) == [["handling/embargo"]]
    # a name from Kenya that a French node passes on leaves Europe
    assert forms(decided([NAME], book=book(GDPR), **relayed)) == [Form.GENERALISED]
    # a relay whose jurisdiction nobody knows shares nothing
    decision = decided([TITLE], **(relayed | {"sender_country": None}))
    assert ids(decision) == [["no-sender-country"]]


def test_what_refers_to_products_waits_for_their_definitions() -> None:
    assert forms(decided([TREE, STATUS])) == [Form.FULL, Form.FULL]
    # a generalised tree defines them too
    general = agreement("product: full", "product: generalised")
    assert forms(decided([TREE, STATUS], agreement=general)) == [Form.GENERALISED, Form.FULL]
    # without the tree the status stays
    none = agreement("product: full, ", "")
    decision = decided([TREE, STATUS, TITLE], agreement=none)
    assert forms(decision) == [Form.WITHHELD, Form.WITHHELD, Form.FULL]
    assert (decision.elements[1].element, ids(decision)[1]) == (STATUS, ["needs-products"])


@pytest.mark.invariant("I11")
def test_time_alone_changes_a_decision_and_says_when() -> None:
    ends = datetime(2026, 11, 21, 12, tzinfo=UTC)
    kept = replace(HANDLING, retain_until=ends)
    before = decided([TITLE], handling=kept)
    assert forms(before) == [Form.FULL]
    assert before.next_change_at == ends
    # the instant before and the instant itself
    assert forms(decided([TITLE], handling=kept, now=ends - timedelta(microseconds=1))) == [Form.FULL]
    after = decided([TITLE], handling=kept, now=ends)
    assert ids(after) == [["handling/expired"]]
    assert after.next_change_at == datetime(2027, 1, 1, tzinfo=UTC)  # the agreement ends
    assert decided([TITLE], now=datetime(2027, 1, 1, tzinfo=UTC)).next_change_at is None
    # lists of the law have dates too: the United Kingdom's adequacy ends with the 27th
    long_ago = agreement("2027-01-01", "2040-01-01")
    british = decided([NAME], agreement=long_ago, book=book(GDPR), recipient_country=Country("GB"))
    assert (forms(british), british.next_change_at) == ([Form.FULL], datetime(2031, 12, 28, tzinfo=UTC))
    later = decided(
        [NAME],
        agreement=long_ago,
        book=book(GDPR),
        recipient_country=Country("GB"),
        now=datetime(2031, 12, 28, tzinfo=UTC),
    )
    assert forms(later) == [Form.GENERALISED]


@pytest.mark.invariant("I3")
def test_an_engine_that_fails_withholds_with_an_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = cedarpy.AuthzResult({"decision": "NoDecision", "diagnostics": {"errors": ["fault"]}})
    monkeypatch.setattr(cedarpy, "is_authorized", lambda *_: nothing)
    decision = decided([TITLE])
    assert ids(decision) == [["no-decision"]]
    assert forms(decision) == [Form.WITHHELD]
    assert decision.alarms == ("the policy engine gave no decision",)


def test_a_duty_is_reported_even_without_an_agreement() -> None:
    duty = """
pack: xx
version: 1
jurisdiction: FR
title: A duty
status: example
checked_on: 2026-11-21
source: nowhere
duties: |
  @id("xx/tell") @basis("Article 1") @says("India must be told.")
  permit (principal, action == Action::"disclose", resource)
  when { principal.jurisdiction == Country::"IN" && resource.categories.contains(Category::"remediation") };
"""
    fix = element("/csaf/vulnerabilities/0/remediations/0", Category.REMEDIATION)
    assert [r.id for r in decided([fix], book=book(duty)).owed] == ["xx/tell"]
    assert [r.id for r in decided([fix], book=book(duty), agreement=None).owed] == ["xx/tell"]
    assert decided([TITLE], book=book(duty)).owed == ()


def stored(kinds: dict[Form, frozenset[Category]], **changes: Any) -> list[str]:
    given: dict[str, Any] = {
        "categories_by_form": kinds,
        "handling": HANDLING,
        "origin": FR,
        "sender": FR,
        "me": IN,
        "my_country": Country("IN"),
        "agreement": agreement(),
        "book": book(),
        "now": NOW,
    }
    return [rule.id for rule in may_store(**(given | changes)).rules]


def refused(attempt: Callable[[], object]) -> tuple[str, ...]:
    with pytest.raises(NotAdmittedError) as refusal:
        attempt()
    return refusal.value.rules


def test_the_receiver_keeps_what_the_same_clauses_let_the_sender_disclose() -> None:
    technical, exploit = frozenset((Category.TECHNICAL, Category.PRODUCT)), frozenset((Category.EXPLOIT,))
    assert stored({Form.FULL: technical, Form.GENERALISED: exploit}) == [
        "fr-in/1#basics:full",
        "fr-in/1#basics:generalised",
    ]
    assert refused(lambda: stored({Form.FULL: technical | exploit})) == ()
    assert refused(lambda: stored({})) == ()
    assert refused(lambda: stored({Form.FULL: frozenset()})) == ()
    assert refused(lambda: stored({Form.FULL: technical}, agreement=None)) == ()
    assert refused(lambda: stored({Form.FULL: technical}, sender=KE, origin=KE)) == ()
    assert refused(lambda: stored({Form.FULL: technical}, sender=FR, origin=KE)) == ()
    expired = replace(HANDLING, retain_until=NOW)
    assert refused(lambda: stored({Form.FULL: technical}, handling=expired)) == ("handling/expired",)


def test_several_clauses_may_cover_an_entry_together() -> None:
    second = """  - id: more
    from: [cert.fr.example]
    tlp: [GREEN]
    share: {identification: full, severity: full}
"""
    terms = from_yaml(TERMS + second, "fr-in.yaml")
    both = frozenset((Category.TECHNICAL, Category.SEVERITY))
    assert stored({Form.FULL: both}, agreement=terms) == ["fr-in/1#more:full", "fr-in/1#basics:full"]


@pytest.mark.invariant("I10")
def test_what_local_law_forbids_to_store_is_refused_by_rule() -> None:
    law = """
pack: xx
version: 1
jurisdiction: IN
title: A law
status: example
checked_on: 2026-11-21
source: nowhere
rules: |
  @id("xx/no") @basis("Article 1") @says("No exploits beside products.")
  forbid (principal, action == Action::"store", resource)
  when { resource.categories.containsAll([Category::"technical", Category::"product"]) };
"""
    kinds = {Form.FULL: frozenset((Category.TECHNICAL, Category.PRODUCT))}
    assert stored(kinds)
    # the forbid needs both categories at once: it is asked of everything together
    assert refused(lambda: stored(kinds, book=book(law))) == ("xx/no",)


def test_compiled_permits_pass_strict_validation() -> None:
    schema = cedarpy.Schema.from_str(schema_text(COUNTRIES))
    terms = agreement("purposes: [remediation]", "purposes: [remediation]\nstorage: [FR, IN]")
    rules = permits_of(terms, FR, IN)
    assert load(rules.text, "agreement", "permit", schema).rules == rules.rules
    assert list(rules.rules) == ["fr-in/1#basics:full", "fr-in/1#basics:generalised"]
    assert permits_of(terms, IN, FR).rules == {}


def test_a_name_cannot_break_out_of_a_permit() -> None:
    terms = agreement()
    evil = replace(terms.grants[0], id='x") permit (principal, action, resource); @id("y')
    with pytest.raises(PolicyError, match="cannot stand in a rule"):
        permits_of(replace(terms, grants=(evil,)), FR, IN)


def test_explain_puts_what_is_withheld_first_and_counts_as_people_do() -> None:
    notes = [element(f"/csaf/document/notes/{n}", Category.VICTIM) for n in (10, 9)]
    decision = decided([TITLE, *notes, EXPLOIT])
    rows = explain(decision)
    assert [(row.path, row.form) for row in rows] == [
        ("/csaf/document/notes/9", Form.WITHHELD),
        ("/csaf/document/notes/10", Form.WITHHELD),
        (EXPLOIT.path, Form.GENERALISED),
        (TITLE.path, Form.FULL),
    ]
    assert rows[0].categories == ("victim",)
    assert rows[-1].basis == "agreement fr-in version 1, clause basics"
    assert (rows[-1].rule_id, rows[-1].says) == ("fr-in/1#basics:full", decision.elements[0].rules[0].says)
    assert [paths for _, paths in by_rule(decision)] == [
        ("/csaf/document/notes/9", "/csaf/document/notes/10"),
        (EXPLOIT.path,),
        (TITLE.path,),
    ]
