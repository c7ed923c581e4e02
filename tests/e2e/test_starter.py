"""The starter mesh as a person uses it."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from meshctl import runs, status
from tests.e2e.user import FETCH, Mesh, run_mesh, wait_for
from tests.support import popen

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def test_every_documented_field_of_the_status_is_there(mesh: Mesh) -> None:
    """`status --json` keeps its contract: peers, kinds, children with host PIDs, routes with endpoints."""
    mesh.wait_whole()
    document = mesh.printed_status()
    kinds = {peer["peer_id"]: peer["kind"] for peer in document["peers"]}
    assert kinds == {
        "coordinator-0": "coordinator",
        "api-0": "workload",
        "api-1": "workload",
        "worker-0": "workload",
        "worker-1": "workload",
    }
    addresses = [peer["address"] for peer in document["peers"]]
    assert len(set(addresses)) == 5
    for peer in document["peers"]:
        assert peer["reasons"] == []
        wanted = {"consul"} if peer["kind"] == "coordinator" else {"consul", "envoy"}
        assert wanted <= set(peer["children"])
        for name, child in peer["children"].items():
            program = Path(f"/proc/{child['pid']}/exe").resolve().name
            assert program == {"wireguard": "wireguard-go"}.get(name, name)
    routes = {route["name"]: route for route in document["peers"][1]["routes"]}
    assert (routes["worker"]["port"], routes["worker"]["endpoints"]) == (9090, ["worker-0", "worker-1"])
    assert (routes["api"]["port"], routes["api"]["endpoints"]) == (8080, ["api-0", "api-1"])


def test_application_code_calls_services_by_name(mesh: Mesh) -> None:
    """Inside an app container `http://worker:9090` and `http://api:8080` answer, from several instances."""
    assert mesh.fetch("api-0", "http://worker:9090/hello").startswith("hello from worker-")
    assert mesh.fetch("worker-1", "http://api:8080/hello").startswith("hello from api-")
    answer = json.loads(mesh.fetch("api-0", "http://api:8080/all"))
    assert set(answer["results"]) == {"hello from worker-0", "hello from worker-1"}
    assert sum(answer["results"].values()) == answer["samples"]


def test_public_entry_reaches_the_api_and_through_it_the_worker(mesh: Mesh) -> None:
    """The printed public URL serves /hello, /worker and the fan-out."""
    assert mesh.public("/hello").startswith("hello from api-")
    assert mesh.public("/worker").startswith("hello from worker-")
    assert json.loads(mesh.public("/all"))["samples"] == 8


def test_exec_passes_exit_codes_and_shows_the_applications_view(mesh: Mesh) -> None:
    """`exec` gives the command's exit code, the machine's host name and the mesh's names."""
    done = mesh.run("exec", "api-0", "--", "sh", "-c", "hostname; getent hosts worker; exit 7")
    assert done.returncode == 7
    host, worker = done.stdout.splitlines()
    assert runs.find(mesh.name).names()[host] == "api-0"
    assert re.match(r"127\.10\.\d+\.\d+\s+worker", worker)
    assert mesh.run("exec", "api-0", "--", "no-such-program").returncode == 127


def test_unknown_peer_is_one_clear_error(mesh: Mesh) -> None:
    """A typo in a peer's name is answered with the names that exist, and exit code 2."""
    done = mesh.run("exec", "api-7", "--", "true")
    assert done.returncode == 2
    assert "api-7" in done.stderr
    assert "api-0" in done.stderr
    assert "Traceback" not in done.stderr
    assert mesh.run("kill", "worker-9").returncode == 2


def test_logs_show_the_applications_lines(mesh: Mesh) -> None:
    """`logs api-0` prints the lines of both containers, labelled."""
    done = mesh.run("logs", "api-0")
    assert done.returncode == 0
    assert "api-0.sidecar | " in done.stdout


