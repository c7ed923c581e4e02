"""Meshes on a Docker engine: one is started, asked and removed. Everything of a run carries its label.

The run's folder holds what was rendered (overlays, environment files, the platform's request); `down` needs none of it:
the label is enough to find containers, volumes and networks.

Long because a run is started and removed in steps that undo each other: what one makes, the other has to find.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshctl import images, runs
from meshctl.bring_up import Entry, checked, entry_ports
from meshctl.console import Progress
from meshctl.engine import Engine
from meshctl.errors import UserError
from meshctl.info import ROOT

if TYPE_CHECKING:
    from lab.docker_plan import Place
    from lab.plan import LabPlan
    from topology.cluster import Cluster

LABEL = "cvm-mesh.run"
PEER_LABEL = "cvm-mesh.peer"
PLATFORM = "platform"
RENDEZVOUS = "rendezvous"
"""The host that clusters/relay runs on; also in `lab.plan`."""
ANCHOR = "mesh-cvm"
"""The service whose network namespace is the CVM's; also in `lab.docker_plan`."""
RELAY_COMPOSE = ROOT / "clusters" / "relay" / "compose.yaml"
_UP_SECONDS = 420.0
"""For one CVM's `docker compose up`, which waits for its sidecar's health; pulling images comes on top elsewhere."""
_RESTARTS = 5
"""A sidecar that ended so often without being healthy will not be."""
_RECORD = "run.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """One container of a run."""

    name: str
    peer: str
    service: str
    state: str
    """Docker's word: running, exited, restarting, created."""
    status: str
    """Docker's sentence, with the health."""


def run_of(name: str) -> runs.Run:
    """The run called `name`, existing or not."""
    lab = runs.run_of(name)
    return runs.Run(name, lab.folder.with_name(f"docker-{lab.folder.name}"))


def label_of(run: runs.Run) -> str:
    """The label's value for everything of `run`."""
    return run.folder.name


def all_runs(engine: Engine | None = None) -> list[runs.Run]:
    """Every run of this checkout: by folder, and by containers whose folder is gone."""
    prefix = run_of("x").folder.name.removesuffix("x")
    base = runs.base_folder()
    found = {folder.name for folder in base.glob(f"{prefix}*")} if base.exists() else set()
    if engine is not None:
        labels = engine.lines("ps", "-a", "--filter", f"label={LABEL}", "--format", f'{{{{.Label "{LABEL}"}}}}')
        found |= {label for label in labels if label.startswith(prefix)}
    return [runs.Run(name.removeprefix(prefix), base / name) for name in sorted(found)]


def containers(engine: Engine, run: runs.Run) -> list[Container]:
    """The containers of `run`, running or not."""
    fields = ("{{.Names}}", f'{{{{.Label "{PEER_LABEL}"}}}}', '{{.Label "com.docker.compose.service"}}')
    form = "\t".join((*fields, "{{.State}}", "{{.Status}}"))
    lines = engine.lines("ps", "-a", "--filter", f"label={LABEL}={label_of(run)}", "--format", form)
    found = [line.split("\t") for line in lines]
    return sorted(
        (Container(name=n, peer=p, service=s, state=state, status=status) for n, p, s, state, status in found),
        key=lambda item: (item.peer, item.service),
    )


def container_of(engine: Engine, run: runs.Run, peer: str, service: str | None) -> Container:
    """The container `service` of a CVM; by default its application's, or the sidecar where it has none."""
    rows = [row for row in containers(engine, run) if row.peer == peer]
    if not rows:
        known = dict.fromkeys(row.peer for row in containers(engine, run))
        raise UserError(f"there is no CVM {peer!r}", runs.nearest(peer, known))
    order = [row for row in rows if row.service not in ("sidecar", ANCHOR)] + [
        row for row in rows if row.service == "sidecar"
    ]
    chosen = [row for row in rows if row.service == service] if service else order
    if not chosen:
        raise UserError(f"{peer} has no container {service!r}", f"it has {', '.join(row.service for row in rows)}")
    return chosen[0]


