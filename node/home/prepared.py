"""Cards on their way to their signatures, as files: prepared where the online keys are, signed where the root keys are.

Without any signature a file holds the payload alone, the very bytes that root keys sign; with some it is the signed
document. No home is needed. Whether a card may be installed is decided in `node.peering.rotation`.
"""

from collections.abc import Iterable

from federation import jws, keyring
from federation.errors import MalformedError, SignatureError, UsageError
from federation.keyring import Card, RootSet, root_key_id
from federation.limits import MAX_CARD_BYTES
from node.home.keys import Signer


def read(data: bytes) -> tuple[Card, int, int]:
    """A card that may lack signatures, how many of its own root keys have signed it, and how many others.

    Raises a RemoteError, also for a signature that does not hold; others are not verified.
    """
    document, card = _parsed(data)
    own = {root_key_id(key): key for key in card.roots.keys}
    signed = [signature for signature in document.signatures if signature.kid in own]
    for signature in signed:
        jws.verify(signature, document.payload, own[signature.kid])
    return card, len(signed), len(document.signatures) - len(signed)


def sign(data: bytes, roots: Iterable[Signer], *, hand_over: bool = False) -> bytes:
    """The signed document, with signatures by `roots` added to those that are there.

    A root key that is not on the card signs only to `hand_over` its node to the ones that are. Raises a RemoteError for
    what is no card, and UsageError when none of the keys may sign it.
    """
    document, card = _parsed(data)
    own, have = {root_key_id(key) for key in card.roots.keys}, {signature.kid for signature in document.signatures}
    signers = [signer for signer in roots if hand_over or signer.kid in own]
    if not signers:
        raise UsageError(
            f"none of these root keys is on card {card.version} of {card.node}: to hand the node over to the root keys"
            " that are, say --hand-over"
        )
    for signer in signers:
        if signer.kid not in have:
            signature = jws.sign(document.payload, keyring.JWS_TYPE, signer.kid, signer.sign)
            document = jws.with_signature(document, signature)
    return jws.serialise(document)


def of_known_roots(data: bytes, current: RootSet) -> bytes:
    """The document with the signatures of its own and of the `current` root keys alone.

    Raises a RemoteError, SignatureError when there is none.
    """
    document, card = _parsed(data)
    known = {root_key_id(key) for key in (*card.roots.keys, *current.keys)}
    kept = tuple(signature for signature in document.signatures if signature.kid in known)
    if not kept:
        raise SignatureError(f"card {card.version} of {card.node}: no root key that is known has signed it")
    return jws.serialise(jws.SignedDocument(document.payload, kept))


def _parsed(data: bytes) -> tuple[jws.SignedDocument, Card]:
    """The signatures, none of them for a bare payload, and what the card says. Raises a RemoteError."""
    try:
        document = jws.parse(data, max_bytes=MAX_CARD_BYTES, typ=keyring.JWS_TYPE)
    except MalformedError:
        document = jws.SignedDocument(data, ())
    card = keyring.read_payload(document.payload)
    if card.payload() != document.payload:
        raise MalformedError("card: not in canonical form (RFC 8785)")
    return document, card
