"""The status document and its translation of PIDs."""

from __future__ import annotations

import os
from typing import Any

import pytest

from meshctl import status
from tests.support import popen

SIDECAR: dict[str, Any] = {
    "cluster": "starter",
    "ready": True,
    "reasons": [],
    "address": "100.96.4.7",
    "children": {"envoy": {"pid": 12, "restarts": 1, "state": "running"}, "consul": {"pid": 9, "restarts": 0}},
    "routes": [
        {
            "name": "worker",
            "role": None,
            "vip": "127.10.1.2",
            "port": 9090,
            "endpoints": ["worker-0"],
            "conflict": [],
            "may_call": True,
            "extra": 1,
        }
    ],
    "admission": {"state": "admitted"},
    "links": [{"peer_id": "worker-0", "path": "direct"}],
    "insecure": ["development root"],
    "manifest_epoch": 3,
    "manifest_digest": "0123456789ab",
    "manifest_notes": ["left out: x"],
    "certificate": {"manifest_digest": "0123456789ab", "expires_at": 1000, "authorities": ["0123456789ab"]},
}
EDGES: dict[str, Any] = {
    "public": [
        {"backend": "api", "routes": ["api"], "port": 443, "names": ["web"], "certificate": None},
    ],
    "egress": [
        {"name": "bank", "listen": "127.137.0.1:82", "remote": "[2001:db8::1]:443", "tls": "web"}
        | {"server_name": "bank.example", "pinned": True}
    ],
}
"""What a sidecar says of public listeners and egress."""


def raw(**changes: Any) -> dict[str, Any]:
    """A lab's raw status with one CVM."""
    machine = {"peer_id": "api-0", "group": "api", "kind": "workload", "state": "running", "containers": []}
    return {"cluster": "/x/clusters/starter", "machines": [machine | {"sidecar": SIDECAR} | changes]}


def test_contract_has_exactly_the_documented_fields_of_a_peer() -> None:
    """Children and routes carry the documented keys and nothing else."""
    document = status.contract(raw())
    peer = document["peers"][0]
    assert document["cluster"] == "starter"
    assert peer["manifest"] == {"epoch": 3, "digest": "0123456789ab", "notes": ["left out: x"]}
    assert peer["certificate"] == SIDECAR["certificate"]
    assert (peer["public"], peer["egress"]) == ([], [])
    edged = status.contract(raw(sidecar=SIDECAR | EDGES))["peers"][0]
    assert (edged["public"], edged["egress"]) == (EDGES["public"], EDGES["egress"])
    assert peer["links"] == [{"peer_id": "worker-0", "path": "direct", "lost": None}]
    assert peer["children"] == {"envoy": {"pid": 12, "restarts": 1}, "consul": {"pid": 9, "restarts": 0}}
    assert peer["routes"] == [
        {
            "name": "worker",
            "role": None,
            "vip": "127.10.1.2",
            "port": 9090,
            "endpoints": ["worker-0"],
            "conflict": [],
            "may_call": True,
        }
    ]


def test_table_says_who_still_shows_the_certificate_of_another_manifest(capsys: pytest.CaptureFixture[str]) -> None:
    """For seconds after a change; longer where something holds it up."""
    status.print_table(status.contract(raw()))
    assert "old" not in capsys.readouterr().out
    old = {"manifest_digest": "ba9876543210", "expires_at": 1000, "authorities": ["0123456789ab", "ba9876543210"]}
    status.print_table(status.contract(raw(sidecar=SIDECAR | {"certificate": old})))
    assert "(old" in capsys.readouterr().out


def test_table_shows_epoch_digest_and_when_the_certificate_ends(capsys: pytest.CaptureFixture[str]) -> None:
    """Side by side; a coordinator has no certificate to show."""
    status.print_table(status.contract(raw()))
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "3 0123456789ab" in told
    assert "until 01-01 00:16 UTC" in told
    status.print_table(status.contract(raw(sidecar=SIDECAR | {"certificate": None})))
    assert "until" not in capsys.readouterr().out


