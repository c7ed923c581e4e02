"""The platform of a mesh on a Docker engine: `lab.host` for CVMs whose containers are Docker's.

`python -m lab.docker_host REQUEST.json`, in a container that shares the machine's process and network namespaces and
may administer them. It makes the networks, plugs each CVM's namespace in when its anchor (`lab.anchor`) reports,
serves the guest agents, gateway, DNS and collateral, and answers `GET /status` on a unix socket. The rendezvous is
clusters/relay, a container with a namespace of its own that is plugged in as a public host.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from lab import owner as owners
from lab import plan as plans
from lab.agent import GuestAgentServer
from lab.control import ask
from lab.docker_plan import RELAY, etc_files
from lab.namespaces import inside_network
from lab.nat import Nat
from lab.network import HostNet, LabNetwork, LabNetworkError
from lab.platform import start_platform
from lab.tee import CvmIdentity, DevTee, make_cvm
from runtime.tasks import TaskScope

log = logging.getLogger("lab.docker_host")

CONTROL = "control.sock"
ATTACH = "attach/attach.sock"
_CREDENTIALS = struct.Struct("3i")
"""struct ucred: pid, uid, gid (unix(7), SO_PEERCRED)."""


@dataclass(slots=True)
class Cvm:
    """One CVM as the platform knows it."""

    peer_id: str
    group: str
    kind: str
    index: int
    identity: CvmIdentity
    services: tuple[str, ...]
    attached: bool = False


def cvms_of(request: dict[str, Any], tee: DevTee) -> dict[str, Cvm]:
    """The CVMs of a request, by peer ID."""
    return {
        item["peer_id"]: Cvm(
            peer_id=item["peer_id"],
            group=item["group"],
            kind=item["kind"],
            index=index,
            identity=make_cvm(
                tee,
                app_compose=item["app_compose"],
                app_id=item["app_id"],
                instance_seed=bytes.fromhex(item["instance_seed"]),
                os_version=item["os_version"],
            ),
            services=tuple(item["services"]),
        )
        for index, item in enumerate(request["cvms"])
    }


class DockerHost:
    """The running platform."""

    def __init__(self, request: dict[str, Any], folder: Path, scope: TaskScope) -> None:
        self.ending = asyncio.Event()
        self._request = request
        self._folder = folder
        self._scope = scope
        self._nat: Nat = request["nat"]
        self._tee = DevTee(bytes.fromhex(request["tee_seed"]))
        self._cvms = cvms_of(request, self._tee)
        self._network = LabNetwork(prefix="docker")
        self._platform: HostNet | None = None
        self._agents: list[GuestAgentServer] = []
        self._relayed = False
        self._anchors: asyncio.Server | None = None
        self._runner = web.AppRunner(self._application(), access_log=None)

    async def start(self) -> None:
        """Builds everything; CVMs are plugged in as their anchors report."""
        platform = self._platform = self._network.add_host("platform")
        self._prepare_relay()
        for cvm in self._cvms.values():
            own = self._folder / "cvms" / cvm.peer_id
            _write_etc(own / "etc", cvm.peer_id, cvm.services)
            (own / "socket").mkdir(exist_ok=True)
            agent = GuestAgentServer(self._tee, cvm.identity)
            await agent.start(own / "socket" / "dstack.sock")
            self._agents.append(agent)
        entries = tuple(
            (socket.create_server(("127.0.0.1", item["listen"])), item["app_id"], item["port"])
            for item in self._request["entries"]
        )
        await start_platform(
            self._scope,
            self._tee,
            platform,
            entries,
            hosts_of=self._hosts_of,
            address_of=self._network.gateway_address,
        )
        attach, control = self._folder / ATTACH, self._folder / CONTROL
        for path in (attach, control):
            path.parent.mkdir(exist_ok=True)
            path.unlink(missing_ok=True)
        self._anchors = await asyncio.start_unix_server(self._anchor, attach)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(control)).start()
        for path in (attach, control):
            # Whoever may enter the run's folder may ask.
            path.chmod(0o666)

    async def close(self) -> None:
        """Ends everything."""
        if self._anchors is not None:
            self._anchors.close()
        for agent in self._agents:
            await agent.stop()
        await self._runner.cleanup()
        self._network.close()

    def _hosts_of(self, identity: str) -> list[str]:
        return [
            cvm.peer_id
            for cvm in self._cvms.values()
            if cvm.attached and identity in (cvm.identity.app_id, cvm.identity.instance_id)
        ]

    def _prepare_relay(self) -> None:
        """Writes the relay's files. As root: in its container it may read only what is its own."""
        own = self._folder / "cvms" / plans.RENDEZVOUS
        _write_etc(own / "etc", plans.RENDEZVOUS, (RELAY,))
        (own / RELAY).mkdir(exist_ok=True, mode=0o700)
        key = own / RELAY / "key"
        key.unlink(missing_ok=True)
        key.touch(mode=0o600)
        key.write_text(self._request["relay_key"] + "\n", encoding="ascii")

    async def _anchor(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One namespace, for as long as its anchor stays connected."""
        peer_id = (await reader.readline()).decode(errors="replace").strip()
        netns = f"/proc/{_pid_of(writer.get_extra_info('socket'))}/ns/net"
        try:
            if peer_id == plans.RENDEZVOUS:
                await self._hold_relay(netns, reader, writer)
            else:
                await self._hold_cvm(peer_id, netns, reader, writer)
        except (OSError, LabNetworkError) as error:
            log.warning("cannot plug in %s: %s", peer_id, error)
            with contextlib.suppress(OSError):
                writer.write(f"cannot plug it in: {error}\n".encode())
        finally:
            writer.close()

    async def _hold_relay(self, netns: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._relayed:
            writer.write(b"another container is the relay\n")
            return
        self._relayed = True
        try:
            await asyncio.to_thread(self._network.add_host, plans.RENDEZVOUS, netns)
            log.info("plugged in %s", plans.RENDEZVOUS)
            try:
                writer.write(b"attached\n")
                await reader.read()
            finally:
                await asyncio.to_thread(self._network.remove_host, plans.RENDEZVOUS)
                log.info("unplugged %s", plans.RENDEZVOUS)
        finally:
            self._relayed = False

    async def _hold_cvm(
        self, peer_id: str, netns: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        cvm = self._cvms.get(peer_id)
        if cvm is None or cvm.attached:
            writer.write(b"this mesh has no such CVM\n" if cvm is None else b"another container is that CVM\n")
            return
        await asyncio.to_thread(self._network.add_cvm, peer_id, nat=self._nat, index=cvm.index, adopt=netns)
        cvm.attached = True
        log.info("plugged in %s", peer_id)
        if cvm.kind == "coordinator":
            self._scope.start(f"owner of {peer_id}", self._give(cvm))
        try:
            writer.write(b"attached\n")
            await reader.read()
        finally:
            cvm.attached = False
            await asyncio.to_thread(self._network.remove_cvm, peer_id)
            log.info("unplugged %s", peer_id)

    async def _give(self, cvm: Cvm) -> None:
        """The owner's step: sets the manifest on a coordinator that has none."""
        lead = owners.Coordinator(
            name=cvm.peer_id,
            status_socket=self._status_socket(cvm),
            runs=lambda: cvm.attached,
            address=lambda: self._network.gateway_address(cvm.peer_id),
        )
        await owners.give(lead, self._request["manifest"], self._outside)

    def _outside(self) -> socket.socket:
        """A TCP socket at the platform, from where its gateway reaches the CVMs."""
        assert self._platform is not None
        with inside_network(self._platform.netns):
            return socket.socket(socket.AF_INET, socket.SOCK_STREAM)

    def _status_socket(self, cvm: Cvm) -> Path:
        return self._folder / "cvms" / cvm.peer_id / "tmp" / "dstack-runtime" / "mesh-private" / "status.sock"

    def _application(self) -> web.Application:
        application = web.Application()
        application.router.add_get("/status", self._status)
        return application

    async def _status(self, _request: web.Request) -> web.Response:
        machines = await asyncio.gather(*(self._document(cvm) for cvm in self._cvms.values()))
        return web.json_response(
            {
                "name": self._request["name"],
                "cluster": self._request["cluster"],
                "public": [{"group": item["group"], "port": item["port"]} for item in self._request["entries"]],
                "machines": machines,
            }
        )

    async def _document(self, cvm: Cvm) -> dict[str, Any]:
        return {
            "peer_id": cvm.peer_id,
            "group": cvm.group,
            "kind": cvm.kind,
            "state": "running" if cvm.attached else "unplugged",
            "containers": [],
            "sidecar": await ask(self._status_socket(cvm)),
        }


def _write_etc(folder: Path, peer_id: str, services: tuple[str, ...]) -> None:
    """The files of each container that its image brings on a machine of its own. Here, as root: theirs to write."""
    for service in services:
        (folder / service).mkdir(parents=True, exist_ok=True)
        for name, text in etc_files(peer_id).items():
            path = folder / service / name
            # A container that runs has mounted this very file.
            if not path.exists():
                path.write_text(text, encoding="ascii")
                path.chmod(0o644)


def _pid_of(connection: socket.socket) -> int:
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid: int = _CREDENTIALS.unpack(data)[0]
    return pid


async def run(path: Path) -> None:
    """The platform's life."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    request = json.loads(path.read_text(encoding="utf-8"))
    loop = asyncio.get_running_loop()
    with contextlib.suppress(asyncio.CancelledError):
        async with TaskScope() as scope:
            host = DockerHost(request, path.parent, scope)
            loop.add_signal_handler(signal.SIGTERM, host.ending.set)
            try:
                await host.start()
                log.info("platform started name=%s", request["name"])
                await host.ending.wait()
            finally:
                await host.close()
            # The scope's listeners run for ever; ending is what cancels them.
            current = asyncio.current_task()
            assert current is not None
            current.cancel()
            await asyncio.sleep(0)


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1])))
