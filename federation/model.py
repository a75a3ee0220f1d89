"""Values that travel between the modules of `federation`. Frozen; they check themselves when made.

The enums are closed: a value that is not listed here is refused on the wire (I2, I6). Each pipeline step has its own
type, so that data which was not verified cannot be handed on by mistake:

    out   Draft -> Issued -> Decision -> Presentation -> Terms -> entry bytes
    in    page bytes -> VerifiedPage -> Envelope -> Opened -> Advisory -> Admitted
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, NewType

from federation.errors import MalformedError

CORE_VERSION: Final = 1
PROTOCOL_VERSION: Final = 2
SPOKEN_VERSIONS: Final = (1, 2)  # this one and the one before

NodeId = NewType("NodeId", str)
Country = NewType("Country", str)
JsonObject = dict[str, Any]

_NODE_ID = re.compile(r"(?=.{4,253}\Z)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)+")
_COUNTRY = re.compile(r"[A-Z]{2}")
_INSTANT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")


class Category(StrEnum):
    """What kind of information an element is; agreements and laws speak of these."""

    IDENTIFICATION = "identification"
    TECHNICAL = "technical"
    PRODUCT = "product"
    SEVERITY = "severity"
    REMEDIATION = "remediation"
    EXPLOIT = "exploit"
    INDICATOR = "indicator"
    PERSONAL = "personal"
    VICTIM = "victim"
    SOURCE = "source"
    ATTRIBUTION = "attribution"


class Form(StrEnum):
    """How much of an element leaves."""

    FULL = "full"
    GENERALISED = "generalised"
    WITHHELD = "withheld"


class Tlp(StrEnum):
    """FIRST Traffic Light Protocol 2.0."""

    CLEAR = "CLEAR"
    GREEN = "GREEN"
    AMBER = "AMBER"
    AMBER_STRICT = "AMBER+STRICT"
    RED = "RED"


class Onward(StrEnum):
    """How far a receiver may pass an advisory on; each level includes those before it."""

    NONE = "none"
    CONSTITUENTS = "constituents"
    PEERS = "peers"


class Purpose(StrEnum):
    """What an advisory may be used for."""

    REMEDIATION = "remediation"
    DETECTION = "detection"
    RESEARCH = "research"
    STATISTICS = "statistics"
    LAW_ENFORCEMENT = "law_enforcement"


class Tier(StrEnum):
    """Risk tier of the content, chosen by the origin."""

    STANDARD = "standard"
    SENSITIVE = "sensitive"
    DUAL_USE = "dual_use"


class Attribution(StrEnum):
    """FIRST IEP 2.0: may, must or must not the receiver name the provider."""

    MAY = "may"
    MUST = "must"
    MUST_NOT = "must_not"


class Role(StrEnum):
    """What an online key may sign. A key has one role."""

    ISSUE = "issue"
    FEED = "feed"
    RECEIPT = "receipt"
    TLS = "tls"


def node_id(text: object) -> NodeId:
    """`text` as a node id: a lower-case DNS name of at least two labels. Raises MalformedError."""
    if not isinstance(text, str) or not _NODE_ID.fullmatch(text):
        raise MalformedError("not a node id, a lower-case DNS name such as cert.fr.example")
    return NodeId(text)


def country(text: object) -> Country:
    """`text` as an ISO 3166-1 alpha-2 code (form only; `config` checks that it exists). Raises MalformedError."""
    if not isinstance(text, str) or not _COUNTRY.fullmatch(text):
        raise MalformedError("not an ISO 3166-1 alpha-2 country code, such as FR")
    return Country(text)


def instant(text: object) -> datetime:
    """`text` as an aware UTC instant, written `2026-11-21T09:30:00Z` and in no other way. Raises MalformedError."""
    if not isinstance(text, str) or not _INSTANT.fullmatch(text):
        raise MalformedError("not a UTC instant of the form 2026-11-21T09:30:00Z")
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError as e:
        raise MalformedError("not a date that exists") from e


def instant_text(moment: datetime) -> str:
    """The one way in which an instant is written; the inverse of `instant`. `moment` must be aware."""
    return moment.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"


@dataclass(frozen=True, slots=True)
class Handling:
    """The widest use that the origin allows. Inside the core, always plain, never redactable (I6).

    `storage` is None for anywhere, else the countries that may hold the bytes. `recipients` is None unless the
    origin names them; RED needs them. `retain_until` and `embargo_until` are None for no such limit.
    """

    tlp: Tlp
    home: Country
    storage: frozenset[Country] | None
    onward: Onward
    purposes: frozenset[Purpose]
    retain_until: datetime | None
    embargo_until: datetime | None
    tier: Tier
    recipients: frozenset[NodeId] | None


@dataclass(frozen=True, slots=True)
class Terms:
    """What one delivery narrows the handling to; inside the entry."""

    core_digest: bytes
    recipient: NodeId
    agreement_digest: bytes
    purposes: frozenset[Purpose]
    retain_until: datetime | None
    storage: frozenset[Country] | None
    onward: Onward
    attribution: Attribution


@dataclass(frozen=True, slots=True)
class Presentation:
    """A core with the disclosures that one peer gets: compact JWT bytes, and each disclosure's raw JSON bytes."""

    core: bytes
    disclosures: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that decided: its id, the law or clause it rests on, and its sentence for people."""

    id: str
    basis: str
    says: str


@dataclass(frozen=True, slots=True)
class Element:
    """A part that can be disclosed or withheld alone.

    `path` is its JSON pointer below the payload (`/csaf/document/notes/0`). `full` and `generalised` are digests of
    the disclosures that hold its forms. `parents` are the container disclosures that have to travel with it, outermost
    first. `needs_products` says that it refers to product ids. `categories` is empty when no label covers it: withheld.
    """

    path: str
    categories: frozenset[Category]
    full: str | None
    generalised: str | None
    parents: tuple[str, ...]
    needs_products: bool


@dataclass(frozen=True, slots=True)
class ElementDecision:
    """What policy says for one element: its form, and the rules that decided it."""

    element: Element
    form: Form
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """What policy says for one advisory and one peer, element by element.

    `agreement_digest` is None when no agreement in force covers the pair. `owed` are duties to send; a duty beside a
    law's forbid is a conflict for a person. `next_change_at` is the first instant at which time alone may change it.
    """

    recipient: NodeId
    agreement_digest: bytes | None
    elements: tuple[ElementDecision, ...]
    owed: tuple[Rule, ...]
    alarms: tuple[str, ...]
    next_change_at: datetime | None

    @property
    def shares_anything(self) -> bool:
        """Whether any element leaves in any form."""
        return any(e.form is not Form.WITHHELD for e in self.elements)
