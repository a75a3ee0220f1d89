"""Run by Alembic: migrates the connection that it is handed, inside the transaction that it is in."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
