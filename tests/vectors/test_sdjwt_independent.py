"""Both ways against an implementation that none of us wrote: PyPI `sd-jwt`, with keys and signatures by `jwcrypto`.

A test peer only: it takes expired tokens and disclosures to which nothing refers.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jwcrypto.jwk import JWK
from sd_jwt.common import SDObj
from sd_jwt.issuer import SDJWTIssuer
from sd_jwt.verifier import SDJWTVerifier

from federation import ed25519
from federation.base64url import b64url
from federation.errors import MalformedError
from federation.sdjwt import (
    NOTHING,
    Disclosure,
    Hide,
    Node,
    Salts,
    conceal,
    parse,
    serialise,
    sign_core,
    verify,
    walk,
)

SEED = bytes(range(32))
KEY = ed25519.public_key(SEED)
THEIR_KEY = JWK(kty="OKP", crv="Ed25519", x=b64url(KEY), d=b64url(SEED))
ISS = "cert.fr.example"

names = st.text(min_size=1, max_size=6).filter(lambda name: name not in {"_sd", "_sd_alg", "..."})
floats = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8) | floats


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    members = inner | inner.map(Hide) | st.builds(Hide, inner, inner)
    return st.dictionaries(names, members, max_size=4) | st.lists(inner | inner.map(Hide), max_size=5)


values = st.recursive(scalars, containers, max_leaves=12)
documents = st.dictionaries(
    names.map("x{}".format), values | values.map(Hide) | st.builds(Hide, values, values), max_size=4
)
few = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def shown(value: Any, *, generalised: bool) -> Any:
    """`value` as a receiver sees it that gets everything, each in the one form or the other."""
    if isinstance(value, Hide):
        pick = generalised and value.generalised is not NOTHING
        return shown(value.generalised if pick else value.value, generalised=generalised)
    if isinstance(value, dict):
        return {name: shown(member, generalised=generalised) for name, member in value.items()}
    return [shown(element, generalised=generalised) for element in value] if isinstance(value, list) else value


def marked(value: Any) -> Any:
    """`value` marked as the peer marks it: names for members, values for elements. It knows no alternates."""
    if isinstance(value, dict):
        return {
            (SDObj(name) if isinstance(m, Hide) else name): marked(m.value if isinstance(m, Hide) else m)
            for name, m in value.items()
        }
    if isinstance(value, list):
        return [SDObj(marked(e.value)) if isinstance(e, Hide) else marked(e) for e in value]
    return value


salts = Salts(lambda size: hashlib.shake_256(b"entropy").digest(size))  # the same each time, for hypothesis


def their_reading(core: bytes, disclosures: Sequence[bytes]) -> dict[str, Any]:
    """The claims that the peer makes of it, or its ValueError."""
    verifier = SDJWTVerifier(serialise(core, disclosures), lambda _iss, _header: THEIR_KEY)
    claims: dict[str, Any] = verifier.get_verified_payload()
    return claims


def presented(payload: dict[str, Any], disclosures: tuple[Disclosure, ...], *, generalised: bool) -> list[bytes]:
    """One form of everything: the generalised one where there is one and it is asked for, else the full one."""
    order = {disclosure.digest: place for place, disclosure in enumerate(disclosures)}  # the full form comes first
    forms: dict[tuple[str, tuple[str, ...]], list[Node]] = {}
    for node in walk(payload, disclosures):
        forms.setdefault((node.path, node.parents), []).append(node)
    kept: dict[str, bytes] = {}
    for (_, parents), alternates in forms.items():
        if all(parent in kept for parent in parents):
            node = sorted(alternates, key=lambda n: order[n.digest])[-1 if generalised else 0]
            kept[node.digest] = node.disclosure.raw
    return list(kept.values())


@pytest.mark.invariant("I5")
@given(document=documents, generalised=st.booleans())
@few
def test_what_we_issue_verifies_there(document: dict[str, Any], generalised: bool) -> None:
    payload, disclosures = conceal({"iss": ISS, **document}, salts=salts)
    core = sign_core(payload, kid="issue-1", sign=lambda message: ed25519.sign(SEED, message))
    chosen = presented(payload, disclosures, generalised=generalised)
    expected = {"iss": ISS, **shown(document, generalised=generalised)}
    assert their_reading(core, chosen) == expected
    assert verify(core, chosen, public_key=KEY).claims == expected


@pytest.mark.invariant("I5")
@given(document=documents, decoys=st.booleans())
@few
def test_what_they_issue_verifies_here(document: dict[str, Any], decoys: bool) -> None:
    issuer = SDJWTIssuer(
        marked({"iss": ISS, **document}),
        THEIR_KEY,
        sign_alg="Ed25519",
        add_decoy_claims=decoys,
        extra_header_parameters={"typ": "advisory+sd-jwt", "kid": "issue-1"},
    )
    core, disclosures = parse(issuer.sd_jwt_issuance)
    everything = verify(core, disclosures, public_key=KEY)
    assert everything.claims == {"iss": ISS, **shown(document, generalised=False)}
    assert walk(everything.payload, disclosures) == everything.nodes
    nothing = their_reading(core, ())
    assert verify(core, (), public_key=KEY).claims == nothing


def test_they_refuse_both_forms_together_as_we_do() -> None:
    payload, disclosures = conceal({"iss": ISS, "title": Hide("full", "general")}, salts=salts)
    core = sign_core(payload, kid="issue-1", sign=lambda message: ed25519.sign(SEED, message))
    raws = [disclosure.raw for disclosure in disclosures]
    with pytest.raises(MalformedError, match="two claims of one name"):
        verify(core, raws, public_key=KEY)
    with pytest.raises(ValueError, match="Duplicate key"):
        their_reading(core, raws)
