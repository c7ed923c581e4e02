"""A mesh on a Docker engine, as a person at the keyboard has it: `./mesh compose`, `docker`, nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from meshctl import docker_runs, images
from meshctl.console import Console
from meshctl.engine import Engine
from meshctl.errors import UserError
from tests.support import ROOT

FETCH = "import sys, urllib.request as r; sys.stdout.write(r.urlopen(sys.argv[1], timeout=10).read().decode())"
UP_SECONDS = 600.0
"""A mesh that hangs ends sooner, with its reasons."""
OFFLINE = (
    "the base image is neither in the engine nor can it be pulled",
    "debootstrap failed",
    "Temporary failure resolving",
    "Failed to fetch",
    "Could not connect to",
    "NewConnectionError",
    "Read timed out",
)
"""What a build says where neither a registry nor a package archive can be reached."""
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
        done = self._ask(peer, url)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def answers(self, peer: str, url: str, body: str) -> bool:
        """Whether `url`, asked as by `fetch`, has that body. For who waits: a call that fails is one of False."""
        done = self._ask(peer, url)
        return done.returncode == 0 and done.stdout == body

    def _ask(self, peer: str, url: str) -> subprocess.CompletedProcess[str]:
        return self.run("exec", peer, "--", "python3", "-c", FETCH, url)

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

    def paths(self, peer: str) -> set[str]:
        """The ways that `peer`'s links to other CVMs take now: "direct", "relay", "none"."""
        own = next(item for item in self.status()["peers"] if item["peer_id"] == peer)
        return {link["path"] for link in own["links"]}

    def wait_whole(self) -> None:
        """Waits until every CVM is ready and the workers are seen from everywhere."""

        def whole() -> bool:
            peers = self.status()["peers"]
            return all(
                peer["ready"] and all(route["endpoints"] for route in peer["routes"] if not route["role"])
                for peer in peers
            )

        wait_for(whole, "the mesh is whole again")


def build(engine: Engine, *names: str) -> dict[str, list[str]]:
    """Builds images of the project: layers by name. Skips where nothing can be fetched for them."""
    try:
        images.build(engine, names, Console())
    except UserError as error:
        if any(sign in error.message for sign in OFFLINE):
            pytest.skip(f"the images cannot be built here: {' / '.join(error.message.splitlines()[-2:])}")
        raise
    return {name: images.layers(engine, name) for name in names}


@contextmanager
def running(engine: Engine, cluster: str, *options: str) -> Iterator[Mesh]:
    """A mesh of clusters/CLUSTER, brought up and taken down; nothing of it may be left."""
    name = mesh_name(cluster)
    up = mesh_command(engine, "compose", "up", f"clusters/{cluster}", "--name", name, *options, timeout=UP_SECONDS)
    own = Mesh(engine=engine, name=name, up_output=up.stdout)
    run = docker_runs.run_of(name)
    try:
        assert up.returncode == 0, up.stdout + up.stderr
        yield own
    finally:
        if run.folder.exists() or docker_runs.containers(engine, run):
            down = own.run("down")
            assert down.returncode == 0, down.stderr
        assert docker_runs.containers(engine, run) == []
        assert not run.folder.exists()


def wait_for(condition: Callable[[], bool], what: str, seconds: float = WAIT) -> None:
    """Waits (bounded) until `condition()` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.3)


def mesh_name(label: str) -> str:
    """A name that no other run of the tests has."""
    return f"{label}-{os.getpid()}"
