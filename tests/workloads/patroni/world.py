"""A database cluster for tests: a real Consul server and an agent a member, supervisors in containers of the lab, real
Patroni and PostgreSQL. A small proxy stands in for the mesh: it leads to whoever Consul lists as master.

Long because nothing in it is pretended: server, agents, containers, proxy and members, and what each test asks of them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from lab.agent import GuestAgentServer
from lab.container import ContainerSpec, Mount
from lab.tee import DevTee, make_cvm
from runtime.consul import ConsulClient, ConsulError, node_id
from runtime.secret import Secret
from runtime.tasks import TaskScope
from sidecar import registration
from sidecar.files import hosts
from sidecar.workload_rights import Rights
from tests.coordinator.world import free_port
from tests.support import ROOT, folder_in_memory, need_root_or_userns, popen, tool
from tests.workloads.patroni.port import Port
from topology.manifest import BackendEntry, Permissions

CLUSTER = "tests"
MANAGEMENT = str(uuid.UUID(int=7))
GOSSIP_KEY = base64.b64encode(bytes(range(32))).decode()
APP_PASSWORD = "application-password-in-tests"
TEE = DevTee(b"patroni tests")
SECONDS = 180.0
"""For anything that is waited for: on a very busy machine initdb alone was seen to take half a minute."""
_numbers = itertools.count(os.getpid() % 200 * 250)


@dataclass
class Member:
    """One member and what is around it."""

    peer_id: str
    address: str
    folder: Path
    http: int
    """Port of its agent, for us."""
    workload: int
    """Port of what the workload finds of it."""
    port: int
    rest: int
    """Port of Patroni's REST interface."""
    vip: str
    """Address of the route to that interface; its port is `World.rest_port`."""
    token: str = ""
    consul: ConsulClient = field(init=False)
    api: Port = field(init=False)
    agent: subprocess.Popen[bytes] | None = None
    container: subprocess.Popen[bytes] | None = None
    service_id: str = ""

    def log(self) -> str:
        """What its container printed."""
        return (self.folder / "container.log").read_text(errors="replace")

    def first_pid(self) -> int:
        """PID of the supervisor, as we see it."""
        assert self.container is not None
        pid = self.container.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def pids(self, *words: str) -> list[int]:
        """PIDs of the processes in its container whose command line has all `words`."""
        namespace = Path(f"/proc/{self.first_pid()}/ns/pid").readlink()
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if (
                    entry.name.isdigit()
                    and (entry / "ns/pid").readlink() == namespace
                    and all(w in line for w in words)
                ):
                    found.append(int(entry.name))
        return sorted(found)

    def stop_agent(self) -> None:
        """SIGKILL for its Consul agent."""
        assert self.agent is not None
        self.agent.kill()
        self.agent.wait(20)

    def patroni(self) -> int:
        """PID of Patroni."""
        return self.pids("workloads.patroni.member")[0]

    def postmaster(self) -> int:
        """PID of PostgreSQL's first process."""
        return self.pids("postgres", "-D")[0]


