"""The way in, step by step: whose core it is, what it says, and whether this node may keep it."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from federation import grant
from federation.agreement import Agreement, from_yaml
from federation.entries import Delivery
from federation.errors import (
    GrantError,
    HandlingError,
    KeyringError,
    MalformedError,
    NotAdmittedError,
    RemoteError,
    SignatureError,
    TermsError,
    UnknownOriginError,
)
from federation.inbound import Admitted, Advisory, Receiver, admit, may_keep_evidence, open_delivery, read_advisory
from federation.keyring import Keyring
from federation.model import Category, Country, Element, JsonObject, NodeId, Onward, Presentation, Role, Tlp
from federation.strictjson import encode
from node.peering import agreements
from node.sharing import advisories
from tests.nodes import (
    DE,
    FR,
    IN,
    World,
    agree,
    document,
    import_document,
    issued,
    make_world,
    payload_of,
    signed_core,
    terms_for,
    terms_text,
)

NAME = "CERT-FR-2026-0001"
DEEP = [{"notes": [{"category": "details", "text": "How deep it goes."}]}]
DOCUMENT = document(NAME, notes=("First.", "Second."), vulnerabilities=DEEP)


@dataclass(frozen=True, slots=True)
class Case:
    """One honest delivery from FR, its receiver DE, and the means to change either."""

    world: World
    delivery: Delivery
    receiver: Receiver
    now: datetime

    def run(self, delivery: Delivery, receiver: Receiver | None = None, now: datetime | None = None) -> Advisory:
        """All three steps."""
        receiver, now = receiver or self.receiver, now or self.now
        advisory = read_advisory(open_delivery(delivery, receiver, now), receiver.labels, now)
        return admit(advisory, receiver, FR, now).advisory

    def read(self) -> Advisory:
        """What the honest delivery says."""
        return read_advisory(open_delivery(self.delivery, self.receiver, self.now), self.receiver.labels, self.now)

    def resigned(self, change: Callable[[JsonObject], object]) -> Delivery:
        """The delivery with another payload, under FR's real key, and terms that fit it."""
        payload = payload_of(self.delivery.presentation.core)
        change(payload)
        core = signed_core(self.world[FR], payload)
        terms = replace(self.delivery.terms, core_digest=hashlib.sha256(core).digest())
        return Delivery(Presentation(core, self.delivery.presentation.disclosures), terms)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    world = make_world(tmp_path_factory.mktemp("inbound"), FR, DE, IN, packs=("eu-gdpr",))
    held = agree(world)
    fr, de = world[FR], world[DE]
    name = import_document(fr, DOCUMENT)
    delivery = Delivery(issued(fr, name), terms_for(fr, DE, name, held))
    receiver = Receiver(
        me=DE,
        country=Country("DE"),
        keyring=Keyring({FR: fr.card, DE: de.card}),
        labels=de.labels,
        book=de.book,
        agreements={held.agreement.digest: held.agreement},
    )
    yield Case(world, delivery, receiver, world.clock())
    world.close()


def test_an_honest_delivery_is_admitted_with_the_clause_that_covers_it(case: Case) -> None:
    advisory = case.read()
    admitted = admit(advisory, case.receiver, FR, case.now)
    assert (advisory.origin, advisory.name, advisory.revision) == (FR, NAME, 1)
    assert advisory.csaf == DOCUMENT
    assert advisory.core_digest == hashlib.sha256(case.delivery.presentation.core).digest()
    assert {rule.id.partition(":")[0] for rule in admitted.rules} == {"exchange-2026/1#all"}


def _core(case: Case, core: bytes) -> Delivery:
    return Delivery(Presentation(core, case.delivery.presentation.disclosures), case.delivery.terms)


@pytest.mark.invariant("I5")
@pytest.mark.parametrize("core", [b"", b"a.b.c", b"not a core", b"\xff"])
def test_what_is_no_core_is_refused(case: Case, core: bytes) -> None:
    with pytest.raises(MalformedError):
        case.run(_core(case, core))  # open (1)


