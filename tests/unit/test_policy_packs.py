"""Law packs load strictly: what could fail, or silently never match, is refused before it decides anything."""

import csv
import dataclasses
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pycountry
import pytest

from federation.errors import PolicyError
from federation.model import Country, instant
from federation.policy.engine import rule_book
from federation.policy.facts import place
from federation.policy.packs import LawPack, Member, load_pack
from federation.policy.schema import schema_text

COUNTRIES = tuple(Country(c.alpha_2) for c in pycountry.countries)
GDPR = (Path(__file__).parents[2] / "config" / "packs" / "eu-gdpr.yaml").read_text(encoding="utf-8")

HEAD = """
pack: xx
version: 1
jurisdiction: FR
title: A law
status: example
checked_on: 2026-11-21
source: nowhere
groups:
  friends:
    basis: Article 1
    members:
      - {country: FR, from: 2020-01-01, until: 2020-12-31}
safeguards:
  promise: a promise
"""
NOTES = '@basis("Article 2") @says("No.")'


def pack(rule: str, *, key: str = "rules", notes: str = f'@id("xx/one") {NOTES}', head: str = HEAD) -> LawPack:
    return load_pack(f"{head}{key}: |\n  {notes}\n  {rule}\n", "xx.yaml", COUNTRIES)


def forbid(when: str) -> str:
    return f"forbid (principal, action, resource) when {{ {when} }};"


SOUND = 'forbid (principal, action == Action::"disclose", resource) when { resource.home == Country::"FR" };'


def test_a_pack_as_it_should_be() -> None:
    loaded = pack(SOUND, notes=f'@id("xx/one") {NOTES} @lift("approvals:board:2")')
    assert (loaded.id, loaded.version, loaded.jurisdiction, loaded.status) == ("xx", 1, "FR", "example")
    assert loaded.checked_on == date(2026, 11, 21)
    assert loaded.review_by is None
    reviewed = HEAD.replace("checked_on: 2026-11-21", "checked_on: 2026-11-21\nreview_by: 2026-11-22")
    assert load_pack(reviewed, "xx.yaml", COUNTRIES).review_by == date(2026, 11, 22)
    assert [(r.id, r.basis, r.says) for r in loaded.rules.rules.values()] == [("xx/one", "Article 2", "No.")]
    assert loaded.rules.lifts == {"xx/one": "approvals:board:2"}
    assert loaded.groups["friends"].members == (Member(Country("FR"), date(2020, 1, 1), date(2020, 12, 31)),)
    assert loaded.safeguards == {"promise": "a promise"}
    # the policy ids are the @ids
    assert list(loaded.rules.policies.to_pst().static_policies) == ["xx/one"]


@pytest.mark.invariant("I2")
@pytest.mark.parametrize(
    ("when", "named"),
    [
        ('resource.categories.contains(Category::"persnal")', "persnal"),
        ('resource.categories.contains("personal")', "not compatible"),
        ('principal.groups.contains(Group::"freinds")', "freinds"),
        ('context.safeguards.contains(Safeguard::"promis")', "promis"),
        ('resource.home == Country::"XX"', "XX"),
        ('resource.tlp == Tlp::"amber"', "amber"),
        ('resource.form == Form::"withheld"', "withheld"),
        ("resource.categorys.isEmpty()", "categorys"),
    ],
)
def test_a_misspelling_is_refused(when: str, named: str) -> None:
    with pytest.raises(PolicyError, match="xx/one") as refusal:
        pack(f'forbid (principal, action == Action::"disclose", resource) when {{ {when} }};')
    assert named in str(refusal.value)


@pytest.mark.invariant("I3")
@pytest.mark.parametrize(
    "when",
    [
        "false",  # from here on: valid for Cedar, and never true
        'resource.home == Form::"full"',
        'resource.home != Form::"full"',
        'if resource.home == Form::"full" then resource.embargoed else resource.expired',
        '!(resource.home == Form::"full")',
        "resource has categoris && resource.categoris.isEmpty()",
        "resource is Node",
        "principal in resource",
        'Node::"nobody.example".groups.isEmpty()',  # from here on: valid for Cedar, and an error when asked
        "resource.origin.groups.isEmpty()",
        "1 + 9223372036854775807 > 0",
        "-(-9223372036854775807) > 0",
        'ip("10.0.0.1").isLoopback()',
        'decimal("1.0").lessThan(decimal("2.0"))',
        'datetime("2026-11-21").toDate() == datetime("2026-11-21")',
    ],
)
def test_a_rule_that_could_fail_or_never_match_is_refused(when: str) -> None:
    with pytest.raises(PolicyError, match=r"^xx\.yaml: rules: rule xx/one: "):
        pack(f'forbid (principal, action == Action::"disclose", resource) when {{ {when} }};')


