"""Law packs of one rule, that no loader would let in, for tests of what the engine and the pipelines make of them."""

from datetime import date
from types import MappingProxyType

from config import data
from federation.model import Country
from federation.policy.engine import RuleBook, rule_book
from federation.policy.packs import LawPack
from federation.policy.rules import parse

COUNTRIES = tuple(Country(code) for code in data.countries())


def book_of(forbids: str = "", duties: str = "") -> RuleBook:
    """A rule book of one pack, in force everywhere."""
    pack = LawPack(
        id="test",
        version=1,
        jurisdiction=None,
        title="test",
        status="example",
        checked_on=date(2026, 11, 21),
        source="test",
        groups=MappingProxyType({}),
        safeguards=MappingProxyType({}),
        rules=parse(forbids, "test", "forbid"),
        duties=parse(duties, "test", "permit"),
    )
    return rule_book((pack,), COUNTRIES)
