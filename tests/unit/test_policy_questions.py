"""What the rule book is asked: every fact of a sending, a keeping, a grant and a notice, each in its own place."""

from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from types import MappingProxyType
from typing import Any, cast

import cedarpy
import pytest

from federation.agreement import from_yaml
from federation.errors import HeldError, NotAdmittedError, PolicyError
from federation.model import Category, Country, Element, Form, Handling, NodeId, Onward, Purpose, Tier, Tlp
from federation.policy.compile import permits_of
from federation.policy.decide import decide, forbidden_onward, may_notify, may_store
from federation.policy.engine import Answer, RuleBook, rule_book
from federation.policy.facts import ControlQuestion, Place, Question, Situation
from federation.policy.packs import Group, LawPack, Member
from federation.policy.rules import RuleSet, parse
from federation.policy.schema import Action, Control

ORIGIN, RELAY, RECIPIENT = NodeId("cert.ke.example"), NodeId("cert.fr.example"), NodeId("cert.in.example")
KE, FR, IN = Country("KE"), Country("FR"), Country("IN")
NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
TODAY = NOW.date()
GROUPS = MappingProxyType(
    {
        "old": Group("x", (Member(KE, date(2020, 1, 1), TODAY), Member(FR, date(2020, 1, 1), date(2026, 11, 20)))),
        "new": Group("x", (Member(FR, TODAY, None), Member(IN, date(2026, 11, 22), None))),
        "far": Group("x", (Member(IN, TODAY, TODAY),)),
    }
)
PLACES = {
    KE: Place(KE, frozenset(("old",))),
    FR: Place(FR, frozenset(("new",))),
    IN: Place(IN, frozenset(("far",))),
}
HANDLING = Handling(
    tlp=Tlp.GREEN,
    home=KE,
    storage=frozenset((IN,)),
    onward=Onward.PEERS,
    purposes=frozenset((Purpose.REMEDIATION, Purpose.DETECTION)),
    retain_until=NOW + timedelta(days=2),
    embargo_until=NOW,  # it ends at that very instant
    tier=Tier.SENSITIVE,
    recipients=frozenset((RECIPIENT,)),
)
TERMS = """
agreement: all
version: 1
parties: [cert.ke.example, cert.fr.example, cert.in.example]
valid_from: "2026-01-01T00:00:00Z"
valid_until: "2027-01-01T00:00:00Z"
sunset_review: "2026-12-01T00:00:00Z"
purposes: [remediation]
safeguards: [promise]
grants:
  - id: one
    tlp: [GREEN]
    tiers: [sensitive]
    share: {identification: full, technical: full, product: full, personal: generalised}
"""
AGREEMENT = from_yaml(TERMS, "all.yaml")
FACTS = Situation(
    recipient=RECIPIENT,
    recipient_place=PLACES[IN],
    sender=RELAY,
    sender_place=PLACES[FR],
    origin=ORIGIN,
    home=PLACES[KE],
    tlp=Tlp.GREEN,
    tier=Tier.SENSITIVE,
    onward=Onward.PEERS,
    purposes=HANDLING.purposes,
    names_recipients=True,
    named=True,
    storage_allows=True,
    embargoed=False,
    expired=False,
    safeguards=frozenset(("promise",)),
)
TECHNICAL, PERSONAL = frozenset((Category.TECHNICAL,)), frozenset((Category.PERSONAL,))
PARTS = [
    Element("/csaf/document/title", TECHNICAL, "f", "g", (), False),
    Element("/csaf/document/acknowledgments/0", PERSONAL, "f", "g", (), False),
]


def rule_text(effect: str, name: str, when: str, action: str = "disclose") -> str:
    return (
        f'@id("{name}") @basis("a law") @says("A sentence.")\n'
        f'{effect} (principal, action == Action::"{action}", resource) when {{ {when} }};\n'
    )


def pack(forbids: str = "", duties: str = "") -> LawPack:
    return LawPack(
        "test", 1, None, "t", "example", date(2026, 1, 1), "s", GROUPS, MappingProxyType({"promise": "a promise"}),
        parse(forbids, "t", "forbid"), parse(duties, "t", "permit"),
    )  # fmt: skip


@dataclass
class Asked:
    """A rule book that answers as the real one does, and remembers what it was asked."""

    book: RuleBook
    questions: list[Question | ControlQuestion] = field(default_factory=list)
    owed_questions: list[Question] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.book, name)

    def ask(self, question: Question, permits: RuleSet) -> Answer:
        self.questions.append(question)
        return self.book.ask(question, permits)

    def ask_control(self, question: ControlQuestion) -> Answer:
        self.questions.append(question)
        return self.book.ask_control(question)

    def owed(self, question: Question) -> Answer:
        self.owed_questions.append(question)
        return self.book.owed(question)

    def as_book(self) -> RuleBook:
        return cast("RuleBook", self)