@dataclass
class World:
    """The cluster."""

    folder: Path
    consul: ConsulClient
    consul_port: int
    members: list[Member]
    server: subprocess.Popen[bytes]
    network: str
    master_port: int
    rest_port: int
    """Of every member's route."""
    options: dict[str, str]
    guests: list[GuestAgentServer] = field(default_factory=list)
    target: int | None = None
    """Port of the published master."""
    held: set[asyncio.StreamWriter] = field(default_factory=set)
    """Connections through the master's route."""
    open: set[asyncio.StreamWriter] = field(default_factory=set)
    """Both ends of those through any route."""

    async def tagged(self, role: str) -> list[str]:
        """Peer IDs of the passing members with tag `role`, as the servers list them."""
        _, found = await self.consul.get(f"/v1/health/service/{CLUSTER}", params={"passing": ""})
        return sorted(e["Node"]["Node"] for e in found or () if role in (e["Service"].get("Tags") or ()))

    async def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Waits until the coroutine that `condition` makes gives something true; returns it."""
        loop = asyncio.get_running_loop()
        end = loop.time() + SECONDS
        while True:
            with contextlib.suppress(psycopg.Error, OSError, ConsulError, IndexError):
                if found := await condition():
                    return found
            if loop.time() > end:
                logs = "\n".join(f"--- {m.peer_id}\n{m.log()[-3000:]}" for m in self.members if m.container)
                raise AssertionError(f"not within {SECONDS} s: {what}\n{logs}")
            await asyncio.sleep(0.05)

    async def master(self) -> Member:
        """The member that is published as master, once there is one."""
        found = await self.until(lambda: self.tagged("master"), "a master is published")
        return next(m for m in self.members if m.peer_id == found[0])

    async def settled(self, replicas: int) -> Member:
        """Waits for a master, `replicas` replicas, and (where there is one) a synchronous standby in the DCS."""

        async def whole() -> Member | None:
            masters, others = await self.tagged("master"), await self.tagged("replica")
            sync = await self.dcs("sync")
            good = len(masters) == 1 and len(others) == replicas
            good = good and (not replicas or (sync or {}).get("sync_standby") not in (None, ""))
            return next(m for m in self.members if m.peer_id == masters[0]) if good else None

        found: Member = await self.until(whole, f"a master and {replicas} replicas")
        return found

    async def dcs(self, key: str) -> Any:
        """The JSON value of a key of Patroni's, or its text."""
        _, found = await self.consul.get(f"/v1/kv/service/{CLUSTER}/{key}")
        if not found:
            return None
        text = base64.b64decode(found[0]["Value"] or "").decode()
        return json.loads(text) if text.startswith(("{", "[")) else text

    async def connect(self, port: int) -> psycopg.AsyncConnection[Any]:
        """The application's connection to a port of this machine."""
        return await psycopg.AsyncConnection.connect(
            host="127.0.0.1", port=port, user="app", password=APP_PASSWORD, dbname="app", connect_timeout=20,
            autocommit=True,
        )  # fmt: skip

    async def sql(self, port: int, query: Any) -> Any:
        """The first value of one statement over a fresh connection."""
        async with await self.connect(port) as connection:
            cursor = await connection.execute(query)
            row = await cursor.fetchone() if cursor.description else None
            return row[0] if row else None

    def start_member(self, member: Member) -> None:
        """Starts the container of `member`."""
        spec = _spec(self, member)
        path = member.folder / "spec.json"
        path.touch(mode=0o600)
        path.write_text(spec.to_json())
        with (member.folder / "container.log").open("ab") as output:
            member.container = popen(
                [sys.executable, "-S", "-m", "lab.container", "run", str(path)],
                env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip


def _spec(world: World, member: Member) -> ContainerSpec:
    root = member.folder / "root"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    postgres = Path(tool("postgres")).parent
    return ContainerSpec(
        name=member.peer_id,
        hostname=member.peer_id,
        netns="",
        argv=(sys.executable, "-m", "workloads.patroni"),
        env={
            "PATH": f"{postgres}:{Path(sys.executable).parent}:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "LANG": "C.UTF-8",
            "DERIVE_PATRONI_PASSWORDS": "1",
            "POSTGRES_PORT": str(member.port),
            "POSTGRES_REST_PORT": str(member.rest),
            "POSTGRES_REST_ROUTE": f"patroni:{world.rest_port}",
            "POSTGRES_FOLLOW": f"127.0.0.1:{world.master_port}",
            "POSTGRES_CONSUL_PORT": str(member.workload),
            "POSTGRES_USERS": "app=db-app",
            **world.options,
        },
        mounts=(
            Mount(source=str(member.folder / "mesh"), target="/run/mesh", read_only=True),
            Mount(source=str(member.folder / "dstack.sock"), target="/run/dstack.sock"),
            Mount(source=str(member.folder / "pgdata"), target="/pgdata"),
            Mount(source=str(world.folder / "hosts"), target="/etc/hosts"),
        ),
        keep=(str(ROOT), sys.prefix, sys.base_prefix, str(postgres)),
        root=str(root),
    )


def _agent(folder: Path, config: dict[str, Any], name: str) -> subprocess.Popen[bytes]:
    path = folder / f"consul-{name}.json"
    path.write_text(json.dumps(config))
    with (folder / f"consul-{name}.log").open("ab") as output:
        return popen(
            [tool("consul"), "agent", f"-config-file={path}"], stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )


def _start_server(folder: Path, network: str, http: int) -> subprocess.Popen[bytes]:
    return _agent(folder, _config(folder, "server", f"{network}.1", http, f"{network}.1"), "server")


def _config(folder: Path, name: str, address: str, http: int, server: str) -> dict[str, Any]:
    return {
        "node_name": name,
        "node_id": node_id(CLUSTER, name),
        "datacenter": CLUSTER,
        "data_dir": str(folder / f"data-{name}"),
        "bind_addr": address,
        "addresses": {"http": f"127.0.0.1 unix://{folder}/{name}.sock"},
        "ports": {"http": http, "dns": -1, "grpc": -1, "grpc_tls": -1, "serf_wan": -1},
        "gossip_lan": {
            "probe_interval": "500ms", "probe_timeout": "300ms", "suspicion_mult": 3, "gossip_interval": "100ms",
        },
        "encrypt": GOSSIP_KEY,
        "retry_join": [server],
        "retry_interval": "1s",
        "leave_on_terminate": name != "server",
        "connect": {"enabled": False},
        "acl": {
            "enabled": True, "default_policy": "deny", "down_policy": "extend-cache",
            "tokens": {"agent": MANAGEMENT} | ({"initial_management": MANAGEMENT} if name == "server" else {}),
        },
        "disable_update_check": True,
        "log_level": "warn",
    } | (
        {"server": True, "bootstrap_expect": 1, "performance": {"raft_multiplier": 1}} if name == "server" else {}
    )  # fmt: skip


def rights(peer_id: str) -> dict[str, Any]:
    """What the token of a workload with its own registration may do, and no more."""
    return {
        "node_prefix": {"": {"policy": "read"}},
        "service_prefix": {"": {"policy": "read"}},
        "service": {CLUSTER: {"policy": "write"}},
        "key_prefix": {f"service/{CLUSTER}": {"policy": "write"}},
        "session": {peer_id: {"policy": "write"}},
    }


async def new_token(world: World, peer_id: str, secret: str = "") -> str:
    """A fresh token of the member's rights; with `secret` one that servers which lost it are told again."""
    name = f"{peer_id}-{uuid.uuid4()}"
    await world.consul.put("/v1/acl/policy", {"Name": name, "Rules": json.dumps(rights(peer_id))})
    body = {"Policies": [{"Name": name}]} | ({"SecretID": secret} if secret else {})
    token = await world.consul.put("/v1/acl/token", body)
    return str(token["SecretID"])


async def restart_server(world: World, *, keeps: bool, until: Callable[[], bool] = lambda: True) -> None:
    """SIGKILL for the only Consul server, and its return: with what it knew (`keeps`), or on an empty disk.

    After the latter the members' tokens and nodes come back as the mesh brings them back: later than the server. It
    knows no node before `until` says so.
    """
    world.server.kill()
    world.server.wait(20)
    if not keeps:
        shutil.rmtree(world.folder / "data-server")
    world.server = _start_server(world.folder, world.network, world.consul_port)
    await world.until(lambda: _leads(world), "the Consul server leads again")
    if keeps:
        return
    for member in world.members:
        await new_token(world, member.peer_id, member.token)
    while not until():
        for member in world.members:
            await world.consul.put("/v1/catalog/deregister", {"Node": member.peer_id})
        await asyncio.sleep(0.05)
    for member in world.members:
        await member.consul.put(f"/v1/agent/join/{world.network}.1")


def write_secret(member: Member, name: str, text: str) -> None:
    """As the sidecar does: whole, in one step; the workload's token is known at its port."""
    if name == "consul-token":
        member.api.use(text)
    folder = member.folder / "mesh" / "secrets"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f".{name}.new").write_text(text)
    (folder / f".{name}.new").replace(folder / name)


