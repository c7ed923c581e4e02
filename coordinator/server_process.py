"""The coordinator's Consul server as a child: its files, its start, what it says of its records, and how the first
election of a lone server is hastened.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import signal
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from coordinator.forming import UNKNOWN, Standing
from coordinator.keys import AGENT_CERTIFICATE_DAYS, ClusterKeys, agent_certificate, agent_due, private_pem
from coordinator.voters import Server
from runtime.children import Child, ChildSpec
from runtime.consul import (
    ConsulClient,
    ConsulError,
    TlsFiles,
    api_socket,
    argv,
    query_clock,
    reading,
    server_config,
    write_config,
    write_private,
)
from runtime.consul_config import SERVER_PORT
from runtime.secret import Secret
from runtime.tasks import TaskScope

log = logging.getLogger(__name__)

CERTIFICATE_SECONDS = 60.0
"""Between two looks at the end of the RPC certificate, which lasts a year: after a failure, and after a clock that was
set, half a year is left."""
_ALIVE = 1
"""`Status` of a member in gossip (hashicorp/serf, `StatusAlive`)."""
CONNECT_SECONDS = 1.0
"""For a connection to another server: a round trip. TCP tries again after 1 s, which is not waited for."""
HANG_SECONDS = 10.0
"""A server that answers nothing for so long, or whose disk hangs, is replaced; an election takes about 2 s, and is
answered meanwhile."""
STOP_SECONDS = 5.0
SLOW_START, NORMAL = 2, 1
"""Raft multipliers. A lone server waits out its heartbeat timeout (1 to 2 s) before it elects itself, unless a
reload shortens that timeout: then it looks at once. 2 is the greatest multiplier whose lease may stay beside 1's
timeout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What the server is to be."""

    program: Path
    state_dir: Path
    """Private folder on tmpfs."""
    cluster: str
    peer_id: str
    address: str
    """Own mesh address."""
    siblings: Callable[[], tuple[str, ...]]
    """Mesh addresses of the other coordinators of the manifest."""
    gossip: Callable[[], Secret]
    """The key that gossip is sealed with now."""
    data_dir: Path
    """The server's own folder, which outlives the CVM's boots."""
    raft_multiplier: int = NORMAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How the server starts."""

    server_id: str
    """Raft ID of the data folder."""
    found: bool
    """It may found a cluster, when it has no records."""
    met: tuple[str, ...] = ()
    """Mesh addresses of agents that were in the cluster before, and can be reached again."""


