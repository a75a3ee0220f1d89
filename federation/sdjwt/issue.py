"""Making the core of one revision: conceal what can be withheld, then sign what is left (RFC 9901 4 and 6; I5).

The caller marks object members and array elements with `Hide`, at any depth, also inside one another. A digest tells
nothing of its value, digests are sorted, and decoys round their number in each container up to a power of two. Array
placeholders keep their order with the decoys at the tail, since their place is part of what is signed.

What is hidden, under which category and with which alternate is decided elsewhere, as is what a key may sign.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from federation.base64url import b64url
from federation.errors import LocalError, UsageError
from federation.limits import HASH_BYTES, MAX_DISCLOSURES, MAX_JSON_DEPTH, SALT_BYTES
from federation.model import JsonObject
from federation.sdjwt.disclosure import ELLIPSIS, RESERVED, SD, SD_ALG, Disclosure
from federation.sdjwt.profile import REFUSED_CLAIMS, SD_ALG_VALUE, header
from federation.sdjwt.walk import escape
from federation.strictjson import encode

NOTHING: Final[Any] = object()  # None is a claim value like any other

_LEAST_DIGESTS = 4  # a container with one disclosable child looks like one with four
_SCALARS = (str, int, float, type(None))


@dataclass(frozen=True, slots=True)
class Hide:
    """Marks an object member or array element as selectively disclosable.

    `generalised` is an alternate under the same claim name, for object members only: a receiver that is shown both
    must refuse (RFC 9901 7.1 step 3.c.ii.3), so a presentation holds one of the two or none.
    """

    value: Any
    generalised: Any = NOTHING

    @property
    def forms(self) -> tuple[Any, ...]:
        """The full value, and the generalised one if there is one."""
        return (self.value,) if self.generalised is NOTHING else (self.value, self.generalised)


@dataclass(frozen=True, slots=True)
class Salts:
    """Randomness for documents: `entropy(n)` gives n fresh bytes from a cryptographic generator, asked once a document.

    One read cut in slices costs half of a read for each salt (measured).
    """

    entropy: Callable[[int], bytes]

    def cut(self, salts: int, decoys: int) -> tuple[Iterator[bytes], Iterator[str]]:
        """`salts` salts of SALT_BYTES and `decoys` decoy digests. LocalError if the generator gives too little.

        A decoy is a digest of nothing at all: uniformly random, as SHA-256 of a salted value looks (RFC 9901 4.2.5).
        """
        end = salts * SALT_BYTES
        block = self.entropy(end + decoys * HASH_BYTES)
        if len(block) != end + decoys * HASH_BYTES:
            raise LocalError("the random generator gave another number of bytes than it was asked for")
        return (
            (block[i : i + SALT_BYTES] for i in range(0, end, SALT_BYTES)),
            (b64url(block[i : i + HASH_BYTES]) for i in range(end, len(block), HASH_BYTES)),
        )


def conceal(claims: JsonObject, *, salts: Salts) -> tuple[JsonObject, tuple[Disclosure, ...]]:
    """The payload for `claims`, and the disclosures of what is hidden in it: document order, parents before children.

    `_sd_alg` is added. Raises UsageError, naming the place, for reserved claim names, a `Hide` that is neither member
    nor element, alternates of an array element, values that JSON cannot say, and documents beyond what a receiver takes
    (MAX_DISCLOSURES, MAX_JSON_DEPTH).
    """
    if claims.get(SD_ALG, SD_ALG_VALUE) != SD_ALG_VALUE:
        raise UsageError(f"{SD_ALG} can only be {SD_ALG_VALUE}")
    plain = {name: value for name, value in claims.items() if name != SD_ALG}
    hidden, decoys = _survey(plain, "", 1)
    if hidden > MAX_DISCLOSURES:
        raise UsageError(f"{hidden} disclosable elements, at most {MAX_DISCLOSURES} are allowed: mark larger parts")
    concealer = _Concealer(*salts.cut(hidden, decoys))
    payload = concealer.object(plain)
    payload[SD_ALG] = SD_ALG_VALUE
    return payload, tuple(concealer.disclosures)


def sign_core(payload: JsonObject, *, kid: str, sign: Callable[[bytes], bytes]) -> bytes:
    """The core: a compact JWS of `payload` (RFC 7515 7.1) under the header of `profile`, signed by `sign`.

    Raises UsageError for a payload that no verifier of ours would take: without `_sd_alg` or `iss`, with a refused
    claim, or with something that JSON cannot say.
    """
    if payload.get(SD_ALG) != SD_ALG_VALUE or not isinstance(payload.get("iss"), str):
        raise UsageError(f"a core needs {SD_ALG} = {SD_ALG_VALUE} and its origin as iss")
    if not REFUSED_CLAIMS.isdisjoint(payload):
        raise UsageError(f"a core never carries {', '.join(sorted(REFUSED_CLAIMS))}")
    try:
        body = encode(payload)
    except (TypeError, ValueError):
        raise UsageError("a claim holds something that JSON cannot say") from None  # the cause quotes the value
    signed = f"{b64url(encode(header(kid)))}.{b64url(body)}".encode("ascii")
    return signed + b"." + b64url(sign(signed)).encode("ascii")


def _survey(value: Any, path: str, level: int) -> tuple[int, int]:
    """Check `value`, which stands at `path` in `level` brackets; how many disclosures and decoys it takes."""
    members: Iterable[tuple[str | int, Any]]
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, str) or name in RESERVED:
                raise UsageError(f"{path or '/'}: a claim name that is no string, or that SD-JWT reserves")
        members = value.items()
    elif isinstance(value, list):
        members = enumerate(value)
    elif isinstance(value, Hide):
        raise UsageError(f"{path or '/'}: only a member of an object or an element of an array can be hidden, and once")
    else:
        raise UsageError(f"{path or '/'}: not a JSON value")
    hidden = inside = decoys = 0
    for name, member in members:
        if isinstance(member, _SCALARS):
            continue
        forms = member.forms if isinstance(member, Hide) else (member,)
        if isinstance(member, Hide):
            hidden += len(forms)
            if len(forms) > 1 and isinstance(name, int):
                raise UsageError(f"{path}/{name}: an array element has no alternates; give them to its members")
        for form in forms:
            if not isinstance(form, _SCALARS):
                more_hidden, more_decoys = _survey(form, f"{path}/{escape(str(name))}", level + 1)
                inside += more_hidden
                decoys += more_decoys
    if level + (hidden > 0) > MAX_JSON_DEPTH:  # digests stand one level below their container
        raise UsageError(f"{path}: nested deeper than {MAX_JSON_DEPTH} levels")
    return hidden + inside, decoys + _decoys_beside(hidden)


def _decoys_beside(digests: int) -> int:
    """How many decoys fill a container of `digests` up to 4, 8, 16, 32 ...; none where nothing is hidden."""
    return max(_LEAST_DIGESTS, 1 << (digests - 1).bit_length()) - digests if digests else 0


class _Concealer:
    """One document on its way to payload and disclosures; `_survey` has checked it."""

    __slots__ = ("_decoys", "_salts", "disclosures")

    def __init__(self, salts: Iterator[bytes], decoys: Iterator[str]) -> None:
        self._salts = salts
        self._decoys = decoys
        self.disclosures: list[Disclosure] = []

    def object(self, source: JsonObject) -> JsonObject:
        plain = {}
        digests: list[str] = []
        for name, value in source.items():
            if isinstance(value, Hide):
                digests.extend(self._digest(name, form) for form in value.forms)
            else:
                plain[name] = self._value(value)
        if digests:
            digests.extend(next(self._decoys) for _ in range(_decoys_beside(len(digests))))
            plain[SD] = sorted(digests)  # RFC 9901 4.2.4.1: their order tells nothing
        return plain

    def _value(self, value: Any) -> Any:
        if isinstance(value, dict):
            return self.object(value)
        return self._array(value) if isinstance(value, list) else value

    def _array(self, source: list[Any]) -> list[Any]:
        elements = [{ELLIPSIS: self._digest(None, e.value)} if isinstance(e, Hide) else self._value(e) for e in source]
        hidden = sum(isinstance(e, Hide) for e in source)
        elements.extend({ELLIPSIS: next(self._decoys)} for _ in range(_decoys_beside(hidden)))
        return elements

    def _digest(self, name: str | None, value: Any) -> str:
        place = len(self.disclosures)
        salt = next(self._salts)
        self.disclosures.append(None)  # type: ignore[arg-type]  # keeps the place before its children
        disclosure = self.disclosures[place] = Disclosure.make(salt, name, self._value(value))
        return disclosure.digest
