"""A CSAF document and its AI part, readable on a terminal.

What was withheld is simply absent, and nobody has checked that what a peer sent is valid CSAF: every part is taken as
it is, and a part of another shape than CSAF has is passed over. Nothing that a document names is fetched (I18).
"""

from collections.abc import Iterator
from typing import Any

from federation.model import JsonObject
from node.cli import screen

_STATUS = {
    "known_affected": "affected",
    "known_not_affected": "not affected",
    "fixed": "fixed in",
    "first_affected": "first affected",
    "last_affected": "last affected",
    "first_fixed": "first fixed",
    "recommended": "recommended",
    "under_investigation": "under investigation",
}
_PASSED_OVER = "(absent)"


def show(csaf: JsonObject, ai: JsonObject | None) -> None:
    """The document on stdout."""
    document = _object(csaf.get("document"))
    publisher, tracking = _object(document.get("publisher")), _object(document.get("tracking"))
    screen.heading(_text(document.get("title")))
    screen.facts(
        _present(
            ("  Published by", publisher.get("name")),
            ("  Category", document.get("category")),
            ("  Version", tracking.get("version")),
            ("  Status", tracking.get("status")),
            ("  First released", tracking.get("initial_release_date")),
            ("  Last changed", tracking.get("current_release_date")),
            ("  Severity", _object(document.get("aggregate_severity")).get("text")),
        )
    )
    _notes(document, 2)
    products = dict(_products(_object(csaf.get("product_tree"))))
    if products:
        screen.heading("Products")
        screen.facts((f"  {product}", name) for product, name in products.items())
    for number, vulnerability in enumerate(_objects(csaf.get("vulnerabilities")), start=1):
        _vulnerability(number, vulnerability, products)
    if ai:
        screen.heading("AI system")
        screen.facts((f"  {name}", value) for name, value in _leaves(ai, ""))
    references = _objects(document.get("references"))
    if references:
        screen.heading("References")
        screen.facts((f"  {_text(r.get('summary'))}", r.get("url")) for r in references)
    credited = [", ".join(_credit(one)) for one in _objects(document.get("acknowledgments"))]
    if any(credited):
        screen.heading("Acknowledgments")
        screen.paragraph("\n".join(filter(None, credited)), indent=2)


def _vulnerability(number: int, vulnerability: JsonObject, products: dict[str, str]) -> None:
    cwe = _object(vulnerability.get("cwe"))
    title = _text(vulnerability.get("title") or vulnerability.get("cve") or "untitled")
    screen.heading(f"Vulnerability {number}: {title}")
    scores = [
        _object(score.get(kind)) for score in _objects(vulnerability.get("scores")) for kind in ("cvss_v3", "cvss_v2")
    ]
    status = _object(vulnerability.get("product_status"))
    screen.facts(
        _present(
            ("  CVE", vulnerability.get("cve")),
            ("  Weakness", f"{_text(cwe.get('id'))} {_text(cwe.get('name'))}" if cwe else None),
            *(("  CVSS", f"{_text(s.get('baseScore'))} {_text(s.get('vectorString'))}") for s in scores if s),
            *(
                (f"  {about}", [products.get(_text(p), _text(p)) for p in _list(status.get(kind))])
                for kind, about in _STATUS.items()
                if status.get(kind)
            ),
        )
    )
    _notes(vulnerability, 2)
    for kind, about in (("remediations", "Remediation"), ("threats", "Threat")):
        for item in _objects(vulnerability.get(kind)):
            screen.paragraph(f"{about}, {_text(item.get('category'))}:", indent=2)
            screen.paragraph(_text(item.get("details")), indent=4)


def _notes(holder: JsonObject, indent: int) -> None:
    for note in _objects(holder.get("notes")):
        screen.paragraph(f"{_text(note.get('title') or note.get('category') or 'Note')}:", indent=indent)
        screen.paragraph(_text(note.get("text")), indent=indent + 2)


def _products(holder: JsonObject) -> Iterator[tuple[str, str]]:
    """Product ids and names, wherever the tree defines them."""
    for member in ("product", "full_product_name"):
        defined = _object(holder.get(member))
        if defined:
            yield _text(defined.get("product_id")), _text(defined.get("name"))
    for defined in _objects(holder.get("full_product_names")):
        yield _text(defined.get("product_id")), _text(defined.get("name"))
    for member in ("branches", "relationships"):
        for inside in _objects(holder.get(member)):
            yield from _products(inside)


def _credit(one: JsonObject) -> list[str]:
    return [*map(_text, _list(one.get("names"))), *(_text(one[k]) for k in ("organization", "summary") if k in one)]


def _leaves(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from _leaves(inside, f"{name} {_text(key)}".strip().replace("_", " "))
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        for number, inside in enumerate(value, start=1):
            yield from _leaves(inside, f"{name} {number}")
    else:
        yield name, ", ".join(map(_text, value)) if isinstance(value, list) else _text(value)


def _present(*pairs: tuple[str, object]) -> list[tuple[str, object]]:
    return [
        (name, value if isinstance(value, list) else _text(value))
        for name, value in pairs
        if value not in (None, "", [])
    ]


def _text(value: object) -> str:
    """Text or a number as it is; anything else is not shown."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, (int, float)) else _PASSED_OVER


def _object(value: object) -> JsonObject:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _objects(value: object) -> list[JsonObject]:
    return [item for item in _list(value) if isinstance(item, dict)]
