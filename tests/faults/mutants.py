"""Mutations that know the formats: what comes out is nearly right, so that it gets past the first check of a reader.

JSON is changed as a tree and spelled by hand, since no encoder writes a key twice, NaN or half a surrogate pair;
protobuf field by field on the wire; YAML line by line; what is base64url, JSON or a JWT inside something else is
changed as such. Everything follows from the `random.Random` that is handed in. Signing anew is for
`tests.faults.resigned`.
"""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from google.protobuf.message import Message

from federation.base64url import b64url, from_b64url
from federation.errors import RemoteError

_DEEP = 3_000  # levels; Python's own parser ends at a third of it
_MANY = 400
_LONG = 70_000  # characters, digits
_MAX_RAW = 1 << 18  # what grows further is cut


@dataclass(frozen=True, slots=True)
class Spelled:
    """JSON text as it stands, right or wrong."""

    text: bytes


class Members(list[tuple[Any, Any]]):
    """An object as it is written: a name may stand twice."""


_STRINGS = (
    "", " ", "\x00", "a\x00b", "\ufeff", "\u202e", "\u2028", "\U0010ffff", "é", "e\u0301", "٣", "²", "NaN",
    "null", "true", "0", "-1", "00", "1e400", "_sd", "...", "_sd_alg", "sha-256", "Ed25519", "none", "/", "~", "../..",
    "*",
    "https://evil.example/", "cert.fr.example", "cert.de.example", "CERT.FR.EXAMPLE", "cert.fr.example.", "a.b", "FR",
    "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2026-02-30T00:00:00Z", "2026-11-21T09:30:60Z",
    "٢٠٢٦-11-21T09:30:00Z", "2026-11-21T09:30:00z", "0000-01-01T00:00:00Z", "x" * _LONG, "a" * 256, "=cmd|' '!A0",
    "\x1b[2J", "%s%n", "{0}", "AMBER", "RED", "CLEAR", "full", "withheld", "personal", "cert.fr.example/feeds/x.y/1",
)  # fmt: skip
_NUMBERS = (
    0, 1, -1, 2, 255, 256, 1 << 31, (1 << 31) - 1, 1 << 32, 1 << 53, (1 << 53) + 1, (1 << 63) - 1, 1 << 63, 1 << 64,
    253_402_300_799, 253_402_300_800, 10**63, 10**64, -(1 << 63), 0.5, -0.0, 1e308, 5e-324, 1.0,
)  # fmt: skip
_TEXTS = (
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"1e-999", b"1" * 65, b"1" * 5_000, b"-" * 3, b"01", b"1.", b"+1",
    b"0x10", b"'a'", b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\u0000"', b'"\xff"', b'"\xc0\x80"', b'"\xed\xa0\x80"',
    b'"\n"', b'"',
    b"\xef\xbb\xbf1", b"", b",", b"]", b"}", b"1,1", b"//", b"[" * _DEEP, b"[" * _DEEP + b"]" * _DEEP,
    b'{"a":' * _DEEP + b"1" + b"}" * _DEEP, b"[[]" + b",[]" * _MANY + b"]", b'{"a":1,"a":2}', b'{"\\u0061":1,"a":2}',
)  # fmt: skip
_SPLICES = (
    b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xc0\x80", b"\xed\xa0\x80", b"\xe2\x80\xae", b"\n", b"\r\n", b"\n\n", b" ",
    b"\t", b"=", b".", b"~", b"..", b"\xd9\xa3", b"\xff" * 10, b"\x80" * 11, b"+", b"/", b'"', b"\\", b"{", b"[",
    b"A" * 300,
    b"\xe2\x80\x94 x AAAA\n",
)  # fmt: skip
_YAML = (
    "&a [*a]", "*a", "!!python/object:os.system x", "!x y", "<<: {a: 1}", "<<", "=", "? a", "? [a]", "{[a]: 1}",
    "- - -", "[" * 500, "{a: " * 500, "0x" + "f" * 5_000, "0b" + "1" * 20_000, "0" + "7" * 6_000, "1" * 5_000,
    "1_000", "190:20",
    ".nan", ".inf", "-.inf", "1e400", "2026-11-21", "2026-11-21T09:30:00Z", "NO", "yes", "~", "null", "true", "trueish",
    '"\\ud800"', '"\\x00"', '"\\U00110000"', '"\\xg"', "'", '"', "|", ">", "%YAML 1.3", "---", "...", "a: b: c", ":",
    "@", "`", "\t", "\x00", "\ufeff", "\x85", "\u2028", "é", "٣", "-1", "0", "1.5", "[]", "{}", "''", "x" * _LONG,
    "host:0", "127.0.0.1:" + "1" * 5_000, "127.0.0.1:٣", "[::1]:1", "[::1%25x]:1", "postgresql://u@h:99999/n",
    "postgresql://[::1/n", "forbid (principal,",
)  # fmt: skip


