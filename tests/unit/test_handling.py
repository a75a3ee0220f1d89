"""Handling and terms: one way to write them, and no delivery wider than what the origin signed (I6)."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from federation import handling
from federation.agreement import Agreement, from_yaml
from federation.errors import HandlingError, TermsError
from federation.model import (
    Attribution,
    Country,
    Handling,
    JsonObject,
    NodeId,
    Onward,
    Purpose,
    Terms,
    Tier,
    Tlp,
)

FR, DE = NodeId("cert.fr.example"), NodeId("cert.de.example")
NOW = datetime(2026, 11, 21, 9, 30, 0, 123, tzinfo=UTC)
LATER = datetime(2027, 3, 1, tzinfo=UTC)
CORE = b"c" * 32
WRITTEN: JsonObject = {
    "tlp": "AMBER",
    "home": "FR",
    "storage": ["DE", "FR"],
    "onward": "constituents",
    "purposes": ["detection", "remediation"],
    "retain_until": "2027-03-01T00:00:00Z",
    "embargo_until": None,
    "tier": "standard",
    "recipients": [DE, "cert.in.example"],
}
HANDLING = Handling(
    tlp=Tlp.AMBER,
    home=Country("FR"),
    storage=frozenset((Country("DE"), Country("FR"))),
    onward=Onward.CONSTITUENTS,
    purposes=frozenset((Purpose.DETECTION, Purpose.REMEDIATION)),
    retain_until=LATER,
    embargo_until=None,
    tier=Tier.STANDARD,
    recipients=frozenset((DE, NodeId("cert.in.example"))),
)


def agreement(**changed: str) -> Agreement:
    members = {
        "agreement": "fr-de",
        "version": "1",
        "parties": f"[{FR}, {DE}]",
        "valid_from": "2026-01-01T00:00:00Z",
        "valid_until": "2028-01-01T00:00:00Z",
        "sunset_review": "2027-06-01T00:00:00Z",
        "purposes": "[remediation, statistics]",
        "storage": "[DE, FR, PL]",
        "retention_days": "30",
        "onward": "peers",
        "attribution": "must",
        "grants": "[{id: all, tlp: [AMBER], share: {identification: full}}]",
        **changed,
    }
    return from_yaml("\n".join(f"{name}: {value}" for name, value in members.items()), "a.yaml")


def terms(**changed: Any) -> Terms:
    return replace(handling.narrow(HANDLING, agreement(), CORE, DE, NOW), **changed)


def test_what_is_written_is_read_back() -> None:
    assert handling.read(WRITTEN) == HANDLING
    assert handling.write(HANDLING) == WRITTEN
    unlimited = {**WRITTEN, "storage": None, "retain_until": None, "recipients": None}
    assert handling.write(handling.read(unlimited)) == unlimited


@pytest.mark.invariant("I6")
@pytest.mark.parametrize("member", sorted(WRITTEN))
def test_a_missing_member_is_refused(member: str) -> None:
    with pytest.raises(HandlingError, match="missing or unknown"):
        handling.read({name: value for name, value in WRITTEN.items() if name != member})


@pytest.mark.invariant("I6")
@pytest.mark.parametrize("member", sorted(WRITTEN))
@pytest.mark.parametrize("value", ["", "unknown", 7, True, {}, [], [[]], [{}], ["unknown"], "AMBER ", 1.5])
def test_a_member_with_a_value_that_nobody_knows_is_refused(member: str, value: object) -> None:
    with pytest.raises(HandlingError):
        handling.read({**WRITTEN, member: value})


@pytest.mark.invariant("I6")
@pytest.mark.parametrize("member", ["tlp", "home", "onward", "purposes", "tier"])
def test_null_is_no_limit_only_where_that_means_something(member: str) -> None:
    with pytest.raises(HandlingError):
        handling.read({**WRITTEN, member: None})


@pytest.mark.invariant("I6")
@pytest.mark.parametrize("data", [None, [], "AMBER", 1, {}, {**WRITTEN, "also": "this"}])
def test_handling_that_is_none_or_has_more_is_refused(data: object) -> None:
    with pytest.raises(HandlingError, match="missing or unknown"):
        handling.read(data)


@pytest.mark.invariant("I6")
@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("storage", ["FR", "DE"]),
        ("storage", ["DE", "DE"]),
        ("purposes", ["remediation", "detection"]),
        ("recipients", [DE, DE]),
        ("storage", [f"{a}{b}" for a in "ABCDEFGHIJKLM" for b in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]),
    ],
)
def test_there_is_one_way_to_write_a_list(member: str, value: list[str]) -> None:
    with pytest.raises(HandlingError):
        handling.read({**WRITTEN, member: value})


@pytest.mark.invariant("I6")
@pytest.mark.parametrize(
    "text", ["2027-03-01", "2027-03-01T00:00:00", "2027-03-01T00:00:00+00:00", "2027-02-30T00:00:00Z"]
)
def test_an_instant_has_one_form_and_exists(text: str) -> None:
    with pytest.raises(HandlingError):
        handling.read({**WRITTEN, "retain_until": text})


@pytest.mark.invariant("I6")
def test_red_names_its_recipients() -> None:
    red = {**WRITTEN, "tlp": "RED", "onward": "none"}
    assert handling.read(red).tlp is Tlp.RED
    with pytest.raises(HandlingError, match="recipients"):
        handling.read({**red, "recipients": None})


@pytest.mark.parametrize("tlp", ["RED", "AMBER+STRICT"])
@pytest.mark.parametrize("onward", ["constituents", "peers"])
def test_what_stays_with_its_receiver_is_not_passed_on(tlp: str, onward: str) -> None:
    with pytest.raises(HandlingError, match="onward"):
        handling.read({**WRITTEN, "tlp": tlp, "onward": onward})


def test_terms_are_what_handling_and_agreement_both_allow() -> None:
    made = terms()
    assert made.purposes == {Purpose.REMEDIATION}
    assert made.storage == frozenset((Country("DE"), Country("FR")))
    assert made.retain_until == datetime(2026, 12, 21, 9, 30, tzinfo=UTC)  # 30 days of the agreement: whole seconds
    assert (made.onward, made.attribution) == (Onward.CONSTITUENTS, Attribution.MUST)
    assert (made.core_digest, made.recipient, made.agreement_digest) == (CORE, DE, agreement().digest)
    handling.check_terms(made, HANDLING, agreement(), CORE, DE, NOW)


def test_the_earlier_end_of_retention_counts() -> None:
    soon = replace(HANDLING, retain_until=NOW.replace(microsecond=0) + timedelta(days=3))
    assert handling.narrow(soon, agreement(), CORE, DE, NOW).retain_until == soon.retain_until
    no_limit = replace(HANDLING, retain_until=None)
    assert handling.narrow(no_limit, agreement(retention_days="null"), CORE, DE, NOW).retain_until is None


@pytest.mark.parametrize(("part", "value"), [("purposes", "[research]"), ("storage", "[PL]")])
def test_handling_and_agreement_without_common_ground_give_no_terms(part: str, value: str) -> None:
    with pytest.raises(TermsError, match="in common"):
        handling.narrow(HANDLING, agreement(**{part: value}), CORE, DE, NOW)


WIDER: dict[str, dict[str, Any]] = {
    "(1) another core": {"core_digest": b"d" * 32},
    "(2) another recipient": {"recipient": FR},
    "(3) another agreement": {"agreement_digest": b"d" * 32},
    "(4) a purpose outside the handling": {"purposes": frozenset((Purpose.REMEDIATION, Purpose.STATISTICS))},
    "(4) a purpose outside the agreement": {"purposes": frozenset((Purpose.REMEDIATION, Purpose.DETECTION))},
    "(4) no purpose": {"purposes": frozenset()},
    "(5) kept longer than the agreement says": {"retain_until": NOW + timedelta(days=31)},
    "(5) kept for ever": {"retain_until": None},
    "(6) stored where the handling forbids": {"storage": frozenset((Country("DE"), Country("PL")))},
    "(6) stored anywhere": {"storage": None},
    "(7) passed on to peers": {"onward": Onward.PEERS},
    "(8) another attribution": {"attribution": Attribution.MAY},
}


@pytest.mark.invariant("I6")
@pytest.mark.parametrize("name", sorted(WIDER))
def test_terms_that_are_wider_in_any_dimension_are_refused(name: str) -> None:
    with pytest.raises(TermsError):
        handling.check_terms(terms(**WIDER[name]), HANDLING, agreement(), CORE, DE, NOW)


@pytest.mark.invariant("I6")
@pytest.mark.parametrize(
    ("limit", "wide"),
    [
        ({"retention_days": "null"}, {"retain_until": LATER + timedelta(seconds=1)}),  # only the handling limits
        ({"retention_days": "null"}, {"retain_until": None}),
        ({"storage": "null"}, {"storage": frozenset((Country("PL"),))}),
        ({"storage": "null"}, {"storage": None}),
        ({"onward": "none"}, {"onward": Onward.CONSTITUENTS}),  # only the agreement limits
    ],
)
def test_each_side_limits_alone(limit: dict[str, str], wide: dict[str, Any]) -> None:
    agreed = agreement(**limit)
    honest = handling.narrow(HANDLING, agreed, CORE, DE, NOW)
    handling.check_terms(honest, HANDLING, agreed, CORE, DE, NOW)
    with pytest.raises(TermsError):
        handling.check_terms(replace(honest, **wide), HANDLING, agreed, CORE, DE, NOW)


@pytest.mark.invariant("I6")
def test_the_agreement_limits_storage_where_the_handling_does_not() -> None:
    anywhere = replace(HANDLING, storage=None)
    honest = handling.narrow(anywhere, agreement(), CORE, DE, NOW)
    assert honest.storage == frozenset((Country("DE"), Country("FR"), Country("PL")))
    with pytest.raises(TermsError, match="storage"):
        handling.check_terms(replace(honest, storage=None), anywhere, agreement(), CORE, DE, NOW)


@pytest.mark.parametrize(
    "narrower",
    [
        {"storage": frozenset((Country("DE"),))},
        {"onward": Onward.NONE},
        {"retain_until": NOW + timedelta(days=1)},
    ],
)
def test_narrower_terms_are_fine(narrower: dict[str, Any]) -> None:
    handling.check_terms(terms(**narrower), HANDLING, agreement(), CORE, DE, NOW)


def test_a_receiver_whose_clock_is_a_little_behind_takes_the_terms() -> None:
    handling.check_terms(terms(), HANDLING, agreement(), CORE, DE, NOW - timedelta(minutes=5))
    with pytest.raises(TermsError, match="retention"):
        handling.check_terms(terms(), HANDLING, agreement(), CORE, DE, NOW - timedelta(minutes=6))
