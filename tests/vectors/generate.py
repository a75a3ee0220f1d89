"""Writes the vectors of docs/protocol.md: `python -m tests.vectors.generate`; with `--check` it only compares.

Every case has a name and the outcome that the protocol demands, written down here by hand: `ok`, or the code of the
error. `test_vectors.py` and `test_vectors_v2.py` hold this implementation to them; any other can be held to the same
files. Those of version 1 are frozen: nodes of that version are at work. Version 2 changes none of them and adds its
own. v1/checkpoint.json and the cases of RFC 9901 are not made here.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.vectors import generate_documents as documents
from tests.vectors import generate_feed as feed
from tests.vectors import generate_v2 as v2

FOLDER = Path(__file__).parent
FILES: dict[str, Callable[[], dict[str, Any]]] = {
    "v1/ed25519.json": documents.ed25519_cases,
    "v1/cards.json": documents.card_cases,
    "v1/agreements.json": documents.agreement_cases,
    "v1/cores.json": documents.core_cases,
    "v1/entries.json": feed.entry_cases,
    "v1/feed.json": feed.feed_cases,
    "v2/cards.json": v2.card_cases,
    "v2/recalls.json": v2.recall_cases,
    "v2/grants.json": v2.grant_cases,
    "v2/statements.json": v2.statement_cases,
    "v2/comparison.json": v2.comparison_cases,
    "v2/entries.json": v2.entry_cases,
    "v2/feed.json": v2.feed_cases,
}


def main(arguments: list[str]) -> int:
    """Exit status 0, or 1 if `--check` finds a file that is not what this code makes."""
    stale = []
    for name, make in FILES.items():
        text = json.dumps(make(), indent=1, ensure_ascii=False) + "\n"
        path = FOLDER / name
        if arguments != ["--check"]:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
    print("\n".join(f"not what generate.py makes: {name}" for name in stale) or f"{len(FILES)} files")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
