"""What a mesh on a Docker engine is waited for, and what is said in the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from meshctl import docker_runs, docker_wait
from meshctl.docker_runs import Container
from meshctl.engine import Engine
from meshctl.errors import UserError
from meshctl.runs import Run


class Lines:
    """A console that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def update(self, text: str) -> None:
        """Keeps it."""
        self.said.append(text)

    line = update


def machine(peer: str, *, ready: bool = True, **routes: list[str]) -> dict[str, Any]:
    """The raw status of a CVM; routes called `…_ROLE` ask for a role."""
    return {
        "peer_id": peer,
        "group": peer.partition("-")[0],
        "kind": "workload",
        "state": "running",
        "containers": [],
        "sidecar": {
            "ready": ready,
            "reasons": [] if ready else ["envoy: starts"],
            "routes": [
                {"name": name, "role": name.partition("_")[2] or None, "endpoints": endpoints}
                for name, endpoints in routes.items()
            ],
        },
    }


def raw(*machines: dict[str, Any]) -> dict[str, Any]:
    """The platform's answer."""
    return {"name": "x", "cluster": "/x", "machines": list(machines)}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the platform answers, one after the other; the last one stays."""
    found: list[dict[str, Any]] = []

    def call(_run: Run, _method: str, _path: str) -> dict[str, Any]:
        return found.pop(0) if len(found) > 1 else found[0]

    monkeypatch.setattr(Run, "call", call)
    return found


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An engine with one container that fell."""
    there = [
        Container(name="a", peer="db-0", service="sidecar", state="running", status="Up 9 seconds (healthy)"),
        Container(name="b", peer="db-0", service="db", state="restarting", status="Restarting (2) 3 seconds ago"),
    ]
    monkeypatch.setattr(docker_runs, "containers", lambda _engine, _run: there)
    return iter([Engine(docker="docker", version="20.10")])


RUN = docker_runs.run_of("x")


def test_a_mesh_is_whole_when_every_cvm_is_ready_and_routes_without_role_lead_somewhere(
    answers: list[dict[str, Any]],
) -> None:
    """What is missing is told while it is waited for."""
    answers += [raw(machine("a-0", ready=False)), raw(machine("a-0", web=[])), raw(machine("a-0", web=["a-0"]))]
    console = Lines()
    assert docker_wait.wait_whole(RUN, console)["peers"][0]["ready"] is True
    assert console.said == [
        "a-0: envoy: starts", "a-0: route web has no endpoint yet", "all 1 CVMs ready",
    ]  # fmt: skip


def test_a_mesh_that_does_not_become_whole_is_refused_with_what_is_missing(answers: list[dict[str, Any]]) -> None:
    """In bounded time."""
    answers += [raw(machine("a-0", web=[]))]
    with pytest.raises(UserError, match="not ready after 0 s:\na-0: route web has no endpoint yet"):
        docker_wait.wait_whole(RUN, Lines(), seconds=0.3)


def test_roles_are_waited_for(answers: list[dict[str, Any]], engine: Iterator[Engine]) -> None:
    """Until each role route leads somewhere in every CVM; nothing is missing then."""
    answers += [
        raw(machine("a-0", pg_master=[]), machine("db-0", pg_master=["db-0"])),
        raw(machine("a-0", pg_master=["db-0"]), machine("db-0") | {"sidecar": None}),
        raw(machine("a-0", pg_master=["db-0"]), machine("db-0", pg_master=["db-0"])),
    ]
    console = Lines()
    document, waiting = docker_wait.wait_roles(next(engine), RUN, console)
    assert waiting == []
    assert json.dumps(document).count('"endpoints": ["db-0"]') == 2
    assert console.said == [
        "route pg_master waits for a master, in a-0 (0 s)",
        "db-0: the sidecar does not answer yet (0 s)",
    ]


def test_roles_that_nobody_takes_are_told_with_the_containers_that_fell(
    answers: list[dict[str, Any]], engine: Iterator[Engine]
) -> None:
    """A line per route, then a line per container that does not run."""
    answers += [raw(machine("a-0", pg_master=[]), machine("db-0", pg_master=[]))]
    _, waiting = docker_wait.wait_roles(next(engine), RUN, Lines(), seconds=0.0)
    assert waiting == [
        "route pg_master waits for a master, in a-0, db-0",
        "container db-0/db: Restarting (2) 3 seconds ago",
    ]
