"""Acts that take two people: one asks, another approves or refuses (I13).

Asking changes nothing but the list of requests. A request binds, by one digest, all that its act is about. Approving
runs the act in the same transaction: the act works the binding out again from the state as it is now, and where it
differs, where the asker may not ask any more, or where a week has passed, the request is void and nothing is done.

    OPEN -> DONE      a second person approved, and the act was carried out
    OPEN -> REFUSED   a second person said no
    OPEN -> VOID      what it was about changed, its asker lost the post, or it grew too old

What an act does is not known here: whoever settles a request brings the acts (`node.acts`).
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection, Row, insert, select, update

from federation.errors import AwaitsSecondError, ConflictError, NotAllowedError, NotFoundError, UsageError
from federation.model import JsonObject
from node.home.context import Node
from node.home.people import Post, holds, uid_of
from node.store.database import one_row, read, record, write
from node.store.tables import approvals

LIFETIME: Final = timedelta(
    days=7
)  # over a week-end and a holiday; what is older was thought of in other circumstances
_MAX_REASON = 500  # characters; it is shown in full to whoever approves
_LENGTH_BYTES = 8


class Act(StrEnum):
    """What takes two people."""

    TRUST = "trust"  # trust a distrusted peer again
    RESOLVE = "resolve"  # settle an incident and take from that feed again
    OPEN_EPOCH = "open-epoch"  # open a new epoch of the feed to a peer, after a restore
    ACCEPT_EPOCH = "accept-epoch"  # accept the new epoch that a peer has opened
    ROOTS = "roots"  # install a card with other root keys
    LABEL = "label"  # lower the category of a part of a draft


MAY_ASK: Final[Mapping[Act, Post]] = {
    Act.TRUST: Post.OPERATOR,
    Act.RESOLVE: Post.OPERATOR,
    Act.OPEN_EPOCH: Post.OPERATOR,
    Act.ACCEPT_EPOCH: Post.OPERATOR,
    Act.ROOTS: Post.OPERATOR,
    Act.LABEL: Post.ANALYST,
}


class State(StrEnum):
    """Where a request stands; all but OPEN are final."""

    OPEN = "open"
    DONE = "done"
    REFUSED = "refused"
    VOID = "void"


@dataclass(frozen=True, slots=True)
class Request:
    """What one person asked for. `arguments` is all that the act needs to know; `why_void` says what ended it."""

    number: int
    act: Act
    subject: str
    arguments: JsonObject
    binding: bytes
    reason: str
    asked_at: datetime
    asked_by: str
    state: State
    settled_at: datetime | None
    settled_by: str | None
    asker_uid: int | None
    why_void: str | None = None

    @property
    def until(self) -> datetime:
        """When it is void if nobody settles it."""
        return self.asked_at + LIFETIME


Acts = Mapping[Act, Callable[[Node, Connection, Request], None]]


def bind(*parts: bytes | str) -> bytes:
    """SHA-256 over `parts`, each after its length: no two lists of parts give the same bytes."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(_LENGTH_BYTES, "big"))
        digest.update(data)
    return digest.digest()


def ask(node: Node, tx: Connection, act: Act, subject: str, arguments: JsonObject, binding: bytes, reason: str) -> int:
    """Notes that the actor asks for `act`, and returns the request's number; to be told with `awaits` after the commit.

    Whoever asks for the very same again gets the number that it has; the first reason stands. An open request for the
    same act and subject with another binding is void from now on. Raises NotAllowedError, UsageError.
    """
    node.allow(MAY_ASK[act])
    if not 1 <= len(reason.strip()) <= _MAX_REASON or not reason.isprintable():
        raise UsageError(f"the reason must be one line of 1 to {_MAX_REASON} characters; the second person reads it")
    for older in _open_requests(node, tx, act, subject):
        if older.state is State.OPEN and (older.binding, older.arguments) == (binding, arguments):
            return older.number
        _settle(node, tx, older, State.VOID, older.why_void or "asked for anew with other content")
    kept = {"arguments": arguments, "uid": uid_of(node.actor)}
    now = node.clock()
    number = tx.execute(
        insert(approvals)
        .values(
            act=act,
            subject=subject,
            arguments=kept,
            binding=binding,
            reason=reason.strip(),
            asked_at=now,
            asked_by=node.actor,
            state=State.OPEN,
        )
        .returning(approvals.c.id)
    ).scalar_one()
    record(tx, at=now, by=node.actor, act="approval.ask", subject=subject, detail=f"request {number}: {act}")
    return int(number)


def awaits(node: Node, number: int) -> AwaitsSecondError:
    """What to raise once the request is committed: says how a second person approves it."""
    others = [name for name in node.people if name != node.actor and holds(node.people, name, Post.APPROVER)]
    text = f"Noted as request {number}. A second person approves it with: apostille approval approve {number}"
    if not others:
        text += "; nobody else is approver here yet: name one under `people` in apostille.yaml"
    return AwaitsSecondError(text, number)