SERVE = (
    "import socket\nservers = [socket.create_server((address, port)) for address, port in "
    "(('0.0.0.0', 9999), ('0.0.0.0', 29999))]\n"
    "print('listens', flush=True)\nservers[0].accept()\n"
)
DIAL = (
    "import socket, sys\n"
    "for port in sys.argv[2:]:\n"
    "    client = socket.socket()\n    client.settimeout(5)\n    print(client.connect_ex((sys.argv[1], int(port))))\n"
)


def test_what_an_application_binds_to_every_address_answers_nobody_in_the_mesh(mesh: Mesh) -> None:
    """Through the tunnel a CVM reaches another one's ingress and gossip; every other port is as closed. Of a
    coordinator it reaches Consul's ports, and not the broker. An application reaches its own CVM's as before.
    """
    addresses = {peer["peer_id"]: peer["address"] for peer in mesh.wait_whole()["peers"]}
    argv = ["exec", "--name", mesh.name, "worker-0", "--", "python3", "-c", SERVE]
    server = popen([str(Path(__file__).parents[2] / "mesh"), *argv], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        assert server.stdout.readline() == "listens\n"

        def dial(caller: str, callee: str, *ports: int) -> list[int]:
            ran = mesh.run("exec", caller, "--", "python3", "-c", DIAL, addresses[callee], *map(str, ports))
            return [int(line) for line in ran.stdout.split()]

        closed = errno.ECONNREFUSED
        assert dial("api-0", "worker-0", 9999, 29999, 29090, 8301, 8500) == [closed, closed, 0, 0, closed]
        assert dial("worker-0", "worker-0", 29999) == [0]
        assert dial("api-0", "coordinator-0", 8300, 8301, 8787) == [0, 0, closed]
        assert mesh.fetch("api-0", "http://worker:9090/hello").startswith("hello from worker-")
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def test_nothing_of_consuls_api_is_on_loopback(mesh: Mesh) -> None:
    """Neither in a CVM, whose applications keep no registration, nor beside a server: who may not open the socket finds
    neither key nor token, and cannot hold the agent's connections.
    """
    for peer in ("api-0", "coordinator-0"):
        done = mesh.run("exec", peer, "--", "python3", "-c", DIAL, "127.0.0.1", "8500")
        assert done.stdout.split() == [str(errno.ECONNREFUSED)], done.stdout + done.stderr


@pytest.mark.parametrize("child", ["envoy", "consul", "wireguard"])
def test_killed_child_is_restarted_and_its_siblings_are_not(mesh: Mesh, child: str) -> None:
    """SIGKILL of one child: it comes back, its siblings keep their PIDs, and calls work again."""
    before = mesh.wait_whole()
    children = next(peer for peer in before["peers"] if peer["peer_id"] == "api-0")["children"]
    if child not in children:
        pytest.skip("kernel WireGuard: there is no wireguard-go to kill")
    os.kill(children[child]["pid"], signal.SIGKILL)

    def back() -> bool:
        now = mesh.peer("api-0")["children"]
        return bool(now[child]["pid"]) and now[child]["pid"] != children[child]["pid"]

    wait_for(back, f"{child} runs again")
    after = mesh.peer("api-0")["children"]
    assert {name: after[name]["pid"] for name in after if name != child} == {
        name: children[name]["pid"] for name in children if name != child
    }
    assert after[child]["restarts"] == children[child]["restarts"] + 1
    wait_for(lambda: _answers(mesh, "api-0"), "calls through the VIP work again")
    mesh.wait_whole()


def test_hung_envoy_is_noticed_and_replaced(mesh: Mesh) -> None:
    """SIGSTOP of Envoy: the supervisor sees that it does not answer and replaces it."""
    before = mesh.peer("api-1")["children"]["envoy"]
    os.kill(before["pid"], signal.SIGSTOP)
    wait_for(lambda: mesh.peer("api-1")["children"]["envoy"]["pid"] not in (None, before["pid"]), "Envoy was replaced")
    wait_for(lambda: _answers(mesh, "api-1"), "calls work again")
    mesh.wait_whole()


def test_lost_worker_leaves_every_envoy_and_calls_go_on(mesh: Mesh) -> None:
    """A worker CVM that vanishes is no endpoint any more; calls succeed on the other one, and it comes back."""
    mesh.wait_whole()
    assert mesh.run("kill", "worker-1").returncode == 0

    def gone() -> bool:
        peers = [peer for peer in mesh.status()["peers"] if peer["peer_id"] in ("api-0", "api-1", "worker-0")]
        return all(r["endpoints"] == ["worker-0"] for p in peers for r in p["routes"] if r["name"] == "worker")

    wait_for(gone, "worker-1 is nobody's endpoint")
    assert {mesh.fetch("api-0", "http://worker:9090/hello") for _ in range(6)} == {"hello from worker-0\n"}
    assert mesh.run("start", "worker-1").returncode == 0
    mesh.wait_whole()


CALLS = (
    "import time, urllib.request as r\n"
    "end = time.monotonic() + 8\nbad = []\nseen = set()\nprint('calls', flush=True)\n"
    "while time.monotonic() < end:\n"
    "    try: seen.add(r.urlopen('http://worker:9090/hello', timeout=5).read().decode().strip())\n"
    "    except Exception as error: bad.append((time.monotonic(), repr(error)))\n"
    "    time.sleep(0.01)\n"
    "print(json.dumps([bad, sorted(seen)]))\n"
)
"""Calls of the worker again and again: when which ones failed, and who answered."""


@contextmanager
def calling(mesh: Mesh) -> Iterator[Callable[[], tuple[list[tuple[float, str]], list[str]]]]:
    """api-0 calls the worker for a while; what came of it, once it has ended."""
    argv = ["exec", "--name", mesh.name, "api-0", "--", "python3", "-c", "import json\n" + CALLS]
    caller = popen([str(Path(__file__).parents[2] / "mesh"), *argv], stdout=subprocess.PIPE, text=True)
    assert caller.stdout is not None
    try:
        assert caller.stdout.readline() == "calls\n"
        yield lambda: json.loads(caller.communicate(timeout=60)[0])
    finally:
        caller.kill()
        caller.wait()


def test_clean_stop_of_a_sidecar_fails_no_call(mesh: Mesh) -> None:
    """It takes its CVM out of the routes, and callers until they have heard, before it closes."""
    mesh.wait_whole()
    machine = next(m for m in status.collect(runs.find(mesh.name))["machines"] if m["peer_id"] == "worker-0")
    [sidecar] = [container for container in machine["containers"] if container["is_sidecar"]]
    with calling(mesh) as ended:
        os.kill(sidecar["host_pid"], signal.SIGTERM)
        bad, seen = ended()
    assert bad == []
    assert "hello from worker-1" in seen
    mesh.wait_whole()


def test_clean_stop_takes_an_instance_out(mesh: Mesh) -> None:
    """Compose stops the application first, so the calls that it would have answered are reset. Once the CVM has
    stopped, everybody knows.
    """
    mesh.wait_whole()
    with calling(mesh) as ended:
        assert mesh.run("stop", "worker-0").returncode == 0
        stopped = time.monotonic()
        bad, seen = ended()
    assert [error for at, error in bad if at > stopped] == []
    assert "hello from worker-1" in seen
    assert mesh.run("start", "worker-0").returncode == 0
    mesh.wait_whole()


def _answers(mesh: Mesh, peer: str) -> bool:
    done = mesh.run("exec", peer, "--", "python3", "-c", FETCH, "http://worker:9090/hello")
    return done.returncode == 0


def test_second_up_of_the_same_name_is_refused(mesh: Mesh) -> None:
    """A mesh that runs is not started twice, and stays as it is."""
    done = run_mesh("up", "clusters/starter", "--name", mesh.name)
    assert done.returncode == 2
    assert "running already" in done.stderr
    assert mesh.status()["peers"]


def test_typo_in_a_cluster_is_answered_with_a_proposal() -> None:
    """A cluster that does not exist: one message, exit code 2, nothing left."""
    done = run_mesh("up", "clusters/startr")
    assert done.returncode == 2
    assert "did you mean clusters/starter" in done.stderr
