"""SD-JWT (RFC 9901): an origin signs once, anybody may withhold more, nobody can alter or add (I5).

    claims with Hide marks --conceal--> payload + disclosures --sign_core--> core
    core + some disclosures --read_header_and_payload--> UnverifiedCore --verify--> Verified

`process` is the RFC's general algorithm without our profile; `walk` also takes alternates of one element, for those who
choose what to present; `serialise` and `parse` are the standard's compact form.
"""

from federation.sdjwt.compact import parse, serialise
from federation.sdjwt.disclosure import Disclosure
from federation.sdjwt.issue import NOTHING, Hide, Salts, conceal, sign_core
from federation.sdjwt.verify import UnverifiedCore, Verified, read_header_and_payload, verify
from federation.sdjwt.walk import Node, Processed, process, walk

__all__ = [
    "NOTHING",
    "Disclosure",
    "Hide",
    "Node",
    "Processed",
    "Salts",
    "UnverifiedCore",
    "Verified",
    "conceal",
    "parse",
    "process",
    "read_header_and_payload",
    "serialise",
    "sign_core",
    "verify",
    "walk",
]
