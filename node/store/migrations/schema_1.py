"""Schema 1, frozen: what its migration makes. The tables that the node works with are in `node.store.tables`."""

from sqlalchemy import (
    JSON,
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

peers = Table(
    "peers",
    metadata,
    Column("node", String, primary_key=True),
    Column("card", LargeBinary, nullable=False),
    Column("card_version", Integer, nullable=False),
    Column("trusted", Integer, nullable=False),
    Column("enrolled_at", UtcDateTime, nullable=False),
    Column("enrolled_by", String, nullable=False),
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
    UniqueConstraint("name", "revision"),
    CheckConstraint("(draft IS NULL) <> (core IS NULL)", name="draft_or_core"),
)

out_feeds = Table(
    "out_feeds",
    metadata,
    Column("peer", String, ForeignKey("peers.node"), primary_key=True),
    Column("origin", String, nullable=False, unique=True),
    Column("size", Integer, nullable=False),
    Column("edge", LargeBinary, nullable=False),
    Column("receipt", LargeBinary, nullable=True),
    Column("receipt_size", Integer, nullable=False),
    Column("receipt_at", UtcDateTime, nullable=True),
)

out_entries = Table(
    "out_entries",
    metadata,
    Column("peer", String, ForeignKey("out_feeds.peer"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("kind", String, nullable=False),
    Column("data", LargeBinary, nullable=True),
    Column("leaf_hash", LargeBinary, nullable=False),
    Column("root", LargeBinary, nullable=False),
    Column("erased_by", Integer, nullable=True),
    Column("advisory", Integer, ForeignKey("advisories.id"), nullable=True),
    CheckConstraint("(data IS NULL) = (erased_by IS NOT NULL)", name="erased"),
)

ledger = Table(
    "ledger",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("by", String, nullable=False),
    Column("peer", String, nullable=False),
    Column("seq", Integer, nullable=False),
    Column("advisory", Integer, ForeignKey("advisories.id"), nullable=False),
    Column("core_digest", LargeBinary, nullable=False),
    Column("agreement_digest", LargeBinary, nullable=False),
    Column("retain_until", UtcDateTime, nullable=True),
    Column("elements", JSON, nullable=False),
    Column("withdrawn_at", UtcDateTime, nullable=True),
    ForeignKeyConstraint(["peer", "seq"], ["out_entries.peer", "out_entries.seq"]),
    UniqueConstraint("peer", "seq"),
)

in_feeds = Table(
    "in_feeds",
    metadata,
    Column("peer", String, ForeignKey("peers.node"), primary_key=True),
    Column("origin", String, nullable=False, unique=True),
    Column("size", Integer, nullable=False),
    Column("edge", LargeBinary, nullable=False),
    Column("head", LargeBinary, nullable=False),
    Column("newest", LargeBinary, nullable=False),
    Column("pending", JSON, nullable=False),
    Column("frozen", String, nullable=True),
    Column("evidence", LargeBinary, nullable=True),
    Column("contact_at", UtcDateTime, nullable=True),
    Column("problem", String, nullable=True),
)

in_entries = Table(
    "in_entries",
    metadata,
    Column("peer", String, ForeignKey("in_feeds.peer"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("leaf_hash", LargeBinary, nullable=False),
    Column("data", LargeBinary, nullable=True),
    Column("outcome", String, nullable=False),
    Column("code", String, nullable=True),
    Column("detail", String, nullable=True),
    Column("received_at", UtcDateTime, nullable=False),
)

inbox = Table(
    "inbox",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("peer", String, nullable=False),
    Column("seq", Integer, nullable=False),
    Column("origin", String, nullable=False),
    Column("name", String, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("core_digest", LargeBinary, nullable=False),
    Column("title", String, nullable=False),
    Column("tlp", String, nullable=False),
    Column("retain_until", UtcDateTime, nullable=True),
    Column("state", String, nullable=False),
    Column("received_at", UtcDateTime, nullable=False),
    ForeignKeyConstraint(["peer", "seq"], ["in_entries.peer", "in_entries.seq"]),
    UniqueConstraint("peer", "seq"),
    Index("ix_inbox_name", "origin", "name", "revision"),
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