@pytest.mark.parametrize(
    ("when", "what"),
    [
        ("false", "BoolLit"),
        ("1 + 2 > 0", "greater"),
        ("resource is Node", "Is"),
        ("principal in resource", "in"),
    ],
)
def test_what_is_not_allowed_in_a_rule_is_called_by_its_name(when: str, what: str) -> None:
    with pytest.raises(PolicyError, match=f"rule xx/one: {what} is not allowed"):
        pack(forbid(when))


def test_every_mistake_that_the_validator_finds_is_told_with_its_rule() -> None:
    wrong = forbid("resource.categorys.isEmpty()")
    with pytest.raises(PolicyError) as refusal:
        pack(f'{wrong} @id("xx/two") {NOTES} {wrong}')
    found = str(refusal.value).removeprefix("xx.yaml: rules: ").split("; ")
    assert {text.partition(": ")[0] for text in found} == {"rule xx/one", "rule xx/two"}


@pytest.mark.parametrize(
    ("rule", "notes", "named"),
    [
        (SOUND, '@id("xx/one") @says("No.")', "xx/one: missing, empty or unknown: @basis"),
        (SOUND, '@id("xx/one") @basis("Article 2")', "@says"),
        (SOUND, '@id("xx/one") @basis("Article 2") @says(" ")', "@says"),
        (SOUND, NOTES, "rule 1: missing, empty or unknown: @id"),
        (SOUND, f'@id("xx/one") {NOTES} @severity("high")', "@severity"),
        (SOUND, f'@id("xx/one") {NOTES} @lift("")', "unknown: @lift"),
        (SOUND, '@id("xx/one")', "unknown: @basis, @says"),
        (SOUND, f'@id("other/one") {NOTES}', "must begin with xx/"),
        (SOUND, f'@id("xx/one") @id("xx/two") {NOTES}', "duplicate annotation"),
        (SOUND + f' @id("xx/one") {NOTES} {SOUND}', f'@id("xx/one") {NOTES}', "stands twice"),
        (SOUND.replace("forbid", "permit"), f'@id("xx/one") {NOTES}', "expected forbid, found permit"),
        (SOUND.replace("principal,", "principal == ?principal,"), f'@id("xx/one") {NOTES}', "slots"),
        (SOUND.replace("disclose", "disclsoe"), f'@id("xx/one") {NOTES}', "disclsoe"),
        (SOUND.replace("when", "whn"), f'@id("xx/one") {NOTES}', "xx.yaml: rules"),
    ],
)
def test_a_rule_without_its_papers_is_refused(rule: str, notes: str, named: str) -> None:
    with pytest.raises(PolicyError, match=r"xx\.yaml") as refusal:
        pack(rule, notes=notes)
    assert named in str(refusal.value)


def test_a_duty_is_a_permit() -> None:
    duty = SOUND.replace("forbid", "permit")
    assert list(pack(duty, key="duties").duties.rules) == ["xx/one"]
    with pytest.raises(PolicyError, match=r"^xx\.yaml: duties: rule xx/one: expected permit, found forbid"):
        pack(SOUND, key="duties")


