"""Anyone verifies a running mesh, and then calls it with the certificates that were proven."""

from __future__ import annotations

import json
import os
import ssl
from pathlib import Path
from typing import Any

import pytest

from meshctl import runs
from meshctl.verify import IN_LAB, Exit
from tests.e2e.user import Mesh
from xds.transport import caller_name

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

MEMBERS = ["api-0", "api-1", "worker-0", "worker-1"]
CONNECT = """
import json, socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.load_verify_locations(cadata=sys.stdin.read())
try:
    plain = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
    with context.wrap_socket(plain, server_hostname=sys.argv[3]) as tls:
        print("trusted", [value for kind, value in tls.getpeercert()["subjectAltName"] if kind == "URI"])
except ssl.SSLCertVerificationError as error:
    print("refused", error.verify_message)
"""
"""Is the server at an address trusted under the certificate on standard input? TLS 1.3 tells it before ours is asked
for."""


@pytest.fixture
def told(mesh: Mesh) -> dict[str, Any]:
    """What the lab says of itself to outsiders."""
    found: dict[str, Any] = json.loads((runs.run_of(mesh.name).folder / IN_LAB).read_text())
    return found


def test_a_lab_is_verified_without_an_option(mesh: Mesh, tmp_path: Path) -> None:
    """Through the gateway; the folder is whole, and its bundle verifies again without a network."""
    out = tmp_path / "verify"
    done = mesh.run("verify", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "INSECURE" in done.stdout
    assert "INSECURE" in done.stderr
    members = json.loads((out / "members.json").read_text())
    assert [member["peer_id"] for member in members] == MEMBERS
    assert all(len(member["evidence_sha256"]) == len(member["leaf_key_sha256"]) == 64 for member in members)
    again = mesh.run("verify", "--offline", str(out / "bundle.json"))
    assert again.returncode == 0, again.stderr


def test_a_stranger_verifies_it_by_the_manifest(mesh: Mesh, told: dict[str, Any], tmp_path: Path) -> None:
    """With a URL, a manifest and the root of the simulated TEE; without the root nothing is believed."""
    out = tmp_path / "verify"
    assert mesh.run("verify", "--out", str(out)).returncode == 0
    manifest = next((out / "history").glob("*.json"))
    root = tmp_path / "root.der"
    root.write_bytes(bytes.fromhex(told["development_root"]))
    fixed = ("-c", told["url"], "-m", str(manifest), "--out", str(tmp_path / "mine"))
    environ = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "config")}
    trusting = mesh.run("verify", *fixed, "--insecure-root", str(root), env=environ)
    assert trusting.returncode == 0, trusting.stderr
    assert list((tmp_path / "config" / "cvm-mesh" / "seen").iterdir())
    wary = mesh.run("verify", "-c", told["url"], "-m", str(manifest), "--out", str(tmp_path / "none"), env=environ)
    assert (wary.returncode, (tmp_path / "none").exists()) == (Exit.EVIDENCE, False), wary.stderr


def test_the_certificate_is_that_of_what_the_mesh_shows(mesh: Mesh, told: dict[str, Any], tmp_path: Path) -> None:
    """Who trusts the proven mesh CA trusts a worker's ingress, which names its group; under another root it is none."""
    out = tmp_path / "verify"
    assert mesh.run("verify", "--out", str(out)).returncode == 0
    manifest = json.loads(next((out / "history").glob("*.json")).read_text())
    address = next(peer["address"] for peer in manifest["groups"]["worker"]["peers"] if peer["peer_id"] == "worker-0")
    port = next(iter(manifest["groups"]["worker"]["backends"].values()))["sidecar_port"]
    name = caller_name(f"spiffe://{manifest['cluster']}/api")

    def connect(pem: str) -> str:
        done = mesh.run("exec", "api-0", "--", "python3", "-c", CONNECT, address, str(port), name, given=pem)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    proven = connect((out / "mesh-ca.pem").read_text())
    assert proven == f"trusted ['spiffe://{manifest['cluster']}/worker']"
    other = ssl.DER_cert_to_PEM_cert(bytes.fromhex(told["development_root"]))
    assert connect(other).startswith("refused")


def test_a_coordinator_that_is_gone(mesh: Mesh, tmp_path: Path) -> None:
    """Nothing is written then, and it verifies again once it is back."""
    assert mesh.run("kill", "coordinator-0").returncode == 0
    try:
        gone = mesh.run("verify", "--out", str(tmp_path / "verify"), timeout=120)
        assert (gone.returncode, (tmp_path / "verify").exists()) == (Exit.UNREACHABLE, False), gone.stderr
    finally:
        assert mesh.run("start", "coordinator-0").returncode == 0
        mesh.wait_whole(120)
    assert mesh.run("verify", "--out", str(tmp_path / "verify")).returncode == 0
