"""The bootstrap endpoint from its own compose file: what README.md tells to do, and that a mesh really uses it.

Every mesh of this folder has clusters/relay as its rendezvous.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from meshctl import images
from meshctl.docker_runs import RELAY_COMPOSE
from meshctl.engine import Engine
from tests.compose.user import Mesh, wait_for

PUBLISHED = re.compile(r"image: (\S+)")


def test_a_mesh_runs_on_the_relays_container(mesh: Mesh) -> None:
    """It is healthy, has the rights of its file and nothing of a TEE, and every CVM speaks WireGuard with it."""
    wait_for(
        lambda: mesh.inspect("rendezvous", "relay")["State"]["Health"]["Status"] == "healthy", "the relay is healthy"
    )
    found = mesh.inspect("rendezvous", "relay")
    assert found["HostConfig"]["ReadonlyRootfs"] is True
    assert {name.removeprefix("CAP_") for name in found["HostConfig"]["CapAdd"]} == {"NET_ADMIN", "NET_RAW"}
    assert not [item for item in found["Mounts"] if "dstack" in item["Source"]]
    shown = mesh.engine.run("exec", mesh.container("rendezvous", "relay"), "wg", "show", "mesh0", "latest-handshakes")
    times = [int(line.split()[1]) for line in shown.stdout.splitlines()]
    assert len(times) == len(mesh.status()["peers"]) == 4
    assert all(times)


def test_a_restarted_relay_is_found_again(mesh: Mesh) -> None:
    """With the key of its volume; tunnels between CVMs go on meanwhile."""
    name = mesh.container("rendezvous", "relay")
    wait_for(lambda: mesh.paths("api-0") == {"direct"}, "api-0 reaches everyone without the relay")
    mesh.engine.run("restart", "-t", "10", name)
    assert mesh.fetch("api-0", "http://worker:9090/hello").startswith("hello from worker-")

    def met() -> bool:
        shown = mesh.engine.run("exec", name, "wg", "show", "mesh0", "latest-handshakes", check=False).stdout
        times = [int(line.split()[1]) for line in shown.splitlines()]
        return len(times) == 4 and all(times)

    wait_for(met, "every CVM has met the restarted relay")


@pytest.fixture
def as_published(engine: Engine, plugin: str, built: dict[str, list[str]]) -> Iterator[list[str]]:
    """`docker compose` on clusters/relay as it is, with its image's published name here; nothing is left of it."""
    match = PUBLISHED.search(RELAY_COMPOSE.read_text())
    assert match is not None
    engine.run("tag", images.IMAGES["sidecar"].local, match[1])
    argv = [plugin, "--ansi", "never", "-p", f"relay-{os.getpid()}", "-f", str(RELAY_COMPOSE)]
    yield argv
    subprocess.run([*argv, "down", "-v", "-t", "5"], env=engine.environ, capture_output=True, check=True, timeout=120)
    engine.run("rmi", match[1])


def test_the_steps_of_its_readme(engine: Engine, as_published: list[str]) -> None:
    """`key` prints the same public key each time; started without settings it names all that are missing, and ends."""

    def relay(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [*as_published, "run", "--rm", "-T", "relay", *words]
        return subprocess.run(argv, env=engine.environ, capture_output=True, text=True, check=False, timeout=120)

    first, again = relay("peer.rendezvous", "key"), relay("peer.rendezvous", "key")
    assert re.fullmatch(r"[A-Za-z0-9+/]{43}=\n", first.stdout), first.stdout + first.stderr
    assert again.stdout == first.stdout
    started = relay()
    assert started.returncode == 2
    for name in ("MESH_COORDINATORS", "MESH_OWNERS", "MESH_RENDEZVOUS_PUBLIC"):
        assert name in started.stderr + started.stdout
