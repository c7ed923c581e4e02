"""The starter cluster from its own compose files, on a Docker engine."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import time
from pathlib import Path

import pytest

from meshctl import docker_runs, images
from meshctl.console import Console
from meshctl.engine import Engine
from tests.compose.user import Mesh, mesh_command, wait_for
from tests.support import ROOT


def moment(text: str) -> float:
    """Docker's notation of a moment, to the nanosecond, in Unix seconds."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    return dt.datetime.fromisoformat(whole).replace(tzinfo=dt.UTC).timestamp() + float(f"0.{fraction or 0}")


def first_ready(mesh: Mesh, peer: str) -> float:
    """When the sidecar of a CVM first said that it was ready, by the engine's clock, in Unix seconds."""
    log = mesh.engine.run("logs", "--timestamps", mesh.container(peer, "sidecar"))
    return moment(next(line for line in (log.stdout + log.stderr).splitlines() if " event=ready " in line).split()[0])


def test_applications_call_each_other_by_route_name(mesh: Mesh) -> None:
    """From an application container to its own group and to another one, and from outside through the public entry."""
    assert mesh.fetch("api-0", "http://api:8080/hello") == "hello from api-0\n"
    assert mesh.fetch("api-0", "http://worker:9090/hello") in ("hello from worker-0\n", "hello from worker-1\n")
    assert mesh.fetch("worker-1", "http://api:8080/hello") == "hello from api-0\n"
    results = json.loads(mesh.public("api", "/all"))["results"]
    assert set(results) <= {"hello from worker-0", "hello from worker-1"}


def test_sidecars_have_the_rights_of_the_compose_file_and_no_more(mesh: Mesh) -> None:
    """Three capabilities, a root file system that nobody can write, the supervisor as PID 1."""
    host = mesh.inspect("worker-0", "sidecar")["HostConfig"]
    assert {name.removeprefix("CAP_") for name in host["CapAdd"]} == {"NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW"}
    assert host["CapDrop"] == ["ALL"]
    assert host["ReadonlyRootfs"] is True
    assert host["Privileged"] is False
    inside = mesh.engine.run("exec", mesh.container("worker-0", "sidecar"), "cat", "/proc/1/cmdline").stdout
    assert inside.split("\0")[:3] == ["python", "-m", "sidecar"]


def test_health_gates_the_application(mesh: Mesh) -> None:
    """The application was started only after the sidecar had reported ready."""
    for peer, service in (("api-0", "api"), ("worker-0", "worker")):
        assert first_ready(mesh, peer) < moment(mesh.inspect(peer, service)["State"]["StartedAt"])


def test_health_says_why_it_is_not_ready(mesh: Mesh) -> None:
    """`docker inspect` shows the sidecar's reasons while it is not ready."""
    argv = ["run", "--rm", "--network", "none", "--entrypoint", "python", images.IMAGES["sidecar"].local]
    done = mesh.engine.run(*argv, "-m", "sidecar", "health", check=False)
    assert done.returncode == 1
    assert "the sidecar does not answer at /run/mesh-private/status.sock" in done.stdout + done.stderr


def test_wrong_configuration_ends_the_container_with_the_reasons(mesh: Mesh) -> None:
    """Exit code 2, and every missing variable by name."""
    done = mesh.engine.run("run", "--rm", "--network", "none", images.IMAGES["sidecar"].local, check=False)
    assert done.returncode == 2
    assert "MESH_COORDINATORS: is not set" in done.stderr


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_applications_outlive_their_sidecar(mesh: Mesh, how: str) -> None:
    """A sidecar container that is restarted or killed comes back with its identity; the application just runs on."""
    peer = "worker-0"
    before = mesh.inspect(peer, "worker")["State"]
    if how == "restart":
        mesh.engine.run("restart", "-t", "30", mesh.container(peer, "sidecar"))
    else:
        first = mesh.inspect(peer, "sidecar")["State"]["Pid"]
        # From outside the engine, so that the restart policy sees an accident.
        options = ("--rm", "--pid", "host", "--network", "none", "--entrypoint", "sh", images.IMAGES["lab"].local)
        mesh.engine.run("run", *options, "-c", f"kill -KILL {first}")
        wait_for(lambda: mesh.inspect(peer, "sidecar")["State"]["Pid"] not in (0, first), "the sidecar is restarted")
    mesh.wait_whole()
    wait_for(lambda: "worker-0" in mesh.endpoints("api-0", "worker"), "worker-0 is an endpoint again")
    after = mesh.inspect(peer, "worker")["State"]
    assert (before["Pid"], before["StartedAt"]) == (after["Pid"], after["StartedAt"])
    # The link to a CVM is made with the first call to it, which may be lost.
    wait_for(lambda: mesh.answers(peer, "http://api:8080/hello", "hello from api-0\n"), "calls from worker-0 succeed")


