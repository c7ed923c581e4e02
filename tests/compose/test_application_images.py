"""`exec.sh` in the images that applications come in: each finds route names, or says in one line what to mount.

Every container here joins the network of a CVM of the running mesh, with files in /etc of its own, as Docker gives
them to a container in the network of its host.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from meshctl import docker_runs, images
from meshctl.engine import Engine
from tests.compose import programs
from tests.compose.user import Mesh

PEER = "api-0"
BUSYBOX = Path("/bin/busybox")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cvm:
    """The CVM whose network the containers join."""

    engine: Engine
    anchor: str
    shared: Path
    vip: str
    """Of the route `worker`."""
    folder: Path
    """For the files of one test."""

    def run(
        self, image: str, *command: str, options: tuple[str, ...] = (), etc: str = "", resolver: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Runs `command` through exec.sh in `image`.

        `etc` is the mode of its files in /etc (`:ro`); `resolver` mounts the mesh's resolv.conf, as the warning says.
        """
        mounts = []
        for name, text in (("hosts", "127.0.0.1 localhost\n"), ("resolv.conf", "nameserver 198.18.0.10\n")):
            path = self.folder / name
            path.write_text(text)
            path.chmod(0o644)
            own = resolver and name == "resolv.conf"
            mounts += ["-v", f"{self.shared / name}:/etc/{name}:ro" if own else f"{path}:/etc/{name}{etc}"]
        mounts += ["-v", f"{self.shared}:/run/mesh:ro"]
        network = ("--network", f"container:{self.anchor}")
        argv = ["run", "--rm", *network, *mounts, *options, "--entrypoint", "/run/mesh/exec.sh", image, *command]
        return self.engine.run(*argv, check=False)


@pytest.fixture
def cvm(mesh: Mesh, tmp_path: Path) -> Cvm:
    """A CVM of the running mesh."""
    own = next(peer for peer in mesh.status()["peers"] if peer["peer_id"] == PEER)
    return Cvm(
        engine=mesh.engine,
        anchor=mesh.container(PEER, "mesh-cvm"),
        shared=docker_runs.run_of(mesh.name).folder / "cvms" / PEER / "tmp" / "dstack-runtime" / "mesh",
        vip=next(route["vip"] for route in own["routes"] if route["name"] == "worker"),
        folder=tmp_path,
    )


@pytest.fixture
def debian(built: dict[str, list[str]]) -> str:
    """A Debian image with Python."""
    return images.IMAGES["worker"].local


@pytest.fixture
def musl(engine: Engine, tmp_path: Path) -> Iterator[str]:
    """What an Alpine image gives an application: busybox's shell and musl's resolver."""
    compiler = programs.need("musl-gcc", "musl-tools")
    if not BUSYBOX.exists():
        pytest.skip("busybox is not on this machine (Debian, Ubuntu: apt-get install busybox-static)")
    files = {"/bin/busybox": BUSYBOX, "/bin/lookup": programs.compiled_c(tmp_path, compiler)}
    links = {f"/bin/{name}": "busybox" for name in ("sh", "sleep", "cat", "id")}
    yield programs.bare_image(engine, "cvm-mesh/test-musl:local", files, links)
    engine.run("image", "rm", "-f", "cvm-mesh/test-musl:local", check=False)


@pytest.fixture
def shell_only(engine: Engine, tmp_path: Path) -> Iterator[str]:
    """A shell, one static program and nothing else: no sleep, no cat, no libraries."""
    compiler = programs.need("musl-gcc", "musl-tools")
    if not BUSYBOX.exists():
        pytest.skip("busybox is not on this machine (Debian, Ubuntu: apt-get install busybox-static)")
    files = {"/bin/sh": BUSYBOX, "/app": programs.compiled_c(tmp_path, compiler)}
    yield programs.bare_image(engine, "cvm-mesh/test-shell:local", files, {})
    engine.run("image", "rm", "-f", "cvm-mesh/test-shell:local", check=False)


