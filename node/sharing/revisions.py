"""Later revisions of an own advisory.

A revision is made as a draft, from a file as an import takes it, and signed when it is released. What the file does not
say of handling is as it was, and a part whose category was raised keeps it, whether it is known again by its place or
by what it says; where what it said is not found again, what is new beside it is raised as well: a new revision lets
nothing out by oversight. Who is left with an earlier revision is told in `node.sharing.holders`.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, select

from federation import csaf, handling, outbound, sdjwt, strictjson
from federation.elements import raised_by_path
from federation.errors import NotFoundError, UsageError
from federation.labels import SENSITIVITY
from federation.limits import MAX_DOCUMENT_BYTES
from federation.marking import mark
from federation.model import Category, Handling, JsonObject, Tlp, instant_text
from federation.outbound import Draft, OwnAdvisory
from node.home.context import Node
from node.home.people import Post
from node.sharing import advisories
from node.sharing.advisories import Imported
from node.store.database import read, write
from node.store.tables import advisories as advisories_table


@dataclass(frozen=True, slots=True)
class Revised:
    """A new revision as a draft. `kept` are the parts that are raised as before, where the file does not say so.

    `unsure` are those among them that are raised only because something beside them was, which is not found again: with
    the place where that stood.
    """

    made: Imported
    kept: Mapping[str, Category]
    unsure: Mapping[str, str]


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


def _revisions(tx: Connection, name: str) -> list[Row[Any]]:
    """Every revision of an advisory, newest first. Raises NotFoundError."""
    query = select(advisories_table).where(advisories_table.c.name == name)
    rows = list(tx.execute(query.order_by(advisories_table.c.revision.desc())))
    if not rows:
        raise NotFoundError(f"no advisory is called {name}; see: apostille advisory list")
    return rows


def _newest_issued(rows: Sequence[Row[Any]]) -> Row[Any]:
    for row in rows:
        if row.core is not None:
            return row
    raise UsageError(f"{rows[0].name} is a draft that was never released: there is no revision to follow")


def _keep(node: Node, draft: Draft, source_digest: bytes, rows: list[Row[Any]]) -> Revised:
    """Stores the draft of the next revision, unless the very same is here."""
    for row in rows:
        if row.source_digest == source_digest:
            later = row is not rows[0]
            return Revised(Imported(advisories.summary_of(row), fresh=False, unlabelled=(), revised=later), {}, {})
    outbound.check_draft(draft)
    for row in rows:
        if row.core is not None and _version(_payload(row)["csaf"]) == _version(draft.csaf):
            raise UsageError(
                f"{draft.name}: its tracking version is {_version(draft.csaf)}, as in revision {row.revision};"
                " a later revision has a later one"
            )
    before = (*(row for row in rows if row.core is None), _newest_issued(rows))
    kept, unsure = _inherited(_provisional(node, draft), [_opened(node, row) for row in before])
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
    return Revised(Imported(made, True, unlabelled), kept, unsure)


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


def _opened(node: Node, row: Row[Any]) -> OwnAdvisory:
    """A revision with everything that is in it."""
    if row.draft is None:
        return outbound.reopen(row.core, advisories.unpack(row.disclosures), node.labels)
    raised = {path: Category(name) for path, name in row.draft["raised"].items()}
    document, ai, handled = row.draft["csaf"], row.draft["ai"], handling.read(row.handling)
    return _provisional(node, Draft(node.id, row.name, row.revision, node.clock(), handled, document, ai, raised))


def _provisional(node: Node, draft: Draft) -> OwnAdvisory:
    """A draft as it would be signed."""
    unsigned = outbound.issue(draft, node.labels, kid="draft", sign=lambda _: bytes(64), entropy=node.entropy)
    return outbound.reopen(unsigned.core, unsigned.disclosures, node.labels)


def _inherited(own: OwnAdvisory, before: Iterable[OwnAdvisory]) -> tuple[dict[str, Category], dict[str, str]]:
    """The categories that parts of `own` keep from before, where those are more sensitive than what it says itself; and
    which of these parts are not known again, with the place of the one for which they are raised.

    (1) A part that was raised is known again by its place; (2) and by what it says, wherever that stands now. (3) Where
    what it said stands nowhere, it may stand beside its place in other words: whatever is new there is raised.
    """
    values = _values(own)
    places: dict[object, list[str]] = {}
    kinds: dict[str, list[str]] = {}
    for place, value in values.items():
        places.setdefault(value, []).append(place)
        kinds.setdefault(_kind(place), []).append(place)
    most = {e.path: max(map(SENSITIVITY.__getitem__, e.categories), default=None) for e in own.elements}
    kept: dict[str, Category] = {}
    unsure: dict[str, str] = {}
    for earlier in before:
        was = _values(earlier)
        known = set(was.values())
        for path, category in raised_by_path(earlier.nodes).items():
            again = dict.fromkeys((path, *places.get(was[path], ())))  # (1), (2)
            new = (
                () if was[path] in places else [p for p in kinds.get(_kind(path), ()) if values[p] not in known]
            )  # (3)
            for place in dict.fromkeys((*again, *new)):
                least = most.get(place)
                if least is not None and SENSITIVITY[category] > least:
                    kept[place], most[place] = category, SENSITIVITY[category]
                    unsure.pop(place, None)
                    if place not in again:
                        unsure[place] = path
    return kept, unsure


def _values(own: OwnAdvisory) -> dict[str, object]:
    """What each part says, by its place."""
    claims = outbound.open_in_full(own)
    return {element.path: _frozen(_at(claims, element.path)) for element in own.elements}


def _kind(path: str) -> str:
    """The name of what a part stands in: `notes` for any note, of the document or of a vulnerability."""
    return next(name for name in reversed(path.split("/")[:-1]) if not name.isdecimal())


def _frozen(value: Any) -> object:
    """The same, to be looked up."""
    if isinstance(value, dict):
        return frozenset((name, _frozen(member)) for name, member in value.items())
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


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
