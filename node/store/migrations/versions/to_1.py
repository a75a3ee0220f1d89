"""Schema 1: a case, an advisory, a feed to each peer and one from each."""

from alembic import op
from sqlalchemy import insert

from node.store.migrations.schema_1 import meta, metadata

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes the tables."""
    tx = op.get_bind()
    metadata.create_all(tx)
    tx.execute(insert(meta).values(key="schema", value="1"))
