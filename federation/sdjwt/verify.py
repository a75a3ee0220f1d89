"""From bytes that claim to be an advisory to claims that its origin signed (RFC 9901 7.1, narrowed by `profile`).

The caller reads issuer and key id without trust, finds that issuer's own key for the role, and verifies with it. What
the claims mean, whether they are recent and whether the handling admits them is read from the result, not here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from federation import ed25519
from federation.base64url import from_b64url
from federation.errors import MalformedError, TooLargeError
from federation.limits import MAX_ENTRY_BYTES
from federation.model import JsonObject
from federation.sdjwt.disclosure import SD_ALG, Disclosure
from federation.sdjwt.profile import REFUSED_CLAIMS, SD_ALG_VALUE, header
from federation.sdjwt.walk import Node, process
from federation.strictjson import decode_object

_PARTS = 3  # header, payload, signature


@dataclass(frozen=True, slots=True)
class UnverifiedCore:
    """A core that is well-formed and has the one header allowed. Nobody has yet looked at the signature.

    `iss` and `kid` are good for nothing but looking up the key. Made by `read_header_and_payload`.
    """

    core: bytes
    header: JsonObject = field(repr=False)
    payload: JsonObject = field(repr=False)
    iss: str
    kid: str
    signature: bytes = field(repr=False)

    @property
    def signed(self) -> bytes:
        """The bytes that the signature covers (RFC 7515 5.2)."""
        return self.core[: self.core.rindex(b".")]


@dataclass(frozen=True, slots=True)
class Verified:
    """What the key's owner signed, and what the disclosures shown with it reveal.

    `payload` is as signed, digests and all: what must never be redactable is read from there. `claims` has the
    disclosed values in place, without digests, placeholders and `_sd_alg`. `nodes` says where each disclosure hangs.
    """

    header: JsonObject
    payload: JsonObject
    claims: JsonObject
    nodes: tuple[Node, ...]


def read_header_and_payload(core: bytes) -> UnverifiedCore:
    """`core` taken apart, so that its key can be found by `iss` and `kid`.

    Raises MalformedError for what is not a compact JWS of strict JSON, any header but the one of `profile`, and a
    missing `iss`; TooLargeError over MAX_ENTRY_BYTES.
    """
    if len(core) > MAX_ENTRY_BYTES:
        raise TooLargeError(f"core: {len(core)} bytes, at most {MAX_ENTRY_BYTES} are allowed")
    if not core.isascii():
        raise MalformedError("core: not ASCII")
    parts = core.decode("ascii").split(".")
    if len(parts) != _PARTS:
        raise MalformedError("core: not a compact JWS of three parts")
    first = decode_object(from_b64url(parts[0]), max_bytes=MAX_ENTRY_BYTES, what="core header")
    kid = first.get("kid")
    if type(kid) is not str or first != header(kid):  # RFC 9901 7.1 step 2.a, RFC 8725 3.1, 3.11; RFC 7515 4.1.11
        raise MalformedError("core header: not exactly the alg, typ and kid of an advisory")
    payload = decode_object(from_b64url(parts[1]), max_bytes=MAX_ENTRY_BYTES, what="core payload")
    iss = payload.get("iss")
    if type(iss) is not str:
        raise MalformedError("core payload: no iss")
    return UnverifiedCore(core, first, payload, iss, kid, from_b64url(parts[2]))


def verify(core: bytes | UnverifiedCore, disclosures: Sequence[bytes | Disclosure], *, public_key: bytes) -> Verified:
    """What `core` and `disclosures` say, if all of RFC 9901 7.1 holds under `public_key` (32 bytes, Ed25519).

    1. Core and disclosures apart: so they come. Handing in an UnverifiedCore saves reading it twice.
    2. The core:
       a. its algorithm is Ed25519, its type an advisory's, and the header says nothing else
       b. its signature holds
       c. the key is the issuer's: the caller looked it up by `iss` and `kid`, never by `kid` alone
       d. `_sd_alg` is there and sha-256
    3. Each digest is replaced by its disclosure; the rest of them, placeholders, `_sd` and `_sd_alg` are removed.
       A disclosure of the wrong shape for its place, a reserved name, and two claims of one name (so the full and the
       generalised form together) are refused.
    4. A digest that occurs twice, anywhere, is refused.
    5. A disclosure to which no digest refers is refused.
    6. `exp`, `nbf`, `aud` and `cnf` are refused, plain or disclosed. The caller judges `iat` and the handling.

    Raises SignatureError (2.b, 5), TooLargeError over a limit, else MalformedError; all are RemoteError.
    """
    opened = core if isinstance(core, UnverifiedCore) else read_header_and_payload(core)  # (1), (2.a)
    ed25519.verify(public_key, opened.signature, opened.signed)  # (2.b)
    if opened.payload.get(SD_ALG) != SD_ALG_VALUE:  # (2.d)
        raise MalformedError("core payload: _sd_alg is not sha-256")
    processed = process(opened.payload, disclosures)  # (3) to (5)
    if not REFUSED_CLAIMS.isdisjoint(processed.claims):  # (6)
        raise MalformedError("core: a claim that an advisory never carries")
    return Verified(opened.header, opened.payload, processed.claims, processed.nodes)
