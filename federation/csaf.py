"""CSAF 2.0: is a document valid, and which TLP label does it carry.

One function around the `csaf` package, which is young: its top-level `validate` judges CSAF 2.1, so the 2.0 validator
is named here and nowhere else. Checked are the JSON schema and the mandatory tests (CSAF 2.0 6.1). The package is
imported when the first document is judged: that takes a third of a second, which most commands need not spend.

Where a document fails is told by test id and place, never by its content: the package's messages quote values, so they
are dropped, and a step of a path that is no ordinary member name is not repeated (I17).
"""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from federation.errors import MalformedError
from federation.model import JsonObject, Tlp

_STEP = re.compile(r"[a-z][a-z0-9_]{0,31}|[0-9]{1,6}")
_REMEMBERED = 8  # documents, each of 3 MiB at most
_MAX_NAMED = 8  # problems that an error text lists

# CSAF 2.0 knows TLP 1.0 only (3.2.1.5.2): CLEAR was called WHITE, and AMBER had no strict variant.
_LABELS: Final = {
    Tlp.CLEAR: "WHITE",
    Tlp.GREEN: "GREEN",
    Tlp.AMBER: "AMBER",
    Tlp.AMBER_STRICT: "AMBER",
    Tlp.RED: "RED",
}
_FROM_LABEL: Final = {"WHITE": Tlp.CLEAR, "GREEN": Tlp.GREEN, "AMBER": Tlp.AMBER, "RED": Tlp.RED}


@dataclass(frozen=True, slots=True)
class Problem:
    """A mandatory test that failed (`schema` or an id such as `6.1.1`), and a JSON pointer to the place."""

    test: str
    path: str


def problems(document: JsonObject) -> tuple[Problem, ...]:
    """Everything for which `document` is not valid CSAF 2.0; empty when it is valid.

    Raises MalformedError when the validator cannot judge the document.
    """
    try:
        return _problems(json.dumps(document))
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        # From None: the cause may quote the document.
        raise MalformedError("CSAF 2.0: the validator cannot judge this document") from None


@lru_cache(_REMEMBERED)
def _problems(text: str) -> tuple[Problem, ...]:
    """Kept, since a document is judged when it is imported, when it is issued, and for each form in which it goes."""
    from csaf.csaf.v20 import validate

    report = validate(json.loads(text), preset="basic")
    found = [
        Problem(result.id, _place(error.instance_path))
        for result in report.results
        if not result.passed and not result.skipped
        for error in result.errors
    ]
    if not report.overall_valid and not found:
        raise MalformedError("CSAF 2.0: the validator refuses this document without a reason")
    return tuple(dict.fromkeys(found))


def check(document: JsonObject) -> None:
    """Raises MalformedError, naming failed tests and places, unless `document` is valid CSAF 2.0."""
    found = problems(document)
    if found:
        named = ", ".join(f"{problem.test} at {problem.path}" for problem in found[:_MAX_NAMED])
        more = f" and {len(found) - _MAX_NAMED} more" if len(found) > _MAX_NAMED else ""
        raise MalformedError(f"not valid CSAF 2.0: {named}{more}")


def tlp_label(document: JsonObject) -> str | None:
    """The TLP label in `document`; None where it has none. Raises MalformedError when it is not text."""
    place: Any = document
    for member in ("document", "distribution", "tlp", "label"):
        if not isinstance(place, dict):
            raise MalformedError("CSAF 2.0: /document/distribution/tlp is not made of objects")
        if member not in place:
            return None
        place = place[member]
    if not isinstance(place, str):
        raise MalformedError("CSAF 2.0: /document/distribution/tlp/label is not text")
    return place


def expected_label(tlp: Tlp) -> str:
    """The label that a CSAF 2.0 document has under `tlp`, if it has any."""
    return _LABELS[tlp]


def tlp_from_label(label: str) -> Tlp:
    """The TLP 2.0 level that a document with `label` is imported under. For import only: on the wire, handling decides.

    Raises MalformedError for a label that CSAF 2.0 does not have.
    """
    if label not in _FROM_LABEL:
        raise MalformedError("CSAF 2.0: the TLP label is none of WHITE, GREEN, AMBER, RED")
    return _FROM_LABEL[label]


def _place(pointer: str) -> str:
    return "/".join(step if not step or _STEP.fullmatch(step) else "?" for step in pointer.split("/"))
