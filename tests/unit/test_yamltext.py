"""YAML as people write it: plain data, the line of every mistake, and nothing that could mean two things."""

import pytest

from federation.errors import UsageError
from federation.yamltext import load, mapping


def test_plain_data_is_read_and_dates_stay_text() -> None:
    text = "when: 2026-11-21T09:30:00Z\nday: 2026-11-21\nlist: [FR, DE]\nnumber: 7\n"
    assert load(text, "file.yaml") == {
        "when": "2026-11-21T09:30:00Z",
        "day": "2026-11-21",
        "list": ["FR", "DE"],
        "number": 7,
    }


@pytest.mark.parametrize(
    ("text", "line", "rule"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3", "stands twice"),
        ("x:\n  a: 1\n  a: 2\n", "line 3", "stands twice"),
        ("a: &same [1]\nb: *same\n", "line 2", "aliases"),
        ("a: 1\n1: b\n", "line 2", "key must be text"),
        ("a: 1\n2: b\n", "line 2", "key must be text"),
        ("? [a, b]\n: 1\n", "line 1", "key must be text"),
        ("base: 1\n<<: {a: 1}\n", "line 2", "merge"),
        ("a: !!python/object/apply:os.system [ls]\n", "line 1", "tag"),
        ("a: !own 1\n", "line 1", "tag"),
        ("a: 1\n---\na: 2\n", "line 2", "another document"),
        ("a: [1\n", "line 2", "expected"),
    ],
)
def test_what_could_mean_two_things_is_refused_with_its_line(text: str, line: str, rule: str) -> None:
    with pytest.raises(UsageError, match=rf"file\.yaml, {line}: .*{rule}"):
        load(text, "file.yaml")


def test_what_is_no_text_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match=r"file\.yaml"):
        load("a: \x00", "file.yaml")


def test_nesting_without_end_is_refused_and_not_followed() -> None:
    with pytest.raises(UsageError, match="not readable"):
        load("[" * 20_000, "file.yaml")


def test_a_bomb_of_aliases_is_not_unfolded() -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(20)
    )
    with pytest.raises(UsageError, match="aliases"):
        load(bomb, "file.yaml")


@pytest.mark.parametrize(
    ("value", "found"), [(None, "nothing"), ([], "a list"), ("x", "text"), (1, "a number"), (True, "true/false")]
)
def test_a_mapping_says_what_it_found_in_its_place(value: object, found: str) -> None:
    with pytest.raises(UsageError, match=f"here: expected keys and values, found {found}"):
        mapping(value, "here", required=())


def test_a_mapping_has_exactly_its_keys() -> None:
    assert mapping({"a": 1, "b": 2}, "here", required=("a",), optional=("b",)) == {"a": 1, "b": 2}
    with pytest.raises(UsageError, match="here: missing a"):
        mapping({"b": 2}, "here", required=("a",), optional=("b",))
    with pytest.raises(UsageError, match=r"here: unknown key c, d \(known here: a, b\)"):
        mapping({"a": 1, "d": 1, "c": 2}, "here", required=("a",), optional=("b",))