def test_an_origin_without_an_enrolled_card_is_unknown(case: Case) -> None:
    stranger = replace(case.receiver, keyring=Keyring({DE: case.receiver.keyring.cards[DE]}))
    with pytest.raises(UnknownOriginError):
        case.run(case.delivery, stranger)  # open (2)
    with pytest.raises(UnknownOriginError):
        case.run(case.resigned(lambda p: p.update(iss="cert.ke.example")))
    with pytest.raises(MalformedError):
        case.run(case.resigned(lambda p: p.update(iss="CERT")))


@pytest.mark.invariant("I5")
def test_nobody_signs_in_the_name_of_another(case: Case) -> None:
    with pytest.raises(KeyringError):  # open (2): DE's name, FR's key
        case.run(case.resigned(lambda p: p.update(iss=DE, jti=f"{DE}/{NAME}/1")))


def test_a_key_that_is_no_longer_valid_does_not_count(case: Case) -> None:
    with pytest.raises(KeyringError):
        case.run(case.delivery, now=case.now + timedelta(days=400))  # open (2)


@pytest.mark.invariant("I5")
def test_one_flipped_bit_is_refused(case: Case) -> None:
    presentation = case.delivery.presentation
    for place in range(0, len(presentation.core), 41):
        core = bytearray(presentation.core)
        core[place] ^= 1
        with pytest.raises(RemoteError):  # open (1) to (3)
            case.run(_core(case, bytes(core)))
    for number, raw in enumerate(presentation.disclosures):
        for place in range(0, len(raw), 7):
            broken = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
            disclosures = (*presentation.disclosures[:number], broken, *presentation.disclosures[number + 1 :])
            with pytest.raises(RemoteError):
                case.run(Delivery(Presentation(presentation.core, disclosures), case.delivery.terms))


@pytest.mark.invariant("I5")
def test_a_disclosure_that_the_origin_did_not_sign_is_refused(case: Case) -> None:
    added = (*case.delivery.presentation.disclosures, b'["c2FsdA","extra","text"]')
    with pytest.raises(SignatureError):
        case.run(Delivery(Presentation(case.delivery.presentation.core, added), case.delivery.terms))  # open (3)


@pytest.mark.invariant("I5")
def test_a_relay_or_link_may_withhold_more(case: Case) -> None:
    kept = tuple(raw for raw in case.delivery.presentation.disclosures if b"Second" not in raw)
    advisory = case.run(Delivery(Presentation(case.delivery.presentation.core, kept), case.delivery.terms))
    assert [note["text"] for note in advisory.csaf["document"]["notes"]] == ["First."]


def named(payload: JsonObject, name: str) -> None:
    """Gives the document another name, everywhere."""
    payload["csaf"]["document"]["tracking"]["id"] = name
    payload["jti"] = f"{FR}/{name}/1"


