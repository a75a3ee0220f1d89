"""Merkle trees over SHA-256 (RFC 6962 2.1; algorithms of RFC 9162 2.1): what makes a feed's history unchangeable.

A `RightEdge` is all that an append needs: the roots of the perfect subtrees that make up a tree of `size` leaves, at
most 63 hashes. Receivers keep one to check that each page continues what they hold. Proofs are for auditors; they are
made from the leaf hashes, which are kept for ever.

A leaf is always its *leaf hash* here (`leaf_hash` of the entry's bytes): erased entries leave only that behind. Leaf
and node hashes have different prefixes, so that a node can never be passed off as a leaf. Subtree proofs are left out.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from federation.errors import MalformedError, SignatureError, UsageError
from federation.limits import HASH_BYTES

MAX_TREE_SIZE = (1 << 63) - 1  # sizes are signed 64-bit integers in databases
_SIZE_BYTES = 8


def leaf_hash(data: bytes) -> bytes:
    """The leaf hash (32 bytes) of an entry's bytes. RFC 6962 2.1."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash (32 bytes) of an inner node over its two children's hashes. RFC 6962 2.1."""
    return hashlib.sha256(b"\x01" + left + right).digest()


@dataclass(frozen=True, slots=True)
class RightEdge:
    """A tree of `size` leaves: the roots of its perfect subtrees, largest first. MalformedError if they do not fit."""

    size: int
    hashes: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.size <= MAX_TREE_SIZE or len(self.hashes) != self.size.bit_count():
            raise MalformedError("right edge: the number of hashes does not follow from the size")
        if any(len(h) != HASH_BYTES for h in self.hashes):
            raise MalformedError(f"right edge: a hash has {HASH_BYTES} bytes")

    def append(self, leaf: bytes) -> Self:
        """The edge of the tree with one more leaf hash."""
        return self.extend((leaf,))

    def extend(self, leaves: Iterable[bytes]) -> Self:
        """The edge of the tree with these leaf hashes after the present ones. MalformedError if one is not 32 bytes."""
        hashes, size = list(self.hashes), self.size
        for leaf in leaves:
            if len(leaf) != HASH_BYTES:
                raise MalformedError(f"a leaf hash has {HASH_BYTES} bytes")
            node, bits = leaf, size
            while bits & 1:  # a perfect subtree of this height is already there: the two become one
                node = node_hash(hashes.pop(), node)
                bits >>= 1
            hashes.append(node)
            size += 1
        return type(self)(size, tuple(hashes))

    def root(self) -> bytes:
        """The tree's root hash (32 bytes); SHA-256 of nothing for the empty tree. RFC 6962 2.1."""
        if not self.hashes:
            return hashlib.sha256(b"").digest()
        *larger, node = self.hashes
        for left in reversed(larger):
            node = node_hash(left, node)
        return node

    def encode(self) -> bytes:
        """The edge for storage: the size as 8 big-endian bytes, then the hashes, largest subtree first."""
        return self.size.to_bytes(_SIZE_BYTES, "big") + b"".join(self.hashes)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The inverse of `encode`. Raises MalformedError for any bytes that `encode` does not make."""
        if len(data) < _SIZE_BYTES or (len(data) - _SIZE_BYTES) % HASH_BYTES:
            raise MalformedError("right edge: cut off")
        hashes = tuple(data[i : i + HASH_BYTES] for i in range(_SIZE_BYTES, len(data), HASH_BYTES))
        return cls(int.from_bytes(data[:_SIZE_BYTES], "big"), hashes)


EMPTY = RightEdge(0, ())


def root(leaves: Iterable[bytes]) -> bytes:
    """The root hash (32 bytes) over these leaf hashes."""
    return EMPTY.extend(leaves).root()


def inclusion_proof(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The audit path, leaf's sibling first, for the leaf at `index` (from 0) in the tree of all these leaf hashes.

    RFC 9162 2.1.3.1. Raises UsageError if there is no such leaf.
    """
    if not 0 <= index < len(leaves):
        raise UsageError(f"no leaf {index} in a tree of {len(leaves)}: leaves count from 0")
    path: list[bytes] = []
    while len(leaves) > 1:
        split = _split(len(leaves))
        if index < split:
            path.append(root(leaves[split:]))
            leaves = leaves[:split]
        else:
            path.append(root(leaves[:split]))
            leaves, index = leaves[split:], index - split
    return tuple(reversed(path))


