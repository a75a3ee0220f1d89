"""The guard finds in what leaves what was withheld, however it is written, and never repeats it."""

import json
from typing import Any

import pytest

from federation.errors import HeldError
from federation.model import Category, Decision, Element, ElementDecision, Form, NodeId, Rule
from federation.policy.guard import Hit, Kind, Withheld, demote, normalise, search

NOTE = "/csaf/document/notes/0"
AWAY = "/csaf/document/acknowledgments/0"


def withheld(value: Any, *categories: Category, path: str = AWAY) -> Withheld:
    return Withheld(path, frozenset(categories), value)


def found(text: Any, *elements: Withheld) -> list[Kind]:
    return [hit.kind for hit in search({NOTE: text}, {}, elements)]


REPORTER = withheld({"names": ["Jane Doe"], "organization": "Acme"}, Category.PERSONAL)


@pytest.mark.invariant("I4")
def test_a_withheld_name_in_a_note_is_found_and_named_by_place_only() -> None:
    # honest: the note does not name her
    assert search({NOTE: {"text": "Reported by a researcher."}}, {"v": 1}, [REPORTER]) == ()
    # attack: it does
    hits = search({NOTE: {"text": "Thanks to Jane Doe!"}, "/csaf/document/title": "A flaw"}, {"v": 1}, [REPORTER])
    assert hits == (Hit(NOTE, Kind.PERSON, AWAY),)
    assert "jane" not in repr(hits).casefold()


@pytest.mark.invariant("I4")
@pytest.mark.parametrize(
    "text",
    [
        "JANE DOE found it",
        "Jane\n   Doe found it",
        "Jane\u00a0Doe found it",
        "Ja\u00adne D\u200boe found it",
        "\uff2aane Doe found it",
        "\U0001d409ane \U0001d403oe found it",  # mathematical capitals: compatibility first, then case
        "see https://x.example/%4Aane%20Doe",
        "see https://x.example/%254Aane%2520Doe",
        "https://x.example/u/jane-doe",
        "jane_doe",
        "Jane.Doe found it",
        {"deep": [{"er": ["x", "Jane Doe"]}]},
        {"deep": [{"Jane Doe": 1}]},
    ],
)
def test_a_name_is_found_however_it_is_written(text: Any) -> None:
    assert found(text, REPORTER) == [Kind.PERSON]


def test_what_csaf_calls_its_members_is_no_text_of_anybody() -> None:
    threats = withheld("Threats", Category.VICTIM)
    assert found({"threats": ["none"]}, threats) == []
    assert found({"our threats": ["none"]}, threats) == [Kind.VICTIM]


@pytest.mark.parametrize("text", ["Mary-Jane Doerr", "Janet Doe", "jane", {"_sd": ["Jane Doe"]}])
def test_a_part_of_a_word_is_no_hit(text: Any) -> None:
    assert found(text, REPORTER) == []


@pytest.mark.invariant("I4")
def test_names_in_scripts_without_spaces_are_found_inside_a_sentence() -> None:
    victim = withheld("三菱電機", Category.VICTIM)
    assert found("被害者は三菱電機株式会社です", victim) == [Kind.VICTIM]
    assert found("被害者は三菱地所です", victim) == []
    assert found("李明发现了漏洞", withheld("李明", Category.PERSONAL)) == [Kind.PERSON]


@pytest.mark.invariant("I4")
def test_an_address_in_any_withheld_string_is_a_term() -> None:
    technical = withheld("Write to j.doe@mail.acme.example, or call.", Category.TECHNICAL)
    assert found("contact: J.DOE@mail.acme.example", technical) == [Kind.EMAIL]
    assert found("contact: j.doe[at]mail[.]acme[.]example", technical) == [Kind.EMAIL]
    assert found("contact: security@mail.acme.example", technical) == []


