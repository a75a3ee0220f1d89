"""Signed heads and receipts: named vectors, made without this project's code and judged twice, and the attacks."""

import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from federation import ed25519
from federation.checkpoint import (
    MAX_EPOCH,
    MAX_TIME_S,
    Checkpoint,
    VerifierKey,
    cosign,
    open_checkpoint,
    open_cosignature,
    origin_line,
    parse_origin_line,
    sign,
    sign_besides,
    with_one_line,
)
from federation.errors import MalformedError, RemoteError, SignatureError, TooLargeError, WrongFeedError
from federation.limits import MAX_NOTE_BYTES, MAX_NOTE_SIGNATURES
from federation.model import NodeId

TESTS = Path(__file__).parents[1]
VECTORS: dict[str, Any] = json.loads((TESTS / "vectors/v1/checkpoint.json").read_text(encoding="utf-8"))
CASES: list[dict[str, Any]] = VECTORS["cases"]

FR, DE = NodeId("cert.fr.example"), NodeId("cert.de.example")
ORIGIN = origin_line(FR, DE, 1)
TIME = 1_795_000_000


def key_pair(label: str) -> tuple[bytes, Callable[[bytes], bytes]]:
    seed = hashlib.sha256(label.encode()).digest()
    return ed25519.public_key(seed), partial(ed25519.sign, seed)


LOG_PUBLIC, LOG_SIGN = key_pair(VECTORS["log_key"]["seed_label"])
DE_PUBLIC, DE_SIGN = key_pair(VECTORS["cosigner_key"]["seed_label"])
LOG = VerifierKey(ORIGIN, LOG_PUBLIC)
COSIGNER = VerifierKey(DE, DE_PUBLIC)
HEAD = Checkpoint(ORIGIN, 42, hashlib.sha256(b"root").digest())
NOTE = sign(HEAD, ORIGIN, LOG_SIGN, LOG_PUBLIC)


def named(name: str) -> dict[str, Any]:
    return next(case for case in CASES if case["name"] == name)


def outcome(case: dict[str, Any]) -> dict[str, Any]:
    """What our module says of a vector, in the vectors' own words."""
    note = base64.b64decode(case["note"])
    try:
        checkpoint = open_checkpoint(note, case["origin"], LOG)
        seen: dict[str, Any] = {"size": checkpoint.size, "root": checkpoint.root.hex()}
        if case["cosigned"]:
            seen["time"] = open_cosignature(note, COSIGNER)
    except RemoteError as e:
        return {"error": e.code}
    return seen


def verify_elsewhere(note: bytes, *keys: str) -> subprocess.CompletedProcess[str]:
    """The stand-alone verifier, in a process of its own."""
    command = [sys.executable, "-I", str(TESTS / "conformance/verify_checkpoint.py"), "-", *keys]
    done = subprocess.run(command, input=note, capture_output=True, check=False, timeout=60)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["name"]))
def test_vector(case: dict[str, Any]) -> None:
    assert outcome(case) == case["expect"]


def test_the_vectors_hold_for_the_stand_alone_verifier() -> None:
    """The same judgement by other code; only our own two limits (TOO_LARGE) are not known to it."""
    namespace: dict[str, Any] = {"__name__": "verify_checkpoint"}
    source = (TESTS / "conformance/verify_checkpoint.py").read_text(encoding="utf-8")
    assert "federation" not in source
    exec(compile(source, "verify_checkpoint.py", "exec"), namespace)  # noqa: S102  # one process, not one a case
    checked = 0
    for case in CASES:
        if case["expect"].get("error") == "TOO_LARGE":
            continue
        keys = [f"{ORIGIN}+{LOG_PUBLIC.hex()}+log"]
        if case["cosigned"]:
            keys.append(f"{DE}+{DE_PUBLIC.hex()}+cosigner")
        try:
            report = namespace["check"](base64.b64decode(case["note"]), keys)
        except (ValueError, namespace["InvalidSignature"]):
            report = []
        same_feed = report[:1] == [f"origin {case['origin']}"]
        assert same_feed == ("error" not in case["expect"]), case["name"]
        if same_feed:
            assert report[1:3] == [f"size {case['expect']['size']}", f"root {case['expect']['root']}"]
            assert [line.split()[2].rstrip(",") for line in report[3:]] == [str(t) for t in times(case)]
        checked += 1
    assert checked == len(CASES) - 2


def times(case: dict[str, Any]) -> list[int]:
    return [case["expect"]["time"]] if "time" in case["expect"] else []


def test_we_sign_the_very_bytes_of_the_vectors() -> None:
    assert base64.b64decode(named("log signature only")["note"]) == NOTE
    cosigned = cosign(NOTE, DE, TIME, DE_SIGN, DE_PUBLIC)
    assert base64.b64decode(named("with the receiver's cosignature")["note"]) == cosigned


