"""Files that a command reads or writes for whoever typed it: never those of the home, however they are named."""

from pathlib import Path

import pytest

from federation.errors import UsageError
from node.cli import session


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "passphrase").write_text("open sesame", encoding="utf-8")
    (tmp_path / "elsewhere").symlink_to(folder)
    (tmp_path / "note.txt").symlink_to(folder / "passphrase")
    session.choose_home(folder)
    return folder


INSIDE = ("home/passphrase", "home/new.json", "home/../home/passphrase", "elsewhere/passphrase", "note.txt")


@pytest.mark.invariant("I17")
@pytest.mark.parametrize("path", INSIDE)
def test_files_of_the_home_are_neither_read_nor_written(home: Path, path: str) -> None:
    named = home.parent / path
    for touch in (lambda: session.read_file(named, 100), lambda: session.write_file(named, b"x")):
        with pytest.raises(UsageError, match="lies in the home of a node"):
            touch()
    assert [file.name for file in home.iterdir()] == ["passphrase"]
    assert (home / "passphrase").read_text("utf-8") == "open sesame"


def test_nor_those_of_another_home(home: Path) -> None:
    other = home.parent / "other"
    (other / "keys").mkdir(parents=True)
    (other / "apostille.yaml").touch()
    with pytest.raises(UsageError, match="lies in the home of a node"):
        session.read_file(other / "keys" / "tls.pem", 100)


def test_files_beside_it_are(home: Path) -> None:
    session.write_file(home.parent / "out.json", b"{}")
    assert session.read_file(home.parent / "out.json", 100) == b"{}"


def test_a_link_that_leads_round_in_a_circle_is_told(home: Path) -> None:
    circle = home.parent / "circle"
    circle.symlink_to(circle)
    with pytest.raises(UsageError, match="circle"):
        session.read_file(circle, 100)
