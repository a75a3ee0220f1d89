"""Writes the vectors of docs/protocol.md: `python -m tests.vectors.generate`; with `--check` it only compares.

Every case has a name and the outcome that the protocol demands, written down here by hand: `ok`, or the code of the
error. `test_vectors.py` holds this implementation to them; any other can be held to the same files. checkpoint.json
and the cases of RFC 9901 are not made here.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.vectors import generate_documents as documents
from tests.vectors import generate_feed as feed

FOLDER = Path(__file__).parent
FILES: dict[str, Callable[[], dict[str, Any]]] = {
    "ed25519.json": documents.ed25519_cases,
    "cards.json": documents.card_cases,
    "agreements.json": documents.agreement_cases,
    "cores.json": documents.core_cases,
    "entries.json": feed.entry_cases,
    "feed.json": feed.feed_cases,
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
