"""People as real processes: who may run which command, and acts that need two of them.

A second person is a process whose real user id is another one and whose effective user id is still that of the home's
owner, as a program leaves it that runs as its owner. That takes root.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import typer

from federation.errors import AwaitsSecondError
from federation.model import Category, NodeId
from node.cli import app
from node.home import people
from node.home.people import Post
from node.peering import agreements, peers
from node.sharing import advisories, cases, releases
from tests.e2e.persons import MANY, Done, account, rows, run, run_by_sudo, run_naming_a_login, start, state
from tests.nodes import DE, FR, IN, agree, document, import_document, make_node, make_world, terms_text

ROOT = Path(__file__).parents[2]
CASE = ROOT / "config" / "examples" / "cases" / "FR-2026-017.yaml"
LOGIN = Path("/proc/self/loginuid")
NOT_ALLOWED, AWAITS_SECOND = 9, 10
NAME, SECOND_NAME, RECEIVED = "CERT-FR-2026-0001", "CERT-FR-2026-0002", "CERT-DE-2026-0001"
PART = "/csaf/document/notes/0"
PROPOSED = "exchange-2027"
ANALYST, APPROVER, OPERATOR, AUDITOR, DEPUTY = 61_001, 61_002, 61_003, 61_004, 61_005
PEOPLE = {
    ANALYST: (Post.ANALYST,),
    APPROVER: (Post.APPROVER,),
    OPERATOR: (Post.OPERATOR,),
    AUDITOR: (Post.AUDITOR,),
    DEPUTY: (Post.OPERATOR, Post.APPROVER),
}


@dataclass(frozen=True)
class Audited:
    """What came of every command by the auditor, and the database before and after."""

    done: dict[str, Done]
    before: list[str]
    after: list[str]


@dataclass(frozen=True)
class Use:
    """How a command is called here, and the post that it takes because it changes something; None if it only reads."""

    words: str
    post: Post | None = None


USES = {
    "status": Use(""),
    "doctor": Use(""),
    "upgrade": Use("", Post.OPERATOR),
    "backup": Use("backup.tar", Post.OPERATOR),
    "restore": Use("--by-hand", Post.OPERATOR),
    "card show": Use(""),
    "card export": Use("--out exported.json"),
    "card renew": Use("", Post.OPERATOR),
    "card new-roots": Use("--reason lost", Post.OPERATOR),
    "card install": Use("stranger.json", Post.OPERATOR),
    "key list": Use(""),
    "key rotate": Use("--all", Post.OPERATOR),
    "key retire": Use("5f0c1a2b3c4d5e6f", Post.OPERATOR),
    "key prune": Use("", Post.OPERATOR),
    "peer enrol": Use("stranger.json --yes", Post.OPERATOR),
    "peer list": Use(""),
    "peer distrust": Use(DE, Post.OPERATOR),
    "peer trust": Use(f"{IN} --reason mended", Post.OPERATOR),
    "peer epoch list": Use(""),
    "peer epoch open": Use(f"{DE} --reason restored", Post.OPERATOR),
    "peer epoch accept": Use(f"{DE} --reason telephoned", Post.OPERATOR),
    "agreement template": Use(""),
    "agreement check": Use("agreement.yaml"),
    "agreement propose": Use("agreement.yaml", Post.OPERATOR),
    "agreement countersign": Use(f"{PROPOSED} --yes", Post.OPERATOR),
    "agreement list": Use(""),
    "agreement show": Use(PROPOSED),
    "people": Use(""),
    "approval list": Use("--all"),
    "approval show": Use("1"),
    "approval approve": Use("1", Post.APPROVER),
    "approval refuse": Use("1", Post.APPROVER),
    "case open": Use("case.yaml", Post.ANALYST),
    "case list": Use(""),
    "case show": Use("FR-2026-017"),
    "advisory draft": Use("FR-2026-017", Post.ANALYST),
    "advisory import": Use("advisory.json", Post.ANALYST),
    "advisory label": Use(f"{NAME} {PART} victim", Post.ANALYST),
    "advisory release": Use(NAME, Post.ANALYST),
    "advisory grant": Use(f"{NAME} --relay {DE} --to {IN} --until 2099-01-01", Post.ANALYST),
    "advisory grants": Use(""),
    "advisory revise": Use(f"{NAME} --from-issued", Post.ANALYST),
    "advisory holders": Use(NAME),
    "advisory withdraw": Use(f"{NAME} --from {DE}", Post.ANALYST),
    "recall order": Use(f"{NAME} --reason error", Post.ANALYST),
    "recall preview": Use(NAME),
    "recall status": Use(""),
    "purge": Use("--expired", Post.OPERATOR),
    "advisory list": Use(""),
    "advisory show": Use(NAME),
    "explain": Use(f"{NAME} {DE}"),
    "ledger list": Use(""),
    "ledger verify": Use(""),
    "proof export": Use(f"{NAME} {DE}", Post.AUDITOR),
    "sync": Use("", Post.OPERATOR),
    "inbox list": Use(""),
    "inbox show": Use(RECEIVED),
    "inbox export": Use(f"{RECEIVED} --format csaf --out received.json"),
    "inbox read": Use(RECEIVED, Post.ANALYST),
    "inbox assign": Use(f"{RECEIVED} me", Post.ANALYST),
    "inbox actioned": Use(RECEIVED, Post.ANALYST),
    "inbox annotate": Use(f"{RECEIVED} ours", Post.ANALYST),
    "inbox diff": Use(RECEIVED),
    "alerts list": Use("--all"),
    "alerts ack": Use("--all", Post.OPERATOR),
    "alerts test": Use("", Post.OPERATOR),
    "peer incident list": Use("--all"),
    "peer incident show": Use("1"),
    "peer incident export": Use("1"),
    "peer incident resolve": Use("1 --reason mended", Post.OPERATOR),
    "statement send": Use(f"--about {RECEIVED} --kind acknowledge", Post.ANALYST),
    "statement reply": Use("1 --text yes", Post.ANALYST),
    "statement list": Use(""),
    "statement show": Use("1"),
    "relay": Use(f"{RECEIVED} --to {IN}", Post.ANALYST),
    "quarantine list": Use(""),
    "quarantine show": Use(f"{DE} 0"),
}
WITHOUT_PEOPLE = {  # what needs no home, or runs for the machine and not for a person
    "init": "makes a home, whose owner holds every post",
    "demo": "makes homes of its own",
    "card sign": "signs where the root keys are kept",
    "proof verify": "reads files alone",
    "serve": "is the node itself; what it does by itself it does in the name of the account that runs it",
}
ENDS_WITH = {  # findings; and nothing is there
    "doctor": (0, 1),
    "quarantine show": (3,),
    "inbox diff": (3,),
    "peer incident show": (3,),
    "peer incident export": (3,),
    "recall preview": (3,),
    "statement show": (3,),
}
CHANGES = sorted(path for path, use in USES.items() if use.post is not None)
CLOSED = [path for path in CHANGES if USES[path].post is not Post.AUDITOR]  # to an auditor
READS = sorted(path for path, use in USES.items() if use.post is None)


def run_each(home: Path, who: int, paths: list[str]) -> dict[str, Done]:
    """The commands at `paths`, one after the other in one process of one person."""
    words = [["--home", str(home), *path.split(), *USES[path].words.split()] for path in paths]
    done = json.loads(start(MANY, who, stdin=json.dumps(words), cwd=home.parent).ok())
    return {path: Done(code, "", err) for path, (code, err) in zip(paths, done, strict=True)}


def _can_become_others() -> str | None:
    """Why this process cannot start one of another person; None if it can."""
    if os.getuid() != 0:
        return "another person takes root"
    try:
        start("pass", ANALYST, cwd=ROOT)
    except subprocess.SubprocessError:
        return "this login session cannot be left"
    return None


@pytest.fixture(scope="module")
def open_folder() -> Iterator[Path]:
    """A folder in which everybody can name files: pytest's own are closed to other accounts. Homes in it are not."""
    with TemporaryDirectory(prefix="apostille-people-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def office(open_folder: Path) -> Path:
    """The home of FR as its people found it: peers trusted and not, a proposal, a case, drafts, something received."""
    why_not = _can_become_others()
    if why_not:
        pytest.skip(f"{why_not}: this test was not run")
    world = make_world(open_folder, FR, DE, IN)
    fr, de = world[FR], world[DE]
    agree(world)
    import_document(de, document(RECEIVED))
    releases.release(de, RECEIVED)
    text = terms_text(world, agreement=PROPOSED, parties=f"[{DE}, {FR}]")
    agreements.propose(de, text, "agreement.yaml")
    world.sync(FR, DE)
    cases.open_case(fr, CASE.read_text("utf-8"), "case.yaml")
    import_document(fr, document(NAME, notes=("How to do it.", "More.")))
    advisories.label(fr, NAME, PART, Category.EXPLOIT)
    peers.distrust(fr, IN)
    with suppress(AwaitsSecondError):
        peers.trust_again(fr, IN, "asked by somebody who is not here any more")
    stranger = make_node(open_folder, "cert.ke.example", "KE")
    (open_folder / "stranger.json").write_bytes(stranger.own.document)
    stranger.engine.dispose()
    (open_folder / "agreement.yaml").write_text(text.replace(PROPOSED, "another-one"), encoding="utf-8")
    (open_folder / "case.yaml").write_text(
        CASE.read_text("utf-8").replace("FR-2026-017", "FR-2026-018"), encoding="utf-8"
    )
    (open_folder / "advisory.json").write_text(
        json.dumps({"csaf": document(SECOND_NAME), "handling": {"tlp": "GREEN"}}), encoding="utf-8"
    )
    world.close()
    with (fr.home / "apostille.yaml").open("a", encoding="utf-8") as settings:
        settings.write("people:\n")
        settings.writelines(f'  "uid {uid}": [{", ".join(posts)}]\n' for uid, posts in PEOPLE.items())
    return fr.home


@pytest.fixture
def home(office: Path) -> Iterator[Path]:
    """A copy of it, with the files beside it, to change."""
    with TemporaryDirectory(prefix="apostille-people-") as name:
        shutil.copytree(office.parent, name, dirs_exist_ok=True)  # and its mode
        yield Path(name) / office.name


def commands() -> set[str]:
    """Every command of the catalogue, by its words."""

    def walk(command: Any, context: Any, path: tuple[str, ...]) -> Iterator[str]:
        names = command.list_commands(context) if hasattr(command, "list_commands") else ()
        if not names:
            yield " ".join(path)
        for name in names:
            child = command.get_command(context, name)
            yield from walk(child, child.context_class(child, info_name=name, parent=context), (*path, name))

    top = typer.main.get_command(app)
    return set(walk(top, top.context_class(top, info_name="apostille"), ()))


def test_it_is_known_of_every_command_whether_it_changes_something() -> None:
    assert commands() == USES.keys() | WITHOUT_PEOPLE.keys()


@pytest.fixture(scope="module")
def audited(office: Path) -> Audited:
    """The auditor calls every command that there is."""
    before = state(office)
    return Audited(run_each(office, AUDITOR, [*CLOSED, *READS]), before, state(office))


@pytest.mark.parametrize("path", CLOSED)
def test_an_auditor_is_refused_what_changes_something(audited: Audited, path: str) -> None:
    audited.done[path].refused(NOT_ALLOWED, f"{account(AUDITOR)} is no {USES[path].post} here; ask ")


@pytest.mark.parametrize("path", READS)
def test_an_auditor_reads(audited: Audited, path: str) -> None:
    done = audited.done[path]
    assert done.code in ENDS_WITH.get(path, (0,)), done.err


def test_an_auditor_has_changed_nothing(audited: Audited) -> None:
    assert len(audited.done) == len(USES) - 1
    assert audited.after == audited.before


@pytest.mark.parametrize("who", [ANALYST, APPROVER, OPERATOR], ids=lambda uid: PEOPLE[uid][0])
def test_a_post_opens_its_own_commands_and_no_others(office: Path, who: int) -> None:
    before = state(office)
    closed = [path for path in CHANGES if USES[path].post not in PEOPLE[who]]
    for path, done in run_each(office, who, closed).items():
        done.refused(NOT_ALLOWED, f"{account(who)} is no {USES[path].post} here; ask ")
    assert state(office) == before


def test_an_auditor_exports_proofs_and_that_is_written_down(home: Path) -> None:
    run(home, ANALYST, "advisory", "release", NAME).ok()
    run(home, AUDITOR, "proof", "export", NAME, DE, "--out", "proof.json").ok()
    assert rows(home, "proof.export") == [(account(AUDITOR), "proof.export", f"{DE} 4")]


def test_each_does_what_his_post_is_for_and_the_audit_rows_say_who(home: Path) -> None:
    for who, path in (
        (ANALYST, "advisory import"),
        (ANALYST, "advisory label"),
        (ANALYST, "case open"),
        (OPERATOR, "peer enrol"),
        (OPERATOR, "agreement countersign"),
    ):
        run(home, who, *path.split(), *USES[path].words.split()).ok()
    done = rows(home, "advisory.draft", "advisory.label", "case.open", "peer.enrol", "agreement.countersign")
    assert [(by, act) for by, act, _ in done if by != "alice"] == [
        (account(ANALYST), "advisory.draft"),
        (account(ANALYST), "advisory.label"),
        (account(ANALYST), "case.open"),
        (account(OPERATOR), "peer.enrol"),
        (account(OPERATOR), "agreement.countersign"),
    ]


def test_somebody_without_a_post_reads_and_no_more(home: Path) -> None:
    stranger = 61_900
    assert f"You are uid {stranger}: you may read here." in run(home, stranger, "people").err
    run(home, stranger, "peer", "distrust", DE).refused(NOT_ALLOWED, f"uid {stranger} is no operator here")


def test_the_people_are_listed_with_their_posts(home: Path) -> None:
    told = json.loads(run(home, DEPUTY, "people", "--json").ok())
    assert told["you"] == account(DEPUTY)
    assert {person["account"]: person["posts"] for person in told["people"]} == {
        account(uid): sorted(posts, key=list(Post).index) for uid, posts in PEOPLE.items()
    }
    assert [person["account"] for person in told["people"] if person["you"]] == [account(DEPUTY)]


def asked(home: Path, who: int, *words: str) -> str:
    """The number of the request that a command leaves behind."""
    done = run(home, who, *words)
    assert done.code == AWAITS_SECOND, (done.code, done.err)
    (line,) = done.err.splitlines()
    number = line.split("approval approve ")[1]
    assert line == (
        f"apostille: Noted as request {number}. A second person approves it with: apostille approval approve {number}"
    )
    return number


def trusts(home: Path, peer: NodeId) -> bool:
    listed = json.loads(run(home, AUDITOR, "peer", "list", "--json").ok())
    return next(bool(known["trusted"]) for known in listed if known["node"] == peer)


@pytest.mark.invariant("I13")
def test_a_peer_is_trusted_again_by_two_people_and_not_by_one(home: Path) -> None:
    number = asked(home, DEPUTY, "peer", "trust", IN, "--reason", "new keys, compared by telephone")
    assert not trusts(home, IN)
    run(home, DEPUTY, "approval", "approve", number).refused(NOT_ALLOWED, "another person has to settle it")
    run(home, OPERATOR, "approval", "approve", number).refused(NOT_ALLOWED, f"ask {account(APPROVER)}")
    assert not trusts(home, IN)
    shown = run(home, APPROVER, "approval", "show", number).ok()
    for words in ("Trust this peer again", IN, "new keys, compared by telephone", account(DEPUTY), "fingerprint"):
        assert words in shown
    run(home, APPROVER, "approval", "approve", number).ok()
    assert trusts(home, IN)
    assert rows(home, "approval.done", "peer.trust") == [
        (account(APPROVER), "peer.trust", f"request {number}, asked by {account(DEPUTY)}"),
        (account(APPROVER), "approval.done", f"request {number}: trust, asked by {account(DEPUTY)}"),
    ]
    run(home, APPROVER, "approval", "approve", number).refused(2, f"done already, by {account(APPROVER)}")


@pytest.mark.invariant("I13")
def test_whoever_asked_is_not_somebody_else_in_a_borrowed_account(home: Path) -> None:
    """The approver's account, used by whoever logged in as the one who asked: the kernel remembers the login. It may be
    the other way round too, so neither of the two acts; what reads runs."""
    number = asked(home, DEPUTY, "peer", "trust", IN, "--reason", "it is mended")
    try:
        done = run(home, APPROVER, "approval", "approve", number, login=DEPUTY)
    except subprocess.SubprocessError:
        pytest.skip("this kernel lets nobody set a login user id: this test was not run")
    done.refused(NOT_ALLOWED, f"{account(APPROVER)}, logged in as {account(DEPUTY)}", "log in as yourself")
    assert number in run(home, APPROVER, "approval", "list", login=DEPUTY).ok()
    assert not trusts(home, IN)


@pytest.mark.invariant("I13")
@pytest.mark.parametrize("way", ["sudo", "setuid"])
def test_whoever_asked_is_not_somebody_else_by_naming_a_login(home: Path, way: str) -> None:
    """Where the kernel has no login yet, as in containers, a process of any account may write one, once."""
    number = asked(home, DEPUTY, "peer", "trust", IN, "--reason", "it is mended")

    def say(login: int, *words: str) -> Done:
        return run_naming_a_login(home, DEPUTY, login, way, *words)

    assert json.loads(say(DEPUTY, "people", "--json").ok())["you"] == account(DEPUTY)  # naming one's own is no harm
    say(DEPUTY, "approval", "approve", number).refused(NOT_ALLOWED, "another person has to settle it")
    before = state(home)
    for words in (("approval", "approve", number), ("peer", "distrust", DE)):
        doubt = f"{account(DEPUTY)}, logged in as {account(APPROVER)}"
        say(APPROVER, *words).refused(NOT_ALLOWED, doubt, "nobody can tell which of the two acts")
    assert say(APPROVER, "approval", "show", number).code == 0
    assert state(home) == before


@pytest.mark.invariant("I13")
def test_by_sudo_everybody_is_who_called_it(home: Path) -> None:
    if people._login_uid(LOGIN) is not None:
        pytest.skip("these tests run in a login session: this test was not run")
    run_by_sudo(home, AUDITOR, "peer", "distrust", DE).refused(NOT_ALLOWED, f"{account(AUDITOR)} is no operator here")
    asking = run_by_sudo(home, DEPUTY, "peer", "trust", IN, "--reason", "it is mended")
    number = asking.err.strip().split("approval approve ")[1]
    run_by_sudo(home, DEPUTY, "approval", "approve", number).refused(NOT_ALLOWED, "another person has to settle it")
    run_by_sudo(home, APPROVER, "approval", "approve", number).ok()
    assert trusts(home, IN)


@pytest.mark.invariant("I13")
def test_nobody_gets_posts_by_a_home_of_his_own(home: Path) -> None:
    """A folder of the auditor's, with settings of his own and links to the database and the keys of the node."""
    mine = home.with_name("mine")
    mine.mkdir()
    for part in home.iterdir():
        (mine / part.name).symlink_to(part)
    settings = mine / "apostille.yaml"
    settings.unlink()
    settings.write_text(
        (home / "apostille.yaml")
        .read_text("utf-8")
        .replace(f'"uid {AUDITOR}": [auditor]', f'"uid {AUDITOR}": [operator]'),
        encoding="utf-8",
    )
    for path in (mine, settings):
        os.chown(path, AUDITOR, -1)
    run(home, AUDITOR, "peer", "distrust", DE).refused(NOT_ALLOWED, "is no operator here")
    for words in (("people",), ("doctor",), ("peer", "distrust", DE), ("card", "show"), ("upgrade",)):
        run(mine, AUDITOR, *words).refused(2, f"{mine} belongs to {account(AUDITOR)}", f"run it as {account(AUDITOR)}")
    home.with_name("link").symlink_to(home)
    run(home.with_name("link"), AUDITOR, "people").refused(2, "link is a symbolic link")
    assert trusts(home, DE)


@pytest.mark.invariant("I13")
def test_a_request_of_somebody_who_left_is_void(home: Path) -> None:
    number = asked(home, OPERATOR, "peer", "trust", IN, "--reason", "it is mended")
    settings = home / "apostille.yaml"
    settings.write_text(
        "".join(line for line in settings.read_text("utf-8").splitlines(True) if f"uid {OPERATOR}" not in line),
        encoding="utf-8",
    )
    assert number not in [str(r["request"]) for r in json.loads(run(home, AUDITOR, "approval", "list", "--json").ok())]
    run(home, APPROVER, "approval", "approve", number).refused(
        4, f"{account(OPERATOR)}, who asked for it, is no operator"
    )
    assert not trusts(home, IN)


@pytest.mark.invariant("I13")
def test_a_label_is_lowered_by_two_people_and_refused_by_one(home: Path) -> None:
    lower = ("advisory", "label", NAME, PART, "identification")
    run(home, ANALYST, *lower).refused(2, "was raised to exploit", "takes a second person")
    number = asked(home, ANALYST, *lower, "--reason", "published by the vendor")
    run(home, APPROVER, "approval", "refuse", number).ok()
    run(home, APPROVER, "approval", "approve", number).refused(2, "refused already")
    number = asked(home, ANALYST, *lower, "--reason", "published by the vendor, see their page")
    request = json.loads(run(home, APPROVER, "approval", "show", number, "--json").ok())
    assert (request["arguments"]["from"], request["arguments"]["to"]) == ("exploit", "identification")
    run(home, APPROVER, "approval", "approve", number).ok()
    assert rows(home, "advisory.label")[-1] == (
        account(APPROVER),
        "advisory.label",
        f"{PART} identification, request {number}, asked by {account(ANALYST)}",
    )
