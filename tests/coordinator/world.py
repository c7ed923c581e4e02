"""A cluster for tests: simulated TEE, guest agents, PCCS and coordinators with real Consul servers, all on loopback
addresses.

Long because a coordinator refuses whatever is not whole: each part of a cluster is here once, for all tests.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import itertools
import json
import os
import random
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from admission.protocol import Binding, BootKeys, MeshPeer
from coordinator.app import Coordinator
from coordinator.config import Config, parse
from coordinator.disk import MANIFESTS, Disk
from coordinator.history import name_of
from coordinator.marker import Owner
from evidence.binding import report_data
from lab.agent import GuestAgentServer
from lab.pccs import PccsServer
from lab.tee import CvmIdentity, DevTee, make_cvm
from peer.wireguard import generate_key, public_key
from runtime.children import Child
from runtime.consul import api_socket
from runtime.secret import Secret
from runtime.tasks import TaskScope
from tests.support import eventually, folder_in_memory, tool
from topology import manifest as manifests
from topology.envelope import Signed, open_envelope, seal
from topology.manifest import Manifest
from topology.owners import Owners, key_of, text_of
from topology.references import MEASURED, Reference, TcbPolicy

COORDINATOR_COMPOSE = '{"manifest_version":2,"name":"coordinator","docker_compose_file":"services: {}"}'
API_COMPOSE = '{"manifest_version":2,"name":"api","docker_compose_file":"services: {api: {}}"}'
CLIENT_COMPOSE = '{"manifest_version":2,"name":"client","docker_compose_file":"services: {client: {}}"}'
DB_COMPOSE = '{"manifest_version":2,"name":"db","docker_compose_file":"services: {db: {}}"}'
TEE = DevTee(b"coordinator tests")
OWNER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OWNERS = Owners(keys=(key_of(OWNER),))
OWNER_KEY = text_of(OWNERS)
_numbers = itertools.count(1)
_given: set[int] = set()


def cvm(compose: str, seed: str, tee: DevTee = TEE, **changes: Any) -> CvmIdentity:
    """A simulated CVM of the app with that compose file."""
    settings: dict[str, Any] = {"os_version": "0.6.0", "app_id": None, **changes}
    return make_cvm(tee, app_compose=compose, instance_seed=seed.encode(), **settings)


def wireguard_key() -> str:
    """A fresh WireGuard public key."""
    return generate_key()[1]


def tls_key() -> str:
    """The public half of a fresh P-256 key, as a binding carries it."""
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return base64.b64encode(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()


def make_boot(*, leaf: bool = True) -> BootKeys:
    """Fresh keys of a workload's boot, or (without a leaf) of a coordinator's."""
    return BootKeys(wireguard=wireguard_key(), tls=tls_key(), leaf=tls_key() if leaf else "")


def make_reference(**changes: Any) -> Reference:
    """What CVMs of TEE are, whichever OS image they boot; a development image too, which it does not allow."""
    images = (TEE.os_image("0.5.7"), TEE.os_image("0.6.0"), TEE.os_image("0.6.0", development=True))
    base = Reference(name=MEASURED, key_provider=TEE.key_provider, os_images=images, tcb=TcbPolicy())
    return replace(base, **changes)


def make_manifest(
    *, coordinators: int = 1, network: str = "127.90.0", urls: tuple[str, ...] = (), epoch: int = 1
) -> Manifest:
    """A cluster of `api` (two replicas with a backend and rights) and `client` (one replica, no backend)."""
    lead = cvm(COORDINATOR_COMPOSE, "coordinator-0")
    api, client = cvm(API_COMPOSE, "api-0"), cvm(CLIENT_COMPOSE, "client-0")
    backend = manifests.BackendEntry(
        port=9090,
        sidecar_port=21000,
        service="api",
        identity="spiffe://tests/api",
        owner="platform",
        permissions=manifests.Permissions(key_prefixes=("service/api/",), session_write=True),
    )
    return Manifest(
        version=manifests.MANIFEST_VERSION,
        epoch=epoch,
        owners=OWNERS,
        cluster="tests",
        references=(make_reference(),),
        coordinators=manifests.Coordinators(
            app_id=lead.app_id,
            compose_hashes=(lead.compose_hash,),
            peers=tuple(
                manifests.CoordinatorPeer(
                    peer_id=f"coordinator-{n}",
                    address=f"{network}.{n + 1}",
                    url=urls[n] if urls else f"https://127.0.0.1:{n + 1}",
                )
                for n in range(coordinators)
            ),
        ),
        rendezvous=(),
        groups={
            "api": manifests.GroupEntry(
                app_id=api.app_id,
                compose_hashes=(api.compose_hash,),
                peers=tuple(manifests.PeerEntry(peer_id=f"api-{n}", address=f"{network}.{20 + n}") for n in range(2)),
                backends={"api": backend},
            ),
            "client": manifests.GroupEntry(
                app_id=client.app_id,
                compose_hashes=(client.compose_hash,),
                peers=(manifests.PeerEntry(peer_id="client-0", address=f"{network}.30"),),
                backends={},
            ),
        },
        routes=(),
        mesh_pool="127.0.0.0/8",
    )


def make_database_manifest(base: Manifest | None = None) -> Manifest:
    """The cluster and a database: group `db` (two replicas), which keeps its registration itself, and a secret of it
    that `client` is granted.
    """
    base = base or make_manifest()
    found = cvm(DB_COMPOSE, "db-0")
    backend = manifests.BackendEntry(
        port=5432,
        sidecar_port=25432,
        service="db",
        identity="spiffe://tests/db",
        owner="workload",
        permissions=manifests.Permissions(key_prefixes=("service/db",), session_write=True),
        callers=("client",),
    )
    network = base.groups["api"].peers[0].address.rpartition(".")[0]
    database = manifests.GroupEntry(
        app_id=found.app_id,
        compose_hashes=(found.compose_hash,),
        peers=tuple(manifests.PeerEntry(peer_id=f"db-{n}", address=f"{network}.{40 + n}") for n in range(2)),
        backends={"db": backend},
    )
    route = manifests.RouteEntry(
        name="db-master", group="db", backend="db", service="db", role="master", vip="127.10.9.1", port=5432,
        leader_key="service/db/leader",
    )  # fmt: skip
    return replace(
        base,
        groups={**base.groups, "db": database},
        routes=(*base.routes, route),
        secrets={"database": manifests.SecretEntry(owner="db", groups=("client",))},
    )


class FakeLink:
    """A link that is up: loopback addresses need no tunnel."""

    def __init__(self) -> None:
        self.public_key = ""
        self.problem: str | None = None
        self.away = False
        """Nobody's tunnel comes up."""
        self.peers: tuple[MeshPeer, ...] = ()

    def set_peers(self, peers: tuple[MeshPeer, ...]) -> None:
        self.peers = peers

    async def up(self) -> None:
        """At once."""

    async def meet(self, public_keys: tuple[str, ...], seconds: float) -> tuple[str, ...]:
        """All are there, or nobody."""
        if self.away:
            await asyncio.sleep(seconds)
            return ()
        return public_keys

    async def run(self) -> None:
        await asyncio.Event().wait()

    def status(self) -> list[dict[str, object]]:
        return []

    def child(self) -> Child | None:
        return None


