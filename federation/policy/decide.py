"""Decides, element by element, what one peer gets of one advisory; and whether an entry that arrived may be kept.

Every element is asked about alone, in full first and generalised second; what no rule allows is withheld (I2). A
decision carries the rules that decided, for people. No clock and no store: the caller gives the instant and the
agreement in force.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from federation.agreement import Agreement
from federation.elements import PRODUCT_TREE
from federation.errors import HeldError, NotAdmittedError
from federation.model import (
    Category,
    Country,
    Decision,
    Element,
    ElementDecision,
    Form,
    Handling,
    NodeId,
    Onward,
    Rule,
)
from federation.policy.engine import Answer, RuleBook
from federation.policy.facts import ControlQuestion, Question, Situation, next_change_at, place, situation
from federation.policy.handling import permit_all
from federation.policy.rules import RuleSet
from federation.policy.schema import Action, Control

NO_AGREEMENT = Rule("no-agreement", "deny by default", "No agreement in force covers this sender and this recipient.")
NO_SENDER = Rule(
    "no-sender-country", "deny by default", "The jurisdiction of the node that passes this on is not known."
)
NO_FORM = Rule("no-form", "deny by default", "This part has no form that could leave.")
NEEDS_PRODUCTS = Rule(
    "needs-products", "CSAF 2.0, test 6.1.1", "It refers to products, and no definition of a product leaves."
)


@dataclass(frozen=True, slots=True)
class Kept:
    """The permits under which an entry may be kept, and what the policy engine could not evaluate on the way."""

    rules: tuple[Rule, ...]
    alarms: tuple[str, ...]


def decide(
    elements: Sequence[Element],
    handling: Handling,
    origin: NodeId,
    sender: NodeId,
    recipient: NodeId,
    recipient_country: Country,
    agreement: Agreement | None,
    book: RuleBook,
    now: datetime,
    *,
    sender_country: Country | None = None,
) -> Decision:
    """The decision for `recipient`, valid from `now` until its `next_change_at`.

    `agreement` is one that every party has signed; its dates and parties are checked here. `sender_country` may be
    left out when the sender is the origin; a relay without it shares nothing. `owed` holds every duty that matched,
    whether or not what it asks for leaves. Raises nothing for a fault of the engine: that withholds, with an alarm.
    """
    exporter = _exporter(sender_country, handling, origin, sender)
    facts = _situation(
        handling, origin, sender, exporter or handling.home, recipient, recipient_country, agreement, book, now
    )
    permits = _permits(agreement, sender, recipient, book, now)
    alarms: set[str] = set()
    if permits is None or agreement is None or exporter is None:
        reason = NO_AGREEMENT if permits is None else NO_SENDER
        decided = [ElementDecision(element, Form.WITHHELD, (reason,)) for element in elements]
    else:
        actions = (Action.DISCLOSE,) if sender == origin else (Action.DISCLOSE, Action.RELAY)
        answers: dict[tuple[frozenset[Category], Form], Answer] = {}

        def ask(categories: frozenset[Category], form: Form) -> Answer:
            if (categories, form) not in answers:
                answer = _ask_all(actions, categories, form, facts, permits, book)
                answers[categories, form] = (
                    answer
                    if answer.allowed or answer.rules
                    else replace(answer, rules=(_no_permit(agreement, sender, recipient, categories, form, handling),))
                )
            return answers[categories, form]

        decided = [_decide_element(element, ask) for element in elements]
        alarms.update(alarm for answer in answers.values() for alarm in answer.alarms)
    duties = [
        book.owed(Question(Action.DISCLOSE, categories, Form.FULL, facts))
        for categories in sorted({e.categories for e in elements}, key=sorted)
    ]
    return Decision(
        recipient=recipient,
        agreement_digest=agreement.digest if agreement is not None and permits is not None else None,
        elements=with_products(decided),
        owed=_distinct(rule for duty in duties for rule in duty.rules),
        alarms=tuple(sorted(alarms.union(*(duty.alarms for duty in duties)))),
        next_change_at=next_change_at(
            handling, agreement, (handling.home, exporter or handling.home, recipient_country), book.groups, now
        ),
    )


def may_store(
    categories_by_form: Mapping[Form, frozenset[Category]],
    handling: Handling,
    origin: NodeId,
    sender: NodeId,
    me: NodeId,
    my_country: Country,
    agreement: Agreement | None,
    book: RuleBook,
    now: datetime,
    *,
    sender_country: Country | None = None,
) -> Kept:
    """The permits under which an entry may be kept; `categories_by_form` are those of all its disclosures, by form.

    Forbids are asked of everything that came in one form together: any that matches refuses the entry. Permits are
    asked category by category, since several clauses may have covered it together. Raises NotAdmittedError: with the
    ids of the rules that forbid it, or with none when no clause in force covers it.
    """
    exporter = _exporter(sender_country, handling, origin, sender)
    permits = _permits(agreement, sender, me, book, now)
    if permits is None or exporter is None:
        raise NotAdmittedError((NO_AGREEMENT if permits is None else NO_SENDER).says)
    facts = _situation(handling, origin, sender, exporter, me, my_country, agreement, book, now)
    kept: list[Rule] = []
    alarms: tuple[str, ...] = ()
    for form, categories in sorted(categories_by_form.items()):
        answers = [
            book.ask(Question(Action.STORE, part, form, facts), permits)
            for part in (categories, *(frozenset((category,)) for category in sorted(categories)))
        ]
        alarms += tuple(alarm for answer in answers for alarm in answer.alarms)
        objections = _distinct(rule for answer in answers if not answer.allowed for rule in answer.rules)
        if objections:
            ids = tuple(rule.id for rule in objections)
            raise NotAdmittedError(f"may not be kept here: {', '.join(ids)}", ids, alarms)
        if not categories or not all(answer.allowed for answer in answers[1:]):
            raise NotAdmittedError(f"no clause of the agreement in force shares all of it ({form})", faults=alarms)
        kept.extend(rule for answer in answers[1:] for rule in answer.rules)
    if not kept:
        raise NotAdmittedError("nothing is disclosed in it")
    return Kept(_distinct(kept), tuple(dict.fromkeys(alarms)))


def forbidden_onward(
    categories: Iterable[Category],
    handling: Handling,
    origin: NodeId,
    relay: NodeId,
    relay_country: Country,
    recipient: NodeId,
    recipient_country: Country,
    book: RuleBook,
    now: datetime,
) -> dict[Category, tuple[Rule, ...]]:
    """Those of `categories` that handling or law forbid `relay` to pass on to `recipient` in full, with the rules.

    For the origin, before it grants that. No agreement is asked, since that is between those two; nor is the embargo,
    which the relay has to wait for anyway.
    """
    facts = _situation(
        replace(handling, onward=Onward.PEERS, embargo_until=None),
        origin,
        relay,
        relay_country,
        recipient,
        recipient_country,
        None,
        book,
        now,
    )
    everything, found = permit_all(), {}
    for category in sorted(categories):
        answers = [
            book.ask(Question(action, frozenset((category,)), Form.FULL, facts), everything)
            for action in (Action.DISCLOSE, Action.RELAY)
        ]
        if not all(answer.allowed for answer in answers):
            found[category] = _distinct(rule for answer in answers if not answer.allowed for rule in answer.rules)
    return found


def may_notify(
    control: Control,
    sender_country: Country,
    recipient: NodeId,
    recipient_country: Country,
    book: RuleBook,
    now: datetime,
) -> tuple[Rule, ...]:
    """The permit under which a control message may go to an enrolled peer, agreement or not.

    Raises HeldError, naming the rules, when a law pack forbids it or the engine gives no decision.
    """
    here, there = place(sender_country, book.groups, now), place(recipient_country, book.groups, now)
    answer = book.ask_control(ControlQuestion(control, recipient, there, here))
    if not answer.allowed:
        raise HeldError(f"{control} for {recipient}: {', '.join(rule.id for rule in answer.rules)}", answer.alarms)
    return answer.rules


def with_products(decided: Iterable[ElementDecision]) -> tuple[ElementDecision, ...]:
    """`decided`, with what refers to products withheld unless the product tree leaves in some form."""
    decided = tuple(decided)
    if any(d.form is not Form.WITHHELD and d.element.path == PRODUCT_TREE for d in decided):
        return decided
    return tuple(
        ElementDecision(d.element, Form.WITHHELD, (NEEDS_PRODUCTS,))
        if d.element.needs_products and d.form is not Form.WITHHELD
        else d
        for d in decided
    )


def _decide_element(element: Element, ask: Callable[[frozenset[Category], Form], Answer]) -> ElementDecision:
    """Full if allowed, else generalised if allowed, else withheld; with what stopped the fuller form."""
    stopped: list[Rule] = []
    # an element whose value was general from the start leaves whole when its full form may
    for form, digest in ((Form.FULL, element.full or element.generalised), (Form.GENERALISED, element.generalised)):
        if digest is None:
            continue
        answer = ask(element.categories, form)
        if answer.allowed:
            return ElementDecision(element, form, _distinct(stopped) or answer.rules)
        stopped.extend(answer.rules)
    return ElementDecision(element, Form.WITHHELD, _distinct(stopped) or (NO_FORM,))


def _ask_all(
    actions: Iterable[Action],
    categories: frozenset[Category],
    form: Form,
    facts: Situation,
    permits: RuleSet,
    book: RuleBook,
) -> Answer:
    """One answer for several actions: allowed if each is; the rules of those that are not, else of all."""
    answers = [book.ask(Question(action, categories, form, facts), permits) for action in actions]
    allowed = all(answer.allowed for answer in answers)
    return Answer(
        allowed,
        _distinct(rule for answer in answers if answer.allowed == allowed for rule in answer.rules),
        tuple(alarm for answer in answers for alarm in answer.alarms),
    )


def _permits(
    agreement: Agreement | None, sender: NodeId, recipient: NodeId, book: RuleBook, now: datetime
) -> RuleSet | None:
    """The permits for the pair; None when no agreement in force names both."""
    if agreement is None or not agreement.in_dates(now) or not {sender, recipient} <= set(agreement.parties):
        return None
    return book.permits(agreement, sender, recipient)


def _exporter(given: Country | None, handling: Handling, origin: NodeId, sender: NodeId) -> Country | None:
    """Whose law the sending stands under: the origin's home when the origin sends."""
    return given or (handling.home if sender == origin else None)


