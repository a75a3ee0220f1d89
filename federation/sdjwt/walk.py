"""The general algorithm of RFC 9901 7.1, steps 3 to 5: a signed payload and some disclosures become claims.

Whose payload it is, which algorithm signed it and what its claims mean is left to `verify`; here stand the rules that
hold for every SD-JWT. What comes in is assumed hostile: each digest is followed at most once, and levels are counted
across disclosures, so that neither time nor the stack runs away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from federation.errors import MalformedError, SignatureError, TooLargeError
from federation.limits import MAX_DISCLOSURES, MAX_JSON_DEPTH
from federation.model import JsonObject
from federation.sdjwt.disclosure import ELLIPSIS, RESERVED, SD, SD_ALG, Disclosure

HASH_NAME = "sha-256"


@dataclass(frozen=True, slots=True)
class Node:
    """Where one disclosure hangs in the payload.

    `path` is the JSON pointer (RFC 6901) of its element; an array index counts the elements of the signed array,
    placeholders and decoys included. `parents` are the digests of the disclosures around it, outermost first.
    """

    path: str
    digest: str
    parents: tuple[str, ...]
    disclosure: Disclosure


@dataclass(frozen=True, slots=True)
class Processed:
    """The claims that payload and disclosures make together, and where each disclosure hangs.

    Nodes are in document order, parents before children; in an object, disclosed members come after the plain ones.
    """

    claims: JsonObject
    nodes: tuple[Node, ...]


def process(payload: JsonObject, disclosures: Sequence[bytes | Disclosure]) -> Processed:
    """RFC 9901 7.1, steps 2.d and 3 to 5. The caller has verified the signature over `payload`; it is not changed.

    Raises MalformedError for what no SD-JWT may contain, SignatureError for a disclosure that the payload does not
    refer to, TooLargeError for more than MAX_DISCLOSURES or (across disclosures) more than MAX_JSON_DEPTH levels.
    """
    reader = _Reader(disclosures, alternates=False)
    return Processed(reader.payload(payload), tuple(reader.nodes))


def walk(payload: JsonObject, disclosures: Sequence[bytes | Disclosure]) -> tuple[Node, ...]:
    """Like `process`, but several disclosures of one name in one `_sd` may stand together.

    For those who choose what to present and so hold every form of an element: the origin, and relays.
    """
    reader = _Reader(disclosures, alternates=True)
    reader.payload(payload)
    return tuple(reader.nodes)


class _Reader:
    """One reading of one payload."""

    __slots__ = ("_alternates", "_by_digest", "_met", "nodes")

    def __init__(self, disclosures: Sequence[bytes | Disclosure], *, alternates: bool) -> None:
        if len(disclosures) > MAX_DISCLOSURES:
            raise TooLargeError(f"SD-JWT: {len(disclosures)} disclosures, at most {MAX_DISCLOSURES} are allowed")
        self._alternates = alternates
        self._met: set[str] = set()
        self.nodes: list[Node] = []
        parsed = (d if isinstance(d, Disclosure) else Disclosure.parse(d) for d in disclosures)
        self._by_digest = {d.digest: d for d in parsed}  # (3.a)
        if len(self._by_digest) != len(disclosures):
            raise MalformedError("SD-JWT: the same disclosure twice")

    def payload(self, payload: JsonObject) -> JsonObject:
        if payload.get(SD_ALG, HASH_NAME) != HASH_NAME:  # (2.d); RFC 9901 4.1.1: sha-256 if absent
            raise MalformedError("SD-JWT: _sd_alg is not sha-256")
        claims = self._object({n: v for n, v in payload.items() if n != SD_ALG}, "", (), 1)  # (3.f)
        if len(self.nodes) != len(self._by_digest):  # (5): every digest was met at most once
            raise SignatureError("SD-JWT: a disclosure that the signed payload does not refer to")
        return claims

    def _value(self, value: Any, path: str, parents: tuple[str, ...], level: int) -> Any:
        if type(value) is dict:
            return self._object(value, path, parents, level)
        if type(value) is list:
            return self._array(value, path, parents, level)
        return value

    def _object(self, source: JsonObject, path: str, parents: tuple[str, ...], level: int) -> JsonObject:
        _check_level(level)
        claims = {}
        for name, value in source.items():
            if name not in RESERVED:
                inside = type(value) is dict or type(value) is list
                claims[name] = self._value(value, f"{path}/{escape(name)}", parents, level + 1) if inside else value
            elif name != SD:  # RFC 9901 4.1.1 and 4.2.4.2: _sd_alg at the top only, "..." alone in an array element
                raise MalformedError("SD-JWT: a reserved claim name where it has no meaning")
        digests = source.get(SD, [])
        if type(digests) is not list:  # (3.b.i)
            raise MalformedError("SD-JWT: _sd is not an array of strings")
        for digest in digests:
            disclosure = self._meet(digest)
            if disclosure is None:  # (3.c.i)
                continue
            member = disclosure.name  # reserved names fell when it was parsed (3.c.ii.2)
            if member is None:  # (3.c.ii.1)
                raise MalformedError("SD-JWT: an array element's disclosure stands for an object member")
            if member in source or (member in claims and not self._alternates):  # (3.c.ii.3)
                raise MalformedError("SD-JWT: two claims of one name in one object")
            claims[member] = self._disclosed(disclosure, f"{path}/{escape(member)}", parents, level)  # (3.c.ii.4)
        return claims  # without _sd (3.e)

    def _array(self, source: list[Any], path: str, parents: tuple[str, ...], level: int) -> list[Any]:
        _check_level(level)
        claims = []
        for index, value in enumerate(source):
            if type(value) is dict and ELLIPSIS in value:  # (3.b.ii)
                if len(value) != 1:  # RFC 9901 4.2.4.2: no other members beside it
                    raise MalformedError("SD-JWT: an array placeholder has more than one member")
                disclosure = self._meet(value[ELLIPSIS])
                if disclosure is None:  # (3.d)
                    continue
                if disclosure.name is not None:  # (3.c.iii.1)
                    raise MalformedError("SD-JWT: an object member's disclosure stands for an array element")
                claims.append(self._disclosed(disclosure, f"{path}/{index}", parents, level))  # (3.c.iii.2)
            else:
                claims.append(self._value(value, f"{path}/{index}", parents, level + 1))
        return claims

    def _meet(self, digest: Any) -> Disclosure | None:
        """The disclosure that `digest` stands for, if it was presented."""
        if type(digest) is not str:  # (3.b)
            raise MalformedError("SD-JWT: a digest is not a string")
        if digest in self._met:  # (4), those without a disclosure included
            raise MalformedError("SD-JWT: the same digest twice")
        self._met.add(digest)
        return self._by_digest.get(digest)

    def _disclosed(self, disclosure: Disclosure, path: str, parents: tuple[str, ...], level: int) -> Any:
        self.nodes.append(Node(path, disclosure.digest, parents, disclosure))
        return self._value(disclosure.value, path, (*parents, disclosure.digest), level + 1)  # (3.c.ii.5, 3.c.iii.3)


def _check_level(level: int) -> None:
    if level > MAX_JSON_DEPTH:  # each disclosure alone is within the bound, but they nest
        raise TooLargeError(f"SD-JWT: nested deeper than {MAX_JSON_DEPTH} levels")


def escape(name: str) -> str:
    """`name` as one step of a JSON pointer (RFC 6901 3)."""
    return name.replace("~", "~0").replace("/", "~1")