@dataclass(frozen=True, kw_only=True)
class Running:
    """A coordinator that runs in this process."""

    coordinator: Coordinator
    link: FakeLink
    config: Config
    folder: Path
    stop: asyncio.Event
    task: asyncio.Task[None]

    @property
    def url(self) -> str:
        """Where its broker answers."""
        return f"https://127.0.0.1:{self.coordinator.port}"

    @property
    def consul(self) -> Path:
        """The socket of its Consul server's API."""
        return api_socket(self.config.state_dir)


class Cluster:
    """Starts coordinators of one manifest."""

    def __init__(self, scope: TaskScope, root: Path, coordinators: int = 1, name: str = "coordinator") -> None:
        """`name` is what their peer IDs begin with."""
        self.scope = scope
        self.root = root
        self.name = name
        self.ports = tuple(free_port() for _ in range(coordinators))
        # Several test processes share the machine: each takes /24 networks of its own.
        network = f"127.{100 + os.getpid() % 150}.{(os.getpid() // 150 + next(_numbers)) % 250}"
        urls = tuple(f"https://127.0.0.1:{port}" for port in self.ports)
        self.manifest = make_manifest(coordinators=coordinators, network=network, urls=urls)
        self.pccs_url = ""
        self.running: dict[int, Running] = {}
        self._agents: list[GuestAgentServer] = []
        self._pccs = PccsServer(TEE)

    async def prepare(self) -> None:
        """Starts what all coordinators share."""
        sock = socket.create_server(("127.0.0.1", 0))
        self.pccs_url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        await self._pccs.start(sock)

    async def start(
        self,
        n: int = 0,
        manifest: Manifest | None = None,
        *,
        away: bool = False,
        given: bool = True,
        compose: str = COORDINATOR_COMPOSE,
    ) -> Running:
        """Boots coordinator `n`: on fresh memory, and on its disk as it is. `given`: with that manifest, which its disk
        has, as if it had been set a moment before. `compose`: the compose file of this one.
        """
        if given:
            self._keep(n, open_envelope(seal(manifest or self.manifest, OWNER), None))
        folder = Path(tempfile.mkdtemp(prefix=f"c{n}-", dir=self.root))
        # Empty at each boot, and at the same place: clients of its Consul server find that again.
        private = self.root / f"private-{n}"
        shutil.rmtree(private, ignore_errors=True)
        app_id = self.manifest.coordinators.app_id
        agent = GuestAgentServer(TEE, cvm(compose, f"{self.name}-{n}", app_id=app_id))
        await agent.start(folder / "dstack.sock")
        self._agents.append(agent)
        config = parse(
            {
                "MESH_CLUSTER": "tests",
                "MESH_PEER_ID": f"{self.name}-{n}",
                "MESH_OWNERS": OWNER_KEY,
                "MESH_PCCS_URL": self.pccs_url,
                "MESH_INSECURE_DEV_ROOT": base64.b64encode(TEE.root_der).decode(),
                "MESH_STATE_DIR": str(private),
                "MESH_DATA_DIR": str(self.disk(n)),
                "MESH_GUEST_AGENT": str(folder / "dstack.sock"),
                "MESH_CONSUL": tool("consul"),
                "MESH_LISTEN": f"127.0.0.1:{self.ports[n]}",
            }
        )
        link = FakeLink()
        link.away = away

        async def make_link(_config: Config, private_key: Secret, _address: str) -> FakeLink:
            link.public_key = public_key(private_key)
            return link

        coordinator = Coordinator(config, make_link)
        stop = asyncio.Event()
        task = self.scope.start(f"{self.name}-{n}", coordinator.run(stop))
        running = Running(
            coordinator=coordinator,
            link=link,
            config=config,
            folder=folder,
            stop=stop,
            task=task,
        )
        self.running[n] = running
        return running

    def _keep(self, n: int, signed: Signed) -> None:
        """Puts `signed` on the disk of coordinator `n`, which is its own from then on."""
        folder = self.disk(n)
        if not (folder.exists() and any(folder.iterdir())):
            owner = Owner(cluster="tests", app_id=self.manifest.coordinators.app_id, peer_id=f"{self.name}-{n}")
            Disk(folder, owner).claim()
        file = folder / MANIFESTS / name_of(signed)
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            file.write_text(signed.envelope)

    async def ready(self, n: int = 0, seconds: float = 20.0) -> Running:
        """Waits for coordinator `n`."""
        running = self.running[n]
        await eventually(
            lambda: running.coordinator.document()["ready"] is True or running.task.done(),
            f"coordinator-{n} ready: {running.coordinator.document()}",
            seconds,
        )
        return running

    def disk(self, n: int) -> Path:
        """The data folder of coordinator `n`, which outlives its boots."""
        return self.root / f"disk-{n}"

    def lose_disk(self, n: int) -> None:
        """Throws the disk of coordinator `n` away, which must not run."""
        assert n not in self.running
        shutil.rmtree(self.disk(n))

    async def lose(self, n: int) -> None:
        """Kills coordinator `n` without a good-bye."""
        running = self.running.pop(n)
        pid = running.coordinator.document()["children"]["consul"]["pid"]  # type: ignore[index]
        running.task.cancel()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        await asyncio.wait([running.task])

    async def retry(self, applicant: Applicant, seconds: float) -> Any:
        """The admission, asked for again as long as the answer is to try later."""
        end = time.monotonic() + seconds
        while True:
            status, answer = await applicant.attest()
            if status == 200:
                return answer
            assert status in (409, 503), answer
            assert time.monotonic() < end, answer
            await asyncio.sleep(0.1)

    async def close(self) -> None:
        """Ends all of it."""
        for running in self.running.values():
            running.stop.set()
            with contextlib.suppress(asyncio.CancelledError):
                await running.task
        for agent in self._agents:
            await agent.stop()
        await self._pccs.stop()


