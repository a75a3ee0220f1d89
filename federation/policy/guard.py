"""The guard (I4): searches what really leaves for what was withheld.

The outgoing presentation is opened as its receiver will open it, and every string in it is searched for terms taken
from the elements that this peer does not get in full: names of people, e-mail addresses, victims, sources,
indicators, and any other string of 24 characters or more that contains a space. Both sides are normalised alike:
percent-decoded, NFKC, invisible characters removed, defanged addresses mended, case-folded; then compared word by
word, so that white space and punctuation between words do not count, and a part of a word is no hit.

It finds what was copied, not what was put into other words. It never says which term it found, only of what kind and
from where (I17). Enums, dates, versions, scores and product ids give no terms: they are everywhere. Time is linear in
the text.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any
from urllib.parse import unquote

from federation.errors import HeldError
from federation.model import Category, Decision, ElementDecision, Form, Rule
from federation.policy.decide import with_products

MIN_TERM_CHARS = 4  # shorter names and indicators would hit everywhere
MIN_TEXT_CHARS = 24  # measured: with shorter strings the guard stops every public document
MAX_TERM_WORDS = 64  # of a longer text its beginning is the term: bounds the work, and finds more
_MAX_DECODINGS = 3  # "%252E" is "%2E" is "."


# Terms by their words: followed from each word of a text, so that time does not grow with the number of terms.
_Tree = dict[str, Any]


class Kind(StrEnum):
    """What kind of term was found; it is all that an error or a rule says about it."""

    PERSON = "person"
    EMAIL = "e-mail address"
    VICTIM = "victim"
    SOURCE = "source"
    INDICATOR = "indicator"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Withheld:
    """An element that the peer does not get in full: its path, its categories, and its whole value."""

    path: str
    categories: frozenset[Category]
    value: Any


@dataclass(frozen=True, slots=True)
class Hit:
    """A withheld term in what would leave, never the term itself. `path`: where; None for the plain part."""

    path: str | None
    kind: Kind
    withheld_path: str


_KINDS = {
    Category.PERSONAL: Kind.PERSON,
    Category.VICTIM: Kind.VICTIM,
    Category.SOURCE: Kind.SOURCE,
    Category.INDICATOR: Kind.INDICATOR,
}
# Members of CSAF and of CVSS whose values are enums, dates, versions, scores or ids of products and groups.
_NO_TERM_NAMES = """
    category label party status lang source_lang namespace relates_to_product_reference product_reference
    product_id product_ids group_id group_ids version number csaf_version date current_release_date
    initial_release_date release_date discovery_date vectorString baseScore baseSeverity temporalScore
    environmentalScore cve first_affected first_fixed fixed known_affected known_not_affected last_affected
    recommended under_investigation aggregate_severity algorithm restart_required
