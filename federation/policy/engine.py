"""The rule book: law packs, the built-in handling rules, and a way of asking Cedar in which every fault denies.

Cedar by itself fails open: a forbid that errors is skipped, and the answer is Allow. So three sets are asked apart:

    G  the agreements' permits: one that fails is absent
    F  every forbid beside one permit for everything: one that fails has matched
    D  duties: one that fails is owed

An action is allowed if and only if G says Allow, and F says Allow without an error (I2, I3). Every fault raises an
alarm. Answers are remembered per rule book by the permits' digest and the question, which holds every fact.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from types import MappingProxyType
from typing import TypeVar

import cedarpy

from federation.agreement import Agreement
from federation.errors import PolicyError
from federation.model import Country, NodeId, Rule
from federation.policy.compile import permits_text
from federation.policy.facts import ControlQuestion, Question
from federation.policy.handling import control_permit, handling_rules, permit_all
from federation.policy.packs import Group, LawPack
from federation.policy.rules import RuleSet, joined, parse
from federation.policy.schema import schema_text

MAX_ANSWERS = 20_000  # about 1 KB each
MAX_PERMIT_SETS = 2_000  # about 10 KB each: pairs of sender and receiver under one agreement
K = TypeVar("K")
V = TypeVar("V")
_ERROR = re.compile(r"error while evaluating policy `([^`]+)`: .*", re.DOTALL)
_NO_DECISION = Rule("no-decision", "deny by default", "The policy engine gave no decision.")


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether an action is allowed. `rules`: the forbids that matched, else the permits that allowed, else nothing."""

    allowed: bool
    rules: tuple[Rule, ...]
    alarms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Reply:
    """What Cedar said of one rule set: the rules that determined it, and those that failed."""

    allow: bool
    decided: bool
    matched: tuple[Rule, ...]
    failed: tuple[Rule, ...]
    alarms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RuleBook:
    """Everything but agreements that decides. Made by `rule_book`; equal digests decide equally.

    `reviews` tells by which day each law pack, by id and version, has to be reviewed, if it says so.
    """

    forbids: RuleSet
    duties: RuleSet
    groups: Mapping[str, Group]
    schema: cedarpy.Schema = field(compare=False, repr=False)
    digest: bytes
    reviews: Mapping[str, date] = field(default_factory=dict, compare=False)
    _control: RuleSet = field(default_factory=control_permit, compare=False, repr=False)
    _answers: dict[tuple[bytes, Question], Answer] = field(default_factory=dict, compare=False, repr=False)
    _permits: dict[str, RuleSet] = field(default_factory=dict, compare=False, repr=False)

    def permits(self, agreement: Agreement, sender: NodeId, receiver: NodeId) -> RuleSet:
        """`permits_of`, compiled once."""
        text = permits_text(agreement, sender, receiver)
        found = self._permits.get(text)
        if found is None:
            found = parse(text, f"agreement {agreement.id}", "permit")
            _remember(self._permits, text, found, MAX_PERMIT_SETS)
        return found

    def ask(self, question: Question, permits: RuleSet) -> Answer:
        """Whether `permits` allow and no forbid objects. A fault of the engine denies and does not raise (I2, I3)."""
        key = (permits.digest, question)
        answer = self._answers.get(key)
        if answer is None:
            answer = self._ask(question, permits)
            _remember(self._answers, key, answer, MAX_ANSWERS)
        return answer

    def ask_control(self, question: ControlQuestion) -> Answer:
        """Whether control traffic may pass: the one built-in permit, and the law packs' forbids on `notify`."""
        return self._ask(question, self._control)

    def owed(self, question: Question) -> Answer:
        """The duties that say it must be sent, those that failed among them; `allowed` says whether there are any."""
        if not self.duties.rules:
            return Answer(False, (), ())
        entities, alarms = self._entities(question)
        reply = _reply(question, self.duties, entities)
        rules = (*reply.matched, *reply.failed) if reply.decided else tuple(self.duties.rules.values())
        return Answer(bool(rules), rules, (*alarms, *reply.alarms))

    def _ask(self, question: Question | ControlQuestion, permits: RuleSet) -> Answer:
        entities, alarms = self._entities(question)
        law = _reply(question, self.forbids, entities)
        granted = _reply(question, permits, entities)
        alarms = (*alarms, *law.alarms, *granted.alarms)
        objections = (*(() if law.allow else law.matched), *law.failed)
        if law.allow and law.decided and not objections:
            allowed = granted.allow and granted.decided
            return Answer(allowed, granted.matched if allowed else (), alarms)
        return Answer(False, objections or (_NO_DECISION,), alarms)

    def _entities(self, question: Question | ControlQuestion) -> tuple[cedarpy.Entities | None, tuple[str, ...]]:
        """The question's facts, or None with an alarm when they do not fit the schema: an unknown country, for one."""
        try:
            return cedarpy.Entities.from_json_str(question.entities(), self.schema), ()
        except ValueError:
            return None, ("the facts of a question do not fit the policy schema",)