def mutated(data: bytes, chance: Random) -> bytes:
    """`data` changed as what it looks like: JSON, a JWT, base64url, or bytes."""
    if chance.random() < 0.1:
        return raw(data, chance)
    if data[:1] in (b"{", b"["):
        return json_text(data, chance)
    if data.count(b".") == 2 and data[:2] == b"ey":
        return jwt(data, chance)
    return raw(data, chance)


def raw(data: bytes, chance: Random) -> bytes:
    """A few stretches of `data` replaced, doubled, or left out."""
    for _ in range(chance.choice((1, 1, 2, 5))):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice((0, 0, 1, 1, 2, 8, 100)))
        new = chance.choice(
            (b"", data[start:end] * 2, bytes([chance.randrange(256)]), chance.choice(_SPLICES), data[end : end + 8])
        )
        data = data[:start] + new + data[end:]
    return data[: chance.randrange(len(data) + 1)] if chance.random() < 0.05 else data[:_MAX_RAW]


def json_text(data: bytes, chance: Random) -> bytes:
    """The JSON text `data` with its tree changed in some places; other bytes are changed as bytes."""
    try:
        tree: list[Any] = [json.loads(data, object_pairs_hook=Members)]
    except (ValueError, RecursionError):
        return raw(data, chance)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        places = list(_places(tree)) or [(tree := [None], 0)]
        holder, index = chance.choice(places)
        chance.choice(_CHANGES)(holder, index, places, chance)
    try:
        return b",".join(b"".join(_spell(value)) for value in tree)
    except RecursionError:  # it was grafted into itself often enough
        return data


def jwt(data: bytes, chance: Random) -> bytes:
    """One part of a compact JWS changed; its signature is not made anew."""
    parts = data.split(b".")
    place = chance.randrange(len(parts))
    parts[place] = text(parts[place].decode("latin-1"), chance).encode("utf-8", "surrogatepass")
    return b".".join(parts)


def text(value: str, chance: Random) -> str:
    """A string changed as what it looks like."""
    if chance.random() < 0.3:
        return chance.choice(_STRINGS)
    if len(value) >= 8 and value.isascii():
        try:
            return b64url(mutated(from_b64url(value), chance)) + chance.choice(("", "", "", "", "=", "A", "\n"))
        except RemoteError:
            pass
    at = chance.randrange(len(value) + 1)
    changes = (
        lambda: value[:at] + chance.choice(_STRINGS) + value[at:],
        lambda: value[:at] + value[at + 1 :],
        lambda: value.translate({0x30 + n: 0x660 + n for n in range(10)}),  # Arabic-Indic digits
        lambda: value.translate({0x30 + n: 0xFF10 + n for n in range(10)}),  # full-width digits
        lambda: value.swapcase(),
        lambda: value * chance.choice((2, 50)),
        lambda: f" {value}",
        lambda: f"{value}\n",
        lambda: value[:at] + chr(ord(value[at]) ^ 1) + value[at + 1 :] if at < len(value) else value,
    )
    return chance.choice(changes)()[:_LONG]


def message(data: bytes, kind: type[Message], chance: Random) -> bytes:
    """A protobuf message of a kind with fields changed, at any depth, on the wire."""
    return _message(data, kind.DESCRIPTOR, chance)


