"""The phase before there is a manifest: a coordinator that knows its owners only, and waits for what they sign.

It answers with its RA-TLS certificate, so that an owner can see what it is before setting anything, and serves nothing
else. A manifest that is given here says nothing of which one is in force: the records do, and siblings, and CVMs.
"""

from __future__ import annotations

import asyncio
import logging

from admission.protocol import Code, ManifestHead
from coordinator import identity, proposal
from coordinator.config import Config, begun, own_peer_id
from coordinator.identity import Machine
from coordinator.refusal import RefusalError
from coordinator.server import LIMITS, waiting_application
from runtime.env import ConfigError
from runtime.http_server import Server
from runtime.tasks import TaskScope
from topology.envelope import Signed

log = logging.getLogger(__name__)

PHASE = "waiting for a manifest"
REASON = f"the coordinator is {PHASE}: ./mesh set gives it the first one"


class Waiting:
    """A coordinator with `config`, on `machine`, that has no manifest."""

    def __init__(self, config: Config, machine: Machine) -> None:
        self._config, self._machine = config, machine
        self._taken: Signed | None = None
        self._given = asyncio.Event()
        self.port = 0
        """Where it listens, once it does."""

    async def wait(self, stop: asyncio.Event) -> Signed | None:
        """The first manifest; None when told to stop. OSError names a taken address."""
        config = self._config
        tls = identity.server_tls(self._machine.tls, config.state_dir)
        server = Server(waiting_application(REASON, self.take), *config.listen, tls, LIMITS)
        self.port = await server.start()
        log.info(PHASE, extra={"port": self.port})
        try:
            async with TaskScope() as scope:
                ends = [scope.start("stop", stop.wait()), scope.start("manifest", self._given.wait())]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                for task in ends:
                    task.cancel()
        finally:
            # Who has set it gets the answer first.
            await server.stop()
        return None if stop.is_set() else self._taken

    def take(self, envelope: str, handovers: tuple[str, ...] = ()) -> ManifestHead:
        """Begins with the manifest in `envelope`, to which `handovers` may lead; RefusalError."""
        config, info = self._config, self._machine.info
        found = proposal.first(envelope, config.cluster, config.owners, info, handovers)
        if self._taken is not None and self._taken.digest != found.digest:
            raise proposal.stale(self._taken, f"{self._taken.name} was set before {found.name}")
        try:
            own_peer_id(begun(config, found), info.instance_id)
        except ConfigError as error:
            raise RefusalError(Code.MANIFEST_REFUSED, str(error)) from error
        self._taken = found
        self._given.set()
        return proposal.shown(found)
