"""Meshes on a Docker engine, with a `docker` that is a script: what is left of a run, and what is said about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meshctl import docker_runs, runs
from meshctl.engine import Engine
from meshctl.errors import UserError
from tests.support import ROOT

_DOCKER = """#!/bin/sh
echo "$*" >> {log}
case "$1 $2" in
"ps -a")
  case "$*" in
  *--format*State*) cat {rows} ;;
  *--format*project*) echo {project} ;;
  *-q*) echo c1; echo c2 ;;
  *) cat {labels} ;;
  esac ;;
"volume ls") echo v1 ;;
"container inspect") cat {inspected} ;;
logs*) echo "MESH_COORDINATORS: is not set" >&2 ;;
esac
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for runs, and the script's answers."""
    monkeypatch.setattr(runs, "base_folder", lambda: tmp_path / "runs")
    for name in ("rows", "labels", "log", "inspected"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture
def engine(place: Path) -> Engine:
    """The engine behind the script."""
    docker = place / "docker"
    files = {name: place / name for name in ("log", "rows", "labels", "inspected")}
    docker.write_text(_DOCKER.format(**files, project="the-project"))
    docker.chmod(0o755)
    return Engine(docker=str(docker), version="20.10.24")


def run_with(place: Path, *, containers: list[str], cluster: Path = ROOT / "clusters" / "starter") -> runs.Run:
    """A run folder whose record names `containers`."""
    run = docker_runs.run_of("starter")
    run.folder.mkdir(parents=True)
    record = {
        "cluster": str(cluster),
        "digest": docker_runs.digest(cluster),
        "compose": {"api-0": str(cluster / "compose" / "api.yaml")},
        "containers": containers,
        "entries": {"api": "http://127.0.0.1:4711"},
    }
    (run.folder / "run.json").write_text(json.dumps(record))
    return run


def rows(place: Path, *items: tuple[str, str]) -> None:
    """What `docker ps` lists: (peer, service)."""
    lines = [f"x-{peer}-{service}-1\t{peer}\t{service}\trunning\tUp 2 minutes (healthy)\n" for peer, service in items]
    (place / "rows").write_text("".join(lines))


def test_containers_are_found_by_the_label(place: Path, engine: Engine) -> None:
    """Every container of the run, sorted by CVM; other runs' are not asked for."""
    run = run_with(place, containers=[])
    rows(place, ("worker-0", "worker"), ("api-0", "sidecar"))
    found = docker_runs.containers(engine, run)
    assert [(item.peer, item.service, item.state) for item in found] == [
        ("api-0", "sidecar", "running"), ("worker-0", "worker", "running"),
    ]  # fmt: skip
    assert f"--filter label=cvm-mesh.run={run.folder.name}" in (place / "log").read_text()


def test_runs_are_found_by_folder_and_by_container(place: Path, engine: Engine) -> None:
    """A run whose folder was deleted is still there to be removed."""
    run = run_with(place, containers=[])
    other = docker_runs.run_of("lost").folder.name
    (place / "labels").write_text(f"{other}\nsomebody-elses\n")
    assert [item.name for item in docker_runs.all_runs(engine)] == ["lost", "starter"]
    assert docker_runs.all_runs() == [run]
    assert runs.all_runs() == [], "the lab's own commands leave it alone"


def test_a_second_start_says_what_is_there(place: Path, engine: Engine, tmp_path: Path) -> None:
    """Running, half removed, stale and orphaned runs are told apart, each with the way out."""
    starter = ROOT / "clusters" / "starter"
    run = docker_runs.run_of("starter")
    docker_runs.refuse_another(engine, run, starter)
    rows(place, ("api-0", "sidecar"))
    with pytest.raises(UserError, match=r"its folder .* is gone"):
        docker_runs.refuse_another(engine, run, starter)
    run_with(place, containers=["api-0/sidecar", "api-0/api"])
    with pytest.raises(UserError, match="half removed: api-0/api are gone") as caught:
        docker_runs.refuse_another(engine, run, starter)
    assert caught.value.remedy.startswith("./mesh compose down starter")
    rows(place, ("api-0", "sidecar"), ("api-0", "api"))
    with pytest.raises(UserError, match="is there already"):
        docker_runs.refuse_another(engine, run, starter)
    record = json.loads((run.folder / "run.json").read_text())
    (run.folder / "run.json").write_text(json.dumps({**record, "digest": "0"}))
    assert docker_runs.is_stale(run)
    with pytest.raises(UserError, match="its overlays are stale"):
        docker_runs.refuse_another(engine, run, starter)


def test_digest_follows_the_files(tmp_path: Path) -> None:
    """A changed compose file or cluster.tf is another digest; other files do not matter."""
    (tmp_path / "compose").mkdir()
    (tmp_path / "cluster.tf").write_text("a")
    (tmp_path / "compose" / "a.yaml").write_text("a")
    first = docker_runs.digest(tmp_path)
    (tmp_path / "README.md").write_text("x")
    assert docker_runs.digest(tmp_path) == first
    (tmp_path / "compose" / "a.yaml").write_text("b")
    assert docker_runs.digest(tmp_path) != first


def test_down_removes_by_label_whatever_is_left(place: Path, engine: Engine) -> None:
    """Containers, volumes and networks go without any file of the run; the folder goes too."""
    run = run_with(place, containers=[])
    (run.folder / "cvms").mkdir()
    docker_runs.down(engine, run)
    said = (place / "log").read_text()
    assert "rm -f -v c1 c2" in said
    assert "volume rm v1" in said
    assert "label=com.docker.compose.project=the-project" in said
    assert not run.folder.exists()
    docker_runs.down(engine, run)


def test_a_sidecar_that_keeps_ending_is_quoted(place: Path, engine: Engine) -> None:
    """After some restarts its own words are the message; before, waiting goes on."""
    run = run_with(place, containers=[])
    rows(place, ("api-0", "sidecar"))
    inspected = [{"Name": "/x-api-0-sidecar-1", "RestartCount": 2, "State": {"ExitCode": 2}}]
    (place / "inspected").write_text(json.dumps(inspected))
    docker_runs.refuse_hopeless(engine, run)
    (place / "inspected").write_text(json.dumps([inspected[0] | {"RestartCount": 5}]))
    with pytest.raises(UserError, match=r"ended 5 times \(exit code 2\); it said:\nMESH_COORDINATORS: is not set"):
        docker_runs.refuse_hopeless(engine, run)


def test_the_container_to_run_a_command_in(place: Path, engine: Engine) -> None:
    """The application's by default, any by name; unknown names are answered with the known ones."""
    run = run_with(place, containers=[])
    rows(place, ("api-0", "mesh-cvm"), ("api-0", "sidecar"), ("api-0", "api"), ("coordinator-0", "sidecar"))
    assert docker_runs.container_of(engine, run, "api-0", None).service == "api"
    assert docker_runs.container_of(engine, run, "coordinator-0", None).service == "sidecar"
    assert docker_runs.container_of(engine, run, "api-0", "mesh-cvm").service == "mesh-cvm"
    with pytest.raises(UserError, match="no CVM 'api-9'") as caught:
        docker_runs.container_of(engine, run, "api-9", None)
    assert "api-0, coordinator-0" in caught.value.remedy
    with pytest.raises(UserError, match="no container 'db'"):
        docker_runs.container_of(engine, run, "api-0", "db")


def test_compose_is_called_with_the_cvms_own_file_and_its_overlay(place: Path) -> None:
    """The committed compose file itself, then the overlay, then the environment."""
    run = run_with(place, containers=[])
    argv = docker_runs.compose_argv("/c", run, "api-0", "up", "-d")
    own = run.folder / "cvms" / "api-0"
    assert argv[argv.index("-f") :][:4] == [
        "-f", str(ROOT / "clusters" / "starter" / "compose" / "api.yaml"), "-f", str(own / "overlay.yaml"),
    ]  # fmt: skip
    assert argv[-2:] == ["up", "-d"]
