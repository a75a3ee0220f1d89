"""The one Ed25519 verdict: libsodium against RFC 8032 arithmetic written out here, on every published case."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from federation import ed25519
from federation.errors import MalformedError, SignatureError

# RFC 8032 5.1, in affine coordinates: slow, and small enough to be checked by eye against the text.
P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
SIGN = 1 << 255
Point = tuple[int, int]
IDENTITY: Point = (0, 1)

# Of CCTV's flags: components of small order alone, and a challenge hashed over a re-encoded key, do not refuse.
REFUSED_FLAGS = {"low_order_A", "low_order_R", "non_canonical_A", "non_canonical_R", "low_order_residue"}


def add(a: Point, b: Point) -> Point:
    (x1, y1), (x2, y2) = a, b
    t = D * x1 * x2 * y1 * y2
    return (x1 * y2 + x2 * y1) * pow(1 + t, -1, P) % P, (y1 * y2 + x1 * x2) * pow(1 - t, -1, P) % P


def multiply(n: int, a: Point) -> Point:
    """RFC 8032 5.1.4: the same addition with denominators kept apart, to divide only once."""

    def plus(p: tuple[int, int, int, int], q: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        left, right = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
        c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
        e, f, g, h = right - left, d - c, d + c, right + left
        return e * f % P, g * h % P, f * g % P, e * h % P

    total, power = (0, 1, 1, 0), (a[0], a[1], 1, a[0] * a[1] % P)
    while n:
        if n & 1:
            total = plus(total, power)
        power, n = plus(power, power), n >> 1
    inverse = pow(total[2], -1, P)
    return total[0] * inverse % P, total[1] * inverse % P


def point_bytes(a: Point) -> bytes:
    return (a[1] | (a[0] & 1) << 255).to_bytes(32, "little")


def point_of(raw: bytes) -> Point | None:
    """The point that `raw` encodes, canonical or not, or None (RFC 8032 5.1.3 without its range check)."""
    number = int.from_bytes(raw, "little")
    y = number % SIGN % P
    u, v = (y * y - 1) % P, (D * y * y + 1) % P
    x = u * pow(v, 3, P) * pow(u * pow(v, 7, P), (P - 5) // 8, P) % P
    if v * x * x % P != u:
        x = x * pow(2, (P - 1) // 4, P) % P
        if v * x * x % P != u:
            return None
    if x & 1 != number >> 255:
        x = (P - x) % P
    return x, y


BASE = point_of((4 * pow(5, -1, P) % P).to_bytes(32, "little"))


def verdict(key: bytes, signature: bytes, message: bytes) -> str:
    """ "holds", or the number of the first of the module's rules that is broken."""
    if len(key) != 32 or len(signature) != 64:
        return "1 length"
    r, s = signature[:32], int.from_bytes(signature[32:], "little")
    if s >= L:
        return "2 S"
    a = point_of(key)
    if a is None or int.from_bytes(key, "little") % SIGN >= P:
        return "3 A"
    if multiply(8, a) == IDENTITY:
        return "4 A small"
    r_point = point_of(r)
    if r_point is not None and multiply(8, r_point) == IDENTITY:
        return "5 R small"
    k = int.from_bytes(hashlib.sha512(r + key + message).digest(), "little") % L
    assert BASE is not None
    if point_bytes(add(multiply(s, BASE), multiply(k, (P - a[0], a[1])))) != r:
        return "6 equation"
    return "holds"


def judge(key: bytes, signature: bytes, message: bytes) -> str:
    """The module's verdict beside the independent one, which it must equal; returns the latter."""
    expected = verdict(key, signature, message)
    if expected == "holds":
        ed25519.verify(key, signature, message)
    else:
        with pytest.raises(SignatureError):
            ed25519.verify(key, signature, message)
    return expected


def small_order_points() -> list[Point]:
    """The eight points whose order divides 8: multiples of L times some point that has the full order 8L."""
    for y in range(2, 100):
        full = point_of(y.to_bytes(32, "little"))
        if full is not None and multiply(4, eighth := multiply(L, full)) != IDENTITY:
            return [multiply(n, eighth) for n in range(8)]
    raise AssertionError("every other point has order 8L")


def encodings(a: Point) -> list[bytes]:
    """Every 32 bytes that a lenient reader takes for `a`."""
    found = []
    for y in (a[1], a[1] + P):
        found += [raw for sign in (0, SIGN) if y < SIGN and point_of(raw := (y | sign).to_bytes(32, "little")) == a]
    return found


SEED = hashlib.sha256(b"apostille test key").digest()
KEY = ed25519.public_key(SEED)


def test_sign_then_verify() -> None:
    signature = ed25519.sign(SEED, b"a message")
    assert judge(KEY, signature, b"a message") == "holds"
    assert judge(KEY, signature, b"another message") == "6 equation"
    assert ed25519.check_public_key(KEY) == KEY


