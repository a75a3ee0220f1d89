"""Who somebody is, and what he may do: posts from the settings, accounts from the kernel."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from config import settings
from federation.errors import ApostilleError, NotAllowedError, UsageError
from federation.model import Category, Country
from node import main
from node.home import people
from node.home.context import Node
from node.home.people import Post
from node.operation import backup, checkup, serve
from node.peering import agreements, peers
from node.records import approvals
from node.sharing import advisories, cases
from tests.nodes import DE, FR, make_node

ROOT = Path(__file__).parents[2]
WHERE = "apostille.yaml"
NOBODY_YET = 61_001  # a user id that no account has
_AS = """
import os, sys
from pathlib import Path
login, real = (int(text) for text in sys.argv[1:])
if login:
    try:
        Path("/proc/self/loginuid").write_text(f"{login}")
    except OSError as e:
        sys.exit(f"CANNOT: {e}")
os.setresuid(real, 0, 0)
from node.home.people import account
print(account(None))
"""
as_root = pytest.mark.skipif(os.getuid() != 0, reason="another user id takes root: 1 test not run")


def account_of(login: int, real: int) -> str:
    """Who a process is, by its login and its real user id, its effective one being that of the home's owner."""
    done = subprocess.run(
        [sys.executable, "-c", _AS, str(login), str(real)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=30,
    )
    if done.stderr.startswith("CANNOT"):
        pytest.skip(f"this kernel lets nobody set a login user id: 1 test not run ({done.stderr.strip()})")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_where_nobody_is_named_the_owner_holds_every_post() -> None:
    given = people.read({}, "alice", WHERE)
    assert given == {"alice": frozenset(Post)}
    with pytest.raises(NotAllowedError, match="bob is no approver here; ask alice"):
        people.require(given, "bob", Post.APPROVER)


def test_where_somebody_is_named_the_owner_holds_what_the_settings_say() -> None:
    given = people.read({"alice": ("analyst", "approver"), "olga": ("operator",)}, "owner", WHERE)
    people.require(given, "alice", Post.ANALYST)
    people.require(given, "alice", Post.APPROVER)
    for account, post in (("owner", Post.ANALYST), ("alice", Post.OPERATOR), ("olga", Post.APPROVER)):
        with pytest.raises(NotAllowedError):
            people.require(given, account, post)


def test_a_post_that_nobody_holds_says_where_posts_are_given() -> None:
    given = people.read({"alice": ("analyst",)}, "owner", WHERE)
    with pytest.raises(NotAllowedError, match=r"nobody is: name one under `people` in apostille\.yaml"):
        people.require(given, "alice", Post.APPROVER)


def test_everybody_who_can_help_is_named() -> None:
    given = people.read({"olga": ("operator",), "oscar": ("operator",), "ann": ("auditor",)}, "owner", WHERE)
    with pytest.raises(NotAllowedError, match="ann is no operator here; ask olga or oscar"):
        people.require(given, "ann", Post.OPERATOR)


def test_a_post_that_there_is_not_is_an_error_and_never_none() -> None:
    with pytest.raises(UsageError, match=r"alice: no post is called admin: analyst, approver, operator, auditor"):
        people.read({"alice": ("analyst", "admin")}, "owner", WHERE)


@pytest.mark.invariant("I13")
def test_one_account_in_two_spellings_is_one_account() -> None:
    assert people.read({"uid 0": ("operator",)}, "owner", WHERE) == {"root": {Post.OPERATOR}}
    assert people.read({f"uid 0{NOBODY_YET}": ("operator",)}, "owner", WHERE) == {f"uid {NOBODY_YET}": {Post.OPERATOR}}
    for spelling in ("uid 0", "uid 00"):
        with pytest.raises(UsageError, match="twice"):
            people.read({"root": ("analyst",), spelling: ("approver",)}, "owner", WHERE)


def test_an_account_that_this_machine_does_not_have_keeps_its_name() -> None:
    assert people.read({"not-here-yet": ("auditor",)}, "owner", WHERE) == {"not-here-yet": {Post.AUDITOR}}
    assert people.uid_of("not-here-yet") is None


@pytest.mark.parametrize(
    ("account", "uid"),
    [("root", 0), ("uid 0", 0), (f"uid {NOBODY_YET}", NOBODY_YET), ("uid", None), ("uid x", None), ("uid -1", None)],
)
def test_an_account_has_one_user_id(account: str, uid: int | None) -> None:
    assert people.uid_of(account) == uid


def test_a_user_id_has_one_name() -> None:
    assert (people.name_of(0), people.name_of(NOBODY_YET)) == ("root", f"uid {NOBODY_YET}")
    assert people.name_of(10**10 - 1) == "uid 9999999999"  # more than a user id can be


def test_settings_keep_people_as_they_were_written() -> None:
    text = (
        "node: cert.fr.example\njurisdiction: FR\nlisten: 127.0.0.1:1\nadvertise: 127.0.0.1:1\npoll_interval_s: 60\n"
        'law_packs: []\npeople:\n  alice: [analyst, approver]\n  "uid 1001": [operator]\n'
    )
    read = settings.read(text, WHERE)
    assert read.people == {"alice": ("analyst", "approver"), "uid 1001": ("operator",)}
    assert settings.read(settings.write(read), WHERE) == read


@pytest.mark.parametrize(
    "written",
    [
        "people: {}",
        "people: [alice]",
        "people: {alice: analyst}",
        "people: {alice: []}",
        "people: {alice: [analyst, analyst]}",
        "people: {'alice; bob': [analyst]}",
        "people: {'uid x': [analyst]}",
    ],
)
def test_people_written_in_another_way_are_refused(written: str) -> None:
    text = (
        "node: cert.fr.example\njurisdiction: FR\nlisten: 127.0.0.1:1\nadvertise: 127.0.0.1:1\npoll_interval_s: 60\n"
        f"law_packs: []\n{written}\n"
    )
    with pytest.raises(UsageError, match="people"):
        settings.read(text, WHERE)


@pytest.mark.parametrize(
    ("text", "uid"),
    [("1001", 1001), ("1001\n", 1001), ("0", None), ("4294967295", None), ("", None), ("x", None), ("-1", None)],
)
def test_the_kernel_says_who_logged_in_or_it_does_not(tmp_path: Path, text: str, uid: int | None) -> None:
    path = tmp_path / "loginuid"
    path.write_text(text, encoding="ascii")
    assert people._login_uid(path) == uid
    assert people._login_uid(tmp_path / "no-such-file") is None


_CHANGES: dict[str, tuple[Post, Callable[[Node], object]]] = {
    "open a case": (Post.ANALYST, lambda node: cases.open_case(node, "", "")),
    "draft": (Post.ANALYST, lambda node: cases.draft(node, "")),
    "import": (Post.ANALYST, lambda node: advisories.import_file(node, b"", "", tlp=None)),
    "label": (Post.ANALYST, lambda node: advisories.label(node, "", "", Category.EXPLOIT)),
    "propose": (Post.OPERATOR, lambda node: agreements.propose(node, "", "")),
    "countersign": (Post.OPERATOR, lambda node: agreements.countersign(node, "")),
    "take an agreement from a file": (Post.OPERATOR, lambda node: agreements.receive_file(node, b"")),
    "enrol": (Post.OPERATOR, lambda node: peers.enrol(node, b"")),
    "distrust": (Post.OPERATOR, lambda node: peers.distrust(node, DE)),
    "trust again": (Post.OPERATOR, lambda node: peers.trust_again(node, DE, "")),
    "approve": (Post.APPROVER, lambda node: approvals.settle(node, 1, {}, approve=True)),
    "refuse": (Post.APPROVER, lambda node: approvals.settle(node, 1, {}, approve=False)),
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    made = make_node(tmp_path_factory.mktemp("people"), FR, "FR")
    yield made
    made.engine.dispose()


@pytest.mark.parametrize("act", _CHANGES)
def test_what_changes_something_asks_for_its_post_before_it_looks_at_anything(node: Node, act: str) -> None:
    post, call = _CHANGES[act]
    every_other = {"alice": frozenset(Post) - {post}}
    with pytest.raises(NotAllowedError, match=f"alice is no {post} here"):
        call(replace(node, actor="alice", people=every_other))
    with pytest.raises(ApostilleError) as caught:
        call(replace(node, actor="alice", people={"alice": frozenset((post,))}))
    assert not isinstance(caught.value, NotAllowedError)


OWNER, ALICE, BRUNO = 900, 1001, 1002


@pytest.mark.invariant("I13")
@pytest.mark.parametrize(
    ("real", "effective", "login", "sudo", "person", "doubt"),
    [
        (OWNER, OWNER, None, None, OWNER, None),  # a shell of the owner, and nothing is known of who opened it
        (OWNER, OWNER, ALICE, None, ALICE, None),  # alice became the owner
        (0, 0, ALICE, None, ALICE, None),  # alice became root, whose home it is
        (OWNER, OWNER, None, ALICE, ALICE, None),  # alice by sudo, where the kernel has no login
        (OWNER, OWNER, ALICE, ALICE, ALICE, None),  # and where it has hers
        (OWNER, OWNER, BRUNO, ALICE, ALICE, BRUNO),  # alice, who wrote bruno there; or bruno, who became alice before
        (OWNER, OWNER, OWNER, ALICE, ALICE, OWNER),
        (OWNER, OWNER, ALICE, OWNER, OWNER, ALICE),
        (OWNER, OWNER, ALICE, 0, 0, ALICE),  # sudo by root, for somebody
        (OWNER, OWNER, None, 0, 0, None),
        (ALICE, OWNER, None, None, ALICE, None),  # alice by a program that changes the effective account alone
        (ALICE, OWNER, ALICE, None, ALICE, None),
        (ALICE, OWNER, BRUNO, None, ALICE, BRUNO),
        (ALICE, OWNER, None, BRUNO, ALICE, None),  # what the environment says does not count there
        (ALICE, OWNER, BRUNO, BRUNO, ALICE, BRUNO),
    ],
)
def test_the_login_never_makes_somebody_another_person(
    real: int, effective: int, login: int | None, sudo: int | None, person: int, doubt: int | None
) -> None:
    assert people.who(real, effective, login, sudo) == (person, doubt)


@pytest.mark.parametrize("sudo", ["", "alice", "-1", "1001 ", "4294967295", "\u0661"])
def test_what_sudo_cannot_have_said_is_an_error(sudo: str) -> None:
    with pytest.raises(UsageError, match="SUDO_UID is no user id"):
        people.account(sudo)


@as_root
@pytest.mark.invariant("I13")
def test_of_whom_it_is_not_clear_who_they_are_nobody_holds_a_post() -> None:
    doubtful = account_of(login=NOBODY_YET, real=NOBODY_YET + 1)
    assert doubtful == f"uid {NOBODY_YET + 1}, logged in as uid {NOBODY_YET}"
    given = people.read({f"uid {uid}": tuple(Post) for uid in (NOBODY_YET, NOBODY_YET + 1)}, "owner", WHERE)
    assert not any(people.holds(given, doubtful, post) for post in Post)
    with pytest.raises(NotAllowedError, match=f"{doubtful}: nobody can tell which of the two acts; log in as yourself"):
        people.require(given, doubtful, Post.OPERATOR)


@as_root
def test_without_a_login_the_real_account_counts_and_never_the_effective_one() -> None:
    if people._login_uid(Path("/proc/self/loginuid")) is not None:
        pytest.skip("these tests run in a login session: 1 test not run")
    assert account_of(login=0, real=NOBODY_YET) == f"uid {NOBODY_YET}"


# The home


def own(path: Path, _elsewhere: Path) -> None:
    os.chown(path, NOBODY_YET, -1)


def link(path: Path, elsewhere: Path) -> None:
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


TOLD: dict[Callable[[Path, Path], None], str] = {own: f"belongs to uid {NOBODY_YET}", link: "is a symbolic link of "}
PARTS = ("apostille.yaml", "apostille.db", "apostille.db-wal", "apostille.db-shm", "keys", "roots", "passphrase")
OPENINGS: dict[str, Callable[[Path], object]] = {
    "open": main.open_node,
    "read the settings": main.read_settings,
    "upgrade": lambda home: main.upgrade_home(home, keep_copy=False),
    "doctor": checkup.examine,
    "serve": lambda home: serve.serve(home, pytest.fail),
    "mark": backup.mark_by_hand,
    "restore": lambda home: backup.restore(home, home.with_name("no-such-file"), replace=True),
}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A home with everything that may lie in one."""
    made = make_node(tmp_path, FR, "FR")
    made.engine.dispose()
    main.open_node(made.home).engine.dispose()  # nothing speaks against it
    for name in PARTS:
        if not (made.home / name).exists():
            (made.home / name).touch(mode=0o600)
    return made.home


@pytest.mark.invariant("I13")
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("change", [link, pytest.param(own, marks=as_root)])
def test_a_home_in_which_something_is_not_its_owners_is_not_opened(
    whole: Path, tmp_path: Path, change: Callable[[Path, Path], None], part: str
) -> None:
    change(whole / part, tmp_path / "elsewhere")
    for opening in OPENINGS.values():
        with pytest.raises(UsageError) as caught:
            opening(whole)
        assert str(caught.value).startswith(f"{whole / part} {TOLD[change]}")
    assert not (whole / "serve.lock").exists()


@as_root
@pytest.mark.invariant("I13")
@pytest.mark.parametrize("opening", OPENINGS.values(), ids=OPENINGS)
def test_a_home_of_somebody_else_is_not_opened(whole: Path, tmp_path: Path, opening: Callable[[Path], object]) -> None:
    own(whole, tmp_path)
    with pytest.raises(UsageError) as caught:
        opening(whole)
    assert str(caught.value) == f"{whole} {TOLD[own]}, and this runs as root: run it as uid {NOBODY_YET}"


@pytest.mark.invariant("I13")
@pytest.mark.parametrize("opening", [name for name in OPENINGS if name != "restore"])  # that goes where the link leads
def test_a_home_is_not_opened_by_a_link_to_it(whole: Path, tmp_path: Path, opening: str) -> None:
    link(whole, tmp_path / "elsewhere")
    with pytest.raises(UsageError) as caught:
        OPENINGS[opening](whole)
    assert str(caught.value).startswith(f"{whole} {TOLD[link]}")


@as_root
@pytest.mark.invariant("I13")
def test_a_home_is_not_made_in_a_folder_of_somebody_else(tmp_path: Path) -> None:
    own(tmp_path, tmp_path)
    with pytest.raises(UsageError, match=f"belongs to uid {NOBODY_YET}"):
        main.init_home(tmp_path, FR, Country("FR"), "127.0.0.1:1", "127.0.0.1:1", roots=1, threshold=1, packs=())
    assert not list(tmp_path.iterdir())
