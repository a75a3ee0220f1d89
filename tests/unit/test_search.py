"""Finding what came in: by what was disclosed and nothing else, over SQLite and PostgreSQL alike."""

import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select

from federation.errors import NotFoundError, UsageError
from federation.model import JsonObject, Tlp, instant_text
from federation.recall import Reason
from node.desk import inbox, search, work
from node.desk.inbox import InboxState
from node.desk.search import Query
from node.home.context import Node
from node.sharing import recalls, releases, retention
from node.store import database
from node.store.database import read, write
from node.store.tables import inbox as inbox_table
from node.store.tables import inbox_terms
from tests.contract.stores import MEMORY, POSTGRESQL, new_database
from tests.nodes import DE, FR, IN, World, agree, document, files_hold, import_document, make_world

WITHHELD_SHARE = "\n  - {id: all, tlp: [GREEN, AMBER], share: {identification: full, technical: full, product: full}}"
TREE = {
    "branches": [
        {
            "category": "vendor",
            "name": "ACME",
            "branches": [
                {
                    "category": "product_name",
                    "name": "Gateway",
                    "branches": [
                        {
                            "category": "product_version",
                            "name": "1.0",
                            "product": {"name": "ACME Gateway 1.0", "product_id": "P-1"},
                        }
                    ],
                }
            ],
        }
    ],
    "full_product_names": [{"name": "Straße Router", "product_id": "P-2"}],
}


@pytest.fixture(params=(MEMORY, POSTGRESQL))
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """FR shares everything with DE, whose database is one of two kinds."""
    where = database.MEMORY if request.param == MEMORY else new_database()
    made = make_world(tmp_path, databases={DE: where})
    agree(made)
    yield made
    made.close()


def send(world: World, name: str, *, tlp: Tlp = Tlp.GREEN, **more: Any) -> None:
    handling = {"tlp": tlp.value}
    releases.release(world[FR], import_document(world[FR], document(name, **more), handling=handling))
    world.sync(DE, FR)


def found(node: Node, *, every_state: bool = False, **query: Any) -> list[str]:
    """The names of what a question finds, oldest first."""
    return [item.name for item in reversed(inbox.items(node, Query(**query), every_state=every_state))]


def vulnerability(cve: str, *ids: str) -> JsonObject:
    other = {"ids": [{"system_name": "other", "text": text} for text in ids]} if ids else {}
    return {"cve": cve, "notes": [{"category": "summary", "text": "x"}], **other}


def test_each_question_finds_what_fits_and_all_of_them_together(world: World) -> None:
    de = world[DE]
    start = world.clock()
    send(world, "A", vulnerabilities=[vulnerability("CVE-2026-0001", "CVE-2026-7777", "GHSA-aaaa-bbbb-cccc")])
    world.clock.move(days=2)
    send(world, "B", tlp=Tlp.AMBER, product_tree=TREE, notes=("Prompt injection in the GATEWAY.",))
    send(world, "C", notes=("100% of _all_ tokens and/or slashes",))
    everything = ["A", "B", "C"]
    questions: list[tuple[dict[str, Any], list[str]]] = [
        ({}, everything),
        ({"cve": "cve-2026-0001"}, ["A"]),
        ({"cve": "CVE-2026-7777"}, ["A"]),  # it stands among the other ids
        ({"cve": "CVE-2026-000"}, []),
        ({"product": "acme gateway 1.0"}, ["B"]),
        ({"product": "GATE"}, ["B"]),
        ({"product": "STRASSE"}, ["B"]),
        ({"product": "acme router"}, []),  # two products, not one
        ({"text": "injection prompt"}, ["B"]),
        ({"text": "prompt extraction"}, []),
        ({"text": "ghsa-AAAA"}, ["A"]),
        ({"text": "100%"}, ["C"]),
        ({"text": "1%0"}, []),
        ({"text": "_all_"}, ["C"]),
        ({"text": "_a__"}, []),
        ({"text": "and/or"}, ["C"]),
        ({"text": "and_or"}, []),
        ({"tlp": Tlp.AMBER}, ["B"]),
        ({"origin": FR}, everything),
        ({"origin": IN}, []),
        ({"since": start + timedelta(days=1)}, ["B", "C"]),
        ({"until": start + timedelta(days=1)}, ["A"]),
        ({"since": world.clock()}, ["B", "C"]),  # the first instant counts
        ({"until": world.clock()}, ["A"]),  # the last does not
        ({"unread": True}, everything),
        ({"assigned_to": "alice"}, []),
        ({"text": "gateway", "tlp": Tlp.AMBER, "since": start, "product": "acme"}, ["B"]),
        ({"text": "gateway", "tlp": Tlp.GREEN}, []),
    ]
    for question, names in questions:
        assert found(de, **question) == names, question
    work.mark_read(de, "A")
    work.assign(de, "C", "alice")
    assert found(de, unread=True) == ["B", "C"]
    assert found(de, assigned_to="alice") == ["C"]
    assert found(de, assigned_to="bob") == []