PAYLOADS: dict[str, tuple[type[RemoteError], Callable[[JsonObject], object]]] = {
    "(1) version 2": (MalformedError, lambda p: p.update(v=2)),
    "(1) no version": (MalformedError, lambda p: p.pop("v")),
    "(1) a member too many": (MalformedError, lambda p: p.update(also=1)),
    "(1) an audience": (MalformedError, lambda p: p.update(aud=DE)),
    "(1) an expiry": (MalformedError, lambda p: p.update(exp=1)),
    "(1) no labels": (MalformedError, lambda p: p.pop("labels")),
    "(1) another hash": (MalformedError, lambda p: p.update(_sd_alg="md5")),
    "(1) an AI part in plain": (MalformedError, lambda p: p.update(ai={})),
    "(1) a title in plain": (MalformedError, lambda p: p["csaf"]["document"].update(title="plain")),
    "(2) no jti": (MalformedError, lambda p: p.pop("jti")),
    "(2) a jti that is no text": (MalformedError, lambda p: p.update(jti=1)),
    "(2) another name": (MalformedError, lambda p: p.update(jti=f"{FR}/other/1")),
    "(2) another origin": (MalformedError, lambda p: p.update(jti=f"{DE}/{NAME}/1")),
    "(2) revision 0": (MalformedError, lambda p: p.update(jti=f"{FR}/{NAME}/0")),
    "(2) revision 01": (MalformedError, lambda p: p.update(jti=f"{FR}/{NAME}/01")),
    "(2) revision one": (MalformedError, lambda p: p.update(jti=f"{FR}/{NAME}/one")),
    "(2) a revision without end": (MalformedError, lambda p: p.update(jti=f"{FR}/{NAME}/1{'0' * 9}")),
    "(2) no tracking id": (MalformedError, lambda p: p["csaf"]["document"]["tracking"].pop("id")),
    "(2) a tracking id that is no text": (MalformedError, lambda p: p["csaf"]["document"]["tracking"].update(id=7)),
    "(2) a name that is too long": (MalformedError, lambda p: named(p, "N" * 256)),
    "(3) no iat": (MalformedError, lambda p: p.pop("iat")),
    "(3) an iat that is no number": (MalformedError, lambda p: p.update(iat="now")),
    "(3) an iat that is true": (MalformedError, lambda p: p.update(iat=True)),
    "(3) an iat of 0": (MalformedError, lambda p: p.update(iat=0)),
    "(3) an iat before time": (MalformedError, lambda p: p.update(iat=-1)),
    "(3) an iat with a fraction": (MalformedError, lambda p: p.update(iat=p["iat"] + 0.5)),
    "(3) an iat in our future": (MalformedError, lambda p: p.update(iat=p["iat"] + 400)),
    "(4) no handling": (MalformedError, lambda p: p.pop("handling")),
    "(4) empty handling": (HandlingError, lambda p: p.update(handling={})),
    "(4) handling that is no object": (HandlingError, lambda p: p.update(handling="GREEN")),
    "(4) handling with a member too many": (HandlingError, lambda p: p["handling"].update(also=1)),
    "(4) an unknown TLP": (HandlingError, lambda p: p["handling"].update(tlp="WHITE")),
    "(4) handling with a digest": (HandlingError, lambda p: p["handling"].update(_sd=[])),
}


@pytest.mark.invariant("I6")
@pytest.mark.parametrize("name", sorted(PAYLOADS))
def test_a_core_that_its_origin_signed_may_still_say_nothing_that_we_understand(case: Case, name: str) -> None:
    error, change = PAYLOADS[name]
    assert case.run(case.resigned(lambda payload: payload)).name == NAME  # sanity: signing again is not what is refused
    with pytest.raises(error):
        case.run(case.resigned(change))


@pytest.mark.parametrize("csaf", [[], "document", {"document": "tracking"}, {"document": {"tracking": "id"}}])
def test_a_core_whose_document_is_none_has_no_name(case: Case, csaf: Any) -> None:
    bare = case.resigned(lambda p: p.update(csaf=csaf))
    with pytest.raises(MalformedError, match="no tracking id"):
        case.run(replace(bare, presentation=replace(bare.presentation, disclosures=())))


def test_the_first_second_and_the_longest_name_are_taken(case: Case) -> None:
    assert case.run(case.resigned(lambda p: p.update(iat=1))).issued_at == datetime.fromtimestamp(1, UTC)
    assert case.run(case.resigned(lambda p: named(p, "N" * 255))).name == "N" * 255


def test_an_ai_part_and_a_grant_come_along(case: Case) -> None:
    fr = case.world[FR]
    part = {"weakness": "It follows instructions in documents."}
    file = encode({"csaf": document("WITH-AI"), "ai": part, "handling": {"tlp": "GREEN"}, "labels": {}})
    name = advisories.import_file(fr, file, "file.json", tlp=None).advisory.name
    terms = terms_for(fr, DE, name, agreements.all_held(fr)[0])
    opened = open_delivery(Delivery(issued(fr, name), terms, b"a grant"), case.receiver, case.now)
    advisory = read_advisory(opened, case.receiver.labels, case.now)
    assert (advisory.ai, advisory.grant) == (part, b"a grant")


def test_an_iat_may_lead_our_clock_a_little(case: Case) -> None:
    ahead = int(case.now.timestamp()) + 300
    assert case.run(case.resigned(lambda p: p.update(iat=ahead))).issued_at == datetime.fromtimestamp(ahead, UTC)


