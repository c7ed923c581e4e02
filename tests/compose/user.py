"""A mesh on a Docker engine, as a person at the keyboard has it: `./mesh compose`, `docker`, nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from meshctl import docker_runs
from meshctl.engine import Engine
from tests.support import ROOT

FETCH = "import sys, urllib.request as r; sys.stdout.write(r.urlopen(sys.argv[1], timeout=10).read().decode())"
WAIT = 90.0
"""Seconds for anything that a machine with two busy cores may be slow at."""


def mesh_command(engine: Engine, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """`./mesh ARGUMENTS` on that engine."""
    return subprocess.run(
        [str(ROOT / "mesh"), *arguments], capture_output=True, text=True, timeout=timeout, env=engine.environ, cwd=ROOT
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """One mesh on an engine."""

    engine: Engine
    name: str
    up_output: str

    def run(self, command: str, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """`./mesh compose COMMAND --name NAME ARGUMENTS`."""
        return mesh_command(self.engine, "compose", command, "--name", self.name, *arguments, timeout=timeout)

    def container(self, peer: str, service: str) -> str:
        """Name of a container."""
        return docker_runs.container_of(self.engine, docker_runs.run_of(self.name), peer, service).name

    def inspect(self, peer: str, service: str) -> dict[str, Any]:
        """`docker inspect` of a container."""
        return self.engine.inspect(self.container(peer, service))[0]

    def fetch(self, peer: str, url: str) -> str:
        """The body of `url`, asked inside the application container of `peer`."""
        done = self.run("exec", peer, "--", "python3", "-c", FETCH, url)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def public(self, group: str, path: str) -> str:
        """The body of `path` at the public entry of `group`."""
        match = re.search(rf"public entry of {group}: (http://127\.0\.0\.1:\d+)", self.up_output)
        assert match, self.up_output
        with urllib.request.urlopen(match[1] + path, timeout=20) as answer:
            return str(answer.read().decode())

    def status(self) -> dict[str, Any]:
        """`./mesh compose ps --json`."""
        done = self.run("ps", "--json")
        assert done.returncode == 0, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def endpoints(self, peer: str, route: str) -> set[str]:
        """Where `peer`'s Envoy may send calls of a route to."""
        own = next(item for item in self.status()["peers"] if item["peer_id"] == peer)
        return {name for item in own["routes"] if item["name"] == route for name in item["endpoints"]}

    def wait_whole(self) -> None:
        """Waits until every CVM is ready and the workers are seen from everywhere."""

        def whole() -> bool:
            peers = self.status()["peers"]
            return all(
                peer["ready"] and all(route["endpoints"] for route in peer["routes"] if not route["role"])
                for peer in peers
            )

        wait_for(whole, "the mesh is whole again")


def wait_for(condition: Callable[[], bool], what: str, seconds: float = WAIT) -> None:
    """Waits (bounded) until `condition()` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.3)


def mesh_name(label: str) -> str:
    """A name that no other run of the tests has."""
    return f"{label}-{os.getpid()}"
