"""The standard's own serialisation, `<core>~<disclosure>~...~` (RFC 9901 4): for exports and other people's tools.

Between nodes the parts travel apart. Key binding (SD-JWT+KB) has no meaning here, since an advisory has no holder.
"""

from collections.abc import Iterable

from federation.base64url import b64url, from_b64url
from federation.errors import MalformedError, TooLargeError
from federation.limits import MAX_ENTRY_BYTES

_MAX_CHARS = 2 * MAX_ENTRY_BYTES  # base64url makes the disclosures of the largest entry a third longer


def serialise(core: bytes, disclosures: Iterable[bytes]) -> str:
    """The compact form of `core` with the raw JSON bytes of `disclosures`."""
    return "~".join([core.decode("ascii"), *(b64url(raw) for raw in disclosures), ""])


def parse(text: str) -> tuple[bytes, tuple[bytes, ...]]:
    """The core and the raw disclosures of a compact SD-JWT, nothing of it verified yet (RFC 9901 7.1 step 1).

    Raises MalformedError for text that is not ASCII, a missing final `~` (so for a key binding JWT), an empty part, and
    base64url with a second spelling: the digest is over the text as it stands, and only the bytes are kept.
    """
    if len(text) > _MAX_CHARS:
        raise TooLargeError(f"compact SD-JWT: {len(text)} characters, at most {_MAX_CHARS} are allowed")
    if not text.isascii():
        raise MalformedError("compact SD-JWT: not ASCII")
    if not text.endswith("~"):
        raise MalformedError("compact SD-JWT: does not end with ~ (a key binding JWT is not accepted)")
    core, *parts = text[:-1].split("~")
    if not core or not all(parts):
        raise MalformedError("compact SD-JWT: an empty part")
    return core.encode("ascii"), tuple(from_b64url(part) for part in parts)
