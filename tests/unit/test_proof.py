"""Proofs of disclosure: what they show, by which cards, and that nobody can make one that shows something else."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from federation import jws, keyring, proof
from federation.base64url import from_b64url
from federation.errors import (
    GrantError,
    HeldError,
    KeyringError,
    MalformedError,
    NotAllowedError,
    NotFoundError,
    RemoteError,
    SignatureError,
    UsageError,
    WrongFeedError,
)
from federation.keyring import Card, unverified
from federation.limits import MAX_PROOF_BYTES
from federation.model import Country, Form, Role
from federation.proof import Shown
from federation.vouching import How, vouch
from node import main
from node.audit import proofs
from node.home.context import Node
from node.home.people import Post
from node.records import ledger
from node.sharing import relays
from node.store.database import read, write
from node.store.tables import agreements, audit
from node.store.tables import ledger as ledger_table
from tests.evidence import History, make_history
from tests.forgeries import FORGED, THANKS, opened, resent, sealed
from tests.nodes import ADDRESS, DE, FR, IN, agree, make_world, release


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    with make_history(tmp_path_factory.mktemp("history")) as made:
        yield made


@pytest.fixture(scope="module")
def files(history: History) -> dict[str, bytes]:
    """The proof of every release."""
    return {name: history.export(name).data for name in history.releases}


def check(history: History, data: bytes, cards: list[bytes] | None = None) -> Shown:
    return proof.verify(data, history.cards() if cards is None else cards, history.chain[FR].labels)


# What a proof shows


@pytest.mark.invariant("I14")
def test_every_release_of_the_history_can_be_proved(history: History) -> None:
    found = {name: history.export(name).shown for name in history.releases}
    for name, shown in found.items():
        told = shown.account
        assert (told.sender, told.peer) == history.releases[name]
        assert (told.name, told.origin, told.by) == (name.removesuffix(" on"), FR, "alice")
        assert (shown.delivered is None) is (shown.erasure is not None)
        assert check(history, history.export(name).data).account == told
    erased = {name: shown.erasure.kind for name, shown in found.items() if shown.erasure is not None}
    assert erased == {
        "BACK": "withdrawal",
        "NEVER": "withdrawal",
        "RECALLED": "recall",
        "RECALLED on": "recall",
        "ENDED": "purge",
    }
    assert [name for name, shown in found.items() if shown.acknowledged is None] == ["LATE"]
    arrived = {name for name, shown in found.items() if shown.bytes_arrived}
    assert arrived == found.keys() - {"LATE", "NEVER", "RECALLED on"}
    assert [name for name, shown in found.items() if shown.grant is not None] == ["GRANTED on"]


def test_the_parts_are_told_with_their_forms_and_rules(history: History) -> None:
    shown = history.export("PART").shown
    forms = {part.path: part.form for part in shown.account.parts}
    assert forms[THANKS] is Form.GENERALISED
    assert forms["/csaf/document/title"] is Form.FULL
    assert shown.delivered is not None
    assert shown.delivered.claims["csaf"]["document"]["title"] == "Title of PART"
    (row,) = ledger.rows(history.chain[FR], DE, "PART")
    assert [(part.path, part.form, part.rules) for part in shown.account.parts] == list(row.elements)
    assert (shown.account.row, shown.digest) == (row.number, row.digest)


def test_the_receipt_is_the_first_one_that_covers_the_entry(history: History) -> None:
    with read(history.chain[FR].engine) as tx:
        receipts = tx.execute(
            select(ledger_table.c.seq).where(ledger_table.c.kind == "receipt", ledger_table.c.peer == DE)
        ).scalars()
        sizes = sorted(seq + 1 for seq in receipts)
    for name in ("FIRST", "ONWARD", "NEVER"):
        shown = history.export(name).shown
        assert shown.acknowledged is not None
        assert shown.acknowledged.size == min(size for size in sizes if size > shown.account.seq)
        assert abs(shown.acknowledged.at - shown.account.at) < timedelta(days=1)


def test_an_export_is_chosen_by_revision_entry_and_origin(history: History) -> None:
    node, shown = history.chain[FR], history.export("FIRST").shown
    for options in ({"revision": 1}, {"entry": shown.account.seq}, {"epoch": 1}):
        assert proofs.export(node, f"{FR}/FIRST", DE, **options).shown.account == shown.account
    for options in ({"revision": 2}, {"entry": 0}, {"epoch": 2}):
        with pytest.raises(NotFoundError, match="not as that"):
            proofs.export(node, "FIRST", DE, **options)
    for name, peer in (("FIRST", IN), ("NONE", DE), (f"{DE}/FIRST", DE)):
        with pytest.raises(NotFoundError, match="never released"):
            proofs.export(node, name, peer)


def test_an_auditor_exports_and_it_is_recorded(history: History) -> None:
    node = history.chain[FR]
    auditor = replace(node, actor="eve", people={"eve": frozenset((Post.AUDITOR,))})
    proofs.export(auditor, "FIRST", DE)
    with read(node.engine) as tx:
        row = tx.execute(select(audit).where(audit.c.act == "proof.export").order_by(audit.c.id.desc())).first()
    assert row is not None
    assert (row.by, row.subject, row.detail) == ("eve", "FIRST", f"{DE} {history.export('FIRST').shown.account.seq}")
    with pytest.raises(NotAllowedError, match="auditor"):
        proofs.export(replace(node, people={"alice": frozenset(set(Post) - {Post.AUDITOR})}), "FIRST", DE)


def test_what_does_not_hold_here_is_not_exported(history: History) -> None:
    node = history.chain[FR]
    with read(node.engine) as tx:
        rows = tx.execute(select(agreements)).all()
    with write(node.engine) as tx:
        tx.execute(update(agreements).values(document=rows[0].document[:-9]))
    try:
        with pytest.raises((HeldError, RemoteError)) as caught:
            history.export("FIRST")
    finally:
        with write(node.engine) as tx:
            for row in rows:
                tx.execute(update(agreements).where(agreements.c.digest == row.digest).values(document=row.document))
    assert isinstance(caught.value, HeldError), caught.value
    assert "ledger verify" in str(caught.value)


def test_what_would_be_too_large_says_so(history: History) -> None:
    evidence = proof.Evidence(
        before=bytes(32),
        record=from_b64url(opened(history.export("FIRST").data)["ledger"]["record"]),
        entry=bytes(MAX_PROOF_BYTES),
        eraser=None,
        receipt=None,
        agreement=b"",
        cards=(),
    )
    with pytest.raises(UsageError, match="over the limit"):
        proof.sign(evidence, None, history.chain.clock(), kid="k", sign_bytes=lambda _: bytes(64))


# By which cards


def test_the_cards_of_sender_recipient_and_origin_must_be_given(history: History) -> None:
    data = history.export("ONWARD on").data
    given = history.cards(newest=True)
    assert [vouched.how for vouched in check(history, data, given).cards] == [How.GIVEN] * 3
    for missing in (FR, DE, IN):
        with pytest.raises(UsageError, match=f"the card of {missing}"):
            check(history, data, [card for card in given if unverified(card).node != missing])


def test_a_card_by_the_same_roots_vouches_for_another_version(history: History) -> None:
    data = history.export("FIRST").data  # embeds cards 1 and 3 of FR, and card 1 of DE
    fr = [card for card in history.cards() if unverified(card).node == FR]
    newest_of_de = [card for card in history.cards() if unverified(card).node == DE][-1:]
    shown = check(history, data, [*fr[1:2], *newest_of_de])
    assert {(v.card.node, v.card.version): v.how for v in shown.cards} == {
        (DE, 1): How.SAME_ROOTS,
        (FR, 1): How.SAME_ROOTS,
        (FR, 3): How.FOLLOWS,  # card 3 has other roots, and those of card 2 have signed it
    }
    with pytest.raises(SignatureError, match=r"card 1 of cert\.fr\.example .* does not follow"):
        check(history, data, [*fr[-1:], *newest_of_de])  # the roots have changed since: nothing vouches for card 1


def test_the_card_of_a_stranger_who_took_the_name_is_of_no_use(history: History, tmp_path: Path) -> None:
    data, given = history.export("LATE").data, history.cards(newest=True)
    main.init_home(tmp_path / "fr", FR, Country("FR"), ADDRESS, ADDRESS, roots=1, threshold=1, packs=())
    stranger = main.open_node(tmp_path / "fr")
    stranger.engine.dispose()
    assert check(history, data, given).account.name == "LATE"  # sanity
    with pytest.raises(SignatureError, match="does not follow"):
        check(history, data, [stranger.card_bytes, *(card for card in given if unverified(card).node != FR)])
    high = rotated(stranger, version=3)  # the version that is in the file
    with pytest.raises(SignatureError, match="two contents"):
        check(history, data, [high, *given])


def rotated(node: Node, version: int) -> bytes:
    """A card of that version by the node's own root keys."""
    payload = replace(node.card, version=version).payload()
    signatures = [jws.sign(payload, keyring.JWS_TYPE, root.kid, root.sign) for root in node.keys.roots()]
    return jws.serialise(jws.SignedDocument(payload, tuple(signatures)))


