"""Settling an incident, which takes two people (I8, I13).

A feed that was frozen is taken from again; if its sender still contradicts itself, the next sync freezes it with a new
incident. Of documents that their origin signed under one revision, one is used from now on, or none of them.
"""

from collections.abc import Sequence
from typing import Any, Final, NoReturn

from sqlalchemy import Connection, Row, select, update

from federation.errors import EquivocationError, UsageError
from federation.model import NodeId
from node.desk import inbox
from node.home.context import Node
from node.home.people import Post
from node.records import alarms, approvals, incidents
from node.records.alarms import Alarm
from node.records.approvals import Act, Request
from node.store.database import record, write
from node.store.tables import in_feeds
from node.store.tables import incidents as incidents_table

_SHORT_DIGEST: Final = 8  # hexadecimal digits that name a core


def resolve(node: Node, number: int, reason: str, *, keep: str | None = None, neither: bool = False) -> NoReturn:
    """Asks that an incident be settled. Of contradicting documents `keep` names the one that is used from then on, by
    the beginning of its core digest, or `neither` says that none is.

    Raises AwaitsSecondError once that is noted, NotFoundError, UsageError.
    """
    node.allow(Post.OPERATOR)
    with write(node.engine) as tx:
        row = incidents.row_of(tx, number)
        if row.resolved_at is not None:
            raise UsageError(f"incident {number} was settled on {row.resolved_at:%Y-%m-%d}; nothing was changed")
        choice = _choice(row, keep, neither=neither)
        arguments = {
            "incident": number,
            "kind": row.kind,
            "peer": row.peer,
            "concerns": row.subject,
            "used_from_then_on": _said(row, choice),
            "keep": None if choice is None else choice.hex(),
        }
        subject, binding = f"incident {number}", _binding(row, choice)
        request = approvals.ask(node, tx, Act.RESOLVE, subject, arguments, binding, reason)
    raise approvals.awaits(node, request)


def carry_out(node: Node, tx: Connection, request: Request) -> None:
    """Settles the incident, as it is bound. Raises ConflictError."""
    keep = request.arguments["keep"]
    choice = None if keep is None else bytes.fromhex(keep)
    row = incidents.row_of(tx, request.arguments["incident"])
    approvals.require_unchanged(request, _binding(row, choice))
    if row.kind == EquivocationError.code:
        inbox.settle(tx, NodeId(row.peer), row.subject, incidents.core_digests(row), choice)
    else:
        freed = update(in_feeds).where(in_feeds.c.origin == row.subject, in_feeds.c.frozen == row.kind)
        tx.execute(freed.values(frozen=None, problem=None))
    now, by = node.clock(), f"{request.asked_by} and {node.actor}"
    incidents.close(tx, row, by=by, resolution=request.reason, now=now, kept=choice)
    others = (incidents_table.c.kind == row.kind, incidents_table.c.peer == row.peer)
    if tx.execute(select(incidents_table.c.id).where(*others, incidents_table.c.resolved_at.is_(None))).first() is None:
        alarms.settle(tx, Alarm(row.kind), row.peer, by=node.actor, now=now)
    detail = f"{row.kind} of {row.peer}, request {request.number}, asked by {request.asked_by}"
    record(tx, at=now, by=node.actor, act="incident.resolve", subject=f"incident {row.id}", detail=detail)


def _choice(row: Row[Any], keep: str | None, *, neither: bool) -> bytes | None:
    """The core that is to be used. Raises UsageError unless exactly what this kind of incident asks for was said."""
    if row.kind != EquivocationError.code:
        if keep is not None or neither:
            raise UsageError(f"incident {row.id} is about a feed: there is no document to choose")
        return None
    digests = incidents.core_digests(row)
    if (keep is None) is not neither:
        raise UsageError(
            f"incident {row.id}: say which document is used from now on with --keep DIGEST, or --neither:"
            f" {_listed(digests)}"
        )
    if keep is None:
        return None
    found = [digest for digest in digests if len(keep) >= _SHORT_DIGEST and digest.hex().startswith(keep.lower())]
    if len(found) != 1:
        raise UsageError(f"incident {row.id}: --keep names none of its documents: {_listed(digests)}")
    return found[0]


def _listed(digests: Sequence[bytes]) -> str:
    return " or ".join(digest.hex()[:16] for digest in digests)


def _said(row: Row[Any], choice: bytes | None) -> str:
    if row.kind != EquivocationError.code:
        return "the feed"
    return "none of the documents" if choice is None else f"the document {choice.hex()[:16]}"


def _binding(row: Row[Any], choice: bytes | None) -> bytes:
    return approvals.bind(row.kind, row.peer, row.subject, row.evidence, str(row.resolved_at is None), choice or b"")