def _terms(case: Case, **changed: Any) -> Delivery:
    return Delivery(case.delivery.presentation, replace(case.delivery.terms, **changed))


def _under(case: Case, **changed: str) -> tuple[Delivery, Receiver]:
    """The delivery under other terms that all parties signed."""
    agreement = from_yaml(terms_text(case.world, **changed), "a.yaml")
    return _terms(case, agreement_digest=agreement.digest), _with(case, agreement)


def _with(case: Case, agreement: Agreement) -> Receiver:
    return replace(case.receiver, agreements={agreement.digest: agreement})


@pytest.mark.invariant("I2")
def test_without_an_agreement_in_force_nothing_is_kept(case: Case) -> None:
    with pytest.raises(NotAdmittedError):
        case.run(case.delivery, replace(case.receiver, agreements={}))  # admit (2)
    with pytest.raises(NotAdmittedError):
        case.run(_terms(case, agreement_digest=b"x" * 32))
    (agreement,) = case.receiver.agreements.values()
    with pytest.raises(NotAdmittedError, match="no agreement"):
        case.run(case.delivery, now=agreement.valid_until)
    with pytest.raises(NotAdmittedError, match="no agreement"):
        case.run(case.delivery, _with(case, replace(agreement, valid_from=case.now + timedelta(days=1))))
    with pytest.raises(NotAdmittedError):
        case.run(*_under(case, grants=f"[{{id: other, to: [{IN}], tlp: [GREEN], share: {{identification: full}}}}]"))


@pytest.mark.invariant("I2")
def test_who_delivers_is_the_origin(case: Case) -> None:
    advisory = case.read()
    with pytest.raises(NotAdmittedError, match="without a grant") as caught:
        admit(advisory, case.receiver, IN, case.now)  # admit (1); more of it in test_last_hop
    assert caught.value.rules == ("relay/no-grant",)


@pytest.mark.invariant("I6")
def test_terms_wider_than_what_was_signed_are_refused(case: Case) -> None:
    with pytest.raises(TermsError):
        case.run(_terms(case, recipient=IN))  # admit (3)
    with pytest.raises(TermsError):
        case.run(_terms(case, core_digest=b"x" * 32))
    with pytest.raises(TermsError):
        case.run(_under(case, onward="none", retention_days="5")[0], _under(case, retention_days="5")[1])


def test_retention_that_is_over_is_refused(case: Case) -> None:
    with pytest.raises(NotAdmittedError, match="retention has ended"):
        case.run(_terms(case, retain_until=case.now))


@pytest.mark.invariant("I2")
@pytest.mark.parametrize(
    "changed",
    [
        {"grants": "[{id: less, tlp: [GREEN], share: {identification: full}}]"},  # not all categories that arrived
        {"grants": "[{id: other, tlp: [AMBER], share: {identification: full, technical: full}}]"},  # another TLP
        {"grants": "[{id: tier, tlp: [GREEN], tiers: [sensitive], share: {identification: full, technical: full}}]"},
        {"grants": "[{id: general, tlp: [GREEN], share: {identification: generalised, technical: generalised}}]"},
    ],
)
def test_what_no_clause_shares_is_not_kept_although_the_sender_sent_it(case: Case, changed: dict[str, str]) -> None:
    with pytest.raises(NotAdmittedError):
        case.run(*_under(case, **changed))  # admit (5)


def _arrived(case: Case, share: str, *elements: Element) -> Admitted:
    """What becomes of an advisory with these elements, where an agreement shares no more than `share`."""
    advisory = case.read()
    delivery, receiver = _under(case, grants=f"[{{id: some, tlp: [GREEN], share: {{identification: full, {share}}}}}]")
    return admit(replace(advisory, elements=elements, terms=delivery.terms), receiver, FR, case.now)


def _element(case: Case, category: str) -> Element:
    first, *_ = case.read().elements
    return replace(first, categories=frozenset({Category(category)}))


@pytest.mark.invariant("I2")
@pytest.mark.parametrize("category", ["product", "technical", "personal"])
def test_each_category_that_arrived_has_to_be_shared(case: Case, category: str) -> None:
    elements = (_element(case, category), _element(case, "severity"))
    assert _arrived(case, f"severity: full, {category}: full", *elements).rules
    with pytest.raises(NotAdmittedError):
        _arrived(case, "severity: full", *elements)