@pytest.mark.parametrize("bit", range(0, 512, 7))
@pytest.mark.invariant("I5")
def test_one_flipped_bit_is_refused(bit: int) -> None:
    signature = bytearray(ed25519.sign(SEED, b"a message"))
    signature[bit // 8] ^= 1 << bit % 8
    assert judge(KEY, bytes(signature), b"a message") != "holds"


def test_bytes_may_not_move_between_signature_and_message() -> None:
    signature = ed25519.sign(SEED, b"a message")
    for key, cut, rest in [
        (KEY, signature[:63], signature[63:] + b"a message"),
        (KEY, signature + b"a", b" message"),
        (KEY + b"\x00", signature, b"a message"),
        (KEY[:31], signature, b"a message"),
    ]:
        assert judge(key, cut, rest) == "1 length"


def test_a_second_s_for_the_same_signature_is_refused() -> None:
    signature = ed25519.sign(SEED, b"a message")
    for times in range(1, 16):
        s = int.from_bytes(signature[32:], "little") + times * L
        if s < 1 << 256:
            assert judge(KEY, signature[:32] + s.to_bytes(32, "little"), b"a message") == "2 S"


def test_small_order_points_are_refused_in_every_encoding() -> None:
    """With such a key, R = A and S = 0 hold for one message in eight or more: nobody signed anything."""
    assert BASE is not None
    zero = bytes(32)
    outcomes: Counter[str] = Counter()
    for small in small_order_points():
        for raw in encodings(small):
            outcomes[judge(raw, raw + zero, b"forged")] += 1
            outcomes[judge(raw, point_bytes(BASE) + (1).to_bytes(32, "little"), b"forged")] += 1
            with pytest.raises(MalformedError):
                ed25519.check_public_key(raw)
    for small in small_order_points():
        for raw in encodings(small):  # as R, S chosen by the holder of the key so that the equation holds
            a = int.from_bytes(clamp(hashlib.sha512(SEED).digest()[:32]), "little")
            k = int.from_bytes(hashlib.sha512(raw + KEY + b"m").digest(), "little")
            outcomes[judge(KEY, raw + (k * a % L).to_bytes(32, "little"), b"m")] += 1
    assert set(outcomes) == {"3 A", "4 A small", "5 R small"}
    assert outcomes["5 R small"] == sum(len(encodings(small)) for small in small_order_points()) == 14


def clamp(raw: bytes) -> bytes:
    """RFC 8032 5.1.5 step 2."""
    return bytes([raw[0] & 248, *raw[1:31], raw[31] & 127 | 64])


def test_mixed_order_keys_verify_by_the_exact_equation_but_are_not_enrolled() -> None:
    base_key = point_of(KEY)
    assert base_key is not None
    a = int.from_bytes(clamp(hashlib.sha512(SEED).digest()[:32]), "little")
    assert BASE is not None
    outcomes: Counter[str] = Counter()
    mixed = point_bytes(add(base_key, small_order_points()[1]))
    for n in range(24):
        r = point_bytes(multiply(n + 2, BASE))
        k = int.from_bytes(hashlib.sha512(r + mixed + b"m").digest(), "little") % L
        outcomes[judge(mixed, r + ((n + 2 + k * a) % L).to_bytes(32, "little"), b"m")] += 1
    assert outcomes["holds"] >= 1  # one in eight: the residue of k modulo 8 decides
    assert outcomes["6 equation"] >= 1  # the cofactor would have let all of them pass
    with pytest.raises(MalformedError):
        ed25519.check_public_key(mixed)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        KEY[:31],
        KEY + b"\x00",
        bytes(32),
        (2).to_bytes(32, "little"),  # no point has this y
        (P + 3).to_bytes(32, "little"),  # y = 3 is a point; this is its second spelling
        b"\xff" * 32,
    ],
)
def test_what_is_not_a_key_is_not_enrolled(raw: bytes) -> None:
    with pytest.raises(MalformedError):
        ed25519.check_public_key(raw)


@pytest.mark.corpora
def test_wycheproof(corpora: Path) -> None:
    document: dict[str, Any] = json.loads((corpora / "crypto/wycheproof/ed25519_test.json").read_text())
    outcomes: Counter[str] = Counter()
    for group in document["testGroups"]:
        key = bytes.fromhex(group["publicKey"]["pk"])
        for case in group["tests"]:
            expected = judge(key, bytes.fromhex(case["sig"]), bytes.fromhex(case["msg"]))
            assert (expected == "holds") == (case["result"] == "valid"), case["tcId"]
            outcomes["accepted" if expected == "holds" else "refused"] += 1
    assert outcomes.total() == document["numberOfTests"]
    assert outcomes == {"accepted": 50, "refused": 33}


@pytest.mark.corpora
def test_cctv(corpora: Path) -> None:
    """CCTV gives flags, not verdicts: the flags decide here where they can, and must agree with the arithmetic."""
    outcomes: Counter[str] = Counter()
    for case in json.loads((corpora / "crypto/cctv-ed25519/ed25519vectors.json").read_text()):
        flags = set(case["flags"] or [])
        key, signature = bytes.fromhex(case["key"]), bytes.fromhex(case["sig"])
        expected = judge(key, signature, case["msg"].encode())
        assert (expected != "holds") == bool(flags & REFUSED_FLAGS), case["number"]
        outcomes["accepted" if expected == "holds" else "refused"] += 1
    assert outcomes == {"accepted": 26, "refused": 482}