def test_stop_drains_within_its_grace(mesh: Mesh) -> None:
    """`docker stop` ends the sidecar by itself, with exit code 0, and nobody is sent to its CVM any more."""
    peer = "worker-1"
    name = mesh.container(peer, "sidecar")
    begin = time.monotonic()
    mesh.engine.run("stop", "-t", "30", name)
    took = time.monotonic() - begin
    assert mesh.inspect(peer, "sidecar")["State"]["ExitCode"] == 0
    assert took < 30, "it was killed, not drained"
    assert "worker-1" not in mesh.endpoints("api-0", "worker")
    assert mesh.fetch("api-0", "http://worker:9090/hello") == "hello from worker-0\n"
    mesh.engine.run("start", name)
    wait_for(lambda: "worker-1" in mesh.endpoints("api-0", "worker"), "worker-1 is an endpoint again")
    mesh.wait_whole()


def test_the_overlay_is_printed_and_says_what_it_is_for(mesh: Mesh) -> None:
    """Where the overlays are is said; each names its compose file."""
    place = docker_runs.run_of(mesh.name).folder / "cvms"
    assert f"overlays: {place}/*/overlay.yaml" in mesh.up_output
    text = (place / "api-0" / "overlay.yaml").read_text()
    assert "clusters/starter/compose/api.yaml (sha256:" in text


def test_ps_and_logs_show_every_container(mesh: Mesh) -> None:
    """`ps` lists CVMs and containers with their health; `logs` has each container's words."""
    shown = mesh.run("ps").stdout
    for peer, service in (
        ("api-0", "sidecar"),
        ("api-0", "api"),
        ("coordinator-0", "sidecar"),
        ("platform", "platform"),
    ):
        assert any(line.split()[:2] == [peer, service] and " Up " in line for line in shown.splitlines()), shown
    logs = mesh.run("logs", "api-0").stdout
    assert "api-0.sidecar | " in logs
    assert "event=admitted" in logs
    assert mesh.run("logs", "api-9").returncode == 2


def test_a_second_mesh_of_that_name_is_refused(mesh: Mesh) -> None:
    """`up` on a running mesh changes nothing and says how to end it."""
    again = mesh.run("up", "clusters/starter")
    assert again.returncode == 2
    assert f"a mesh called '{mesh.name}' is there already" in again.stderr
    assert f"./mesh compose down {mesh.name}" in again.stderr


def test_a_broken_cluster_starts_nothing(engine: Engine, tmp_path: Path) -> None:
    """An image reference with a variable is refused with file, line and entry before the engine is touched."""
    folder = Path(shutil.copytree(ROOT / "clusters" / "starter", tmp_path / "mine"))
    path = folder / "compose" / "api.yaml"
    path.write_text(path.read_text().replace("ghcr.io/dstack-mesh/cvm-mesh-api:0.1.0", "${IMAGE}"))
    done = mesh_command(engine, "compose", "up", str(folder))
    assert done.returncode == 2
    assert "services.api.image" in done.stderr
    assert "not measured" in done.stderr
    assert docker_runs.containers(engine, docker_runs.run_of("mine")) == []


def test_building_again_gives_the_same_layers(engine: Engine, built: dict[str, list[str]]) -> None:
    """An image built from nothing at another time has, layer by layer, the same content."""
    images.build(engine, ("worker",), Console(), fresh=True)
    assert images.layers(engine, "worker") == built["worker"]