@pytest.mark.invariant("I2")
def test_what_may_be_generalised_may_arrive_so_and_not_in_full(case: Case) -> None:
    person = _element(case, "personal")
    assert _arrived(case, "personal: generalised", replace(person, full=None, generalised=person.full)).rules
    with pytest.raises(NotAdmittedError):
        _arrived(case, "personal: generalised", person)


@pytest.mark.invariant("I2")
def test_an_element_without_a_label_is_not_kept(case: Case) -> None:
    advisory = case.read()
    bare = tuple(replace(element, categories=frozenset[Category]()) for element in advisory.elements)
    with pytest.raises(NotAdmittedError, match="no label"):
        admit(replace(advisory, elements=bare), case.receiver, FR, case.now)


@pytest.mark.invariant("I2")
def test_an_advisory_with_nothing_in_it_is_not_kept(case: Case) -> None:
    empty = Delivery(Presentation(case.delivery.presentation.core, ()), case.delivery.terms)
    with pytest.raises(NotAdmittedError, match="nothing is disclosed"):
        case.run(empty)


# What the origin says of itself, and where things may lie


@pytest.mark.invariant("I6")
def test_the_home_in_the_handling_is_that_of_the_origins_card(case: Case) -> None:
    with pytest.raises(HandlingError, match="home is not the jurisdiction"):
        case.run(case.resigned(lambda p: p["handling"].update(home="DE")))  # admit (4)


@pytest.mark.parametrize("where", ["handling", "agreement", "terms"])
def test_storage_has_to_be_allowed_here_by_all_three(case: Case, where: str) -> None:
    def run(countries: list[str]) -> Advisory:
        if where == "handling":
            return case.run(case.resigned(lambda p: p["handling"].update(storage=countries)))
        places = frozenset(map(Country, countries))
        if where == "terms":
            return case.run(_terms(case, storage=places))
        return case.run(*_under(case, storage=f"[{', '.join(countries)}]"))

    with pytest.raises(NotAdmittedError, match="storage in this country") as caught:
        run(["FR"])  # admit (3)
    assert caught.value.rules == ("handling/storage",)
    if where == "terms":
        assert run(["DE", "FR"]).name == NAME
    else:  # terms without a limit of their own are wider than this
        with pytest.raises(TermsError):
            run(["DE", "FR"])


def test_retention_that_is_over_is_refused_by_its_rule(case: Case) -> None:
    with pytest.raises(NotAdmittedError) as caught:
        case.run(_terms(case, retain_until=case.now))
    assert caught.value.rules == ("handling/expired",)
    assert case.run(_terms(case, retain_until=case.now + timedelta(seconds=1))).name == NAME


# What a relay delivers: more of it in test_last_hop


def relayed(case: Case, document: bytes | None = None, at: datetime | None = None, **handling: Any) -> Admitted:
    """What DE makes of the advisory when IN passes it on."""
    advisory = case.read()
    given = replace(advisory, handling=replace(advisory.handling, **handling), grant=document or b"")
    everybody = {name: node.card for name, node in case.world.nodes.items()}
    return admit(given, replace(case.receiver, keyring=Keyring(everybody)), IN, at or case.now)


def granted(case: Case, **changed: Any) -> bytes:
    """A grant by FR to IN, towards DE."""
    fr = case.world[FR]
    signer = fr.keys.signer(Role.ISSUE, fr.card, case.now)
    parts: dict[str, Any] = {
        "core_digest": hashlib.sha256(case.delivery.presentation.core).digest(),
        "relay": IN,
        "recipients": (DE,),
        "categories": tuple(Category),
        "until": case.now + timedelta(days=30),
    }
    return grant.sign(FR, **parts | changed, kid=signer.kid, sign_bytes=signer.sign).document


