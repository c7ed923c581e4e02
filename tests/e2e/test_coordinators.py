"""Coordinators that restart: what was acknowledged stays, and nobody who runs notices."""

from __future__ import annotations

import json
import shutil
import subprocess
import textwrap

import pytest

from meshctl import runs
from tests.e2e.user import Mesh, running, wait_for
from tests.support import ROOT, popen

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

KV = textwrap.dedent("""
    import http.client, json, socket, sys
    token = json.load(open("/run/mesh-private/consul/config/server.json"))["acl"]["tokens"]["initial_management"]
    method, path, data = sys.argv[1:4]
    server = http.client.HTTPConnection("localhost", timeout=10)
    server.sock = socket.socket(socket.AF_UNIX)
    server.sock.connect("/run/mesh-private/consul/api.sock")
    server.request(method, path, data.encode() or None, {"X-Consul-Token": token})
    answer = server.getresponse()
    assert answer.status < 300, answer.status
    print(answer.read().decode())
""")
"""Asks the Consul server of the coordinator that it runs in."""
WATCHED = textwrap.dedent("""
    import json, sys, time, urllib.request as r
    end, good, bad = time.monotonic() + float(sys.argv[1]), 0, []
    while time.monotonic() < end:
        try:
            good += r.urlopen("http://worker:9090/hello", timeout=5).status == 200
        except OSError as error:
            bad.append(repr(error))
        time.sleep(0.05)
    print(json.dumps([good, bad]))
""")

EVERY_LINE = "1000000"
"""Of a log: more than it has."""


def consul(mesh: Mesh, method: str, path: str, data: str = "", coordinator: str = "coordinator-0") -> str:
    """The answer of the coordinator's own Consul server."""
    done = mesh.run("exec", coordinator, "--", "python3", "-c", KV, method, path, data)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def endpoints(mesh: Mesh) -> dict[str, list[str]]:
    """Endpoints of the route `worker`, by the workload that sees them."""
    return {
        peer["peer_id"]: route["endpoints"]
        for peer in mesh.status()["peers"] if peer["kind"] == "workload"
        for route in peer["routes"] if route["name"] == "worker"
    }  # fmt: skip


def reboot(mesh: Mesh, *, lose_disk: bool, seconds: int) -> list[dict[str, list[str]]]:
    """Kills the coordinator and boots it again while api-0 calls its route for `seconds`, none of which may fail.

    All that was seen of the route's endpoints meanwhile.
    """
    argv = [str(ROOT / "mesh"), "exec", "--name", mesh.name, "api-0", "--", "python3", "-c", WATCHED, str(seconds)]
    caller = popen(argv, stdout=subprocess.PIPE, text=True)
    seen = [endpoints(mesh)]

    def back() -> bool:
        seen.append(endpoints(mesh))
        return bool(mesh.peer("coordinator-0")["ready"])

    def called() -> bool:
        seen.append(endpoints(mesh))
        return caller.poll() is not None

    try:
        assert mesh.run("kill", "coordinator-0").returncode == 0
        if lose_disk:
            shutil.rmtree(runs.run_of(mesh.name).folder / "volumes" / "coordinator-0")
        assert mesh.run("start", "coordinator-0").returncode == 0
        wait_for(back, "the coordinator is ready", 60)
        wait_for(called, "the calls end", 60)
        good, bad = json.loads(caller.communicate()[0])
    finally:
        caller.kill()
        caller.wait()
    assert good > seconds
    assert bad == []
    return seen


def test_a_coordinator_that_was_lost_comes_back_with_what_it_acknowledged() -> None:
    """Killed and booted again, the only coordinator has its keys, slots and sessions, and nobody attests again. With
    its disk lost it begins empty and says so. In both, no call fails, no endpoint leaves a route, no CVM its slot.
    """
    both = ["worker-0", "worker-1"]
    with running("coordinator", "up", "clusters/starter") as mesh:
        addresses = {peer["peer_id"]: peer["address"] for peer in mesh.wait_whole()["peers"]}
        assert consul(mesh, "PUT", "/v1/kv/service/acknowledged", "kept") == "true"
        session = json.loads(consul(mesh, "PUT", "/v1/session/create", json.dumps({"Node": "worker-0"})))["ID"]
        seen = reboot(mesh, lose_disk=False, seconds=15)
        assert all(found == both for each in seen for found in each.values()), seen
        assert consul(mesh, "GET", "/v1/kv/service/acknowledged?raw") == "kept"
        assert json.loads(consul(mesh, "GET", f"/v1/session/info/{session}")), "the session of a running node was ended"
        logs = "".join(mesh.run("logs", name, "-n", EVERY_LINE).stdout for name in ("api-0", "api-1", *both))
        assert "lease lost" not in logs
        mesh.wait_whole()
        seen = reboot(mesh, lose_disk=True, seconds=15)
        assert all(found == both for each in seen for found in each.values()), seen
        assert "the disk is empty: founds the cluster" in mesh.run("logs", "coordinator-0", "-n", EVERY_LINE).stdout
        assert {peer["peer_id"]: peer["address"] for peer in mesh.wait_whole()["peers"]} == addresses
