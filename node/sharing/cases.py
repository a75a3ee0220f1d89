"""The local case, first version: opened from a file, and an advisory drafted from it by copying named fields only.

A case never crosses a border (I1): `federation` cannot import this module, and a draft is made from the fields that
`_COPIED` names, the handling, and nothing else. The reporter's identity is sealed at rest; only the name enters a
draft, as a credit, and only if the reporter asked for it.
"""

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, insert, select

from federation import csaf, strictjson
from federation.errors import NotFoundError, UsageError
from federation.limits import MAX_DOCUMENT_BYTES
from federation.model import Category, JsonObject, instant_text
from federation.outbound import Draft
from federation.yamltext import load, mapping
from node.home.context import Node
from node.home.people import Post
from node.sharing import advisories
from node.sharing.advisories import Imported
from node.store.database import read, record, write
from node.store.tables import cases

_REQUIRED: Final = ("case", "title", "summary", "handling")
_COPIED_IF_THERE: Final = ("details", "exploit", "indicators", "victim", "products", "severity", "remediation")
_PRIVATE: Final = ("reporter", "internal_notes")
_COPIED: Final = ("title", "summary", *_COPIED_IF_THERE)
_MAX_NAME = 64


@dataclass(frozen=True, slots=True)
class Case:
    """A private record. `reporter` is None unless it was asked for and could be unsealed."""

    name: str
    title: str
    record: JsonObject
    reporter: JsonObject | None
    opened_at: datetime
    opened_by: str


def open_case(node: Node, text: str, where: str) -> Case:
    """Opens a case from a file of YAML. Raises UsageError naming `where` and the key; then nothing is kept."""
    node.allow(Post.ANALYST)
    data = mapping(load(text, where), where, required=_REQUIRED, optional=(*_COPIED_IF_THERE, *_PRIVATE))
    name, reporter = data.pop("case"), data.pop("reporter", None)
    if not isinstance(name, str) or not 1 <= len(name) <= _MAX_NAME or not name.isascii() or not name.isprintable():
        raise UsageError(f"{where}: case: expected a name of 1 to {_MAX_NAME} plain characters, such as FR-2026-017")
    if reporter is not None:
        _check_reporter(reporter, where)
    _check_text(data, where)
    advisories.complete_handling(node, data["handling"], where)
    now = node.clock()
    sealed = None if reporter is None else node.keys.seal(json.dumps(reporter).encode())
    with write(node.engine) as tx:
        if tx.execute(select(cases.c.name).where(cases.c.name == name)).one_or_none() is not None:
            raise UsageError(f"{where}: a case {name} is open already; nothing was changed")
        tx.execute(
            insert(cases).values(
                name=name, title=data["title"], record=data, reporter=sealed, opened_at=now, opened_by=node.actor
            )
        )
        record(tx, at=now, by=node.actor, act="case.open", subject=name)
        return _case(node, _row(tx, name), with_reporter=False)


def all_cases(node: Node) -> tuple[Case, ...]:
    """Every case, by name, without reporters."""
    with read(node.engine) as tx:
        rows = tx.execute(select(cases).order_by(cases.c.name)).all()
    return tuple(_case(node, row, with_reporter=False) for row in rows)


def show_case(node: Node, name: str, *, with_reporter: bool = False) -> Case:
    """One case; its reporter only if asked for, which is recorded. Raises NotFoundError, LockedError."""
    with write(node.engine) as tx:
        row = _row(tx, name)
        if with_reporter:
            record(tx, at=node.clock(), by=node.actor, act="case.reporter", subject=name)
        return _case(node, row, with_reporter=with_reporter)


def draft(node: Node, name: str) -> Imported:
    """An advisory drafted from a case: the named fields and nothing else, labelled.

    Raises NotFoundError, UsageError.
    """
    node.allow(Post.ANALYST)
    case = show_case(node, name, with_reporter=True)
    copied: JsonObject = {field: case.record[field] for field in _COPIED if field in case.record}
    credit = case.reporter["name"] if case.reporter and case.reporter.get("credit") is True else None
    document, raised = _document(node, name, copied, credit, node.clock())
    csaf.check(document)
    made = Draft(
        origin=node.id,
        name=name,
        revision=1,
        issued_at=node.clock(),
        handling=advisories.complete_handling(node, case.record["handling"], name),
        csaf=document,
        ai=None,
        raised=raised,
    )
    source = hashlib.sha256(strictjson.encode([copied, credit])).digest()
    return advisories.keep_draft(node, made, source, case=name)


