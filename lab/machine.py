"""One simulated CVM: its network, its guest agent and its containers, through boots, stops and sudden deaths."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lab import processes
from lab.container import ContainerSpec, Mount
from lab.names import Seen
from runtime.backoff import Backoff
from runtime.secret import Secret
from runtime.tasks import TaskScope
from topology.compose import Service

log = logging.getLogger("lab.machine")

_RESTART = Backoff(base=0.1, cap=10.0)
"""Docker's own restart policy starts at 100 ms and doubles (docker-run(1), --restart)."""
STOP_SECONDS = 10.0
"""What compose gives a container between SIGTERM and SIGKILL."""
_HEALTH_POLL = 0.02
GUEST_AGENT = "/var/run/dstack.sock"
"""Where compose files mount the guest agent's socket from. A service that does not ask for it does not get it."""


class Agent(Protocol):
    """The simulated guest agent of one boot."""

    async def start(self, path: Path) -> None:
        """Serves on a unix socket at `path`."""

    async def stop(self) -> None:
        """Stops serving."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachinePlan:
    """What one CVM runs; the same at every boot."""

    name: str
    """In the lab; `lab.names` says how it relates to peer IDs."""
    peer_id: str | None
    """Where it is fixed: by MESH_PEER_ID, by a coordinator's URL, or as a host's name. None: its sidecar will say."""
    group: str
    kind: str
    """`coordinator`, `workload` or `host` (a public machine that is no CVM)."""
    services: tuple[Service, ...]
    environment: Mapping[str, Mapping[str, str]]
    """Per service: the finished environment of its container."""
    programs: Mapping[str, tuple[str, ...]]
    """Per service: the command line that its image's entry point means on this machine."""
    keep: tuple[str, ...]
    """Paths that every container sees as they are."""
    app_folder: Path
    """What is mounted at /app in application containers."""
    volumes: Path
    """Where the named volumes are: this CVM's disk, which a boot finds as it was. It ends with the mesh."""
    resolver: str
    """Address of the DNS server of the segment."""
    private_files: Mapping[str, Secret] = field(default_factory=dict)
    """Files that are in the sidecar's private folder before it starts: name to content."""


@dataclass(slots=True)
class Container:
    """A container's state as the lab knows it."""

    name: str
    launcher: asyncio.subprocess.Process | None = None
    restarts: int = 0
    state: str = "created"
    exit_code: int | None = None
    """Of its last end in this boot."""
    started: float | None = None
    """When it was last started (CLOCK_MONOTONIC, seconds): its health check begins anew with each start."""

    def uptime(self) -> float | None:
        """Seconds since it was started; None while it does not run."""
        return time.monotonic() - self.started if self.state == "running" and self.started is not None else None

    def first_pid(self) -> int | None:
        """PID of the container's first process in the lab's process namespace, or None."""
        if self.launcher is None or self.launcher.returncode is not None:
            return None
        pid = self.launcher.pid
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()[0])
        return None