@pytest.mark.parametrize(
    ("member", "named"),
    [
        ("rules: 7", "rules: expected text"),
        ("duties: 7", "duties: expected text"),
        ("groups: 7", "groups: expected names and values"),
        ("safeguards: []", "safeguards: expected names and values"),
        ("groups: {' ': {}}", "expected text"),
    ],
)
def test_a_member_of_another_kind_is_refused_by_its_name(member: str, named: str) -> None:
    with pytest.raises(PolicyError) as refusal:
        load_pack(f"{HEAD.partition('groups:')[0]}{member}", "xx.yaml", COUNTRIES)
    assert str(refusal.value).startswith(f"xx.yaml: {named}")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("version: 1", "version: one", "version"),
        ("version: 1", "version: 0", "version"),
        ("jurisdiction: FR", "jurisdiction: XX", "no country has the code XX"),
        ("country: FR", "country: fr", "not an ISO 3166-1"),
        ("country: FR", "country: XX", "friends: member 1: no country has the code XX"),
        ("until: 2020-12-31", "until: 2019-12-31", "until lies before from"),
        ("until: 2020-12-31", "until: 2020-02-30", "not a date that exists"),
        ("until: 2020-12-31", "until: 2020-W10-1", "expected a date"),
        ("until: 2020-12-31", "untill: 2020-12-31", "untill"),
        ("from: 2020-01-01", "from: today", "xx.yaml: group friends: member 1: from: expected a date"),
        ("until: 2020-12-31", "until: 2020", "xx.yaml: group friends: member 1: until: expected a date"),
        ("until: 2020-12-31", "until: 2019-12-31", "xx.yaml: group friends: member 1: until lies before from"),
        ("    basis: Article 1\n", "", "xx.yaml: group friends: missing basis"),
        ("basis: Article 1", "basis: ' '", "xx.yaml: group friends: basis: expected text"),
        ("promise: a promise", "promise: 7", "xx.yaml: safeguard promise: expected text"),
        ("pack: xx", "pack: 7", "xx.yaml: pack: expected text"),
        ("source: nowhere", "source: 7", "xx.yaml: source: expected text"),
        ("version: 1", "version: true", "xx.yaml: version: expected a whole number"),
        ("checked_on: 2026-11-21", "checked_on: 2026", "xx.yaml: checked_on: expected a date"),
        ("jurisdiction: FR", "jurisdiction: france", "xx.yaml: "),
        ("status: example", "status: fine", "xx.yaml: status: expected checked or example"),
        ("status: example", "status: fine", "checked or example"),
        ("source: nowhere", "source: nowhere\nreview_by: next year", "review_by: expected a date"),
        ("source: nowhere", "source: nowhere\nreview_by: 2026-11-21", "review_by is no later than checked_on"),
        ("title: A law", "title: A law\ntitle: Another", "line"),
        ("title: A law", "titel: A law", "missing title"),
        ("title: A law", "title: 7", "title: expected text"),
        ("friends:", "Friends!:", "Friends!"),
        ("promise:", "none:", "none"),
        ("  promise: a promise", "  - promise", "safeguards"),
        ("    members:\n      - {country: FR, from: 2020-01-01, until: 2020-12-31}", "    members: []", "members"),
    ],
)
def test_a_pack_with_a_mistake_is_refused_with_its_place(old: str, new: str, named: str) -> None:
    assert old in HEAD
    with pytest.raises(PolicyError, match=r"xx\.yaml") as refusal:
        pack(SOUND, head=HEAD.replace(old, new))
    assert named in str(refusal.value)


def test_membership_begins_and_ends_at_midnight_utc() -> None:
    groups = pack(SOUND).groups

    def member(moment: str) -> bool:
        return bool(place(Country("FR"), groups, instant(moment)).groups)

    assert not member("2019-12-31T23:59:59Z")
    assert member("2020-01-01T00:00:00Z")
    assert member("2020-12-31T23:59:59Z")
    assert not member("2021-01-01T00:00:00Z")