def asked(forbids: str = "", duties: str = "") -> Asked:
    return Asked(rule_book((pack(forbids, duties),), (KE, FR, IN)))


def test_a_relay_is_asked_about_both_acts_with_every_fact_in_its_place() -> None:
    book = asked(duties=rule_text("permit", "test/duty", "resource.storage_allows"))
    decision = decide(PARTS, HANDLING, ORIGIN, RELAY, RECIPIENT, IN, AGREEMENT, book.as_book(), NOW, sender_country=FR)
    assert [d.form for d in decision.elements] == [Form.FULL, Form.GENERALISED]
    assert book.questions == [
        Question(action, categories, form, FACTS)
        for categories, form in ((TECHNICAL, Form.FULL), (PERSONAL, Form.FULL), (PERSONAL, Form.GENERALISED))
        for action in (Action.DISCLOSE, Action.RELAY)
    ]
    assert book.owed_questions == [Question(Action.DISCLOSE, c, Form.FULL, FACTS) for c in (PERSONAL, TECHNICAL)]
    assert [rule.id for rule in decision.owed] == ["test/duty"]
    # KE leaves its group at midnight, IN leaves one and enters another; FR's are over, or have begun
    assert decision.next_change_at == datetime(2026, 11, 22, tzinfo=UTC)


@pytest.mark.parametrize(("country", "changes"), [(KE, 2), (FR, 5), (IN, 3)])
def test_every_country_concerned_counts_for_when_an_answer_may_change(country: Country, changes: int) -> None:
    """The origin's home, the relay's country, the recipient's: each alone has a day on which its group ends."""
    groups = MappingProxyType({"g": Group("x", (Member(country, date(2020, 1, 1), TODAY + timedelta(changes)),))})
    book = rule_book((replace(pack(), groups=groups),), (KE, FR, IN))
    ends, sooner = datetime(2026, 11, 22, tzinfo=UTC) + timedelta(days=changes), NOW + timedelta(hours=1)
    for handling, expected in (
        (replace(HANDLING, retain_until=None), ends),
        (replace(HANDLING, retain_until=sooner), sooner),
        (replace(HANDLING, retain_until=None, embargo_until=sooner), sooner),
    ):
        decision = decide(PARTS, handling, ORIGIN, RELAY, RECIPIENT, IN, AGREEMENT, book, NOW, sender_country=FR)
        assert decision.next_change_at == expected


def test_without_an_agreement_duties_are_asked_with_the_same_facts_but_its_safeguards() -> None:
    book = asked(duties=rule_text("permit", "test/duty", "resource.storage_allows"))
    decision = decide(PARTS[:1], HANDLING, ORIGIN, ORIGIN, RECIPIENT, IN, None, book.as_book(), NOW)
    home = replace(FACTS, sender=ORIGIN, sender_place=PLACES[KE], safeguards=frozenset())
    assert book.owed_questions == [Question(Action.DISCLOSE, TECHNICAL, Form.FULL, home)]
    assert book.questions == []
    assert (decision.agreement_digest, decision.recipient) == (None, RECIPIENT)


def test_keeping_is_asked_of_all_together_and_of_each_category() -> None:
    book = asked()
    both = frozenset((Category.TECHNICAL, Category.PRODUCT))
    kinds = {Form.GENERALISED: PERSONAL, Form.FULL: both}
    kept = may_store(kinds, HANDLING, ORIGIN, RELAY, RECIPIENT, IN, AGREEMENT, book.as_book(), NOW, sender_country=FR)
    assert [rule.id for rule in kept.rules] == ["all/1#one:full", "all/1#one:generalised"]
    assert kept.alarms == ()
    assert book.questions == [
        Question(Action.STORE, categories, form, FACTS)
        for form, categories in (
            (Form.FULL, both),
            (Form.FULL, frozenset((Category.PRODUCT,))),
            (Form.FULL, TECHNICAL),
            (Form.GENERALISED, PERSONAL),
            (Form.GENERALISED, PERSONAL),
        )
    ]


