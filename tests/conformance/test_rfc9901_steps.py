"""Row 16: every step of RFC 9901 section 7.1, and what 7.3 says of key binding, each broken in a real advisory.

The tokens of `rfc9901_steps.py` are refused by the receiver under the name that the table says, by the independent
verifier too, and, sent by an origin that lies, are set aside by a whole node while its feed goes on.
"""

import hashlib
import json
from base64 import urlsafe_b64decode
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from string import ascii_letters, digits

import pytest
from cryptography.exceptions import InvalidSignature

from federation import sdjwt
from federation.base64url import b64url
from federation.entries import Delivery
from federation.entries import read as read_entry
from federation.errors import MalformedError, RemoteError
from federation.inbound import Advisory, open_delivery, read_advisory
from federation.model import Attribution, Form, Onward, Presentation, Role, Terms
from federation.sdjwt.disclosure import digest_of
from node.peering import agreements
from tests.conformance import verify_sdjwt
from tests.conformance.rfc9901_steps import Case, cases
from tests.conformance.tokens import Origin, Token, jws, member
from tests.e2e.net import make_net, release
from tests.faults.fuzz import RECEIVERS
from tests.faults.liar import Told, append_raw, difference, everything, lying, prepare, sync
from tests.nodes import (
    AGREEMENT,
    DE,
    FR,
    agree,
    document,
    entry,
    history,
    import_document,
    issued,
    payload_of,
    terms_for,
)
from tests.vectors import material as m

CASES = tuple(cases())
STEPS: tuple[str, ...] = (
    "1",
    "2.a",
    "2.b",
    "2.c",
    "2.d",
    "3.a",
    "3.b.i",
    "3.b.ii",
    "3.c.ii.1",
    "3.c.ii.2",
    "3.c.ii.3",
    "3.c.ii.5",
)
STEPS += ("3.c.iii.1", "3.c.iii.3", "4", "5", "6")
REFUSES = (ValueError, KeyError, TypeError, RecursionError, InvalidSignature)  # what `verify_sdjwt.main` takes for no
CANARY = "CANARY-of-a-token-that-was-refused"


def of_vectors() -> Origin:
    issue, feed = (m.signer(f"{m.FR} {role}") for role in (Role.ISSUE, Role.FEED))
    kids = (m.issue_kid(m.FR, role).partition("/")[2] for role in (Role.ISSUE, Role.FEED))
    return Origin(next(kids), issue, next(kids), feed, m.public(f"{m.FR} issue"))


def fresh(origin: Origin, presentation: Presentation) -> Token:
    """An honest advisory, to be changed."""
    header = {"alg": "Ed25519", "typ": "advisory+sd-jwt", "kid": origin.kid}
    return Token(origin, header, payload_of(presentation.core), list(presentation.disclosures))


def honest() -> Token:
    made = m.make()
    return fresh(of_vectors(), m.presentation(made, made.choose(lambda *_: Form.FULL)))


def opened(core: bytes, shown: list[bytes]) -> Advisory:
    """What a receiver reads in it."""
    some = m.entry(0, Delivery(Presentation(core, tuple(shown)), _terms(core)))
    body = read_entry(some).body
    assert isinstance(body, Delivery)
    return read_advisory(open_delivery(body, RECEIVERS[m.DE], m.NOW), m.LABELS, m.NOW)


def _terms(core: bytes) -> Terms:
    return Terms(hashlib.sha256(core).digest(), m.DE, bytes(32), frozenset(), None, None, Onward.NONE, Attribution.MAY)


def text_of(core: bytes, shown: list[bytes]) -> str:
    """The compact form, however malformed the core is."""
    return "~".join([core.decode("latin-1"), *map(b64url, shown), ""])


def test_the_honest_token_is_taken_by_both_verifiers() -> None:
    token = honest()
    core = token.signed()
    assert opened(core, token.shown).csaf["document"]["title"] == m.CSAF["document"]["title"]
    said = verify_sdjwt.check(text_of(core, token.shown), token.origin.public.hex())
    assert said["csaf"]["document"]["title"] == m.CSAF["document"]["title"]
    assert {case.step for case in CASES} == set(STEPS)
    assert len({(case.step, case.name) for case in CASES}) == len(CASES)


@pytest.mark.invariant("I5")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.step} {case.name}"[:70])
def test_a_token_that_breaks_a_step_is_refused_by_its_name(case: Case) -> None:
    token = honest()
    case.change(token)
    core = token.signed()
    with pytest.raises(RemoteError) as caught:
        opened(core, token.shown)
    assert type(caught.value) is case.error, caught.value
    if case.independent:
        with pytest.raises(REFUSES):
            verify_sdjwt.check(text_of(core, token.shown), token.origin.public.hex())


# Steps that remove: 3.c.i, 3.d, 3.e, 3.f


def test_digests_placeholders_and_the_hash_name_are_removed() -> None:
    token = honest()
    inner = member("deep", 1)
    token.hide(member("x", {"_sd": [digest_of(inner), "decoy"], "y": [{"...": "another"}, 1]}))
    token.document["references"] = [{"...": "withheld"}, {"_sd": ["a", "b"]}]
    core = token.signed()
    for said in (
        sdjwt.verify(core, token.shown, public_key=token.origin.public).claims,
        verify_sdjwt.check(text_of(core, token.shown), token.origin.public.hex()),
    ):
        assert said["csaf"]["document"]["references"] == [{}]  # 3.d, and 3.e: it becomes the empty object
        assert said["csaf"]["document"]["x"] == {"y": [1]}  # 3.c.i: `deep` is withheld
        assert not any(f'"{name}"' in json.dumps(said) for name in ("_sd", "_sd_alg", "..."))  # 3.e, 3.f


