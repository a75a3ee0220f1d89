"""The demo, as `make demo` runs it: three processes, one exchange, and the same table every time."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXPECTED = Path(__file__).with_name("demo-table.txt")
PATIENCE_S = 240


def test_the_demo_ends_well_and_shows_the_table_that_it_always_shows(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from node.cli import main; main()", "demo", "--dir", str(tmp_path / "demo")],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "NO_COLOR": "1"},
    )
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
