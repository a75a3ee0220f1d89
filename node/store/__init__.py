"""The database of one node: tables, and queries with names. Use cases own the transactions."""
