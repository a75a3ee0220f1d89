"""What a serving process has done, counted since it started: in memory, gone with the process.

Labels are node ids of peers, names of methods, codes and outcomes: never payload, a peer's text or a person (I17). What
is in the database is not counted here; `node.operation.metrics` reads it when it is asked.
"""

import threading
from collections import Counter
from enum import Enum


class Count(Enum):
    """What is counted: name, labels, and what it means."""

    PULLS = ("apostille_pulls", ("peer",), "Pull calls that were answered with a page, be it empty.")
    PAGES_OUT = ("apostille_pages_out", ("peer",), "Pages with at least one item that were handed out.")
    ITEMS_OUT = (
        "apostille_items_out",
        ("peer",),
        "Items of feeds that were handed out, hashes of erased ones included.",
    )
    BYTES_OUT = ("apostille_bytes_out", ("peer",), "Bytes of the entries that were handed out.")
    CALLS = ("apostille_calls", ("peer", "method"), "Calls of peers that were let in.")
    REFUSALS = ("apostille_calls_refused", ("peer", "method", "status"), "Calls of peers that were refused, or failed.")
    SYNCS = ("apostille_syncs", ("peer", "result"), "Syncs from a peer, by their result: ok or a code.")
    NOTICES = ("apostille_notices", ("peer", "result"), "Notices to a peer, by their result: ok or a code.")
    PAGES_IN = ("apostille_pages_in", ("peer",), "Pages that were taken in, be they empty.")
    ENTRIES_IN = ("apostille_entries_in", ("peer", "outcome"), "Entries that were taken in, by what became of them.")

    def __init__(self, metric: str, labels: tuple[str, ...], meaning: str) -> None:
        self.metric = metric
        self.labels = labels
        self.meaning = meaning


class Tally:
    """The counts of one process. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[Count, Counter[tuple[str, ...]]] = {what: Counter() for what in Count}

    def add(self, what: Count, *labels: str, by: int = 1) -> None:
        """Counts `by` more of `what`. `labels` are in the order of `what.labels`."""
        with self._lock:
            self._counts[what][labels] += by

    def all(self, what: Count) -> dict[tuple[str, ...], int]:
        """The counts of `what`, by labels."""
        with self._lock:
            return dict(self._counts[what])
