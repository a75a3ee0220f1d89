"""The published examples of RFC 9901 and of its reference implementation, every one of them, through `process`.

They are signed with ES256 under other types and carry `exp`, so our profile refuses each; here `cryptography` checks
their signatures and the general algorithm does the rest. Not covered, because an advisory has no holder and no JSON
serialisation: the key binding JWTs at the end of presentations are cut off, and the two JSON-serialised examples are
taken apart by the test.
"""

import base64
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA256

from federation.base64url import b64url, from_b64url
from federation.errors import MalformedError
from federation.sdjwt import Disclosure, parse, process, read_header_and_payload, serialise, walk

COMPACT = {
    "examples/address_only_recursive",
    "examples/address_only_structured_one_open",
    "examples/complex_eidas",
    "examples/complex_eidas_proposal",
    "examples/complex_ekyc",
    "examples/simple",
    "examples/w3c-vc",
    "testcases/array_in_sd",
    "testcases/array_nested_in_plain",
    "testcases/array_none_disclosed",
    "testcases/array_of_nulls",
    "testcases/array_of_scalars",
    "testcases/array_recursive_sd",
    "testcases/array_recursive_sd_some_disclosed",
    "testcases/header_mod",
    "testcases/object_data_types",
}
JSON_SERIALISED = {"examples/json_serialization_general", "testcases/json_serialization_general"}
KEY_BINDING = {"examples/simple", "examples/w3c-vc", "testcases/header_mod"}  # of the compact ones
DISCLOSURES_IN_PRINT = 63
PRINTED = re.compile(
    r"SHA-256 Hash: `(?P<digest>[^`]+)`.*?Disclosure:(?P<text>.*?)\* Contents:\n(?P<json>.*?)\n\n", re.DOTALL
)


@dataclass(frozen=True)
class Example:
    """One folder: its core, and the disclosures of the issuance and of the presentation."""

    folder: Path
    core: bytes
    issued: tuple[bytes, ...]
    presented: tuple[bytes, ...]

    @property
    def payload(self) -> dict[str, Any]:
        payload: dict[str, Any] = json.loads(from_b64url(self.core.decode().split(".")[1]))
        return payload

    def file(self, name: str) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.folder / name).read_text())
        return value


def unwrapped(path: Path) -> str:
    """A file that was wrapped for print: a line break and the indentation after it mean nothing."""
    return re.sub(r"\n\s*", "", path.read_text())


def compact_parts(path: Path) -> tuple[bytes, tuple[bytes, ...]]:
    text = unwrapped(path)
    if not text.endswith("~"):
        with pytest.raises(MalformedError, match="key binding"):
            parse(text)
        text = text[: text.rindex("~") + 1]
    core, disclosures = parse(text)
    assert serialise(core, disclosures) == text
    return core, disclosures


def json_parts(path: Path) -> tuple[bytes, tuple[bytes, ...]]:
    value = json.loads(unwrapped(path))
    if isinstance(value, str):  # the reference implementation's folder has JSON in a JSON string
        value = json.loads(value)
    first = value["signatures"][0]
    core = ".".join([first["protected"], value["payload"], first["signature"]]).encode()
    return core, tuple(from_b64url(text) for text in first["header"]["disclosures"])


def example(corpora: Path, name: str) -> Example:
    folder = corpora / "crypto" / "sd-jwt" / name
    read, suffix = (json_parts, "json") if name in JSON_SERIALISED else (compact_parts, "txt")
    core, issued = read(folder / f"sd_jwt_issuance.{suffix}")
    again, presented = read(folder / f"sd_jwt_presentation.{suffix}")
    assert core == again
    return Example(folder, core, issued, presented)


def number(text: str) -> int:
    return int.from_bytes(from_b64url(text))


