"""What people here do with what came in: read, assign, act on, annotate, compare.

Marks and annotations are this node's own. They stand apart from what a peer said, never leave, and stay when the item
itself is withdrawn, recalled or expired: of that, nothing is shown but that it is gone. Whoever copied into an
annotation what must not stay has to see to it: no order of a peer reaches there.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from difflib import SequenceMatcher
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection, insert, select, update

from federation.errors import HeldError, NotFoundError, UsageError
from federation.model import JsonObject, instant_text
from federation.sdjwt.walk import escape
from node.desk import inbox
from node.desk.inbox import Content, Item
from node.home.context import Node
from node.home.people import Post, holds, name_of, uid_of
from node.store.database import read, record, storable, write
from node.store.tables import annotations
from node.store.tables import inbox as inbox_table

ME: Final = "me"  # the account of whoever asks
_MAX_TEXT = 20_000  # characters of an annotation
_MAX_ALIGNED = 1_000  # members of a list; longer ones are compared place by place
_ABSENT: Final = object()


@dataclass(frozen=True, slots=True)
class Annotation:
    """What somebody here wrote about an item."""

    at: datetime
    by: str
    text: str


class Difference(StrEnum):
    """How two documents differ in one part."""

    CHANGED = "changed"
    ONLY_LATER = "not disclosed before"
    ONLY_EARLIER = "not disclosed any more"


@dataclass(frozen=True, slots=True)
class Change:
    """One part that differs. `pointer` is its place in the document that has it, the later one of two.

    `earlier` and `later` are None where the part is absent: whether it was taken out or withheld, nobody here can tell.
    """

    pointer: str
    difference: Difference
    earlier: Any
    later: Any


def mark_read(node: Node, reference: str) -> Item:
    """Marks an item as read; whoever read it first stays noted. Raises NotFoundError, UsageError, HeldError."""

    def change(tx: Connection, item: Item) -> None:
        if item.read_at is None:
            _set(tx, item, read_at=node.clock(), read_by=node.actor)
            _record(node, tx, item, "inbox.read")

    return _work_on(node, reference, change)


def mark_shown(node: Node, item: Item) -> None:
    """The same for an item that somebody has looked at, if it is for that person to work with it."""
    if item.read_at is None and holds(node.people, node.actor, Post.ANALYST):
        mark_read(node, str(item.id))


def assign(node: Node, reference: str, account: str | None) -> Item:
    """Assigns an item to an analyst of this node; to nobody for None. Raises NotFoundError, UsageError."""
    node.allow(Post.ANALYST)
    whom = None if account is None else _analyst(node, account)

    def change(tx: Connection, item: Item) -> None:
        if item.assigned_to != whom:
            _set(tx, item, assigned_to=whom)
            _record(node, tx, item, "inbox.assign", whom or "nobody")

    return _work_on(node, reference, change)


def action(node: Node, reference: str, *, undo: bool = False) -> Item:
    """Notes that what an item asks for has been done here, or with `undo` that it has not.

    Raises NotFoundError, UsageError.
    """

    def change(tx: Connection, item: Item) -> None:
        if (item.actioned_at is None) is not undo:
            done = {"actioned_at": None, "actioned_by": None} if undo else _now_by(node)
            _set(tx, item, **done)
            _record(node, tx, item, "inbox.actioned", "undone" if undo else "")

    return _work_on(node, reference, change)


def annotate(node: Node, reference: str, text: str) -> Item:
    """Keeps a text of ours beside an item, whatever became of it. Raises NotFoundError, UsageError."""
    node.allow(Post.ANALYST)
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise UsageError("the text is not in UTF-8") from e
    if not text.strip() or len(text) > _MAX_TEXT:
        raise UsageError(f"an annotation is a text of 1 to {_MAX_TEXT} characters")

    def change(tx: Connection, item: Item) -> None:
        values = {"inbox": item.id, "at": node.clock(), "by": node.actor, "text": storable(text.strip())}
        tx.execute(insert(annotations).values(**values))
        _record(node, tx, item, "inbox.annotate")

    return _work_on(node, reference, change, gone_too=True)


def annotations_of(node: Node, item: Item) -> tuple[Annotation, ...]:
    """What people here wrote about an item, oldest first."""
    query = select(annotations).where(annotations.c.inbox == item.id).order_by(annotations.c.id)
    with read(node.engine) as tx:
        return tuple(Annotation(row.at, row.by, row.text) for row in tx.execute(query).all())


def account_of(node: Node, account: str) -> str:
    """The name by which an account is known here; ME is whoever asks."""
    if account.lower() == ME:
        return node.actor
    uid = uid_of(account)
    return account if uid is None else name_of(uid)


def diff(node: Node, reference: str, other: str | None = None) -> tuple[Item, Item, tuple[Change, ...]]:
    """The earlier and the later of two deliveries of an advisory, and every part in which they differ.

    Without `other`, the one before: of the revision before, or of the same revision if that came twice. Contradicting
    documents can be compared too, though neither is used. Raises NotFoundError, UsageError, HeldError for one that is
    gone.
    """
    item = inbox.find(node, reference)
    with_which = _before(node, item) if other is None else inbox.find(node, other)
    if (item.origin, item.name) != (with_which.origin, with_which.name):
        raise UsageError(f"{item.origin}/{item.name} and {with_which.origin}/{with_which.name} are two advisories")
    if item.id == with_which.id:
        raise UsageError(f"{reference} and {other} are the same delivery: number {item.id}")
    earlier, later = sorted((item, with_which), key=lambda one: (one.revision, one.id))
    whole = [_parts(inbox.stored(node, one)) for one in (earlier, later)]
    return earlier, later, tuple(_differences(whole[0], whole[1], "", ""))


def _before(node: Node, item: Item) -> Item:
    """The delivery before this one whose bytes are here: the newest of the highest revision that is not above it."""
    same = [
        one
        for one in inbox.items(node, every_state=True)
        if (one.origin, one.name) == (item.origin, item.name) and one.id != item.id and not one.gone
    ]
    before = [one for one in same if (one.revision, one.id) < (item.revision, item.id)]
    if not before:
        raise NotFoundError(f"of {item.name}, nothing is here that came before number {item.id}")
    return max(before, key=lambda one: (one.revision, one.id))


def _parts(found: Content) -> JsonObject:
    """Everything that was said, in JSON's own types."""
    terms = found.terms
    return {
        "csaf": found.csaf,
        **({} if found.ai is None else {"ai": found.ai}),
        "handling": found.handling,
        "issued_at": instant_text(found.item.issued_at),
        "terms": {
            "agreement": terms.agreement_digest.hex(),
            "purposes": sorted(terms.purposes),
            "retain_until": None if terms.retain_until is None else instant_text(terms.retain_until),
            "storage": None if terms.storage is None else sorted(terms.storage),
            "onward": terms.onward.value,
            "attribution": terms.attribution.value,
        },
    }