def start(
    engine: Engine,
    compose: str,
    run: runs.Run,
    folder: Path,
    overrides: Mapping[str, str],
    nat: str,
    progress: Progress,
) -> tuple[Entry, ...]:
    """Starts the mesh of `folder` and returns its public entries when every application runs. UserError when not."""
    cluster = checked(folder, overrides)
    names = _own_images(cluster)
    images.build(engine, (*names, "lab"), progress)
    entries = _render(run, cluster, folder, nat)
    _platform_up(engine, compose, run, progress)
    _cvms_up(engine, compose, run, progress)
    return entries


def digest(folder: Path) -> str:
    """SHA-256 of the files that say what a cluster runs: cluster.tf and the compose files beside it."""
    total = hashlib.sha256()
    for path in (folder / "cluster.tf", *sorted((folder / "compose").glob("*.y*ml"))):
        if path.exists():
            total.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


def record(run: runs.Run) -> dict[str, Any] | None:
    """What was written when `run` was started; None without it."""
    with contextlib.suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads((run.folder / _RECORD).read_text(encoding="utf-8"))
        return found
    return None


def is_stale(run: runs.Run) -> bool:
    """Whether the files of the cluster were changed since the overlays of `run` were made."""
    known = record(run)
    return known is not None and known["digest"] != digest(Path(known["cluster"]))


def refuse_another(engine: Engine, run: runs.Run, folder: Path) -> None:
    """UserError when something of a run of that name is there: whole, half removed, or made from older files."""
    there = containers(engine, run)
    remedy = f"./mesh compose down {run.name}, or choose another --name"
    if not there:
        return
    known = record(run)
    if known is None:
        raise UserError(f"containers of a mesh {run.name!r} are left, but its folder {run.folder} is gone", remedy)
    gone = sorted(set(known["containers"]) - {f"{item.peer}/{item.service}" for item in there})
    if gone:
        raise UserError(f"mesh {run.name!r} is half removed: {', '.join(gone)} are gone", remedy)
    if Path(known["cluster"]) == folder and is_stale(run):
        message = f"mesh {run.name!r} runs from an older version of {folder}: its overlays are stale"
        raise UserError(message, f"./mesh compose down {run.name}, then up again")
    raise UserError(f"a mesh called {run.name!r} is there already", remedy)


def _own_images(cluster: Cluster) -> tuple[str, ...]:
    """Names of the images of this project that the cluster's compose files use."""
    from topology.compose import load

    paths = {cluster.coordinator_compose, *(group.compose for group in cluster.groups)}
    found = [images.of_reference(service.image) for path in paths for service in load(path).services]
    return tuple(dict.fromkeys(image.name for image in found if image is not None))