def rule_book(packs: Iterable[LawPack], countries: Iterable[Country]) -> RuleBook:
    """The rule book of these law packs and the handling rules; `countries` are the ISO 3166-1 codes that exist.

    Raises PolicyError if two packs give one name to different groups or safeguards, or one id to two rules.
    """
    packs = tuple(packs)
    groups: dict[str, Group] = {}
    safeguards: dict[str, str] = {}
    for pack in packs:
        for name, group in pack.groups.items():
            if groups.setdefault(name, group) != group:
                raise PolicyError(f"law pack {pack.id}: another pack has a different group {name}")
        for name, says in pack.safeguards.items():
            if safeguards.setdefault(name, says) != says:
                raise PolicyError(f"law pack {pack.id}: another pack has a different safeguard {name}")
    text = schema_text(countries, groups, safeguards)
    forbids = joined((permit_all(), handling_rules(), *(pack.rules for pack in packs)))
    duties = joined(pack.duties for pack in packs)
    members = {n: [(m.country, str(m.first), str(m.last)) for m in g.members] for n, g in sorted(groups.items())}
    parts = [text, forbids.text, duties.text, json.dumps(members)]
    return RuleBook(
        forbids=forbids,
        duties=duties,
        groups=MappingProxyType(groups),
        schema=cedarpy.Schema.from_str(text),
        digest=hashlib.sha256(json.dumps(parts).encode()).digest(),
        reviews={f"{pack.id} version {pack.version}": pack.review_by for pack in packs if pack.review_by is not None},
    )


def _reply(question: Question | ControlQuestion, rules: RuleSet, entities: cedarpy.Entities | None) -> _Reply:
    if entities is None:
        return _Reply(False, False, (), (), ())
    result = cedarpy.is_authorized(question.request(), rules.policies, entities)
    if result.decision is cedarpy.Decision.NoDecision:
        return _Reply(False, False, (), (), ("the policy engine gave no decision",))
    names = [m[1] if (m := _ERROR.fullmatch(text)) else _NO_DECISION.id for text in result.diagnostics.errors]
    return _Reply(
        allow=result.decision is cedarpy.Decision.Allow,
        decided=True,
        matched=tuple(rules.rules.get(name, _NO_DECISION) for name in sorted(result.diagnostics.reasons)),
        failed=tuple(rules.rules.get(name, _NO_DECISION) for name in sorted(names)),
        alarms=tuple(f"rule {name} could not be evaluated" for name in sorted(names)),
    )


def _remember(memory: dict[K, V], key: K, value: V, most: int) -> None:
    """Adds to a bounded memory. A full one is emptied: one step, so that threads need no lock."""
    if len(memory) >= most:
        memory.clear()
    memory[key] = value
