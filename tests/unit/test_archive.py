"""The file of a backup: whole or not at all, and no byte of it that is not checked."""

import hashlib
import io
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from federation.errors import UsageError
from federation.model import NodeId
from node.operation import archive
from node.operation.archive import Feed, Manifest, Member

NODE = NodeId("cert.fr.example")
CONTENT = {"apostille.yaml": b"node: x\n", "keys/salt": b"\x00" * 16, "keys/seal.pub": b"", "apostille.db": b"d" * 1500}


def sources(folder: Path) -> list[Path]:
    """The files of CONTENT, in the order of their names."""
    for name, data in CONTENT.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return [folder / name for name in sorted(CONTENT)]


def manifest_of(folder: Path, **changed: object) -> Manifest:
    members = tuple(archive.measure(str(path.relative_to(folder)), path) for path in sources(folder))
    made = Manifest(
        node=NODE,
        made_at=datetime(2026, 11, 22, 9, 30, tzinfo=UTC),
        version="0.2.0",
        schema="0002",
        database="apostille.db",
        feeds=(Feed("cert.fr.example/feeds/cert.de.example/1", 7, 5),),
        files=members,
    )
    return replace(made, **changed)  # type: ignore[arg-type]  # members by name


@pytest.fixture
def written(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    archive.write(tmp_path / "backup.tar", manifest_of(folder), sources(folder))
    return tmp_path / "backup.tar"


def refused(path: Path, into: Path, match: str = " ") -> None:
    """Neither checking nor unpacking takes the file, and nothing lies outside of the folder."""
    into.mkdir(exist_ok=True)
    around = set(into.parent.rglob("*")) - set(into.rglob("*"))
    with pytest.raises(UsageError, match=match):
        archive.verify(path)
    with pytest.raises(UsageError, match=match):
        archive.unpack(path, into)
    assert set(into.parent.rglob("*")) - set(into.rglob("*")) == around
    assert not any(found.is_symlink() for found in into.rglob("*"))


def test_what_was_written_comes_out_again_for_its_owner_alone(written: Path, tmp_path: Path) -> None:
    into = tmp_path / "new"
    into.mkdir()
    manifest = archive.verify(written)
    assert archive.unpack(written, into) == manifest == manifest_of(tmp_path / "home")
    found = {str(path.relative_to(into)): path.read_bytes() for path in into.rglob("*") if path.is_file()}
    assert found == CONTENT
    assert written.stat().st_mode & 0o777 == 0o600
    assert {path.stat().st_mode & 0o777 for path in into.rglob("*")} == {0o600, 0o700}


def test_any_tar_reads_it_and_sha256sum_checks_it(written: Path, tmp_path: Path) -> None:
    into = tmp_path / "by-hand"
    into.mkdir()
    subprocess.run(["tar", "-x", "-f", written, "-C", into], check=True)
    done = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=into, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1 + len(CONTENT)


def test_no_byte_of_it_can_be_another_one(written: Path, tmp_path: Path) -> None:
    good, bad = written.read_bytes(), tmp_path / "bad.tar"
    for place in range(0, len(good), 17):  # meets every header, number, digest, block of zeros and each of the files
        bad.write_bytes(good[:place] + bytes([good[place] ^ 1 << place % 8]) + good[place + 1 :])
        with pytest.raises(UsageError):
            archive.verify(bad)


@pytest.mark.parametrize("length", [0, 1, 511, 512, 600, 5000, -1, -512])
def test_a_part_of_it_is_no_backup(written: Path, tmp_path: Path, length: int) -> None:
    part = tmp_path / "part.tar"
    part.write_bytes(written.read_bytes()[:length])
    refused(part, tmp_path / "new")


@pytest.mark.parametrize("more", [b"\0", b"x", b"\0" * 512, b"\0" * 10240])
def test_nothing_stands_behind_its_end(written: Path, tmp_path: Path, more: bytes) -> None:
    longer = tmp_path / "longer.tar"
    longer.write_bytes(written.read_bytes() + more)
    refused(longer, tmp_path / "new", "has not the size")


def test_a_file_that_exists_is_not_written_over(written: Path, tmp_path: Path) -> None:
    before = written.read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        archive.write(written, manifest_of(tmp_path / "home"), sources(tmp_path / "home"))
    assert written.read_bytes() == before


@pytest.mark.parametrize("change", [b"", b"d" * 1499, b"D" + b"d" * 1499, b"d" * 1501])
def test_a_source_that_changes_meanwhile_leaves_nothing_behind(tmp_path: Path, change: bytes) -> None:
    folder, target = tmp_path / "home", tmp_path / "backup.tar"
    folder.mkdir()
    manifest = manifest_of(folder)
    (folder / "apostille.db").write_bytes(change)
    paths = [folder / member.name for member in manifest.files]
    if len(change) == 1501:  # what was added after the manifest was made is not read
        archive.write(target, manifest, paths)
        archive.verify(target)
        return
    with pytest.raises(UsageError, match=r"apostille\.db changed"):
        archive.write(target, manifest, paths)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_disk_that_is_too_small_is_found_before_anything_is_written(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    into = tmp_path / "new"
    into.mkdir()
    monkeypatch.setattr(archive, "disk_usage", lambda _: type("Usage", (), {"free": 100})())
    with pytest.raises(UsageError, match="are free"):
        archive.unpack(written, into)
    assert list(into.iterdir()) == []


def test_a_size_of_more_than_eight_gigabytes_has_one_header_too() -> None:
    header = archive._header("apostille.db", 9 << 30)
    assert tarfile.TarInfo.frombuf(header, "utf-8", "strict").size == 9 << 30


# Files that others made


def hostile(path: Path, *infos: tuple[tarfile.TarInfo, bytes], manifest: Manifest) -> Path:
    """A tar whose manifest says what the attacker likes, with members of the attacker's choice."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        head = manifest.encode()
        for info, data in ((member(archive.MANIFEST, head), head), *infos):
            tar.addfile(info, io.BytesIO(data))
        sums = archive._sums(manifest)
        tar.addfile(member(archive.SUMS, sums), io.BytesIO(sums))
    return path


def member(name: str, data: bytes, **changed: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o600
    for key, value in changed.items():
        setattr(info, key, value)
    return info


def one(name: str, data: bytes) -> tuple[Member, ...]:
    return (Member(name, len(data), hashlib.sha256(data).hexdigest()),)


def test_the_attackers_tar_is_taken_where_it_is_honest(tmp_path: Path) -> None:
    """So that the tests below refuse for the reason that they name."""
    folder = tmp_path / "home"
    folder.mkdir()
    manifest = replace(manifest_of(folder), files=one("apostille.yaml", b"x"), database="")
    path = hostile(tmp_path / "b.tar", (member("apostille.yaml", b"x"), b"x"), manifest=manifest)
    assert archive.verify(path) == manifest


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/etc/evil",
        "keys/../../evil",
        "keys/deep/er.pem",
        "other/file",
        ".hidden",
        "keys/.hidden",
        "",
        "a\x00b",
        "keys/",
        "n" * 101,
        "SHA256SUMS",
        "manifest.json",
        "keys\\evil",
        "ключ",
    ],
)
def test_names_lead_nowhere_else(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    manifest = replace(manifest_of(folder), files=one(name, b"x"), database="")
    path = hostile(tmp_path / "b.tar", (member(name or "x", b"x"), b"x"), manifest=manifest)
    refused(path, tmp_path / "new")


KINDS: dict[str, Callable[[tarfile.TarInfo], None]] = {
    "a symbolic link": lambda info: info.__setattr__("type", tarfile.SYMTYPE),
    "a hard link": lambda info: info.__setattr__("type", tarfile.LNKTYPE),
    "a device": lambda info: info.__setattr__("type", tarfile.CHRTYPE),
    "a pipe": lambda info: info.__setattr__("type", tarfile.FIFOTYPE),
    "a folder": lambda info: info.__setattr__("type", tarfile.DIRTYPE),
    "a file with holes": lambda info: info.__setattr__("type", tarfile.GNUTYPE_SPARSE),
    "a file that runs as its owner": lambda info: info.__setattr__("mode", 0o4755),
    "somebody else's file": lambda info: info.__setattr__("uid", 1000),
    "a link target beside": lambda info: info.__setattr__("linkname", "/etc/passwd"),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_there_are_plain_files_and_nothing_else(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    manifest = replace(manifest_of(folder), files=one("apostille.yaml", b""), database="")
    info = member("apostille.yaml", b"", linkname="")
    KINDS[kind](info)
    refused(hostile(tmp_path / "b.tar", (info, b""), manifest=manifest), tmp_path / "new")


def test_what_the_manifest_does_not_name_is_not_there(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    first, second = (member("apostille.yaml", b"x"), b"x"), (member("keys/extra.pem", b"y"), b"y")
    manifest = replace(manifest_of(folder), files=one("apostille.yaml", b"x"), database="")
    for number, members in enumerate(((first, second), (second, first), (), (first, first), (second,))):
        path = hostile(tmp_path / f"{number}.tar", *members, manifest=manifest)
        refused(path, tmp_path / f"new-{number}")


@pytest.mark.parametrize(
    "changed",
    [
        {"files": (Member("apostille.db", 1 << 61, "0" * 64),)},
        {"files": (Member("apostille.db", -1, "0" * 64),)},
        {"files": (Member("apostille.db", 1, "0" * 63),)},
        {"files": one("apostille.db", b"x") * 2},
        {"files": tuple(Member(f"keys/{n}", 0, "0" * 64) for n in range(archive.MAX_FILES + 1))},
        {"database": "other.db"},
        {"feeds": (Feed("no feed", 1, 1),)},
        {"feeds": (Feed("cert.fr.example/feeds/cert.de.example/1", -1, 1),)},
        {"node": "NOT A NODE"},
    ],
)
def test_a_manifest_says_nothing_that_a_home_could_not_be(tmp_path: Path, changed: dict[str, object]) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    manifest = manifest_of(folder, **{"files": one("apostille.db", b"x"), **changed})
    refused(hostile(tmp_path / "b.tar", (member("apostille.db", b"x"), b"x"), manifest=manifest), tmp_path / "new")


@pytest.mark.parametrize("data", [b"", b"x" * 512, b"SQLite format 3\0" * 1000])
def test_what_is_no_backup_is_told_so(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "something"
    path.write_bytes(data)
    refused(path, tmp_path / "new", "no backup of a node")


def test_what_cannot_be_read_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Is a directory"):
        archive.verify(tmp_path)
    with pytest.raises(UsageError, match="No such file"):
        archive.verify(tmp_path / "nothing.tar")