def _render(run: runs.Run, cluster: Cluster, folder: Path, nat: str) -> tuple[Entry, ...]:
    """Writes everything that the run consists of into its folder."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from lab import docker_plan
    from lab.plan import make_plan
    from lab.tee import DevTee
    from topology.envelope import seal

    seed = secrets.token_bytes(32)
    owner = Ed25519PrivateKey.generate()
    plan = make_plan(cluster, DevTee(seed), owner, docker_plan.SITE)
    place = place_of(run, plan)
    runs.create_folder(run)
    ports = {group: (_free_port(), scheme, port) for group, (scheme, port) in entry_ports(cluster).items()}
    request = docker_plan.request(
        plan,
        name=run.name,
        cluster=str(folder),
        nat=nat,
        tee_seed=seed,
        manifest=seal(plan.manifest, owner),
        entries={group: (listen, port) for group, (listen, _, port) in ports.items()},
    )
    _write(run.folder / "request.json", json.dumps(request))
    _write(run.folder / "platform.yaml", docker_plan.platform_text(place, f"{label_of(run)}-{PLATFORM}"))
    for cvm in plan.cvms:
        own = place.cvm(cvm.machine.name)
        own.mkdir(parents=True)
        made_for = hashlib.sha256(cvm.compose.path.read_bytes()).hexdigest()
        _write(own / "overlay.yaml", docker_plan.overlay_text(cvm, place, f"sha256:{made_for}"))
        _write(own / "env", docker_plan.env_text(cvm.variables))
    relay = place.cvm(RENDEZVOUS)
    relay.mkdir(parents=True)
    made_for = hashlib.sha256(RELAY_COMPOSE.read_bytes()).hexdigest()
    _write(relay / "overlay.yaml", docker_plan.relay_text(plan, place, RELAY_COMPOSE, f"sha256:{made_for}"))
    _write(relay / "env", docker_plan.env_text(docker_plan.relay_variables(plan)))
    known = {
        "cluster": str(folder),
        "digest": digest(folder),
        "compose": {RENDEZVOUS: str(RELAY_COMPOSE)} | {c.machine.name: str(c.compose.path) for c in plan.cvms},
        "containers": [
            *(f"{RENDEZVOUS}/{name}" for name in (docker_plan.ANCHOR, docker_plan.RELAY)),
            *(
                f"{cvm.machine.name}/{name}"
                for cvm in plan.cvms
                for name in (docker_plan.ANCHOR, *(service.name for service in cvm.compose.services))
            ),
        ],
        "entries": {group: f"{scheme}://127.0.0.1:{listen}" for group, (listen, scheme, _) in ports.items()},
    }
    _write(run.folder / _RECORD, json.dumps(known))
    return entries_of(run)


def place_of(run: runs.Run, plan: LabPlan) -> Place:
    """Where `run` is, with local references for the images of this project."""
    from lab.docker_plan import Place

    used = {service.image for cvm in plan.cvms for service in cvm.compose.services}
    own = {reference: image.local for reference in used if (image := images.of_reference(reference)) is not None}
    return Place(
        run=label_of(run),
        folder=run.folder,
        lab_image=images.IMAGES["lab"].local,
        relay_image=images.IMAGES["sidecar"].local,
        images=own,
    )


def entries_of(run: runs.Run) -> tuple[Entry, ...]:
    """The public entries of `run`."""
    known = record(run) or {"entries": {}}
    return tuple(Entry(group=group, url=url) for group, url in known["entries"].items())


def _write(path: Path, text: str) -> None:
    # Some of it is the simulated TEE's secrets.
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def project_of(run: runs.Run, peer_id: str) -> str:
    """The compose project of one CVM."""
    return f"{label_of(run)}-{peer_id}"


def compose_argv(compose: str, run: runs.Run, peer_id: str, *arguments: str) -> list[str]:
    """The command line for one CVM's containers: its own compose file, and the overlay."""
    known = record(run) or {"compose": {}}
    own = run.folder / "cvms" / peer_id
    files = ["-f", known["compose"][peer_id], "-f", str(own / "overlay.yaml"), "--env-file", str(own / "env")]
    return [compose, "--ansi", "never", "-p", project_of(run, peer_id), *files, *arguments]


