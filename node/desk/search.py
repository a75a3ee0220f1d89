"""What items of the inbox can be found by, and finding them.

When an item is filed, terms are taken out of what was disclosed and nothing else: CVE numbers, products, and the words
of every string. They lie in `inbox_terms` and go when the item's bytes go. Text is compared case-folded in NFKC, by
every database in the same way: words are looked for as parts of words, and each has to be there. What is longer than
MAX_TERM_BYTES is cut, so that one item cannot fill the disk.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import takewhile
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, and_, exists, insert, true

from federation.errors import UsageError
from federation.model import JsonObject, NodeId, Tlp
from node.store.database import storable
from node.store.tables import inbox, inbox_terms

MAX_TERM_BYTES: Final = 1 << 20  # of each kind for one item; the words of the largest public documents take 40 KB
_MAX_QUERY = 1_000  # characters of a question, far below what SQLite takes as a pattern
_MOST_BYTES = 4  # of a character in UTF-8
_MAX_PRODUCT = 2_000  # characters; names and the branches above them
_CVE = re.compile(r"cve-[0-9]{4}-[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for; every part that is given must hold.

    `since` and `until` bound when it was received, `until` not included.
    """

    cve: str | None = None
    product: str | None = None
    text: str | None = None
    tlp: Tlp | None = None
    origin: NodeId | None = None
    since: datetime | None = None
    until: datetime | None = None
    unread: bool = False
    assigned_to: str | None = None

    @property
    def by_content(self) -> bool:
        """Whether it asks for something that stood in the document."""
        return any(part is not None for part in (self.cve, self.product, self.text))


@dataclass(slots=True)
class _Room:
    """What is left of MAX_TERM_BYTES."""

    left: int = field(default=MAX_TERM_BYTES)

    def take(self, value: str) -> bool:
        """Whether `value` fits; then it has its place."""
        size = len(value.encode()) + 1
        if size > self.left:
            return False
        self.left -= size
        return True


def index(tx: Connection, item: int, csaf: JsonObject, ai: JsonObject | None) -> None:
    """Notes what an item can be found by, of which nothing is noted yet: of a document and its AI part, as they were
    disclosed."""
    rows = [
        {"inbox": item, "kind": kind, "number": number, "value": value}
        for kind, values in (("cve", _cves(csaf)), ("product", _products(csaf)), ("text", (_text(csaf, ai),)))
        for number, value in enumerate(dict.fromkeys(values))
    ]
    tx.execute(insert(inbox_terms), rows)


def condition(query: Query) -> ColumnElement[bool]:
    """What a row of the inbox must fulfil. Raises UsageError for words that nothing can be found by."""
    return and_(true(), *_of_row(query), *_of_terms(query))


def fold(text: str) -> str:
    """Text as it is compared: NFKC, case-folded, in what every database takes."""
    if text.isascii():
        return storable(text.lower())  # the same, in a tenth of the time
    return storable(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()))


def _of_row(query: Query) -> Iterator[ColumnElement[bool]]:
    if query.tlp is not None:
        yield inbox.c.tlp == query.tlp
    if query.origin is not None:
        yield inbox.c.origin == _encodable(query.origin, "--origin")
    if query.since is not None:
        yield inbox.c.received_at >= query.since
    if query.until is not None:
        yield inbox.c.received_at < query.until
    if query.unread:
        yield inbox.c.read_at.is_(None)
    if query.assigned_to is not None:
        yield inbox.c.assigned_to == _encodable(query.assigned_to, "--assigned-to")


def _of_terms(query: Query) -> Iterator[ColumnElement[bool]]:
    if query.cve is not None:
        yield _holds("cve", (_cve(query.cve),), whole=True)
    if query.product is not None:
        yield _holds("product", _words(query.product, "--product"))
    if query.text is not None:
        yield _holds("text", _words(query.text, "--text"))


def _holds(kind: str, words: Iterable[str], *, whole: bool = False) -> ColumnElement[bool]:
    """There is one term of this kind with every word in it. `%` and `_` in a word are themselves."""
    value = inbox_terms.c.value
    conditions = (value == word if whole else value.contains(word, autoescape=True) for word in words)
    return exists().where(inbox_terms.c.inbox == inbox.c.id, inbox_terms.c.kind == kind, *conditions)


def _encodable(text: str, option: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise UsageError(f"{option}: what was typed is not in UTF-8") from e
    return text


def _words(text: str, option: str) -> tuple[str, ...]:
    folded = fold(_encodable(text, option))
    words = tuple(dict.fromkeys(folded.split()))
    if not words or len(folded) > _MAX_QUERY:
        raise UsageError(f"{option}: say what to look for in 1 to {_MAX_QUERY} characters")
    return words


def _cve(text: str) -> str:
    words = _words(text, "--cve")
    if len(words) != 1 or not _CVE.fullmatch(words[0]):
        raise UsageError("--cve: expected a number such as CVE-2026-0001")
    return words[0]


def _cves(csaf: JsonObject) -> Iterator[str]:
    """CVE numbers, whether they stand as such or among the other ids of a vulnerability."""
    room = _Room()
    for vulnerability in _objects(csaf.get("vulnerabilities")):
        named = [vulnerability.get("cve"), *(one.get("text") for one in _objects(vulnerability.get("ids")))]
        for value in named:
            folded = fold(value).strip() if isinstance(value, str) else ""
            if _CVE.fullmatch(folded) and room.take(folded):
                yield folded


def _products(csaf: JsonObject) -> Iterator[str]:
    """A line for each product: the branches above it, its name, and what helps to identify it."""
    room, tree = _Room(), csaf.get("product_tree")
    for names in _named(tree if isinstance(tree, dict) else {}, ()):
        line = " ".join(fold(" ".join(names)).split())[:_MAX_PRODUCT]
        if line and room.take(line):
            yield line


def _named(holder: JsonObject, above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The names of every product below `holder`; a branch that leads to none counts as one."""
    single = [product for member in ("product", "full_product_name") if isinstance(product := holder.get(member), dict)]
    for product in (*single, *_objects(holder.get("full_product_names"))):
        yield (*above, *_strings(product))
    for branch in _objects(holder.get("branches")):
        name = branch.get("name")
        path = (*above, name) if isinstance(name, str) else above
        if not _objects(branch.get("branches")) and not isinstance(branch.get("product"), dict):
            yield path
        yield from _named(branch, path)
    for relationship in _objects(holder.get("relationships")):
        yield from _named(relationship, above)


def _text(csaf: JsonObject, ai: JsonObject | None) -> str:
    """Every word of every string, once, in the order in which they come."""
    room = _Room()
    words = dict.fromkeys(fold("\n".join(_strings([csaf, ai]))).split())
    text = " ".join(words)
    if len(text) * _MOST_BYTES <= room.left:
        return text
    return " ".join(takewhile(room.take, words))


def _strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value; the names of members are those of a schema and tell nothing."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inside in value.values():
            yield from _strings(inside)
    elif isinstance(value, list):
        for inside in value:
            yield from _strings(inside)


def _objects(value: object) -> list[JsonObject]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
