"""JSON as RFC 8259 has it, read so that nobody else can read something different in the same bytes.

Python's own parser accepts duplicate keys, NaN, lone surrogates and floats that overflow to infinity, recurses once for
each level, and fails with a plain ValueError on integers of thousands of digits. All of these are refused here, and so
is a byte order mark and every encoding but UTF-8 (RFC 8259 8.1). Integers keep all their digits; a reader that needs
them to fit a double or 64 bits checks that where it knows what they mean.

Error texts name the place and the rule, never a key or a value (I17).
"""

import json
import math
import re
from typing import Any, NoReturn

from federation.errors import MalformedError, TooLargeError
from federation.limits import MAX_JSON_DEPTH, MAX_NUMBER_CHARS
from federation.model import JsonObject

# Possessive, and with an optional closing quote: matches at every quote, so that an unterminated string costs one pass.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def decode(data: bytes, *, max_bytes: int, what: str) -> Any:
    """The value that `data` spells; `what` names it in error texts ("agreement").

    1. at most `max_bytes` long, else TooLargeError
    2. nested at most MAX_JSON_DEPTH deep, counted before anything recurses
    3. UTF-8 without a byte order mark
    4. RFC 8259 grammar, with unique keys, finite numbers of at most MAX_NUMBER_CHARS characters
    5. strings of Unicode scalar values only: no lone surrogates

    2 to 5 raise MalformedError.
    """
    if len(data) > max_bytes:  # (1)
        raise TooLargeError(f"{what}: {len(data)} bytes, at most {max_bytes} are allowed")
    if _depth(data) > MAX_JSON_DEPTH:  # (2)
        raise MalformedError(f"{what}: nested deeper than {MAX_JSON_DEPTH} levels")
    try:
        text = data.decode("utf-8")  # (3); a byte order mark is no JSON, so the parser refuses it at (4)
        value = _DECODER.decode(text)
        if _SURROGATE_ESCAPE.search(text):  # (5); raw surrogates fell at (3), so only escapes can bring one in
            encode(value)
    except UnicodeDecodeError as e:
        raise MalformedError(f"{what}: not UTF-8") from e
    except UnicodeEncodeError:
        # From None: the exception carries the whole string it could not encode.
        raise MalformedError(f"{what}: an escape names half of a surrogate pair") from None
    except json.JSONDecodeError as e:
        place = f"line {e.lineno}, column {e.colno}"
        raise MalformedError(f"{what}: not JSON at {place}") from None  # likewise carries the document
    except _RuleError as e:
        raise MalformedError(f"{what}: {e}") from e
    return value


def decode_object(data: bytes, *, max_bytes: int, what: str) -> JsonObject:
    """Like `decode`; a top-level value other than an object raises MalformedError."""
    value = decode(data, max_bytes=max_bytes, what=what)
    if not isinstance(value, dict):
        raise MalformedError(f"{what}: not a JSON object")
    return value


def encode(value: Any) -> bytes:
    """`value` as compact UTF-8 JSON with its key order kept.

    Raises ValueError for what JSON cannot say (NaN, infinities, lone surrogates) and TypeError for other types.
    """
    return _ENCODER.encode(value).encode("utf-8")


class _RuleError(Exception):
    """A rule of this module that a hook of the parser found broken."""


def _depth(data: bytes) -> int:
    """The deepest nesting of brackets outside strings: exact up to the first error that the parser would meet.

    0 for data that has no more brackets than the limit.
    """
    if data.count(b"[") + data.count(b"{") <= MAX_JSON_DEPTH:
        return 0  # too few brackets to be deep, wherever they stand: most disclosures end here
    deepest = depth = 0
    for bracket in _STRING.sub(b"", data).translate(None, _NOT_BRACKETS):
        depth += _STEP[bracket]
        deepest = max(deepest, depth)
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> JsonObject:
    members = dict(pairs)
    if len(members) != len(pairs):  # RFC 8259 4: readers differ on which of the two counts
        raise _RuleError("an object has the same key twice")
    return members


def _integer(digits: str) -> int:
    if len(digits) > MAX_NUMBER_CHARS:
        raise _RuleError(f"a number has more than {MAX_NUMBER_CHARS} characters")
    return int(digits)


def _finite(text: str) -> float:
    number = float(text)
    if len(text) > MAX_NUMBER_CHARS or not math.isfinite(number):
        raise _RuleError(f"a number is out of range or has more than {MAX_NUMBER_CHARS} characters")
    return number


def _constant(_: str) -> NoReturn:
    raise _RuleError("NaN and infinities are not JSON")


# Made once: the module's own functions build a new coder for each call with options.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_finite, parse_constant=_constant
)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