def _message(data: bytes, kind: Any, chance: Random) -> bytes:
    fields = _taken_apart(data)
    if not fields or chance.random() < 0.05:
        return raw(data, chance) if fields is None else data + _unknown(chance)
    for _ in range(chance.choice((1, 1, 2))):
        if not fields:
            break
        at = chance.randrange(len(fields))
        number, value = fields[at]
        known = kind.fields_by_number.get(number)
        if isinstance(value, bytes) and known is not None and chance.random() < 0.7:
            inside = known.message_type
            new = _message(value, inside, chance) if inside is not None else mutated(value, chance)
            fields[at] = (number, new)
        elif isinstance(value, int) and chance.random() < 0.5:
            fields[at] = (
                number,
                chance.choice((0, 1, value + 1, max(0, value - 1), 1 << 31, (1 << 63) - 1, (1 << 64) - 1)),
            )
        else:
            _reordered(fields, at, chance)
    return b"".join(_field(number, value, chance) for number, value in fields) + (
        _unknown(chance) if chance.random() < 0.05 else b""
    )


def der(data: bytes, chance: Random) -> bytes:
    """A certificate with another byte in one of its short values: numbers, truth values, names of algorithms."""
    short = [n for n in range(len(data) - 2) if data[n] in (1, 2, 3, 6) and 0 < data[n + 1] <= 10]
    at = chance.choice(short)
    at += 2 + chance.randrange(data[at + 1])
    return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :] if at < len(data) else data


def yaml(data: bytes, chance: Random) -> bytes:
    """Lines of a YAML file left out, doubled, moved in, or with other values."""
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    for _ in range(chance.choice((1, 1, 2, 3))):
        at = chance.randrange(len(lines))
        lines[at : at + 1] = _other_lines(lines, lines[at], chance)
        lines = lines or [""]
    return "\n".join(lines).encode("utf-8", "surrogatepass")[:_MAX_RAW]


def _other_lines(lines: list[str], line: str, chance: Random) -> list[str]:
    """What stands in place of `line`."""
    name, colon, value = line.partition(":")
    hostile, scalar = chance.choice(_YAML), value.strip(" []{}").partition(",")[0] or " "
    choices: tuple[list[str], ...] = (
        [],
        [line, line],
        [f"{name}: {hostile}"],
        [f"{name}: {hostile}"],
        [f"{hostile}{colon}{value}"],
        [f"  {line}"],
        [line.lstrip()],
        [line, hostile],
        [line.replace(scalar, hostile, 1)],
        [f"{name}: [{value}]"],
        [chance.choice(lines)],
        [raw(line.encode("utf-8", "surrogateescape"), chance).decode("utf-8", "replace")],
    )
    return chance.choice(choices)


def _places(tree: list[Any]) -> Iterator[tuple[list[Any], int]]:
    stack: list[list[Any]] = [tree]
    while stack:
        holder = stack.pop()
        for index, item in enumerate(holder):
            yield holder, index
            value = item[1] if isinstance(holder, Members) else item
            if isinstance(value, list):
                stack.append(value)


_Places = list[tuple[list[Any], int]]
_Change = Callable[[list[Any], int, _Places, Random], None]


def _value(holder: list[Any], index: int) -> Any:
    return holder[index][1] if isinstance(holder, Members) else holder[index]


def _put(holder: list[Any], index: int, value: Any) -> None:
    holder[index] = (holder[index][0], value) if isinstance(holder, Members) else value


def _hostile(holder: list[Any], index: int, _: _Places, chance: Random) -> None:
    plain: tuple[Any, ...] = (None, True, False, [], Members())
    kinds = (_STRINGS, _NUMBERS, tuple(map(Spelled, _TEXTS)), plain)
    _put(holder, index, chance.choice(chance.choice(kinds)))


def _changed(holder: list[Any], index: int, places: _Places, chance: Random) -> None:
    """The same value, a little different."""
    value = _value(holder, index)
    if isinstance(value, str):
        _put(holder, index, text(value, chance))
    elif isinstance(value, bool) or value is None:
        _put(holder, index, not value)
    elif isinstance(value, int):
        alike = (value + 1, value - 1, -value, float(value) if abs(value) < 1 << 60 else 0, bool(value), str(value))
        _put(holder, index, chance.choice((*alike, Spelled(b"%de0" % value))))
    else:
        _hostile(holder, index, places, chance)


def _left_out(holder: list[Any], index: int, _: _Places, __: Random) -> None:
    del holder[index]


def _doubled(holder: list[Any], index: int, _: _Places, chance: Random) -> None:
    times = chance.choice((1, 1, 1, _MANY)) if len(str(holder[index])) < 100 else 1
    holder[index:index] = [copy.deepcopy(holder[index]) for _ in range(times)]


