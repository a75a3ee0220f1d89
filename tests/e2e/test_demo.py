"""The demo, as `make demo` runs it: three processes, one exchange, and the same table every time."""

from pathlib import Path

from tests import commands

EXPECTED = Path(__file__).with_name("demo-table.txt")
PATIENCE_S = 240


def test_the_demo_ends_well_and_shows_the_table_that_it_always_shows(tmp_path: Path) -> None:
    screen = {**commands.outside(), "COLUMNS": "100", "NO_COLOR": "1"}
    done = commands.run("demo", "--dir", str(tmp_path / "demo"), env=screen, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    told, _, table = done.stdout.partition("Who got what")
    table = "\n".join(line.rstrip() for line in table.splitlines()).partition("The three homes are in")[0].strip()
    assert "shut the nodes down" in told
    assert "by PyPI sd-jwt" in table
    assert table == EXPECTED.read_text(encoding="utf-8").strip()
    for home in ("fr", "de", "in"):
        log = (tmp_path / "demo" / home / "serve.out").read_text(encoding="utf-8")
        assert "event=stop" in log
        assert "Traceback" not in log
