"""A decision as rows for people: which part goes in which form, by which rule. Plain data; drawing it is for others."""

import re
from dataclasses import dataclass
from itertools import groupby

from federation.model import Decision, Form

_FORM_ORDER = (Form.WITHHELD, Form.GENERALISED, Form.FULL)  # what a peer does not get comes first
_DIGITS = re.compile(r"([0-9]+)")


@dataclass(frozen=True, slots=True)
class Row:
    """One rule that decided one element."""

    path: str
    categories: tuple[str, ...]
    form: Form
    rule_id: str
    basis: str
    says: str


def explain(decision: Decision) -> list[Row]:
    """A row for each element and rule: withheld first, full last; then by rule, then by path, `/9` before `/10`."""
    rows = [
        Row(d.element.path, tuple(sorted(d.element.categories)), d.form, rule.id, rule.basis, rule.says)
        for d in decision.elements
        for rule in d.rules
    ]
    return sorted(rows, key=lambda row: (_FORM_ORDER.index(row.form), row.rule_id, row.says, _natural(row.path)))


def by_rule(decision: Decision) -> list[tuple[Row, tuple[str, ...]]]:
    """`explain`, shortened: for each form and rule its first row, and the paths of all the elements that it decided."""
    return [
        (rows[0], tuple(row.path for row in rows))
        for _, group in groupby(explain(decision), key=lambda row: (row.form, row.rule_id, row.says))
        if (rows := list(group))
    ]


def _natural(path: str) -> tuple[tuple[int, str], ...]:
    # re.split with a group: the digits stand at the odd places
    return tuple((int(part), "") if n % 2 else (-1, part) for n, part in enumerate(_DIGITS.split(path)))