def test_public_listeners_and_egress_have_tables(capsys: pytest.CaptureFixture[str]) -> None:
    """An address in brackets stays in them; a mesh without either has no such table."""
    status.print_table(status.contract(raw(sidecar=SIDECAR | EDGES)))
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "api/api api 443 web none yet, so not served: api-0" in told
    assert "api/bank 127.137.0.1:82 web [2001:db8::1]:443 as bank.example, by the manifest's authorities" in told
    status.print_table(status.contract(raw()))
    out = capsys.readouterr().out
    assert "public" not in out
    assert "egress" not in out


def test_table_shows_who_else_claims_an_exclusive_role(capsys: pytest.CaptureFixture[str]) -> None:
    """Two leaders are something that a person has to see."""
    route = {
        "name": "db",
        "role": "master",
        "vip": "x",
        "port": 1,
        "endpoints": ["db-1"],
        "conflict": ["db-0", "db-1"],
        "may_call": True,
    }
    status.print_table(status.contract(raw(sidecar=SIDECAR | {"routes": [route]})))
    assert "db → db-1 (claimed by db-0, db-1)" in capsys.readouterr().out


def test_table_says_which_routes_the_group_may_not_call(capsys: pytest.CaptureFixture[str]) -> None:
    """Its name resolves and leads somewhere; without a word a reset would look like a server that is down."""
    status.print_table(status.contract(raw(sidecar=SIDECAR | {"routes": [SIDECAR["routes"][0] | {"may_call": False}]})))
    assert "worker → worker-0 (may not call)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"state": "killed"}, "the CVM is killed; ./mesh start api-0 boots it"),
        ({"sidecar": None}, "the sidecar does not answer yet"),
    ],
)
def test_a_cvm_that_says_nothing_is_not_ready(changes: dict[str, Any], reason: str) -> None:
    """A CVM that is down, or whose sidecar is silent, is shown with that reason."""
    peer = status.contract(raw(**changes))["peers"][0]
    assert (peer["ready"], peer["reasons"]) == (False, [reason])


def test_public_hosts_are_no_peers() -> None:
    """The rendezvous is not listed among the peers."""
    assert status.contract(raw(kind="host"))["peers"] == []


def test_own_children_are_found_by_pid() -> None:
    """Processes below the first one are found under the PID that their namespace knows them by."""
    with popen(["sleep", "60"]) as child:
        try:
            pids = status.read_pids(os.getpid())
            assert pids.by_lab[child.pid] == child.pid
            assert pids.of_child(os.getpid(), child.pid) == child.pid
            assert pids.of_child(None, child.pid) is None
        finally:
            child.kill()


def test_narrow_terminal_gets_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nine columns would break words, all of the table is said in lines that wrap between words."""
    reason = "route worker waits for an endpoint, since nobody in the whole mesh has said that it listens there"
    sidecar = SIDECAR | {"ready": False, "reasons": [reason]}
    monkeypatch.setenv("COLUMNS", "80")
    status.print_table(status.contract(raw(sidecar=sidecar)))
    lines = capsys.readouterr().out.splitlines()
    assert all(not line.endswith(" ") for line in lines if line.startswith("  "))
    assert lines[:-2] == [
        "mesh starter",
        "api-0 (api, 100.96.4.7): route worker waits for an endpoint, since nobody in the",
        "whole mesh has said that it listens there",
        "  admission admitted; manifest 3 0123456789ab; until 01-01 00:16 UTC;",
        "  link 1 direct; consul up; envoy up, 1 restarts",
        "  worker → worker-0",
    ]
    status.print_table(status.contract(raw(state="killed", sidecar=None)))
    assert "api-0 (api, no address): the CVM is killed; ./mesh start api-0 boots it\n" in capsys.readouterr().out


def test_table_shows_the_insecure_settings_and_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    """What a person must not overlook is printed below the table."""
    sidecar = SIDECAR | {"xds": {"nacks": ["listener worker: bad address"]}}
    status.print_table(status.contract(raw(sidecar=sidecar)))
    out = capsys.readouterr().out
    assert "INSECURE: development root" in out
    assert "3 0123456789ab" in " ".join(out.split())
    assert "api-0: manifest: left out: x" in out
    assert "listener worker: bad address" in out