# For any document: every word that is in it finds it, and no other word does

_TEXTS = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=60
)  # NUL, ligatures and marks included
_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | _TEXTS,
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=8), inside, max_size=4),
    max_leaves=12,
)
_NO_WORD = "\N{HANGUL SYLLABLE HIH}" * 3  # of a script that the alphabet below lacks


@pytest.fixture(scope="module", params=(MEMORY, POSTGRESQL))
def one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, int]]:
    """A node with one item in its inbox, under which the documents of the property are noted one after the other."""
    where = database.MEMORY if request.param == MEMORY else new_database()
    world = make_world(tmp_path_factory.mktemp("one"), databases={DE: where})
    agree(world)
    send(world, "A")
    yield world[DE], inbox.items(world[DE])[0].id
    world.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(csaf=st.dictionaries(st.text(max_size=8), _JSON, max_size=5), ai=st.none() | st.dictionaries(st.text(), _JSON))
def test_every_word_of_any_document_finds_it(one: tuple[Node, int], csaf: JsonObject, ai: JsonObject | None) -> None:
    node, number = one
    note(node, number, csaf, ai)
    for word in {word for string in strings((csaf, ai)) for word in string.split()}:
        for spelling in (word, word.upper(), unicodedata.normalize("NFKD", word)):
            if search.fold(spelling) == search.fold(word):  # a capital letter may be two letters elsewhere
                assert len(inbox.items(node, Query(text=spelling))) == 1, ascii(word)
    if not any(_NO_WORD in unicodedata.normalize("NFKC", string) for string in strings((csaf, ai))):
        assert inbox.items(node, Query(text=_NO_WORD)) == ()


def note(node: Node, number: int, csaf: JsonObject, ai: JsonObject | None = None) -> None:
    """One document in place of the one before."""
    with write(node.engine) as tx:
        tx.execute(delete(inbox_terms))
        search.index(tx, number, csaf, ai)


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for inside in value.values() if isinstance(value, dict) else value:
            yield from strings(inside)


@pytest.mark.parametrize("odd", ["", "text", [], [1, None, "x"], {"a": 1}, [{"branches": {"a": 1}, "name": 3}]])
def test_documents_of_any_shape_are_noted_without_a_fault(one: tuple[Node, int], odd: Any) -> None:
    node, number = one
    parts = ("branches", "full_product_names", "relationships", "product", "full_product_name")
    for csaf in ({"vulnerabilities": odd, "product_tree": odd}, *({"product_tree": {part: odd}} for part in parts)):
        note(node, number, csaf)
    assert found(node) == ["A"]


def test_the_terms_of_one_item_are_bounded(one: tuple[Node, int]) -> None:
    node, number = one
    words = " ".join(f"word{n:07}" for n in range(200_000))
    products = [{"name": f"product {n:07} {'x' * 3000}", "product_id": str(n)} for n in range(600)]
    cves = [{"cve": f"CVE-2026-{n:019}"} for n in range(60_000)]
    csaf = {"a": words, "product_tree": {"full_product_names": products}, "vulnerabilities": cves}
    note(node, number, csaf)
    with read(node.engine) as tx:
        rows = tx.execute(select(inbox_terms.c.kind, inbox_terms.c.value)).all()
    for kind in ("cve", "product", "text"):
        size = sum(len(row.value.encode()) for row in rows if row.kind == kind)
        assert search.MAX_TERM_BYTES // 2 < size <= search.MAX_TERM_BYTES, kind
    assert len([row for row in rows if row.kind == "text"]) == 1
    assert found(node, text="word0000000 word0080000") == ["A"]
    assert found(node, text="word0199999") == []


@pytest.mark.parametrize(
    "question",
    [
        {"cve": "CVE-1"},
        {"cve": "CVE-2026-1 OR 1"},
        {"cve": ""},
        {"text": " "},
        {"text": "x" * 1001},
        {"text": "\udcff"},
        {"origin": "\udcff"},
        {"assigned_to": "\udcff"},
    ],
)
def test_a_question_that_nothing_can_answer_is_refused_with_a_sentence(
    one: tuple[Node, int], question: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="--"):
        found(one[0], **question)
    with pytest.raises(NotFoundError):
        inbox.find(one[0], "\udcff")


