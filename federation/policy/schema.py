"""The one Cedar schema that every rule is validated against.

Built from the closed enums of `federation.model` and the names that the loaded law packs bring. Everything that a
rule can name is an enumerated entity, so that a misspelling fails when the rule is loaded. No attribute is optional
and none is a number, a text or an instant: a rule that passes validation has nothing left that can fail while it is
evaluated. Time arrives as booleans (`federation.policy.facts`); there is no clock here.
"""

import re
from collections.abc import Iterable
from enum import StrEnum

from federation.errors import PolicyError
from federation.model import Category, Country, Form, Onward, Purpose, Tier, Tlp

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_NOBODY = "none"  # Cedar has no empty enum; no pack may use this name


class Action(StrEnum):
    """What is asked for."""

    DISCLOSE = "disclose"
    STORE = "store"
    RELAY = "relay"
    PUBLISH = "publish"
    NOTIFY = "notify"


class Control(StrEnum):
    """Control traffic: what passes between enrolled peers without an agreement."""

    CARD = "card"
    AGREEMENT = "agreement"
    RECALL = "recall"
    WITHDRAWAL = "withdrawal"
    PURGE = "purge"
    STATEMENT = "statement"
    GRANT = "grant"
    EPOCH = "epoch"


_TYPES = """
entity Node = { jurisdiction: Country, groups: Set<Group> };

entity Advisory = {
  origin: Node,
  home: Country,
  home_groups: Set<Group>,
  sender: Node,
  sender_country: Country,
  sender_groups: Set<Group>,
  categories: Set<Category>,
  form: Form,
  tlp: Tlp,
  tier: Tier,
  onward: Onward,
  purposes: Set<Purpose>,
  names_recipients: Bool,
  named: Bool,
  storage_allows: Bool,
  embargoed: Bool,
  expired: Bool,
};

entity Message = { kind: Control, sender_country: Country, sender_groups: Set<Group> };

action disclose, store, relay, publish appliesTo {
  principal: Node, resource: Advisory, context: { safeguards: Set<Safeguard> }
};
action notify appliesTo { principal: Node, resource: Message, context: { safeguards: Set<Safeguard> } };
"""


def schema_text(countries: Iterable[Country], groups: Iterable[str] = (), safeguards: Iterable[str] = ()) -> str:
    """The schema in Cedar's own syntax. Raises PolicyError for a group or safeguard name that is not a plain slug."""
    groups, safeguards = sorted(set(groups)), sorted(set(safeguards))
    for name in (*groups, *safeguards):
        if not _NAME.fullmatch(name) or name == _NOBODY:
            raise PolicyError(
                f"group or safeguard {name!r}: expected lower-case letters, digits and dashes, not 'none'"
            )
    kinds: dict[str, Iterable[str]] = {
        "Category": Category,
        "Form": (Form.FULL, Form.GENERALISED),  # nobody asks whether something may be withheld
        "Tlp": Tlp,
        "Tier": Tier,
        "Onward": Onward,
        "Purpose": Purpose,
        "Control": Control,
        "Country": sorted(set(countries)),
        "Group": groups or [_NOBODY],
        "Safeguard": safeguards or [_NOBODY],
    }
    enums = [f"entity {kind} enum [{', '.join(map(_quoted, values))}];" for kind, values in kinds.items()]
    return "\n".join(enums) + "\n" + _TYPES


def _quoted(value: str) -> str:
    return f'"{value}"'
