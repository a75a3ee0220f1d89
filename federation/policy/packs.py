"""Law packs: one jurisdiction's rules and the dated lists they speak of, read strictly from YAML.

A pack says whose law it is, where that was read and on which day, whether anybody checked it against the primary text
(`status`), and by which day that has to be done again (`review_by`, if it says so). Its `rules` are forbids and its
`duties` permits; `groups` are lists of countries with the first and last day of each membership, both inclusive, in
UTC. Reading files, and knowing which countries exist, is for the caller.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from types import MappingProxyType
from typing import Any, Literal

import cedarpy

from federation.errors import MalformedError, PolicyError, UsageError
from federation.model import Country, country
from federation.policy.rules import RuleSet, load
from federation.policy.schema import schema_text
from federation.yamltext import load as load_yaml
from federation.yamltext import mapping

Status = Literal["checked", "example"]
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


@dataclass(frozen=True, slots=True)
class Member:
    """One country's membership of a group: from the start of day `first` to the end of day `last`, in UTC."""

    country: Country
    first: date
    last: date | None

    def holds_at(self, now: datetime) -> bool:
        day = now.astimezone(UTC).date()
        return self.first <= day and (self.last is None or day <= self.last)

    def changes(self) -> tuple[datetime, ...]:
        """The instants at which the membership begins and ends."""
        days = (self.first,) if self.last is None else (self.first, self.last + timedelta(days=1))
        return tuple(datetime.combine(day, time(), tzinfo=UTC) for day in days)


@dataclass(frozen=True, slots=True)
class Group:
    """Countries that a law treats alike, and the text that says so."""

    basis: str
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class LawPack:
    """One jurisdiction's rules. `jurisdiction` is None for law above countries; `safeguards` name their meaning."""

    id: str
    version: int
    jurisdiction: Country | None
    title: str
    status: Status
    checked_on: date
    source: str
    groups: Mapping[str, Group]
    safeguards: Mapping[str, str]
    rules: RuleSet
    duties: RuleSet
    review_by: date | None = None


def load_pack(text: str, where: str, countries: Iterable[Country]) -> LawPack:
    """The law pack in `text`; `where` names its file, `countries` are the ISO 3166-1 codes that exist.

    Raises PolicyError naming `where`, the line, key or rule, and what is wrong.
    """
    known = frozenset(countries)
    try:
        data = mapping(
            load_yaml(text, where),
            where,
            required=("pack", "version", "jurisdiction", "title", "status", "checked_on", "source"),
            optional=("review_by", "groups", "safeguards", "rules", "duties"),
        )
        groups = {
            _text(name, where): _group(value, known, f"{where}: group {name}")
            for name, value in _several(data, "groups", where)
        }
    except UsageError as e:
        raise PolicyError(str(e)) from e
    safeguards = {name: _text(says, f"{where}: safeguard {name}") for name, says in _several(data, "safeguards", where)}
    try:
        schema = cedarpy.Schema.from_str(schema_text(known, groups, safeguards))
    except PolicyError as e:
        raise PolicyError(f"{where}: {e}") from e
    pack_id = _text(data["pack"], f"{where}: pack")
    rules = load(_text(data.get("rules", ""), f"{where}: rules", empty=True), f"{where}: rules", "forbid", schema)
    duties = load(_text(data.get("duties", ""), f"{where}: duties", empty=True), f"{where}: duties", "permit", schema)
    foreign = sorted(rule for rule in (*rules.rules, *duties.rules) if not rule.startswith(f"{pack_id}/"))
    if foreign:
        raise PolicyError(f"{where}: rule {foreign[0]}: the id must begin with {pack_id}/")
    checked_on, review_by = _day(data["checked_on"], f"{where}: checked_on"), data.get("review_by")
    review_by = None if review_by is None else _day(review_by, f"{where}: review_by")
    if review_by is not None and review_by <= checked_on:
        raise PolicyError(f"{where}: review_by is no later than checked_on")
    return LawPack(
        id=pack_id,
        version=_version(data["version"], f"{where}: version"),
        jurisdiction=None if data["jurisdiction"] is None else _country(data["jurisdiction"], known, where),
        title=_text(data["title"], f"{where}: title"),
        status=_status(data["status"], f"{where}: status"),
        checked_on=checked_on,
        source=_text(data["source"], f"{where}: source"),
        groups=MappingProxyType(groups),
        safeguards=MappingProxyType(safeguards),
        rules=rules,
        duties=duties,
        review_by=review_by,
    )


def _several(data: Mapping[str, Any], key: str, where: str) -> Iterable[tuple[str, Any]]:
    value = data.get(key, {})
    if not isinstance(value, dict):
        raise PolicyError(f"{where}: {key}: expected names and values")
    return value.items()


def _group(value: object, known: frozenset[Country], where: str) -> Group:
    data = mapping(value, where, required=("basis", "members"))
    if not isinstance(data["members"], list) or not data["members"]:
        raise PolicyError(f"{where}: members: expected a list of at least one country")
    members = tuple(_member(m, known, f"{where}: member {n}") for n, m in enumerate(data["members"], start=1))
    return Group(basis=_text(data["basis"], f"{where}: basis"), members=members)


def _member(value: object, known: frozenset[Country], where: str) -> Member:
    data = mapping(value, where, required=("country", "from"), optional=("until",))
    first, until = _day(data["from"], f"{where}: from"), data.get("until")
    last = None if until is None else _day(until, f"{where}: until")
    if last is not None and last < first:
        raise PolicyError(f"{where}: until lies before from")
    return Member(country=_country(data["country"], known, where), first=first, last=last)


def _country(value: object, known: frozenset[Country], where: str) -> Country:
    try:
        code = country(value)
    except MalformedError as e:
        raise PolicyError(f"{where}: {e}") from e
    if code not in known:
        raise PolicyError(f"{where}: no country has the code {code}")
    return code


def _day(value: object, where: str) -> date:
    if not isinstance(value, str) or not _DAY.fullmatch(value):
        raise PolicyError(f"{where}: expected a date such as 2026-11-21")
    try:
        return date.fromisoformat(value)
    except ValueError as e:
        raise PolicyError(f"{where}: not a date that exists: {value!r}") from e


def _version(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise PolicyError(f"{where}: expected a whole number from 1")
    return value


def _status(value: object, where: str) -> Status:
    match value:
        case "checked" | "example":
            return value
    raise PolicyError(f"{where}: expected checked or example")


def _text(value: object, where: str, *, empty: bool = False) -> str:
    if not isinstance(value, str) or not (empty or value.strip()):
        raise PolicyError(f"{where}: expected text")
    return value