async def _prepare(world: World, member: Member) -> None:
    """Agent, token, guest agent, files and the sidecar's placeholder of one member."""
    (member.folder / "pgdata").mkdir(parents=True)
    (member.folder / "mesh").mkdir()
    own = Rights(
        peer_id=member.peer_id, services={f"{CLUSTER}-{member.peer_id}": CLUSTER}, ports=frozenset({member.port}),
        prefixes=(f"service/{CLUSTER}",), sessions=True,
    )  # fmt: skip
    member.api = Port(member.folder / f"{member.peer_id}.sock", own, member.workload)
    shutil.copy(world.folder / "hosts", member.folder / "mesh" / "hosts")
    # On a very busy machine a server that leads was seen not to answer within the client's 10 s.
    member.token = await world.until(lambda: new_token(world, member.peer_id), "the Consul server gives a token")
    write_secret(member, "consul-token", member.token)
    write_secret(member, "db-app", APP_PASSWORD)
    identity = {"cluster": CLUSTER, "group": "postgres", "peer_id": member.peer_id, "address": member.address}
    (member.folder / "mesh" / "identity.json").write_text(json.dumps(identity))
    cvm = make_cvm(TEE, app_compose='{"name":"postgres"}', instance_seed=member.peer_id.encode(), os_version="0.6.0",
                   app_id=None)  # fmt: skip
    guest = GuestAgentServer(TEE, cvm)
    await guest.start(member.folder / "dstack.sock")
    world.guests.append(guest)
    member.consul = ConsulClient(Secret(MANAGEMENT), port=member.http)
    await restart_agent(world, member)


