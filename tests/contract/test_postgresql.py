"""A home whose database is on a PostgreSQL server: made, opened, looked at, refused where the server is not fit."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import insert

from federation.errors import UsageError
from federation.model import Country, NodeId
from node import main
from node.cli import exits, session
from node.home import keys, owncard
from node.operation import checkup
from node.operation.checkup import Verdict
from node.store import database, postgresql
from node.store.tables import metadata, peers
from tests.contract.stores import administrator, new_database
from tests.nodes import ADDRESS, DE, FR, make_node

SECRET = "s3cret-word"


def init(home: Path, url: str) -> None:
    main.init_home(home, FR, Country("FR"), ADDRESS, ADDRESS, roots=1, threshold=1, packs=(), server=url)


def tables(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    return sorted(name for (name,) in found)


@contextmanager
def server_with(name: str, value: str) -> Iterator[None]:
    """Our server with another setting, for as long as this lasts."""
    with administrator() as connection:
        connection.execute(f"ALTER SYSTEM SET {name} = {value}")
        connection.execute("SELECT pg_reload_conf()")
    try:
        until(name, value)
        yield
    finally:
        with administrator() as connection:
            connection.execute(f"ALTER SYSTEM RESET {name}")
            connection.execute("SELECT pg_reload_conf()")
        until(name, "on")


def until(name: str, value: str) -> None:
    """Waits until new connections see a setting: the server is told of it by a signal."""
    for _ in range(1000):
        with administrator() as connection:
            if connection.execute(f"SHOW {name}").fetchone() == (value,):
                return
    raise AssertionError(f"{name} did not become {value}")


# A home on a server


def test_a_home_is_made_and_opened_and_holds_no_database_file(tmp_path: Path) -> None:
    url, home = new_database(), tmp_path / "home"
    init(home, url)
    assert not list(home.glob("apostille.db*"))
    node = main.open_node(home)
    assert (node.id, node.card.version, node.engine.name) == (FR, 1, "postgresql")
    assert f'database: "{url}"' in (home / "apostille.yaml").read_text("utf-8")
    node.engine.dispose()


def test_a_database_that_holds_a_node_is_not_given_to_another(tmp_path: Path) -> None:
    url = new_database()
    init(tmp_path / "one", url)
    with pytest.raises(UsageError, match="holds a node already"):
        init(tmp_path / "two", url)
    assert not (tmp_path / "two").exists()
    main.open_node(tmp_path / "one").engine.dispose()


def test_the_database_of_another_node_is_refused(tmp_path: Path) -> None:
    url = new_database()
    init(tmp_path / "one", url)
    other = make_node(tmp_path, DE, "DE", database=new_database())
    other.engine.dispose()
    settings = other.home / "apostille.yaml"
    lines = [line for line in settings.read_text("utf-8").splitlines() if not line.startswith("database:")]
    settings.write_text("\n".join([*lines, f'database: "{url}"', ""]), "utf-8")
    with pytest.raises(UsageError, match=f"that of {FR}; this is {DE}"):
        main.open_node(other.home)


@pytest.mark.parametrize("step", ["make_online", "commit"])
def test_a_home_that_could_not_be_made_leaves_nothing_on_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    url = new_database()

    def fails(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    if step == "commit":
        monkeypatch.setattr(owncard, "store", fails)
    else:
        monkeypatch.setattr(keys, step, fails)
    with pytest.raises(KeyboardInterrupt):
        init(tmp_path / "home", url)
    assert tables(url) == []
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    init(tmp_path / "home", url)  # and it can be tried again
    assert set(tables(url)) == {*metadata.tables, "alembic_version"}


# Servers that are not there, or not fit


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param(
            lambda url: url.replace("postgres@", f"nobody:{SECRET}@"), "does not know this account", id="account"
        ),
        (lambda url: re.sub("/store_[0-9]+", "/nowhere", url), "has no such database"),
        (lambda _: f"postgresql://nobody:{SECRET}@127.0.0.1:1/nowhere", "nowhere at 127.0.0.1:1 cannot be reached"),
        (lambda _: f"postgresql://nobody:{SECRET}@/nowhere?host=/no/such/folder", "at /no/such/folder cannot"),
    ],
)
@pytest.mark.invariant("I17")
def test_what_cannot_be_connected_to_is_told_in_one_sentence_without_account_or_password(
    tmp_path: Path, change: Any, told: str
) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        init(tmp_path / "home", change(new_database()))
    sentence = exits.sentence_of(caught.value)
    assert SECRET not in sentence
    assert "nobody" not in sentence
    assert "\n" not in sentence
    assert not (tmp_path / "home").exists()


def test_a_server_that_goes_away_is_told_by_commands_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node = make_node(tmp_path, FR, "FR", database=new_database())

    def work() -> None:
        with database.write(node.engine) as tx:
            with administrator() as connection:
                connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'store%'")
            tx.execute(insert(peers).values(node=SECRET))

    assert exits.run(work) == exits.Code.REFUSED
    node.engine.dispose()
    said = capsys.readouterr().err
    assert "database server" in said
    assert SECRET not in said


@pytest.mark.invariant("I9")
@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
def test_a_server_that_can_lose_what_it_acknowledged_is_refused(tmp_path: Path, setting: str) -> None:
    url = new_database()
    init(tmp_path / "home", url)
    with server_with(setting, "off"):
        with pytest.raises(UsageError, match=f"{setting} is off"):
            main.open_node(tmp_path / "home")
        with pytest.raises(UsageError, match=f"{setting} is off"):
            init(tmp_path / "other", new_database())
        found = {finding.check: finding for finding in checkup.examine(tmp_path / "home")}
        assert found["database"].verdict is Verdict.FAIL
        assert f"{setting} is off" in found["database"].found
    main.open_node(tmp_path / "home").engine.dispose()


@pytest.mark.invariant("I9")
def test_a_database_that_does_not_wait_for_the_disk_is_made_to(tmp_path: Path) -> None:
    url = new_database()
    with administrator() as connection:
        connection.execute(f"ALTER DATABASE {re.findall('store_[0-9]+', url)[0]} SET synchronous_commit = off")
    with psycopg.connect(url) as plain:
        assert plain.execute("SHOW synchronous_commit").fetchone() == ("off",)
    engine = postgresql.open_engine(url)
    with database.write(engine) as tx:
        assert tx.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "on"
    engine.dispose()


def test_a_database_that_sorts_by_a_locale_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of the tests knows no locale of people, so it is asked what one would affirm."""
    monkeypatch.setattr(postgresql, "_SORTS_BY_CODE", "SELECT 'ab' < 'a-c' AND 'a' < 'B'")
    with pytest.raises(UsageError, match="sorts by a locale"):
        init(tmp_path / "home", new_database())
    monkeypatch.undo()
    init(tmp_path / "home", new_database("LOCALE 'C.UTF-8'"))


