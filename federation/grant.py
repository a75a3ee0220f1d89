"""Grants: an origin's leave to one relay to pass one core on.

Where the handling allows no onward sharing, a relay needs a grant; it travels beside the core, and whoever receives
from the relay checks it there and then. A grant names everything: the core, the relay, the recipients, what may go on,
until when. A recipient cannot pass on under it: the relay that it names is another.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from federation import assertion
from federation.errors import GrantError, MalformedError
from federation.limits import HASH_BYTES, MAX_PARTIES
from federation.model import Category, JsonObject, NodeId, instant, instant_text, node_id

JWS_TYPE = "grant+jws"
_MEMBERS = frozenset(("grant", "relay", "recipients", "categories", "until"))
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Grant:
    """The leave, verified. `core_digest` is 32 bytes; `digest` names the grant; `document` is what was signed."""

    origin: NodeId
    core_digest: bytes
    relay: NodeId
    recipients: frozenset[NodeId]
    categories: frozenset[Category]
    until: datetime
    digest: bytes
    document: bytes


def sign(
    origin: NodeId,
    core_digest: bytes,
    relay: NodeId,
    recipients: Iterable[NodeId],
    categories: Iterable[Category],
    until: datetime,
    *,
    kid: str,
    sign_bytes: Callable[[bytes], bytes],
) -> Grant:
    """A signed grant. Raises MalformedError when it names nobody, nothing, or too many."""
    members: JsonObject = {
        "grant": core_digest.hex(),
        "relay": relay,
        "recipients": sorted(recipients),
        "categories": sorted(category.value for category in categories),
        "until": instant_text(until),
    }
    return _read(assertion.sign(members, JWS_TYPE, origin, kid, sign_bytes))


def read(document: bytes, key_of: Callable[[NodeId, str], bytes]) -> Grant:
    """The grant in `document`, by whoever signed it: `check` says whether that is the core's origin.

    Raises what `assertion.read` raises, and MalformedError for members that are not exactly these.
    """
    return _read(assertion.read(document, JWS_TYPE, key_of))


def reread(document: bytes) -> Grant:
    """The grant in a document of the store, which was verified when it came."""
    return _read(assertion.reread(document, JWS_TYPE))


def check(
    grant: Grant,
    *,
    origin: NodeId,
    core_digest: bytes,
    relay: NodeId,
    recipient: NodeId,
    categories: frozenset[Category],
    now: datetime,
) -> None:
    """Refuses what the grant does not cover. Raises GrantError.

    (1) given by the core's origin, (2) for this core, (3) to the node that passes it on, (4) towards this recipient,
    (5) for all categories that arrived, (6) and not ended.
    """
    if grant.origin != origin:  # (1)
        raise GrantError(f"grant: signed by {grant.origin}, who is not the origin of this core")
    if grant.core_digest != core_digest:  # (2)
        raise GrantError("grant: for another core")
    if grant.relay != relay:  # (3)
        raise GrantError(f"grant: for the relay {grant.relay}, not for {relay}")
    if recipient not in grant.recipients:  # (4)
        raise GrantError(f"grant: it does not name {recipient} as a recipient")
    beyond = sorted(categories - grant.categories)
    if beyond:  # (5)
        raise GrantError(f"grant: it does not cover {', '.join(beyond)}")
    if now >= grant.until:  # (6)
        raise GrantError("grant: it has ended")


def _read(signed: assertion.Assertion) -> Grant:
    members = signed.members
    if members.keys() != _MEMBERS:
        raise MalformedError("grant: members missing or unknown")
    core_digest = members["grant"]
    if not isinstance(core_digest, str) or len(core_digest) != 2 * HASH_BYTES or core_digest.strip("0123456789abcdef"):
        raise MalformedError("grant: it names no core")
    return Grant(
        origin=signed.author,
        core_digest=bytes.fromhex(core_digest),
        relay=node_id(members["relay"]),
        recipients=_listed(members["recipients"], node_id),
        categories=_listed(members["categories"], _category),
        until=instant(members["until"]),
        digest=signed.digest,
        document=signed.document,
    )


def _category(value: object) -> Category:
    try:
        return Category(str(value))
    except ValueError as e:
        raise MalformedError("grant: a category that this protocol version does not know") from e


def _listed(value: object, read_item: Callable[[object], T]) -> frozenset[T]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_PARTIES:
        raise MalformedError(f"grant: expected a list of 1 to {MAX_PARTIES}")
    if not all(isinstance(item, str) for item in value) or value != sorted(set(value)):
        raise MalformedError("grant: a list is not sorted, or an item stands twice")
    return frozenset(map(read_item, value))
