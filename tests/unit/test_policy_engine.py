"""The rule book asks Cedar so that every fault denies: what Cedar alone would let pass is the first story told here."""

from dataclasses import replace
from datetime import UTC, date, datetime
from types import MappingProxyType

import cedarpy
import pytest

from federation.agreement import from_yaml
from federation.errors import HeldError, PolicyError
from federation.model import Category, Country, Form, NodeId, Onward, Purpose, Tier, Tlp
from federation.policy.decide import may_notify
from federation.policy.engine import Answer, rule_book
from federation.policy.facts import Place, Question, Situation
from federation.policy.handling import CONTROL, HANDLING_RULES, PERMIT_ALL
from federation.policy.packs import Group, LawPack, Member
from federation.policy.rules import load, parse
from federation.policy.schema import Action, Control, schema_text
from tests.laws import COUNTRIES, book_of

FR, IN = NodeId("cert.fr.example"), NodeId("cert.in.example")
NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)

SITUATION = Situation(
    recipient=IN,
    recipient_place=Place(Country("IN"), frozenset()),
    sender=FR,
    sender_place=Place(Country("FR"), frozenset()),
    origin=FR,
    home=Place(Country("FR"), frozenset()),
    tlp=Tlp.GREEN,
    tier=Tier.STANDARD,
    onward=Onward.PEERS,
    purposes=frozenset((Purpose.REMEDIATION,)),
    names_recipients=False,
    named=False,
    storage_allows=True,
    embargoed=False,
    expired=False,
    safeguards=frozenset(),
)
QUESTION = Question(Action.DISCLOSE, frozenset((Category.TECHNICAL,)), Form.FULL, SITUATION)
PERMITS = parse(
    '@id("p") @basis("a clause") @says("All of it.") permit (principal, action, resource);', "permits", "permit"
)
TERMS = """
agreement: t
version: 1
parties: [cert.fr.example, cert.in.example]
valid_from: "2026-01-01T00:00:00Z"
valid_until: "2027-01-01T00:00:00Z"
sunset_review: "2026-12-01T00:00:00Z"
purposes: [remediation]
grants:
  - {id: one, tlp: [GREEN], tiers: [standard], share: {identification: full}}
"""
FAILS = 'Node::"nobody.example".groups.isEmpty()'  # the entity does not exist: Cedar errors on it


def rule(effect: str, when: str, name: str = "test/rule", action: str = "disclose") -> str:
    return (
        f'@id("{name}") @basis("a law") @says("A sentence.")\n'
        f'{effect} (principal, action == Action::"{action}", resource) when {{ {when} }};\n'
    )


@pytest.mark.invariant("I3")
def test_a_forbid_that_errors_denies_where_cedar_alone_allows() -> None:
    # honest: without the forbid the question is allowed
    assert book_of().ask(QUESTION, PERMITS).allowed
    # attack: a forbid whose evaluation fails. Cedar itself skips it and allows.
    book = book_of(rule("forbid", FAILS))
    entities = cedarpy.Entities.from_json_str(QUESTION.entities(), book.schema)
    alone = cedarpy.is_authorized(QUESTION.request(), book.forbids.policies, entities)
    assert alone.decision is cedarpy.Decision.Allow
    assert alone.diagnostics.errors
    # the rule book counts it as matched, says which it was, and raises an alarm
    answer = book.ask(QUESTION, PERMITS)
    assert not answer.allowed
    assert [r.id for r in answer.rules] == ["test/rule"]
    assert answer.alarms == ("rule test/rule could not be evaluated",)


@pytest.mark.invariant("I3")
def test_any_forbid_beats_every_permit() -> None:
    book = book_of(rule("forbid", 'resource.categories.contains(Category::"technical")'))
    answer = book.ask(QUESTION, PERMITS)
    assert not answer.allowed
    assert [(r.id, r.basis, r.says) for r in answer.rules] == [("test/rule", "a law", "A sentence.")]
    assert answer.alarms == ()


@pytest.mark.invariant("I3")
def test_a_permit_that_errors_is_absent_and_raises_an_alarm() -> None:
    broken = parse(rule("permit", FAILS, "broken"), "permits", "permit")
    answer = book_of().ask(QUESTION, broken)
    assert not answer.allowed
    assert answer.rules == ()
    assert answer.alarms == ("rule broken could not be evaluated",)
    # another permit still allows
    both = parse(broken.text + rule("permit", "resource.storage_allows", "sound"), "permits", "permit")
    answer = book_of().ask(QUESTION, both)
    assert answer.allowed
    assert [r.id for r in answer.rules] == ["sound"]
    assert answer.alarms == ("rule broken could not be evaluated",)