def test_debian(cvm: Cvm, debian: str) -> None:
    """glibc finds the name in /etc/hosts and, for the names that are not there, by DNS; nothing is said."""
    done = cvm.run(debian, "python3", "-c", programs.PYTHON, "worker")
    assert (done.stdout.strip(), done.stderr) == (cvm.vip, "")
    found = cvm.run(debian, "getent", "hosts", "worker.mesh")
    assert found.stdout.split()[0] == cvm.vip


def test_busybox_and_musl(cvm: Cvm, musl: str) -> None:
    """busybox's shell runs exec.sh, musl's resolver finds the name; nothing is said."""
    done = cvm.run(musl, "lookup", "worker")
    assert (done.stdout.strip(), done.stderr) == (cvm.vip, "")


def test_a_shell_and_nothing_else(cvm: Cvm, shell_only: str) -> None:
    """exec.sh needs no program beside its shell once the mesh is ready."""
    done = cvm.run(shell_only, "/app", "worker")
    assert (done.stdout.strip(), done.stderr) == (cvm.vip, "")


@pytest.mark.parametrize("why", ["user", "read-only"])
def test_without_the_right_to_write_etc(cvm: Cvm, debian: str, why: str) -> None:
    """One line says what could not be written and what to mount; with that mount the name is found."""
    options = ("--user", "1000:1000") if why == "user" else ("--read-only",)
    etc = "" if why == "user" else ":ro"
    done = cvm.run(debian, "python3", "-c", programs.PYTHON, "worker", options=options, etc=etc)
    line = done.stderr.splitlines()[0]
    assert line.startswith("exec.sh: warning: cannot write /etc/hosts and /etc/resolv.conf")
    assert "mount the mesh folder's resolv.conf over /etc/resolv.conf, read-only" in line
    assert [text for text in done.stderr.splitlines() if text.startswith("exec.sh")] == [line]
    mounted = cvm.run(debian, "python3", "-c", programs.PYTHON, "worker", options=options, etc=etc, resolver=True)
    assert mounted.stdout.strip() == cvm.vip


def test_a_missing_command_is_127(cvm: Cvm, debian: str) -> None:
    """exec.sh passes on what the shell says of a command that does not exist."""
    done = cvm.run(debian, "/no/such/program")
    assert done.returncode == 127
    assert "/no/such/program" in done.stderr


@pytest.mark.parametrize("cgo", [False, True], ids=["netgo", "cgo"])
def test_go(cvm: Cvm, debian: str, tmp_path: Path, cgo: bool) -> None:
    """Go's own resolver and the C library's, called from Go, find the name."""
    program = programs.compiled_go(tmp_path, cgo=cgo)
    done = cvm.run(debian, "/lookup", "worker", options=("-v", f"{program}:/lookup:ro"))
    assert done.stdout.strip() == cvm.vip, done.stderr


def test_node(cvm: Cvm, debian: str) -> None:
    """Node's `dns.lookup` finds the name."""
    node = programs.need("node", "nodejs")
    # The machine's own programs and libraries, as an image with Node has them.
    done = cvm.run(debian, node, "-e", programs.NODE, "worker", options=("-v", "/usr:/usr:ro"))
    assert done.stdout.strip() == cvm.vip, done.stderr


def test_java(cvm: Cvm, debian: str, tmp_path: Path) -> None:
    """Java's `InetAddress` finds the name."""
    java = programs.need("java", "default-jdk-headless")
    programs.need("javac", "default-jdk-headless")
    (tmp_path / "Lookup.java").write_text(programs.JAVA)
    settings = [item for path in sorted(Path("/etc").glob("java-*")) for item in ("-v", f"{path}:{path}:ro")]
    alternatives = ("-v", "/etc/alternatives:/etc/alternatives:ro")
    options = ("-v", "/usr:/usr:ro", *settings, *alternatives, "-v", f"{tmp_path}:/src:ro")
    done = cvm.run(debian, java, "/src/Lookup.java", "worker", options=options)
    assert done.stdout.strip() == cvm.vip, done.stderr
