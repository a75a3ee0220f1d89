"""Careless operators: what they write by mistake is told with its place, and changes nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from config import data, settings
from config.settings import Settings
from federation import csaf
from federation.csaf import Problem
from federation.errors import (
    MalformedError,
    UsageError,
)
from federation.model import Country, JsonObject, NodeId, Tlp, instant, instant_text
from federation.yamltext import load
from node.main import init_home
from node.sharing import cases, releases
from tests.nodes import (
    ADDRESS,
    DE,
    FR,
    World,
    agree,
    document,
    import_document,
    issued,
    make_world,
)

Change = Callable[[JsonObject], object]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path, FR, DE)
    yield made
    made.close()


# Forms that are not the one form


@pytest.mark.invariant("I6")
def test_an_instant_in_other_digits_is_refused() -> None:
    with pytest.raises(MalformedError):
        instant("\uff12\uff10\uff12\uff17-01-01T00:00:00Z")


def test_an_early_instant_is_written_as_it_was_read() -> None:
    assert instant_text(instant("0999-01-01T00:00:00Z")) == "0999-01-01T00:00:00Z"


# Careless operators


@pytest.mark.parametrize("text", ["a: 0x_", "a: 0b_", "a: " + "9" * 5000])
def test_a_number_that_cannot_be_read_is_a_mistake_with_a_line(text: str) -> None:
    with pytest.raises(UsageError, match=r"f\.yaml"):
        load(text, "f.yaml")


@pytest.mark.parametrize(
    "text", ["a: !!int '5'", "a: !!timestamp 2026-01-01", "a: !!binary aGk=", "a: !!set {b}", "!!omap [a: 1]"]
)
def test_a_tag_is_an_error_as_the_module_says(text: str) -> None:
    with pytest.raises(UsageError, match="tag"):
        load(text, "f.yaml")


@pytest.mark.parametrize("version", ["1.10", "010", "null", "true", "[1]"])
def test_a_product_version_that_yaml_would_change_is_refused(world: World, version: str) -> None:
    text = (
        "case: X\ntitle: T\nsummary: S\nhandling: {tlp: GREEN}\n"
        f"products: [{{vendor: V, product: P, version: {version}}}]\n"
    )
    with pytest.raises(UsageError, match="version"):
        cases.open_case(world[FR], text, "case.yaml")


@pytest.mark.parametrize(
    "member",
    ["reporter: {name: 7}", "reporter: {name: [a]}", "severity: {cvss_v3: 7}", "severity: {cvss_v3: no vector}"],
)
def test_a_case_that_could_never_be_drafted_is_not_opened(world: World, member: str) -> None:
    text = f"case: X\ntitle: T\nsummary: S\nhandling: {{tlp: GREEN}}\n{member}\n"
    with pytest.raises(UsageError):
        cases.open_case(world[FR], text, "case.yaml")


def test_an_import_does_not_widen_the_tlp_that_a_file_brings(world: World) -> None:
    with pytest.raises(UsageError):
        import_document(world[FR], document("X"), handling={"tlp": "AMBER"}, tlp=Tlp.CLEAR)


def test_what_narrowing_leaves_without_products_is_withheld_and_does_not_crash(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    agree(world)
    content = document("X", product_tree={"full_product_names": [{"product_id": "P1", "name": "Thing"}]})
    content["document"]["category"] = "csaf_security_advisory"
    content["vulnerabilities"] = [
        {"notes": [{"category": "summary", "text": "A flaw."}], "product_status": {"known_affected": ["P1"]}}
    ]
    name = import_document(world[FR], content, labels={"/csaf/document/notes/0": "victim"})

    def problems(given: JsonObject) -> tuple[Problem, ...]:
        return (Problem("6.1.99", "/product_tree/full_product_names/0"),) if "product_tree" in given else ()

    issued(world[FR], name)
    monkeypatch.setattr(csaf, "problems", problems)
    _, outcomes = releases.preview(world[FR], name, (DE,))
    assert outcomes[0].held is None


# Homes


def _init(home: Path) -> None:
    init_home(home, FR, Country("FR"), ADDRESS, ADDRESS, roots=1, threshold=1, packs=())


def test_a_folder_that_was_there_is_closed_to_others_too(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    _init(home)
    assert home.stat().st_mode & 0o077 == 0


def test_the_write_ahead_log_is_never_readable_by_others(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    _init(home)
    readable = [path.name for path in home.glob("apostille.db*") if path.stat().st_mode & 0o077]
    assert readable == []


def test_a_home_that_is_a_file_is_a_mistake_that_is_told(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.write_text("x", encoding="utf-8")
    with pytest.raises(UsageError):
        _init(home)


def test_every_country_can_have_a_node_norway_too() -> None:
    for code in data.countries():
        chosen = Settings(NodeId("cert.xx.example"), Country(code), ADDRESS, ADDRESS, 60, ("eu-gdpr",))
        assert settings.read(settings.write(chosen), "apostille.yaml") == chosen


def test_a_country_code_is_never_taken_for_false() -> None:
    assert load("storage: [NO, no, off, yes, true, false]", "f.yaml") == {
        "storage": ["NO", "no", "off", "yes", True, False]
    }
