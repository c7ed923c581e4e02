"""A starter whose api is public: clients from outside come through the gateway, by HTTPS, and verify it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_set import change
from tests.e2e.user import Mesh, running, wait_for
from tests.support import ROOT, popen

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

PUBLIC = """
          ingress            = "tls"
          public             = { port = 443, sans = ["gateway", "web.example.com"] }
          workload           = "api"
"""
CLIENT = """
import ssl, sys, urllib.error, urllib.request
context = ssl.create_default_context(cadata=sys.stdin.read())
try:
    with urllib.request.urlopen(sys.argv[1], timeout=10, context=context) as answer:
        print(answer.status, answer.read().decode().strip())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode().strip())
except Exception as error:
    print("refused", error)
"""
"""What the server at a URL answers to who trusts the certificate on standard input."""
HOLD = """
import http.client, ssl, sys, time
context = ssl.create_default_context(cadata=sys.stdin.read())

def dial():
    held = http.client.HTTPSConnection(sys.argv[1], timeout=10, context=context)
    held.connect()
    return held, [name for _, name in held.sock.getpeercert()["subjectAltName"]]

held, names = dial()
mine = held.sock
print("holds", flush=True)
calls, end = 0, time.monotonic() + 60
while sys.argv[2] not in dial()[1] and time.monotonic() < end:
    held.request("GET", "/hello")
    held.getresponse().read()
    calls += 1
print(calls > 0, held.sock is mine, sys.argv[2] in names, sys.argv[2] in dial()[1])
"""
"""Calls on one connection until new ones show a certificate with a further name."""
ADDED = "second.example.com"
DIAL = "import socket, sys; print(socket.socket().connect_ex((sys.argv[1], 443)))"


@pytest.fixture(scope="module")
def public_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """The starter, with the api public, and one CVM a group."""
    folder = Path(shutil.copytree(ROOT / "clusters" / "starter", tmp_path_factory.mktemp("clusters") / "web"))
    file = folder / "cluster.tf"
    written = file.read_text()
    file.write_text(written.replace('          workload           = "api"\n', PUBLIC.lstrip("\n"), 1))
    assert file.read_text() != written
    with running("public", "up", str(folder), "--replicas", "api=1", "--replicas", "worker=1") as mesh:
        yield mesh


def newest(verified: Path) -> Any:
    """The manifest in force, as `./mesh verify` wrote it."""
    return max(
        (json.loads(path.read_text()) for path in (verified / "history").glob("*.json")), key=lambda it: it["epoch"]
    )


def test_a_client_verifies_the_api_through_the_gateway_and_calls_it(public_mesh: Mesh, tmp_path: Path) -> None:
    """By the gateway's name, with the root or the mesh CA that `./mesh verify` wrote. Plain HTTP is told to use
    HTTPS; by the mesh the port is closed, and calls by the mesh go on as before.
    """
    mesh, out = public_mesh, tmp_path / "verify"
    wait_for(lambda: all(peer["ready"] for peer in mesh.status()["peers"]), "all are ready", 60)
    assert mesh.run("verify", "--out", str(out)).returncode == 0
    manifest = newest(out)
    gateway, name, *_ = manifest["groups"]["api"]["backends"]["api"]["public"]["sans"]
    assert (gateway.split(".")[0], name) == (f"{manifest['groups']['api']['app_id']}-443s", "web.example.com")

    def ask(url: str, pem: Path) -> str:
        done = mesh.run("exec", "worker-0", "--", "python3", "-c", CLIENT, url, given=pem.read_text())
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    for pem in (out / "root-ca.pem", out / "mesh-ca.pem"):
        assert ask(f"https://{gateway}/hello", pem) == "200 hello from api-0"
    address = manifest["groups"]["api"]["peers"][0]["address"]
    done = mesh.run("exec", "worker-0", "--", "python3", "-c", DIAL, address)
    assert done.stdout.split() == ["111"], done.stdout + done.stderr
    done = mesh.run("exec", "api-0", "--", "python3", "-c", CLIENT, "http://127.0.0.1:443/", given="")
    assert done.stdout.startswith("400 This port speaks HTTPS"), done.stdout + done.stderr
    assert mesh.fetch("worker-0", "http://api:8080/hello") == "hello from api-0\n"


def test_a_public_certificate_follows_the_manifest_without_a_broken_connection(
    public_mesh: Mesh, tmp_path: Path
) -> None:
    """A name is added: new connections show it, a held one goes on. Who pinned the mesh CA of before refuses the new
    certificate by itself, who pinned the root goes on; Envoy is the same process.
    """
    mesh, out = public_mesh, tmp_path / "verify"
    wait_for(lambda: all(peer["ready"] for peer in mesh.status()["peers"]), "all are ready", 60)
    assert mesh.run("verify", "--out", str(out)).returncode == 0
    manifest = newest(out)
    gateway = manifest["groups"]["api"]["backends"]["api"]["public"]["sans"][0]
    envoy = mesh.peer("api-0")["children"]["envoy"]

    def add(tree: dict[str, Any]) -> None:
        tree["groups"]["api"]["backends"]["api"]["public"]["sans"].append(ADDED)

    argv = ["exec", "--name", mesh.name, "worker-0", "--", "python3", "-c", HOLD, gateway, ADDED]
    client = popen([str(ROOT / "mesh"), *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert client.stdin is not None
    assert client.stdout is not None
    try:
        client.stdin.write((out / "root-ca.pem").read_text())
        client.stdin.close()
        assert client.stdout.readline() == "holds\n"
        change(mesh, tmp_path, add)
        assert client.stdout.readline() == "True True False True\n"
    finally:
        client.kill()
        client.wait()
        client.stdout.close()
    for pem, good in ((out / "root-ca.pem", True), (out / "mesh-ca.pem", False)):
        asked = ("exec", "worker-0", "--", "python3", "-c", CLIENT, f"https://{gateway}/hello")
        said = mesh.run(*asked, given=pem.read_text()).stdout
        assert said.startswith("200" if good else "refused"), said
    assert mesh.peer("api-0")["children"]["envoy"] == envoy
