"""This node's own advisories: drafting and importing, raising labels, signing.

A draft is checked when it comes in (valid CSAF, handling that makes sense) and can still be changed; issuing signs it
once and keeps the core with every disclosure (I5). What is imported may be a CSAF document, or a file of ours that
holds one with its AI part, labels and handling. Importing the same file twice changes nothing, so an interrupted
import is simply repeated.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from federation import csaf, handling, outbound, sdjwt, strictjson
from federation.errors import HandlingError, MalformedError, NotFoundError, UsageError
from federation.labels import SENSITIVITY
from federation.limits import MAX_DOCUMENT_BYTES
from federation.marking import mark
from federation.model import Category, Handling, JsonObject, NodeId, Onward, Purpose, Role, Tier, Tlp
from federation.outbound import Draft, OwnAdvisory
from federation.yamltext import mapping
from node.home import signing
from node.home.context import Node
from node.home.people import Post
from node.records import approvals
from node.records.approvals import Act, Request
from node.store.database import one_row, read, record, write
from node.store.tables import advisories, meta, recall_holders

_PREVIEW = "preview"  # names no key
_FIRST_NUMBER: Final = "first revision"  # the key in `meta`
_COUNTED_FROM: Final = datetime(2026, 1, 1, tzinfo=UTC)
_FILE_MEMBERS = frozenset(("csaf", "ai", "labels", "handling"))
_OPTIONAL_HANDLING = ("tier", "purposes", "onward", "embargo_until", "retain_until", "storage", "recipients")
_DEFAULT_PURPOSES = (Purpose.DETECTION, Purpose.REMEDIATION)


class State(StrEnum):
    """A draft can be changed; an issued revision never. A recalled one is released no more."""

    DRAFT = "draft"
    ISSUED = "issued"
    RECALLED = "recalled"


@dataclass(frozen=True, slots=True)
class Summary:
    """One revision of an advisory, for lists. `key` is the local row."""

    key: int
    name: str
    revision: int
    title: str
    state: State
    handling: Handling
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Imported:
    """What came of one file. `unlabelled` are paths that no label covers, so that they are never shared.

    `revised` tells that a later revision than this one is here.
    """

    advisory: Summary
    fresh: bool
    unlabelled: tuple[str, ...]
    revised: bool = False


def import_file(node: Node, data: bytes, what: str, *, tlp: Tlp | None) -> Imported:
    """A draft from the bytes of a file. `tlp` is for documents that bring none; it must not contradict one that does.

    Raises MalformedError (with the CSAF tests that failed), HandlingError or UsageError; then nothing is kept.
    """
    node.allow(Post.ANALYST)
    content = strictjson.decode_object(data, max_bytes=MAX_DOCUMENT_BYTES, what=what)
    document, ai, raised, given = split(content, what)
    draft = Draft(
        origin=node.id,
        name=outbound.tracking_name(document),
        revision=1,
        issued_at=node.clock(),
        handling=complete_handling(node, with_tlp(given, document, tlp, what), what),
        csaf=document,
        ai=ai,
        raised=raised,
    )
    return keep_draft(node, draft, hashlib.sha256(data).digest(), case=None)


def keep_draft(node: Node, draft: Draft, source_digest: bytes, *, case: str | None) -> Imported:
    """Stores a draft, unless the very same is held. Raises UsageError when its name is taken by something else."""
    outbound.check_draft(draft)
    unlabelled = mark(draft.csaf, draft.ai, node.labels, draft.raised).unlabelled
    now = node.clock()
    with write(node.engine) as tx:
        revisions = tx.execute(select(advisories).where(advisories.c.name == draft.name)).all()
        for row in revisions:
            if row.source_digest == source_digest:
                later = any(other.revision > row.revision for other in revisions)
                return Imported(summary_of(row), False, unlabelled, later)
        if revisions:
            raise UsageError(
                f"{draft.name} is here already, with other content; nothing was changed. Make its next revision with:"
                f" apostille advisory revise {draft.name} FILE"
            )
        insert_draft(tx, draft, source_digest, case=case, at=now, by=node.actor)
        return Imported(summary_of(_row(tx, draft.name)), True, unlabelled)


def insert_draft(
    tx: Connection, draft: Draft, source_digest: bytes, *, case: str | None, at: datetime, by: str
) -> None:
    """Stores a draft that was checked, under a name and revision that are free."""
    values = _values_of(draft, source_digest, at, by)
    tx.execute(insert(advisories).values(name=draft.name, revision=draft.revision, case_name=case, **values))
    detail = "" if draft.revision == 1 else f"revision {draft.revision}"
    record(tx, at=at, by=by, act="advisory.draft", subject=draft.name, detail=detail)


def replace_draft(tx: Connection, key: int, draft: Draft, source_digest: bytes, *, at: datetime, by: str) -> None:
    """Stores a draft that was checked in the place of another of its revision, `key`. Raises ConflictError."""
    values = _values_of(draft, source_digest, at, by)
    changed = tx.execute(update(advisories).where(advisories.c.id == key, advisories.c.core.is_(None)).values(**values))
    one_row(changed.rowcount, draft.name)
    detail = f"revision {draft.revision}, in the place of another draft"
    record(tx, at=at, by=by, act="advisory.draft", subject=draft.name, detail=detail)


def label(node: Node, name: str, pointer: str, category: Category, reason: str | None = None) -> None:
    """Raises the category of one element of a draft. Lowering one that was raised takes a reason and a second person.

    Raises PolicyError for a pointer that names none or a category below the element's own, UsageError if issued,
    AwaitsSecondError when a lowering is noted.
    """
    node.allow(Post.ANALYST)
    with write(node.engine) as tx:
        row = _row(tx, name)
        if row.draft is None:
            raise UsageError(f"{name} is signed already; labels are part of what was signed")
        changed = _relabelled(node, row, pointer, category)
        before = _categories(row.draft["raised"]).get(pointer, category)
        if SENSITIVITY[category] >= SENSITIVITY[before]:
            _keep_label(node, tx, row, changed, f"{pointer} {category}")
            return
        if reason is None:
            raise UsageError(
                f"{pointer} was raised to {before}; lowering it to {category} takes a second person:"
                " say why with --reason"
            )
        arguments = {
            "advisory": name,
            "revision": row.revision,
            "pointer": pointer,
            "from": before.value,
            "to": category.value,
        }
        binding = _label_binding(row, pointer, category)
        number = approvals.ask(node, tx, Act.LABEL, f"{name} {pointer}", arguments, binding, reason)
    raise approvals.awaits(node, number)


def carry_out_label(node: Node, tx: Connection, request: Request) -> None:
    """Lowers the category of one element of a draft, as it is bound. Raises ConflictError."""
    name, pointer, category = (request.arguments[member] for member in ("advisory", "pointer", "to"))
    row = _row(tx, name)
    approvals.require_unchanged(request, _label_binding(row, pointer, category))
    changed = _relabelled(node, row, pointer, Category(category))
    asked = f"request {request.number}, asked by {request.asked_by}"
    _keep_label(node, tx, row, changed, f"{pointer} {category}, {asked}")


def own_advisory(node: Node, name: str, tx: Connection | None = None) -> tuple[Summary, OwnAdvisory]:
    """The advisory with everything that can be chosen from it; a draft is signed provisionally, for previews, and not
    kept.

    Raises NotFoundError.
    """
    if tx is None:
        with read(node.engine) as own:
            return own_advisory(node, name, own)
    row = _row(tx, name)
    if row.core is not None:
        return summary_of(row), outbound.reopen(row.core, unpack(row.disclosures), node.labels)
    issued = outbound.issue(
        _draft(node, row), node.labels, kid=_PREVIEW, sign=lambda _: bytes(64), entropy=node.entropy
    )
    return summary_of(row), outbound.reopen(issued.core, issued.disclosures, node.labels)


def issue(node: Node, tx: Connection, name: str) -> tuple[Summary, OwnAdvisory]:
    """The signed advisory: signed now if it was a draft. Raises NotFoundError and whatever `outbound.issue` raises.

    In a home that was put back its number may be another one than the draft's: that may have been signed since (I5).
    """
    row = _row(tx, name)
    if row.core is None:
        signer = signing.signer_for_all(node, tx, Role.ISSUE)
        revision = max(row.revision, _first_number(tx))
        draft = replace(_draft(node, row), revision=revision)
        issued = outbound.issue(draft, node.labels, kid=signer.kid, sign=signer.sign, entropy=node.entropy)
        own = outbound.reopen(issued.core, issued.disclosures, node.labels)
        changed = tx.execute(
            update(advisories)
            .where(advisories.c.id == row.id, advisories.c.core.is_(None))
            .values(
                revision=revision,
                draft=None,
                core=issued.core,
                core_digest=own.core_digest,
                disclosures=pack(issued.disclosures),
                issued_at=draft.issued_at,
            )
        )
        one_row(changed.rowcount, name)
        record(tx, at=draft.issued_at, by=node.actor, act="advisory.issue", subject=name, detail=f"revision {revision}")
        return summary_of(_row(tx, name)), own
    return own_advisory(node, name, tx)


def number_anew(node: Node, tx: Connection) -> None:
    """For a database that was put back: what is signed from now on has numbers that were never used. They begin at the
    hours since 2026, and beyond every number that is known."""
    known = tx.execute(select(func.max(advisories.c.revision))).scalar() or 0
    hours = (node.clock() - _COUNTED_FROM) // timedelta(hours=1)
    first = max(hours, known + 1, _first_number(tx) + 1)
    tx.execute(delete(meta).where(meta.c.key == _FIRST_NUMBER))
    tx.execute(insert(meta).values(key=_FIRST_NUMBER, value=str(first)))


def _first_number(tx: Connection) -> int:
    return int(tx.execute(select(meta.c.value).where(meta.c.key == _FIRST_NUMBER)).scalar_one_or_none() or 1)


def can_be_verified(node: Node, own: OwnAdvisory) -> bool:
    """Whether the key that signed it is valid on the current card; what is not signed yet will be."""
    kid, now = sdjwt.read_header_and_payload(own.core).kid, node.clock()
    return kid == _PREVIEW or any(k.role is Role.ISSUE and k.kid == kid and k.valid_at(now) for k in node.card.keys)


def reopened(node: Node, core: bytes, disclosures: bytes) -> OwnAdvisory:
    """An issued advisory, as it is stored, for checks at serving."""
    return outbound.reopen(core, unpack(disclosures), node.labels)


def issued_keys(tx: Connection, name: str, revision: int | None = None) -> tuple[int, ...]:
    """The local rows of the issued revisions of an advisory, or of one. Raises NotFoundError."""
    _row(tx, name, revision)
    query = select(advisories.c.id).where(advisories.c.name == name, advisories.c.core.is_not(None))
    return tuple(tx.execute(query if revision is None else query.where(advisories.c.revision == revision)).scalars())


def has_to_follow(tx: Connection, recall: bytes, peer: NodeId) -> bool:
    """Whether `peer` has to follow a recall, named by its digest."""
    query = select(recall_holders.c.node).where(recall_holders.c.recall == recall, recall_holders.c.node == peer)
    return tx.execute(query).first() is not None


def content(node: Node, name: str, revision: int | None = None) -> tuple[Summary, JsonObject, JsonObject | None]:
    """The whole document and its AI part, as this node knows them: of the newest revision unless one is named.

    Raises NotFoundError.
    """
    with read(node.engine) as tx:
        row = _row(tx, name, revision)
    if row.draft is not None:
        return summary_of(row), row.draft["csaf"], row.draft["ai"]
    claims = outbound.open_in_full(outbound.reopen(row.core, unpack(row.disclosures), node.labels))
    return summary_of(row), claims["csaf"], claims.get("ai")


def all_advisories(node: Node) -> tuple[Summary, ...]:
    """Every revision of every advisory of this node, by name."""
    query = select(advisories).order_by(advisories.c.name, advisories.c.revision)
    with read(node.engine) as tx:
        return tuple(map(summary_of, tx.execute(query).all()))


def pack(disclosures: tuple[bytes, ...]) -> bytes:
    """Disclosures as one value of the database: each is JSON, so a line feed between them is no part of any."""
    return b"\n".join(disclosures)


def unpack(packed: bytes) -> tuple[bytes, ...]:
    """The inverse of `pack`."""
    return tuple(packed.split(b"\n")) if packed else ()


def split(content: JsonObject, what: str) -> tuple[JsonObject, JsonObject | None, dict[str, Category], JsonObject]:
    """CSAF, AI part, raised labels and handling of a file: one of ours, or a CSAF document by itself."""
    if "csaf" not in content:
        return content, None, {}, {}
    unknown = sorted(content.keys() - _FILE_MEMBERS)
    document, ai, labels, given = (content.get(member) for member in ("csaf", "ai", "labels", "handling"))
    if unknown:
        raise UsageError(f"{what}: unknown member {', '.join(unknown)}; there may be csaf, ai, labels, handling")
    if not isinstance(document, dict) or not all(
        part is None or isinstance(part, dict) for part in (ai, labels, given)
    ):
        raise MalformedError(f"{what}: csaf, ai, labels and handling must be objects")
    try:
        return document, ai, _categories(labels or {}), given or {}
    except ValueError as e:
        raise UsageError(f"{what}: labels: there is no such category; see: apostille advisory label --help") from e


def with_tlp(given: JsonObject, document: JsonObject, tlp: Tlp | None, what: str) -> JsonObject:
    """The handling that a file brings, with its TLP: from the handling, else from `tlp`, else from the document's
    label.

    Raises UsageError when there is none, or when `tlp` contradicts what the file brings.
    """
    label_text = csaf.tlp_label(document)
    if tlp is not None and (given.get("tlp", tlp) != tlp or label_text not in (None, csaf.expected_label(tlp))):
        raise UsageError(f"{what}: it says itself which TLP it has, and not {tlp}; --tlp is for documents that do not")
    if "tlp" in given:
        return given
    if tlp is None and label_text is None:
        raise UsageError(f"{what}: it carries no TLP label; say which with --tlp, such as --tlp AMBER")
    return {**given, "tlp": (tlp or csaf.tlp_from_label(label_text or "")).value}


def complete_handling(node: Node, given: object, where: str) -> Handling:
    """Handling as a person writes it: only `tlp` is a must, the home jurisdiction is this node's, the rest has
    defaults.

    Raises UsageError naming `where`.
    """
    members = {
        "home": node.jurisdiction,
        "storage": None,
        "onward": Onward.NONE.value,
        "purposes": [purpose.value for purpose in _DEFAULT_PURPOSES],
        "retain_until": None,
        "embargo_until": None,
        "tier": Tier.STANDARD.value,
        "recipients": None,
        **mapping(given, f"{where}: handling", required=("tlp",), optional=_OPTIONAL_HANDLING),
    }
    for listed in ("storage", "purposes", "recipients"):
        if isinstance(members[listed], list):
            members[listed] = sorted(members[listed], key=str)
    try:
        return handling.read(members)
    except HandlingError as e:
        raise UsageError(f"{where}: {e}") from e


def _values_of(draft: Draft, source_digest: bytes, at: datetime, by: str) -> dict[str, Any]:
    return {
        "title": _title(draft.csaf),
        "handling": handling.write(draft.handling),
        "draft": {"csaf": draft.csaf, "ai": draft.ai, "raised": {k: v.value for k, v in draft.raised.items()}},
        "source_digest": source_digest,
        "created_at": at,
        "created_by": by,
    }


def _relabelled(node: Node, row: Row[Any], pointer: str, category: Category) -> JsonObject:
    """The draft with that category. Raises PolicyError for what no element has or may have."""
    raised = {**_categories(row.draft["raised"]), pointer: category}
    mark(row.draft["csaf"], row.draft["ai"], node.labels, raised)
    return {**row.draft, "raised": {k: v.value for k, v in raised.items()}}


def _keep_label(node: Node, tx: Connection, row: Row[Any], draft: JsonObject, detail: str) -> None:
    tx.execute(update(advisories).where(advisories.c.id == row.id).values(draft=draft))
    record(tx, at=node.clock(), by=node.actor, act="advisory.label", subject=row.name, detail=detail)


def _label_binding(row: Row[Any], pointer: str, category: str) -> bytes:
    """All that a lowering is about: the whole draft, and where it may go."""
    draft = hashlib.sha256(strictjson.encode([row.draft, row.handling])).digest()
    return approvals.bind(row.name, str(row.revision), row.source_digest, draft, pointer, category)


def _draft(node: Node, row: Row[Any]) -> Draft:
    return Draft(
        origin=node.id,
        name=row.name,
        revision=row.revision,
        issued_at=node.clock(),
        handling=handling.read(row.handling),
        csaf=row.draft["csaf"],
        ai=row.draft["ai"],
        raised=_categories(row.draft["raised"]),
    )


def _row(tx: Connection, name: str, revision: int | None = None) -> Row[Any]:
    """The newest revision of that name, or one that is named."""
    query = select(advisories).where(advisories.c.name == name).order_by(advisories.c.revision.desc()).limit(1)
    row = tx.execute(query if revision is None else query.where(advisories.c.revision == revision)).one_or_none()
    if row is None:
        which = name if revision is None else f"{name}, revision {revision}"
        raise NotFoundError(f"no advisory is called {which}; see: apostille advisory list")
    return row


def summary_of(row: Row[Any]) -> Summary:
    """A row of the table of advisories, for people."""
    return Summary(
        key=row.id,
        name=row.name,
        revision=row.revision,
        title=row.title,
        state=State.DRAFT if row.core is None else State.ISSUED if row.recall is None else State.RECALLED,
        handling=handling.read(row.handling),
        created_at=row.created_at,
    )


def _categories(labels: Mapping[str, str]) -> dict[str, Category]:
    return {pointer: Category(category) for pointer, category in labels.items()}


def _title(document: JsonObject) -> str:
    title: str = document["document"]["title"]
    return title
