"""The first phase: who this coordinator is, its seed and its RA-TLS certificate, all from the guest agent."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from admission.protocol import MeshPeer
from coordinator import policy
from coordinator.config import Config, own_peer_id
from coordinator.keys import GETKEY_PATH
from runtime.backoff import Backoff
from runtime.consul import write_private
from runtime.guest import GuestAgent, GuestError, GuestInfo, TlsKey
from runtime.secret import Secret
from runtime.tasks import TaskScope

log = logging.getLogger(__name__)

RETRY = Backoff(base=0.1, cap=5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the guest agent said."""

    info: GuestInfo
    seed: Secret
    """GetKey's answer: the root of `coordinator.keys`."""
    tls: TlsKey
    """RA-TLS server key and certificate of this boot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity(Machine):
    """And what the manifest makes of it."""

    peer_id: str
    address: str
    """Own mesh address."""

    def entry(self, public_key: str) -> MeshPeer:
        """Its entry of the peer registry, with the WireGuard key `public_key`."""
        return MeshPeer(
            peer_id=self.peer_id,
            public_key=public_key,
            address=self.address,
            kind="coordinator",
            compose_hash=self.info.compose_hash.lower(),
            app_id=self.info.app_id.lower(),
        )


def place(machine: Machine, config: Config) -> Identity:
    """Who `machine` is by the manifest of `config`. ConfigError as own_peer_id."""
    peer_id = own_peer_id(config, machine.info.instance_id)
    address = policy.find_slot(config.manifest, peer_id).address
    return Identity(info=machine.info, seed=machine.seed, tls=machine.tls, peer_id=peer_id, address=address)


async def find(guest: GuestAgent, cluster: str, stop: asyncio.Event, say: Callable[[str], None]) -> Machine | None:
    """Asks until the agent answers; None when told to stop. `say` gets the reason of each failure."""
    rng = Random()
    attempt = 0
    while not stop.is_set():
        found = await _ask(guest, cluster)
        if isinstance(found, Machine):
            return found
        say(str(found))
        log.warning("guest agent not usable yet", extra={"reason": str(found)})
        try:
            async with asyncio.timeout(RETRY.delay(attempt, rng)):
                await stop.wait()
        except TimeoutError:
            attempt += 1
    return None


def server_tls(key: TlsKey, state_dir: Path) -> ssl.SSLContext:
    """The broker's TLS: version 1.3, the RA-TLS certificate, no client certificates (a CVM proves itself by its
    quote).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    path = state_dir / "ra-tls.pem"
    # The ssl module reads keys from files only; this one is gone again at once.
    write_private(path, key.key_pem.reveal().strip() + "\n" + key.chain_pem)
    try:
        context.load_cert_chain(path)
    finally:
        path.unlink()
    return context


async def _ask(guest: GuestAgent, cluster: str) -> Machine | GuestError:
    try:
        # At once: each of them may take a quote or a round trip to the KMS.
        async with TaskScope() as scope:
            info_task = scope.start("info", guest.info())
            seed_task = scope.start("key", guest.key(GETKEY_PATH, cluster))
            tls_task = scope.start(
                "tls key", guest.tls_key("cvm-mesh coordinator", ra_tls=True, server=True, client=False)
            )
    except* GuestError as errors:
        first = errors.exceptions[0]
        failure = first if isinstance(first, GuestError) else GuestError("Info", str(first))
    else:
        return Machine(info=info_task.result(), seed=seed_task.result(), tls=tls_task.result())
    return failure