# What was withheld is not found, and what is gone leaves nothing behind


@pytest.mark.invariant("I2")
def test_what_was_withheld_is_never_found(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    agree(world, grants=WITHHELD_SHARE)
    labels = {"/csaf/document/notes/1": "exploit"}
    notes = ("What everybody may know: teapot.", "How to do it: xylophone.")
    releases.release(world[FR], import_document(world[FR], document("A", notes=notes), labels=labels))
    world.sync(DE, FR)
    assert found(world[DE], text="teapot") == ["A"]
    assert found(world[DE], text="xylophone") == []
    with read(world[DE].engine) as tx:
        assert not any("xylophone" in value for value in tx.execute(select(inbox_terms.c.value)).scalars())
    world.close()


def terms(node: Node) -> list[str]:
    """The names of the items of which there are terms."""
    with read(node.engine) as tx:
        query = select(inbox_table.c.name).join(inbox_terms, inbox_terms.c.inbox == inbox_table.c.id).distinct()
        return sorted(tx.execute(query).scalars())


@pytest.mark.invariant("I15")
@pytest.mark.parametrize("way", ["withdrawn", "recalled", "expired"])
def test_what_is_gone_leaves_no_terms_and_is_not_found(tmp_path: Path, way: str) -> None:
    world = make_world(tmp_path)
    fr, de = world[FR], world[DE]
    agree(world)
    soon = instant_text(world.clock() + timedelta(days=2))
    brief = document("A", title="teapot", product_tree=TREE, vulnerabilities=[vulnerability("CVE-2026-0001")])
    releases.release(fr, import_document(fr, brief, handling={"tlp": "GREEN", "retain_until": soon}))
    releases.release(fr, import_document(fr, document("B", title="kettle")))
    world.sync(DE, FR)
    assert terms(de) == ["A", "B"]
    assert files_hold(de, b"teapot")  # sanity: the search finds what is there
    if way == "withdrawn":
        releases.withdraw(fr, "A", DE)
    elif way == "recalled":
        recalls.give(fr, "A", Reason.ERROR)
    world.sync(DE, FR)
    if way == "expired":
        world.clock.move(days=3)
        assert terms(de) == ["A", "B"]
        for query in ({"text": "teapot"}, {"product": "acme"}, {"cve": "CVE-2026-0001"}):
            assert found(de, every_state=True, **query) == []  # ended, though its bytes are still here
        assert {item.title for item in inbox.items(de, every_state=True)} == {"(its retention has ended)", "kettle"}
        retention.expire(de)
    assert terms(de) == ["B"]
    assert found(de, every_state=True, text="teapot") == []
    assert {item.name: item.state for item in inbox.items(de, every_state=True)} == {
        "A": InboxState(way),
        "B": InboxState.CURRENT,
    }
    de.engine.dispose()
    assert not files_hold(de, b"teapot")
    world.close()


def test_states_are_asked_for_as_they_are_now(world: World) -> None:
    de = world[DE]
    soon = instant_text(world.clock() + timedelta(days=2))
    brief = import_document(world[FR], document("A"), handling={"tlp": "GREEN", "retain_until": soon})
    releases.release(world[FR], brief)
    send(world, "B")
    assert [i.name for i in inbox.items(de, states=[InboxState.EXPIRED])] == []
    world.clock.move(days=3)
    assert [(i.name, i.state) for i in inbox.items(de, states=[InboxState.EXPIRED])] == [("A", InboxState.EXPIRED)]
    assert [i.name for i in inbox.items(de, states=[InboxState.CURRENT])] == ["B"]
    assert [i.name for i in inbox.items(de, states=[InboxState.CURRENT, InboxState.EXPIRED])] == ["B", "A"]


def test_items_of_an_older_version_get_their_terms_and_gone_ones_do_not(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    agree(world)
    de = world[DE]
    for name in ("A", "B"):
        send(world, name, title=f"teapot {name}")
    recalls.give(world[FR], "B", Reason.ERROR)
    world.sync(DE, FR)
    with write(de.engine) as tx:
        tx.execute(delete(inbox_terms))
    assert found(de, text="teapot") == []
    assert inbox.index_missing(de) == 1
    assert found(de, text="teapot") == ["A"]
    assert terms(de) == ["A"]
    assert inbox.index_missing(replace(de)) == 0
    world.close()
