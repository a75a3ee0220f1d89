"""Generalisers: what may leave in place of an element that may not leave in full.

Each is a pure function of the element's value and of one parameter from the label file, and returns the generalised
value, or None when this value has none; the element is then withheld. Two rules hold for all of them, and tests prove
both: what was valid CSAF 2.0 stays valid, and generalising twice is the same as once. The second is how a receiver sees
which form it holds (`federation.elements`): a value that its generaliser leaves as it is.

Free text is never generalised here: only a person can do that.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

_WORDS: Final = {
    "none": "None",
    "low": "Low",
    "moderate": "Medium",
    "medium": "Medium",
    "important": "High",
    "high": "High",
    "critical": "Critical",
}
_BANDS: Final = ((9.0, "Critical"), (7.0, "High"), (4.0, "Medium"), (0.1, "Low"), (0.0, "None"))  # CVSS v3.1 section 5
_MAX_SCORE: Final = 10.0
_STATUSES: Final = frozenset(
    (
        "first_affected",
        "first_fixed",
        "fixed",
        "known_affected",
        "known_not_affected",
        "last_affected",
        "recommended",
        "under_investigation",
    )
)


def constant(_: Any, text: Any) -> Any | None:
    """The parameter, whatever the value was."""
    return text


def person_to_role(names: Any, role: Any) -> Any | None:
    """One role in place of all persons, so that not even their number shows."""
    return [role] if isinstance(names, list) and names else None


def vendor_only(model: Any, _: Any) -> Any | None:
    """Only the `vendor` member of an object: no name, version or hash."""
    return {"vendor": model["vendor"]} if isinstance(model, dict) and isinstance(model.get("vendor"), str) else None


def month_of_date(text: Any, _: Any) -> Any | None:
    """The first instant of that month in UTC, still an RFC 3339 date-time."""
    try:
        moment = datetime.fromisoformat(text.upper()) if isinstance(text, str) else None  # RFC 3339 5.6 allows t and z
        if moment is None or moment.tzinfo is None:
            return None
        month = moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return f"{month.year:04}-{month.month:02}-01T00:00:00Z"


def severity_band(severity: Any, _: Any) -> Any | None:
    """An aggregate severity as one of five words, without its namespace. A text that is neither a known word nor a
    score from 0 to 10 has no band."""
    text = severity.get("text") if isinstance(severity, dict) else None
    if not isinstance(text, str):
        return None
    word = text.strip().casefold()
    band = _WORDS.get(word) or _band_of(word)
    return {"text": band} if band else None


def revision_dates(history: Any, _: Any) -> Any | None:
    """Each revision's date and number; the summary, which CSAF requires, says nothing."""
    if not isinstance(history, list) or not history:
        return None
    if not all(
        isinstance(r, dict) and isinstance(r.get("date"), str) and isinstance(r.get("number"), str) for r in history
    ):
        return None
    return [{"date": r["date"], "number": r["number"], "summary": "Revision"} for r in history]


def status_by_id(status: Any, _: Any) -> Any | None:
    """The lists of product ids that CSAF 2.0 3.2.3.9 knows, and nothing else: as general as neutral products are."""
    if not isinstance(status, dict):
        return None
    lists = {
        name: ids
        for name, ids in status.items()
        if name in _STATUSES and isinstance(ids, list) and all(isinstance(i, str) for i in ids)
    }
    return lists or None


def neutral_products(tree: Any, _: Any) -> Any | None:
    """Every product id and group id of the tree under neutral names, in the order of the document.

    What the products are, how they are nested and related, and how assets are matched with them is left out. The ids
    stay, because scores and remediations refer to them.
    """
    if not isinstance(tree, dict):
        return None
    try:
        ids = tuple(dict.fromkeys(_product_ids(tree)))
        groups = [{"group_id": g["group_id"], "product_ids": g["product_ids"]} for g in tree.get("product_groups", ())]
    except (KeyError, TypeError, AttributeError):  # not the shape that CSAF 2.0 3.2.2 gives it
        return None
    if not ids:
        return None
    neutral = {"full_product_names": [{"name": f"Product {n}", "product_id": i} for n, i in enumerate(ids, 1)]}
    return neutral | {"product_groups": groups} if groups else neutral


def _product_ids(tree: dict[str, Any]) -> Iterator[str]:
    """In the order in which CSAF 2.0 3.2.2 defines products: branches, plain products, relationships."""
    for branch in tree.get("branches", ()):
        if "product" in branch:
            yield branch["product"]["product_id"]
        yield from _product_ids({"branches": branch.get("branches", ())})
    for product in tree.get("full_product_names", ()):
        yield product["product_id"]
    for relationship in tree.get("relationships", ()):
        yield relationship["full_product_name"]["product_id"]


def _band_of(text: str) -> str | None:
    try:
        score = float(text)
    except ValueError:
        return None
    return next((band for least, band in _BANDS if least <= score <= _MAX_SCORE), None)


GENERALISERS: Final[Mapping[str, Callable[[Any, Any], Any | None]]] = MappingProxyType(
    {
        f.__name__: f
        for f in (
            constant,
            month_of_date,
            neutral_products,
            person_to_role,
            revision_dates,
            severity_band,
            status_by_id,
            vendor_only,
        )
    }
)

NEEDS_PARAMETER: Final = frozenset({"constant", "person_to_role"})
