"""The patroni demo as a person sees it: names that follow the leader, through the loss of the leader's CVM and back."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.e2e.user import Mesh, running, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1000)]


def database(mesh: Mesh) -> dict[str, Any]:
    """What `/db` answers, or {} while it cannot."""
    done = mesh.run("exec", "webdemo-0", "--", "python3", "-c", _ASK, "http://webdemo:8080/db")
    found: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
    return found


_ASK = "import sys, urllib.request as r; sys.stdout.write(r.urlopen(sys.argv[1], timeout=20).read().decode())"


def test_demo_loses_its_leader_and_goes_on() -> None:
    """The tour shows who leads, takes that CVM away, and the names lead to the other one with every row; then back."""
    options = ("--replicas", "webdemo=1", "--replicas", "postgres=2")
    with running("patroni", "demo", "patroni", *options, timeout=800) as mesh:
        out = mesh.up_output
        killed = re.search(r"\$ \./mesh kill (postgres-\d)", out)
        moved = re.search(r"postgres-master leads to (postgres-\d) in every CVM, \d+\.\d s later", out)
        assert killed, out
        assert moved, out
        old, new = killed[1], moved[1]
        assert {old, new} == {"postgres-0", "postgres-1"}
        assert "GET http://webdemo:8080/db" in out
        assert f'"leader": "{old}"' in out
        assert f'"leader": "{new}"' in out
        assert f"{old} is back, as a replica of {new}" in out
        routes = {route["name"]: route["endpoints"] for route in mesh.peer("webdemo-0")["routes"]}
        assert routes["postgres-master"] == [new]
        assert routes["postgres-replica"] == [old]

        def caught_up() -> bool:
            seen = database(mesh).get("routes", {})
            master, replica = seen.get("postgres-master", {}), seen.get("postgres-replica", {})
            # The row of this very question may still be on its way to the replica.
            return (
                (master.get("peer"), master.get("role")) == (new, "master")
                and (replica.get("peer"), replica.get("role")) == (old, "replica")
                and replica["rows"] >= master["rows"] - 1 > 2
            )

        wait_for(caught_up, "the old leader follows the new one over the mesh", 120)
        refuses_what_nobody_signed(mesh, new)
        gives_of_consul_what_the_workload_needs(mesh, new)


def refuses_what_nobody_signed(mesh: Mesh, member: str) -> None:
    """A variable that the host has set to another value, and a call that `cluster.tf` does not name."""
    start = ("exec", member, "--", "env", "POSTGRES_SYNCHRONOUS=off", "/run/mesh/exec.sh", "echo", "started")
    done = mesh.run(*start)
    assert (done.returncode, done.stdout) == (78, "")
    assert "exec.sh: not as the manifest has it for this group: POSTGRES_SYNCHRONOUS; " in done.stderr
    as_signed = mesh.run(*(word.replace("=off", "=on") for word in start))
    assert (as_signed.returncode, as_signed.stdout) == (0, "started\n")
    call = mesh.run("exec", member, "--", "python3", "-c", _ASK, "http://webdemo:8080/hello")
    assert call.returncode == 1
    assert re.search(r"RemoteDisconnected|ConnectionResetError", call.stderr), call.stderr


_CONSUL = (
    "import sys, urllib.error, urllib.request as r\n"
    "token = open('/run/mesh/secrets/consul-token').read().strip()\n"
    "for headers in ({}, {'X-Consul-Token': token}):\n"
    "    for method, path in zip(sys.argv[1::2], sys.argv[2::2]):\n"
    "        asked = r.Request('http://127.0.0.1:8500/v1/' + path, None, headers, method=method)\n"
    "        try: print(r.urlopen(asked, timeout=10).status)\n"
    "        except urllib.error.HTTPError as error: print(error.code)\n"
)


def gives_of_consul_what_the_workload_needs(mesh: Mesh, member: str) -> None:
    """On loopback a program finds nothing without the workload's token, and with it what its registration needs: not
    the agent itself, nor the keys of others.
    """
    asks = {
        "kv/service/patroni-demo/leader": "GET",
        "health/service/webdemo": "GET",
        "agent/leave": "PUT",
        "agent/self": "GET",
        "kv/mesh/manifest": "GET",
    }
    words = [word for path, method in asks.items() for word in (method, path)]
    done = mesh.run("exec", member, "--", "python3", "-c", _CONSUL, *words)
    assert done.stdout.split() == ["403"] * 5 + ["200", "200", "403", "403", "403"], done.stdout + done.stderr
