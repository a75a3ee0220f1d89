"""Schema 2: epochs, own cards, the chained ledger, recalls, statements, incidents, alarms, approvals."""

from alembic import context, op

from node.store.migrations import carry_2

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Makes the tables anew and carries over what schema 1 holds."""
    carry_2.run(op.get_bind(), context.config.attributes["at"])
