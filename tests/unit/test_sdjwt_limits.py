"""An SD-JWT at its limits: the last that is read and the first that is refused, and the place that a refusal names."""

from typing import Any

import pytest

from federation import ed25519
from federation.base64url import b64url
from federation.errors import MalformedError, RemoteError, TooLargeError
from federation.limits import MAX_DISCLOSURES, MAX_ENTRY_BYTES, MAX_JSON_DEPTH
from federation.sdjwt import Disclosure, parse, process, read_header_and_payload, serialise
from federation.sdjwt.compact import _MAX_CHARS
from federation.sdjwt.profile import header
from federation.strictjson import encode

SALT = bytes(range(16))
SIGNATURE = b64url(bytes(ed25519.SIGNATURE_BYTES)).encode()


def made(name: str | None, value: object) -> Disclosure:
    return Disclosure.make(SALT, name, value)


def core(payload: bytes, first: bytes | None = None) -> bytes:
    first = encode(header("issue-1")) if first is None else first
    return b".".join((b64url(first).encode(), b64url(payload).encode(), SIGNATURE))


def nested(form: str, levels: int) -> tuple[dict[str, Any], list[Disclosure]]:
    """A payload whose deepest array or object is at `levels`, the payload itself counted, and all its disclosures."""
    value: Any = 1
    shown: list[Disclosure] = []
    for _ in range(levels - 1):
        if form == "arrays":
            value = [value]
        elif form == "objects":
            value = {"x": value}
        else:
            shown.append(made("x" if form == "members" else None, value))
            digest = shown[-1].digest
            value = {"_sd": [digest]} if form == "members" else [{"...": digest}]
    return {"x": value}, shown


@pytest.mark.parametrize("form", ["arrays", "objects", "members", "elements"])
def test_levels_count_alike_plain_and_across_disclosures(form: str) -> None:
    payload, shown = nested(form, MAX_JSON_DEPTH)
    assert len(process(payload, shown).nodes) == len(shown)
    payload, shown = nested(form, MAX_JSON_DEPTH + 1)
    with pytest.raises(TooLargeError, match=f"deeper than {MAX_JSON_DEPTH} levels"):
        process(payload, shown)


def test_as_many_disclosures_as_allowed_are_read() -> None:
    many = [made(None, number) for number in range(MAX_DISCLOSURES)]
    payload = {"list": [{"...": disclosure.digest} for disclosure in many]}
    assert process(payload, many).claims == {"list": list(range(MAX_DISCLOSURES))}
    with pytest.raises(TooLargeError, match=f"{MAX_DISCLOSURES + 1} disclosures"):
        process(payload, [*many, made("one", "more")])


def test_a_core_may_be_as_long_as_an_entry() -> None:
    short = core(b'{"iss":"cert.fr.example"}')
    longest = short + b"A" * (MAX_ENTRY_BYTES - len(short))  # in base64url, "A" is six bits of zero
    assert read_header_and_payload(longest).core == longest
    with pytest.raises(TooLargeError, match=f"core: {MAX_ENTRY_BYTES + 1} bytes"):
        read_header_and_payload(longest + b"A")


def test_a_compact_form_may_be_as_long_as_its_limit() -> None:
    text = "a" * (_MAX_CHARS - 1) + "~"
    assert parse(text) == (text[:-1].encode(), ())
    with pytest.raises(TooLargeError):
        parse("a" + text)


def test_a_disclosure_that_was_parsed_is_the_one_that_was_made() -> None:
    for name in ("title", None):
        one = made(name, {"a": [1]})
        read = Disclosure.parse(one.raw)
        assert (read.raw, read.salt, read.name, read.value, read.digest) == (
            one.raw,
            b64url(SALT),
            name,
            {"a": [1]},
            one.digest,
        )
        assert serialise(b"core", [read.raw]) == f"core~{b64url(one.raw)}~"


@pytest.mark.parametrize(
    ("bytes_", "place"),
    [
        (core(b"{}", b"{"), "core header"),
        (core(b"{}", encode({**header("k"), "alg": "none"})), "core header"),
        (core(b"{"), "core payload"),
        (core(b"{}"), "core payload"),
        (b"a.b", "core"),
    ],
)
def test_a_refusal_names_the_part_that_is_wrong(bytes_: bytes, place: str) -> None:
    with pytest.raises(RemoteError, match=f"^{place}: "):
        read_header_and_payload(bytes_)


def test_a_disclosure_that_is_no_json_is_named_so() -> None:
    with pytest.raises(MalformedError, match=r"^disclosure: "):
        Disclosure.parse(b"[")
