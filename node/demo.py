"""The demo: three national nodes on this machine, three processes, one exchange from first key to verified export.

Every act is a command of `apostille` as an operator would type it, run as a process of its own; `--verbose` shows
them. Only the table at the end reads the three homes directly. Nothing is faked: own homes, own keys, real gRPC over
mutual TLS.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from config import data
from federation.errors import LocalError
from federation.model import Decision, Form, NodeId, Rule
from federation.policy.explain import by_rule

_PATIENCE_S: Final = 60  # how long the demo waits for anything before it gives up and says for what
_TERMINATED: Final = 128 + signal.SIGTERM
_POLL_S: Final = 0.3
_AGREEMENT: Final = "fr-de-in-2026"
_MARKS: Final = {Form.FULL: "●", Form.GENERALISED: "◐", Form.WITHHELD: "○"}
_FOR_ALL: Final = {  # rules whose sentence names the one part that it is about
    "no-permit": "No clause of the agreement shares it.",
    "guard": "It contains a term that is withheld from this recipient.",
}
_WIDE: Final = 120  # columns from which titles are shown too
_SHOWN: Final = "CERT-FR-2026-0117"  # the advisory whose withheld parts are told one by one


@dataclass(frozen=True, slots=True)
class Site:
    """One country's node in the demo."""

    node: NodeId
    jurisdiction: str
    folder: str
    home: Path

    @property
    def card(self) -> Path:
        """Where its card is exported to."""
        return self.home.with_name(f"{self.home.name}.card.json")


class DemoError(LocalError):
    """The demo could not go on; the text says at which command, and what it answered."""


def run(folder: Path | None, *, keep: bool, verbose: bool) -> int:
    """Runs the demo in `folder` (a temporary one if None) and prints its table. Returns the exit code."""
    console = Console()
    where = folder or Path(tempfile.mkdtemp(prefix="apostille-demo-"))
    demo = _Demo(where, console, verbose=verbose)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))  # so that the three servers are ended too
    try:
        demo.play()
    except DemoError as e:
        console.print(f"[red]The demo stopped:[/red] {e}", highlight=False)
        return 1
    finally:
        if keep or folder:
            console.print(f"The three homes are in {where}", highlight=False)
        else:
            _remove(where)
    return 0