"""
_NO_TERMS = frozenset(_NO_TERM_NAMES.split())
_IDENTIFIER = re.compile(r"[A-Za-z_]{1,40}")  # what CSAF and our own parts call their members
_NOT_CLAIMS = frozenset(("_sd", "_sd_alg", "..."))  # RFC 9901: digests, random to everybody

_INVISIBLE = dict.fromkeys(
    (0xAD, 0x34F, 0x61C, 0x180E, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF)
)
_DEFANGED = re.compile(r"[\[({](\.|dot|:|@|at|//)[\])}]")
_FANGS = {"dot": ".", "at": "@"}
# Scripts written without spaces: each of their characters is a word of its own.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\ua000-\ua4cf\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
# The last label is a name: `generic/serve@3.8.1` in a package URL is no address.
_EMAIL = re.compile(r"[\w.+'-]{1,64}@(?:[\w-]{1,63}\.){1,8}(?:xn--[\w-]{1,59}|[^\W\d_]{2,63})\b")
_INDICATORS = re.compile(
    r"""https?://[^\s"'<>]+
    | \b(?:[0-9]{1,3}\.){3}[0-9]{1,3}\b
    | \b[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){3,7}\b
    | \b[0-9a-f]{32,128}\b
    | \b(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,63}\b""",
    re.VERBOSE,
)
_END = ""  # in the tree: a term ends here; no word is empty
_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:[t ][\d:.+z-]*)?")


def search(outgoing: Mapping[str, Any], plain: Any, withheld: Sequence[Withheld]) -> tuple[Hit, ...]:
    """Each element in which a withheld term stands, or the plain part; with the kind of term and where it is from.

    `outgoing` maps the path of each element that leaves (in its full or generalised form) to the value that the
    receiver opens; `plain` is the signed payload's plain part. Values are JSON.
    """
    tree = _terms(withheld)
    found: dict[Hit, None] = {}
    for path, value in (*outgoing.items(), (None, plain)):
        for text in (*_strings(value, _NOT_CLAIMS), *_names(value)):
            for kind, owner in _find(normalise(text), tree):
                found[Hit(path, kind, owner)] = None
    return tuple(found)


def demote(decision: Decision, hits: Iterable[Hit]) -> Decision:
    """`decision` with each element hit one form narrower: generalised where there is such a form, else withheld.

    The caller presents and searches again until nothing is found. Raises HeldError, naming paths and kinds only, for
    a hit in the plain part, or in something that is no element of the decision: nothing can be withheld there.
    """
    by_path: dict[str, list[Hit]] = {}
    leaving = {d.element.path for d in decision.elements if d.form is not Form.WITHHELD}
    for hit in hits:
        if hit.path is None or hit.path not in leaving:
            where = "the part that is always plain" if hit.path is None else f"{hit.path}, which cannot be withheld,"
            raise HeldError(
                f"{where} contains a term ({hit.kind}) of {hit.withheld_path}, which this recipient may not see"
            )
        by_path.setdefault(hit.path, []).append(hit)
    narrowed = (_narrower(d, by_path[d.element.path]) if d.element.path in by_path else d for d in decision.elements)
    return replace(decision, elements=with_products(narrowed))


def normalise(text: str) -> str:
    """`text` as both sides of the search see it."""
    for _ in range(_MAX_DECODINGS):
        if "%" not in text:
            break
        text = unquote(text)
    text = unicodedata.normalize("NFKC", text).translate(_INVISIBLE).casefold()
    text = _DEFANGED.sub(lambda m: _FANGS.get(m[1], m[1]), text).replace("hxxp", "http")
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _narrower(decided: ElementDecision, hits: Sequence[Hit]) -> ElementDecision:
    generalise = decided.form is Form.FULL and decided.element.generalised is not None
    rules = [
        Rule(
            "guard",
            "invariant I4",
            f"Contains a term that this recipient may not see ({hit.kind} of {hit.withheld_path}).",
        )
        for hit in hits
    ]
    return replace(
        decided,
        form=Form.GENERALISED if generalise else Form.WITHHELD,
        rules=tuple(dict.fromkeys((*(r for r in decided.rules if decided.form is not Form.FULL), *rules))),
    )


def _terms(withheld: Iterable[Withheld]) -> _Tree:
    tree: _Tree = {}
    for element in withheld:
        if element.path.rstrip("/0123456789").rpartition("/")[2] in _NO_TERMS:
            continue
        kinds = [kind for category, kind in _KINDS.items() if category in element.categories]
        for text in _strings(element.value, _NO_TERMS | _NOT_CLAIMS):
            for kind, term in _terms_in(normalise(text), kinds):
                words = _WORD.findall(term)[:MAX_TERM_WORDS]
                if words and sum(map(len, words)) + len(words) - 1 >= _least(words):
                    node = tree
                    for word in words:
                        node = node.setdefault(word, {})
                    node.setdefault(_END, (kind, element.path))
    return tree


def _least(words: Sequence[str]) -> int:
    """The least length of a term: in a script without spaces two characters make a name, and count as three here."""
    return MIN_TERM_CHARS if any(len(word) > 1 or word.isascii() for word in words) else len("x y")


def _terms_in(text: str, kinds: Sequence[Kind]) -> Iterator[tuple[Kind, str]]:
    if _DATE.fullmatch(text):
        return
    for email in _EMAIL.findall(text):
        yield Kind.EMAIL, email
    for kind in kinds:
        if kind is not Kind.INDICATOR or " " not in text:
            yield kind, text
    if Kind.INDICATOR in kinds:
        for token in _INDICATORS.findall(text):
            yield Kind.INDICATOR, token
    if " " in text and len(text) >= MIN_TEXT_CHARS:
        yield Kind.TEXT, text


def _find(text: str, tree: _Tree) -> Iterator[tuple[Kind, str]]:
    words = _WORD.findall(text)
    for start, first in enumerate(words):
        node, at = tree.get(first), start
        while node is not None:
            if _END in node:
                yield node[_END]
            at += 1
            node = node.get(words[at]) if at < len(words) else None


def _strings(value: Any, skip: frozenset[str]) -> Iterator[str]:
    """Every string below `value` but those in members that `skip` names; a stack, not recursion."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            stack.extend(v for name, v in item.items() if name not in skip)
        elif isinstance(item, list):
            stack.extend(item)


def _names(value: Any) -> Iterator[str]:
    """The member names below `value` that are no plain identifiers: free-form objects can say things with them."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            yield from (name for name in item if name not in _NOT_CLAIMS and not _IDENTIFIER.fullmatch(name))
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