def test_why_an_entry_may_not_be_kept() -> None:
    def refusal(kinds: dict[Form, frozenset[Category]], book: RuleBook, **changes: Any) -> NotAdmittedError:
        given: dict[str, Any] = {"agreement": AGREEMENT, "sender_country": FR} | changes
        with pytest.raises(NotAdmittedError) as caught:
            may_store(kinds, HANDLING, ORIGIN, RELAY, RECIPIENT, IN, book=book, now=NOW, **given)
        return caught.value

    fine = asked().book
    assert "No agreement in force" in str(refusal({Form.FULL: TECHNICAL}, fine, agreement=None))
    assert "jurisdiction of the node" in str(refusal({Form.FULL: TECHNICAL}, fine, sender_country=None))
    assert str(refusal({}, fine)) == "nothing is disclosed in it"
    assert "shares all of it (full)" in str(refusal({Form.FULL: TECHNICAL | PERSONAL}, fine))
    law = rule_text("forbid", "t/b", 'resource.form == Form::"full"', "store")
    law += rule_text("forbid", "t/a", "resource.storage_allows", "store")
    law += rule_text("forbid", "t/fails", 'Node::"nobody.example".groups.isEmpty()', "store")
    refused = refusal({Form.FULL: TECHNICAL}, asked(law).book)
    assert refused.rules == ("t/a", "t/b", "t/fails")
    assert str(refused) == "may not be kept here: t/a, t/b, t/fails"
    assert set(refused.faults) == {"rule t/fails could not be evaluated"}


def test_what_fails_on_the_way_is_told_with_a_refusal_and_with_a_keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = 'resource.form == Form::"full" && Node::"nobody.example".groups.isEmpty()'
    permits = rule_text("permit", "p", "resource.storage_allows", "store") + rule_text("permit", "q", broken, "store")
    monkeypatch.setattr(RuleBook, "permits", lambda *_: parse(permits, "t", "permit"))
    book = asked().book
    arguments = (HANDLING, ORIGIN, RELAY, RECIPIENT, IN, AGREEMENT, book, NOW)
    kept = may_store({Form.FULL: TECHNICAL, Form.GENERALISED: PERSONAL}, *arguments, sender_country=FR)
    assert kept.alarms == ("rule q could not be evaluated",)
    assert [rule.id for rule in kept.rules] == ["p"]
    monkeypatch.setattr(RuleBook, "permits", lambda *_: parse(rule_text("permit", "q", broken, "store"), "t", "permit"))
    with pytest.raises(NotAdmittedError) as caught:
        may_store({Form.FULL: TECHNICAL}, *arguments, sender_country=FR)
    assert caught.value.rules == ()
    assert set(caught.value.faults) == {"rule q could not be evaluated"}


def test_before_a_grant_both_acts_are_asked_as_if_it_were_given_and_the_embargo_over() -> None:
    waiting = replace(HANDLING, onward=Onward.NONE, embargo_until=NOW + timedelta(days=1))
    book = asked()
    given: dict[str, Any] = {
        "handling": waiting,
        "origin": ORIGIN,
        "relay": RELAY,
        "relay_country": FR,
        "recipient": RECIPIENT,
        "recipient_country": IN,
        "book": book.as_book(),
        "now": NOW,
    }
    assert forbidden_onward(PERSONAL | TECHNICAL, **given) == {}
    facts = replace(FACTS, safeguards=frozenset())
    assert book.questions == [
        Question(action, frozenset((category,)), Form.FULL, facts)
        for category in (Category.PERSONAL, Category.TECHNICAL)
        for action in (Action.DISCLOSE, Action.RELAY)
    ]
    law = rule_text("forbid", "t/person", 'resource.categories.contains(Category::"personal")', "relay")
    forbidden = forbidden_onward(PERSONAL | TECHNICAL, **given | {"book": asked(law).book})
    assert {category: [rule.id for rule in rules] for category, rules in forbidden.items()} == {
        Category.PERSONAL: ["t/person"]
    }
    strict = forbidden_onward(TECHNICAL, **given | {"handling": replace(waiting, tlp=Tlp.AMBER_STRICT)})
    assert [rule.id for rule in strict[Category.TECHNICAL]] == ["handling/relay-tlp"]


def test_a_notice_is_asked_with_both_places(monkeypatch: pytest.MonkeyPatch) -> None:
    book = asked()
    assert [r.id for r in may_notify(Control.PURGE, FR, RECIPIENT, IN, book.as_book(), NOW)] == ["control"]
    assert book.questions == [ControlQuestion(Control.PURGE, RECIPIENT, PLACES[IN], PLACES[FR])]
    law = rule_text("forbid", "t/a", 'principal.groups.contains(Group::"far")', "notify")
    law += rule_text("forbid", "t/b", 'resource.sender_groups.contains(Group::"new")', "notify")
    with pytest.raises(HeldError) as caught:
        may_notify(Control.PURGE, FR, RECIPIENT, IN, asked(law).book, NOW)
    assert str(caught.value) == "purge for cert.in.example: t/a, t/b"
    assert caught.value.faults == ()
    nothing = cedarpy.AuthzResult({"decision": "NoDecision", "diagnostics": {"errors": ["fault"]}})
    monkeypatch.setattr(cedarpy, "is_authorized", lambda *_: nothing)
    with pytest.raises(HeldError) as caught:
        may_notify(Control.PURGE, FR, RECIPIENT, IN, book.book, NOW)
    assert set(caught.value.faults) == {"the policy engine gave no decision"}


