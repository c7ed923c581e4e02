"""The local Consul agent as a child: its files, its health, its tokens."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import shutil
from pathlib import Path

from admission.broker import Admitted
from runtime.children import ChildSpec
from runtime.consul import (
    ConsulClient,
    ConsulError,
    TlsFiles,
    agent_config,
    api_socket,
    argv,
    query_clock,
    write_config,
    write_private,
)
from runtime.gossip import Ring
from runtime.keyring import Member
from runtime.secret import Secret
from sidecar.identity import Keys

log = logging.getLogger(__name__)

HANG_SECONDS = 6.0
STOP_SECONDS = 5.0
"""SIGTERM makes the agent leave, which it tells the others before it ends (about 3 s at most)."""
POLL_SECONDS = 0.02
"""Between questions to an agent that starts: its HTTP server is up some 0.1 s after exec."""


class Agent:
    """Paths of one agent in `state_dir`, and questions to it."""

    def __init__(self, program: Path, state_dir: Path, consul: ConsulClient) -> None:
        """`consul` asks the agent, whose HTTP API is to be on `api_socket(state_dir)`."""
        self._api = api_socket(state_dir)
        self._program = program
        self._folder = state_dir / "consul"
        self._config = self._folder / "config"
        self._consul = consul
        self._ring: Ring | None = None
        self._member: Member | None = None
        self._former: tuple[Secret, ...] = ()
        """Gossip keys that the agent may have."""
        self._taking = asyncio.Lock()
        """Two at once would each take out keys that the other has just given."""
        # For the agent's own API: opened by the recovery token, which needs no server's judgement.
        self._local = ConsulClient(socket=self._api)

    def write(self, admitted: Admitted, keys: Keys) -> bool:
        """Writes the configuration of this admission; whether it changed in more than its token."""
        tls = TlsFiles(
            ca=self._folder / "ca.pem", certificate=self._folder / "certificate.pem", key=self._folder / "key.pem"
        )
        self._local.use_token(keys.recovery_token)
        ring = admitted.gossip
        self._ring, self._member = ring, Member(admitted.peer_id, admitted.address)
        self._former = (*(key for key in self._former if key not in ring.keys), *ring.keys)
        before = tuple(_read(path) for path in (tls.ca, tls.certificate, tls.key))
        after = (admitted.ca_pem, admitted.certificate_pem, keys.tls_private_pem.reveal())
        for path, text in zip((tls.ca, tls.certificate, tls.key), after, strict=True):
            write_private(path, text)
        write_config(
            self._config / "agent.json",
            agent_config(
                node_name=admitted.peer_id,
                datacenter=admitted.datacenter,
                mesh_address=admitted.address,
                servers=admitted.servers,
                gossip_key=admitted.gossip.keys[0],
                token=admitted.token,
                data_dir=self._data_of(admitted.ca_pem),
                tls=tls,
                api=self._api,
                recovery_token=keys.recovery_token,
            ),
        )
        return before != after

    def _data_of(self, ca_pem: str) -> Path:
        """Where an agent of the Consul cluster with that authority has its data. Another cluster's is not for it: it
        would go by nodes, registrations and gossip of before.
        """
        return self._folder / f"data-{hashlib.sha256(ca_pem.encode()).hexdigest()[:16]}"

    def forget(self) -> None:
        """Removes the agent's files: registrations and tokens of the peer that it was. Call it when it has ended."""
        shutil.rmtree(self._folder, ignore_errors=True)

    async def close(self) -> None:
        """Closes the connections to the agent."""
        await self._local.close()

    def spec(self) -> ChildSpec:
        """How to run it."""
        return ChildSpec(
            name="consul",
            argv=argv(self._program, self._config),
            env={},
            log=None,
            healthy=self.healthy,
            hang_seconds=HANG_SECONDS,
            stop_seconds=STOP_SECONDS,
        )

    async def healthy(self) -> bool:
        """Whether its HTTP API answers, whatever it says."""
        try:
            await self._local.get("/v1/agent/version")
        except ConsulError as error:
            return error.status != 0
        return True

    async def up(self) -> None:
        """Returns when the HTTP API answers."""
        while not await self.healthy():  # noqa: ASYNC110 - another process: there is no event to wait for
            await asyncio.sleep(POLL_SECONDS)

    async def joined(self) -> None:
        """Returns when a server answers through the agent."""
        while True:
            try:
                _, leader = await self._consul.get("/v1/status/leader")
                if leader:
                    return
            except ConsulError as error:
                log.debug("agent has not joined", extra={"reason": str(error)})
            await asyncio.sleep(POLL_SECONDS)

    async def rejoin(self, servers: tuple[str, ...]) -> bool:
        """Joins whichever of `servers` (mesh addresses) can be reached; whether there was one.

        An agent joins when it starts. A server that was lost with all it knew and came back on empty state knows
        nobody, and the agent's own attempts to reach a failed member come only every 30 s.
        """
        joined = False
        for server in servers:
            try:
                await self._local.put(f"/v1/agent/join/{server}")
            except ConsulError as error:
                log.debug("server not joined", extra={"server": server, "reason": str(error)})
            else:
                joined = True
        return joined

    async def take_ring(self) -> str:
        """Has a running agent take the gossip keys that were written last, and no others; their name. KeyringError,
        ConsulError: then it is done once more, or by the agent's next start and this.
        """
        async with self._taking:
            assert self._ring is not None
            assert self._member is not None
            ring = self._ring
            await self._member.carry_out(ring, self._former, lambda: query_clock(self._local))
            self._former = ring.keys
            return ring.name

    async def use_token(self, token: Secret, *, reload: bool = False) -> None:
        """Gives a running agent a new token; with `reload` it first reads its files again, for a new certificate.
        ConsulError when it does not take them.

        In this order, because a reload takes what the servers were not told yet for told: it registers everything anew
        with the agent, which compares that with its own copy only (Consul's agent/local/state.go,
        `setServiceStateLocked`). A new token makes the agent compare all with the servers, once, within 3 s. With the
        token first, a reload in the midst of that lost services for 1 to 2 minutes, until the agent compared again.
        """
        try:
            if reload:
                await self._local.put("/v1/agent/reload")
        finally:
            await self._local.put("/v1/agent/token/agent", {"Token": token.reveal()})


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