@pytest.mark.invariant("I4")
@pytest.mark.parametrize(
    ("secret", "leak"),
    [
        ("203.0.113.7", "traffic to 203[.]0[.]113[.]7 was seen"),
        ("Traffic to 203.0.113.7 and evil.example was seen", "block 203.0.113.7"),
        ("Traffic to 203.0.113.7 and evil.example was seen", "block evil[.]example now"),
        ("Fetched hxxps://evil[.]example/a?b=c today", "see https://evil.example/a?b=c"),
        ("The file d41d8cd98f00b204e9800998ecf8427e was dropped", "D41D8CD98F00B204E9800998ECF8427E"),
        ("Fetched hxxp://intranet/a7 today", "see http://intranet/a7"),
        ("Beacon to 2001:db8::dead:beef every hour", "2001:db8::dead:beef"),
    ],
)
def test_indicators_are_taken_out_of_prose(secret: str, leak: str) -> None:
    hits = found(leak, withheld({"text": secret, "category": "description"}, Category.INDICATOR))
    assert Kind.INDICATOR in hits


def test_prose_of_another_category_counts_from_24_characters_with_a_space() -> None:
    long = withheld("Send a crafted packet to port 4711.", Category.EXPLOIT)
    assert found("To repeat it: send a crafted packet to port 4711.", long) == [Kind.TEXT]
    assert found("Send a packet", withheld("Send a packet", Category.EXPLOIT)) == []
    assert found("x" * 30, withheld("x" * 30, Category.EXPLOIT)) == []


def test_of_a_long_text_its_beginning_is_enough() -> None:
    text = " ".join(f"word{n}" for n in range(500))
    assert found(" ".join(text.split()[:100]), withheld(text, Category.EXPLOIT)) == [Kind.TEXT]
    assert found(" ".join(text.split()[:50]), withheld(text, Category.EXPLOIT)) == []


@pytest.mark.parametrize(
    "value",
    [
        {"category": "vendor", "status": "final"},
        {"date": "2026-11-21T09:30:00Z"},
        "2026-11-21",
        {"product_ids": ["CSAFPID-0001"], "group_ids": ["CSAFGID-0001"]},
        {"cvss_v3": {"vectorString": "CVSS:3.1/AV:N/AC:L", "baseSeverity": "HIGH", "baseScore": 7.5, "version": "3.1"}},
        {"name": "Bob"},  # shorter than any term
        7,
        None,
        "",
        "...",
    ],
)
def test_enums_dates_scores_ids_and_short_strings_are_no_terms(value: Any) -> None:
    assert search({NOTE: value, "/csaf/x": json.dumps(value)}, value, [withheld(value, Category.VICTIM)]) == ()


def test_the_name_of_the_element_counts_as_the_member_s_name() -> None:
    path = "/csaf/vulnerabilities/0/product_status/fixed/0"
    assert (
        found("CSAFPID-0001", withheld("CSAFPID-0001", Category.SOURCE, path=path.replace("fixed", "product_ids")))
        == []
    )
    assert found("CSAFPID-0001", withheld("CSAFPID-0001", Category.SOURCE)) == [Kind.SOURCE]


@pytest.mark.invariant("I4")
def test_an_element_that_gives_no_terms_does_not_end_the_search() -> None:
    score = withheld("Jane Doe", Category.PERSONAL, path="/csaf/vulnerabilities/0/cve")
    assert found("Thanks to Jane Doe", score, REPORTER) == [Kind.PERSON]
    assert found("Thanks to Jane Doe", REPORTER, score) == [Kind.PERSON]
    assert found("Thanks to Jane Doe", score) == []


@pytest.mark.invariant("I4")
@pytest.mark.parametrize(
    ("secret", "kinds"),
    [
        ("evil_tool", [Kind.INDICATOR]),  # one token, though of no known form
        ("drop the tool", []),  # prose of fewer than 24 characters
        ("abcdefghijkl mnopqrstuvw", [Kind.TEXT]),  # 24 of them
        ("abcdefghijkl mnopqrstuv", []),
    ],
)
def test_what_of_an_indicators_text_is_a_term(secret: str, kinds: list[Kind]) -> None:
    assert found(f"see: {secret}.", withheld(secret, Category.INDICATOR)) == kinds