def test_the_stand_alone_verifier_as_a_process() -> None:
    cosigned = cosign(NOTE, DE, TIME, DE_SIGN, DE_PUBLIC)
    keys = (f"{ORIGIN}+{LOG_PUBLIC.hex()}+log", f"{DE}+{DE_PUBLIC.hex()}+cosigner")
    honest = verify_elsewhere(cosigned, *keys)
    assert honest.returncode == 0, honest.stderr
    assert honest.stdout.splitlines() == [
        f"origin {ORIGIN}",
        "size 42",
        f"root {HEAD.root.hex()}",
        f"cosigned {DE} {TIME}, 2026-11-18T11:06:40Z",
    ]
    tampered = verify_elsewhere(cosigned.replace(b"\n42\n", b"\n41\n"), *keys)
    assert (tampered.returncode, tampered.stdout) == (1, "")
    assert verify_elsewhere(NOTE, *keys).returncode == 1
    assert verify_elsewhere(NOTE).returncode == 1


@pytest.mark.invariant("I8")
def test_one_flipped_bit_anywhere_is_refused() -> None:
    for place in range(len(NOTE) * 8):
        flipped = bytearray(NOTE)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(RemoteError):
            open_checkpoint(bytes(flipped), ORIGIN, LOG)


def test_another_feed_is_named_as_such_before_its_signature_is_judged() -> None:
    other = origin_line(FR, DE, 2)
    note = sign(Checkpoint(other, 42, HEAD.root), other, LOG_SIGN, LOG_PUBLIC)
    assert open_checkpoint(note, other, VerifierKey(other, LOG_PUBLIC)).size == 42
    with pytest.raises(WrongFeedError):
        open_checkpoint(note, ORIGIN, LOG)


@pytest.mark.invariant("I9")
def test_a_receipt_is_for_one_body_and_one_time() -> None:
    receipt = cosign(NOTE, DE, TIME, DE_SIGN, DE_PUBLIC)
    assert open_cosignature(receipt, COSIGNER) == TIME
    line = receipt[len(NOTE) :]
    grown = sign(Checkpoint(ORIGIN, 43, HEAD.root), ORIGIN, LOG_SIGN, LOG_PUBLIC)
    assert open_checkpoint(grown + line, ORIGIN, LOG).size == 43  # the log's part is honest
    with pytest.raises(SignatureError):
        open_cosignature(grown + line, COSIGNER)


def test_a_log_signature_is_no_cosignature_and_the_reverse() -> None:
    """The same key and name in both roles: the algorithm byte in the key id and the signed text keep them apart."""
    own = cosign(NOTE, ORIGIN, TIME, LOG_SIGN, LOG_PUBLIC)
    assert open_cosignature(own, LOG) == TIME
    with pytest.raises(SignatureError):
        open_cosignature(NOTE, LOG)


def test_cosigning_is_refused_where_the_result_would_be() -> None:
    once = cosign(NOTE, DE, TIME, DE_SIGN, DE_PUBLIC)
    with pytest.raises(SignatureError):
        cosign(once, DE, TIME + 1, DE_SIGN, DE_PUBLIC)
    for time in (0, -1, 1 << 63):
        with pytest.raises(MalformedError):
            cosign(NOTE, DE, time, DE_SIGN, DE_PUBLIC)
    for not_a_note in (b"", HEAD.body(), b"text\n\n" + NOTE.split(b"\n\n")[1]):
        with pytest.raises(MalformedError):
            cosign(not_a_note, DE, TIME, DE_SIGN, DE_PUBLIC)
    full = NOTE
    for n in range(MAX_NOTE_SIGNATURES - 1):
        full = cosign(full, f"witness-{n}.example", TIME, DE_SIGN, DE_PUBLIC)
    with pytest.raises(TooLargeError):
        cosign(full, DE, TIME, DE_SIGN, DE_PUBLIC)


def test_a_second_key_signs_the_same_head_besides_the_first() -> None:
    """A rotation: readers of either key read the same head, and what it says is read without a key too."""
    other_public, other_sign = key_pair("the next log key")
    other = VerifierKey(ORIGIN, other_public)
    both = sign_besides(NOTE, ORIGIN, other_sign, other_public)
    assert both.startswith(NOTE)
    assert open_checkpoint(both, ORIGIN, LOG) == open_checkpoint(both, ORIGIN, other) == Checkpoint.of(both) == HEAD
    for line, key in ((NOTE, LOG), (sign(HEAD, ORIGIN, other_sign, other_public), other)):
        assert with_one_line(cosign(both, DE, TIME, DE_SIGN, DE_PUBLIC), key) == line
    for public, signer in ((LOG_PUBLIC, LOG_SIGN), (other_public, other_sign)):
        with pytest.raises(SignatureError, match="signed it already"):
            sign_besides(both, ORIGIN, signer, public)
    with pytest.raises(SignatureError, match="0 signatures by the wanted key"):
        with_one_line(both, COSIGNER)
    # our own cosignature under this name and key is no signature of that kind
    cosigned = cosign(sign(HEAD, ORIGIN, other_sign, other_public), ORIGIN, TIME, LOG_SIGN, LOG_PUBLIC)
    assert open_checkpoint(sign_besides(cosigned, ORIGIN, LOG_SIGN, LOG_PUBLIC), ORIGIN, LOG) == HEAD