class Machine:
    """One CVM. `run` is its life; `boot`, `stop` and `kill` steer it."""

    def __init__(self, plan: MachinePlan, *, folder: Path, logs: Path, python: str) -> None:
        self.plan = plan
        self.containers: dict[str, Container] = {}
        self.state = "created"
        self._folder = folder
        self._logs = logs
        self._python = python
        self._agent: Agent | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._last: tuple[str, float] | None = None
        """Peer ID and moment that the sidecar said last, in this boot or before."""
        self._rng = random.Random(plan.name)

    @property
    def status_socket(self) -> Path:
        """Where the sidecar or coordinator of this CVM serves its status."""
        return self._folder / "private" / "status.sock"

    def seen(self) -> Seen:
        """Which peer of the mesh this CVM is: by the plan, or by the identity that its sidecar writes for the CVM's
        programs; from memory while it is not admitted in this boot.
        """
        found = self._identity()
        self._last = found or self._last
        peer_id, at = self._last or (None, 0.0)
        return Seen(
            machine=self.plan.name,
            group=self.plan.group,
            peer_id=self.plan.peer_id or peer_id,
            current=found is not None and self.state == "running",
            at=at,
        )

    def _identity(self) -> tuple[str, float] | None:
        """The peer ID in `identity.json` of this boot, and when it was written."""
        path = self._folder / "mesh" / "identity.json"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            peer_id = json.loads(path.read_text(encoding="utf-8"))["peer_id"]
            return (peer_id, path.stat().st_mtime) if isinstance(peer_id, str) else None
        return None

    async def boot(self, scope: TaskScope, netns: str, agent: Agent | None) -> None:
        """Starts everything afresh: what a CVM keeps in memory is gone."""
        if self.state == "running":
            return
        self.seen()
        shutil.rmtree(self._folder, ignore_errors=True)
        for name in ("mesh", "private", "socket"):
            (self._folder / name).mkdir(parents=True, mode=0o755)
        (self._folder / "private").chmod(0o700)
        for name, secret in self.plan.private_files.items():
            (self._folder / "private" / name).touch(mode=0o600)
            (self._folder / "private" / name).write_text(secret.reveal(), encoding="utf-8")
        self._agent = agent
        if agent is not None:
            await agent.start(self._folder / "socket" / "dstack.sock")
        self.state = "running"
        self.containers = {service.name: Container(service.name) for service in self.plan.services}
        self._tasks = [
            scope.start(f"{self.plan.name} {service.name}", self._keep_running(service, netns))
            for service in self.plan.services
        ]

    async def stop(self) -> None:
        """Stops the containers as `docker compose down` does: applications first, each with its grace."""
        await self._down("stopped", graceful=True)

    def wipe(self) -> None:
        """Takes everything off this CVM's disk, as another disk in its place would. ValueError while it runs."""
        if self.state == "running":
            raise ValueError(f"{self.plan.name} runs; ./mesh kill it first")
        if self.plan.volumes.is_dir():
            for entry in self.plan.volumes.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()

    async def kill(self) -> None:
        """The CVM is gone from one moment to the next: nothing gets a chance to say goodbye."""
        await self._down("killed", graceful=False)

    def signal(self, process: str, number: int) -> tuple[list[int], float]:
        """Sends signal `number` to the containers' processes called `process`.

        Their PIDs here, none without one, and the moment just before (CLOCK_MONOTONIC): finding them takes a while.
        """
        running = processes.snapshot()
        first = [pid for container in self.containers.values() if (pid := container.first_pid()) is not None]
        found = [pid for start in first for pid in processes.called(process, start, running)]
        at = time.monotonic()
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return found, at

    def processes(self) -> list[str]:
        """What runs in the containers, by the names that `signal` takes."""
        running = processes.snapshot()
        first = [pid for container in self.containers.values() if (pid := container.first_pid()) is not None]
        inside = [running[pid] for start in first for pid in processes.below(start, running)]
        return sorted({name for process in inside for name in process.names})

    async def _down(self, state: str, *, graceful: bool) -> None:
        if self.state != "running":
            return
        self.state = state
        if graceful:
            applications = [c for s in self.plan.services if not s.is_sidecar for c in (self.containers[s.name],)]
            sidecars = [c for s in self.plan.services if s.is_sidecar for c in (self.containers[s.name],)]
            for batch in (applications, sidecars):
                await asyncio.gather(*(self._end(container) for container in batch))
        self._kill_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._agent is not None:
            await self._agent.stop()
            self._agent = None

    async def _end(self, container: Container) -> None:
        launcher = container.launcher
        if launcher is None or launcher.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            launcher.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await launcher.wait()

    def _kill_all(self) -> None:
        for container in self.containers.values():
            pid = container.first_pid()
            with contextlib.suppress(ProcessLookupError):
                if pid is not None:
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                if container.launcher is not None and container.launcher.returncode is None:
                    container.launcher.kill()

    async def _keep_running(self, service: Service, netns: str) -> None:
        """One container with restart policy `unless-stopped`."""
        container = self.containers[service.name]
        if service.waits_healthy:
            container.state = "waiting for the sidecar's health"
            refusal = await self._sidecar_refusal()
            if refusal is not None:
                container.state = f"not started: {refusal}"
                log.warning(
                    "application not started peer_id=%s service=%s: %s", self.plan.peer_id, service.name, refusal
                )
                return
        failures = 0
        while self.state == "running":
            started = asyncio.get_running_loop().time()
            code = await self._run_once(container, service, netns)
            if self.state != "running":
                return
            failures = 0 if asyncio.get_running_loop().time() - started > STOP_SECONDS else failures + 1
            container.exit_code = code
            container.state = f"exited with code {code}, restarting"
            container.restarts += 1
            await asyncio.sleep(_RESTART.delay(failures, self._rng))

    async def _sidecar_refusal(self) -> str | None:
        """None once the sidecar is healthy; why the applications are never started, when Compose gives up on it before.

        As on dstack, where `docker compose up` runs once a boot: nothing starts them later (topology/health.py).
        """
        sidecar = next(service for service in self.plan.services if service.is_sidecar)
        if sidecar.health is None:
            return "the sidecar has no health check"
        limit = sidecar.health.gives_up_after
        # The sidecar's health check says what this file says; asking the file costs no process each time.
        ready = self._folder / "mesh" / "ready"
        while not ready.exists():
            started = self.containers[sidecar.name].started
            if started is not None and time.monotonic() - started > limit:
                return f"the sidecar was unhealthy after {limit:g} s"
            await asyncio.sleep(_HEALTH_POLL)
        return None

    async def _run_once(self, container: Container, service: Service, netns: str) -> int:
        spec_path = self._write_spec(service, netns)
        with (self._logs / f"{self.plan.name}.{service.name}.log").open("ab") as output:
            container.launcher = await asyncio.create_subprocess_exec(
                self._python,
                "-S",
                "-m",
                "lab.container",
                "run",
                str(spec_path),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        container.state, container.started = "running", time.monotonic()
        try:
            return await container.launcher.wait()
        finally:
            container.state = "exited"
            if container.launcher.returncode is None:  # cancelled: the CVM is going down
                container.launcher.kill()
                await container.launcher.wait()

    def _disks(self, service: Service) -> list[Mount]:
        """The service's named volumes, on this CVM's disk."""
        found = []
        for name, target in filter(None, map(named_volume, service.volumes)):
            folder = self.plan.volumes / name
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found.append(Mount(source=str(folder), target=target))
        return found

    def _write_spec(self, service: Service, netns: str) -> Path:
        own = self._folder / f"container-{service.name}"
        shutil.rmtree(own, ignore_errors=True)
        (own / "root").mkdir(parents=True)
        (own / "hosts").write_text(
            f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {self.plan.name}\n", encoding="ascii"
        )
        (own / "resolv.conf").write_text(f"nameserver {self.plan.resolver}\n", encoding="ascii")
        mounts = [Mount(source=str(own / name), target=f"/etc/{name}") for name in ("hosts", "resolv.conf")]
        mounts.append(Mount(source=str(self._folder / "mesh"), target="/run/mesh", read_only=not service.is_sidecar))
        mounts += self._disks(service)
        asks = any(volume.split(":")[0] == GUEST_AGENT for volume in service.volumes)
        if self._agent is not None and (service.is_sidecar or asks):
            mounts.append(Mount(source=str(self._folder / "socket" / "dstack.sock"), target="/run/dstack.sock"))
        if service.is_sidecar:
            mounts.append(Mount(source=str(self._folder / "private"), target="/run/mesh-private"))
        else:
            mounts.append(Mount(source=str(self.plan.app_folder), target="/app", read_only=True))
        spec = ContainerSpec(
            name=f"{self.plan.name}/{service.name}",
            hostname=self.plan.name,
            netns=netns,
            argv=self.plan.programs[service.name],
            env=dict(self.plan.environment[service.name]),
            mounts=tuple(mounts),
            keep=self.plan.keep,
            root=str(own / "root"),
        )
        path = own / "spec.json"
        path.touch(mode=0o600)
        path.write_text(spec.to_json(), encoding="utf-8")
        return path


def named_volume(volume: str) -> tuple[str, str] | None:
    """(name, target) of a compose volume in short syntax that is a named one; None for a folder or a file."""
    source, _, rest = volume.partition(":")
    target = rest.partition(":")[0]
    return (source, target) if target and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", source) else None


def this_python() -> str:
    """The interpreter that runs the lab, which its containers run too."""
    return sys.executable
