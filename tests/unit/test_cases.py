"""A case never crosses a border (I1): only named fields are copied, and canaries in all others are found nowhere."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import federation
from federation.errors import LockedError, NotFoundError, UsageError
from federation.outbound import open_in_full
from node.desk import inbox
from node.home.keys import Keys
from node.sharing import advisories, cases, releases
from node.store.database import read
from tests.nodes import DE, FR, IN, World, agree, files_hold, history, make_world

CASE = """
case: FR-2026-017
title: A flaw in a thing
summary: What is known.
details: How it works.
exploit: How it is done.
indicators: [indicator.example, 192.0.2.7]
products: [{vendor: V, product: P, version: "1.10"}]
severity: {cvss_v3: "CVSS:3.1/AV:N/AC:L/PR:N/UI:R/S:C/C:H/I:H/A:H"}
remediation: Install the new one.
reporter: {name: Hedwig Sommerfeld, email: canary-mail@reporter.example, credit: CREDIT}
internal_notes: CANARY-NOTES, not for anybody.
handling: {tlp: GREEN}
"""


def text(*, credit: str = "true") -> str:
    return CASE.replace("CREDIT", credit)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path, FR, DE, IN)
    yield made
    made.close()


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.invariant("I1")
def test_federation_cannot_see_a_case() -> None:
    files = sorted(Path(next(iter(federation.__path__))).rglob("*.py"))
    assert len(files) > 20
    for path in files:
        named = {name.partition(".")[0] for name in _imports(path)}
        assert not named & {"node", "config", "tests", "sqlalchemy"}, path.name


@pytest.mark.invariant("I1")
@pytest.mark.parametrize("credit", ["true", "false"])
def test_only_named_fields_leave_and_canaries_are_found_nowhere(world: World, credit: str) -> None:
    agree(world)
    fr = world[FR]
    cases.open_case(fr, text(credit=credit), "case.yaml")
    made = cases.draft(fr, "FR-2026-017")
    assert made.unlabelled == ()
    _, csaf, ai = advisories.content(fr, made.advisory.name)
    _, outcomes = releases.release(fr, made.advisory.name)
    assert all(outcome.seq is not None for outcome in outcomes)
    world.sync_all(2)
    _, own = advisories.own_advisory(fr, made.advisory.name)
    places: list[bytes] = [repr((csaf, ai, open_in_full(own))).encode(), own.core]
    places += [item for peer in (DE, IN) for item in history(fr, peer) if isinstance(item, bytes)]
    for canary in (b"CANARY", b"canary-mail", b"internal_notes"):
        assert not any(canary in place for place in places)
        assert not files_hold(world[DE], canary)
        assert not files_hold(world[IN], canary)
    credited = credit == "true"
    assert (b"Sommerfeld" in places[0]) is credited
    assert files_hold(world[DE], b"Sommerfeld") is credited
    assert [item.title for item in inbox.items(world[DE])] == ["A flaw in a thing"]  # sanity: it did arrive
    assert files_hold(fr, b"CANARY-NOTES")  # and the case is where it belongs
    assert not files_hold(fr, b"canary-mail")  # the reporter is sealed even there


@pytest.mark.invariant("I1")
def test_a_credit_is_given_only_where_it_was_asked_for(world: World) -> None:
    fr = world[FR]
    cases.open_case(fr, text().replace(", credit: CREDIT", "").replace(", credit: true", ""), "case.yaml")
    _, csaf, _ = advisories.content(fr, cases.draft(fr, "FR-2026-017").advisory.name)
    assert "acknowledgments" not in csaf["document"]


def test_a_draft_has_the_labels_that_its_fields_need(world: World) -> None:
    fr = world[FR]
    cases.open_case(fr, text(), "case.yaml")
    name = cases.draft(fr, "FR-2026-017").advisory.name
    _, own = advisories.own_advisory(fr, name)
    by_path = {element.path: {category.value for category in element.categories} for element in own.elements}
    assert "exploit" in by_path["/csaf/vulnerabilities/0/notes/1"]
    assert "indicator" in by_path["/csaf/vulnerabilities/0/notes/2"]
    assert cases.draft(fr, "FR-2026-017").fresh is False  # twice is once
    assert len(advisories.all_advisories(fr)) == 1


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (("title: A flaw in a thing", ""), "missing title"),
        (("title: A flaw", "also: 1\ntitle: A flaw"), "unknown key also"),
        (("title: A flaw in a thing", "title: 7"), "title: expected text"),
        (("title: A flaw in a thing", "title: ' '"), "title: expected text"),
        (("summary: What is known.", "summary: [a]"), "summary: expected text"),
        (("internal_notes: CANARY-NOTES, not for anybody.", "internal_notes: 7"), "internal_notes: expected text"),
        (("indicators: [indicator.example, 192.0.2.7]", "indicators: text"), "indicators"),
        (("indicators: [indicator.example, 192.0.2.7]", "indicators: [7]"), "indicators"),
        (('version: "1.10"', 'version: "1.10", also: 1'), "product 1: unknown key also"),
        (('version: "1.10"', ""), "product 1"),
        (("products: [", "products: {"), "line"),
        (("severity: {cvss_v3:", "severity: {cvss_v2:"), "severity: missing cvss_v3"),
        (("{name: Hedwig Sommerfeld, email", "{email"), "reporter: missing name"),
        (("credit:", "phone: 7, credit:"), "reporter: unknown key phone"),
        (("credit: true", "credit: 'true'"), "credit"),
        (("case: FR-2026-017", "case: 7"), "case: expected a name"),
        (("case: FR-2026-017", f"case: {'x' * 65}"), "case: expected a name"),
        (("case: FR-2026-017", "case: fünf"), "case: expected a name"),
        (("handling: {tlp: GREEN}", "handling: {}"), "handling: missing tlp"),
        (("handling: {tlp: GREEN}", "handling: {tlp: WHITE}"), "handling"),
        (("handling: {tlp: GREEN}", "handling: {tlp: GREEN, home: DE}"), "unknown key home"),
        (("handling: {tlp: GREEN}", "handling: {tlp: RED}"), "recipients"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_kept(world: World, change: tuple[str, str], rule: str) -> None:
    assert change[0] in text()
    with pytest.raises(UsageError, match=rule) as caught:
        cases.open_case(world[FR], text().replace(*change), "case.yaml")
    assert "case.yaml" in str(caught.value)
    assert "canary-mail" not in str(caught.value)  # I17
    assert cases.all_cases(world[FR]) == ()


def test_a_case_is_opened_once(world: World) -> None:
    fr = world[FR]
    cases.open_case(fr, text(), "case.yaml")
    with pytest.raises(UsageError, match="open already"):
        cases.open_case(fr, text().replace("What is known", "Other"), "case.yaml")
    assert [case.record["summary"] for case in cases.all_cases(fr)] == ["What is known."]
    with pytest.raises(NotFoundError):
        cases.show_case(fr, "other")


def test_the_reporter_is_shown_only_when_asked_for_and_that_is_recorded(world: World) -> None:
    fr = world[FR]
    cases.open_case(fr, text(), "case.yaml")
    assert cases.show_case(fr, "FR-2026-017").reporter is None
    shown = cases.show_case(fr, "FR-2026-017", with_reporter=True)
    assert shown.reporter is not None
    assert shown.reporter["name"] == "Hedwig Sommerfeld"
    assert "reporter" not in shown.record
    with read(fr.engine) as tx:
        acts = tx.exec_driver_sql("select act from audit where act like 'case.%' order by id").scalars().all()
    assert acts == ["case.open", "case.reporter"]


def test_a_reporter_stays_sealed_without_the_passphrase(world: World) -> None:
    fr = world[FR]
    sealed = fr.keys.seal(b"secret")
    assert fr.keys.unseal(sealed) == b"secret"
    with pytest.raises(LockedError):
        Keys(fr.home, None).unseal(sealed)
    with pytest.raises(LockedError):
        Keys(fr.home, b"wrong").unseal(sealed)
    with pytest.raises(LockedError, match="another key"):
        world[DE].keys.unseal(sealed)
