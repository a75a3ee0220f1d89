"""Documents that several parties sign, node cards and agreements: JWS in general JSON serialisation (RFC 7515 7.2.1).

    {"payload": b64url, "signatures": [{"protected": b64url, "signature": b64url}, ...]}

Each protected header is exactly `{"alg": "Ed25519", "kid": ..., "typ": ...}` (RFC 9864: `EdDSA` is deprecated), so
`crit`, embedded keys, key URLs and unprotected headers have no way in (I18). `typ` says what kind of document was
signed and is compared with what the reader expects, so that no signature is taken from one kind to another (RFC 8725
3.11). One key signs a document once. The payload and the headers stay the bytes that were signed (I7).

Which key a `kid` means, and whether it may sign this, is the keyring's to say: look it up before `verify`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from federation import ed25519, strictjson
from federation.base64url import b64url, from_b64url
from federation.errors import MalformedError, TooLargeError
from federation.limits import MAX_PARTIES

ALG = "Ed25519"
MAX_HEADER_BYTES = 1 << 10  # three short members
_KID = re.compile(r"[!-~]{1,255}")  # visible ASCII


@dataclass(frozen=True, slots=True)
class Signature:
    """One party's signature (64 bytes) with the header bytes it covers, and the `kid` that these name.

    Made by `sign` or `parse`, which see to it that the two agree.
    """

    protected: bytes
    signature: bytes
    kid: str


@dataclass(frozen=True, slots=True)
class SignedDocument:
    """A payload and the signatures under it, not yet verified.

    MalformedError for two signatures by one `kid`, TooLargeError for more than MAX_PARTIES.
    """

    payload: bytes
    signatures: tuple[Signature, ...]

    def __post_init__(self) -> None:
        if len(self.signatures) > MAX_PARTIES:
            raise TooLargeError(
                f"signed document: {len(self.signatures)} signatures, at most {MAX_PARTIES} are allowed"
            )
        if len({s.kid for s in self.signatures}) != len(self.signatures):
            raise MalformedError("signed document: two signatures by the same key")


def parse(data: bytes, *, typ: str, max_bytes: int) -> SignedDocument:
    """The document in `data`, whose every signature says `typ`; nothing is verified yet.

    Raises TooLargeError over `max_bytes` or MAX_PARTIES, and MalformedError for anything but the form in this module's
    docstring with at least one signature.
    """
    document = strictjson.decode_object(data, max_bytes=max_bytes, what=typ)
    entries = document.get("signatures")
    if document.keys() != {"payload", "signatures"} or not isinstance(entries, list) or not entries:
        raise MalformedError(f"{typ}: not exactly a payload and a list of signatures")
    return SignedDocument(_bytes(document["payload"], typ), tuple(_parse_signature(e, typ) for e in entries))


def serialise(document: SignedDocument) -> bytes:
    """The JSON form of `document`; what `parse` reads."""
    signatures = [{"protected": b64url(s.protected), "signature": b64url(s.signature)} for s in document.signatures]
    return strictjson.encode({"payload": b64url(document.payload), "signatures": signatures})


def sign(payload: bytes, typ: str, kid: str, sign: Callable[[bytes], bytes]) -> Signature:
    """The signature over `payload` as a document of kind `typ`. `sign` makes the Ed25519 signature by the key `kid`.

    Raises MalformedError for a `kid` that is not 1 to 255 visible ASCII characters.
    """
    protected = strictjson.encode({"alg": ALG, "kid": kid, "typ": typ})
    _kid(protected, typ)
    return Signature(protected, sign(_signing_input(protected, payload)), kid)


def verify(signature: Signature, payload: bytes, public_key: bytes) -> None:
    """Return if `signature` over `payload` holds by `public_key` (32 bytes), else raise SignatureError.

    RFC 7515 5.2; header and `typ` were checked by `parse`.
    """
    ed25519.verify(public_key, signature.signature, _signing_input(signature.protected, payload))


def with_signature(document: SignedDocument, signature: Signature) -> SignedDocument:
    """`document` with one signature more, after those it has; raises as SignedDocument does."""
    return SignedDocument(document.payload, (*document.signatures, signature))


def _signing_input(protected: bytes, payload: bytes) -> bytes:
    """RFC 7515 5.1 step 5."""
    return f"{b64url(protected)}.{b64url(payload)}".encode("ascii")


def _parse_signature(entry: object, typ: str) -> Signature:
    if not isinstance(entry, dict) or entry.keys() != {"protected", "signature"}:
        raise MalformedError(f"{typ}: a signature is exactly a protected header and a signature")
    protected, signature = _bytes(entry["protected"], typ), _bytes(entry["signature"], typ)
    if len(signature) != ed25519.SIGNATURE_BYTES:
        raise MalformedError(f"{typ}: a signature has {ed25519.SIGNATURE_BYTES} bytes")
    return Signature(protected, signature, _kid(protected, typ))


def _kid(protected: bytes, typ: str) -> str:
    """The key that a protected header names, once the header is exactly what this protocol writes."""
    header = strictjson.decode_object(protected, max_bytes=MAX_HEADER_BYTES, what=f"{typ} header")
    kid = header.get("kid")
    if header.keys() != {"alg", "kid", "typ"} or header["alg"] != ALG or header["typ"] != typ:
        raise MalformedError(f"{typ}: a header is exactly alg {ALG}, a kid, and this typ")
    if not isinstance(kid, str) or not _KID.fullmatch(kid):
        raise MalformedError(f"{typ}: a kid is 1 to 255 visible ASCII characters")
    return kid


def _bytes(member: object, typ: str) -> bytes:
    if not isinstance(member, str):
        raise MalformedError(f"{typ}: a member that should be base64url is not a string")
    return from_b64url(member)