@pytest.mark.invariant("I4")
@pytest.mark.parametrize(("name", "is_term"), [("Жук", False), ("Жуки", True), ("Bob", False), ("Bobo", True)])
def test_a_name_of_four_letters_in_any_alphabet_is_a_term(name: str, is_term: bool) -> None:
    assert found(f"by {name} today", withheld(name, Category.PERSONAL)) == ([Kind.PERSON] if is_term else [])


def test_a_hit_is_told_once_for_each_kind_and_owner() -> None:
    hits = search({NOTE: ["Jane Doe", "Jane Doe and Jane Doe"]}, {"tracking": {"id": "jane-doe-1"}}, [REPORTER])
    assert hits == (Hit(NOTE, Kind.PERSON, AWAY), Hit(None, Kind.PERSON, AWAY))


def test_normalising_twice_changes_nothing() -> None:
    for text in ("Ja\u00adne%20DOE", "\ufb01ne  \uff21\uff22", "evil[.]example", "100% sure", "Straße"):
        assert normalise(normalise(text)) == normalise(text)


def decision(**shares: tuple[Form, bool]) -> Decision:
    rule = Rule("clause", "agreement", "Shares it.")
    decided = tuple(
        ElementDecision(
            Element(
                f"/csaf/{name}", frozenset((Category.TECHNICAL,)), "f", "g" if general else None, (), name == "status"
            ),
            form,
            (rule,),
        )
        for name, (form, general) in shares.items()
    )
    return Decision(NodeId("cert.in.example"), b"", decided, (), (), None)


@pytest.mark.invariant("I4")
def test_a_hit_narrows_its_element_step_by_step() -> None:
    before = decision(note=(Form.FULL, True), other=(Form.FULL, True), bare=(Form.FULL, False))
    once = demote(before, [Hit("/csaf/note", Kind.PERSON, AWAY), Hit("/csaf/bare", Kind.TEXT, AWAY)])
    assert [d.form for d in once.elements] == [Form.GENERALISED, Form.FULL, Form.WITHHELD]
    rule = once.elements[0].rules[0]
    assert (rule.id, rule.basis) == ("guard", "invariant I4")
    assert rule.says == f"Contains a term that this recipient may not see (person of {AWAY})."
    twice = demote(once, [Hit("/csaf/note", Kind.PERSON, AWAY)])
    assert [d.form for d in twice.elements] == [Form.WITHHELD, Form.FULL, Form.WITHHELD]
    assert demote(twice, []) == twice


@pytest.mark.invariant("I4")
def test_when_the_product_tree_falls_what_refers_to_it_falls_too() -> None:
    before = decision(product_tree=(Form.FULL, False), status=(Form.FULL, False))
    after = demote(before, [Hit("/csaf/product_tree", Kind.VICTIM, AWAY)])
    assert [d.form for d in after.elements] == [Form.WITHHELD, Form.WITHHELD]
    assert [r.id for r in after.elements[1].rules] == ["needs-products"]


@pytest.mark.invariant("I4")
@pytest.mark.parametrize(
    ("path", "where"),
    [
        (None, "the part that is always plain"),
        ("/csaf/document", "/csaf/document, which cannot be withheld,"),
        ("/csaf/gone", "/csaf/gone, which cannot be withheld,"),
    ],
)
def test_a_hit_where_nothing_can_be_withheld_holds_the_release(path: str | None, where: str) -> None:
    before = decision(note=(Form.FULL, True), gone=(Form.WITHHELD, True))
    words = rf"^{where} contains a term \(person\) of /csaf/document/acknowledgments/0, which this recipient"
    with pytest.raises(HeldError, match=words):
        demote(before, [Hit(path, Kind.PERSON, AWAY)])


def test_a_package_url_is_no_e_mail_address() -> None:
    secret = Withheld("/csaf/product_tree", frozenset({Category.PRODUCT}), {"purl": "pkg:generic/lastwerk/serve@3.8.1"})
    leaving = {"/csaf/document/notes/0": {"text": "Update to serve 3.8.1."}}
    assert search(leaving, {}, [secret]) == ()
