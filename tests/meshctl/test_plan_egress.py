"""What programs may dial beside routes, as a plan prints it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from meshctl.manifest import summary
from meshctl.plan_egress import dialled
from tests.meshctl.test_plan_changes import snapshot
from tests.topology.certificates import certificate
from tests.topology.support import group
from tests.topology.test_render import deployment, starter
from topology import render
from topology.egress import EgressEntry

EGRESS = """egress = [
  { name = "db", listen = "127.137.0.1:5432", remote = "db:8080" },
  { name = "bank", listen = "127.137.0.1:8443", remote = "bank.example.com:443", tls = "web" },
  { name = "own", listen = "127.0.0.1:8444", remote = "[2001:db8::1]:443", tls = "web", sni = "own.example",
    ca = "${path.module}/ca.pem" },
]"""


def test_each_egress_has_where_it_leads_and_who_has_to_be_there(tmp_path: Path) -> None:
    """A route, or a server outside with its name and whose certificates count."""
    (tmp_path / "ca.pem").write_text(certificate())
    web = group("web", backends="", routes="", more=EGRESS)
    rows = [it.row() for it in dialled(snapshot(tmp_path, group("db"), web))]
    assert rows[:2] == [
        ("web/db", "127.137.0.1:5432", "mesh", "db:8080"),
        ("web/bank", "127.137.0.1:8443", "web", "bank.example.com:443, any public authority"),
    ]
    assert rows[2][3].startswith("[2001:db8::1]:443 as own.example, certificates ")
    assert len(rows) == 3


def test_a_summary_of_a_manifest_shows_the_egresses(capsys: pytest.CaptureFixture[str]) -> None:
    """Who signs it should see what programs may dial, and who has to be there."""
    made = render.manifest(starter(), deployment())
    egress = (
        EgressEntry(name="work", listen="127.137.0.1:81", remote="worker:9090"),
        EgressEntry(name="bank", listen="127.137.0.1:82", remote="bank.example.com:443", tls="web"),
    )
    api = dataclasses.replace(made.groups["api"], egress=egress)
    summary(dataclasses.replace(made, groups={**made.groups, "api": api}))
    shown = capsys.readouterr().out
    assert "    egress work: 127.137.0.1:81 leads to worker:9090 (mesh)\n" in shown
    assert "    egress bank: 127.137.0.1:82 leads to bank.example.com:443, any public authority (web)\n" in shown
