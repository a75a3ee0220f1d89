"""A feed read again from its first entry on, and its tree built from the leaf hashes, which are kept for ever."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from federation.checkpoint import VerifierKey, open_cosignature
from federation.errors import RemoteError
from federation.merkle import EMPTY, RightEdge
from node.audit.holdings import Finding, told


@dataclass(slots=True, kw_only=True)
class Walk:
    """A feed as far as it was read, and its tree. Findings call its entries `called`.

    `size` counts its entries, those that are missing too; then it is not `whole`, and the tree is not known any more.
    """

    origin: str
    called: str
    size: int = 0
    whole: bool = True
    edge: RightEdge = EMPTY

    def along(
        self,
        entries: Iterator[tuple[Any, Any, Any]],
        advance: Callable[[], None],
        look: Callable[[str, Any, Any], Iterator[Finding]],
    ) -> Iterator[Finding]:
        """What `look` finds in each entry, whatever is wrong with those before it, and what is wrong with their order.

        `entries` are the numbers in their order, each with its row, None if that cannot be read, and what stands
        beside it; `look` gets the place, the row and what stands beside it.
        """
        for seq, entry, beside in entries:
            advance()
            if type(seq) is not int:
                yield Finding(f"feed {self.origin}", "an entry in it has no number")
                continue
            if seq != self.size:
                yield Finding(f"{self.called} {self.size} of {self.origin}", "it is not here")
                self.whole = False
            self.size = seq + 1
            place = f"{self.called} {seq} of {self.origin}"
            if entry is None:
                yield Finding(place, "it cannot be read")
                self.whole = False
                continue
            yield from told(place, self._grow(entry))
            yield from look(place, entry, beside)

    def _grow(self, entry: Any) -> Iterator[str]:
        """The tree with the entry in it; where its leaf hash is none, that is told, and the tree ends."""
        whole, self.whole = self.whole, False
        if whole:
            self.edge = self.edge.append(entry.leaf_hash)
            self.whole = True
        yield from ()  # what it has to tell is that it raises, and that is told by who reads it


def is_dated(note: bytes, keys: Iterable[VerifierKey]) -> bool:
    """Whether one of these keys has signed a head with its date."""
    return any(_holds(note, key) for key in keys)


def _holds(note: bytes, key: VerifierKey) -> bool:
    try:
        open_cosignature(note, key)
    except RemoteError:
        return False
    return True
