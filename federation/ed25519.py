"""Ed25519, with the one verdict that every node of the federation gives.

RFC 8032 5.1.7 leaves verifiers room to disagree: on small-order points, on second encodings of a point, on multiplying
by the cofactor. Two nodes that disagree on a signature disagree on a feed, so the protocol leaves no room. A signature
`R || S` by key `A` over message `M` holds if and only if all of these hold:

1. `A` is 32 bytes and the signature 64.
2. `S`, little-endian, is below the group order L.
3. `A` is canonical: its y coordinate, without the sign bit, is below p = 2^255 - 19; and it decodes to a curve point.
4. `A` is not one of the eight points whose order divides 8.
5. `R` is none of them either, in any encoding.
6. `R` equals, byte for byte, the canonical encoding of `[S]B - [k]A` with `k = SHA-512(R || A || M) mod L` (so the
   equation is the one without the cofactor, and a non-canonical `R` never holds).

A point with a small-order component that is not itself of small order may take part, as long as (6) holds exactly.
Enrolment is stricter: `check_public_key` admits only points of the prime-order subgroup, which is where every honestly
made key lies.

libsodium's `crypto_sign_open` is this verdict; tests hold it to (1) to (6) on every published case. This module leaves
out arithmetic of its own, prehashing and contexts (RFC 8032 Ed25519ph, Ed25519ctx).
"""

from nacl import bindings
from nacl.exceptions import BadSignatureError

from federation.errors import MalformedError, SignatureError

PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64
SEED_BYTES = 32


def verify(public_key: bytes, signature: bytes, message: bytes) -> None:
    """Return if `signature` (64 bytes) by `public_key` (32 bytes) holds over `message`; else raise SignatureError."""
    if len(public_key) != PUBLIC_KEY_BYTES or len(signature) != SIGNATURE_BYTES:  # (1)
        raise SignatureError("Ed25519: a key has 32 bytes and a signature 64")
    try:
        bindings.crypto_sign_open(signature + message, public_key)  # (2) to (6)
    except BadSignatureError as e:
        raise SignatureError("Ed25519: the signature does not hold") from e


def check_public_key(raw: bytes) -> bytes:
    """`raw` if it may be enrolled: the canonical encoding of a point, not the identity, in the prime-order subgroup.

    Raises MalformedError for anything else, small-order and mixed-order points included.
    """
    if len(raw) != PUBLIC_KEY_BYTES or not bindings.crypto_core_ed25519_is_valid_point(raw):
        raise MalformedError("Ed25519: not a public key (32 bytes, canonical, of the prime-order subgroup)")
    return raw


def public_key(seed: bytes) -> bytes:
    """The public key (32 bytes) of the private `seed` (32 bytes, RFC 8032 5.1.5). ValueError for another length."""
    return bindings.crypto_sign_seed_keypair(seed)[0]


def sign(seed: bytes, message: bytes) -> bytes:
    """The signature (64 bytes) over `message` by the private `seed` (32 bytes). ValueError for another length.

    The public half is derived here each time: signing with a public key that does not belong to the seed leaks it.
    """
    return bindings.crypto_sign(message, bindings.crypto_sign_seed_keypair(seed)[1])[:SIGNATURE_BYTES]