def with_roots(node: Node, card: Card, signers: Iterable[Node]) -> bytes:
    """A card under the root keys of `node`, signed by those of each of `signers`."""
    payload = replace(card, roots=node.card.roots).payload()
    keys = (root for signer in signers for root in signer.keys.roots())
    return jws.serialise(
        jws.SignedDocument(payload, tuple(jws.sign(payload, keyring.JWS_TYPE, k.kid, k.sign) for k in keys))
    )


def test_an_older_card_is_not_vouched_for_backwards(history: History, tmp_path: Path) -> None:
    real = history.chain[IN]
    main.init_home(tmp_path / "in", IN, Country("IN"), ADDRESS, ADDRESS, roots=1, threshold=1, packs=())
    stranger = main.open_node(tmp_path / "in")
    stranger.engine.dispose()
    newer = replace(real.card, version=5)
    given = with_roots(real, newer, (real,))
    assert vouch((real.card_bytes, given), (given,), {IN}).vouched[0].how is How.SAME_ROOTS  # sanity
    follower = with_roots(stranger, replace(newer, version=6), (stranger, real))
    assert vouch((follower,), (given,), {IN}).vouched[0].how is How.FOLLOWS
    older = with_roots(stranger, replace(newer, version=4), (stranger,))
    cosigned = with_roots(real, newer, (real, stranger))  # anybody can add a signature to a card that is known
    for forged in ((older,), (older, cosigned), (with_roots(stranger, replace(newer, version=4), (stranger, real)),)):
        with pytest.raises(SignatureError, match=r"card 4 of .* does not follow"):
            vouch(forged, (given,), {IN})