async def restart_agent(world: World, member: Member) -> None:
    """Starts the agent of `member`, and registers its placeholder as the sidecar does."""
    config = _config(member.folder, member.peer_id, member.address, member.http, f"{world.network}.1")
    member.agent = _agent(member.folder, config, member.peer_id)
    body = placeholder(member)
    member.service_id = body["ID"]
    await world.until(lambda: _registered(member, body), f"the agent of {member.peer_id} takes a registration")


def placeholder(member: Member) -> dict[str, Any]:
    """What the sidecar registers until the workload does."""
    backend = BackendEntry(
        port=member.port, sidecar_port=21000, service=CLUSTER, identity="spiffe://tests/postgres", owner="workload",
        permissions=Permissions(key_prefixes=(f"service/{CLUSTER}",), session_write=True),
    )  # fmt: skip
    return registration.stub(backend, member.peer_id, member.address)


async def _registered(member: Member, body: dict[str, Any]) -> bool:
    await member.consul.get("/v1/status/leader")
    try:
        _, existing = await member.consul.get(f"/v1/agent/service/{body['ID']}")
    except ConsulError as error:
        if error.status != 404:
            raise
        existing = None
    # The workload may have been first: the sidecar leaves what is its own alone.
    if registration.is_ours_to_replace(existing):
        await member.consul.put("/v1/agent/service/register", body)
    return True


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _listen(world: World) -> asyncio.Server:
    """The master's route: each new connection goes to `world.target`."""
    return await _route(world, "127.0.0.1", world.master_port, lambda: world.target, world.held)