@pytest.fixture
def far_east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose local day begins 14 hours before that of UTC."""
    monkeypatch.setenv("TZ", "<+14>-14")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_days_are_those_of_utc_wherever_the_node_stands(far_east: None) -> None:
    member = pack(SOUND).groups["friends"].members[0]
    assert datetime(2021, 1, 1, tzinfo=UTC).astimezone(None).hour == 14  # sanity: local time is another
    for zone in (UTC, None):
        assert member.holds_at(datetime(2020, 12, 31, 23, 59, tzinfo=UTC).astimezone(zone))
        assert not member.holds_at(datetime(2019, 12, 31, 23, 59, tzinfo=UTC).astimezone(zone))
    assert member.changes() == (datetime(2020, 1, 1, tzinfo=UTC), datetime(2021, 1, 1, tzinfo=UTC))


def test_a_membership_may_last_one_day_or_for_ever() -> None:
    one_day = pack(SOUND, head=HEAD.replace("until: 2020-12-31", "until: 2020-01-01")).groups["friends"].members[0]
    assert (one_day.first, one_day.last) == (date(2020, 1, 1), date(2020, 1, 1))
    for_ever = pack(SOUND, head=HEAD.replace(", until: 2020-12-31", "")).groups["friends"].members[0]
    assert for_ever.holds_at(datetime(9999, 1, 1, tzinfo=UTC))
    assert for_ever.changes() == (datetime(2020, 1, 1, tzinfo=UTC),)
    assert one_day.changes()[1] - one_day.changes()[0] == timedelta(days=1)


def test_what_people_read_in_a_pack_is_kept_as_it_was_written() -> None:
    loaded = pack(SOUND, head=HEAD.replace("example", "checked").replace("jurisdiction: FR", "jurisdiction: null"))
    assert (loaded.title, loaded.source, loaded.status, loaded.jurisdiction) == ("A law", "nowhere", "checked", None)
    assert loaded.groups["friends"].basis == "Article 1"
    bare = load_pack(HEAD.partition("groups:")[0], "xx.yaml", COUNTRIES)
    assert (bare.groups, bare.safeguards, bare.rules.rules, bare.duties.rules) == ({}, {}, {}, {})


def test_two_packs_may_share_a_group_only_if_it_is_the_same() -> None:
    one = pack(SOUND)
    other = load_pack(HEAD.replace("pack: xx", "pack: yy").replace("2020-12-31", "2022-12-31"), "yy.yaml", COUNTRIES)
    twin = load_pack(HEAD.replace("pack: xx", "pack: yy"), "yy.yaml", COUNTRIES)
    assert rule_book((one, twin), COUNTRIES).groups == one.groups
    with pytest.raises(PolicyError, match="different group friends"):
        rule_book((one, other), COUNTRIES)
    with pytest.raises(PolicyError, match="different safeguard promise"):
        rule_book((one, dataclasses.replace(twin, safeguards={"promise": "another"})), COUNTRIES)


def test_the_schema_refuses_names_that_could_break_out_of_it() -> None:
    with pytest.raises(PolicyError, match="expected lower-case"):
        schema_text(COUNTRIES, ['x"]; entity Evil enum ["y'])


def test_the_gdpr_pack_loads_and_says_that_it_is_an_example() -> None:
    gdpr = load_pack(GDPR, "eu-gdpr.yaml", COUNTRIES)
    assert gdpr.status == "example"
    assert list(gdpr.rules.rules) == ["eu-gdpr/transfer"]
    # every safeguard that the pack declares lifts its rule
    assert all(f'Safeguard::"{name}"' in gdpr.rules.text for name in gdpr.safeguards)


def test_the_united_kingdom_left_and_came_back_as_adequate() -> None:
    groups = load_pack(GDPR, "eu-gdpr.yaml", COUNTRIES).groups
    on = {
        year: place(Country("GB"), groups, datetime(year, month, 1, tzinfo=UTC)).groups
        for year, month in ((2019, 6), (2021, 3), (2026, 11), (2032, 1))
    }
    assert on == {2019: {"eea"}, 2021: frozenset(), 2026: {"eu-adequate"}, 2032: frozenset()}
    now = datetime(2026, 11, 21, tzinfo=UTC)
    members = {m.country for m in groups["eea"].members if m.holds_at(now)}
    assert len(members) == 30  # 27 states of the Union, Iceland, Liechtenstein and Norway


@pytest.mark.corpora
def test_the_adequacy_lists_are_those_of_the_data_privacy_vocabulary(corpora: Path) -> None:
    with (corpora / "policy" / "eu-adequacy-dpv-2.1.csv").open(encoding="utf-8", newline="") as table:
        published = {row["country"] for row in csv.DictReader(table)}
    groups = load_pack(GDPR, "eu-gdpr.yaml", COUNTRIES).groups
    ours = {m.country for name in ("eu-adequate", "eu-adequate-for-businesses") for m in groups[name].members}
    assert ours == published
