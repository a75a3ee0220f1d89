"""One disclosure of an SD-JWT (RFC 9901 4.2): the salted value that a digest in the signed payload stands for.

Its JSON bytes are kept exactly as they came, because they are what is hashed (I7). On our wire those bytes travel; the
standard's compact form carries them in base64url, and the digest is taken over that text in both cases.
"""

from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

from federation.base64url import b64url
from federation.errors import MalformedError, UsageError
from federation.limits import MAX_ENTRY_BYTES
from federation.strictjson import decode, encode

SD: Final = "_sd"
SD_ALG: Final = "_sd_alg"
ELLIPSIS: Final = "..."
RESERVED = frozenset({SD, SD_ALG, ELLIPSIS})  # RFC 9901 4.1: these convey digests and are no claims

_ELEMENT_PARTS = 2  # salt, value
_MEMBER_PARTS = 3  # salt, claim name, value


@dataclass(frozen=True, slots=True)
class Disclosure:
    """One disclosable object member, or array element if `name` is None. Equal if and only if `raw` is.

    `raw` is its JSON array in UTF-8 as hashed and transported; `digest` is the base64url text that stands for it in a
    payload. Made by `parse` or `make`, which keep the parts in step with `raw`.
    """

    raw: bytes
    salt: str = field(compare=False, repr=False)
    name: str | None = field(compare=False, repr=False)
    value: Any = field(compare=False, repr=False)
    digest: str = field(compare=False)

    @classmethod
    def parse(cls, raw: bytes) -> "Disclosure":
        """The disclosure that `raw` spells. Raises MalformedError, or TooLargeError over MAX_ENTRY_BYTES.

        `[salt, name, value]` is an object member, `[salt, value]` an array element (RFC 9901 4.2.1, 4.2.2).
        """
        parts = decode(raw, max_bytes=MAX_ENTRY_BYTES, what="disclosure")
        if type(parts) is not list or not _ELEMENT_PARTS <= len(parts) <= _MEMBER_PARTS:
            raise MalformedError("disclosure: not an array of a salt, a claim name for object members, and a value")
        salt, value = parts[0], parts[-1]
        if type(salt) is not str:
            raise MalformedError("disclosure: the salt is not a string")
        name = None
        if len(parts) == _MEMBER_PARTS:
            name = parts[1]
            if type(name) is not str:
                raise MalformedError("disclosure: the claim name is not a string")
            if name in RESERVED:  # RFC 9901 7.1 step 3.c.ii.2, and 4.1.1 for _sd_alg
                raise MalformedError("disclosure: a reserved claim name")
        return cls(raw, salt, name, value, digest_of(raw))

    @classmethod
    def make(cls, salt: bytes, name: str | None, value: Any) -> "Disclosure":
        """A new disclosure; `name` is None for an array element. `salt` is SALT_BYTES of fresh randomness.

        Raises UsageError for a reserved name or a value that JSON cannot say.
        """
        if name in RESERVED:
            raise UsageError(f"{name} cannot be a claim name: SD-JWT reserves it")
        salt_text = b64url(salt)
        try:
            raw = encode([salt_text, value] if name is None else [salt_text, name, value])
        except (TypeError, ValueError):
            raise UsageError("a claim holds something that JSON cannot say") from None  # the cause quotes the value
        return cls(raw, salt_text, name, value, digest_of(raw))


def digest_of(raw: bytes) -> str:
    """The base64url SHA-256 of the base64url text of `raw` (RFC 9901 4.2.3)."""
    return b64url(sha256(b64url(raw).encode("ascii")).digest())