def _renamed(holder: list[Any], index: int, places: _Places, chance: Random) -> None:
    others = [other[at][0] for other, at in places if isinstance(other, Members)]
    name = chance.choice((*others, *_STRINGS[:30]))
    if isinstance(holder, Members):
        holder[index] = (name, holder[index][1])
    else:
        _put(holder, index, Members([(name, holder[index])]))


def _grafted(holder: list[Any], index: int, places: _Places, chance: Random) -> None:
    _put(holder, index, copy.deepcopy(_value(*chance.choice(places))))


def _added(holder: list[Any], index: int, places: _Places, chance: Random) -> None:
    value = copy.deepcopy(_value(*chance.choice(places)))
    holder.insert(index, (chance.choice(_STRINGS[:30]), value) if isinstance(holder, Members) else value)


def _wrapped(holder: list[Any], index: int, _: _Places, chance: Random) -> None:
    value = _value(holder, index)
    wrappers = (
        [value],
        Members([("_sd", value)]),
        Members([("...", value)]),
        Members([("a", value)]),
        str(value)[:_LONG],
    )
    _put(holder, index, chance.choice(wrappers))


_CHANGES: tuple[_Change, ...] = (
    _hostile, _hostile, _changed, _changed, _changed, _left_out, _doubled, _renamed, _grafted, _added, _wrapped,
)  # fmt: skip


def _spell(value: Any) -> Iterator[bytes]:
    if isinstance(value, Spelled):
        yield value.text
    elif isinstance(value, Members):
        yield b"{"
        for number, (name, member) in enumerate(value):
            yield b"," if number else b""
            yield from _spell(name)
            yield b":"
            yield from _spell(member)
        yield b"}"
    elif isinstance(value, list):
        yield b"["
        for number, item in enumerate(value):
            yield b"," if number else b""
            yield from _spell(item)
        yield b"]"
    else:
        yield json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _taken_apart(data: bytes) -> list[tuple[int, int | bytes]] | None:
    """The fields of a message as they stand on the wire; None for what is none, or uses other wire types."""
    fields: list[tuple[int, int | bytes]] = []
    place = 0
    try:
        while place < len(data):
            tag, place = _varint(data, place)
            value, place = _varint(data, place)
            if tag & 7 == 2:
                if place + value > len(data):
                    return None
                fields.append((tag >> 3, data[place : place + value]))
                place += value
            elif tag & 7 == 0:
                fields.append((tag >> 3, value))
            else:
                return None
    except IndexError:
        return None
    return fields


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[place] & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if data[place - 1] < 0x80:
            return value, place


def _reordered(fields: list[tuple[int, int | bytes]], at: int, chance: Random) -> None:
    number, value = fields[at]
    many = _MANY if isinstance(value, int) or len(value) < 100 else 1
    changes: tuple[Callable[[], list[tuple[int, int | bytes]]], ...] = (
        list,
        lambda: [fields[at]] * 2,
        lambda: [fields[at]] * many,
        lambda: [(chance.randrange(1, 16), value)],
        lambda: [(number, 7 if isinstance(value, bytes) else b"\x01\x02")],  # another wire type
        lambda: [fields[at], chance.choice(fields)],
    )
    fields[at : at + 1] = chance.choice(changes)()
    if chance.random() < 0.2:
        chance.shuffle(fields)


def _field(number: int, value: int | bytes, chance: Random) -> bytes:
    if isinstance(value, int):
        return _number(number << 3) + _number(value & (1 << 64) - 1, long=chance.random() < 0.02)
    return _number(number << 3 | 2) + _number(len(value)) + value


def _number(value: int, *, long: bool = False) -> bytes:
    """A varint; with `long` in more bytes than it needs."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + (bytes([value | 0x80]) + b"\x00" if long and len(out) < 8 else bytes([value]))


def _unknown(chance: Random) -> bytes:
    """A field that no schema has: a number, bytes, a group, or the beginning of one."""
    return chance.choice(
        (b"\xf8\x01\x05", b"\xfa\x01\x02hi", b"\xfb\x01\x08\x01\xfc\x01", b"\xfb\x01" * 200, b"\x0b", b"\x07")
    )
