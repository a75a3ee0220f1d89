"""How each schema came from the one before: a revision of Alembic's for each, and the tables of each, frozen."""
