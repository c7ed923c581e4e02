"""The coordinator's Consul server as a child: its files, its start, and how its first election is hastened."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from coordinator.keys import ClusterKeys, agent_certificate, private_pem
from runtime.children import Child, ChildSpec
from runtime.consul import (
    ConnectCa,
    ConsulClient,
    ConsulError,
    TlsFiles,
    argv,
    server_config,
    write_config,
    write_private,
)

HANG_SECONDS = 10.0
"""A server that answers nothing for so long is replaced; an election takes about 2 s, and is answered meanwhile."""
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
    siblings: tuple[str, ...]
    """Mesh addresses of the other coordinators."""
    raft_multiplier: int = NORMAL
    http_port: int = 8500


class ServerProcess:
    """Keeps the server's files and child."""

    def __init__(self, settings: ServerSettings, keys: ClusterKeys, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._keys = keys
        self._clock = clock
        self._alone = not settings.siblings
        folder = settings.state_dir / "consul"
        self._config = folder / "config" / "server.json"
        self._data = folder / "data"
        self._tls = TlsFiles(ca=folder / "ca.pem", certificate=folder / "agent.pem", key=folder / "agent-key.pem")
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._spki = self._key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.client = ConsulClient(keys.management_token, port=settings.http_port)
        self.child = Child(
            ChildSpec(
                name="consul",
                argv=argv(settings.program, self._config.parent),
                env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": str(folder)},
                log=None,
                healthy=self._answers,
                hang_seconds=HANG_SECONDS,
                stop_seconds=STOP_SECONDS,
            ),
            on_start=self._started,
        )

    @property
    def public_key(self) -> str:
        """SubjectPublicKeyInfo of this boot's RPC TLS key, DER in base64."""
        return base64.b64encode(self._spki).decode()

    def prepare(self) -> None:
        """Writes key, certificates and configuration."""
        settings, keys = self._settings, self._keys
        certificate = agent_certificate(
            keys,
            self._spki,
            node=settings.peer_id,
            datacenter=settings.cluster,
            server=True,
            now=self._clock(),
        )
        write_private(self._tls.ca, keys.rpc_ca_pem)
        write_private(self._tls.key, private_pem(self._key))
        write_private(self._tls.certificate, certificate)
        self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write(SLOW_START if self._alone else NORMAL)

    async def leader(self) -> bool:
        """True when the cluster has a leader that takes our token and serves certificates."""
        try:
            await self.client.get("/v1/acl/token/self")
            _, roots = await self.client.get("/v1/connect/ca/roots")
        except ConsulError:
            return False
        return bool(roots and roots.get("ActiveRootID"))

    def _write(self, multiplier: int) -> None:
        settings, keys = replace(self._settings, raft_multiplier=multiplier), self._keys
        config = server_config(
            node_name=settings.peer_id,
            datacenter=settings.cluster,
            mesh_address=settings.address,
            siblings=settings.siblings,
            bootstrap_expect=1 + len(settings.siblings),
            gossip_key=keys.gossip_key,
            management_token=keys.management_token,
            data_dir=self._data,
            tls=self._tls,
            connect_ca=ConnectCa(
                cluster_id=keys.connect_cluster_id,
                root_pem=keys.connect_root_pem,
                key_pem=keys.connect_root_key_pem,
            ),
            raft_multiplier=settings.raft_multiplier,
            http_port=settings.http_port,
        )
        write_config(self._config, config)

    async def _answers(self) -> bool:
        try:
            await self.client.get("/v1/status/leader")
        except ConsulError as error:
            return error.status != 0
        return True

    async def _started(self) -> None:
        """After each start of a lone server: shorten its timeout by a reload, once it can take one."""
        if not self._alone:
            return
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