def _platform_up(engine: Engine, compose: str, run: runs.Run, progress: Progress) -> None:
    progress.update("starting the platform")
    argv = [compose, "--ansi", "never", "-p", project_of(run, PLATFORM), "-f", str(run.folder / "platform.yaml")]
    done = subprocess.run(
        [*argv, "up", "-d"], env=engine.environ, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode != 0:
        raise UserError(f"the platform could not start:\n{_tail(done.stderr)}", exit_code=1)
    end = time.monotonic() + 60
    while not (run.folder / runs.CONTROL_SOCKET).exists():
        if time.monotonic() > end:
            said = engine.run("logs", "--tail", "15", f"{label_of(run)}-{PLATFORM}", check=False)
            raise UserError(f"the platform does not answer; it said:\n{said.stdout}{said.stderr}", exit_code=1)
        time.sleep(0.05)


def _cvms_up(engine: Engine, compose: str, run: runs.Run, progress: Progress) -> None:
    """All CVMs at once: each `up` returns when its sidecar is healthy and the applications are started."""
    known = record(run)
    assert known is not None
    peers = list(known["compose"])
    started = time.monotonic()
    processes: list[subprocess.Popen[str]] = []

    def up(peer_id: str) -> None:
        argv = compose_argv(compose, run, peer_id, "up", "-d", "--no-build")
        with subprocess.Popen(
            argv,
            env=engine.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            processes.append(process)
            try:
                said, _ = process.communicate(timeout=_UP_SECONDS)
            except subprocess.TimeoutExpired:
                # A sidecar has a day to become healthy (start_period), and compose waits for it as long as that.
                process.terminate()
                reason = f"{peer_id} was not up after {_UP_SECONDS:.0f} s: its sidecar is not healthy yet"
                raise UserError(reason, f"./mesh compose logs {peer_id}", exit_code=1) from None
        if process.returncode != 0:
            raise UserError(f"{peer_id} did not come up:\n{_tail(said)}", f"./mesh compose logs {peer_id}", exit_code=1)

    with ThreadPoolExecutor(max_workers=len(peers)) as pool:
        futures: dict[Future[None], str] = {pool.submit(up, peer): peer for peer in peers}
        try:
            waiting = set(futures)
            while waiting:
                done, waiting = wait(waiting, timeout=1.0)
                for future in done:
                    future.result()
                refuse_hopeless(engine, run)
                progress.update(
                    f"{len(futures) - len(waiting)} of {len(peers)} CVMs up ({time.monotonic() - started:.0f} s)"
                )
        finally:
            for process in processes:
                if process.poll() is None:
                    process.terminate()


def refuse_hopeless(engine: Engine, run: runs.Run) -> None:
    """UserError with a sidecar's (or the relay's) own words when it keeps ending: no waiting mends that."""
    names = [item.name for item in containers(engine, run) if item.service in ("sidecar", "relay")]
    for found in engine.inspect(*names):
        if found["RestartCount"] >= _RESTARTS:
            name = found["Name"].removeprefix("/")
            said = engine.run("logs", "--tail", "12", name, check=False)
            raise UserError(
                f"container {name} ended {found['RestartCount']} times (exit code {found['State']['ExitCode']}); "
                f"it said:\n{_tail(said.stdout + said.stderr, 12)}",
                "change what it names, in the cluster's files or on this machine",
            )


def _tail(text: str, lines: int = 8) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])


def down(engine: Engine, run: runs.Run) -> None:
    """Removes every container, volume, network and file of `run`, whatever is left of it."""
    mark = f"label={LABEL}={label_of(run)}"
    projects = engine.lines("ps", "-a", "--filter", mark, "--format", '{{.Label "com.docker.compose.project"}}')
    names = engine.lines("ps", "-a", "-q", "--filter", mark)
    if names:
        engine.run("rm", "-f", "-v", *names, seconds=180)
    known = record(run) or {"compose": {}}
    for project in {*projects, *(project_of(run, peer) for peer in known["compose"])}:
        for kind in ("volume", "network"):
            left = engine.lines(kind, "ls", "-q", "--filter", f"label=com.docker.compose.project={project}")
            if left:
                engine.run(kind, "rm", *left)
    _remove_folder(engine, run)


def _remove_folder(engine: Engine, run: runs.Run) -> None:
    shutil.rmtree(run.folder, ignore_errors=True)
    if run.folder.exists() and os.geteuid() != 0:
        # What containers wrote there belongs to root; the engine's own root takes it away.
        lab = images.IMAGES["lab"].local
        erase = "rm -rf /run-folder/* /run-folder/.[!.]*"
        engine.run(
            "run",
            "--rm",
            "--network",
            "none",
            "--entrypoint",
            "sh",
            "-v",
            f"{run.folder}:/run-folder",
            lab,
            "-c",
            erase,
        )
        shutil.rmtree(run.folder, ignore_errors=True)
    if run.folder.exists():
        raise UserError(f"{run.folder} cannot be removed", f"as root: rm -rf {run.folder}")
    with contextlib.suppress(OSError):
        runs.base_folder().rmdir()