def settle(node: Node, number: int, acts: Acts, *, approve: bool) -> Request:
    """The second person's answer; approving carries the act out. Returns the request as it stands then.

    (1) the actor is an approver; (2) the request is open; (3) the actor is another person than the asker; (4) the asker
    may still ask, and the request is young enough; (5) the act finds everything as it was bound. Where (4) or (5) fails
    the request is void, which is kept, and ConflictError is raised. Act, state and audit row are one transaction.
    Raises NotAllowedError, NotFoundError, UsageError, and what the act raises; then the request stays open.
    """
    node.allow(Post.APPROVER)  # (1)
    with write(node.engine) as tx:
        request = _find(node, tx, number)
        if request.settled_at is not None:  # (2)
            by = f"by {request.settled_by} on {request.settled_at:%Y-%m-%d}"
            raise UsageError(f"request {number} is {request.state} already, {by}; nothing was changed")
        _require_other(request, node.actor)  # (3)
        why_void = request.why_void  # (4)
        if why_void is None and approve:
            why_void = _carry_out(node, tx, request, acts)  # (5)
        state = State.VOID if why_void else State.DONE if approve else State.REFUSED
        _settle(node, tx, request, state, why_void)
        settled = _find(node, tx, number)
    if why_void:
        raise ConflictError(f"request {number} is void: {why_void}; nothing was done, it has to be asked for again")
    return settled


def require_unchanged(request: Request, binding: bytes) -> None:
    """For an act: everything that the request is about is as it was. Raises ConflictError."""
    if request.binding != binding:
        raise ConflictError("what it is about has changed since")


def void(node: Node, tx: Connection, act: Act, subject: str, why: str) -> None:
    """Ends every open request for `act` on `subject`: something happened that whoever asked did not know."""
    for request in _open_requests(node, tx, act, subject):
        _settle(node, tx, request, State.VOID, why)


def pending(node: Node) -> tuple[Request, ...]:
    """The requests that a second person can settle now, oldest first."""
    return tuple(request for request in all_requests(node) if request.state is State.OPEN)


def all_requests(node: Node) -> tuple[Request, ...]:
    """Every request, oldest first, as it stands now."""
    with read(node.engine) as tx:
        rows = tx.execute(select(approvals).order_by(approvals.c.id)).all()
    return tuple(_request(node, row) for row in rows)


def find(node: Node, number: int) -> Request:
    """One request as it stands now. Raises NotFoundError."""
    with read(node.engine) as tx:
        return _find(node, tx, number)


def _carry_out(node: Node, tx: Connection, request: Request, acts: Acts) -> str | None:
    """Runs the act; returns why the request is void if the act finds something changed, and undoes what it had done."""
    act = acts.get(request.act)
    if act is None:
        raise UsageError(f"request {request.number}: this node cannot carry out {request.act}; nothing was changed")
    try:
        with tx.begin_nested():
            act(node, tx, request)
    except ConflictError as e:
        return str(e)
    return None


def _require_other(request: Request, account: str) -> None:
    """The actor is another account than the asker, by name and by user id: a name can change meanwhile."""
    uid = uid_of(account)
    if account == request.asked_by or (uid is not None and uid == request.asker_uid):
        raise NotAllowedError(f"{request.asked_by} asked for request {request.number}; another person has to settle it")


def _settle(node: Node, tx: Connection, request: Request, state: State, why_void: str | None) -> None:
    now = node.clock()
    changed = tx.execute(
        update(approvals)
        .where(approvals.c.id == request.number, approvals.c.state == State.OPEN)
        .values(state=state, settled_at=now, settled_by=node.actor)
    )
    one_row(changed.rowcount, f"request {request.number}")
    detail = f"request {request.number}: {request.act}, asked by {request.asked_by}"
    detail += f": {why_void}" if why_void else ""
    record(tx, at=now, by=node.actor, act=f"approval.{state}", subject=request.subject, detail=detail)


def _open_requests(node: Node, tx: Connection, act: Act, subject: str) -> list[Request]:
    rows = tx.execute(
        select(approvals).where(approvals.c.act == act, approvals.c.subject == subject, approvals.c.state == State.OPEN)
    ).all()
    return [_request(node, row) for row in rows]


def _find(node: Node, tx: Connection, number: int) -> Request:
    row = tx.execute(select(approvals).where(approvals.c.id == number)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no request {number}; see: apostille approval list")
    return _request(node, row)


def _request(node: Node, row: Row[Any]) -> Request:
    """A request as it stands now: one that has not been settled may be void by time, or because its asker left."""
    state, why_void = State(row.state), None
    if state is State.OPEN:
        why_void = _why_void(node, Act(row.act), row.asked_by, row.asked_at)
        state = State.VOID if why_void else state
    return Request(
        number=row.id,
        act=Act(row.act),
        subject=row.subject,
        arguments=row.arguments["arguments"],
        binding=row.binding,
        reason=row.reason,
        asked_at=row.asked_at,
        asked_by=row.asked_by,
        state=state,
        settled_at=row.settled_at,
        settled_by=row.settled_by,
        asker_uid=row.arguments["uid"],
        why_void=why_void,
    )


def _why_void(node: Node, act: Act, asked_by: str, asked_at: datetime) -> str | None:
    if node.clock() - asked_at > LIFETIME:
        return f"it is older than {LIFETIME.days} days"
    if not holds(node.people, asked_by, MAY_ASK[act]):
        return f"{asked_by}, who asked for it, is no {MAY_ASK[act]} here any more"
    return None
