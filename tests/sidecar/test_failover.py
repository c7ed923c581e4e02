"""A role route from end to end: a real Consul says who leads, real Envoys carry the connections."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from coordinator import records
from runtime.consul import ConsulClient
from runtime.secret import Secret
from runtime.tasks import TaskScope
from sidecar import identity, sources
from sidecar.certificate_reading import Expected, Given, parse
from sidecar.config import parse as parse_config
from sidecar.desired import World, desired
from sidecar.effects import Effects
from sidecar.identity import Keys
from sidecar.refusing import Refusing
from sidecar.watches import Apply, Watches
from tests.coordinator.test_grants import applicant
from tests.coordinator.world import Cluster, Running, cluster, make_database_manifest
from tests.sidecar.test_effects import FakeRefusals, FakeVips
from tests.sidecar.world import environment
from tests.support import eventually, tool
from tests.topology.support import opened
from tests.xds.mesh import INGRESS_PORT, Node, closing, loopback
from topology.manifest import Manifest
from xds.spec import Endpoint

KEY = "service/db/leader"
SOON = 30.0
"""Bound of every wait: far above what it takes, for machines that are busy."""
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def admitted(lead: Running, peer_id: str, keys: Keys) -> tuple[dict[str, Any], Given]:
    """The admission of the boot with `keys`, and the certificate in it."""
    asker = dataclasses.replace(applicant(lead, peer_id), boot=keys.public)
    answer = await asker.admitted()
    expected = Expected(
        cluster=asker.manifest.cluster, group=asker.group, peer_id=peer_id,
        leaf_key=base64.b64decode(keys.public.leaf),
    )  # fmt: skip
    given = parse(
        digest=answer["manifest_digest"], leaf_pem=answer["leaf_pem"], authorities_pem=answer["authorities_pem"],
        expected=expected, now=time.time(),
    )  # fmt: skip
    return answer, given


class Member:
    """A database CVM: its Envoy, a server that says its name and echoes, and its tokens in Consul."""

    def __init__(self, peer_id: str, admission: dict[str, Any], lead: Running, folder: Path) -> None:
        self.peer_id = peer_id
        self.address, self.backend = admission["address"], loopback()
        self.envoy = Node(peer_id, folder)
        self._workload = ConsulClient(Secret(admission["workload_token"]), socket=lead.consul)
        self._sidecar = ConsulClient(Secret(admission["consul"]["token"]), socket=lead.consul)
        self._session = ""

    def admitted_again(self, admission: dict[str, Any]) -> None:
        """New tokens, after the coordinators forgot the old ones."""
        self._workload.use_token(Secret(admission["workload_token"]))
        self._sidecar.use_token(Secret(admission["consul"]["token"]))

    async def start(self, manifest: Manifest, given: Given, keys: Keys) -> None:
        """Serves behind a real ingress with the certificate of its admission."""
        self._server = await asyncio.start_server(self._serve, self.backend, 5432)
        own = World(signed=opened(manifest), own=manifest.groups["db"], group="db", address=self.address)
        spec = desired(
            sources.with_certificate(own, given, keys.leaf_private_pem, keys.public_private_pem, 0.0, 0.0, 120.0)
        ).spec
        assert spec is not None
        # Each member has a server of its own, and all are on this machine.
        (ingress,) = spec.ingress
        target = Endpoint(address=self.backend, port=5432)
        await self.envoy.start()
        await self.envoy.apply(
            dataclasses.replace(spec, egress=(), ingress=(dataclasses.replace(ingress, target=target),)), seconds=SOON
        )
        await self.join()

    async def join(self) -> None:
        """Becomes a node."""
        await self._sidecar.put("/v1/catalog/register", {"Node": self.peer_id, "Address": self.address})

    async def write(self, times: int) -> None:
        """Ages the servers by so many writes."""
        for number in range(times):
            await self._workload.put("/v1/kv/service/db/history", str(number).encode())

    async def say(self, role: str) -> None:
        """Registers with `role` as its tag."""
        service = {"Service": "db", "ID": f"db-{self.peer_id}", "Tags": [role] if role else [], "Port": INGRESS_PORT}
        body = {"Node": self.peer_id, "Address": self.address, "SkipNodeUpdate": True, "Service": service}
        await self._workload.put("/v1/catalog/register", body)

    async def lead(self) -> None:
        """Takes the leader key."""
        asked = {"Node": self.peer_id, "Behavior": "delete", "LockDelay": "0s", "NodeChecks": []}
        made = await self._workload.put("/v1/session/create", asked)
        self._session = made["ID"]
        taken = await self._workload.put(f"/v1/kv/{KEY}", self.peer_id.encode(), params={"acquire": self._session})
        assert taken, f"{self.peer_id} cannot take the key"

    async def lose(self) -> None:
        """Its session ends, and the key with it."""
        await self._workload.put(f"/v1/session/destroy/{self._session}")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(self.peer_id.encode())
            while data := await reader.read(1 << 16):
                writer.write(data)
        writer.close()

    async def close(self) -> None:
        """Ends all of it."""
        self._server.close()
        await self.envoy.close()
        await self._workload.close()
        await self._sidecar.close()


class Caller:
    """The client's CVM: everything of a sidecar that a role route passes through, with a real Envoy at the end."""

    def __init__(self, manifest: Manifest, folder: Path, address: str, consul: ConsulClient, scope: TaskScope) -> None:
        self.vip = next(route.vip for route in manifest.routes if route.name == "db-master")
        self.envoy = Node("client", folder)
        self.effects = Effects(parse_config(environment(MESH_RUN_DIR=str(folder / "run"), MESH_STATE_DIR=str(folder))))
        self.effects._vips = FakeVips()  # type: ignore[assignment]
        self.effects.refusing = Refusing(FakeRefusals())
        self.effects.on_publish = self._count
        own = manifest.groups["client"]
        self.world = World(signed=opened(manifest), own=own, group="client", address=address)
        self.published = 0
        self._dirty = asyncio.Event()
        self.consul = consul
        self.watches = Watches(consul, scope)

    def watch(self) -> None:
        """Asks for everything anew."""
        self.watches.keep({})
        wanted = sources.queries(self.world, check_signatures=True)
        self.watches.keep({query: self._take(change) for query, change in wanted.items()})

    def _count(self) -> None:
        self.published += 1

    def _take(self, change: sources.Change) -> Apply:
        """As the membership does it."""

        def apply(tree: Any, index: int) -> None:
            self.world = change(self.world, tree, index)
            self._dirty.set()

        return apply

    async def run(self) -> None:
        """As the supervisor does it."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            await self.effects.apply(desired(self.world), None)

    async def dial(self) -> tuple[Connection, str]:
        """A connection through the route, and who answers; empty where it is closed at once."""
        connection = await asyncio.open_connection(self.vip, 5432)
        try:
            async with asyncio.timeout(SOON):
                return connection, (await connection[0].read(4)).decode()
        except ConnectionError:
            return connection, ""

    async def reaches(self, wanted: str) -> Connection:
        """The first connection that `wanted` answers."""
        async with asyncio.timeout(SOON):
            while True:
                try:
                    connection, found = await self.dial()
                except ConnectionError:
                    connection, found = None, ""
                if connection is not None and found == wanted:
                    return connection
                if connection is not None:
                    connection[1].transport.abort()
                await asyncio.sleep(0.02)


async def says(connection: Connection) -> bool:
    """Whether a held connection still carries bytes both ways."""
    connection[1].write(b"ping")
    async with asyncio.timeout(SOON):
        return await connection[0].readexactly(4) == b"ping"


async def is_closed(connection: Connection) -> None:
    """Returns when the other side has closed a connection on which nothing is sent."""
    async with asyncio.timeout(SOON):
        with contextlib.suppress(ConnectionError):
            assert await connection[0].read(1) == b""


@dataclasses.dataclass(frozen=True)
class Stage:
    """Everything that the test moves."""

    caller: Caller
    members: dict[str, Member]
    mesh: Cluster

    def behind(self) -> tuple[str, ...]:
        """The peers behind the route, as carried out."""
        return self.caller.effects.endpoints.get("db-master", ())

    def tags(self, peer_id: str) -> str:
        """The tags of a member, as the caller's CVM knows them."""
        listed = self.caller.world.catalog["db"]
        return next((",".join(one.tags) for one in listed if one.peer_id == peer_id), "not listed")

    async def sees(self, condition: Callable[[], bool], what: str) -> None:
        """Waits for something that the sidecar carries out."""
        await eventually(condition, f"{what}: {self.behind()} {self.caller.world.leaders}", SOON)