def test_signing_besides_is_refused_where_the_result_would_be() -> None:
    other_public, other_sign = key_pair("the next log key")
    for not_a_note in (b"", HEAD.body()):
        with pytest.raises(MalformedError):
            sign_besides(not_a_note, ORIGIN, other_sign, other_public)
    full = NOTE
    for n in range(MAX_NOTE_SIGNATURES - 1):
        full = cosign(full, f"witness-{n}.example", TIME, DE_SIGN, DE_PUBLIC)
    with pytest.raises(TooLargeError):
        sign_besides(full, ORIGIN, other_sign, other_public)


def test_the_last_values_in_range_are_read() -> None:
    assert parse_origin_line(origin_line(FR, DE, MAX_EPOCH)) == (FR, DE, MAX_EPOCH)
    for time in (1, MAX_TIME_S):
        assert open_cosignature(cosign(NOTE, DE, time, DE_SIGN, DE_PUBLIC), COSIGNER) == time
    largest = sign(Checkpoint(ORIGIN, (1 << 63) - 1, HEAD.root), ORIGIN, LOG_SIGN, LOG_PUBLIC)
    assert open_checkpoint(largest, ORIGIN, LOG).size == (1 << 63) - 1
    with pytest.raises(TooLargeError, match=f"{MAX_NOTE_BYTES + 1} bytes"):
        open_checkpoint(b"x" * (MAX_NOTE_BYTES + 1), ORIGIN, LOG)
    with pytest.raises(MalformedError):
        open_checkpoint(b"x" * MAX_NOTE_BYTES, ORIGIN, LOG)


@pytest.mark.parametrize(
    ("origin", "size", "root"),
    [
        ("", 0, bytes(32)),
        ("a b", 0, bytes(32)),
        ("a\nb", 0, bytes(32)),
        ("a", -1, bytes(32)),
        ("a", 1 << 63, bytes(32)),
        ("a", 0, bytes(31)),
        ("a", 0, b""),
    ],
)
def test_a_checkpoint_checks_itself(origin: str, size: int, root: bytes) -> None:
    with pytest.raises(MalformedError):
        Checkpoint(origin, size, root)


@pytest.mark.parametrize(("name", "key"), [("", bytes(32)), ("a b", bytes(32)), ("a+b", bytes(32)), ("a", bytes(31))])
def test_a_verifier_key_checks_itself(name: str, key: bytes) -> None:
    with pytest.raises(MalformedError):
        VerifierKey(name, key)


def test_origin_lines() -> None:
    assert ORIGIN == "cert.fr.example/feeds/cert.de.example/1"
    assert parse_origin_line(ORIGIN) == (FR, DE, 1)
    with pytest.raises(MalformedError):
        origin_line(FR, DE, 0)
    with pytest.raises(MalformedError):
        origin_line(NodeId("FR"), DE, 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cert.fr.example/feeds/cert.de.example",
        "cert.fr.example/feeds/cert.de.example/0",
        "cert.fr.example/feeds/cert.de.example/01",
        "cert.fr.example/feeds/cert.de.example/-1",
        "cert.fr.example/feeds/cert.de.example/1\n",
        "cert.fr.example/feeds/cert.de.example/\u0661",
        "cert.fr.example/feeds/cert.de.example/2147483648",
        "cert.fr.example/feed/cert.de.example/1",
        "cert.fr.example/feeds/x/cert.de.example/1",
        "Cert.fr.example/feeds/cert.de.example/1",
        "/feeds/cert.de.example/1",
    ],
)
def test_what_is_no_origin_line(text: str) -> None:
    with pytest.raises(MalformedError):
        parse_origin_line(text)


@pytest.mark.corpora
def test_a_real_logs_checkpoint(corpora: Path) -> None:
    """A Sunlight log's head reads as it should; its signature is of a type we do not take, so it opens for nobody."""
    tree = corpora / "crypto/tlog/sunlight-tree"
    note = (tree / "checkpoint").read_bytes()
    head = json.loads((tree / "log.v3.json").read_text())["final_tree_head"]
    checkpoint = Checkpoint.parse_body(note.split(b"\n\n")[0] + b"\n")
    assert checkpoint.size == head["tree_size"] == 300
    assert checkpoint.root == base64.b64decode(head["sha256_root_hash"])
    with pytest.raises(SignatureError):
        open_checkpoint(note, checkpoint.origin, VerifierKey(checkpoint.origin, LOG_PUBLIC))
