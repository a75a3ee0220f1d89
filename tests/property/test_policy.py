"""Properties of policy: forbids only narrow, permits only widen, the guard leaves nothing that it looks for."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import cache
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.agreement import Agreement, Grant
from federation.model import (
    Attribution,
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
from federation.policy.decide import decide
from federation.policy.engine import RuleBook, rule_book
from federation.policy.guard import Withheld, demote, search
from federation.policy.packs import LawPack
from federation.policy.rules import parse

FR, IN = NodeId("cert.fr.example"), NodeId("cert.in.example")
COUNTRIES = (Country("FR"), Country("IN"), Country("KE"))
NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
WIDTH = {Form.WITHHELD: 0, Form.GENERALISED: 1, Form.FULL: 2}

CONDITIONS = (
    'resource.categories.contains(Category::"technical")',
    'resource.form == Form::"full"',
    'resource.tlp == Tlp::"AMBER" && resource.tier != Tier::"standard"',
    'principal.jurisdiction == Country::"IN"',
    "resource.embargoed",
    'Node::"nobody.example".groups.isEmpty()',  # errors: no loader would let it in
    'resource.home == Form::"full"',  # never true
)


@cache
def book(*conditions: str) -> RuleBook:
    text = "".join(
        f'@id("t/{n}") @basis("b") @says("s") forbid (principal, action, resource is Advisory) when {{ {c} }};'
        for n, c in enumerate(conditions)
    )
    pack = LawPack(
        "t",
        1,
        None,
        "t",
        "example",
        date(2026, 1, 1),
        "t",
        MappingProxyType({}),
        MappingProxyType({}),
        parse(text, "t", "forbid"),
        parse("", "t", "permit"),
    )
    return rule_book((pack,), COUNTRIES)


def sets(kind: Any, least: int = 0) -> st.SearchStrategy[Any]:
    return st.frozensets(st.sampled_from(list(kind)), min_size=least, max_size=4)


instants = st.none() | st.integers(-2, 2).map(lambda hours: NOW + timedelta(hours=hours))
handlings = st.builds(
    Handling,
    tlp=st.sampled_from(Tlp),
    home=st.sampled_from(COUNTRIES),
    storage=st.none() | sets(COUNTRIES),
    onward=st.sampled_from(Onward),
    purposes=sets(Purpose),
    retain_until=instants,
    embargo_until=instants,
    tier=st.sampled_from(Tier),
    recipients=st.none() | sets((FR, IN)),
)
grants = st.builds(
    Grant,
    id=st.sampled_from("abc"),
    senders=sets((FR, IN)),
    receivers=sets((FR, IN)),
    tlp=sets(Tlp),
    tiers=sets(Tier),
    share=st.dictionaries(st.sampled_from(Category), st.sampled_from((Form.FULL, Form.GENERALISED))),
)
grant_lists = st.lists(grants, max_size=3, unique_by=lambda g: g.id).map(tuple)
elements = st.lists(
    st.builds(
        Element,
        path=st.sampled_from(("/csaf/product_tree", "/csaf/a", "/csaf/b", "/csaf/c")),
        categories=sets(Category),
        full=st.sampled_from(("f", None)),
        generalised=st.sampled_from(("g", None)),
        parents=st.just(()),
        needs_products=st.booleans(),
    ),
    max_size=5,
)


def agreement(clauses: tuple[Grant, ...]) -> Agreement:
    return Agreement(
        id="a",
        version=1,
        previous=None,
        parties=(FR, IN),
        valid_from=NOW - timedelta(1),
        valid_until=NOW + timedelta(1),
        sunset_review=NOW,
        purposes=frozenset((Purpose.REMEDIATION, Purpose.RESEARCH)),
        storage=None,
        retention_days=None,
        onward=Onward.NONE,
        attribution=Attribution.MAY,
        safeguards=frozenset(),
        grants=clauses,
        canonical=b"",
    )


def decided(parts: list[Element], handling: Handling, clauses: tuple[Grant, ...], rules: RuleBook) -> Decision:
    return decide(parts, handling, FR, FR, IN, Country("IN"), agreement(clauses), rules, NOW)


def no_wider(narrow: Decision, wide: Decision) -> bool:
    return all(WIDTH[n.form] <= WIDTH[w.form] for n, w in zip(narrow.elements, wide.elements, strict=True))


@pytest.mark.invariant("I3")
@settings(deadline=None, max_examples=100)
@given(elements, handlings, grant_lists, st.lists(st.sampled_from(CONDITIONS), max_size=3), st.sampled_from(CONDITIONS))
def test_a_forbid_more_never_widens_a_release(
    parts: list[Element], handling: Handling, clauses: tuple[Grant, ...], conditions: list[str], more: str
) -> None:
    before = decided(parts, handling, clauses, book(*conditions))
    after = decided(parts, handling, clauses, book(*conditions, more))
    assert no_wider(after, before)


@settings(deadline=None, max_examples=100)
@given(elements, handlings, grant_lists, grants)
def test_a_clause_more_never_narrows_a_release(
    parts: list[Element], handling: Handling, clauses: tuple[Grant, ...], more: Grant
) -> None:
    before = decided(parts, handling, clauses, book())
    after = decided(parts, handling, (*clauses, replace(more, id="more")), book())
    assert no_wider(before, after)


@pytest.mark.invariant("I2")
@settings(deadline=None, max_examples=100)
@given(elements, handlings, grant_lists)
def test_what_leaves_is_labelled_shared_and_explained(
    parts: list[Element], handling: Handling, clauses: tuple[Grant, ...]
) -> None:
    decision = decided(parts, handling, clauses, book())
    for d in decision.elements:
        assert d.rules
        if d.form is Form.WITHHELD:
            continue
        assert d.element.categories
        assert (d.element.full if d.form is Form.FULL else d.element.generalised) is not None
        assert any(
            FR in g.senders
            and IN in g.receivers
            and handling.tlp in g.tlp
            and handling.tier in g.tiers
            and all(g.share.get(c) in (Form.FULL, d.form) for c in d.element.categories)
            for g in clauses
        )
        assert handling.retain_until is None or handling.retain_until > NOW
        assert handling.recipients is None or IN in handling.recipients
        assert handling.storage is None or "IN" in handling.storage
        assert handling.tlp is not Tlp.RED or handling.recipients is not None
    assert decided(parts, handling, clauses, book()) == decision


names = st.sampled_from(("Jane Doe", "JANE  doe", "Acme Power", "三菱電機", "203.0.113.7", "a@b.example", "plain", "x"))
texts = st.lists(names | st.text(max_size=8), max_size=4).map(" ".join)
values = st.recursive(
    texts | st.integers() | st.none(), lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3)
)


@pytest.mark.invariant("I4")
@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.sampled_from(("/a", "/b", "/c")), values), st.lists(values, max_size=3), sets(Category))
def test_demoting_until_the_guard_is_silent_ends_and_leaves_no_hit(
    going: dict[str, Any], away: list[Any], categories: frozenset[Category]
) -> None:
    secrets = [Withheld(f"/w/{n}", categories, value) for n, value in enumerate(away)]
    parts = [Element(path, frozenset((Category.IDENTIFICATION,)), "f", None, (), False) for path in going]
    share = Grant(
        "g", frozenset((FR,)), frozenset((IN,)), frozenset(Tlp), frozenset(Tier), {Category.IDENTIFICATION: Form.FULL}
    )
    handling = Handling(
        Tlp.GREEN, Country("FR"), None, Onward.NONE, frozenset((Purpose.REMEDIATION,)), None, None, Tier.STANDARD, None
    )
    decision = decided(parts, handling, (share,), book())
    assert len([d for d in decision.elements if d.form is Form.FULL]) == len(going)
    for _ in range(len(going) + 1):
        outgoing = {d.element.path: going[d.element.path] for d in decision.elements if d.form is Form.FULL}
        hits = search(outgoing, None, secrets)
        if not hits:
            break
        decision = demote(decision, hits)
    assert (
        search({d.element.path: going[d.element.path] for d in decision.elements if d.form is Form.FULL}, None, secrets)
        == ()
    )
    # what is copied whole out of something withheld is always found
    for secret in secrets:
        if search({"/copy": secret.value}, None, [secret]):
            assert search({"/copy": {"wrapped": ["before", secret.value]}}, None, [secret])


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=40), st.text(max_size=40))
def test_a_victim_between_words_is_found_whatever_stands_around_it(before: str, after: str) -> None:
    secret = Withheld("/w", frozenset((Category.VICTIM,)), "Acme Power")
    assert search({"/a": f"{before} | Acme Power | {after}"}, None, [secret])