async def _route(
    world: World, address: str, port: int, target: Callable[[], int | None], held: set[asyncio.StreamWriter]
) -> asyncio.Server:
    """A route: what is dialled there goes to the port `target` of this machine; `held`: its connections."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        world.open.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target() or 1)
        except OSError:
            writer.close()
            world.open.discard(writer)
            return
        world.open.add(far_writer)
        held.add(writer)
        await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        held.discard(writer)
        world.open -= {writer, far_writer}

    return await asyncio.start_server(handle, address, port)


async def _close(routes: list[asyncio.Server], world: World) -> None:
    """Ends the routes with all that goes through them: what is left open is blamed on another test."""
    for route in routes:
        route.close()
    writers = list(world.open)
    for writer in writers:
        writer.transport.abort()
    await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


async def _follow(world: World) -> None:
    """Keeps the target at the published master; when that changes, held connections are cut, as the mesh does."""
    index: int | None = None
    while True:
        try:
            index, found = await world.consul.get(
                f"/v1/health/service/{CLUSTER}", index=index, wait=5.0, params={"passing": ""}
            )
        except ConsulError:
            await asyncio.sleep(0.1)
            continue
        masters = [e["Node"]["Node"] for e in found or () if "master" in (e["Service"].get("Tags") or ())]
        target = next((m.port for m in world.members if masters == [m.peer_id]), None)
        if target != world.target:
            world.target = target
            for writer in list(world.held):
                writer.transport.abort()


@contextlib.asynccontextmanager
async def world(
    members: int, *, before: Callable[[World], Awaitable[None]] | None = None, **options: str
) -> AsyncIterator[World]:
    """A cluster of `members`; `options` are environment variables of every supervisor. `before`: comes before their
    start.
    """
    need_root_or_userns()
    async with agents(members, **options) as made, TaskScope() as scope:
        routes = [await _listen(made)]
        routes += [await _route(made, m.vip, made.rest_port, partial(int, m.rest), set()) for m in made.members]
        follower = scope.start("follow the master", _follow(made))
        try:
            if before is not None:
                await before(made)
            for member in made.members:
                made.start_member(member)
            yield made
        finally:
            follower.cancel()
            await _close(routes, made)
            _kill(made)


@contextlib.asynccontextmanager
async def agents(members: int, **options: str) -> AsyncIterator[World]:
    """The Consul side of `members` alone: server, agents, placeholders. Nothing runs in the containers yet."""
    number = next(_numbers)
    network = f"127.{100 + number // 250 % 100}.{number % 250}"
    with tempfile.TemporaryDirectory(prefix="mesh-pg-", dir=folder_in_memory()) as text:
        folder = Path(text)
        http = free_port()
        made = World(
            folder=folder, consul=ConsulClient(Secret(MANAGEMENT), port=http), consul_port=http, members=[],
            server=_start_server(folder, network, http), network=network, master_port=free_port(),
            rest_port=free_port(), options=options,
        )  # fmt: skip
        (folder / "hosts").write_text(hosts({f"patroni-{i}": _vip(network, i) for i in range(members)}, None))
        try:
            await made.until(lambda: _leads(made), "the Consul server leads")
            for i in range(members):
                member = Member(
                    peer_id=f"postgres-{i}", address=f"{network}.{10 + i}", folder=folder / f"m{i}", http=free_port(),
                    workload=free_port(), port=free_port(), rest=free_port(), vip=_vip(network, i),
                )  # fmt: skip
                made.members.append(member)
            # Side by side: agents mostly wait for their server.
            async with TaskScope() as scope:
                for member in made.members:
                    scope.start(f"prepare {member.peer_id}", _prepare(made, member))
            yield made
        finally:
            _kill(made)
            for guest in made.guests:
                await guest.stop()
            for client in (made.consul, *(m.consul for m in made.members if hasattr(m, "consul"))):
                await client.close()


def _vip(network: str, index: int) -> str:
    return f"{network}.{100 + index}"


async def _leads(made: World) -> bool:
    _, leader = await made.consul.get("/v1/status/leader")
    await made.consul.get("/v1/acl/tokens")
    return bool(leader)


def _kill(made: World) -> None:
    for member in made.members:
        if hasattr(member, "api"):
            member.api.close()
    for process in (
        *(m.container for m in made.members), *(m.agent for m in made.members), made.server,
    ):  # fmt: skip
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait(20)