@contextlib.asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    """Three database members and a caller, each with an Envoy, around one coordinator."""
    tool("envoy")
    # Nobody here renews a lease, and on a busy machine a test may take longer than one lasts.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "SWEEP_SECONDS", 3600.0)
        async with _stage() as it:
            yield it


def placed(manifest: Manifest) -> Manifest:
    """`manifest` with its routes and the database's slots at addresses of this test alone."""
    group = manifest.groups["db"]
    backends = {"db": dataclasses.replace(group.backends["db"], sidecar_port=INGRESS_PORT)}
    peers = tuple(dataclasses.replace(peer, address=loopback()) for peer in group.peers)
    routes = tuple(dataclasses.replace(route, vip=loopback()) for route in manifest.routes)
    return dataclasses.replace(
        manifest,
        vip_pool=str(ip_network(f"{routes[0].vip}/16", strict=False)),
        routes=routes,
        groups={**manifest.groups, "db": dataclasses.replace(group, peers=peers, backends=backends)},
    )


@contextlib.asynccontextmanager
async def _stage() -> AsyncIterator[Stage]:
    async with cluster() as mesh, contextlib.AsyncExitStack() as stack:
        mesh.manifest = make_database_manifest(mesh.manifest)
        mesh.manifest = placed(mesh.manifest)
        await mesh.start()
        lead = await mesh.ready()
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mesh-test-", dir="/dev/shm")))
        members = {}
        for peer_id in ("db-0", "db-1"):
            keys = identity.make()
            answer, given = await admitted(lead, peer_id, keys)
            member = members[peer_id] = Member(peer_id, answer, lead, folder)
            stack.push_async_callback(member.close)
            await member.start(mesh.manifest, given, keys)
        keys = identity.make()
        admission, given = await admitted(lead, "client-0", keys)
        consul = await stack.enter_async_context(ConsulClient(Secret(admission["consul"]["token"]), socket=lead.consul))
        scope = await stack.enter_async_context(TaskScope())
        caller = Caller(mesh.manifest, folder, admission["address"], consul, scope)
        caller.world = sources.with_certificate(
            caller.world, given, keys.leaf_private_pem, keys.public_private_pem, 0.0, 0.0, 120.0
        )
        stack.push_async_callback(caller.envoy.close)
        await caller.envoy.start()
        caller.effects.files.prepare()
        caller.effects.xds = caller.envoy.server
        caller.watch()
        running = scope.start("reconcile", caller.run())
        try:
            yield Stage(caller, members, mesh)
        finally:
            caller.watches.keep({})
            running.cancel()


