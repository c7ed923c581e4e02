"""What a lab decides to run."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lab.plan import LabPlan, Site, Tools, make_plan
from lab.tee import DevTee
from tests.support import ROOT
from topology.cluster import load
from topology.owners import parse

SITE = Site(
    python="/venv/bin/python",
    checkout=ROOT,
    tools=Tools(envoy="/t/envoy", consul="/t/consul", wireguard_go=None, postgres="/t/pg/postgres"),
    keep=(),
    app_folder=Path("/run/app"),
    volumes=Path("/run/volumes"),
    resolver="198.18.0.1",
    rendezvous_address="198.18.0.2",
)


@functools.cache
def plan(pin_peers: bool = False) -> LabPlan:
    """The plan of the starter cluster."""
    owner = Ed25519PrivateKey.from_private_bytes(bytes(32))
    site = dataclasses.replace(SITE, pin_peers=pin_peers)
    return make_plan(load(ROOT / "clusters" / "starter"), DevTee(b"seed" * 8), owner, site)


def test_every_replica_is_a_cvm_and_replicas_share_an_app() -> None:
    """One CVM a replica; replicas have one app ID and compose hash, and instance IDs of their own."""
    peers = {cvm.machine.name: cvm.identity for cvm in plan().cvms}
    assert list(peers) == ["coordinator-0", "api-cvm0", "api-cvm1", "worker-cvm0", "worker-cvm1"]
    assert peers["api-cvm0"].app_id == peers["api-cvm1"].app_id != peers["worker-cvm0"].app_id
    assert peers["api-cvm0"].instance_id != peers["api-cvm1"].instance_id


def test_no_cvm_is_told_its_slot_unless_asked_for() -> None:
    """As deployed: all CVMs of an app have one environment. Pinned, each has its own peer ID, and is named by it."""
    told = {cvm.machine.name: cvm.machine.environment["sidecar"].get("MESH_PEER_ID") for cvm in plan().cvms}
    assert set(told.values()) == {None}
    pinned = {cvm.machine.name: cvm.machine.environment["sidecar"].get("MESH_PEER_ID") for cvm in plan(True).cvms}
    assert pinned == {name: name for name in ("coordinator-0", "api-0", "api-1", "worker-0", "worker-1")}
    fixed = {cvm.machine.name: cvm.machine.peer_id for cvm in plan().cvms}
    assert fixed == dict.fromkeys(told) | {"coordinator-0": "coordinator-0"}


def test_manifest_says_what_the_cvms_measure() -> None:
    """The manifest's app IDs and compose hashes are those of the simulated CVMs. None is given it: the owner sets it on
    coordinators.
    """
    manifest = plan().manifest
    for cvm in plan().cvms:
        entry = manifest.coordinators if cvm.machine.kind == "coordinator" else manifest.groups[cvm.machine.group]
        assert (entry.app_id, entry.compose_hashes) == (cvm.identity.app_id, (cvm.identity.compose_hash,))
        environment = cvm.machine.environment["sidecar"]
        assert parse(environment["MESH_OWNERS"]) == manifest.owners
        assert json.loads(environment["MESH_COORDINATORS"]) == [peer.url for peer in manifest.coordinators.peers]
        assert {name for name in environment if "MANIFEST" in name or "ROUTES" in name} == set()


def test_replicas_take_turns_in_os_versions() -> None:
    """Both guest agent versions are always there."""
    assert {cvm.identity.os_version for cvm in plan().cvms if cvm.machine.group == "api"} == {"0.6.0", "0.5.7"}


def test_the_development_root_is_given_by_the_lab_and_only_to_sidecars() -> None:
    """The compose file does not carry the insecure settings; applications do not see them."""
    for cvm in plan().cvms:
        for service in cvm.machine.services:
            assert "MESH_INSECURE_DEV_ROOT" not in service.environment
            assert ("MESH_INSECURE_DEV_ROOT" in cvm.machine.environment[service.name]) == service.is_sidecar


def test_ids_lead_to_machines() -> None:
    """An app ID means all its CVMs, an instance ID means one."""
    api = [cvm.identity for cvm in plan().cvms if cvm.machine.group == "api"]
    assert plan().hosts_of(api[0].app_id) == ("api-cvm0", "api-cvm1")
    assert plan().hosts_of(api[1].instance_id) == ("api-cvm1",)
    assert plan().hosts_of("0" * 40) == ()


def test_rendezvous_private_key_stays_out_of_every_environment() -> None:
    """The rendezvous reads its key from a file."""
    (key,) = (secret.reveal() for secret in plan().rendezvous.private_files.values())
    machines = [plan().rendezvous, *(cvm.machine for cvm in plan().cvms)]
    assert not any(key in value for m in machines for env in m.environment.values() for value in env.values())
