"""How a coordinator joins another one: verify its evidence, attest to it as any CVM would, renew while both live.

The same API as a workload's, with the group "coordinator". What it yields is the other's WireGuard key; secrets are
derived, not sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from admission import binding
from admission.broker import Admitted, Broker, Held, decode
from admission.client import IN_FORCE, CoordinatorError, Greeting, NotAllowedError, RefusedError
from admission.offers import HISTORY_SECONDS, successors
from admission.protocol import AttestRequest, BootKeys, ChallengeRequest, Code, ManifestHead, MeshPeer
from admission.trust import check_with, nothing
from coordinator import policy
from coordinator.broker import Rules
from coordinator.forming import Standing
from evidence.binding import report_data
from evidence.verify import EvidenceVerifier
from runtime.backoff import Backoff
from runtime.guest import GuestAgent, GuestError, GuestInfo
from runtime.secret import Secret
from topology.envelope import Signed, claims
from topology.manifest import COORDINATORS, CoordinatorPeer
from topology.trees import ManifestError

log = logging.getLogger(__name__)

_OUT = frozenset({Code.ADMISSION_REJECTED, Code.REVOKED})
"""How a coordinator answers one that its manifest does not have, or has no more."""
RETRY = Backoff(base=0.2, cap=5.0)
RENEW_SECONDS = 5.0
HURRY_SECONDS = 0.5
"""Between two questions while our own server waits for what the sibling says."""
TIMEOUT = 15.0
"""Seconds for a call: a quote on either side and a collateral fetch fit in."""
STANDING = "/v1/coordinators/standing"


class SiblingError(Exception):
    """The other coordinator cannot be joined now. The text says why, `code` how it answered."""

    def __init__(self, reason: str, code: str = "") -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """Who joins."""

    peer_id: str
    info: GuestInfo
    boot: BootKeys


FORESEEN = (SiblingError, CoordinatorError, RefusedError, GuestError)
"""What a sibling that is away, or refuses, looks like. Of anything else the log has the kind of error, too."""


class Sibling:
    """One other coordinator. `admitted` is called with its entry of the registry whenever it answered."""

    def __init__(
        self,
        peer: CoordinatorPeer,
        own: Own,
        *,
        guest: GuestAgent,
        rules: Callable[[], Rules],
        verifier: EvidenceVerifier,
        admitted: Callable[[MeshPeer], None],
        refused: Callable[[str], None],
        enforces: Callable[[str], None],
        handovers: Callable[[], tuple[str, ...]],
        ask: Callable[[], dict[str, object]],
        hurry: Callable[[], bool],
        clock: Callable[[], float],
        rng: Random,
    ) -> None:
        """`refused` is called with its peer ID when it shows what the manifest does not allow, `enforces` with the
        envelope of the manifest that it enforces. `handovers` is as `Broker` has it. `ask` gives what a
        `StandingRequest` has beside the lease; `hurry` is true while its answer is waited for.
        """
        self.peer_id = peer.peer_id
        self.address = peer.address
        self.state = "not joined"
        self.standing: Standing | None = None
        """What it said last of its Consul server; None while it is not reached."""
        self._peer, self._url, self._own = peer, peer.url, own
        self._guest, self._rules, self._admitted, self._enforces = guest, rules, admitted, enforces
        self._refused, self._handovers = refused, handovers
        self._ask, self._hurry = ask, hurry
        self._clock, self._rng = clock, rng
        # By our own manifest, whatever it says: it may have to learn of ours.
        self._verify = check_with(verifier, self._judge, nothing, clock)

    async def run(self) -> None:
        """Joins and renews until cancelled; every failure is tried again."""
        attempt = 0
        while True:
            broker = Broker(self._url, self._verify, self._envelope, TIMEOUT, handovers=self._handovers)
            try:
                lease = await self._join(broker)
                attempt, self.state = 0, "joined"
                while True:
                    asked = {"lease": lease.reveal(), **self._ask()}
                    self.standing = decode(Standing, await broker.post(STANDING, asked))
                    await asyncio.sleep(HURRY_SECONDS if self._hurry() else RENEW_SECONDS)
                    await broker.renew(lease, Held())
            except Exception as error:  # noqa: BLE001 -- the boundary: whatever a sibling says, only it has failed
                self.standing = None
                if isinstance(error, NotAllowedError):
                    self._refused(self.peer_id)
                reason = str(error) if isinstance(error, FORESEEN) else repr(error)
                if self.state != (state := f"not joined: {reason}"):
                    log.warning("sibling not joined", extra={"peer_id": self.peer_id, "reason": reason})
                    self.state = state
            finally:
                # What a sibling shows next is verified anew.
                await broker.close()
            await asyncio.sleep(RETRY.delay(attempt, self._rng))
            attempt += 1

    def _envelope(self) -> str:
        return self._rules().signed.envelope

    async def _judge(self, _: Greeting) -> Signed:
        return self._rules().signed

    async def _join(self, broker: Broker) -> Secret:
        try:
            return await self._attest(broker)
        except RefusedError as error:
            if error.code in _OUT:
                # It may go by a manifest that does not have us any more.
                head: ManifestHead = decode(ManifestHead, await broker.ask(IN_FORCE))
                await self._hear(broker, head.envelope)
            raise

    async def _hear(self, broker: Broker, envelope: str) -> None:
        """Hands on what the sibling enforces. Where some are missing in between, those come first: a coordinator that
        was dropped while it was away hears nothing of them from Consul.
        """
        said, own = claims(envelope), self._rules().signed
        if said is not None and said.epoch > own.manifest.epoch + 1:
            try:
                async with asyncio.timeout(HISTORY_SECONDS):
                    async for each in successors(broker.ask, own, own.manifest.owners):
                        self._enforces(each.envelope)
            except (ManifestError, RefusedError, CoordinatorError, TimeoutError) as error:
                log.warning(
                    "the manifests in between are not known", extra={"peer_id": self.peer_id, "reason": str(error)}
                )
        self._enforces(envelope)

    async def _attest(self, broker: Broker) -> Secret:
        own = self._own
        request = ChallengeRequest(group=COORDINATORS, instance_id=own.info.instance_id, peer_id=own.peer_id)
        try:
            challenge = await broker.challenge(request)
        except RefusedError as error:
            if error.code is Code.NO_MANIFEST:
                # It is new, or was away when it was listed. What it begins with is signed: anybody may bring it.
                raise SiblingError(f"{self.peer_id} was given the manifest, and begins with it") from error
            raise
        admitted = await attest(broker, self._guest, own, self._rules().signed, challenge.nonce, self._clock())
        for peer in admitted.peers:
            if peer.peer_id == self.peer_id and peer.address == self._peer.address and peer.kind == "coordinator":
                self._admitted(peer)
                await self._hear(broker, admitted.envelope)
                return admitted.lease
        raise SiblingError(f"{self._url} does not answer as {self.peer_id}; check its URL in the manifest")


async def attest(broker: Broker, guest: GuestAgent, own: Own, signed: Signed, nonce: str, now: float) -> Admitted:
    """Attests to the coordinator of `broker`, which gave `nonce` (hex), as a coordinator of the manifest `signed`, at
    `now` (Unix seconds). RefusedError, CoordinatorError, GuestError.
    """
    raw = binding.make(
        cluster=signed.manifest.cluster,
        peer_id=own.peer_id,
        identities=policy.identities(signed.manifest, COORDINATORS),
        info=own.info,
        boot=own.boot,
        now=now,
    )
    quote = await guest.quote(report_data(raw, bytes.fromhex(nonce)))
    return await broker.attest(
        AttestRequest(
            binding=raw.hex(),
            nonce=nonce,
            quote=quote.quote.hex(),
            event_log=quote.event_log,
            vm_config=quote.vm_config,
            manifest=signed.envelope,
        )
    )