def _situation(
    handling: Handling,
    origin: NodeId,
    sender: NodeId,
    sender_country: Country,
    recipient: NodeId,
    recipient_country: Country,
    agreement: Agreement | None,
    book: RuleBook,
    now: datetime,
) -> Situation:
    return situation(
        handling=handling,
        origin=origin,
        sender=sender,
        sender_place=place(sender_country, book.groups, now),
        recipient=recipient,
        recipient_place=place(recipient_country, book.groups, now),
        home=place(handling.home, book.groups, now),
        safeguards=agreement.safeguards if agreement is not None else frozenset(),
        now=now,
    )


def _no_permit(
    agreement: Agreement,
    sender: NodeId,
    recipient: NodeId,
    categories: frozenset[Category],
    form: Form,
    handling: Handling,
) -> Rule:
    clauses = [
        grant
        for grant in agreement.grants
        if sender in grant.senders and recipient in grant.receivers
        if handling.tlp in grant.tlp and handling.tier in grant.tiers
    ]
    shared = {category for grant in clauses for category, most in grant.share.items() if most in (Form.FULL, form)}
    what = ", ".join(sorted(categories - shared or categories)) or "an unlabelled part"
    how = "in full" if form is Form.FULL else "even generalised"
    return Rule(
        "no-permit",
        "deny by default",
        f"No clause of agreement {agreement.id} version {agreement.version} shares {what} {how}"
        f" at TLP:{handling.tlp}, tier {handling.tier}.",
    )


def _distinct(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Each rule once, by its id; of two sentences under one id the later, which speaks of the narrower form."""
    return tuple({rule.id: rule for rule in rules}.values())