class ServerProcess:
    """Keeps the server's files and child."""

    def __init__(
        self,
        settings: ServerSettings,
        keys: ClusterKeys,
        clock: Callable[[], float],
        disk_hangs: Callable[[], bool] = lambda: False,
    ) -> None:
        """`clock` gives Unix seconds. A server counts as hung while `disk_hangs` (`coordinator.disk_probe`)."""
        self._settings = settings
        self._keys = keys
        self._clock = clock
        self._disk_hangs = disk_hangs
        self._start: Start | None = None
        self.begins_with: Secret | None = None
        """The gossip key in its configuration."""
        self.certificate_expires_at: int | None = None
        """Unix seconds: the end of the RPC certificate that the server has. None before there is one."""
        self._multiplier = NORMAL
        self._hasten = False
        self._recovery_token = Secret(str(uuid.uuid4()))
        folder = settings.state_dir / "consul"
        self._config = folder / "config" / "server.json"
        self._tls = TlsFiles(ca=folder / "ca.pem", certificate=folder / "agent.pem", key=folder / "agent-key.pem")
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._spki = self._key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self._api = api_socket(settings.state_dir)
        self.client = ConsulClient(keys.management_token, socket=self._api)
        # For the agent's own API, which has to answer when there is no leader.
        self._local = ConsulClient(self._recovery_token, socket=self._api)
        self.child = Child(
            ChildSpec(
                name="consul",
                argv=argv(settings.program, self._config.parent),
                env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": str(folder)},
                log=None,
                healthy=self._healthy,
                hang_seconds=HANG_SECONDS,
                stop_seconds=STOP_SECONDS,
            ),
            on_start=self._started,
        )

    @property
    def public_key(self) -> str:
        """SubjectPublicKeyInfo of this boot's RPC TLS key, DER in base64."""
        return base64.b64encode(self._spki).decode()

    def prepare(self, start: Start) -> None:
        """Writes key, certificates and configuration for starting as `start` says."""
        settings, keys = self._settings, self._keys
        write_private(self._tls.ca, keys.rpc_ca_pem)
        write_private(self._tls.key, private_pem(self._key))
        self.certificate_expires_at = self._write_certificate()
        settings.data_dir.mkdir(mode=0o700, exist_ok=True)
        self._start = start
        # Only a cluster that knows nobody yet may have its leader at once: see coordinator.formation.
        self._hasten = start.found and not settings.siblings()
        self._write(SLOW_START if self._hasten else NORMAL)

    async def keep_certificate(self) -> None:
        """Renews the RPC certificate in time, until cancelled."""
        while True:
            try:
                if await self.renew_certificate():
                    log.info("RPC certificate renewed", extra={"ends": self.certificate_expires_at})
            except (ConsulError, OSError) as error:
                log.warning("RPC certificate not renewed yet", extra={"reason": str(error)})
            await asyncio.sleep(CERTIFICATE_SECONDS)

    async def renew_certificate(self) -> bool:
        """Has the running server take a new RPC certificate where its own is past half its life; whether it did.
        Connections that are open stay. OSError; ConsulError when it does not take it: then it is tried again.
        """
        expires_at = self.certificate_expires_at
        if self._start is None or expires_at is None or not agent_due(expires_at, self._clock()):
            return False
        ends = self._write_certificate()
        # A reload takes the multiplier in the file too, which is that of the next start.
        multiplier = self._multiplier
        self._write(NORMAL)
        try:
            await self._local.put("/v1/agent/reload")
        finally:
            self._write(multiplier)
        self.certificate_expires_at = ends
        return True

    def _write_certificate(self) -> int:
        """Writes a new RPC certificate for this boot's key; its end in Unix seconds."""
        settings, now = self._settings, self._clock()
        certificate = agent_certificate(
            self._keys, self._spki, node=settings.peer_id, datacenter=settings.cluster, server=True, now=now
        )
        write_private(self._tls.certificate, certificate)
        return int(now) + AGENT_CERTIFICATE_DAYS * 86400

    async def leader(self) -> bool:
        """True when this server is in a cluster whose leader takes our token."""
        try:
            await self.client.get("/v1/acl/token/self")
            # One that comes back knows the configuration that it was taken out of, and no leader until it is in again.
            _, leader = await self._local.get("/v1/status/leader")
            voters = await self._voters()
        except ConsulError:
            return False
        return bool(leader) and self._settings.address in voters

    async def standing(self) -> Standing:
        """What the server says of its records."""
        try:
            voters = await self._voters()
            if not voters:
                return Standing(records=False)
            _, leader = await self._local.get("/v1/status/leader")
            _, tree = await self._local.get("/v1/agent/self")
            with reading("the state of Raft"):
                raft = tree["Stats"]["raft"]
                term, index = int(raft["last_log_term"]), int(raft["last_log_index"])
        except ConsulError:
            return UNKNOWN
        return Standing(records=True, led=bool(leader), term=term, index=index, voters=voters)

    async def make_room(self, peer_id: str, address: str, server_id: str) -> bool:
        """Takes servers of coordinator `peer_id`, at mesh `address`, with another ID than `server_id` out of the Raft
        configuration and the catalog; True when there is none (any more). ConsulError without a leader.
        """
        _, tree = await self.client.get("/v1/operator/raft/configuration")
        place = f"{address}:{SERVER_PORT}"
        with reading("Raft's configuration"):
            old = [each["ID"] for each in tree["Servers"] if each["Address"] == place and each["ID"] != server_id]
        for each in old:
            await self.client.delete("/v1/operator/raft/peer", params={"id": each})
        _, found = await self.client.get(f"/v1/catalog/node/{peer_id}")
        with reading(f"the node {peer_id}"):
            stale = bool(found) and found["Node"]["ID"] != server_id
        if stale:
            # Consul gives a node's name to another ID only once gossip has seen the old one fail.
            await self.client.put("/v1/catalog/deregister", {"Node": peer_id})
        return not old

    async def raft(self) -> tuple[Server, ...]:
        """The servers of the leader's Raft configuration. ConsulError.

        Alive are those that take a connection now, too: gossip sees a server's end 1 to 3 s late.
        """
        _, tree = await self.client.get("/v1/operator/raft/configuration")
        members = await self._members()
        with reading("the list of members"):
            gossip = {str(one["Addr"]) for one in members if one["Status"] == _ALIVE}
        async with TaskScope() as scope:
            answers = {each: scope.start(f"connects to {each}", _connects(each)) for each in gossip}
        alive = {each for each, task in answers.items() if task.result()}
        with reading("Raft's configuration"):
            return tuple(_server(each, alive) for each in tree["Servers"])

    async def remove(self, server_id: str) -> None:
        """Takes a server out of the Raft configuration. ConsulError."""
        await self.client.delete("/v1/operator/raft/peer", params={"id": server_id})

    def rewrite(self) -> None:
        """Writes the configuration anew, with the gossip key of now: for a server that starts again by itself."""
        if self._start is not None:
            self._write(self._multiplier)

    async def query_clock(self) -> int:
        """The Lamport time of gossip's queries, as the server has it. ConsulError."""
        return await query_clock(self._local)

    async def take_lead(self, server_id: str) -> None:
        """Has the leader hand over to our own server, whose ID that is. ConsulError."""
        await self.client.post("/v1/operator/raft/transfer-leader", params={"id": server_id})

    async def force_out(self, staying: Collection[str]) -> None:
        """Ends in gossip, and so in the catalog, servers that are dead and not at one of the mesh addresses `staying`:
        Consul would try to reach them for 72 h. ConsulError.
        """
        members = await self._members()
        with reading("the list of members"):
            dead = [one for one in members if one["Tags"].get("role") == "consul" and one["Status"] != _ALIVE]
            names = [str(one["Name"]) for one in dead if one["Addr"] not in staying]
        for name in names:
            await self.client.put(f"/v1/agent/force-leave/{name}", params={"prune": ""})

    async def leave(self) -> None:
        """Has our own server say good-bye for good, and end. ConsulError."""
        await self._local.put("/v1/agent/leave")

    async def _members(self) -> list[Any]:
        _, found = await self.client.get("/v1/agent/members")
        with reading("the list of members"):
            return list(found or ())

    async def close(self) -> None:
        """Closes the connections to the server."""
        await self.client.close()
        await self._local.close()

    async def _voters(self) -> tuple[str, ...]:
        """Mesh addresses in this server's own copy of the Raft configuration; none while it has no records."""
        _, peers = await self._local.get("/v1/status/peers")
        with reading("the list of Raft's servers"):
            return tuple(str(peer).rpartition(":")[0] for peer in peers or ())

    def _write(self, multiplier: int) -> None:
        settings, keys, start = replace(self._settings, raft_multiplier=multiplier), self._keys, self._start
        assert start is not None
        siblings = settings.siblings()
        self.begins_with = settings.gossip()
        self._multiplier = multiplier
        config = server_config(
            node_name=settings.peer_id,
            datacenter=settings.cluster,
            mesh_address=settings.address,
            server_id=start.server_id,
            join=(*start.met, *siblings),
            bootstrap_expect=1 + len(siblings) if start.found else None,
            gossip_key=self.begins_with,
            management_token=keys.management_token,
            recovery_token=self._recovery_token,
            data_dir=settings.data_dir,
            tls=self._tls,
            raft_multiplier=settings.raft_multiplier,
            api=self._api,
        )
        write_config(self._config, config)

    async def _healthy(self) -> bool:
        return not self._disk_hangs() and await self._answers()

    async def _answers(self) -> bool:
        try:
            await self.client.get("/v1/status/leader")
        except ConsulError as error:
            return error.status != 0
        return True

    async def _started(self) -> None:
        """After the first start of a lone server: shorten its timeout by a reload, once it can take one."""
        if not self._hasten:
            return
        self._hasten = False
        # A program that starts signals nothing else than that it answers.
        while not await self._answers():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        pid = self.child.status().pid
        if pid is None:
            return
        self._write(NORMAL)
        # By signal: the reload call needs a token, and without a leader none can be looked up.
        os.kill(pid, signal.SIGHUP)
        while not await self.leader():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        self._write(SLOW_START)


def _server(entry: Any, alive: Collection[str]) -> Server:
    address = str(entry["Address"]).rpartition(":")[0]
    return Server(
        server_id=entry["ID"], address=address, leads=entry["Leader"], votes=entry["Voter"], alive=address in alive
    )


async def _connects(address: str) -> bool:
    """Whether the server at this mesh address takes a connection."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(address, SERVER_PORT)
    except (OSError, TimeoutError):
        return False
    writer.transport.abort()
    return True