def test_a_party_whose_card_nobody_gave_is_told_apart(tmp_path: Path) -> None:
    world = make_world(tmp_path, FR, DE, IN)
    agree(world)
    release(world, "A")
    world.sync_all(2)
    made = proofs.export(world[FR], "A", DE)
    shown = proof.verify(made.data, [world[FR].card_bytes, world[DE].card_bytes], world[FR].labels)
    assert {v.card.node: v.how for v in shown.cards} == {FR: How.GIVEN, DE: How.GIVEN, IN: How.FILE}
    world.close()


# Forged by its sender


@pytest.mark.invariant("I14")
@pytest.mark.invariant("I17")
@pytest.mark.parametrize("name", sorted(FORGED))
def test_what_its_sender_forges_is_refused(history: History, files: dict[str, bytes], name: str) -> None:
    release_name, error, words, forge = FORGED[name]
    node = history.chain[history.releases[release_name][0]]
    honest = opened(files[release_name])
    assert check(history, sealed(node, honest)).account.name  # sanity: signing again is no offence by itself
    with pytest.raises(error, match=words) as caught:
        check(history, sealed(node, forge(honest)))
    assert "Title of" not in str(caught.value)
    assert "Musterfrau" not in str(caught.value)


def test_a_receipt_of_another_feed_proves_nothing(history: History) -> None:
    payload, other = (opened(history.export(name).data) for name in ("GRANTED", "GRANTED on"))
    with pytest.raises(WrongFeedError, match="another feed"):
        check(history, sealed(history.chain[FR], {**payload, "receipt": other["receipt"]}))


def test_a_grant_for_another_recipient_is_no_leave(history: History) -> None:
    payload = opened(history.export("GRANTED on").data)
    given = relays.give(history.chain[FR], "FIRST", DE, (IN,), None, history.chain.clock() + timedelta(days=2))[0]
    forged = resent(payload, lambda d: replace(d, grant=given.grant.document))
    with pytest.raises(GrantError, match="another core"):
        check(history, sealed(history.chain[DE], forged))


def test_only_the_sender_signs_a_proof(history: History) -> None:
    payload = opened(history.export("FIRST").data)
    with pytest.raises(SignatureError, match="another node"):
        check(history, sealed(history.chain[DE], payload))
    with pytest.raises(KeyringError, match="issue key"):
        check(history, sealed(history.chain[DE], payload, as_node=FR))
    with pytest.raises(MalformedError, match="typ"):
        check(history, sealed(history.chain[FR], payload, typ="statement+jws"))


def test_the_file_has_one_form(history: History) -> None:
    data = history.export("FIRST").data
    signed = jws.parse(data, typ=proof.JWS_TYPE, max_bytes=MAX_PROOF_BYTES)
    signer = history.chain[DE].keys.signer(Role.ISSUE, history.chain[DE].card, history.chain.clock())
    second = jws.sign(signed.payload, proof.JWS_TYPE, f"{DE}/{signer.kid}", signer.sign)
    for wrong, error, words in (
        (data + b"\n", MalformedError, "one serialised form"),
        (data.replace(b'":"', b'": "', 1), MalformedError, "one serialised form"),
        (jws.serialise(jws.with_signature(signed, second)), SignatureError, "2 signatures"),
        (data[:-1], MalformedError, "JSON"),
    ):
        with pytest.raises(error, match=words):
            check(history, wrong)
