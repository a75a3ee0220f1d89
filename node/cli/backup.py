"""`apostille backup`: a copy of a home in one file, and checking one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli import make, screen, session

if TYPE_CHECKING:
    from node.operation.archive import Manifest

app = make.single()


@make.command(
    app,
    "backup",
    "apostille backup /media/safe/cert.fr.example-2026-11-22.tar",
    "apostille backup --verify /media/safe/cert.fr.example-2026-11-22.tar",
)
def backup(
    file: Annotated[Path, typer.Argument(help="The file to write, a new one; or the one to check.")],
    verify: Annotated[bool, typer.Option("--verify", help="Check this backup; no home is needed.")] = False,
    with_roots: Annotated[
        bool, typer.Option("--with-roots", help="The root keys too, where they lie in the home; they belong offline.")
    ] = False,
    with_passphrase: Annotated[
        bool, typer.Option("--with-passphrase", help="The file that opens the keys too: then the backup opens them.")
    ] = False,
    as_json: make.AsJson = False,
) -> None:
    """Writes a backup of the home: database, settings, keys, in one file that only you can read, whole or not at all.

    The server may run meanwhile. The file is as secret as the home: the cases lie in it in clear, the keys encrypted.
    What is erased or recalled after it was made is still in it: keep few, and not for long. The passphrase is not in
    it unless you ask, and without the passphrase nothing that is restored can sign: keep that elsewhere.

    A database on a PostgreSQL server is not in it: dump that with pg_dump right after this command.
    """
    from node.operation import archive

    session.check_outside(file)
    if verify:
        manifest = archive.verify(file)
        _show(manifest, as_json, file, None)
        return
    from node.operation import backup as backups

    node = session.node()
    made = backups.make(node, file, roots=with_roots, passphrase=with_passphrase)
    _show(made.manifest, as_json, file, made.sha256)
    if not as_json:
        if not made.manifest.database:
            screen.note("The database is on a server: dump it now with pg_dump, and keep both together.")
        screen.note(f"Check it where it is kept, with: apostille backup --verify {file.name}")


def _show(manifest: "Manifest", as_json: bool, file: Path, sha256: str | None) -> None:
    facts: dict[str, Any] = {
        "file": str(file),
        "node": manifest.node,
        "made_at": manifest.made_at,
        "version": manifest.version,
        "schema": manifest.schema,
        "database": manifest.database or None,
        "files": len(manifest.files),
        "bytes": sum(member.size for member in manifest.files),
        "feeds": [{"feed": f.origin, "size": f.size, "acknowledged": f.acknowledged} for f in manifest.feeds],
    }
    if as_json:
        screen.emit({**facts, **({} if sha256 is None else {"sha256": sha256})})
        return
    screen.facts(
        [
            ("Backup of", manifest.node),
            ("Made", manifest.made_at),
            ("By version", manifest.version),
            ("Files", f"{len(manifest.files)}, {facts['bytes'] >> 10} KiB in all, each as it should be"),
            ("Database", manifest.database or "on a server, not in here"),
            *(() if sha256 is None else (("SHA-256", sha256),)),
        ]
    )
    screen.table(("Feed", "#Entries", "#Acknowledged"), [(f.origin, f.size, f.acknowledged) for f in manifest.feeds])
