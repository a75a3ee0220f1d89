"""SD-JWTs as whoever holds an origin's keys could sign them: an advisory taken apart, changed, and signed anew."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from federation.base64url import b64url
from federation.sdjwt.disclosure import digest_of
from federation.strictjson import encode

_SALTS = count(1)


@dataclass(frozen=True, slots=True)
class Origin:
    """Whoever signs: the key ids and signing functions of its `issue` and `feed` keys, and the public `issue` key."""

    kid: str
    sign: Callable[[bytes], bytes]
    feed_kid: str
    feed_sign: Callable[[bytes], bytes]
    public: bytes


@dataclass(slots=True)
class Token:
    """An advisory on its way to be signed: everything in it may be changed. `last` changes the signed core."""

    origin: Origin
    header: dict[str, Any]
    payload: dict[str, Any]
    shown: list[bytes]
    last: Callable[[bytes], bytes] = field(default=lambda core: core)

    @property
    def document(self) -> dict[str, Any]:
        """An object of the payload that has digests."""
        return self.payload["csaf"]["document"]  # type: ignore[no-any-return]

    def hide(self, raw: bytes, place: dict[str, Any] | None = None) -> bytes:
        """Shows a disclosure to which `place` refers, the document unless another is named."""
        (self.document if place is None else place).setdefault("_sd", []).append(digest_of(raw))
        self.shown.append(raw)
        return raw

    def hide_element(self, raw: bytes) -> None:
        """Shows a disclosure to which an array element refers."""
        self.document["references"] = [{"...": digest_of(raw)}]
        self.shown.append(raw)

    def signed(self) -> bytes:
        """The core."""
        return self.last(jws(self.header, self.payload, self.origin.sign))


def jws(header: object, payload: object, sign: Callable[[bytes], bytes]) -> bytes:
    """A compact JWS; header and payload may be bytes."""
    parts = (part if isinstance(part, bytes) else encode(part) for part in (header, payload))
    signed = ".".join(map(b64url, parts)).encode()
    return signed + b"." + b64url(sign(signed)).encode()


def member(name: Any, value: Any) -> bytes:
    """A disclosure of an object member, spelled whatever the name is."""
    return encode([b64url(next(_SALTS).to_bytes(16, "big")), name, value])


def element(value: Any) -> bytes:
    """A disclosure of an array element."""
    return encode([b64url(next(_SALTS).to_bytes(16, "big")), value])