def test_the_sentence_without_a_permit_names_what_no_clause_for_this_pair_and_label_shares() -> None:
    clauses = """
  - {id: pair, from: [cert.ke.example], tlp: [GREEN], tiers: [sensitive], share: {identification: full, victim: full}}
  - {id: back, to: [cert.fr.example], tlp: [GREEN], tiers: [sensitive], share: {identification: full, victim: full}}
  - {id: label, tlp: [AMBER], tiers: [sensitive], share: {identification: full, victim: full}}
  - {id: tier, tlp: [GREEN], tiers: [standard], share: {identification: full, victim: full}}
  - {id: more, tlp: [GREEN], tiers: [sensitive], share: {identification: full, severity: full}}
"""
    terms = replace(AGREEMENT, grants=(*AGREEMENT.grants, *from_yaml(TERMS.rstrip() + clauses, "t.yaml").grants[1:]))

    def says(generalised: str | None, *categories: Category) -> str:
        part = Element("/csaf/x", frozenset(categories), "f", generalised, (), False)
        book = asked().book
        decision = decide([part], HANDLING, ORIGIN, RELAY, RECIPIENT, IN, terms, book, NOW, sender_country=FR)
        (rule,) = decision.elements[0].rules
        assert (rule.id, rule.basis) == ("no-permit", "deny by default")
        return rule.says

    whole = "No clause of agreement all version 1 shares {} at TLP:GREEN, tier sensitive."
    assert says(None, Category.TECHNICAL, Category.VICTIM) == whole.format("victim in full")
    assert says("g", Category.TECHNICAL, Category.VICTIM) == whole.format("victim even generalised")
    assert says(None, Category.PERSONAL, Category.VICTIM) == whole.format("personal, victim in full")
    assert says("g", Category.PERSONAL, Category.VICTIM) == whole.format("victim even generalised")
    assert says(None, Category.TECHNICAL, Category.SEVERITY) == whole.format("severity, technical in full")


def test_a_permit_says_what_its_clause_shares_in_which_form() -> None:
    rules = permits_of(AGREEMENT, RELAY, RECIPIENT).rules
    assert [(rule.id, rule.basis, rule.says) for rule in rules.values()] == [
        (
            "all/1#one:full",
            "agreement all version 1, clause one",
            "Clause one shares identification, product, technical in full.",
        ),
        (
            "all/1#one:generalised",
            "agreement all version 1, clause one",
            "Clause one shares identification, personal, product, technical generalised.",
        ),
    ]


@pytest.mark.invariant("I2")
def test_a_clause_of_nothing_makes_no_permit() -> None:
    (clause,) = AGREEMENT.grants
    for empty in (replace(clause, share={}), replace(clause, tlp=frozenset()), replace(clause, tiers=frozenset())):
        assert permits_of(replace(AGREEMENT, grants=(empty,)), RELAY, RECIPIENT).rules == {}
    assert permits_of(replace(AGREEMENT, purposes=frozenset()), RELAY, RECIPIENT).rules == {}
    assert permits_of(AGREEMENT, RELAY, RELAY).rules == {}
    general = replace(clause, share={Category.TECHNICAL: Form.GENERALISED, Category.VICTIM: Form.WITHHELD})
    (rule,) = permits_of(replace(AGREEMENT, grants=(general,)), RELAY, RECIPIENT).rules.values()
    assert (rule.id, rule.says) == ("all/1#one:generalised", "Clause one shares technical generalised.")


@pytest.mark.invariant("I2")
@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\\", "a\nb", "a\u202eb", "a\x00"])
def test_no_character_of_a_name_ends_its_text_in_a_rule(name: str) -> None:
    (clause,) = AGREEMENT.grants
    assert permits_of(replace(AGREEMENT, grants=(replace(clause, id="plain"),)), RELAY, RECIPIENT).rules
    with pytest.raises(PolicyError, match="cannot stand in a rule"):
        permits_of(replace(AGREEMENT, grants=(replace(clause, id=name),)), RELAY, RECIPIENT)
