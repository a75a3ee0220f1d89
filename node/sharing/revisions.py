"""Later revisions of an own advisory, and who is left with an earlier one.

A revision is made as a draft, from a file as an import takes it, and signed when it is released. What the file does not
say of handling is as it was, and a part whose category was raised keeps it, whether it is known again by its place or
by what it says: a new revision lets nothing out by oversight. After the release every holder of an earlier revision
gets the new one, a recall, or a recorded decision that it keeps what it has; until then it is listed.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, exists, func, insert, select

from federation import csaf, outbound, sdjwt, strictjson
from federation.elements import raised_by_path
from federation.errors import NotFoundError, UsageError
from federation.labels import SENSITIVITY
from federation.limits import MAX_DOCUMENT_BYTES
from federation.marking import mark
from federation.model import Category, Handling, JsonObject, NodeId, Tlp, instant_text
from federation.outbound import Draft
from federation.recall import Reason
from node.home.context import Node
from node.home.people import Post
from node.sharing import advisories, recalls
from node.sharing.advisories import Imported
from node.sharing.answers import Order
from node.store.database import read, record, write
from node.store.tables import advisories as advisories_table
from node.store.tables import left_with, out_entries, out_feeds, recall_holders

_MAX_REASON: Final = 500  # characters; whoever reads the decision later reads all of it
_Raised = tuple[str, object, Category]  # where, what it says, its category


@dataclass(frozen=True, slots=True)
class Revised:
    """A new revision as a draft. `kept` are the parts that were raised before and stay so, where the file does not."""

    made: Imported
    kept: Mapping[str, Category]


@dataclass(frozen=True, slots=True)
class OldHolder:
    """A peer that was sent an earlier revision of an advisory and not the newest one.

    `revisions` are those that stand in its feed; `left` is why it keeps them, None while nobody has decided.
    """

    name: str
    newest: int
    peer: NodeId
    revisions: tuple[int, ...]
    acknowledged: bool
    left: str | None


def revise(node: Node, name: str, data: bytes, what: str, *, tlp: Tlp | None) -> Revised:
    """The next revision of an issued advisory, as a draft, from the bytes of a file; a draft of it that is here already
    is replaced.

    Raises as `advisories.import_file`, NotFoundError, and UsageError for another tracking id, or for a version that an
    earlier revision has.
    """
    node.allow(Post.ANALYST)
    content = strictjson.decode_object(data, max_bytes=MAX_DOCUMENT_BYTES, what=what)
    document, ai, raised, given = advisories.split(content, what)
    if outbound.tracking_name(document) != name:
        raise UsageError(f"{what}: its tracking id is {outbound.tracking_name(document)}; a revision has the same")
    with read(node.engine) as tx:
        rows = _revisions(tx, name)
    newest = _newest_issued(rows)
    asked = _handling(node, newest.handling, given, document, tlp, what)
    draft = Draft(node.id, name, newest.revision + 1, node.clock(), asked, document, ai, raised)
    return _keep(node, draft, hashlib.sha256(data).digest(), rows)


def revise_from_issued(node: Node, name: str) -> Revised:
    """The same from the document as it was issued last, with the next tracking version: to label it otherwise.

    Raises NotFoundError, and UsageError for a draft that was never released.
    """
    node.allow(Post.ANALYST)
    with read(node.engine) as tx:
        rows = _revisions(tx, name)
    newest = _newest_issued(rows)
    summary, document, ai = advisories.content(node, name, newest.revision)
    document = _next_version(document, newest.revision + 1, instant_text(node.clock()))
    draft = Draft(node.id, name, newest.revision + 1, node.clock(), summary.handling, document, ai, {})
    return _keep(node, draft, hashlib.sha256(strictjson.encode([document, ai])).digest(), rows)


def old_holders(node: Node, name: str) -> tuple[OldHolder, ...]:
    """Who is left with an earlier revision of an advisory, decided or not, by node id. Raises NotFoundError."""
    with read(node.engine) as tx:
        _revisions(tx, name)
        return _old_holders(tx, name)


def unsettled(tx: Connection) -> int:
    """For how many peers and advisories nobody has decided what becomes of the earlier revision that they hold."""
    held = _held().subquery()
    decided = exists().where(left_with.c.advisory == advisories_table.c.id, left_with.c.peer == held.c.peer)
    query = (
        select(func.count())
        .select_from(held)
        .join(
            advisories_table,
            (advisories_table.c.name == held.c.name) & (advisories_table.c.revision == held.c.revision),
        )
        .where(~decided)
    )
    return int(tx.execute(query).scalar_one())


def leave(node: Node, name: str, peer: NodeId, reason: str) -> None:
    """Records the decision that a peer keeps the earlier revisions that it holds. Raises NotFoundError, UsageError."""
    node.allow(Post.ANALYST)
    if not 1 <= len(reason.strip()) <= _MAX_REASON or not reason.isprintable():
        raise UsageError(f"the reason must be one line of 1 to {_MAX_REASON} characters")
    with write(node.engine) as tx:
        keys = {row.revision: row.id for row in _revisions(tx, name)}
        holder = next((h for h in _old_holders(tx, name) if h.peer == peer), None)
        if holder is None or holder.left is not None:
            why = "holds the newest revision or none" if holder is None else "keeps what it has by a decision already"
            raise UsageError(f"{peer} {why}; see: apostille advisory holders {name}")
        now = node.clock()
        for revision in holder.revisions:
            known = select(left_with.c.peer).where(left_with.c.advisory == keys[revision], left_with.c.peer == peer)
            if tx.execute(known).first() is None:
                tx.execute(
                    insert(left_with).values(
                        advisory=keys[revision], peer=peer, reason=reason.strip(), at=now, by=node.actor
                    )
                )
        detail = f"{peer} keeps revision {', '.join(map(str, holder.revisions))}"
        record(tx, at=now, by=node.actor, act="advisory.leave", subject=name, detail=detail)


def recall_from_old_holders(node: Node, name: str) -> Order:
    """Recalls the earlier revisions from every peer for which nothing was decided, and from nobody else.

    Raises NotFoundError, UsageError when there is none.
    """
    node.allow(Post.ANALYST)
    open_ = [holder for holder in old_holders(node, name) if holder.left is None]
    if not open_:
        raise UsageError(f"nobody is left with an earlier revision of {name}; nothing was recalled")
    revisions = sorted({revision for holder in open_ for revision in holder.revisions})
    return recalls.give(node, name, Reason.REPLACED, revisions, to=frozenset(holder.peer for holder in open_))


def _revisions(tx: Connection, name: str) -> list[Row[Any]]:
    """Every revision of an advisory, newest first. Raises NotFoundError."""
    query = select(advisories_table).where(advisories_table.c.name == name)
    rows = list(tx.execute(query.order_by(advisories_table.c.revision.desc())))
    if not rows:
        raise NotFoundError(f"no advisory is called {name}; see: apostille advisory list")
    return rows


def _newest_issued(rows: Iterable[Row[Any]]) -> Row[Any]:
    for row in rows:
        if row.core is not None:
            return row
        name = row.name
    raise UsageError(f"{name} is a draft that was never released: there is no revision to follow")


def _keep(node: Node, draft: Draft, source_digest: bytes, rows: list[Row[Any]]) -> Revised:
    """Stores the draft of the next revision, unless the very same is here."""
    for row in rows:
        if row.source_digest == source_digest:
            later = row is not rows[0]
            return Revised(Imported(advisories.summary_of(row), fresh=False, unlabelled=(), revised=later), {})
    outbound.check_draft(draft)
    for row in rows:
        if row.core is not None and _version(_payload(row)["csaf"]) == _version(draft.csaf):
            raise UsageError(
                f"{draft.name}: its tracking version is {_version(draft.csaf)}, as in revision {row.revision};"
                " a later revision has a later one"
            )
    before = (*(row for row in rows if row.core is None), _newest_issued(rows))
    kept = _inherited(node, draft, [raised for row in before for raised in _raised(node, row)])
    draft = replace(draft, raised={**draft.raised, **kept})
    unlabelled, now = mark(draft.csaf, draft.ai, node.labels, draft.raised).unlabelled, node.clock()
    with write(node.engine) as tx:
        again = _revisions(tx, draft.name)
        if [row.source_digest for row in again] != [row.source_digest for row in rows]:
            raise UsageError(f"{draft.name} was changed meanwhile by somebody else; look at it and try again")
        if again[0].core is None:
            advisories.replace_draft(tx, again[0].id, draft, source_digest, at=now, by=node.actor)
        else:
            case = again[0].case_name
            advisories.insert_draft(tx, draft, source_digest, case=case, at=now, by=node.actor)
        made = advisories.summary_of(_revisions(tx, draft.name)[0])
    return Revised(Imported(made, True, unlabelled), kept)


def _handling(
    node: Node, before: JsonObject, given: JsonObject, document: JsonObject, tlp: Tlp | None, what: str
) -> Handling:
    """The handling of a revision: as the file says, and as it was before where it says nothing."""
    label = csaf.tlp_label(document)
    if "tlp" not in given and tlp is None and label in (None, csaf.expected_label(Tlp(before["tlp"]))):
        given = {**given, "tlp": before["tlp"]}
    given = advisories.with_tlp(given, document, tlp, what)
    kept = {member: value for member, value in before.items() if member != "home"}
    return advisories.complete_handling(node, {**kept, **given}, what)


def _raised(node: Node, row: Row[Any]) -> list[_Raised]:
    """The parts of a revision whose category was raised."""
    if row.draft is not None:
        claims, found = row.draft, {path: Category(name) for path, name in row.draft["raised"].items()}
    else:
        own = outbound.reopen(row.core, advisories.unpack(row.disclosures), node.labels)
        claims, found = outbound.open_in_full(own), raised_by_path(own.nodes)
    return [(path, _at(claims, path), category) for path, category in found.items()]


def _inherited(node: Node, draft: Draft, before: Iterable[_Raised]) -> dict[str, Category]:
    """The categories that parts of `draft` keep from before, where those are more sensitive than what it says itself.

    A part is known again by its place, and by what it says if it stands at another place now.
    """
    unsigned = outbound.issue(draft, node.labels, kid="draft", sign=lambda _: bytes(64), entropy=node.entropy)
    own = outbound.reopen(unsigned.core, unsigned.disclosures, node.labels)
    values = {element.path: _at({"csaf": draft.csaf, "ai": draft.ai}, element.path) for element in own.elements}
    most = {
        element.path: max(map(SENSITIVITY.__getitem__, element.categories), default=None) for element in own.elements
    }
    kept: dict[str, Category] = {}
    for path, value, category in before:
        for place, now in values.items():
            least = most[place]
            if (place == path or now == value) and least is not None and SENSITIVITY[category] > least:
                kept[place], most[place] = category, SENSITIVITY[category]
    return kept


def _at(claims: Any, path: str) -> object:
    """What stands at a JSON pointer; None where nothing does."""
    for step in path.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(claims, list) and name.isdecimal() and int(name) < len(claims):
            claims = claims[int(name)]
        elif isinstance(claims, dict) and name in claims:
            claims = claims[name]
        else:
            return None
    return claims


def _payload(row: Row[Any]) -> JsonObject:
    return sdjwt.read_header_and_payload(row.core).payload


def _version(document: JsonObject) -> str:
    return str(document["document"]["tracking"]["version"])


def _next_version(document: JsonObject, revision: int, moment: str) -> JsonObject:
    """The document with the tracking version after its own, and a line in its history."""
    before = _version(document)
    *leading, last = re.split("[-+]", before)[0].split(".")  # one number, or three and a suffix (CSAF 2.0, 3.1.11)
    version = ".".join((*leading, str(int(last) + 1)))
    tracking = document["document"]["tracking"]
    line = {"date": moment, "number": version, "summary": f"Revision {revision}"}
    changed = {
        **tracking,
        "version": version,
        "current_release_date": moment,
        "revision_history": [*tracking["revision_history"], line],
    }
    return {**document, "document": {**document["document"], "tracking": changed}}


def _held() -> Select[tuple[str, int, str, int]]:
    """Name, newest revision, peer, and the highest revision that stands in a feed to it, where that is an earlier one.

    A revision that was recalled is not the newest; one of which the peer was told so is not held.
    """
    table = advisories_table
    newest = (
        select(table.c.name, func.max(table.c.revision).label("newest"))
        .where(table.c.core.is_not(None), table.c.recall.is_(None))
        .group_by(table.c.name)
        .having(func.max(table.c.revision) > 1)
        .subquery()
    )
    told = exists().where(recall_holders.c.recall == table.c.recall, recall_holders.c.node == out_feeds.c.peer)
    highest = func.max(table.c.revision)
    return (
        select(table.c.name, newest.c.newest, out_feeds.c.peer, highest.label("revision"))
        .join_from(newest, table, table.c.name == newest.c.name)
        .join(out_entries, out_entries.c.advisory == table.c.id)
        .join(out_feeds, out_feeds.c.id == out_entries.c.feed)
        .where(out_entries.c.data.is_not(None), ~told)
        .group_by(table.c.name, newest.c.newest, out_feeds.c.peer)
        .having(highest < newest.c.newest)
    )


def _old_holders(tx: Connection, name: str) -> tuple[OldHolder, ...]:
    table = advisories_table
    found = tx.execute(_held().where(table.c.name == name)).all()
    standing = tx.execute(
        select(table.c.revision, out_feeds.c.peer, out_entries.c.seq, out_feeds.c.receipt_size, left_with.c.reason)
        .join_from(out_entries, table, table.c.id == out_entries.c.advisory)
        .join(out_feeds, out_feeds.c.id == out_entries.c.feed)
        .outerjoin(left_with, (left_with.c.advisory == table.c.id) & (left_with.c.peer == out_feeds.c.peer))
        .where(table.c.name == name, out_entries.c.data.is_not(None))
    ).all()
    holders = []
    for row in found:
        theirs = [entry for entry in standing if entry.peer == row.peer]
        highest = [entry for entry in theirs if entry.revision == row.revision]
        holders.append(
            OldHolder(
                name=name,
                newest=row.newest,
                peer=NodeId(row.peer),
                revisions=tuple(sorted({entry.revision for entry in theirs})),
                acknowledged=any(entry.receipt_size > entry.seq for entry in theirs),
                left=highest[0].reason,
            )
        )
    return tuple(sorted(holders, key=lambda holder: holder.peer))
