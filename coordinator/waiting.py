"""The phase before there is a manifest: a coordinator that knows its owners only, and waits for what they sign.

It answers with its RA-TLS certificate, so that an owner can see what it is before setting anything, and serves nothing
else. Where its disk is lost, other coordinators have one: it asks those that its environment names, as a sidecar does.
A manifest that is given here says nothing of which one is in force: the records do, and siblings, and CVMs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from random import Random

from admission.client import IN_FORCE, Attested, CoordinatorError, RefusedError, Verify
from admission.offers import Offers
from admission.protocol import Code, ManifestHead
from admission.trust import coordinator_check
from coordinator import identity, proposal
from coordinator.config import Config, begun, own_peer_id
from coordinator.identity import Machine
from coordinator.refusal import RefusalError
from coordinator.server import LIMITS, waiting_application
from runtime.backoff import Backoff
from runtime.env import ConfigError
from runtime.http_server import Server
from runtime.tasks import TaskScope
from topology.envelope import Signed
from topology.manifest import Manifest

log = logging.getLogger(__name__)

PHASE = "waiting for a manifest"
ASK = Backoff(base=0.5, cap=5.0)
"""Between two questions to another coordinator: it may be waiting as well, for an owner."""
REASON = f"the coordinator is {PHASE}: ./mesh set gives it the first one"


class Waiting:
    """A coordinator with `config`, on `machine`, that has no manifest."""

    def __init__(self, config: Config, machine: Machine) -> None:
        self._config, self._machine = config, machine
        self._taken: Signed | None = None
        self._given = asyncio.Event()
        self.port = 0
        """Where it listens, once it does."""

    async def wait(self, stop: asyncio.Event) -> Config | None:
        """The configuration with the first manifest; None when told to stop. OSError names a taken address."""
        config = self._config
        tls = identity.server_tls(self._machine.tls, config.state_dir)
        server = Server(waiting_application(REASON, self.take), *config.listen, tls, LIMITS)
        self.port = await server.start()
        log.info(PHASE, extra={"port": self.port})
        offers = Offers(config.owners, lambda: None, self._misfit)
        verify = coordinator_check(offers.judge, self._brought, config.pccs_url, config.dev_root, time.time)
        try:
            async with TaskScope() as scope:
                asks = [scope.start(f"ask {url}", self._ask(url, verify)) for url in self._others()]
                ends = [scope.start("stop", stop.wait()), scope.start("manifest", self._given.wait())]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                for task in (*ends, *asks):
                    task.cancel()
        finally:
            # Who has set it gets the answer first.
            await server.stop()
        return None if self._taken is None or stop.is_set() else begun(config, self._taken)

    def _others(self) -> tuple[str, ...]:
        """Where others may answer. Of several one is our own, which says that it has none either."""
        return self._config.urls if len(self._config.urls) > 1 else ()

    async def _ask(self, url: str, verify: Verify) -> None:
        """Takes the manifest of the coordinator at `url` once that has one."""
        coordinator, rng, attempt, said = Attested(url, verify), Random(), 0, ""
        try:
            while True:
                try:
                    await coordinator.call("GET", IN_FORCE)
                except Exception as error:  # noqa: BLE001 -- the boundary: whatever another says, only it has failed
                    reason = str(error) if isinstance(error, CoordinatorError | RefusedError) else repr(error)
                    if reason != said:
                        log.info("no manifest from another coordinator", extra={"url": url, "reason": reason})
                        said = reason
                await coordinator.close()
                await asyncio.sleep(ASK.delay(attempt, rng))
                attempt += 1
        finally:
            await coordinator.close()

    def _misfit(self, manifest: Manifest) -> str | None:
        if manifest.cluster != self._config.cluster:
            return f"it is of cluster {manifest.cluster!r}, and this coordinator of {self._config.cluster!r}"
        return proposal.misfit(manifest, self._machine.info)

    async def _brought(self, signed: Signed) -> None:
        """Begins with `signed`, which a sibling has."""
        try:
            self._begin(signed)
        except RefusalError as error:
            raise CoordinatorError(str(error)) from error

    def take(self, envelope: str) -> ManifestHead:
        """Begins with the manifest in `envelope`; RefusalError."""
        found = proposal.first(envelope, self._config.cluster, self._config.owners, self._machine.info)
        self._begin(found)
        return proposal.shown(found)

    def _begin(self, found: Signed) -> None:
        if self._taken is not None and self._taken.digest != found.digest:
            raise proposal.stale(self._taken, f"{self._taken.name} was set before {found.name}")
        try:
            own_peer_id(begun(self._config, found), self._machine.info.instance_id)
        except ConfigError as error:
            raise RefusalError(Code.MANIFEST_REFUSED, str(error)) from error
        self._taken = found
        self._given.set()