def test_a_relay_delivers_what_the_origin_lets_go_as_far_as_here(case: Case) -> None:
    by_grant = relayed(case, granted(case))
    assert {rule.id.partition(":")[0] for rule in by_grant.rules} == {"exchange-2026/1#all"}
    assert by_grant.alarms == ()
    assert by_grant.advisory.handling.onward is not Onward.PEERS  # the grant is for this hop, and changes no handling
    assert relayed(case, onward=Onward.PEERS).rules == by_grant.rules
    assert relayed(case, granted(case), onward=Onward.PEERS).rules == by_grant.rules


GRANTS: dict[str, dict[str, Any]] = {
    "for another relay": {"relay": DE},
    "for another recipient": {"recipients": (IN, FR)},
    "for another core": {"core_digest": b"c" * 32},
    "for less than what arrived": {"categories": (Category.IDENTIFICATION,)},
}


@pytest.mark.invariant("I2")
@pytest.mark.parametrize("name", sorted(GRANTS))
def test_a_grant_covers_this_core_this_relay_this_recipient_and_all_that_arrived(case: Case, name: str) -> None:
    assert relayed(case, granted(case)).rules  # sanity
    for onward in (Onward.NONE, Onward.PEERS):
        with pytest.raises(GrantError):
            relayed(case, granted(case, **GRANTS[name]), onward=onward)


@pytest.mark.invariant("I2")
def test_a_relays_word_is_not_enough(case: Case) -> None:
    document = granted(case, until=case.now + timedelta(days=1))
    with pytest.raises(GrantError, match="has ended"):
        relayed(case, document, at=case.now + timedelta(days=1))
    with pytest.raises(NotAdmittedError) as caught:
        relayed(case)
    assert caught.value.rules == ("relay/no-grant",)
    for tlp in (Tlp.RED, Tlp.AMBER_STRICT):
        with pytest.raises(NotAdmittedError, match="is not passed on") as caught:
            relayed(case, granted(case), tlp=tlp, recipients=frozenset((DE, IN)))
        assert caught.value.rules == ("handling/relay-tlp",)


@pytest.mark.invariant("I11")
def test_before_the_embargo_ends_nothing_is_passed_on_though_a_clock_may_lead_ours(case: Case) -> None:
    end = case.now + timedelta(days=1)
    with pytest.raises(NotAdmittedError, match="embargo") as caught:
        relayed(case, granted(case), at=end - timedelta(seconds=301), embargo_until=end)
    assert caught.value.rules == ("handling/embargo",)
    assert relayed(case, granted(case), at=end - timedelta(seconds=300), embargo_until=end).rules


@pytest.mark.invariant("I10")
def test_whose_bytes_are_kept_as_evidence(case: Case) -> None:
    """Those of a sender who, by an agreement in force, lets us store things of its own here."""

    def kept(
        delivery: Delivery, receiver: Receiver = case.receiver, sender: NodeId = FR, at: datetime = case.now
    ) -> bool:
        return may_keep_evidence(delivery, receiver, sender, at)

    assert kept(case.delivery)
    assert kept(_core(case, b"nobody can read this"))
    assert not kept(case.delivery, sender=IN)  # what is another's is not kept, whoever sends it
    assert not kept(_terms(case, agreement_digest=b"x" * 32))
    assert not kept(case.delivery, at=case.now + timedelta(days=300))
    (agreement,) = case.receiver.agreements.values()
    assert not kept(case.delivery, _with(case, replace(agreement, grants=())))
    for country, expected in (("DE", True), ("FR", False)):
        delivery, receiver = _under(case, storage=f"[{country}]")
        assert kept(delivery, receiver) is expected


def test_a_dropped_key_still_speaks_for_what_was_shown_before(case: Case) -> None:
    fr = case.world[FR]
    key = next(key for key in fr.card.keys if key.role is Role.ISSUE)
    bare = replace(fr.card, keys=tuple(k for k in fr.card.keys if k is not key))
    receiver = replace(case.receiver, keyring=Keyring({FR: bare, DE: case.receiver.keyring.cards[DE]}))
    with pytest.raises(KeyringError):
        case.run(case.delivery, receiver)
    assert receiver.accepting({}) is receiver
    assert case.run(case.delivery, receiver.accepting({(FR, key.kid): key.public})).name == NAME