@pytest.mark.corpora
def test_every_example_is_accounted_for(corpora: Path) -> None:
    root = corpora / "crypto" / "sd-jwt"
    found = {str(path.parent.relative_to(root)) for path in root.glob("*/*/specification.yml")}
    assert found == COMPACT | JSON_SERIALISED
    assert len(found) == 18
    bound = {str(path.parent.relative_to(root)) for path in root.glob("*/*/kb_jwt_serialized.txt")}
    assert bound == KEY_BINDING | JSON_SERIALISED


EVERY = pytest.mark.parametrize("name", sorted(COMPACT | JSON_SERIALISED))


@pytest.mark.corpora
@EVERY
def test_the_signature_holds(corpora: Path, name: str) -> None:
    core = example(corpora, name).core
    settings = yaml.safe_load((corpora / "crypto" / "sd-jwt" / name.split("/")[0] / "settings.yml").read_text())
    jwk = settings["key_settings"]["issuer_keys"][0]
    key = ec.EllipticCurvePublicNumbers(number(jwk["x"]), number(jwk["y"]), ec.SECP256R1()).public_key()
    signed, _, signature = core.decode().rpartition(".")
    both = from_b64url(signature)
    der = utils.encode_dss_signature(int.from_bytes(both[:32]), int.from_bytes(both[32:]))
    key.verify(der, signed.encode(), ec.ECDSA(SHA256()))


@pytest.mark.corpora
@EVERY
def test_presentation_and_issuance_give_the_published_claims(corpora: Path, name: str) -> None:
    published = example(corpora, name)
    assert published.payload == published.file("sd_jwt_payload.json")

    shown = process(published.payload, published.presented)
    assert shown.claims == published.file("verified_contents.json")
    assert len(shown.nodes) == len(published.presented)

    everything = process(published.payload, published.issued)
    user_claims = published.file("user_claims.json")
    assert {n: v for n, v in everything.claims.items() if n in user_claims} == user_claims
    assert everything.claims.keys() - user_claims.keys() <= {"iss", "iat", "exp", "cnf"}
    assert walk(published.payload, published.issued) == everything.nodes


@pytest.mark.invariant("I5")
@pytest.mark.corpora
@EVERY
def test_our_profile_refuses_each(corpora: Path, name: str) -> None:
    core = example(corpora, name).core
    with pytest.raises(MalformedError, match="header"):
        read_header_and_payload(core)


@pytest.mark.corpora
def test_the_printed_digests_and_contents(corpora: Path) -> None:
    count = 0
    for path in sorted((corpora / "crypto" / "sd-jwt" / "examples").glob("*/disclosures.md")):
        for match in PRINTED.finditer(path.read_text() + "\n\n"):
            text = re.sub(r"[`\\\s]", "", match["text"])
            disclosure = Disclosure.parse(from_b64url(text))
            assert disclosure.digest == match["digest"]
            assert b64url(disclosure.raw) == text
            contents = json.loads("".join(line.strip("`\\ ") for line in match["json"].splitlines()))
            name = () if disclosure.name is None else (disclosure.name,)
            assert [disclosure.salt, *name, disclosure.value] == contents
            count += 1
    assert count == DISCLOSURES_IN_PRINT


@pytest.mark.parametrize(
    ("text", "digest"),
    [  # RFC 9901 4.2.3 and 4.2.4.2
        (
            "WyJfMjZiYzRMVC1hYzZxMktJNmNCVzVlcyIsICJmYW1pbHlfbmFtZSIsICJNw7ZiaXVzIl0",
            "X9yH0Ajrdm1Oij4tWso9UzzKJvPoDxwmuEcO3XAdRC0",
        ),
        ("WyJsa2x4RjVqTVlsR1RQVW92TU5JdkNBIiwgIkZSIl0", "w0I8EKcdCtUPkGCNUrfwVp2xEgNjtoIDlOxc9-PlOhs"),
    ],
)
def test_the_digests_in_the_text_of_the_rfc(text: str, digest: str) -> None:
    assert Disclosure.parse(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))).digest == digest
