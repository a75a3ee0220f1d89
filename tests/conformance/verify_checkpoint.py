"""Verify a feed's checkpoint, and the receipts on it, without Apostille: the standard library and `cryptography` only.

    python verify_checkpoint.py NOTE_FILE|- NAME+HEX_PUBLIC_KEY+log|cosigner ...

Prints origin, size, root (hexadecimal), and the time of each cosignature. Exit status: 0 if the note is well formed and
every key named on the command line has exactly one signature on it that holds; else 1. Formats: C2SP signed-note,
tlog-checkpoint and tlog-cosignature (https://c2sp.org). Only Ed25519, and no extension lines.
"""

import base64
import hashlib
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

ALGORITHMS = {"log": 1, "cosigner": 4}


def check(note: bytes, keys: list[str]) -> list[str]:
    """The lines to print. Raises ValueError or InvalidSignature for a note that does not hold."""
    body, found, signatures = note.rpartition(b"\n\n")
    body += b"\n"
    origin, size, root, end = body.decode().split("\n")
    if not found or end or not re.fullmatch("0|[1-9][0-9]*", size) or int(size) >= 1 << 63 or not origin.isprintable():
        raise ValueError("not a checkpoint")
    root_bytes = canonical(root)
    if len(root_bytes) != 32 or not signatures.endswith(b"\n") or not keys:
        raise ValueError("not a signed checkpoint, or no key given")
    lines = []
    for line in signatures.decode()[:-1].split("\n"):
        dash, name, blob = line.split(" ")
        if dash != "\u2014" or not name.isprintable() or "+" in name or len(canonical(blob)) < 5:
            raise ValueError("not a signature line")
        lines.append((name, canonical(blob)))
    report = [f"origin {origin}", f"size {size}", f"root {root_bytes.hex()}"]
    for key in keys:
        name, public, role = key.split("+")
        raw = bytes.fromhex(public)
        key_id = hashlib.sha256(name.encode() + b"\n" + bytes([ALGORITHMS[role]]) + raw).digest()[:4]
        mine = [blob[4:] for other, blob in lines if (other, blob[:4]) == (name, key_id)]
        if len(mine) != 1:
            raise ValueError(f"{len(mine)} signatures by {name} as {role}")
        message, signature = body, mine[0]
        if role == "cosigner":
            seconds, signature = int.from_bytes(signature[:8], "big"), signature[8:]
            if not 0 < seconds < 1 << 63:
                raise ValueError("cosignature time out of range")
            message = f"cosignature/v1\ntime {seconds}\n".encode() + body
            when = f", {datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}" if seconds < 1 << 37 else ""
            report.append(f"cosigned {name} {seconds}{when}")
        Ed25519PublicKey.from_public_bytes(raw).verify(signature, message)
    return report


def canonical(text: str) -> bytes:
    """The bytes of standard base64, spelt in the one canonical way."""
    data = base64.b64decode(text, validate=True)
    if base64.b64encode(data).decode() != text:
        raise ValueError("base64 is not canonical")
    return data


def main(arguments: list[str]) -> int:
    """Exit status 0 or 1."""
    if len(arguments) < 2:
        print(__doc__, file=sys.stderr)
        return 1
    note = sys.stdin.buffer.read() if arguments[0] == "-" else Path(arguments[0]).read_bytes()
    try:
        report = check(note, arguments[1:])
    except (ValueError, KeyError, InvalidSignature) as e:
        print(f"does not hold: {type(e).__name__} {e}", file=sys.stderr)
        return 1
    print("\n".join(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
