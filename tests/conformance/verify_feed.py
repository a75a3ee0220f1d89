"""Verify that entries are what a feed's signed head and its receipt cover, without Apostille.

    python verify_feed.py ENTRIES CHECKPOINT LOG_KEY [RECEIPT RECEIVER_KEY]

ENTRIES is a text file with one line for each entry, from sequence number 0 on: the entry's bytes in hexadecimal, or
`erased LEAF_HASH` for one of which only the leaf hash is left. CHECKPOINT and RECEIPT are files with signed notes, or
the same file. Keys are written NAME+HEX_PUBLIC_KEY: the log key's name is the feed's origin line, the receiver's is its
node id.

Has `verify_checkpoint.py`, which lies beside this file, verify the signatures: the sender's on both notes, the
receiver's on the receipt. Then computes the root of RFC 6962 over as many entries as each note counts, and compares.
Prints what they cover. Exit status 0 if all of it holds, else 1.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

VERIFY_CHECKPOINT = Path(__file__).with_name("verify_checkpoint.py")


def leaf(line: str) -> bytes:
    """RFC 6962 2.1: the hash of one entry; of an erased one it is all that is left."""
    if line.startswith("erased "):
        return bytes.fromhex(line.removeprefix("erased "))
    return hashlib.sha256(b"\x00" + bytes.fromhex(line)).digest()


def root(leaves: list[bytes]) -> bytes:
    """RFC 6962 2.1, level by level: the last node of an odd level moves up as it is."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    while len(leaves) > 1:
        pairs = [leaves[i : i + 2] for i in range(0, len(leaves), 2)]
        leaves = [hashlib.sha256(b"\x01" + p[0] + p[1]).digest() if len(p) == 2 else p[0] for p in pairs]
    return leaves[0]


def covered(note: str, keys: list[str], leaves: list[bytes]) -> str:
    """What the note in a file covers, in one line. Raises ValueError."""
    done = subprocess.run([sys.executable, VERIFY_CHECKPOINT, note, *keys], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ValueError(f"{note}: {done.stderr.strip()}")
    origin, size, signed_root, *times = done.stdout.splitlines()
    count = int(size.removeprefix("size "))
    if origin.removeprefix("origin ") != keys[0].partition("+")[0]:
        raise ValueError("the log key is named after another feed")
    if count > len(leaves):
        raise ValueError(f"the note counts {count} entries, {len(leaves)} are given")
    if signed_root != f"root {root(leaves[:count]).hex()}":
        raise ValueError(f"the first {count} entries have another root than was signed")
    return ", ".join([origin, f"{count} entries", signed_root, *times])


def main(arguments: list[str]) -> int:
    """Exit status 0 or 1."""
    if len(arguments) not in (3, 5):
        print(__doc__, file=sys.stderr)
        return 1
    log = f"{arguments[2]}+log"
    try:
        leaves = [leaf(line) for line in Path(arguments[0]).read_text(encoding="ascii").splitlines()]
        lines = [f"signed: {covered(arguments[1], [log], leaves)}"]
        if len(arguments) == 5:
            lines.append(f"received: {covered(arguments[3], [log, f'{arguments[4]}+cosigner'], leaves)}")
    except ValueError as e:
        print(f"does not hold: {e}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
