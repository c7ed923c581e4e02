"""Waits until a mesh on a Docker engine serves, telling what it waits for. IO: the platform's status, the engine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from meshctl import docker_runs, runs
from meshctl import status as statuses
from meshctl.applications import trouble
from meshctl.bring_up import missing
from meshctl.console import Progress
from meshctl.docker_runs import Container
from meshctl.engine import Engine
from meshctl.errors import UserError

READY_SECONDS = 240.0
"""After every sidecar was healthy once."""
ROLE_SECONDS = 180.0
"""For workloads to agree who leads. A new database takes some 15 s on an idle machine: initdb, then copies of it."""
_LOOK_SECONDS = 0.2


def wait_whole(run: runs.Run, progress: Progress, seconds: float = READY_SECONDS) -> dict[str, Any]:
    """Waits until every CVM is ready and every route has an endpoint everywhere; the status document."""
    started = time.monotonic()
    document: dict[str, Any] = {"peers": []}
    waiting = ["the platform does not answer"]
    while time.monotonic() - started < seconds:
        document = statuses.contract(run.call("GET", "/status"))
        waiting = missing(document)
        if document["peers"] and not waiting:
            progress.line(f"all {len(document['peers'])} CVMs ready")
            return document
        progress.update(waiting[0] if waiting else "building the network")
        time.sleep(_LOOK_SECONDS)
    waiting += trouble(document)
    raise UserError(f"the mesh was not ready after {seconds:.0f} s:\n" + "\n".join(waiting), exit_code=1)


def wait_roles(
    engine: Engine, run: runs.Run, progress: Progress, seconds: float = ROLE_SECONDS
) -> tuple[dict[str, Any], list[str]]:
    """Waits until every role route has an endpoint everywhere: the status document, and what is missing in the end.

    Something missing is no reason to take the mesh down: it runs, and its workloads may be what is looked for.
    """
    started = time.monotonic()
    while True:
        document = statuses.contract(run.call("GET", "/status"))
        # A sidecar that does not answer just now names no routes: that is no sign that they lead somewhere.
        waiting = missing(document) + vacant(document)
        if not waiting or time.monotonic() - started > seconds:
            break
        progress.update(f"{waiting[0]} ({time.monotonic() - started:.0f} s)")
        time.sleep(_LOOK_SECONDS)
    if waiting:
        waiting += fallen(docker_runs.containers(engine, run)) + trouble(document)
    return document, waiting


def vacant(document: Mapping[str, Any]) -> list[str]:
    """The role routes that lead nowhere, a line each with the CVMs that see nobody. Pure."""
    seen: dict[tuple[str, str], list[str]] = {}
    for peer in document["peers"]:
        for route in peer["routes"]:
            if route["role"] and not route["endpoints"]:
                seen.setdefault((route["name"], route["role"]), []).append(peer["peer_id"])
    return [f"route {name} waits for a {role}, in {', '.join(peers)}" for (name, role), peers in seen.items()]


def fallen(containers: Sequence[Container]) -> list[str]:
    """The containers that do not run, a line each. Pure."""
    return [f"container {c.peer}/{c.service}: {c.status}" for c in containers if c.state != "running"]
