"""The tables of a node, in SQLAlchemy Core. Timestamps are aware UTC both ways.

Signed bytes are stored as they arrived or were made (I7). `out_*` is what this node sends, `in_*` what it receives: one
feed for each peer and epoch, of which the highest is current. Leaf hashes are kept for ever; the bytes beside them may
be erased. A change here is a change of the schema: it needs a migration beside it.
"""

from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """An aware instant. SQLite drops time zones, so it is stored as UTC and given its zone back."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:  # noqa: ARG002
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("an instant without a time zone cannot be stored")
        return value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        moment: datetime = value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


COUNT_ERASED: Final = (  # in every schema: bytes go by being set to NULL, and never come back
    "SELECT (SELECT count(*) FROM in_entries WHERE data IS NULL)"
    " + (SELECT count(*) FROM out_entries WHERE data IS NULL)"
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

meta = Table(
    "meta",
    metadata,
    Column("key", String, primary_key=True),
    Column("value", String, nullable=False),
)

own_cards = Table(  # every card that this node has had; the highest version is current
    "own_cards",
    metadata,
    Column("version", BigInteger, primary_key=True),
    Column("document", LargeBinary, nullable=False),
    Column("installed_at", UtcDateTime, nullable=False),
    Column("installed_by", String, nullable=False),
)

peers = Table(
    "peers",
    metadata,
    Column("node", String, primary_key=True),
    Column("card", LargeBinary, nullable=False),
    Column("card_version", BigInteger, nullable=False),
    Column("trusted", Integer, nullable=False),
    Column("direct", Integer, nullable=False),  # 0: its card is known, but nothing is exchanged with it directly
    Column("our_card", BigInteger, nullable=False),  # the newest version of our own card that it is known to hold
    Column("enrolled_at", UtcDateTime, nullable=False),
    Column("enrolled_by", String, nullable=False),
)

peer_cards = Table(  # every card of a peer that was ever enrolled, for proofs
    "peer_cards",
    metadata,
    Column("node", String, ForeignKey("peers.node"), primary_key=True),
    Column("version", BigInteger, primary_key=True),
    Column("document", LargeBinary, nullable=False),
    Column("taken_at", UtcDateTime, nullable=False),
)

card_deliveries = Table(  # which entry brings which version of our own card to a peer
    "card_deliveries",
    metadata,
    Column("peer", String, ForeignKey("peers.node"), primary_key=True),
    Column("version", BigInteger, ForeignKey("own_cards.version"), primary_key=True),
    Column("feed", Integer, nullable=False),
    Column("seq", BigInteger, nullable=False),
    ForeignKeyConstraint(["feed", "seq"], ["out_entries.feed", "out_entries.seq"]),
)

agreements = Table(
    "agreements",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("name", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("document", LargeBinary, nullable=False),
    Column("signed_by", JSON, nullable=False),  # the parties whose signatures were verified
    Column("complete", Integer, nullable=False),  # every party has signed
    Column("updated_at", UtcDateTime, nullable=False),
)

cases = Table(
    "cases",
    metadata,
    Column("name", String, primary_key=True),
    Column("title", String, nullable=False),
    Column("record", JSON, nullable=False),
    Column("reporter", LargeBinary, nullable=True),  # sealed: the identity of the reporter
    Column("opened_at", UtcDateTime, nullable=False),
    Column("opened_by", String, nullable=False),
)

advisories = Table(
    "advisories",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False),  # tracking id
    Column("revision", Integer, nullable=False),
    Column("case_name", String, ForeignKey("cases.name"), nullable=True),
    Column("title", String, nullable=False),
    Column("handling", JSON, nullable=False),
    Column("draft", JSON(none_as_null=True), nullable=True),  # csaf, ai, raised labels; gone once the core is signed
    Column("core", LargeBinary, nullable=True),
    Column("core_digest", LargeBinary, nullable=True, unique=True),
    Column("disclosures", LargeBinary, nullable=True),
    Column("source_digest", LargeBinary, nullable=False),  # SHA-256 of what was imported or drafted
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", String, nullable=False),
    Column("issued_at", UtcDateTime, nullable=True),
    Column("recall", LargeBinary, ForeignKey("recalls.digest"), nullable=True),  # the order that took it back
    UniqueConstraint("name", "revision"),
    CheckConstraint("(draft IS NULL) <> (core IS NULL)", name="draft_or_core"),
)

left_with = Table(  # the decision that a peer keeps a revision although a later one was issued
    "left_with",
    metadata,
    Column("advisory", Integer, ForeignKey("advisories.id"), primary_key=True),
    Column("peer", String, ForeignKey("peers.node"), primary_key=True),
    Column("reason", String, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("by", String, nullable=False),
)

out_feeds = Table(
    "out_feeds",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("peer", String, ForeignKey("peers.node"), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("origin", String, nullable=False, unique=True),
    Column("size", BigInteger, nullable=False),
    Column("edge", LargeBinary, nullable=False),
    Column("receipt", LargeBinary, nullable=True),
    Column("receipt_size", BigInteger, nullable=False),
    Column("receipt_at", UtcDateTime, nullable=True),
    Column(
        "shown_to", LargeBinary, nullable=True
    ),  # the start of the node to which the receiver showed its newest head
    Column("shown", LargeBinary, nullable=True),  # the newest head of ours that it showed; it need not be in this feed
    Column("refused_at", BigInteger, nullable=True),  # node.peering.confirm: the cursor from which it asked in vain
    Column("opened_at", UtcDateTime, nullable=False),
    UniqueConstraint("peer", "epoch"),
)

out_entries = Table(
    "out_entries",
    metadata,
    Column("feed", Integer, ForeignKey("out_feeds.id"), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", String, nullable=False),  # federation.entries.Kind
    Column("data", LargeBinary, nullable=True),  # NULL once erased
    Column("leaf_hash", LargeBinary, nullable=False),
    Column("root", LargeBinary, nullable=False),  # root of the feed up to and with this entry
    Column("erased_by", BigInteger, nullable=True),
    Column("advisory", Integer, ForeignKey("advisories.id"), nullable=True),  # own
    Column("inbox", Integer, ForeignKey("inbox.id"), nullable=True),  # passed on for its origin
    CheckConstraint("(data IS NULL) = (erased_by IS NOT NULL)", name="erased"),
)

ledger = Table(  # hash-chained: rows are added and never changed
    "ledger",
    metadata,
    Column("id", Integer, primary_key=True),  # counts from 1 without gaps
    Column("at", UtcDateTime, nullable=False),
    Column("by", String, nullable=False),
    Column("kind", String, nullable=False),  # node.records.ledger.Act
    Column("peer", String, nullable=False),
    Column("feed", Integer, nullable=True),
    Column("seq", BigInteger, nullable=True),
    Column("record", LargeBinary, nullable=False),  # JSON: everything that the row says, the columns before included
    Column("digest", LargeBinary, nullable=False, unique=True),  # SHA-256 over the digest before and the record
    ForeignKeyConstraint(["feed", "seq"], ["out_entries.feed", "out_entries.seq"]),
    Index("ix_ledger_entry", "feed", "seq"),
)

in_feeds = Table(
    "in_feeds",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("peer", String, ForeignKey("peers.node"), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("origin", String, nullable=False, unique=True),
    Column("size", BigInteger, nullable=False),
    Column("edge", LargeBinary, nullable=False),
    Column("head", LargeBinary, nullable=False),
    Column("newest", LargeBinary, nullable=False),  # the largest head that was ever shown
    Column("pending", JSON, nullable=False),  # [seq, leaf hash in hex, erased by]
    Column("cosigned", BigInteger, nullable=False),  # the largest size that we know we gave a receipt for
    Column("frozen", String, nullable=True),  # the code of the error that froze it
    Column("restored", Integer, nullable=False),  # from a restore 1 until a page came, 2 until caught up with its head
    Column("offered_epoch", Integer, nullable=True),  # the sender has opened it; two people here must accept
    Column("contact_at", UtcDateTime, nullable=True),
    Column("problem", String, nullable=True),  # code of the last failed sync, NULL after a good one
    UniqueConstraint("peer", "epoch"),
)

key_floors = Table(  # a key that a newer card dropped still speaks for what stood in a checkpoint held before
    "key_floors",
    metadata,
    Column("node", String, ForeignKey("peers.node"), primary_key=True),
    Column("kid", String, primary_key=True),
    Column("feed", Integer, ForeignKey("in_feeds.id"), primary_key=True),
    Column("public", LargeBinary, nullable=False),
    Column("size", BigInteger, nullable=False),
)

in_entries = Table(
    "in_entries",
    metadata,
    Column("feed", Integer, ForeignKey("in_feeds.id"), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("leaf_hash", LargeBinary, nullable=False),
    Column("data", LargeBinary, nullable=True),  # NULL when erased, or when law forbids to keep it
    Column("outcome", String, nullable=False),  # node.desk.inbox.Disposition
    Column("code", String, nullable=True),
    Column("detail", String, nullable=True),
    Column("received_at", UtcDateTime, nullable=False),
    Index("ix_in_entries_outcome", "outcome"),  # what was set aside is counted without reading past the bytes
)

inbox = Table(
    "inbox",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("peer", String, nullable=False),
    Column("feed", Integer, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("origin", String, nullable=False),
    Column("name", String, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("core_digest", LargeBinary, nullable=False),
    Column("title", String, nullable=False),
    Column("tlp", String, nullable=False),
    Column("issued_at", UtcDateTime, nullable=False),
    Column("retain_until", UtcDateTime, nullable=True),
    Column("state", String, nullable=False),  # node.desk.inbox.InboxState
    Column("received_at", UtcDateTime, nullable=False),
    Column("read_at", UtcDateTime, nullable=True),
    Column("read_by", String, nullable=True),
    Column("assigned_to", String, nullable=True),
    Column("actioned_at", UtcDateTime, nullable=True),
    Column("actioned_by", String, nullable=True),
    ForeignKeyConstraint(["feed", "seq"], ["in_entries.feed", "in_entries.seq"]),
    UniqueConstraint("feed", "seq"),
    Index("ix_inbox_name", "origin", "name", "revision"),
)

inbox_terms = Table(  # what an inbox item can be found by; goes with its bytes
    "inbox_terms",
    metadata,
    Column("inbox", Integer, ForeignKey("inbox.id"), primary_key=True),
    Column("kind", String, primary_key=True),  # cve, product, text
    Column("number", Integer, primary_key=True),
    Column("value", Text, nullable=False),
    Index("ix_inbox_terms_value", "kind", "inbox"),
)

annotations = Table(  # ours alone, never sent
    "annotations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("inbox", Integer, ForeignKey("inbox.id"), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("by", String, nullable=False),
    Column("text", Text, nullable=False),
)

grants = Table(  # an origin lets a relay pass one of its advisories on
    "grants",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("origin", String, nullable=False),
    Column("core_digest", LargeBinary, nullable=False),
    Column("relay", String, nullable=False),
    Column("until", UtcDateTime, nullable=False),
    Column("document", LargeBinary, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("by", String, nullable=False),  # the local user who signed it, or the peer it came from
    Index("ix_grants_core", "core_digest"),
)

recalls = Table(  # orders to purge, kept for ever: they bar what they name
    "recalls",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("origin", String, nullable=False),
    Column("name", String, nullable=False),
    Column("revisions", JSON, nullable=False),  # sorted numbers
    Column("reason", String, nullable=False),
    Column("ordered_at", UtcDateTime, nullable=False),  # as the origin says
    Column("document", LargeBinary, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("by", String, nullable=False),  # the local user who gave it, or the peer it came from
    Index("ix_recalls_name", "origin", "name"),
)

recall_holders = Table(  # who has to purge, and what it said of that
    "recall_holders",
    metadata,
    Column("recall", LargeBinary, ForeignKey("recalls.digest"), primary_key=True),
    Column("node", String, primary_key=True),
    Column("via", String, nullable=False),  # the peer by whose feed the order goes to it
    Column("state", String, nullable=False),  # node.sharing.recalls.HolderState
    Column("at", UtcDateTime, nullable=False),
)

statements = Table(  # signed assertions, as they were made or arrived
    "statements",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("id", Integer, nullable=False, unique=True),  # for people: counts from 1
    Column("kind", String, nullable=False),
    Column("author", String, nullable=False),
    Column("recipient", String, nullable=False),
    Column("origin", String, nullable=True),  # of the advisory that it is about
    Column("name", String, nullable=True),
    Column("revision", Integer, nullable=True),
    Column("document", LargeBinary, nullable=False),
    Column("peer", String, nullable=True),  # who brought it; NULL for our own
    Column("at", UtcDateTime, nullable=False),
    Column("by", String, nullable=False),
    Index("ix_statements_about", "origin", "name"),
)

alarms = Table(
    "alarms",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String, nullable=False),  # node.records.alarms.Alarm
    Column("subject", String, nullable=False),
    Column("detail", String, nullable=False),
    Column("first_at", UtcDateTime, nullable=False),
    Column("last_at", UtcDateTime, nullable=False),
    Column("count", Integer, nullable=False),
    Column("acked_at", UtcDateTime, nullable=True),
    Column("acked_by", String, nullable=True),
    Column("delivered_at", UtcDateTime, nullable=True),
    Index("ix_alarms_open", "kind", "subject", "acked_at"),
)

incidents = Table(  # evidence against a peer, until two people settle it
    "incidents",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String, nullable=False),  # the code of the error
    Column("peer", String, ForeignKey("peers.node"), nullable=False),
    Column("subject", String, nullable=False),  # origin line of a feed, or the advisory
    Column("evidence", LargeBinary, nullable=False),  # JSON: node.records.incidents
    Column("opened_at", UtcDateTime, nullable=False),
    Column("resolved_at", UtcDateTime, nullable=True),
    Column("resolved_by", String, nullable=True),
    Column("resolution", String, nullable=True),
)

approvals = Table(  # acts that take two people
    "approvals",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("act", String, nullable=False),  # node.records.approvals.Act
    Column("subject", String, nullable=False),
    Column("arguments", JSON, nullable=False),
    Column("binding", LargeBinary, nullable=False),  # SHA-256 of all that the approval is about
    Column("reason", String, nullable=False),
    Column("asked_at", UtcDateTime, nullable=False),
    Column("asked_by", String, nullable=False),
    Column("state", String, nullable=False),  # node.records.approvals.State
    Column("settled_at", UtcDateTime, nullable=True),
    Column("settled_by", String, nullable=True),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("by", String, nullable=False),
    Column("act", String, nullable=False),
    Column("subject", String, nullable=False),
    Column("detail", String, nullable=False),
)
