"""What an advisory's core is beyond any SD-JWT: one header, one algorithm, and claims that it never carries."""

from typing import Final

ALG: Final = "Ed25519"  # RFC 9864 deprecates the polymorphic "EdDSA"
TYP: Final = "advisory+sd-jwt"  # explicit typing, RFC 8725 3.11: no other JWT can pass for a core
SD_ALG_VALUE: Final = "sha-256"

# Validity is handling and revision, the audience is in the terms, and nobody holds an advisory (RFC 9901 7.1 step 6): a
# reader that knew one of these claims and one that did not would disagree.
REFUSED_CLAIMS = frozenset({"exp", "nbf", "aud", "cnf"})


def header(kid: str) -> dict[str, str]:
    """The one JOSE header that a core signed by key `kid` has: no `crit`, no `jwk`, no `x5c`, nothing else."""
    return {"alg": ALG, "typ": TYP, "kid": kid}
