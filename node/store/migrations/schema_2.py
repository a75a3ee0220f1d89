"""Schema 2, frozen: what its migration makes. The tables that the node works with are in `node.store.tables`."""

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
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

from node.store.tables import UtcDateTime

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

own_cards = Table(
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
    Column("direct", Integer, nullable=False),
    Column("our_card", BigInteger, nullable=False),
    Column("enrolled_at", UtcDateTime, nullable=False),
    Column("enrolled_by", String, nullable=False),
)

peer_cards = Table(
    "peer_cards",
    metadata,
    Column("node", String, ForeignKey("peers.node"), primary_key=True),
    Column("version", BigInteger, primary_key=True),
    Column("document", LargeBinary, nullable=False),
    Column("taken_at", UtcDateTime, nullable=False),
)

card_deliveries = Table(
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
    Column("signed_by", JSON, nullable=False),
    Column("complete", Integer, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
)

cases = Table(
    "cases",
    metadata,
    Column("name", String, primary_key=True),
    Column("title", String, nullable=False),
    Column("record", JSON, nullable=False),
    Column("reporter", LargeBinary, nullable=True),
    Column("opened_at", UtcDateTime, nullable=False),
    Column("opened_by", String, nullable=False),
)

advisories = Table(
    "advisories",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("case_name", String, ForeignKey("cases.name"), nullable=True),
    Column("title", String, nullable=False),
    Column("handling", JSON, nullable=False),
    Column("draft", JSON(none_as_null=True), nullable=True),
    Column("core", LargeBinary, nullable=True),
    Column("core_digest", LargeBinary, nullable=True, unique=True),
    Column("disclosures", LargeBinary, nullable=True),
    Column("source_digest", LargeBinary, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", String, nullable=False),
    Column("issued_at", UtcDateTime, nullable=True),
    Column("recall", LargeBinary, ForeignKey("recalls.digest"), nullable=True),
    UniqueConstraint("name", "revision"),
    CheckConstraint("(draft IS NULL) <> (core IS NULL)", name="draft_or_core"),
)

left_with = Table(
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
    Column("shown_to", LargeBinary, nullable=True),
    Column("shown", LargeBinary, nullable=True),
    Column("refused_at", BigInteger, nullable=True),
    Column("opened_at", UtcDateTime, nullable=False),
    UniqueConstraint("peer", "epoch"),
)

out_entries = Table(
    "out_entries",
    metadata,
    Column("feed", Integer, ForeignKey("out_feeds.id"), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", String, nullable=False),
    Column("data", LargeBinary, nullable=True),
    Column("leaf_hash", LargeBinary, nullable=False),
    Column("root", LargeBinary, nullable=False),
    Column("erased_by", BigInteger, nullable=True),
    Column("advisory", Integer, ForeignKey("advisories.id"), nullable=True),
    Column("inbox", Integer, ForeignKey("inbox.id"), nullable=True),
    CheckConstraint("(data IS NULL) = (erased_by IS NOT NULL)", name="erased"),
)

ledger = Table(
    "ledger",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("by", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("peer", String, nullable=False),
    Column("feed", Integer, nullable=True),
    Column("seq", BigInteger, nullable=True),
    Column("record", LargeBinary, nullable=False),
    Column("digest", LargeBinary, nullable=False, unique=True),
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
    Column("newest", LargeBinary, nullable=False),
    Column("pending", JSON, nullable=False),
    Column("cosigned", BigInteger, nullable=False),
    Column("frozen", String, nullable=True),
    Column("restored", Integer, nullable=False),
    Column("offered_epoch", Integer, nullable=True),
    Column("contact_at", UtcDateTime, nullable=True),
    Column("problem", String, nullable=True),
    UniqueConstraint("peer", "epoch"),
)

key_floors = Table(
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
    Column("data", LargeBinary, nullable=True),
    Column("outcome", String, nullable=False),
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
    Column("state", String, nullable=False),
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

inbox_terms = Table(
    "inbox_terms",
    metadata,
    Column("inbox", Integer, ForeignKey("inbox.id"), primary_key=True),
    Column("kind", String, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("value", Text, nullable=False),
    Index("ix_inbox_terms_value", "kind", "inbox"),
)

annotations = Table(
    "annotations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("inbox", Integer, ForeignKey("inbox.id"), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("by", String, nullable=False),
    Column("text", Text, nullable=False),
)

grants = Table(
    "grants",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("origin", String, nullable=False),
    Column("core_digest", LargeBinary, nullable=False),
    Column("relay", String, nullable=False),
    Column("until", UtcDateTime, nullable=False),
    Column("document", LargeBinary, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("by", String, nullable=False),
    Index("ix_grants_core", "core_digest"),
)

recalls = Table(
    "recalls",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("origin", String, nullable=False),
    Column("name", String, nullable=False),
    Column("revisions", JSON, nullable=False),
    Column("reason", String, nullable=False),
    Column("ordered_at", UtcDateTime, nullable=False),
    Column("document", LargeBinary, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("by", String, nullable=False),
    Index("ix_recalls_name", "origin", "name"),
)

recall_holders = Table(
    "recall_holders",
    metadata,
    Column("recall", LargeBinary, ForeignKey("recalls.digest"), primary_key=True),
    Column("node", String, primary_key=True),
    Column("via", String, nullable=False),
    Column("state", String, nullable=False),
    Column("at", UtcDateTime, nullable=False),
)

statements = Table(
    "statements",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("id", Integer, nullable=False, unique=True),
    Column("kind", String, nullable=False),
    Column("author", String, nullable=False),
    Column("recipient", String, nullable=False),
    Column("origin", String, nullable=True),
    Column("name", String, nullable=True),
    Column("revision", Integer, nullable=True),
    Column("document", LargeBinary, nullable=False),
    Column("peer", String, nullable=True),
    Column("at", UtcDateTime, nullable=False),
    Column("by", String, nullable=False),
    Index("ix_statements_about", "origin", "name"),
)

alarms = Table(
    "alarms",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String, nullable=False),
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

incidents = Table(
    "incidents",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String, nullable=False),
    Column("peer", String, ForeignKey("peers.node"), nullable=False),
    Column("subject", String, nullable=False),
    Column("evidence", LargeBinary, nullable=False),
    Column("opened_at", UtcDateTime, nullable=False),
    Column("resolved_at", UtcDateTime, nullable=True),
    Column("resolved_by", String, nullable=True),
    Column("resolution", String, nullable=True),
)

approvals = Table(
    "approvals",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("act", String, nullable=False),
    Column("subject", String, nullable=False),
    Column("arguments", JSON, nullable=False),
    Column("binding", LargeBinary, nullable=False),
    Column("reason", String, nullable=False),
    Column("asked_at", UtcDateTime, nullable=False),
    Column("asked_by", String, nullable=False),
    Column("state", String, nullable=False),
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