def consistency_proof(leaves: Sequence[bytes], first_size: int) -> tuple[bytes, ...]:
    """The proof that the tree of all these leaf hashes begins with the tree of the first `first_size` of them.

    RFC 9162 2.1.4.1. Raises UsageError unless 0 < first_size <= len(leaves); every tree begins with the empty one.
    """
    if not 0 < first_size <= len(leaves):
        raise UsageError(f"no consistency proof from size {first_size} to size {len(leaves)}")
    path: list[bytes] = []
    known = True  # the verifier has the root of what is left of the first tree
    while first_size < len(leaves):
        split = _split(len(leaves))
        if first_size <= split:
            path.append(root(leaves[split:]))
            leaves = leaves[:split]
        else:
            path.append(root(leaves[:split]))
            leaves, first_size, known = leaves[split:], first_size - split, False
    if not known:
        path.append(root(leaves))
    return tuple(reversed(path))


def root_from_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes]) -> bytes:
    """The root (32 bytes) that follows if `leaf` (a leaf hash) stands at `index` in a tree of `size` leaves.

    RFC 9162 2.1.3.2. Raises SignatureError if `index` is not below `size` or the proof has the wrong length.
    """
    if not 0 <= index < size:  # step 1
        raise SignatureError("inclusion proof: the index is not below the size")
    if any(len(h) != HASH_BYTES for h in (leaf, *proof)):  # else one byte could move from a hash to its neighbour
        raise SignatureError(f"inclusion proof: a hash has {HASH_BYTES} bytes")
    fn, sn, node = index, size - 1, leaf  # steps 2 and 3
    for sibling in proof:  # step 4
        if sn == 0:
            raise SignatureError("inclusion proof: too long")
        if fn & 1 or fn == sn:
            node = node_hash(sibling, node)
            fn, sn = _up_while_even(fn, sn)
        else:
            node = node_hash(node, sibling)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0:  # step 5
        raise SignatureError("inclusion proof: too short")
    return node


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """Return if `proof` shows the leaf hash `leaf` at `index` in the tree of `size` leaves under `root`.

    Raises SignatureError otherwise.
    """
    if root_from_inclusion(index, size, leaf, proof) != root:
        raise SignatureError("inclusion proof: leads to another root")


def verify_consistency(size1: int, size2: int, proof: Sequence[bytes], root1: bytes, root2: bytes) -> None:
    """Return if `proof` shows that the tree of `size2` leaves under `root2` begins with that of `size1` under `root1`.

    RFC 9162 2.1.4.2. Raises SignatureError otherwise, and for a first size of 0, which would prove nothing.
    """
    if not 0 < size1 <= size2:
        raise SignatureError("consistency proof: the sizes do not grow from 1")
    if size1 == size2:
        if proof or root1 != root2:
            raise SignatureError("consistency proof: one size, but two roots or a proof between them")
        return
    path = list(proof)
    if size1 & (size1 - 1) == 0:  # step 2: the first tree is perfect, its root opens the path
        path.insert(0, root1)
    if not path:  # step 1
        raise SignatureError("consistency proof: empty")
    fn, sn = size1 - 1, size2 - 1  # step 3
    while fn & 1:  # step 4
        fn, sn = fn >> 1, sn >> 1
    first = second = path[0]  # step 5
    for sibling in path[1:]:  # step 6
        if sn == 0:
            raise SignatureError("consistency proof: too long")
        if fn & 1 or fn == sn:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
            fn, sn = _up_while_even(fn, sn)
        else:
            second = node_hash(second, sibling)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0 or first != root1 or second != root2:  # step 7
        raise SignatureError("consistency proof: too short, or leads to other roots")


def _up_while_even(fn: int, sn: int) -> tuple[int, int]:
    """RFC 9162 2.1.3.2 step 4b(ii): climb while the node is an only child, which has no sibling in the proof."""
    while fn and not fn & 1:
        fn, sn = fn >> 1, sn >> 1
    return fn, sn


def _split(size: int) -> int:
    """The largest power of two below `size` (at least 2): where RFC 6962 2.1 divides a tree."""
    return 1 << ((size - 1).bit_length() - 1)
