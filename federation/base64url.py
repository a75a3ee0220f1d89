"""base64url without padding, strict both ways: each byte string has exactly one spelling.

RFC 4648 5 with the padding left out (RFC 7515 2). A second spelling of the same bytes would let somebody change a
signed document's text, and so its digest, without touching what was signed; RFC 4648 3.5 allows decoders to refuse it.
"""

import base64
import binascii
import re

from federation.errors import MalformedError

_ALPHABET = re.compile(r"[A-Za-z0-9_-]*")


def b64url(data: bytes) -> str:
    """`data` in base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def from_b64url(text: str) -> bytes:
    """The bytes that `text` spells.

    Raises MalformedError for padding, white space, any character outside the alphabet, a length that no bytes have,
    and trailing bits that are not zero.
    """
    if not _ALPHABET.fullmatch(text):
        raise MalformedError("base64url: a character outside the alphabet, or padding")
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as e:
        raise MalformedError("base64url: no bytes have this length") from e
    if b64url(data) != text:  # RFC 4648 3.5: the bits left over must be zero
        raise MalformedError("base64url: trailing bits are not zero")
    return data
