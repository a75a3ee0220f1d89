"""Recalls: the origin's order to stop using revisions of an advisory and to purge them (I15).

Only the origin may give one. It may arrive before the advisory, and bars the revisions that it names from then on,
whoever delivers them. It names no reason in words: a recall reaches everybody who held the advisory, and words could
tell them what was withheld.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from federation import assertion
from federation.errors import MalformedError
from federation.limits import MAX_NAME_CHARS, MAX_REVISION, MAX_REVISIONS
from federation.model import NodeId, instant, instant_text

JWS_TYPE = "recall+jws"
_MEMBERS = frozenset(("recall", "revisions", "reason", "at"))


class Reason(StrEnum):
    """Why an advisory is taken back."""

    ERROR = "error"  # it is wrong
    REPLACED = "replaced"  # a later revision takes its place
    EMBARGO = "embargo"  # it went out too early, or an embargo was broken
    CONSENT = "consent"  # a reporter, victim or vendor withdrew consent
    LEGAL = "legal"  # a court or a supervisory authority demands it
    MISDIRECTED = "misdirected"  # it went to somebody who should not have had it


@dataclass(frozen=True, slots=True)
class Recall:
    """The order, verified. `digest` names it; `document` is what its origin signed."""

    origin: NodeId
    name: str
    revisions: tuple[int, ...]
    reason: Reason
    at: datetime
    digest: bytes
    document: bytes


def sign(
    origin: NodeId,
    name: str,
    revisions: tuple[int, ...],
    reason: Reason,
    at: datetime,
    *,
    kid: str,
    sign_bytes: Callable[[bytes], bytes],
) -> Recall:
    """A signed recall of `revisions` (sorted, each once) of the origin's own advisory `name`."""
    members = {"recall": name, "revisions": list(revisions), "reason": reason.value, "at": instant_text(at)}
    signed = assertion.sign(members, JWS_TYPE, origin, kid, sign_bytes)
    return _read(signed)


def read(document: bytes, key_of: Callable[[NodeId, str], bytes]) -> Recall:
    """The recall in `document`, whose author is the origin that it speaks for.

    Raises what `assertion.read` raises, and MalformedError for members that are not exactly these.
    """
    return _read(assertion.read(document, JWS_TYPE, key_of))


def _read(signed: assertion.Assertion) -> Recall:
    members = signed.members
    if members.keys() != _MEMBERS:
        raise MalformedError("recall: members missing or unknown")
    name, revisions = members["recall"], members["revisions"]
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME_CHARS:
        raise MalformedError("recall: it names no advisory")
    if not isinstance(revisions, list) or not 1 <= len(revisions) <= MAX_REVISIONS:
        raise MalformedError(f"recall: expected 1 to {MAX_REVISIONS} revisions")
    if any(type(r) is not int or not 1 <= r <= MAX_REVISION for r in revisions) or revisions != sorted(set(revisions)):
        raise MalformedError("recall: revisions are sorted numbers from 1, each once")
    try:
        reason = Reason(members["reason"])
    except ValueError as e:
        raise MalformedError("recall: a reason that this protocol version does not know") from e
    return Recall(signed.author, name, tuple(revisions), reason, instant(members["at"]), signed.digest, signed.document)