def _document(
    node: Node, name: str, copied: JsonObject, credit: str | None, now: datetime
) -> tuple[JsonObject, dict[str, Category]]:
    """A CSAF 2.0 document from the copied fields, and the labels that its notes need."""
    moment = instant_text(now)
    products = _product_tree(copied.get("products", []))
    ids = [product["product_id"] for product in products]
    document: JsonObject = {
        "category": "csaf_security_advisory" if ids else "csaf_base",
        "csaf_version": "2.0",
        "title": copied["title"],
        "publisher": {"category": "coordinator", "name": node.id, "namespace": f"https://{node.id}"},
        "tracking": {
            "id": name,
            "version": "1",
            "status": "final",
            "initial_release_date": moment,
            "current_release_date": moment,
            "revision_history": [{"date": moment, "number": "1", "summary": "First release"}],
        },
        "notes": [{"category": "summary", "text": copied["summary"], "title": "Summary"}],
    }
    if credit is not None:
        document["acknowledgments"] = [{"names": [credit]}]
    notes, raised = _notes(copied)
    vulnerability: JsonObject = {"title": copied["title"], "notes": notes}
    if ids:
        vulnerability["product_status"] = {"known_affected": ids}
        if "severity" in copied:
            vulnerability["scores"] = [_score(copied["severity"]["cvss_v3"], ids, name)]
        if "remediation" in copied:
            details = copied["remediation"]
            vulnerability["remediations"] = [{"category": "mitigation", "details": details, "product_ids": ids}]
    whole: JsonObject = {"document": document}
    if ids:
        whole["product_tree"] = {"full_product_names": products}
    if notes:
        whole["vulnerabilities"] = [vulnerability]
    return whole, raised


def _notes(copied: JsonObject) -> tuple[list[JsonObject], dict[str, Category]]:
    notes: list[JsonObject] = []
    raised: dict[str, Category] = {}
    plan = (
        ("details", "description", "Technical description", None),
        ("exploit", "details", "Exploitation", Category.EXPLOIT),
        ("indicators", "details", "Indicators of compromise", Category.INDICATOR),
        ("victim", "details", "Affected organisation", Category.VICTIM),
    )
    for field, kind, title, category in plan:
        if field not in copied:
            continue
        text = copied[field]
        if category is not None:
            raised[f"/csaf/vulnerabilities/0/notes/{len(notes)}"] = category
        notes.append({"category": kind, "title": title, "text": "\n".join(text) if isinstance(text, list) else text})
    return notes, raised


def _product_tree(products: list[JsonObject]) -> list[JsonObject]:
    return [
        {
            "product_id": f"CSAFPID-{number:04d}",
            "name": f"{product['vendor']} {product['product']} {product['version']}",
        }
        for number, product in enumerate(products, start=1)
    ]


def _score(vector: object, ids: list[str], where: str) -> JsonObject:
    from cvss import CVSS3, CVSS3Error  # only drafts need it

    try:
        score = CVSS3(str(vector))
    except CVSS3Error as e:
        raise UsageError(f"{where}: severity: cvss_v3: not a CVSS 3.0 or 3.1 vector") from e
    return {"cvss_v3": dict(score.as_json(sort=True, minimal=True)), "products": ids}


def _check_reporter(reporter: object, where: str) -> None:
    members = mapping(reporter, f"{where}: reporter", required=("name",), optional=("email", "credit"))
    for name in ("name", "email"):
        if name in members and (not isinstance(members[name], str) or not members[name].strip()):
            raise UsageError(f"{where}: reporter: {name}: expected text")
    if not isinstance(members.get("credit", False), bool):
        raise UsageError(f"{where}: reporter: credit: expected true or false")


def _check_text(data: JsonObject, where: str) -> None:
    for field in ("title", "summary", "details", "exploit", "victim", "remediation", "internal_notes"):
        if field in data and (not isinstance(data[field], str) or not data[field].strip()):
            raise UsageError(f"{where}: {field}: expected text")
    indicators = data.get("indicators", [])
    if not isinstance(indicators, list) or not all(isinstance(item, str) for item in indicators):
        raise UsageError(f"{where}: indicators: expected a list of texts")
    products = data.get("products", [])
    if not isinstance(products, list):
        raise UsageError(f"{where}: products: expected a list")
    for number, product in enumerate(products, start=1):
        members = mapping(product, f"{where}: product {number}", required=("vendor", "product", "version"))
        for name, value in members.items():
            if not isinstance(value, str) or not value.strip():
                raise UsageError(f'{where}: product {number}: {name}: expected text; write a number in quotes: "1.10"')
    if "severity" in data:
        severity = mapping(data["severity"], f"{where}: severity", required=("cvss_v3",))
        _score(severity["cvss_v3"], [], where)
    if len(json.dumps(data)) > MAX_DOCUMENT_BYTES:
        raise UsageError(f"{where}: over {MAX_DOCUMENT_BYTES} bytes")


def _row(tx: Connection, name: str) -> Row[Any]:
    row = tx.execute(select(cases).where(cases.c.name == name)).one_or_none()
    if row is None:
        raise NotFoundError(f"no case is called {name}; see: apostille case list")
    return row


def _case(node: Node, row: Row[Any], *, with_reporter: bool) -> Case:
    reporter = json.loads(node.keys.unseal(row.reporter)) if with_reporter and row.reporter is not None else None
    return Case(row.name, row.title, row.record, reporter, row.opened_at, row.opened_by)