@contextlib.asynccontextmanager
async def cluster(coordinators: int = 1) -> AsyncIterator[Cluster]:
    """A cluster whose coordinators are not started yet; everything is gone at the end."""
    tool("consul")
    root = Path(tempfile.mkdtemp(prefix="mesh-test-", dir=folder_in_memory()))
    try:
        async with TaskScope() as scope:
            made = Cluster(scope, root, coordinators)
            await made.prepare()
            try:
                yield made
            finally:
                await made.close()
    finally:
        shutil.rmtree(root, ignore_errors=True)


def free_port() -> int:
    """A TCP port that nobody has, and that was not given before: it may not be in use yet. Not one of those that the
    kernel gives to outgoing connections, of which any program on the machine may take it before it is used here.
    """
    while True:
        port = random.randrange(10_000, 20_000)
        if port in _given:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port


@dataclass(kw_only=True)
class Applicant:
    """A CVM that asks for admission, honest unless told otherwise."""

    url: str
    manifest: Manifest
    group: str = "api"
    who: CvmIdentity = dataclasses.field(default_factory=lambda: cvm(API_COMPOSE, "api-0"))
    boot: BootKeys = dataclasses.field(default_factory=make_boot)
    tee: DevTee = dataclasses.field(default_factory=lambda: TEE)
    offers: str = ""
    """The envelope that it brings."""

    async def post(self, path: str, body: object) -> tuple[int, Any]:
        """Status and JSON of a call on a connection of its own."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session:
            return await self._post(session, path, body)

    async def _post(self, session: aiohttp.ClientSession, path: str, body: object) -> tuple[int, Any]:
        async with session.post(f"{self.url}/v1/admission/{path}", data=json.dumps(body).encode()) as response:
            return response.status, await response.json()

    async def challenge(self, peer_id: str | None = None) -> tuple[int, Any]:
        """Asks for a nonce."""
        asked = {"group": self.group, "instance_id": self.who.instance_id}
        return await self.post("challenge", asked | ({"peer_id": peer_id} if peer_id else {}))

    def binding(self, peer_id: str, **changes: Any) -> Binding:
        """The honest binding, with `changes`."""
        cluster_name = self.manifest.cluster
        identities = (
            self.manifest.identities(self.group) if self.group in self.manifest.groups
            else (f"spiffe://{cluster_name}/node",)
        )  # fmt: skip
        binding = Binding(
            version=2,
            cluster=cluster_name,
            peer_id=peer_id,
            identities=identities,
            app_id=self.who.app_id,
            instance_id=self.who.instance_id,
            compose_hash=self.who.compose_hash,
            boot=self.boot if self.group in self.manifest.groups else replace(self.boot, leaf=""),
            issued_at=int(time.time()),
        )
        return replace(binding, **changes)

    def evidence(self, raw: bytes, nonce: str) -> dict[str, Any]:
        """The body of an attestation over the bytes `raw`."""
        from lab.agent_tls import event_items

        data = report_data(raw, bytes.fromhex(nonce))
        return {
            "binding": raw.hex(),
            "nonce": nonce,
            "quote": self.tee.quote(self.who.measurements, data).hex(),
            "event_log": json.dumps(list(event_items(self.who.boot_events, stripped=True))),
            "vm_config": self.who.vm_config,
            "manifest": self.offers,
        }

    async def attest(self, peer_id: str | None = None, **changes: Any) -> tuple[int, Any]:
        """Challenge and attestation on one connection; the answer of whichever fails first."""
        asked = {"group": self.group, "instance_id": self.who.instance_id}
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session:
            status, challenge = await self._post(
                session, "challenge", asked | ({"peer_id": peer_id} if peer_id else {})
            )
            if status != 200:
                return status, challenge
            raw = encode(self.binding(challenge["peer_id"], **changes))
            return await self._post(session, "attest", self.evidence(raw, challenge["nonce"]))

    async def admitted(self, peer_id: str | None = None) -> Any:
        """The admission; fails the test when there is none."""
        status, answer = await self.attest(peer_id)
        assert status == 200, answer
        return answer


def encode(binding: Binding) -> bytes:
    """JSON as a sidecar writes it."""
    return json.dumps(dataclasses.asdict(binding), sort_keys=True, separators=(",", ":")).encode()
