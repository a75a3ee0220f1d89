"""The rule book asks Cedar so that every fault denies: what Cedar alone would let pass is the first story told here."""

from dataclasses import replace
from datetime import UTC, date, datetime
from types import MappingProxyType

import cedarpy
import pytest

from federation.errors import HeldError, PolicyError
from federation.model import Category, Country, Form, NodeId, Onward, Purpose, Tier, Tlp
from federation.policy.decide import may_notify
from federation.policy.engine import rule_book
from federation.policy.facts import Place, Question, Situation
from federation.policy.handling import CONTROL, HANDLING_RULES, PERMIT_ALL
from federation.policy.packs import LawPack
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
    monkeypatch.setattr(cedarpy, "is_authorized", lambda *_: nothing)
    answer = book_of().ask(QUESTION, PERMITS)
    assert not answer.allowed
    assert [r.id for r in answer.rules] == ["no-decision"]
    assert answer.alarms


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


def test_the_digest_of_a_rule_book_covers_its_rules_and_its_lists() -> None:
    assert book_of().digest == book_of().digest
    assert book_of().digest != book_of(rule("forbid", "resource.embargoed")).digest


def test_two_packs_may_not_give_one_id_to_two_rules() -> None:
    pack = LawPack(
        "test", 1, None, "t", "example", date(2026, 1, 1), "s", MappingProxyType({}), MappingProxyType({}),
        parse(rule("forbid", "resource.embargoed", "handling/red"), "t", "forbid"), parse("", "t", "permit"),
    )  # fmt: skip
    with pytest.raises(PolicyError, match="handling/red"):
        rule_book((pack,), COUNTRIES)
