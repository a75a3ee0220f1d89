"""Grants, passing on and statements at the command line, as real processes on homes of a chain."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from federation import assertion, statement
from federation.entries import Said
from federation.model import Role
from federation.statement import Kind
from node.cli.statement import Spoken
from node.desk import inbox
from node.peering import peers
from node.sharing import passing, revisions, statements
from tests.chains import KE, NAME, Chain, arrived, give, join, make_chain, pass_on, send
from tests.e2e.test_cli import Done, run
from tests.nodes import DE, FR, IN, append_by_hand, history, make_node
from tests.unit.test_statement_format import envelope

UNTIL = "2099-01-01"
SECOND = "/csaf/document/notes/1"
ESCAPES = "It is\x1b]0;owned\x07 hit.\nIn line two\u202e as well."


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    """What FR released lies in the inbox of DE; nobody has granted anything."""
    made = make_chain(tmp_path)
    join(made, FR, DE)
    join(made, DE, IN)
    send(made, notes=("First.", "Second."))
    yield made
    made.close()


def command(chain: Chain, at: object, *words: str) -> Done:
    """One command at the home of a node."""
    return run(next(node.home for node in chain.nodes.values() if node.id == at), *words)


def test_a_grant_is_given_listed_and_used(chain: Chain) -> None:
    granting = ("advisory", "grant", NAME, "--relay", DE, "--to", IN, "--until", UNTIL)
    shown = command(chain, FR, *granting)
    assert (shown.code, "2099-01-01 00:00Z" in shown.out, "personal" in shown.out) == (0, True, False)
    again = command(chain, FR, *granting, "--json").json()
    assert (again["fresh"], again["to"], again["advisory"], again["until"]) == (False, [IN], NAME, f"{UNTIL}T00:00:00Z")
    chain.sync(DE, FR)
    (held,) = command(chain, DE, "advisory", "grants", "--json").json()
    assert (held["grant"], held["origin"], held["by"]) == (again["grant"], FR, FR)
    assert "in force" in command(chain, DE, "advisory", "grants").out
    before = len(history(chain[DE], IN))
    preview = command(chain, DE, "relay", NAME, "--to", IN, "--preview", "--withhold", SECOND, "--json").json()
    assert (preview["origin"], preview["preview"], preview["peers"][0]["leaves"]) == (FR, True, True)
    assert {rule["rule"]: rule["paths"] for rule in preview["peers"][0]["rules"]}["relay/by-hand"] == [SECOND]
    assert len(history(chain[DE], IN)) == before
    done = command(chain, DE, "relay", "1", "--to", IN, "--withhold", SECOND)
    assert (done.code, "released as entry" in done.out, "A person here keeps this part back." in done.out) == (
        0,
        True,
        True,
    )
    chain.sync(IN, DE)
    assert [note["text"] for note in arrived(chain).csaf["document"]["notes"]] == ["First."]
    (row,) = command(chain, DE, "ledger", "list", "--peer", IN, "--json").json()
    assert row["advisory"] == NAME


def test_what_was_passed_on_is_taken_back(chain: Chain) -> None:
    give(chain)
    entry = pass_on(chain, inbox.items(chain[DE])[0].id)
    chain.sync(IN, DE)
    back = ("relay", NAME, "--to", IN, "--withdraw")
    command(chain, DE, *back, "--preview").refused(2, "takes back all of it")
    assert command(chain, DE, *back, "--json").json() == [{"peer": IN, "entries": [entry.seq]}]
    command(chain, DE, *back).refused(3, "nothing that was passed on")
    chain.sync(IN, DE)
    assert inbox.items(chain[IN]) == ()


def test_what_cannot_be_passed_on_is_told_with_its_rule(chain: Chain) -> None:
    done = command(chain, DE, "relay", NAME, "--to", IN)
    assert (done.code, done.err.splitlines()[-1].startswith(f"apostille: nothing of {NAME} was passed on")) == (1, True)
    assert "handling/relay-onward" in done.out
    command(chain, DE, "relay", NAME, "--to", FR).refused(2, "not passed back")
    command(chain, DE, "relay", NAME, "--to", KE).refused(3, f"no peer is called {KE}")
    command(chain, DE, "relay", "99", "--to", IN).refused(3, "the inbox has no 99")
    command(chain, DE, "relay", NAME, "--to", IN, "--withhold", "everything").refused(2, "--withhold everything")
    command(chain, DE, "relay", NAME).refused(2, "--to")
    give(chain)
    assert command(chain, DE, "relay", NAME, "--to", IN, "--withhold", "/csaf/document/title").code == 6


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("NONE", "--relay", DE, "--to", IN, "--until", UNTIL), 3, "was signed here"),
        ((NAME, "--relay", IN, "--to", DE, "--until", UNTIL), 3, "exchanges with"),
        ((NAME, "--relay", DE, "--to", KE, "--until", UNTIL), 2, "--keys-only"),
        ((NAME, "--relay", DE, "--to", IN, "--until", "2020-01-01"), 2, "name a later day"),
        ((NAME, "--relay", DE, "--to", IN, "--until", "next week"), 2, "expected a day such as"),
        ((NAME, "--relay", DE, "--to", IN, "--until", "2027-02-30"), 2, "expected a day such as"),
        ((NAME, "--relay", DE, "--to", IN, "--until", UNTIL, "--category", "all"), 2, "--category"),
    ],
)
def test_a_grant_that_cannot_be_given_is_told(chain: Chain, words: tuple[str, ...], code: int, told: str) -> None:
    before = len(history(chain[FR], DE))
    command(chain, FR, "advisory", "grant", *words).refused(code, told)
    assert len(history(chain[FR], DE)) == before


def test_nodes_of_which_only_the_card_is_known_are_enrolled_and_shown_as_such(chain: Chain, tmp_path: Path) -> None:
    stranger = make_node(tmp_path / "stranger", KE, "KE")
    file = chain[FR].home.parent / "ke.json"
    file.write_bytes(stranger.card_bytes)
    stranger.engine.dispose()
    words = peers.fingerprint_words(stranger.card.roots)
    command(chain, FR, "peer", "enrol", str(file), "--keys-only", "--fingerprint", "wrong words").refused(1, "another")
    done = command(chain, FR, "peer", "enrol", str(file), "--keys-only", "--fingerprint", words)
    assert (done.code, "can be verified here" in done.err) == (0, True)
    listed = {peer["node"]: peer["direct"] for peer in command(chain, FR, "peer", "list", "--json").json()}
    assert listed == {DE: True, IN: False, KE: False}
    assert "card only" in command(chain, FR, "peer", "list").out
    command(chain, FR, "sync", KE).refused(3, "only the card is known")
    command(chain, FR, "advisory", "release", NAME, "--to", KE).refused(3, "only the card is known")


def test_a_question_is_asked_listed_shown_and_answered(chain: Chain) -> None:
    words = chain[DE].home.parent / "words.txt"
    words.write_text(ESCAPES, encoding="utf-8")
    done = command(chain, DE, "statement", "send", "--about", NAME, "--kind", "question", "--file", str(words))
    assert (done.code, f"is on its way to {FR}" in done.err) == (0, True)
    chain.sync(FR, DE)
    (listed,) = command(chain, FR, "statement", "list", "--about", NAME, "--json").json()
    assert (listed["kind"], listed["author"], listed["body"]["text"]) == ("question", DE, ESCAPES)
    shown = command(chain, FR, "statement", "show", "1").out
    assert "\x1b" not in shown + command(chain, FR, "statement", "list").out
    assert "\u202e" not in shown
    assert "In line two as well." in shown
    answer = command(chain, FR, "statement", "reply", "1", "--text", "Version 4 is not.", "--json").json()
    assert (answer["kind"], answer["recipient"], answer["answers"]) == ("answer", DE, 1)
    chain.sync(DE, FR)
    first, second = command(chain, DE, "statement", "list", "--json").json()
    assert (first["kind"], second["answers"], second["body"]["text"]) == ("question", 1, "Version 4 is not.")
    assert "this node" in command(chain, DE, "statement", "list").out


def test_what_cannot_be_said_is_told(chain: Chain) -> None:
    send_ = ("statement", "send", "--about")
    command(chain, DE, *send_, "99", "--kind", "acknowledge").refused(3, "the inbox has no 99")
    command(chain, DE, *send_, "NONE", "--kind", "acknowledge").refused(3, "the inbox has no")
    command(chain, DE, *send_, NAME, "--kind", "question").refused(2, "takes a text")
    command(chain, DE, *send_, NAME, "--kind", "acknowledge", "--text", "x").refused(2, "says all by itself")
    command(chain, DE, *send_, NAME, "--kind", "answer", "--text", "x").refused(2, "--kind")
    command(chain, DE, *send_, NAME, "--kind", "question", "--text", "x", "--file", "y").refused(2, "say it once")
    command(chain, DE, "statement", "reply", "1", "--text", "x").refused(3, "there is no statement 1")
    command(chain, DE, "statement", "show", "1").refused(3, "there is no statement 1")
    assert command(chain, DE, "statement", "list").err == "Nothing was said.\n"
    assert statements.all_kept(chain[DE]) == ()


def test_refusals_and_kinds_that_are_not_known_are_shown_by_their_envelope(chain: Chain) -> None:
    give(chain)
    peers.distrust(chain[IN], FR)
    pass_on(chain, inbox.items(chain[DE])[0].id)
    chain.sync(IN, DE)
    chain.sync(DE, IN)
    signer = chain[FR].keys.signer(Role.ISSUE, chain[FR].card, chain.clock())
    members = envelope(statement="embargo-vote", to=DE, about=None, body={"until": ESCAPES})
    made = assertion.sign(members, statement.JWS_TYPE, FR, signer.kid, signer.sign)
    append_by_hand(chain[FR], DE, Said(made.document))
    chain.sync(DE, FR)
    listed = command(chain, DE, "statement", "list", "--json").json()
    assert [kept["kind"] for kept in listed] == [Kind.REFUSAL, "embargo-vote"]
    assert (listed[0]["concerns"], listed[1]["body"]) == ([f"{FR}/{NAME}"], {"until": ESCAPES})
    assert "1 not taken: UNKNOWN_ORIGIN" in command(chain, DE, "statement", "list", "--about", NAME).out
    assert "UNKNOWN_ORIGIN" in command(chain, DE, "statement", "show", "1").out
    unknown = command(chain, DE, "statement", "show", "2")
    assert ("does not know statements of that kind" in unknown.err, "owned" in unknown.out) == (True, False)
    assert json.loads(command(chain, DE, "statement", "show", "2", "--json").out)["author"] == FR


def test_people_can_say_what_the_format_lets_them_say() -> None:
    assert [kind.value for kind in Spoken] == list(statement.SPOKEN)


def test_a_preview_of_passing_on_is_what_would_be_passed_on(chain: Chain) -> None:
    give(chain)
    _, (previewed,) = passing.preview(chain[DE], NAME, (IN,))
    _, (passed,) = passing.pass_on(chain[DE], NAME, (IN,))
    assert (previewed.decision, previewed.presented) == (passed.decision, passed.presented)
    assert (previewed.seq, passed.seq is None) == (None, False)


def test_who_is_left_with_an_earlier_revision_is_told_on_both_sides_of_a_relay(tmp_path: Path) -> None:
    chain = make_chain(tmp_path)
    join(chain, FR, DE, onward="peers")
    join(chain, DE, IN, onward="peers")
    pass_on(chain, send(chain, handling={"tlp": "GREEN", "onward": "peers"}))
    revisions.revise_from_issued(chain[FR], NAME)
    released = command(chain, FR, "advisory", "release", NAME, "--to", DE)
    assert f"Perhaps others got revision 1 from {DE}: it alone can pass the new one on." in released.err
    chain.sync(DE, FR)
    listed = command(chain, FR, "advisory", "holders", NAME)
    assert f"perhaps others, via {DE}" in listed.out
    assert f"apostille recall order {NAME} --reason replaced --revision 1" in listed.err
    perhaps = {"peer": None, "holds": [1], "newest": 2, "acknowledged": None, "left": None, "via": DE}
    assert command(chain, FR, "advisory", "holders", NAME, "--json").json() == [perhaps]
    there = f"{FR}/{NAME}"
    status = command(chain, DE, "status", "--json").json()
    assert (status["unsettled"], status["unsettled_of"]) == (1, [there])
    assert f"This is so of {there}." in command(chain, DE, "status").err
    left = {"peer": IN, "holds": [1], "newest": 2, "acknowledged": False, "left": None}
    assert command(chain, DE, "advisory", "holders", there, "--json").json() == [{**left, "via": None}]
    command(chain, DE, "advisory", "holders", there, "--recall").refused(2, f"apostille relay {there} --to PEER")
    again = command(chain, DE, "relay", "1", "--to", IN, "--preview")
    assert "is left with" not in again.err
    done = command(chain, DE, "relay", there, "--to", IN, "--json").json()
    assert (done["revision"], done["unsettled"]) == (2, [])
    assert (
        f"Nobody is left with an earlier revision of {there}." in command(chain, DE, "advisory", "holders", there).err
    )
    chain.close()