async def test_held_connections_follow_the_leader_key_and_nothing_else() -> None:
    """Idle connections are closed when the key moves, stay when a replica comes and goes; the next dial finds the new
    leader, though the old one still claims to be it.
    """
    async with stage() as it:
        old, new = it.members["db-0"], it.members["db-1"]
        await old.lead()
        await old.say("master")
        idle = await it.caller.reaches("db-0")
        with closing(idle[1]):
            before = it.caller.published
            for role in ("replica", "", "replica"):
                await new.say(role)
                await it.sees(lambda role=role: it.tags("db-1") == role, "the replica's news")
            assert await says(idle)
            assert it.caller.published == before, "a replica is nothing to the master's route"
            await old.lose()
            await is_closed(idle)
            await it.sees(lambda: it.behind() == (), "nobody leads")
            assert it.caller.published == before + 1, "the key's end is one push"
        await new.lead()
        await it.sees(lambda: it.caller.world.leaders[KEY].holder == "db-1", "the key is held again")
        assert it.behind() == (), "who holds the key but says nothing of its role is no endpoint yet"
        await new.say("master")
        held = await it.caller.reaches("db-1")
        with closing(held[1]):
            assert it.caller.published == before + 2, "the new leader is one push"
            assert it.caller.effects.conflicts == {"db-master": ("db-0", "db-1")}
            await old.say("replica")
            await it.sees(lambda: it.caller.effects.conflicts == {}, "the old leader gave up its claim")
            assert await says(held)
            assert it.caller.published == before + 2


async def test_the_last_leader_stays_while_the_coordinators_are_gone() -> None:
    """Held connections go on and new ones are made with what was known last."""
    async with stage() as it:
        leader = it.members["db-0"]
        await leader.lead()
        await leader.say("master")
        held = await it.caller.reaches("db-0")
        with closing(held[1]):
            await it.mesh.lose(0)
            assert await says(held)
            again = await it.caller.reaches("db-0")
            again[1].transport.abort()
            assert await says(held)
            assert it.behind() == ("db-0",)


async def test_coordinators_that_come_back_with_nothing_move_no_leader() -> None:
    """The key is gone, but nobody let go of it: connections stay until somebody has taken it and lets go."""
    async with stage() as it:
        leader, replica = it.members["db-0"], it.members["db-1"]
        await replica.write(100)
        await leader.lead()
        await leader.say("master")
        held = await it.caller.reaches("db-0")
        with closing(held[1]):
            await it.mesh.lose(0)
            it.mesh.lose_disk(0)
            await it.mesh.start(0)
            lead = await it.mesh.ready()
            before = it.caller.published
            it.caller.consul.use_token(Secret((await applicant(lead, "client-0").admitted())["consul"]["token"]))
            # What `membership` does when a lease was lost.
            it.caller.world = sources.hold(it.caller.world)
            it.caller.watch()
            await it.sees(lambda: it.caller.world.leaders[KEY].remembered, "the servers do not know the key")
            await it.sees(lambda: it.caller.world.catalog["db"] == (), "nor the instances")
            assert it.behind() == ("db-0",)
            for member in (leader, replica):
                member.admitted_again(await applicant(lead, member.peer_id).admitted())
                await member.join()
            await replica.say("replica")
            await it.sees(lambda: it.tags("db-1") == "replica", "a replica is back")
            await leader.lead()
            await it.sees(lambda: not it.caller.world.leaders[KEY].remembered, "the key is held again")
            await leader.say("master")
            await it.sees(lambda: it.tags("db-0") == "master", "the leader is back")
            assert await says(held)
            assert it.behind() == ("db-0",)
            assert it.caller.published == before
            await leader.lose()
            await is_closed(held)