@pytest.mark.invariant("I3")
def test_a_duty_that_errors_is_owed() -> None:
    duties = rule("permit", FAILS, "d/broken") + rule("permit", "resource.embargoed", "d/no")
    answer = book_of(duties=duties).owed(QUESTION)
    assert [r.id for r in answer.rules] == ["d/broken"]
    assert answer.alarms == ("rule d/broken could not be evaluated",)
    assert not book_of().owed(QUESTION).allowed


@pytest.mark.invariant("I2")
def test_without_a_decision_of_the_engine_nothing_is_allowed_and_every_duty_is_owed() -> None:
    # a country that the schema does not know: the facts are refused, and Cedar is not even asked
    strange = replace(QUESTION, situation=replace(SITUATION, recipient_place=Place(Country("XX"), frozenset())))
    book = book_of(duties=rule("permit", "resource.embargoed", "d/one"))
    answer = book.ask(strange, PERMITS)
    assert not answer.allowed
    assert [r.id for r in answer.rules] == ["no-decision"]
    assert answer.alarms
    assert [r.id for r in book.owed(strange).rules] == ["d/one"]


@pytest.mark.invariant("I2")
def test_no_decision_from_cedar_itself_denies(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = cedarpy.AuthzResult({"decision": "NoDecision", "diagnostics": {"errors": ["parse"]}})
    book = book_of(duties=rule("permit", "resource.embargoed", "d/one"))
    assert not book.owed(QUESTION).allowed  # sanity
    monkeypatch.setattr(cedarpy, "is_authorized", lambda *_: nothing)
    answer = book.ask(QUESTION, PERMITS)
    assert not answer.allowed
    assert [r.id for r in answer.rules] == ["no-decision"]
    assert set(answer.alarms) == {"the policy engine gave no decision"}
    assert [r.id for r in book.owed(QUESTION).rules] == ["d/one"]


@pytest.mark.invariant("I3")
def test_a_fault_and_a_reason_that_name_no_rule_of_ours_still_deny(monkeypatch: pytest.MonkeyPatch) -> None:
    def says(decision: str, **diagnostics: list[str]) -> None:
        result = cedarpy.AuthzResult({"decision": decision, "diagnostics": {"reason": [], "errors": [], **diagnostics}})
        monkeypatch.setattr(cedarpy, "is_authorized", lambda *_: result)

    says("Allow", errors=["something new went wrong"])
    answer = book_of().ask(QUESTION, PERMITS)
    assert (answer.allowed, [r.id for r in answer.rules]) == (False, ["no-decision"])
    assert set(answer.alarms) == {"rule no-decision could not be evaluated"}
    says("Allow", errors=["error while evaluating policy `stranger`: it broke"])
    answer = book_of().ask(QUESTION, PERMITS)
    assert (answer.allowed, [r.id for r in answer.rules]) == (False, ["no-decision"])
    assert set(answer.alarms) == {"rule stranger could not be evaluated"}
    says("Deny", reason=["stranger"])
    answer = book_of().ask(QUESTION, PERMITS)
    assert (answer.allowed, [r.id for r in answer.rules]) == (False, ["no-decision"])


@pytest.mark.invariant("I2")
def test_no_permit_is_no() -> None:
    answer = book_of().ask(QUESTION, parse("", "permits", "permit"))
    assert (answer.allowed, answer.rules, answer.alarms) == (False, (), ())


def test_answers_are_remembered_by_the_permits_and_every_fact() -> None:
    book = book_of()
    first = book.ask(QUESTION, PERMITS)
    assert book.ask(replace(QUESTION), PERMITS) is first
    assert not book.ask(replace(QUESTION, situation=replace(SITUATION, expired=True)), PERMITS).allowed
    assert not book.ask(QUESTION, parse("", "permits", "permit")).allowed
    assert book.ask(QUESTION, PERMITS) is first


def test_a_full_memory_is_emptied_and_answers_stay_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("federation.policy.engine.MAX_ANSWERS", 2)
    book = book_of()
    for form in Form.FULL, Form.GENERALISED:
        for category in Category:
            assert book.ask(replace(QUESTION, categories=frozenset((category,)), form=form), PERMITS).allowed
    assert len(book._answers) <= 2


def test_the_built_in_rules_are_total_and_valid() -> None:
    schema = cedarpy.Schema.from_str(schema_text(COUNTRIES))
    assert load(HANDLING_RULES, "handling", "forbid", schema).rules
    assert load(PERMIT_ALL, "handling", "permit", schema).rules
    assert load(CONTROL, "handling", "permit", schema).rules


@pytest.mark.parametrize(
    ("facts", "action", "expected"),
    [
        ({"expired": True}, Action.DISCLOSE, ["handling/expired"]),
        ({"expired": True}, Action.STORE, ["handling/expired"]),
        ({"embargoed": True}, Action.DISCLOSE, []),
        ({"embargoed": True}, Action.RELAY, ["handling/embargo"]),
        ({"embargoed": True, "tlp": Tlp.CLEAR}, Action.PUBLISH, ["handling/embargo"]),
        ({"tlp": Tlp.CLEAR}, Action.PUBLISH, []),
        ({}, Action.PUBLISH, ["handling/publish-tlp"]),
        ({"storage_allows": False}, Action.DISCLOSE, ["handling/storage"]),
        ({"storage_allows": False}, Action.STORE, ["handling/storage"]),
        ({"names_recipients": True}, Action.DISCLOSE, ["handling/recipients"]),
        ({"names_recipients": True, "named": True}, Action.DISCLOSE, []),
        ({"tlp": Tlp.RED}, Action.DISCLOSE, ["handling/red"]),
        ({"tlp": Tlp.RED, "names_recipients": True}, Action.STORE, ["handling/recipients", "handling/red"]),
        ({"tlp": Tlp.RED, "names_recipients": True, "named": True}, Action.DISCLOSE, []),
        ({"tlp": Tlp.RED, "names_recipients": True, "named": True}, Action.RELAY, ["handling/relay-tlp"]),
        ({"tlp": Tlp.AMBER_STRICT}, Action.RELAY, ["handling/relay-tlp"]),
        ({"onward": Onward.CONSTITUENTS}, Action.RELAY, ["handling/relay-onward"]),
        ({"tlp": Tlp.AMBER}, Action.RELAY, []),
    ],
)
def test_handling_forbids(facts: dict[str, object], action: Action, expected: list[str]) -> None:
    situation = replace(SITUATION, **facts)  # type: ignore[arg-type]
    answer = book_of().ask(replace(QUESTION, action=action, situation=situation), PERMITS)
    assert [r.id for r in answer.rules if r.id != "p"] == expected
    assert answer.allowed == (not expected)


@pytest.mark.invariant("I2")
def test_what_has_no_category_never_leaves() -> None:
    answer = book_of().ask(replace(QUESTION, categories=frozenset()), PERMITS)
    assert [r.id for r in answer.rules] == ["handling/unlabelled"]


def test_control_traffic_passes_without_an_agreement_unless_law_forbids_it() -> None:
    rules = may_notify(Control.RECALL, Country("FR"), IN, Country("IN"), book_of(), NOW)
    assert [r.id for r in rules] == ["control"]
    sanctions = book_of(
        rule("forbid", 'principal.jurisdiction == Country::"IN" && resource.kind == Control::"card"', action="notify")
    )
    assert may_notify(Control.RECALL, Country("FR"), IN, Country("IN"), sanctions, NOW)
    with pytest.raises(HeldError, match="test/rule"):
        may_notify(Control.CARD, Country("FR"), IN, Country("IN"), sanctions, NOW)


def a_pack(**changed: object) -> LawPack:
    members = (Member(Country("FR"), date(2020, 1, 1), date(2030, 1, 1)),)
    pack = LawPack(
        "test", 1, None, "t", "example", date(2026, 1, 1), "s",
        MappingProxyType({"g": Group("Article 1", members)}), MappingProxyType({"promise": "kept"}),
        parse("", "t", "forbid"), parse("", "t", "permit"), date(2027, 1, 1),
    )  # fmt: skip
    return replace(pack, **changed)  # type: ignore[arg-type]


def test_the_digest_of_a_rule_book_covers_its_rules_and_its_lists() -> None:
    """Equal digests decide equally: what was decided under one is looked up under the other."""

    def group(*members: Member, name: str = "g") -> dict[str, object]:
        return {"groups": MappingProxyType({name: Group("Article 1", members)})}

    fr, first, last = Country("FR"), date(2020, 1, 1), date(2030, 1, 1)
    different: list[dict[str, object]] = [
        {},
        group(Member(fr, first, last), name="h"),
        group(Member(Country("IN"), first, last)),
        group(Member(fr, date(2020, 1, 2), last)),
        group(Member(fr, first, date(2030, 1, 2))),
        group(Member(fr, first, None)),
        group(Member(fr, first, last), Member(fr, date(2031, 1, 1), None)),
        {"rules": parse(rule("forbid", "resource.embargoed"), "t", "forbid")},
        {"duties": parse(rule("permit", "resource.embargoed"), "t", "permit")},
        {"safeguards": MappingProxyType({"vow": "kept"})},
    ]
    books = [rule_book((a_pack(**changed),), COUNTRIES) for changed in different]
    books.append(rule_book((a_pack(),), COUNTRIES[1:]))
    assert len({book.digest for book in books}) == len(books)
    assert rule_book((a_pack(),), COUNTRIES).digest == books[0].digest
    assert rule_book((a_pack(), a_pack(id="twin")), COUNTRIES).digest != book_of().digest


def test_a_rule_book_tells_by_when_its_packs_have_to_be_reviewed() -> None:
    packs = (a_pack(), a_pack(id="other", version=3, review_by=date(2028, 1, 1)), a_pack(id="none", review_by=None))
    assert rule_book(packs, COUNTRIES).reviews == {
        "test version 1": date(2027, 1, 1),
        "other version 3": date(2028, 1, 1),
    }


def test_safeguards_are_known_to_the_rules() -> None:
    lifted = rule("forbid", '!context.safeguards.contains(Safeguard::"promise")')
    book = rule_book((a_pack(rules=parse(lifted, "t", "forbid")),), COUNTRIES)
    assert [r.id for r in book.ask(QUESTION, PERMITS).rules] == ["test/rule"]
    assert book.ask(QUESTION, PERMITS).alarms == ()
    held = replace(QUESTION, situation=replace(SITUATION, safeguards=frozenset(("promise",))))
    assert book.ask(held, PERMITS).allowed


def test_several_rules_that_match_or_fail_are_told_in_order_with_every_alarm() -> None:
    law = "".join(rule("forbid", when, f"t/{n}") for n, when in enumerate((FAILS, "resource.storage_allows", FAILS)))
    broken = parse(rule("permit", FAILS, "p/broken"), "t", "permit")
    answer = book_of(law).ask(QUESTION, broken)
    assert [r.id for r in answer.rules] == ["t/1", "t/0", "t/2"]
    assert answer.alarms == tuple(f"rule {name} could not be evaluated" for name in ("t/0", "t/2", "p/broken"))
    duties = "".join(rule("permit", when, f"d/{n}") for n, when in enumerate((FAILS, "resource.storage_allows")))
    owed = book_of(duties=duties).owed(QUESTION)
    assert (owed.allowed, [r.id for r in owed.rules]) == (True, ["d/1", "d/0"])
    assert owed.alarms == ("rule d/0 could not be evaluated",)
    assert book_of(duties=rule("permit", "resource.embargoed", "d/no")).owed(QUESTION) == Answer(False, (), ())
    assert book_of().owed(QUESTION) == Answer(False, (), ())


def test_facts_that_do_not_fit_the_schema_are_told_in_the_alarm() -> None:
    strange = replace(QUESTION, situation=replace(SITUATION, recipient_place=Place(Country("XX"), frozenset())))
    book = book_of(duties=rule("permit", "resource.embargoed", "d/one"))
    for answer in (book.ask(strange, PERMITS), book.owed(strange)):
        assert answer.alarms == ("the facts of a question do not fit the policy schema",)
    assert book.owed(strange).allowed


def test_permits_are_compiled_once_and_their_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("federation.policy.engine.MAX_PERMIT_SETS", 2)
    book, terms = book_of(), from_yaml(TERMS, "terms.yaml")
    there = book.permits(terms, FR, IN)
    assert list(there.rules) == ["t/1#one:full", "t/1#one:generalised"]
    assert book.permits(terms, FR, IN) is there
    back = book.permits(terms, IN, FR)
    assert back.digest != there.digest
    assert book.permits(terms, FR, IN) is there  # two fit
    book.permits(from_yaml(TERMS.replace("agreement: t", "agreement: u"), "terms.yaml"), FR, IN)  # a third does not
    assert book.permits(terms, FR, IN) is not there
    assert book.permits(terms, FR, IN) == there


def test_two_packs_may_not_give_one_id_to_two_rules() -> None:
    pack = LawPack(
        "test", 1, None, "t", "example", date(2026, 1, 1), "s", MappingProxyType({}), MappingProxyType({}),
        parse(rule("forbid", "resource.embargoed", "handling/red"), "t", "forbid"), parse("", "t", "permit"),
    )  # fmt: skip
    with pytest.raises(PolicyError, match="handling/red"):
        rule_book((pack,), COUNTRIES)
