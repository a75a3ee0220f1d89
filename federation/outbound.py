"""The way out: from a draft to the bytes that one peer gets.

    Draft --issue--> Issued --reopen--> OwnAdvisory --decide--> Decision --present--> Presented

`issue` signs once for each revision (I5). `federation.policy.decide` says what may leave. `present` withholds the rest
and then judges what really leaves (I4): it opens the outgoing disclosures as the receiver would, checks that they are
valid CSAF, and lets the guard search them for what was withheld; a finding narrows the decision and the check starts
again, until nothing changes. What cannot be narrowed is held for a person. Appending to a feed is the node's affair.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from federation import csaf, handling, sdjwt
from federation.elements import elements, selection
from federation.errors import HeldError, MalformedError, UsageError
from federation.labels import LabelSet
from federation.limits import MAX_ENTRY_BYTES
from federation.marking import issue_claims
from federation.model import (
    CORE_VERSION,
    Category,
    Decision,
    Element,
    ElementDecision,
    Form,
    Handling,
    JsonObject,
    NodeId,
    Presentation,
    Rule,
)
from federation.policy.decide import with_products
from federation.policy.guard import Withheld, demote, search
from federation.sdjwt import Node, Processed, Salts

_ENVELOPE_BYTES = 8 << 10  # terms, nonce, origin line and protobuf framing, generously
_CATEGORY_PATH = "/csaf/document/category"
_VALID_CSAF = Rule("valid-csaf", "CSAF 2.0, section 6.1", "Without its neighbours this part would not be valid CSAF.")


@dataclass(frozen=True, slots=True)
class Draft:
    """A document that its author has finished. `raised` maps pointers of elements to a more sensitive category."""

    origin: NodeId
    name: str
    revision: int
    issued_at: datetime
    handling: Handling
    csaf: JsonObject
    ai: JsonObject | None
    raised: Mapping[str, Category]


@dataclass(frozen=True, slots=True)
class Issued:
    """A signed core with every disclosure of it. `unlabelled` are paths without a label: they never leave."""

    core: bytes
    disclosures: tuple[bytes, ...]
    unlabelled: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OwnAdvisory:
    """A core with the disclosures that are held of it, ready to be decided on and presented.

    `whole` tells that they are all of its disclosures, so that together they are the document that its author checked;
    of what was received for passing on, they are those that arrived.
    """

    core: bytes
    core_digest: bytes
    payload: JsonObject
    handling: Handling
    nodes: tuple[Node, ...]
    elements: tuple[Element, ...]
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Presented:
    """What leaves for one peer, with the decision that it follows from; `narrowed` are paths the checks took back."""

    presentation: Presentation
    decision: Decision
    narrowed: tuple[str, ...]


def tracking_name(document: JsonObject) -> str:
    """The tracking id of a CSAF document, valid or not. Raises MalformedError when it has none."""
    name: Any = document
    for member in ("document", "tracking", "id"):
        name = name.get(member) if isinstance(name, dict) else None
    if not isinstance(name, str) or not name:
        raise MalformedError("not a CSAF document: /document/tracking/id is missing")
    return name


def check_draft(draft: Draft) -> None:
    """Refuses a draft that could not be issued: invalid CSAF, handling that contradicts itself or the document's TLP.

    Raises MalformedError listing the tests that failed, HandlingError, or UsageError.
    """
    csaf.check(draft.csaf)
    handling.check(draft.handling)
    label = csaf.tlp_label(draft.csaf)
    if label is not None and label != csaf.expected_label(draft.handling.tlp):
        raise UsageError(
            f"{draft.name}: the document says TLP:{label}, the handling TLP:{draft.handling.tlp}; they must agree"
        )
    if tracking_name(draft.csaf) != draft.name:
        raise UsageError(f"{draft.name}: the document's tracking id is {tracking_name(draft.csaf)}")


def issue(
    draft: Draft, labels: LabelSet, *, kid: str, sign: Callable[[bytes], bytes], entropy: Callable[[int], bytes]
) -> Issued:
    """The core of a draft, signed, with its disclosures. Raises as `check_draft`; UsageError when it is too large."""
    check_draft(draft)
    concealed = issue_claims(draft.csaf, draft.ai, labels, draft.raised, salts=Salts(entropy))
    payload = {
        "v": CORE_VERSION,
        "iss": draft.origin,
        "jti": f"{draft.origin}/{draft.name}/{draft.revision}",
        "iat": int(draft.issued_at.timestamp()),
        "handling": handling.write(draft.handling),
        **concealed.payload,
    }
    core = sdjwt.sign_core(payload, kid=kid, sign=sign)
    disclosures = tuple(disclosure.raw for disclosure in concealed.disclosures)
    size = len(core) + sum(map(len, disclosures)) + _ENVELOPE_BYTES
    if size > MAX_ENTRY_BYTES:
        raise UsageError(f"{draft.name}: signed it is {size} bytes, over the {MAX_ENTRY_BYTES} that an entry may have")
    return Issued(core, disclosures, concealed.unlabelled)


def reopen(core: bytes, disclosures: tuple[bytes, ...], labels: LabelSet, *, whole: bool = True) -> OwnAdvisory:
    """A core that was verified, with everything that can be chosen from it."""
    payload = sdjwt.read_header_and_payload(core).payload
    nodes = sdjwt.walk(payload, disclosures)
    return OwnAdvisory(
        core=core,
        core_digest=hashlib.sha256(core).digest(),
        payload=payload,
        handling=handling.read(payload["handling"]),
        nodes=nodes,
        elements=elements(payload, nodes, labels),
        whole=whole,
    )


def present(advisory: OwnAdvisory, decision: Decision) -> Presented:
    """What leaves under `decision`, or less.

    (1) select the disclosures of the chosen forms; (2) open them as the receiver would; (3) valid CSAF, else narrow:
    first the document's category to its generalised form, then the elements at fault; (4) the guard finds nothing that
    was withheld, else demote what it names; again from (1) until nothing changes. Raises HeldError when the plain part
    is at fault or nothing is left to narrow.
    """
    start = {e.element.path: e.form for e in decision.elements}
    while True:
        chosen = [(e.element, e.form) for e in decision.elements if e.form is not Form.WITHHELD]
        disclosures = selection(chosen, advisory.nodes)  # (1)
        opened = sdjwt.process(advisory.payload, disclosures)  # (2)
        narrowed = _narrow_to_valid(decision, opened, whole=advisory.whole)  # (3)
        if narrowed is None:
            leaving = {node.path: node.disclosure.value for node in opened.nodes}
            hits = search(leaving, advisory.payload, _withheld(decision, advisory.nodes))  # (4)
            narrowed = demote(decision, hits) if hits else None
        if narrowed is None:
            changed = tuple(e.element.path for e in decision.elements if e.form is not start[e.element.path])
            return Presented(Presentation(advisory.core, disclosures), decision, changed)
        if narrowed == decision:
            raise HeldError("what may leave is not valid CSAF, and nothing is left to withhold")
        decision = narrowed


def _withheld(decision: Decision, nodes: tuple[Node, ...]) -> tuple[Withheld, ...]:
    """What the recipient does not get in full, for the guard."""
    values = {node.digest: node.disclosure.value for node in nodes}
    found = []
    for decided in decision.elements:
        element, digest = decided.element, decided.element.full
        if decided.form is Form.WITHHELD:
            digest = element.full or element.generalised
        if decided.form is not Form.FULL and digest is not None:
            found.append(Withheld(element.path, element.categories, values[digest]))
    return tuple(found)


def _narrow_to_valid(decision: Decision, opened: Processed, *, whole: bool) -> Decision | None:
    """A narrower decision when the document that would leave is not valid CSAF; None when it is.

    With every element of the whole in full it is the document that `check_draft` judged, so it is not judged again.
    """
    if whole and all(e.form is Form.FULL for e in decision.elements):
        return None
    problems = csaf.problems(opened.claims["csaf"])
    if not problems:
        return None
    category = next((e for e in decision.elements if e.element.path == _CATEGORY_PATH), None)
    if category is not None and category.form is Form.FULL and category.element.generalised is not None:
        return _with(decision, {_CATEGORY_PATH: Form.GENERALISED})
    places = [_signed_path(f"/csaf{problem.path}", opened.nodes) + "/" for problem in problems]
    at_fault = {
        e.element.path: Form.WITHHELD
        for e in decision.elements
        if e.form is not Form.WITHHELD and any(place.startswith(f"{e.element.path}/") for place in places)
    }
    if not at_fault:
        tests = sorted({problem.test for problem in problems})
        raise HeldError(f"what may leave is not valid CSAF (tests {', '.join(tests)}) and cannot be narrowed further")
    return _with(decision, at_fault)


def _signed_path(path: str, nodes: tuple[Node, ...]) -> str:
    """A path of the document that leaves, with the array indexes that the same places have in the signed payload."""
    signed = ""
    for part in path.split("/")[1:]:
        if part.isdecimal():
            inside = (node.path.removeprefix(f"{signed}/") for node in nodes if node.path.startswith(f"{signed}/"))
            present = sorted({int(index) for rest in inside if (index := rest.partition("/")[0]).isdecimal()})
            part = str(present[int(part)]) if int(part) < len(present) else part
        signed += f"/{part}"
    return signed


def _with(decision: Decision, forms: Mapping[str, Form]) -> Decision:
    changed = (
        ElementDecision(e.element, forms[e.element.path], (*e.rules, _VALID_CSAF)) if e.element.path in forms else e
        for e in decision.elements
    )
    return replace(decision, elements=with_products(changed))


def open_in_full(advisory: OwnAdvisory) -> JsonObject:
    """The claims of an advisory with every element in full: the document as its author wrote it."""
    everything = selection([(element, Form.FULL) for element in advisory.elements], advisory.nodes)
    return sdjwt.process(advisory.payload, everything).claims


def open_as_receiver(presentation: Presentation) -> JsonObject:
    """The claims that the receiver of `presentation` reads. For showing: a receiver verifies first."""
    payload = sdjwt.read_header_and_payload(presentation.core).payload
    return sdjwt.process(payload, presentation.disclosures).claims