class _Demo:
    def __init__(self, where: Path, console: Console, *, verbose: bool) -> None:
        self._console = console
        self._verbose = verbose
        self._where = where
        self.sites = tuple(
            Site(NodeId(f"cert.{folder}.example"), folder.upper(), folder, where / folder)
            for folder in ("fr", "de", "in")
        )

    def play(self) -> None:
        """The whole exchange, then its table."""
        examples = data.examples()
        agreement = self._where / "agreement.yaml"
        with self._progress() as step:
            self._where.mkdir(parents=True, exist_ok=True)
            step("initialise three nodes, each with its own home and keys", self._init)
            step("enrol each other's cards, fingerprints compared", self._enrol)
            with self._serving(step) as processes:
                agreement.write_bytes((examples / "agreement.yaml").read_bytes())
                step(
                    "propose the agreement in France",
                    lambda: self._call(self.sites[0], "agreement", "propose", str(agreement)),
                )
                step("countersign it in Germany and India", self._countersign)
                with resources.as_file(examples) as folder:
                    step("import and release twelve advisories", lambda: self._release(folder))
                step("sync over gRPC with mutual TLS", self._wait_for_receipts)
                step("shut the nodes down", lambda: self._stop(processes))
            compact = self._where / "export.sd-jwt"
            step("export one advisory as the receiver holds it", lambda: self._export(compact))
        self._show(compact)

    def _init(self) -> None:
        self._all(
            lambda site: self._call(
                site, "init", "--id", site.node, "--jurisdiction", site.jurisdiction, "--listen", "127.0.0.1:0"
            )
        )

    def _enrol(self) -> None:
        words = {site.node: self._json(site, "card", "show")["fingerprint"] for site in self.sites}
        self._all(lambda site: self._call(site, "card", "export", "--out", str(site.card)))

        def enrol_others(site: Site) -> None:
            for other in self.sites:
                if other is not site:
                    self._call(site, "peer", "enrol", str(other.card), "--fingerprint", words[other.node])

        self._all(enrol_others)

    def _countersign(self) -> None:
        def countersign(site: Site) -> None:
            self._until(f"the proposal to reach {site.node}", lambda: bool(self._json(site, "agreement", "list")))
            self._call(site, "agreement", "countersign", _AGREEMENT, "--yes")

        self._all(countersign, self.sites[1:])

        def in_force(site: Site) -> None:
            self._until(
                f"every signature to reach {site.node}",
                lambda: self._json(site, "agreement", "list")[0]["state"] == "in force",
            )

        self._all(in_force)

    def _release(self, examples: Path) -> None:
        self._all(lambda site: self._call(site, "advisory", "import", str(examples / site.folder), "--release"))

    def _wait_for_receipts(self) -> None:
        def acknowledged(site: Site) -> None:
            self._until(
                f"every receipt to reach {site.node}",
                lambda: all(row["receipt"] for row in self._json(site, "ledger", "list")),
            )

        self._all(acknowledged)

    def _export(self, compact: Path) -> None:
        receiver = self.sites[2]
        self._call(receiver, "inbox", "export", _SHOWN, "--format", "sd-jwt", "--out", str(compact))

    def _is_serving(self, site: Site) -> bool:
        return bool(self._json(site, "status")["serving"])

    @contextmanager
    def _serving(self, step: Callable[[str, Callable[[], None]], None]) -> Iterator[list[subprocess.Popen[str]]]:
        processes: list[subprocess.Popen[str]] = []

        def start() -> None:
            for site in self.sites:
                log = (site.home / "serve.out").open("w", encoding="utf-8")
                processes.append(
                    subprocess.Popen(
                        self._command(site, "serve"), stdout=log, stderr=log, env=self._environment(), text=True
                    )
                )
            for site in self.sites:
                self._until(f"{site.node} to serve", partial(self._is_serving, site))

        try:
            step("start three servers on loopback", start)
            yield processes
        finally:
            self._stop(processes)

    def _stop(self, processes: list[subprocess.Popen[str]]) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                code = process.wait(timeout=_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise DemoError("a node did not shut down when it was told to") from None
            if code != 0:
                raise DemoError(f"a node ended with exit code {code}; its output is in serve.out in its home")

    def _call(self, site: Site, *words: str) -> str:
        command = self._command(site, *words)
        if self._verbose:
            self._console.print(f"  {site.jurisdiction} $ apostille {' '.join(words)}", highlight=False, style="dim")
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=self._environment())
        if done.returncode != 0:
            raise DemoError(f"apostille {' '.join(words)} ({site.jurisdiction}) answered:\n{done.stderr.strip()}")
        return done.stdout

    def _json(self, site: Site, *words: str) -> Any:
        return json.loads(self._call(site, *words, "--json"))

    @staticmethod
    def _command(site: Site, *words: str) -> list[str]:
        return [sys.executable, "-c", "from node.cli import main; main()", "--home", str(site.home), *words]

    @staticmethod
    def _environment() -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if not name.startswith(("APOSTILLE_", "SUDO_"))}

    def _all(self, act: Callable[[Site], object], sites: Iterable[Site] | None = None) -> None:
        with ThreadPoolExecutor(len(self.sites)) as pool:
            list(pool.map(act, self.sites if sites is None else sites))

    def _until(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                raise DemoError(f"waited {_PATIENCE_S} s for {what}")
            time.sleep(_POLL_S)

    @contextmanager
    def _progress(self) -> Iterator[Callable[[str, Callable[[], Any]], None]]:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task("", total=8)

            def step(about: str, act: Callable[[], Any]) -> None:
                progress.update(task, description=about)
                started = time.monotonic()
                act()
                progress.advance(task)
                took = f"{time.monotonic() - started:5.1f} s"
                progress.console.print(Text.assemble(("  ✓ ", "green"), f"{about} ", (took, "dim")))

            yield step

    def _show(self, compact: Path) -> None:
        outcomes = _outcomes(self.sites)
        legend = _Legend()
        table = Table(title="Who got what", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        wide = self._console.width >= _WIDE
        headings = ("advisory", "TLP", *(f"to {site.jurisdiction}" for site in self.sites))
        for heading in (*headings, "title") if wide else headings:
            table.add_column(heading, no_wrap=True, overflow="ellipsis")
        for (name, title, tlp), cells in outcomes.items():
            row: list[str | Text] = [name, tlp, *(_cell(cells.get(site.node), legend) for site in self.sites)]
            table.add_row(*row, *((title,) if wide else ()))
        self._console.print(table)
        self._console.print("Parts of the document: ● in full  ◐ generalised  ○ withheld, by the rules a, b, c …\n")
        self._console.print(legend.table())
        self._detail(outcomes)
        self._console.print(_verified(compact, self.sites), highlight=False)

    def _detail(self, outcomes: "_Outcomes") -> None:
        """One advisory at the border, part by part."""
        receiver = self.sites[2]
        found = next((cells for (name, _, _), cells in outcomes.items() if name == _SHOWN), {}).get(receiver.node)
        if found is None:
            return
        self._console.print(Text.assemble("\n", (_SHOWN, "bold"), f" on its way to {receiver.node}"))
        for row, paths in by_rule(found[0]):
            if row.form is not Form.FULL and not row.basis.startswith("agreement "):
                parts = ", ".join(path.removeprefix("/csaf") for path in paths)
                said = f"  {_MARKS[row.form]} {row.form}: {parts}\n      "
                self._console.print(Text.assemble(said, (row.rule_id, "bold"), f", {row.basis}: {row.says}"))


class _Legend:
    """The rules that narrowed something, lettered in the order in which they are met."""

    def __init__(self) -> None:
        self._letters: dict[tuple[str, str], str] = {}
        self._says: dict[tuple[str, str], Rule] = {}

    def letter(self, rule: Rule) -> str:
        """The letter of a rule; a rule that names what it lacks counts once for all of it."""
        key = (rule.id, rule.basis)
        if key not in self._letters:
            self._letters[key] = chr(ord("a") + len(self._letters))
            self._says[key] = rule
        return self._letters[key]

    def table(self) -> Table:
        """Letter, rule, legal basis, sentence."""
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for key, letter in self._letters.items():
            rule = self._says[key]
            says = _FOR_ALL.get(rule.id, rule.says)
            table.add_row(letter, Text.assemble((rule.id, "bold"), f", {rule.basis}: {says}"))
        return table


_Outcomes = dict[tuple[str, str, str], dict[NodeId, tuple[Decision, int | None]]]


def _outcomes(sites: tuple[Site, ...]) -> _Outcomes:
    """By advisory: what each peer got, with the sequence number under which that peer acknowledged it."""
    from node.main import open_node
    from node.records import ledger
    from node.sharing import advisories, releases

    found: _Outcomes = {}
    for site in sites:
        node = open_node(site.home)
        acknowledged = {(row.name, row.peer): row.seq for row in ledger.rows(node) if row.receipt}
        for advisory in advisories.all_advisories(node):
            _, outcomes = releases.preview(node, advisory.name)
            found[advisory.name, advisory.title, advisory.handling.tlp] = {
                outcome.peer: (outcome.decision, acknowledged.get((advisory.name, outcome.peer)))
                for outcome in outcomes
            }
    return found


def _cell(outcome: tuple[Decision, int | None] | None, legend: _Legend) -> Text:
    if outcome is None:
        return Text("its origin", style="dim")
    decision, seq = outcome
    counts = {form: sum(e.form is form for e in decision.elements) for form in _MARKS}
    rules = {
        legend.letter(rule): None
        for e in decision.elements
        if e.form is not Form.FULL
        for rule in e.rules
        if not rule.basis.startswith("agreement ")
    }
    letters = "".join(sorted(rules))
    if seq is None:
        return Text(f"nothing {letters}", style="red")
    return Text(" ".join(f"{count}{_MARKS[form]}" for form, count in counts.items() if count) + f" {letters}")


def _verified(compact: Path, sites: tuple[Site, ...]) -> Text:
    """What an implementation of SD-JWT that is not ours says of the export."""
    from federation.base64url import b64url
    from federation.keyring import open_card
    from federation.model import Role

    try:
        from jwcrypto.jwk import JWK
        from sd_jwt.verifier import SDJWTVerifier
    except ModuleNotFoundError:
        return Text("\nThe export was not verified independently: install apostille[demo] for that.", style="yellow")
    origin = open_card(sites[0].card.read_bytes())
    key = next(key.public for key in origin.keys if key.role is Role.ISSUE)
    claims = SDJWTVerifier(
        compact.read_text(encoding="utf-8").strip(),
        lambda *_: JWK(kty="OKP", crv="Ed25519", x=b64url(key)),
        None,
        None,
    ).get_verified_payload()
    return Text.assemble(
        "\n",
        ("verified ", "green"),
        f"{claims['jti']}, as {sites[2].node} holds it, by PyPI sd-jwt (not our code): "
        f"the signature of {claims['iss']} holds over what was withheld.",
    )


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