def test_text_in_another_encoding_than_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="server_encoding is SQL_ASCII, not UTF8"):
        init(tmp_path / "home", new_database(encoding="SQL_ASCII"))


# Commands


def test_doctor_tells_the_server_and_that_it_is_fit(tmp_path: Path) -> None:
    node = make_node(tmp_path, FR, "FR", database=new_database())
    node.engine.dispose()
    found = {finding.check: finding for finding in checkup.examine(node.home)}
    assert found["database"].verdict is Verdict.OK
    assert re.match(r"PostgreSQL [0-9]+\.[0-9]+, safe settings, [0-9]+ KiB", found["database"].found)
    assert found["file modes"].verdict is Verdict.OK


def run(*words: str) -> int:
    import typer

    from node.cli import app

    command = typer.main.get_command(app)
    return int(exits.run(lambda: command.main(args=list(words), prog_name="apostille", standalone_mode=False)))


def test_init_takes_a_url_without_a_password(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url, home = new_database(), tmp_path / "home"
    made = ("--home", str(home), "init", "--id", FR, "--jurisdiction", "FR", "--listen", "0", "--roots", "1")
    with_password = url.replace("postgres@", f"postgres:{SECRET}@")
    for wrong in (with_password, f"{url}&password={SECRET}", "mysql://u@h/n", "postgresql://h", "postgresql://[::/n"):
        assert run(*made, "--threshold", "1", "--database", wrong) == exits.Code.USAGE
        said = capsys.readouterr().err
        assert "--database" in said
        assert SECRET not in said
        assert not home.exists()
    assert run(*made, "--threshold", "1", "--database", url) == exits.Code.OK
    assert session.used_home() == home
    assert run("--home", str(home), "status") == exits.Code.OK
    assert NodeId(FR) in capsys.readouterr().out
