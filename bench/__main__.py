"""What each step of the pipelines costs, in units of one Ed25519 verification measured in the same run.

CPU time of this process, the shipped example advisories, three agreements' worth of rules; the best of several rounds.
`docs/benchmarks.md` says how the figures are read.
"""

import json
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch

from rich.console import Console
from rich.table import Table

from config import data
from federation import csaf, ed25519, merkle, outbound, sdjwt
from federation.agreement import Agreement, from_yaml
from federation.entries import Delivery
from federation.handling import narrow
from federation.handling import read as read_handling
from federation.inbound import Receiver, admit, open_delivery, read_advisory
from federation.keyring import Card, Keyring, OnlineKey, RootSet, key_id
from federation.labels import load as load_labels
from federation.model import Category, Country, Decision, NodeId, Role, Tlp
from federation.outbound import Draft
from federation.policy.decide import decide
from federation.policy.engine import RuleBook, rule_book
from federation.policy.packs import load_pack

ROUNDS = 5
NOW = datetime(2026, 11, 1, tzinfo=UTC)
SENDER, RECEIVER = NodeId("cert.fr.example"), NodeId("cert.in.example")


def cpu_seconds(act: Callable[[], object], times: int) -> float:
    """The least CPU time of one `act` in seconds, over several rounds of `times` calls."""
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        for _ in range(times):
            act()
        best = min(best, (time.process_time() - started) / times)
    return best


def main() -> None:
    """Measures and prints the table, every step as if it were the first with its document."""
    with patch.object(csaf, "_problems", csaf._problems.__wrapped__):
        _measure()


def _measure() -> None:
    seed = bytes(range(32))
    public = ed25519.public_key(seed)
    message = secrets.token_bytes(32)
    signature = ed25519.sign(seed, message)
    unit = cpu_seconds(lambda: ed25519.verify(public, signature, message), 500)

    labels = load_labels(data.labels_text(), "labels")
    countries = tuple(Country(code) for code in data.countries())
    book = rule_book([load_pack(data.pack_text("eu-gdpr"), "eu-gdpr", countries)], countries)
    examples = Path(str(data.examples()))
    agreement = from_yaml((examples / "agreement.yaml").read_text(encoding="utf-8"), "agreement.yaml")
    draft = _draft(examples / "fr" / "training-data-extraction.json")
    kid = key_id(Role.ISSUE, public)

    def issue() -> outbound.Issued:
        return outbound.issue(draft, labels, kid=kid, sign=lambda m: ed25519.sign(seed, m), entropy=secrets.token_bytes)

    issued = issue()
    own = outbound.reopen(issued.core, issued.disclosures, labels)
    decision = _decide(own, agreement, book)
    presented = outbound.present(own, decision)
    delivery = Delivery(presented.presentation, narrow(own.handling, agreement, own.core_digest, RECEIVER, NOW))
    receiver = Receiver(RECEIVER, Country("IN"), _keyring(public), labels, book, {agreement.digest: agreement})

    def receive() -> object:
        return admit(read_advisory(open_delivery(delivery, receiver, NOW), labels, NOW), receiver, SENDER, NOW)

    steps: list[tuple[str, Callable[[], object], int]] = [
        ("verify one Ed25519 signature (the unit)", lambda: ed25519.verify(public, signature, message), 500),
        ("append one leaf to a feed's tree", lambda: merkle.EMPTY.append(merkle.leaf_hash(message)), 2000),
        ("validate the CSAF document", lambda: csaf.check(draft.csaf), 5),
        ("issue: mark, conceal, sign", issue, 5),
        ("reopen: find every element", lambda: outbound.reopen(issued.core, issued.disclosures, labels), 20),
        ("decide for one peer, rules remembered", lambda: _decide(own, agreement, book), 50),
        ("present: select, validate, guard", lambda: outbound.present(own, decision), 5),
        ("receive: verify, read, admit", receive, 20),
        (
            "RFC 9901 alone: verify core and disclosures",
            lambda: sdjwt.verify(issued.core, presented.presentation.disclosures, public_key=public),
            20,
        ),
    ]
    table = Table(title=f"Cost in units of one Ed25519 verification ({unit * 1e6:.0f} µs of CPU in this run)")
    table.add_column("step")
    table.add_column("units", justify="right")
    table.add_column("a CPU-second", justify="right")
    for about, act, times in steps:
        cost = cpu_seconds(act, times)
        table.add_row(about, f"{cost / unit:,.1f}", f"{1 / cost:,.0f}")
    Console().print(table)


def _draft(path: Path) -> Draft:
    content = json.loads(path.read_text(encoding="utf-8"))
    given = {"storage": None, "retain_until": None, "embargo_until": None, "recipients": None, **content["handling"]}
    return Draft(
        origin=SENDER,
        name=outbound.tracking_name(content["csaf"]),
        revision=1,
        issued_at=NOW,
        handling=read_handling({**given, "home": "FR", "tlp": Tlp(given["tlp"]).value}),
        csaf=content["csaf"],
        ai=content.get("ai"),
        raised={pointer: Category(category) for pointer, category in content["labels"].items()},
    )


def _decide(own: outbound.OwnAdvisory, agreement: Agreement, book: RuleBook) -> Decision:
    return decide(own.elements, own.handling, SENDER, SENDER, RECEIVER, Country("IN"), agreement, book, NOW)


def _keyring(public: bytes) -> Keyring:
    far = datetime(2027, 11, 1, tzinfo=UTC)
    key = OnlineKey(Role.ISSUE, key_id(Role.ISSUE, public), public, NOW, far)
    card = Card(SENDER, 1, NOW, Country("FR"), (1,), "127.0.0.1:1", RootSet(1, (public,)), (key,))
    return Keyring({SENDER: card})


if __name__ == "__main__":
    main()
