"""Documents that one node signs by itself: recalls, grants, statements.

A JWS (`federation.jws`) with exactly one signature, by an `issue` key of the node that speaks; `typ` says which kind it
is. The payload is a JSON object in whatever bytes its author wrote; it is kept and passed on as those bytes (I7), and
named by a digest over author and payload, which no second signature changes: what two nodes say in the same words is
two assertions, and nobody can pass for the first to have said it. What a kind's members mean is its own module's.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from federation import jws, strictjson
from federation.errors import MalformedError, SignatureError
from federation.limits import MAX_CONTROL_BYTES
from federation.model import JsonObject, NodeId, node_id


@dataclass(frozen=True, slots=True)
class Assertion:
    """What `author` said, verified. `digest` is that of `digest_of`; `document` is what was signed."""

    author: NodeId
    members: JsonObject
    digest: bytes
    document: bytes


def sign(members: JsonObject, typ: str, author: NodeId, kid: str, sign_bytes: Callable[[bytes], bytes]) -> Assertion:
    """The signed document of `members`. `sign_bytes` makes the Ed25519 signature by the `issue` key `kid`."""
    payload = strictjson.encode(members)
    signature = jws.sign(payload, typ, f"{author}/{kid}", sign_bytes)
    document = jws.serialise(jws.SignedDocument(payload, (signature,)))
    return Assertion(author, members, digest_of(author, payload), document)


def digest_of(author: NodeId, payload: bytes) -> bytes:
    """What names an assertion, 32 bytes: SHA-256 over its author's node id, a line feed, and its payload."""
    return hashlib.sha256(author.encode() + b"\n" + payload).digest()


def read(document: bytes, typ: str, key_of: Callable[[NodeId, str], bytes]) -> Assertion:
    """The assertion in `document`.

    (1) a signed document of this kind, in the one form that `federation.jws` writes; (2) one signature, by
    `NODE/KEY`; (3) it holds under that key; (4) the payload is a JSON object. `key_of(node, kid)` gives the `issue`
    key or raises. Raises MalformedError, TooLargeError, UnknownOriginError, KeyringError or SignatureError.
    """
    signed = jws.parse(document, max_bytes=MAX_CONTROL_BYTES, typ=typ)  # (1)
    if jws.serialise(signed) != document:
        raise MalformedError(f"{typ}: not in its one serialised form")
    if len(signed.signatures) != 1:  # (2)
        raise SignatureError(f"{typ}: {len(signed.signatures)} signatures in place of one")
    signature = signed.signatures[0]
    author, kid = _signer(signature)
    jws.verify(signature, signed.payload, key_of(author, kid))  # (3)
    return _assertion(author, signed.payload, typ, document)  # (4)


def reread(document: bytes, typ: str) -> Assertion:
    """The assertion in a document of the store, unverified: it was verified when it came, and keys end.

    Raises MalformedError or TooLargeError.
    """
    signed = jws.parse(document, max_bytes=MAX_CONTROL_BYTES, typ=typ)
    author, _ = _signer(signed.signatures[0])
    return _assertion(author, signed.payload, typ, document)


def _signer(signature: jws.Signature) -> tuple[NodeId, str]:
    name, _, kid = signature.kid.partition("/")
    return node_id(name), kid


def _assertion(author: NodeId, payload: bytes, typ: str, document: bytes) -> Assertion:
    members = strictjson.decode_object(payload, max_bytes=MAX_CONTROL_BYTES, what=typ)
    return Assertion(author, members, digest_of(author, payload), document)
