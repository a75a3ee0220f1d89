"""A node of the version before, the real one out of this repository's history, takes part in an exchange."""

import json
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from tests import commands
from tests.e2e.net import free_port

ROOT = Path(__file__).parents[2]
VERSION_1 = "b9f5560360fc18ddc35c421c54b84a5e050633e2"  # the last commit that speaks protocol version 1 only
EXAMPLE = ROOT / "config" / "examples" / "fr"
PATIENCE_S = 60
AGREEMENT = """\
agreement: old-and-new
version: 1
parties: [cert.fr.example, cert.de.example]
valid_from: 2026-01-01T00:00:00Z
valid_until: 2036-01-01T00:00:00Z
sunset_review: 2030-01-01T00:00:00Z
purposes: [remediation, detection]
grants:
  - id: all
    tlp: [CLEAR, GREEN, AMBER, RED]
    tiers: [standard, sensitive]
    share: {identification: full, technical: full, product: full, severity: full, remediation: full, attribution: full}
"""


@dataclass(frozen=True, slots=True)
class Site:
    """A node's home, and the tree whose code runs it."""

    tree: Path
    home: Path
    name: str

    def run(self, *words: str, code: int = 0) -> str:
        done = commands.run("--home", str(self.home), *words, tree=self.tree)
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def json(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json"))

    @contextmanager
    def serving(self) -> Iterator[None]:
        process = commands.Running(
            "--home", str(self.home), "serve", tree=self.tree, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            until(lambda: self.json("status")["serving"])
            yield
        finally:
            process.terminate()
            assert process.wait(PATIENCE_S) == 0


def until(condition: Any) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def old_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    done = subprocess.run(["git", "-C", str(ROOT), "archive", VERSION_1], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("no git history here: 1 test with the version before not run")
    folder = tmp_path_factory.mktemp("version-1")
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_a_node_of_the_version_before_takes_part(old_tree: Path, tmp_path: Path) -> None:
    new = Site(ROOT, tmp_path / "fr", "cert.fr.example")
    old = Site(old_tree, tmp_path / "de", "cert.de.example")
    for site, country in ((new, "FR"), (old, "DE")):
        site.run("init", "--id", site.name, "--jurisdiction", country, "--listen", f"127.0.0.1:{free_port()}")
        site.run("card", "export", "--out", str(tmp_path / f"{site.name}.json"))
    new.run("peer", "enrol", str(tmp_path / "cert.de.example.json"), "--yes")
    old.run("peer", "enrol", str(tmp_path / "cert.fr.example.json"), "--yes")
    terms = tmp_path / "agreement.yaml"
    terms.write_text(AGREEMENT, encoding="utf-8")
    with new.serving(), old.serving():
        new.run("agreement", "propose", str(terms))
        until(lambda: old.json("agreement", "list"))
        old.run("agreement", "countersign", "old-and-new", "--yes")
        until(lambda: new.json("agreement", "list")[0]["state"] == "in force")
        for site in (new, old):
            site.run("advisory", "import", str(EXAMPLE))
        name, red = "CERT-FR-2026-0131", "CERT-FR-2026-0139"
        refused = new.run("advisory", "release", red, code=6)  # it could not be taken back from there
        assert "must be upgraded" in refused
        assert new.json("advisory", "release", name)["peers"][0]["entry"] is not None
        until(lambda: [item["advisory"] for item in old.json("inbox", "list")] == [name])
        assert old.json("advisory", "release", name)["peers"][0]["entry"] is not None
        until(lambda: [item["origin"] for item in new.json("inbox", "list")] == [old.name])
        until(lambda: all(row["receipt"] for site in (new, old) for row in site.json("ledger", "list")))
        new.run("advisory", "withdraw", name, "--from", old.name)  # a recall is unknown to it, this is not
        until(lambda: old.json("inbox", "list") == [])
    assert new.json("quarantine", "list") == old.json("quarantine", "list") == []
