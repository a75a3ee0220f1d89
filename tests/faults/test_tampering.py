"""One byte changed anywhere in the ledger or in a stored entry is found by `apostille ledger verify`.

The bytes are changed in the database file itself, behind the node's back. Every column of the ledger and of the entries
that were sent and received is in it but two: `detail` of a received entry, a sentence for people about why it was set
aside, and its `received_at` where no inbox item repeats it. Both are this node's own notes of which nothing else
tells, and no disclosure depends on them.
"""

import random
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress

import pytest

from node import main
from node.audit import verify
from node.home.context import Node
from node.store import tables
from tests.evidence import History, make_history
from tests.faults.campaign import count
from tests.nodes import DE, FR, IN

CHANGES = count(100, 1_000)
PATIENCE = 100  # tries
EVIDENCE = (tables.ledger, tables.out_entries, tables.in_entries)
NOTES = {("in_entries", "detail")}
COLUMNS = [(t.name, c.name) for t in EVIDENCE for c in t.c if (t.name, c.name) not in NOTES]
REPEATED = "(feed, seq) IN (SELECT feed, seq FROM inbox)"  # the inbox says when it came as well


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    with make_history(tmp_path_factory.mktemp("history")) as made:
        yield made


class Tamperer:
    """Somebody who writes to the database of a node with other software."""

    def __init__(self, node: Node, chosen: random.Random) -> None:
        self.node, self.chosen = node, chosen
        self.file = sqlite3.connect(node.home / main.DATABASE_FILE, isolation_level=None)
        self.file.execute("PRAGMA ignore_check_constraints=ON")
        self.file.text_factory = bytes

    def change(self, table: str, column: str) -> str | None:
        """Changes one byte of one value, lets the node verify, and changes it back.

        Returns what was not found; None if it was. Raises LookupError where there is no such value, and where the
        database itself did not take the change.
        """
        where = REPEATED if (table, column) == ("in_entries", "received_at") else "1"
        rows = self.file.execute(
            f"SELECT rowid, typeof({column}), {column} FROM {table} WHERE {column} IS NOT NULL AND {where}"  # noqa: S608 - names of our own
        ).fetchall()
        rowid, kind, value = self.chosen.choice(rows or [(0, b"none", b"")])
        stored = value.to_bytes(8, "big", signed=True) if kind == b"integer" else value
        if not stored:
            raise LookupError
        changed = bytearray(stored)
        place = self.chosen.randrange(len(changed))
        changed[place] ^= self.chosen.randrange(1, 256)
        new = int.from_bytes(changed, "big", signed=True) if kind == b"integer" else bytes(changed)
        with suppress(sqlite3.IntegrityError):
            self._write(table, column, rowid, kind, new)
            moved = new if column == "id" else rowid  # the number of the row is the value itself
            try:
                found = verify.verify(self.node).findings
            finally:
                self._write(table, column, moved, kind, value)
            return None if found else f"{self.node.id}: {table}.{column}, row {rowid}, byte {place} of {len(stored)}"
        raise LookupError

    def _write(self, table: str, column: str, rowid: object, kind: bytes, value: object) -> None:
        cast = "CAST(? AS TEXT)" if kind == b"text" else "?"
        self.file.execute(f"UPDATE {table} SET {column} = {cast} WHERE rowid = ?", (value, rowid))  # noqa: S608 - as above


@pytest.mark.invariant("I14")
def test_every_changed_byte_is_found(history: History) -> None:
    chosen = random.Random(2026)  # noqa: S311 - bytes to change, the same in every run
    nodes = [history.chain[name] for name in (FR, DE, IN)]
    assert [verify.verify(node).findings for node in nodes] == [()] * 3  # sanity
    tamperers = [Tamperer(node, chosen) for node in nodes]
    missed: list[str] = []
    with ExitStack() as files:
        for tamperer in tamperers:
            files.enter_context(closing(tamperer.file))
        for number in range(CHANGES):
            missed += _change_one(tamperers, chosen, *COLUMNS[number % len(COLUMNS)])
    assert missed == []
    assert [verify.verify(node).findings for node in nodes] == [()] * 3  # all of it was changed back


def _change_one(tamperers: list[Tamperer], chosen: random.Random, table: str, column: str) -> list[str]:
    """Tries until one node has a value in that column whose change its database takes."""
    for _ in range(PATIENCE):
        with suppress(LookupError):
            missed = chosen.choice(tamperers).change(table, column)
            return [] if missed is None else [missed]
    raise AssertionError(f"nothing in {table}.{column} could be changed")