# Step 1 in the compact form, and 7.3: key binding is refused, not passed over


def _kb(core: bytes) -> str:
    return jws(
        {"alg": "Ed25519", "typ": "kb+jwt"}, {"nonce": "n", "aud": "x", "iat": 1, "sd_hash": "x"}, lambda _: core[:64]
    ).decode()


COMPACT: dict[str, Callable[[str, bytes], str]] = {
    "7.3 a key binding JWT": lambda text, core: text + _kb(core),
    "7.3 something behind the last tilde": lambda text, _: text + "x",
    "1 no last tilde": lambda text, _: text[:-1],
    "1 an empty disclosure": lambda text, _: text + "~",
    "1 an empty one in front": lambda text, _: text.replace("~", "~~", 1),
    "1 no core": lambda text, _: text[text.index("~") :],
    "1 padding": lambda text, _: text[:-1] + "=~",
    "1 a second spelling": lambda text, _: _last_bits(text),
    "1 the other alphabet": lambda text, _: text[:-1] + "+/~",
    "1 white space": lambda text, _: text.replace("~", "~ ", 1),
    "1 a line feed": lambda text, _: text[:-1] + "\n~",
    "1 not ASCII": lambda text, _: text.replace("~", "~é~", 1),
    "1 other digits": lambda text, _: text.replace("~", "~٣٣٣٣~", 1),
}


def _last_bits(text: str) -> str:
    """The last disclosure whose length leaves bits over, with other bits in them."""
    parts = text[:-1].split("~")
    place = max(n for n, part in enumerate(parts) if len(part) % 4 in (2, 3) and n)
    last = parts[place][-1]
    other = next(c for c in ascii_letters + digits if _same_bytes(parts[place], last, c))
    parts[place] = parts[place][:-1] + other
    return "~".join(parts) + "~"


def _same_bytes(part: str, last: str, other: str) -> bool:
    pad = "=" * (-len(part) % 4)
    return other != last and urlsafe_b64decode(part[:-1] + other + pad) == urlsafe_b64decode(part + pad)


@pytest.mark.parametrize("name", COMPACT)
def test_a_compact_text_that_is_not_exactly_one_is_refused(name: str) -> None:
    token = honest()
    core = token.signed()
    text = sdjwt.serialise(core, token.shown)
    assert sdjwt.parse(text) == (core, tuple(token.shown))
    wrong = COMPACT[name](text, core)
    with pytest.raises(MalformedError):
        sdjwt.parse(wrong)
    with pytest.raises(REFUSES):
        verify_sdjwt.check(wrong, token.origin.public.hex())


def test_a_key_that_holds_a_card_of_its_own_is_no_holder() -> None:
    """7.3: `cnf` would bind a holder's key; an advisory has none, and is refused with one."""
    token = honest()
    token.payload["cnf"] = {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": "AA"}}
    with pytest.raises(MalformedError):
        opened(token.signed(), token.shown)


# On the wire


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Told, dict[str, Counter[str]]]]:
    """FR delivers an honest advisory, then every token, then another honest one; DE's sync is a real process. How that
    ended, and the new rows by table."""
    with make_net(tmp_path_factory.mktemp("steps"), FR, DE) as net:
        agree(net.world)
        prepare(net, FR, DE)
        fr = net.world[FR]
        release(net.world, "HONEST")
        shown = issued(fr, import_document(fr, document("TOKEN", notes=(CANARY,))))
        terms = terms_for(fr, DE, "TOKEN", agreements.find(fr, AGREEMENT))
        issue, feed = (fr.keys.signer(role, fr.card, fr.clock()) for role in (Role.ISSUE, Role.FEED))
        origin = Origin(issue.kid, issue.sign, feed.kid, feed.sign, issue.public)
        with lying(net, FR, DE):
            assert sync(net, DE, FR).code == 0
            for case in CASES:
                token = fresh(origin, shown)
                case.change(token)
                core = token.signed()
                its = replace(terms, core_digest=hashlib.sha256(core).digest())
                body = Delivery(Presentation(core, tuple(token.shown)), its)
                append_raw(fr, DE, entry(f"{FR}/feeds/{DE}/1", len(history(fr, DE)), body))
            release(net.world, "AFTER")
            before = everything(net.world[DE].home)
            report = sync(net, DE, FR)
            changed = difference(before, everything(net.world[DE].home))
            added = {name: Counter(str(row) for row in new) for name, (_, new) in changed.items()}
            yield report, added


@pytest.mark.invariant("I10")
def test_a_lying_origin_sends_each_and_the_feed_goes_on(told: tuple[Told, dict[str, Counter[str]]]) -> None:
    report, added = told
    assert report.code == 0, report.said
    assert report.report["entries"] == len(CASES) + 1
    assert sum("quarantined" in row for row in added["in_entries"].elements()) == len(CASES)
    audited = Counter({row: n for row, n in added["audit"].items() if "entry." in row})
    assert audited.total() == len(CASES), "one row for each"
    assert sum("AFTER" in row for row in added["inbox"].elements()) == added["inbox"].total() == 1