def _differences(earlier: Any, later: Any, before: str, after: str) -> Iterator[Change]:
    """Part by part; `before` and `after` are the pointers of the two values (RFC 6901)."""
    if earlier is _ABSENT:
        yield Change(after, Difference.ONLY_LATER, None, later)
    elif later is _ABSENT:
        yield Change(before, Difference.ONLY_EARLIER, earlier, None)
    elif isinstance(earlier, dict) and isinstance(later, dict):
        for name in dict.fromkeys((*earlier, *later)):
            step = f"/{escape(name)}"
            values = (earlier.get(name, _ABSENT), later.get(name, _ABSENT))
            yield from _differences(*values, before + step, after + step)
    elif isinstance(earlier, list) and isinstance(later, list):
        for one, two in _aligned(earlier, later):
            values = (_ABSENT if one is None else earlier[one], _ABSENT if two is None else later[two])
            yield from _differences(*values, f"{before}/{one}", f"{after}/{two}")
    elif _spelt(earlier) != _spelt(later):
        yield Change(after, Difference.CHANGED, earlier, later)


def _aligned(earlier: list[Any], later: list[Any]) -> Iterator[tuple[int | None, int | None]]:
    """Which members of two lists belong together, so that one that is gone does not make all after it differ."""
    most = max(len(earlier), len(later))
    if most > _MAX_ALIGNED:
        yield from ((n if n < len(earlier) else None, n if n < len(later) else None) for n in range(most))
        return
    matcher = SequenceMatcher(None, [_spelt(one) for one in earlier], [_spelt(one) for one in later], autojunk=False)
    for _, i, i_end, j, j_end in matcher.get_opcodes():
        for step in range(max(i_end - i, j_end - j)):
            yield (i + step if i + step < i_end else None, j + step if j + step < j_end else None)


def _spelt(value: Any) -> str:
    """A JSON value as text: true is not 1 there, as it is in Python."""
    return json.dumps(value, sort_keys=True)


def _work_on(node: Node, reference: str, change: Callable[[Connection, Item], None], *, gone_too: bool = False) -> Item:
    """Raises NotFoundError, UsageError, HeldError for one that is gone."""
    node.allow(Post.ANALYST)
    number = inbox.find(node, reference).id
    with write(node.engine) as tx:
        item = inbox.by_number(node, tx, number)
        if item.gone and not gone_too:
            raise HeldError(f"{item.name}, number {item.id}: {item.gone}; there is nothing left to work with")
        change(tx, item)
    return inbox.find(node, str(number))


def _analyst(node: Node, account: str) -> str:
    """Raises UsageError for an account that is no analyst here."""
    name = account_of(node, account)
    if not holds(node.people, name, Post.ANALYST):
        analysts = sorted(one for one in node.people if holds(node.people, one, Post.ANALYST))
        raise UsageError(f"{name} is no analyst here; these are: {', '.join(analysts)}")
    return name


def _now_by(node: Node) -> dict[str, Any]:
    return {"actioned_at": node.clock(), "actioned_by": node.actor}


def _set(tx: Connection, item: Item, **values: Any) -> None:
    tx.execute(update(inbox_table).where(inbox_table.c.id == item.id).values(**values))


def _record(node: Node, tx: Connection, item: Item, act: str, detail: str = "") -> None:
    subject = f"{item.origin}/{item.name}/{item.revision}"
    told = f"number {item.id}{': ' if detail else ''}{detail}"
    record(tx, at=node.clock(), by=node.actor, act=act, subject=subject, detail=told)
