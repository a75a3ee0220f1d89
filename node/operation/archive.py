"""The file of a backup: a tar that any `tar` reads, in the one form that this module writes.

First `manifest.json`, which names every other file with its size and SHA-256, then these files in its order, last
`SHA256SUMS`, as sha256sum(1) checks it. All are plain files with names of a fixed kind, and every byte of the file is
accounted for: a header is the one that we would write, what fills a block is zero, and nothing stands behind the end.
So there are no paths that lead elsewhere, no links, no devices, no holes, and nothing that grows when it is unpacked.

A backup is written whole or not at all, and is as secret as the home that it is of: cases lie in it in clear.
"""

import hashlib
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from shutil import disk_usage
from typing import Any, BinaryIO, Final

from federation import strictjson
from federation.checkpoint import parse_origin_line
from federation.errors import RemoteError, UsageError
from federation.model import JsonObject, NodeId, instant, instant_text, node_id

MANIFEST: Final = "manifest.json"
SUMS: Final = "SHA256SUMS"
FORMAT: Final = 1
MAX_FILES: Final = 10_000  # a key a role a day for years
MAX_MANIFEST_BYTES: Final = 8 << 20  # of MAX_FILES files and as many feeds
_BLOCK: Final = tarfile.BLOCKSIZE
_RECORD: Final = tarfile.RECORDSIZE  # a tar is filled up to a multiple of this
_CHUNK: Final = 1 << 20
_MAX_SIZE: Final = 1 << 62
_PRIVATE: Final = 0o600
_NAME = re.compile(r"(?:(?:keys|roots)/)?[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_HEX = re.compile(r"[0-9a-f]{64}")
_MEMBERS: Final = frozenset(("backup", "node", "made_at", "version", "schema", "database", "feeds", "files"))


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a backup."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Feed:
    """How long a feed was, by its origin line, and how much of it was acknowledged."""

    origin: str
    size: int
    acknowledged: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup says of itself. `schema` is that of the database, `version` that of the program.

    `database` names the file that the database is, or is empty: then it is a server's, and is not in the backup.
    """

    node: NodeId
    made_at: datetime
    version: str
    schema: str
    database: str
    feeds: tuple[Feed, ...]
    files: tuple[Member, ...]

    def encode(self) -> bytes:
        """As it stands in the file."""
        return strictjson.encode(
            {
                "backup": FORMAT,
                "node": self.node,
                "made_at": instant_text(self.made_at),
                "version": self.version,
                "schema": self.schema,
                "database": self.database,
                "feeds": [[feed.origin, feed.size, feed.acknowledged] for feed in self.feeds],
                "files": [[member.name, member.size, member.sha256] for member in self.files],
            }
        )


def measure(name: str, path: Path) -> Member:
    """The size and SHA-256 of a file that is to be written under `name`."""
    with path.open("rb") as file:
        return Member(name, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def write(target: Path, manifest: Manifest, sources: Sequence[Path]) -> str:
    """Writes a backup of `sources`, which are the manifest's files in its order. Returns the SHA-256 of the whole.

    Raises UsageError when there is a file of that name, or it cannot be written, or a source changed meanwhile.
    """
    if target.exists():
        raise UsageError(f"{target} exists already; name a new file")
    digest = hashlib.sha256()
    with _new_file(target) as file:
        written = 0

        def put(data: bytes) -> None:
            nonlocal written
            file.write(data)
            digest.update(data)
            written += len(data)

        head, sums = manifest.encode(), _sums(manifest)
        put(_header(MANIFEST, len(head)) + head + _padding(len(head)))
        for member, source in zip(manifest.files, sources, strict=True):
            put(_header(member.name, member.size))
            seen = hashlib.sha256()
            with source.open("rb") as content:
                for chunk in _chunks(content, member.size):
                    seen.update(chunk)
                    put(chunk)
            if seen.hexdigest() != member.sha256:
                raise UsageError(f"{member.name} changed while it was read; make the backup anew")
            put(_padding(member.size))
        put(_header(SUMS, len(sums)) + sums + _padding(len(sums)))
        put(bytes(_end(written)))
    return digest.hexdigest()


def verify(path: Path) -> Manifest:
    """What the backup says of itself, after every byte of it was checked. Raises UsageError."""
    with _opened(path) as file:
        manifest = _read_manifest(file, path)
        for member in manifest.files:
            _copy(file, member, path, None)
        _check_end(file, manifest, path)
    return manifest


def unpack(path: Path, folder: Path) -> Manifest:
    """Writes the files of the backup into `folder`, which is new, for its owner alone; checked on the way.

    Raises UsageError; what was written until then stays.
    """
    with _opened(path) as file:
        manifest = _read_manifest(file, path)
        needed, free = sum(member.size for member in manifest.files), disk_usage(folder).free
        if needed > free:
            raise UsageError(f"{folder}: {needed >> 20} MiB are needed there, {free >> 20} MiB are free")
        for member in manifest.files:
            into = folder / member.name
            into.parent.mkdir(mode=0o700, exist_ok=True)
            with os.fdopen(os.open(into, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE), "wb") as out:
                _copy(file, member, path, out)
                out.flush()
                os.fsync(out.fileno())
        _check_end(file, manifest, path)
    return manifest


def _read_manifest(file: BinaryIO, path: Path) -> Manifest:
    """The manifest, and with it the size that the whole must have. Raises UsageError."""
    block = file.read(_BLOCK)
    try:
        size = int(block[124:135], 8)  # POSIX ustar: the size field
    except ValueError as e:
        raise UsageError(f"{path} is no backup of a node") from e
    if not 0 < size <= MAX_MANIFEST_BYTES or block != _header(MANIFEST, size):
        raise UsageError(f"{path} is no backup of a node")
    data = file.read(size)
    if len(data) != size or file.read(len(_padding(size))) != _padding(size):
        raise _damaged(path, MANIFEST)
    try:
        content = strictjson.decode_object(data, max_bytes=MAX_MANIFEST_BYTES, what=MANIFEST)
        manifest = _manifest(content)
    except (RemoteError, ValueError, TypeError) as e:
        raise _damaged(path, MANIFEST) from e
    if manifest.encode() != data:
        raise _damaged(path, MANIFEST)
    length = sum(_BLOCK + m.size + len(_padding(m.size)) for m in (*manifest.files, Member(MANIFEST, size, "")))
    sums = len(_sums(manifest))
    length += _BLOCK + sums + len(_padding(sums))
    if path.stat().st_size != length + _end(length):
        raise UsageError(f"{path} is damaged: it has not the size that its manifest says")
    return manifest


def _manifest(content: JsonObject) -> Manifest:
    """Raises ValueError, TypeError or a RemoteError for anything but what `Manifest.encode` makes."""
    if content.keys() != _MEMBERS or content["backup"] != FORMAT:
        raise ValueError("members")
    files = tuple(Member(*listed) for listed in content["files"])
    feeds = tuple(Feed(*listed) for listed in content["feeds"])
    names = [member.name for member in files]
    if len(files) > MAX_FILES or len(set(names)) != len(names) or {MANIFEST, SUMS} & set(names):
        raise ValueError("files")
    for member in files:
        if not _NAME.fullmatch(member.name) or not _HEX.fullmatch(member.sha256) or not _is_count(member.size):
            raise ValueError("file")
    for feed in feeds:
        parse_origin_line(feed.origin)
        if not _is_count(feed.size) or not _is_count(feed.acknowledged):
            raise ValueError("feed")
    version, schema, database = (content[name] for name in ("version", "schema", "database"))
    if not all(isinstance(text, str) for text in (version, schema, database)) or database not in ("", *names):
        raise ValueError("database")
    return Manifest(node_id(content["node"]), instant(content["made_at"]), version, schema, database, feeds, files)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_SIZE


def _copy(file: BinaryIO, member: Member, path: Path, out: BinaryIO | None) -> None:
    """Reads one member, and writes it to `out`. Raises UsageError unless it is what the manifest says."""
    if file.read(_BLOCK) != _header(member.name, member.size):
        raise _damaged(path, member.name)
    seen, size = hashlib.sha256(), 0
    for chunk in _chunks(file, member.size):
        seen.update(chunk)
        size += len(chunk)
        if out is not None:
            out.write(chunk)
    if (size, seen.hexdigest()) != (member.size, member.sha256) or file.read(len(_padding(size))) != _padding(size):
        raise _damaged(path, member.name)


def _check_end(file: BinaryIO, manifest: Manifest, path: Path) -> None:
    sums = _sums(manifest)
    tail = _header(SUMS, len(sums)) + sums + _padding(len(sums))
    if file.read(len(tail)) != tail:
        raise _damaged(path, SUMS)
    rest = file.read(2 * _RECORD)  # its length was checked
    if any(rest):
        raise UsageError(f"{path} is damaged: something stands behind its end")


def _sums(manifest: Manifest) -> bytes:
    lines = [f"{hashlib.sha256(manifest.encode()).hexdigest()}  {MANIFEST}"]
    return "".join(f"{line}\n" for line in (*lines, *(f"{m.sha256}  {m.name}" for m in manifest.files))).encode()


def _header(name: str, size: int) -> bytes:
    """The one header that a file of that name and size can have. GNU's form where a size is 8 GiB or more."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, _PRIVATE
    return info.tobuf(tarfile.GNU_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


def _end(length: int) -> int:
    """How many zero bytes end a tar of `length` bytes: two blocks, then up to a full record."""
    return 2 * _BLOCK + -(length + 2 * _BLOCK) % _RECORD


def _chunks(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0 and (chunk := file.read(min(size, _CHUNK))):
        size -= len(chunk)
        yield chunk


def _damaged(path: Path, name: str) -> UsageError:
    return UsageError(f"{path} is damaged at {name}: use another backup")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb")
    except OSError as e:
        raise UsageError(f"{path} cannot be read: {e.strerror}") from e
    with file:
        yield file


@contextmanager
def _new_file(target: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when it is whole and on the disk. Raises UsageError."""
    part = target.with_name(f".{target.name}.part")
    try:
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.rename(target)
        flush_folder(target.parent)
    except OSError as e:
        raise UsageError(f"{target} cannot be written: {e.strerror}") from e
    finally:
        part.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Makes what was renamed or created in `folder` survive power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
