"""Strict JSON and strict base64url: one meaning for each byte string, or a refusal."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from federation.base64url import b64url, from_b64url
from federation.errors import MalformedError, TooLargeError
from federation.limits import MAX_JSON_DEPTH, MAX_NUMBER_CHARS
from federation.strictjson import decode, decode_object, encode


def read(data: bytes) -> Any:
    return decode(data, max_bytes=1 << 20, what="test")


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b'{"b":1,"a":[true,null,"\xc3\xa9"]}', {"b": 1, "a": [True, None, "é"]}),
        (b' "\\ud83d\\ude00" ', "😀"),
        (b'"\\\\ud800"', "\\ud800"),  # an escaped backslash, not an escape
        (b'{"a":{"k":1},"b":{"k":2}}', {"a": {"k": 1}, "b": {"k": 2}}),
        (b"9007199254740993", 9007199254740993),
        (b"-" + b"9" * (MAX_NUMBER_CHARS - 1), -(10 ** (MAX_NUMBER_CHARS - 1) - 1)),
        (b"1e308", 1e308),
        (b"[" * MAX_JSON_DEPTH + b"]" * MAX_JSON_DEPTH, None),
        (b'"' + b"[" * 1000 + b'"', "[" * 1000),
        (b'["\\"' + b"{" * 1000 + b'"]', ['"' + "{" * 1000]),
    ],
)
def test_accepted(data: bytes, value: Any) -> None:
    assert read(data) == value or value is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{} {}",
        b"{'a':1}",
        b"\xef\xbb\xbf{}",  # a byte order mark
        "{}".encode("utf-16"),
        b'"\xff"',
        b'"\xed\xa0\x80"',  # a surrogate as raw bytes
        b'"\\ud800"',
        b'"\\uDC00x"',
        b'{"\\uDBFF":1}',
        b'{"a":1,"a":1}',
        b'{"a":1,"\\u0061":2}',
        b'[{"x":{"a":1,"a":2}}]',
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"1e309",
        b"[-1e999]",
        b"9" * (MAX_NUMBER_CHARS + 1),
        b"9" * 100_000,
        b"0." + b"1" * MAX_NUMBER_CHARS,
        b"01",
        "\u0661".encode(),
        b'"\n"',
        b"[" * (MAX_JSON_DEPTH + 1) + b"]" * (MAX_JSON_DEPTH + 1),
        b'{"a":' * (MAX_JSON_DEPTH + 1) + b"1" + b"}" * (MAX_JSON_DEPTH + 1),
        b"[" * 500_000,
        b'["' + b"\\" * 2 + b'",' + b"[" * 500_000,
    ],
)
def test_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        read(data)


def test_sizes_and_shapes() -> None:
    assert decode(b"[1]", max_bytes=3, what="test") == [1]
    with pytest.raises(TooLargeError):
        decode(b"[1] ", max_bytes=3, what="test")
    assert decode_object(b'{"a":1}', max_bytes=9, what="test") == {"a": 1}
    for data in (b"[]", b"null", b'"{}"'):
        with pytest.raises(MalformedError):
            decode_object(data, max_bytes=9, what="test")


@pytest.mark.invariant("I17")
@pytest.mark.parametrize(
    "data",
    [b'{"secret":1,"secret":2}', b'{"secret" 1}', b'{"a":"secret\\ud800"}', b'{"a":"secret\xff"}', b'{"secret":1e999}'],
)
def test_errors_and_their_causes_carry_no_content(data: bytes) -> None:
    with pytest.raises(MalformedError) as caught:
        read(data)
    error: BaseException | None = caught.value
    while error is not None:
        assert "secret" not in str(error)
        error = error.__cause__


def test_an_unterminated_string_costs_one_pass() -> None:
    """Each quote could start a string that runs to the end: quadratic if the depth check tried them all."""
    with pytest.raises(MalformedError):
        decode(b'"' + b'\\"' * 2_000_000, max_bytes=1 << 23, what="test")


def test_encode() -> None:
    assert encode({"b": "é", "a": [1, 1.5, None]}) == '{"b":"é","a":[1,1.5,null]}'.encode()
    for value in (float("nan"), float("inf"), "\ud800"):
        with pytest.raises(ValueError, match=r"."):
            encode(value)


@pytest.mark.corpora
def test_json_test_suite(corpora: Path) -> None:
    """JSONTestSuite: y_ is accepted, n_ refused, i_ either, and what is accepted survives a round trip."""
    outcomes: Counter[str] = Counter()
    for path in sorted((corpora / "crypto/json-parsing").glob("*.json")):
        data, kind = path.read_bytes(), path.name[0]
        if path.name in DUPLICATES:
            with pytest.raises(MalformedError, match="same key twice"):
                read(data)
            outcomes["y refused as duplicate keys"] += 1
            continue
        try:
            value = read(data)
        except MalformedError:
            assert kind in "ni", path.name
            outcomes[f"{kind} refused"] += 1
        else:
            assert kind in "yi", path.name
            assert read(encode(value)) == value == json.loads(data)
            outcomes[f"{kind} accepted"] += 1
    assert outcomes == {
        "y accepted": 50,
        "y refused as duplicate keys": 1,
        "n refused": 105,
        "i accepted": 4,
        "i refused": 16,
    }


# RFC 8259 4 leaves duplicate keys to the reader; ours refuses them (the one departure from y_).
DUPLICATES = {"y_object_duplicated_key_and_value.json"}


@pytest.mark.parametrize(("data", "text"), [(b"", ""), (b"\xff", "_w"), (b"\xfb\xff", "-_8"), (b"abc", "YWJj")])
def test_base64url(data: bytes, text: str) -> None:
    assert b64url(data) == text
    assert from_b64url(text) == data


@pytest.mark.parametrize(
    "text", ["_w==", "_x", "A", "AAAAA", "+w", "/w", " _w", "_w\n", "_w ", "Ä", "YW Jj", "YWJj\u0661"]
)
@pytest.mark.invariant("I7")
def test_a_second_spelling_in_base64url_is_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        from_b64url(text)
