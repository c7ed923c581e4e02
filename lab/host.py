"""The lab daemon: one mesh on one machine. Runs as the child of `lab.init`, inside the lab's own namespaces.

`python -m lab.host REQUEST.json`. It builds the network, the development TEE, the platform's services (gateway, DNS,
collateral) and one Machine a CVM, then serves the control API on a unix socket until it is told to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import secrets
import signal
import socket
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lab import disk
from lab import owner as owners
from lab import plan as plans
from lab.agent import GuestAgentServer
from lab.control import ControlServer
from lab.deployment import report
from lab.machine import Machine
from lab.names import called
from lab.namespaces import inside_network
from lab.nat import Direction, Nat
from lab.network import HostNet, LabNetwork
from lab.platform import start_platform
from lab.revisions import revised
from lab.tee import DevTee
from runtime.tasks import TaskScope
from topology.cluster import load as load_cluster
from topology.envelope import seal
from topology.manifest import Manifest
from topology.model import COORDINATOR
from topology.owners import Owners, key_of, text_of
from topology.render import owners_of

log = logging.getLogger("lab.host")

NETS = Path("/run/netns")
MACHINES = Path("/run/lab")
"""On the lab's private tmpfs: what a CVM keeps in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A listening socket on the machine's loopback, inherited, for the public entry of one group; of the coordinators,
    too.
    """

    group: str
    port: int
    fd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What `meshctl up` asks for; JSON in the run folder."""

    name: str
    cluster: str
    overrides: dict[str, str]
    nat: Nat
    """`preserving` or `random`: how the CVMs' routers choose ports."""
    run_dir: str
    checkout: str
    keep: tuple[str, ...]
    envoy: str
    consul: str
    wireguard_go: str | None
    postgres: str
    listeners: tuple[Listener, ...]
    pin_peers: bool = False
    """See `lab.plan.Site`."""
    disk: int | None = None
    """MiB of each CVM's disk (`lab.disk`); None: as large as the machine's."""

    @classmethod
    def load(cls, path: Path) -> Request:
        """Reads the file that `meshctl up` wrote."""
        tree = json.loads(path.read_text(encoding="utf-8"))
        tree["listeners"] = tuple(Listener(**item) for item in tree["listeners"])
        return cls(**{**tree, "keep": tuple(tree["keep"])})

    def save(self, path: Path) -> None:
        """Writes the file."""
        path.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")


