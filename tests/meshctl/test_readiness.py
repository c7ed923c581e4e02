"""Health checks of applications, out of compose files and the lab's status."""

from __future__ import annotations

from typing import Any

from meshctl.readiness import Check, Outcome, checks, commands
from tests.support import ROOT

COMPOSE = """
services:
  sidecar: {image: x}
  shown: {healthcheck: {test: ["CMD", "/app/shown", "health"], interval: 5s}}
  shell: {healthcheck: {test: ["CMD-SHELL", "true"]}}
  none: {healthcheck: {disable: true}}
  bare:
"""


def test_commands_in_exec_form_are_found() -> None:
    """What `CMD` names is run; a shell's line, a disabled check and a service without one are not."""
    assert commands(COMPOSE) == {"shown": ("/app/shown", "health")}
    assert commands("") == {}


def test_database_is_asked_whether_a_failover_would_work() -> None:
    """Fault A6: the database's container has a health check, so that `up` waits for a synchronous standby."""
    compose = (ROOT / "clusters" / "patroni-demo" / "compose" / "postgres.yaml").read_text()
    assert commands(compose)["patroni"] == ("/app/patroni", "health")


def machine(peer: str, group: str, state: str = "running") -> dict[str, Any]:
    """A CVM of the raw status."""
    names = ("sidecar", "shown")
    containers = [{"name": name, "is_sidecar": name == "sidecar"} for name in names]
    return {"peer_id": peer, "group": group, "state": state, "containers": containers}


def test_running_application_containers_are_checked() -> None:
    """Each running CVM's container with a check is one; a CVM that is down, and a group without checks, have none."""
    raw = {"machines": [machine("a-0", "a"), machine("a-1", "a", "down"), machine("b-0", "b"), machine("c-0", "c")]}
    argv = ("/app/shown", "health")
    assert checks(raw, {"a": {"shown": argv}, "b": {}}) == [Check(peer="a-0", container="shown", argv=argv)]


def test_line_names_who_is_not_ready_and_why() -> None:
    """A person reads which CVM it is, and what its check said."""
    check = Check(peer="a-0", container="shown", argv=())
    assert Outcome(check=check, passed=False, said="no standby").line() == "a-0: shown is not ready: no standby"
