"""Row 23: whatever a peer writes is inert where this node shows it.

FR, who signs with its real keys what its own software would refuse, puts canaries (`tests.faults.canaries`) into every
text of the wire contract: documents with all their keys, names, statements, recalls, refusals, agreements, cards, bytes
that are nothing. Then every command of the command line is run on DE's home: in a pipe, as JSON, with colours forced,
and on terminals of 80 and 200 columns. Nothing that they write steers, hides, or begins a line that is not ours; the same
holds for files that they make, for logs, metrics and messages to people. A command that is in neither list below fails
the test.
"""

import fcntl
import hashlib
import json
import os
import pty
import re
import struct
import termios
import threading
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from prometheus_client.parser import text_string_to_metric_families

from federation import entries, grant, handling, jws, recall, sdjwt, strictjson
from federation.agreement import JWS_TYPE
from federation.entries import AgreementOffer, Body, Delivery, Granted, NewCard, Purge, RecallOrder, Said, Withdrawal
from federation.marking import issue_claims
from federation.model import Category, Handling, JsonObject, Presentation, Role, instant_text
from federation.sdjwt import Salts
from node.cli import app
from node.home.context import Node
from node.operation import courier
from node.peering import agreements
from node.peering.agreements import Held
from node.records import alarms
from node.sharing import releases
from protos.exchange.v1 import exchange_pb2 as wire
from tests.commands import APOSTILLE, Running, outside
from tests.e2e.net import Net, make_net, until
from tests.e2e.processes import PATIENCE_S, ready
from tests.faults.campaign import count
from tests.faults.canaries import CANARIES, TEXTS, faults, shown, valid, write
from tests.faults.liar import Call, append_raw, calling, command, lying, prepare, sync
from tests.nodes import (
    AGREEMENT,
    DE,
    FR,
    IN,
    agree,
    append_by_hand,
    document,
    history,
    import_document,
    signed_core,
    terms_text,
)

EVERY = (1 << 63) - 1
MODES = ("pipe", "json", "colours", "80 columns", "200 columns")
TERMINALS = {"80 columns": 80, "200 columns": 200}
BETWEEN = "<<<between two commands>>>"
MANY = f"""
import json, os, sys
from pathlib import Path
import typer
from node.cli import app, exits, screen

command = typer.main.get_command(app)
for words in json.loads(Path(sys.argv.pop()).read_text()):
    screen._PRINTED.clear()
    exits.run(lambda: command.main(args=words, prog_name="apostille", standalone_mode=False))
    for stream in (sys.stdout, sys.stderr):
        print("\\n{BETWEEN}", file=stream, flush=True)
"""


@dataclass(frozen=True, slots=True)
class Scene:
    """DE, to whom FR has sent all that, and a folder of files that came from strangers."""

    net: Net
    held: Held
    files: Path

    @property
    def home(self) -> Path:
        return self.net.world[DE].home


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with make_net(tmp_path_factory.mktemp("canaries"), FR, DE, IN) as net:
        held = agree(net.world)
        prepare(net, FR, DE, IN)
        made = Scene(net, held, tmp_path_factory.mktemp("files"))
        honest_update(made)
        send_all(made)
        net.world.sync(DE, FR)
        net.world.sync(DE, IN)
        write_files(made)
        yield made


def honest_update(scene: Scene) -> None:
    """FR sends DE an ordinary advisory, which DE takes."""
    fr = scene.net.world[FR]
    releases.release(fr, import_document(fr, document("HONEST")))
    assert scene.net.world.sync(DE, FR).entries == 1


def delivery(scene: Scene, name: str, text: str, *, iat: int | None = None, revision: int = 1) -> Delivery:
    """A document of canaries, signed by FR, with every part of it."""
    fr = scene.net.world[FR]
    concealed = issue_claims(*write(name, text), fr.labels, {}, salts=Salts(fr.entropy))
    given = handling.write(handling_of(fr))
    jti, moment = f"{FR}/{name}/{revision}", int(fr.clock().timestamp()) - 60
    payload = {"v": 1, "iss": FR, "jti": jti, "iat": iat or moment, "handling": given, **concealed.payload}
    core = signed_core(fr, payload)
    general = {node.digest for node in sdjwt.walk(payload, [d.raw for d in concealed.disclosures])}
    assert general
    full = full_forms(payload, tuple(d.raw for d in concealed.disclosures), fr)
    terms = handling.narrow(
        handling_of(fr), scene.held.agreement, hashlib.sha256(core).digest(), DE, fr.clock() - timedelta(minutes=1)
    )
    return Delivery(Presentation(core, full), terms)