class Host:
    """The running lab."""

    def __init__(self, request: Request, scope: TaskScope) -> None:
        self.request = request
        self.machines: dict[str, Machine] = {}
        self.ending = asyncio.Event()
        self._scope = scope
        self._run_dir = Path(request.run_dir)
        # A lab's secrets are as fresh as the lab: two labs never accept each other's quotes.
        self._tee = DevTee(secrets.token_bytes(32))
        self._network = LabNetwork(prefix="lab")
        self._plan: plans.LabPlan | None = None
        self._envelope = ""
        self._platform: HostNet | None = None

    async def start(self) -> None:
        """Builds everything and boots every machine; returns when all are booting."""
        request = self.request
        cluster = load_cluster(Path(request.cluster), request.overrides)
        hosts = {name: self._network.add_host(name) for name in ("platform", plans.RENDEZVOUS)}
        platform = self._platform = hosts["platform"]
        site = plans.Site(
            python=sys.executable,
            checkout=Path(request.checkout),
            keep=request.keep,
            app_folder=self._write_app_folder(),
            tools=plans.Tools(
                envoy=request.envoy,
                consul=request.consul,
                wireguard_go=request.wireguard_go,
                postgres=request.postgres,
            ),
            volumes=self._run_dir / "volumes",
            resolver=platform.address,
            rendezvous_address=hosts[plans.RENDEZVOUS].address,
            pin_peers=request.pin_peers,
        )
        owner = Ed25519PrivateKey.generate()
        self._plan = plans.make_plan(cluster, self._tee, owner, site)
        self._envelope = seal(self._plan.manifest, owner)
        owners.keep(self._run_dir, owner, self._envelope)
        for index, cvm in enumerate(self._plan.cvms):
            self._network.add_cvm(cvm.machine.name, nat=request.nat, index=index)
        entries = tuple(
            (socket.socket(fileno=item.fd), _app_of(self._plan.manifest, item.group), item.port)
            for item in request.listeners
        )
        places = [listener.getsockname()[1] for listener, *_ in entries]
        self._tell_outsiders(list(zip(request.listeners, places, strict=True)), owner)
        await start_platform(
            self._scope,
            self._tee,
            platform,
            entries,
            hosts_of=self._plan.hosts_of,
            address_of=self._network.gateway_address,
        )
        for machine_plan in (self._plan.rendezvous, *(cvm.machine for cvm in self._plan.cvms)):
            self.machines[machine_plan.name] = Machine(
                machine_plan, folder=MACHINES / machine_plan.name, logs=self._run_dir / "logs", python=sys.executable
            )
        if request.disk is not None:
            for machine in self.machines.values():
                image = self._run_dir / "disks" / f"{machine.plan.name}.ext4"
                await asyncio.to_thread(disk.make, image, machine.plan.volumes, request.disk)
        for name in self.machines:
            await self.boot(name)

    def called(self) -> dict[str, str]:
        """Name of each machine → what it is called now (`lab.names`)."""
        return called([machine.seen() for machine in self.machines.values()])

    async def boot(self, name: str) -> None:
        """Starts a CVM that is not running. `name` is the machine's, here and below."""
        assert self._plan is not None
        machine = self.machines[name]
        if name == plans.RENDEZVOUS:
            await machine.boot(self._scope, self._network.netns_path(plans.RENDEZVOUS), None)
            return
        identity = next(cvm.identity for cvm in self._plan.cvms if cvm.machine.name == name)
        begins = machine.state != "running"
        if machine.state in ("stopped", "killed"):
            self._network.reset_cvm(name)
        await machine.boot(self._scope, self._network.netns_path(name), GuestAgentServer(self._tee, identity))
        if machine.plan.kind == "coordinator" and begins:
            lead = owners.Coordinator(
                name=name,
                status_socket=machine.status_socket,
                runs=lambda: machine.state == "running",
                address=lambda: self._network.gateway_address(name),
            )
            self._scope.start(f"owner of {name}", owners.give(lead, self._envelope, self._outside))

    def _outside(self) -> socket.socket:
        """A TCP socket at the platform, from where its gateway reaches the CVMs."""
        assert self._platform is not None
        with inside_network(self._platform.netns):
            return socket.socket(socket.AF_INET, socket.SOCK_STREAM)

    async def stop(self, name: str) -> None:
        """Shuts a CVM down cleanly."""
        await self.machines[name].stop()

    async def redeploy(self, name: str) -> str:
        """Shuts a CVM down and boots it with its compose file as that is now; the compose hash that it measures.
        ValueError where that cannot be.
        """
        assert self._plan is not None
        before = next((cvm for cvm in self._plan.cvms if cvm.machine.name == name), None)
        if before is None:
            raise ValueError(f"{name} is a public host, no CVM: it measures nothing")
        try:
            text = await asyncio.to_thread(before.compose.path.read_text, encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{before.compose.path} cannot be read: {error}") from error
        owners = owners_of(before.compose.text)
        assert owners is not None, "the plan has put them into it"
        after = revised(before, text, owners, self._plan.cluster, self._tee)
        await self.stop(name)
        cvms = tuple(after if cvm is before else cvm for cvm in self._plan.cvms)
        self._plan = dataclasses.replace(self._plan, cvms=cvms)
        await self.boot(name)
        return after.identity.compose_hash

    def deployment(self) -> dict[str, Any]:
        """What the CVMs measure (`lab.deployment`). ValueError before they are planned."""
        if self._plan is None:
            raise ValueError("the lab is still starting")
        return report(self._plan)

    async def kill(self, name: str) -> None:
        """Takes a CVM away from one moment to the next."""
        if name != plans.RENDEZVOUS:
            # First of all: the kernel closes the sockets of a process that is killed, and a dead machine says nothing.
            await self.cut(name, "both")
        await self.machines[name].kill()

    async def change_disk(self, name: str, change: Literal["wipe", "fill", "free"]) -> None:
        """Takes everything off a CVM's disk, takes its free space, or gives that back. ValueError where that cannot
        be.
        """
        machine = self.machines[name]
        try:
            if change == "wipe":
                await asyncio.to_thread(machine.wipe)
            else:
                await asyncio.to_thread({"fill": disk.fill, "free": disk.free}[change], machine.plan.volumes)
        except (disk.DiskError, OSError) as error:
            raise ValueError(f"the disk of {name}: {error}") from error

    async def cut(self, name: str, direction: Direction | None) -> None:
        """Cuts a CVM off from the network one way or both; None heals it. ValueError for what is no CVM."""
        if name == plans.RENDEZVOUS:
            raise ValueError(f"{name} is a public host, no CVM: it has no router to cut it off at; ./mesh stop {name}")
        # From a thread: netlink blocks for milliseconds, in which the gateway would stand still.
        if direction is None:
            await asyncio.to_thread(self._network.heal, name)
        else:
            await asyncio.to_thread(self._network.cut, name, direction)

    def cut_of(self, name: str) -> Direction | None:
        """Which way a CVM is cut off now."""
        return self._network.cut_of(name)

    async def close(self) -> None:
        """Ends all machines and removes the network.

        Nobody is left who would be told by a clean stop, and nothing is kept: draining would only make a person wait.
        """
        await asyncio.gather(*(machine.kill() for machine in self.machines.values()))
        self._network.close()

    def _tell_outsiders(self, places: list[tuple[Listener, int]], owner: Ed25519PrivateKey) -> None:
        """Writes what one needs to verify this lab from outside: which ports of the machine's loopback lead where,
        where coordinators answer (TLS that ends in the CVM), whose signatures count, and the root of the simulated TEE.
        """
        entries = [{"group": item.group, "port": item.port, "here": here} for item, here in places]
        coordinator = next(here for item, here in places if item.group == COORDINATOR)
        told = {
            "url": f"https://127.0.0.1:{coordinator}",
            "entries": entries,
            "owners": text_of(Owners(keys=(key_of(owner),))),
            "development_root": self._tee.root_der.hex(),
        }
        (self._run_dir / "outside.json").write_text(json.dumps(told), encoding="ascii")

    def _write_app_folder(self) -> Path:
        """`/app` of the demo images: one small program a workload."""
        folder = self._run_dir / "app"
        folder.mkdir(exist_ok=True)
        for name in ("api", "emoji", "patroni", "voting", "web", "webdemo", "worker"):
            program = folder / name
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m workloads.{name} "$@"\n', encoding="utf-8")
            program.chmod(program.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        return folder


def _app_of(manifest: Manifest, group: str) -> str:
    """The app ID of `group`."""
    return manifest.coordinators.app_id if group == COORDINATOR else manifest.groups[group].app_id


async def run(request: Request) -> None:
    """The daemon's life."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    loop = asyncio.get_running_loop()
    with contextlib.suppress(asyncio.CancelledError):
        async with TaskScope() as scope:
            host = Host(request, scope)
            loop.add_signal_handler(signal.SIGTERM, host.ending.set)
            control = ControlServer(host)
            await control.start(Path(request.run_dir) / "control.sock")
            try:
                await host.start()
                log.info("lab started name=%s", request.name)
                await host.ending.wait()
            finally:
                await host.close()
                await control.stop()
            # The scope's listeners run for ever; ending is what cancels them.
            current = asyncio.current_task()
            assert current is not None
            current.cancel()
            await asyncio.sleep(0)


if __name__ == "__main__":
    asyncio.run(run(Request.load(Path(sys.argv[1]))))
