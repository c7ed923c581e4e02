"""The admission of this CVM: attest to some coordinator, renew the lease, attest again in place when it was lost.

A loop over `Broker`s. What an admission is used for is the supervisor's business; it is told through `Listener`. When
every coordinator is gone, everything stays as it is and the loop goes on asking. When coordinators refuse, the listener
is told once the lease has lapsed. Which slot is asked for is `sidecar.slot`'s.

Long because admission, renewal and the way back from a lost lease are one loop over one state: the lease.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal, Protocol, TypeVar

from admission.binding import make
from admission.broker import Admitted, Broker, Held, Renewed
from admission.client import CoordinatorError, RefusedError
from admission.clocks import Skew
from admission.offers import Ask
from admission.protocol import AttestRequest, Challenge, ChallengeRequest, Code
from evidence.binding import report_data
from runtime.backoff import Backoff
from runtime.guest import GuestError, GuestInfo, GuestQuote
from runtime.secret import Secret
from runtime.tasks import TaskScope
from sidecar.certificate import POLL_SECONDS, Certificate
from sidecar.certificate_reading import CertificateError, Expected, Given, agent_end, parse
from sidecar.identity import Keys
from sidecar.slot import Wish

log = logging.getLogger(__name__)

AGAIN = Backoff(base=0.1, cap=2.0)
"""Between rounds over all coordinators while nobody can say yes: unreachable, slot taken, not ready."""
PERMANENT = Backoff(base=5.0, cap=60.0)
"""After a refusal that the same evidence will get again: an operator has to change something, so do not hammer."""
SLOT_LEASE_SECONDS = 15.0
"""A lease, as coordinators give it (`coordinator.slots.LEASE_SECONDS`), for a sidecar that was not told one yet."""
RELEASE_SECONDS = 2.0
"""A clean stop waits no longer for the release; the lease lapses by itself."""

T = TypeVar("T")
State = Literal["waiting", "attesting", "refused", "admitted", "renewing"]


class Guest(Protocol):
    """What is needed of the guest agent."""

    async def quote(self, report_data: bytes) -> GuestQuote:
        """A quote over 64 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Who asks to be admitted as what."""

    cluster: str
    group: str
    wish: Wish
    """Which slot."""
    identities: Callable[[], tuple[str, ...]]
    """What it is admitted as, by the newest manifest that it holds."""
    info: GuestInfo
    keys: Keys


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionStatus:
    """For the status document."""

    state: State
    coordinator: str | None = None
    lease_seconds: float | None = None
    expires_at: float | None = None
    """Unix seconds."""
    reason: str = ""
    """Why it is not (or no longer surely) admitted."""
    skew: Skew | None = None
    """Of this CVM's clock against the coordinator's."""


class Listener(Protocol):
    """Who is told."""

    async def admitted(self, admitted: Admitted, given: Given) -> None:
        """A new admission, the first or a later one, and the certificate that came with it."""

    async def renewed(self, renewed: Renewed, given: Given) -> None:
        """A renewal; it may carry new tokens, secrets and a certificate."""

    def certificate(self) -> tuple[Certificate | None, str]:
        """What this CVM shows and trusts, None before it is admitted; and the digest of the newest manifest whose mesh
        CA its Envoy trusts, empty for none.
        """
        ...

    def gossip_ring(self) -> str:
        """Which gossip keys the agent has, as coordinators name them; empty when that is not certain."""
        ...

    def newest_envelope(self) -> str:
        """The signed envelope of the newest manifest that this CVM holds."""
        ...

    def why_not_enforced(self, epoch: int, digest: str, envelope: str) -> str | None:
        """Why a coordinator that enforces the manifest of that epoch and digest (hex), in that envelope where it was
        sent, is not to be used; None when it may be.
        """
        ...

    async def lead_on(self, epoch: int, ask: Ask) -> None:
        """Takes the manifests up to that of `epoch`, which a coordinator enforces, by the history that it shows when it
        is asked, where more than one are missing.
        """

    def successors_of(self, epoch: int) -> tuple[str, ...]:
        """The signed envelopes that lead from the manifest of `epoch` to the newest, as far as they are known."""
        ...

    def why_misplaced(self, peer_id: str, address: str, envelope: str) -> str | None:
        """Why an admission as `peer_id` at this mesh address is not to be used, None when the manifest has it so."""
        ...

    def not_admitted(self, reason: str) -> None:
        """Not admitted yet; or no longer, for the lease has lapsed and a coordinator refused to admit this CVM again.
        Not called while coordinators are merely away: what was admitted then goes on.
        """


class Admission:
    """Keeps this CVM admitted."""

    def __init__(
        self,
        brokers: Callable[[], tuple[Broker, ...]],
        guest: Guest,
        claim: Claim,
        listener: Listener,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep,
        rng: Random | None = None,
    ) -> None:
        self._brokers = brokers
        self._guest = guest
        self._claim = claim
        self._listener = listener
        self._clock = clock
        self._sleep = sleep
        self._rng = rng or Random()
        self._asked: tuple[Broker, ...] = ()
        """Those of the last time; of whom the manifest has dropped since, connections are open still."""
        self._lease: Secret | None = None
        self._secrets_epoch = 0
        self.agent_expires_at: int | None = None
        """Unix seconds: the end of the newest RPC certificate of our Consul agent. None before there is one."""
        self._first = 0
        self._wish = claim.wish
        self._lease_seconds = SLOT_LEASE_SECONDS
        self._admitted_until: float | None = None
        self._refusal = ""
        self._oddity = ""
        """What `_unforeseen` said last."""
        self._hurry = asyncio.Event()
        self.status = AdmissionStatus(state="waiting", reason="no coordinator was asked yet")

    async def run(self) -> None:
        """Admits, then renews; for ever. Ends only by cancellation."""
        while True:
            admitted, given = await self._admit()
            self._lease, self._secrets_epoch = admitted.lease, admitted.manifest_epoch
            # The slot of this boot: a re-admission claims the same one.
            self._wish = self._wish.admitted(admitted.peer_id)
            await self._listener.admitted(admitted, given)
            self._set_admitted(admitted.coordinator, admitted.lease_seconds)
            log.info(
                "admitted",
                extra={"peer_id": admitted.peer_id, "address": admitted.address, "coordinator": admitted.coordinator},
            )
            await self._renew(admitted.lease_seconds)

    async def release(self) -> None:
        """Gives the slot back, if there is one and a coordinator answers in time; closes the brokers."""
        lease, self._lease = self._lease, None
        try:
            if lease is not None:
                async with asyncio.timeout(RELEASE_SECONDS):
                    await self._any(lambda broker: broker.release(lease))
        except (TimeoutError, CoordinatorError, RefusedError) as error:
            log.warning("slot not released, its lease will lapse", extra={"reason": str(error) or "no answer in time"})
        finally:
            await self.close()

    def hurry(self) -> None:
        """There is something to say or to ask: the next renewal does not wait."""
        self._hurry.set()

    async def close(self) -> None:
        """Closes the brokers and keeps the slot: for a process that is started again at once."""
        for broker in {*self._asked, *self._brokers()}:
            await broker.close()

    async def _close_dropped(self) -> None:
        """Closes the brokers of coordinators that the newest manifest does not name any more."""
        before, self._asked = self._asked, self._brokers()
        for broker in before:
            if broker not in self._asked:
                await broker.close()

    async def _admit(self) -> tuple[Admitted, Given]:
        attempt = refusals = 0
        while True:
            await self._close_dropped()
            for broker in self._in_turn():
                self._note("attesting", "")
                try:
                    return await self._attest(broker)
                except RefusedError as error:
                    self._refused(broker, error)
                    if error.code.permanent:
                        # Its manifest may be newer than ours, which is asked for with the next connection.
                        await broker.close()
                        await self._pause(PERMANENT.delay(refusals, self._rng))
                        refusals += 1
                        break
                except (CoordinatorError, GuestError) as error:
                    log.warning("admission not possible yet", extra={"reason": str(error)})
                    self._note("waiting", str(error))
                except Exception as error:  # noqa: BLE001 -- the boundary: only that coordinator has failed
                    self._note("waiting", self._unforeseen(broker, error))
                self._tell()
                self._first += 1
            else:
                await self._pause(AGAIN.delay(attempt, self._rng))
                attempt += 1

    def _unforeseen(self, broker: Broker, error: Exception) -> str:
        """What is said of a coordinator that failed in a way that nobody foresaw. The log has the stack once, for
        whoever stands at a coordinator's name can cause it again and again.
        """
        said = f"{broker.url}: {error!r:.200}"
        if said != self._oddity:
            self._oddity = said
            log.error("a coordinator failed in a way that nobody foresaw", exc_info=error, extra={"reason": said})
        return said

    def _refused(self, broker: Broker, error: RefusedError) -> None:
        log.warning("admission refused", extra={"coordinator": broker.url, "reason": str(error)})
        evicted = None
        if error.code is Code.SLOT_TAKEN:
            self._wish = self._wish.taken(self._clock(), self._lease_seconds)
            evicted = self._wish.eviction(error.reason)
        reason = f"{broker.url}: {evicted or error}"
        if error.code is Code.SLOT_TAKEN or error.code.permanent:
            reason = "; ".join(part for part in (reason, self._wish.advice) if part)
            self._refusal = reason
        self._note("refused" if error.code.permanent or evicted else "waiting", reason)

    def _tell(self) -> None:
        """Tells the listener why this CVM is not admitted, if it is not."""
        if self._admitted_until is None:
            self._listener.not_admitted(self.status.reason)
        elif self._refusal and self._clock() >= self._admitted_until:
            self._listener.not_admitted(self._refusal)

    async def _pause(self, seconds: float) -> None:
        """Sleeps; a lease that lapses meanwhile is told at that moment."""
        self._tell()
        left = (self._admitted_until or 0.0) - self._clock()
        if self._refusal and 0 < left < seconds:
            await self._sleep(left)
            self._tell()
            seconds -= left
        await self._sleep(seconds)

    async def _attest(self, broker: Broker) -> tuple[Admitted, Given]:
        asked, challenge = await self._challenge(broker)
        self._see_clock(broker)
        if asked is not None and challenge.peer_id != asked:
            raise CoordinatorError(f"{broker.url} offers slot {challenge.peer_id!r}, asked was {asked!r}")
        claim = self._claim
        binding = make(
            cluster=claim.cluster,
            peer_id=challenge.peer_id,
            identities=claim.identities(),
            info=claim.info,
            boot=claim.keys.public,
            now=self._clock(),
        )
        quote = await self._guest.quote(report_data(binding, bytes.fromhex(challenge.nonce)))
        admitted = await broker.attest(
            AttestRequest(
                binding=binding.hex(),
                nonce=challenge.nonce,
                quote=quote.quote.hex(),
                event_log=quote.event_log,
                vm_config=quote.vm_config,
                proposed=asked is None,
                manifest=self._listener.newest_envelope(),
            )
        )
        if admitted.peer_id != challenge.peer_id:
            raise CoordinatorError(f"{broker.url} admits {admitted.peer_id!r}, attested was {challenge.peer_id!r}")
        if not admitted.gossip.keys:
            raise CoordinatorError(f"{broker.url} gives no gossip key, expected one or two")
        await self._level(broker, admitted.manifest_epoch)
        self._check_head(broker, admitted, admitted.envelope)
        misplaced = self._listener.why_misplaced(admitted.peer_id, admitted.address, admitted.envelope)
        if misplaced is not None:
            raise CoordinatorError(f"{broker.url} {misplaced}")
        self.agent_expires_at = self._agent_end(broker, admitted.certificate_pem)
        return admitted, self._given(broker, admitted, admitted.peer_id)

    def _given(self, broker: Broker, answer: Admitted | Renewed, peer_id: str) -> Given:
        """The certificate in `answer`; CoordinatorError when it is none for this CVM."""
        claim = self._claim
        expected = Expected(
            cluster=claim.cluster,
            group=claim.group,
            peer_id=peer_id,
            leaf_key=base64.b64decode(claim.keys.public.leaf),
            public_key=base64.b64decode(claim.keys.public.public),
        )
        try:
            return parse(
                digest=answer.manifest_digest,
                leaf_pem=answer.leaf_pem,
                authorities_pem=answer.authorities_pem,
                public_pems=answer.public_pems,
                all_trust=isinstance(answer, Renewed) and answer.all_trust,
                expected=expected,
                now=self._clock(),
            )
        except CertificateError as error:
            raise CoordinatorError(f"{broker.url} gives a certificate that cannot be used: {error}") from error

    def _agent_end(self, broker: Broker, pem: str) -> int:
        """Unix seconds at which the agent's certificate in `pem` ends; CoordinatorError when it is none for ours."""
        try:
            return agent_end(pem, base64.b64decode(self._claim.keys.public.tls), self._clock())
        except CertificateError as error:
            raise CoordinatorError(f"{broker.url} gives a certificate that cannot be used: {error}") from error

    async def _level(self, broker: Broker, epoch: int) -> None:
        """Has whoever is behind, of this CVM and a coordinator that enforces the manifest of `epoch`, led on by the
        other, one manifest after the other: a greater epoch alone may be of a fork.
        """
        await self._listener.lead_on(epoch, broker.ask)
        with contextlib.suppress(CoordinatorError, RefusedError):
            for envelope in self._listener.successors_of(epoch):
                await broker.bring(envelope)

    def _check_head(self, broker: Broker, answer: Admitted | Renewed, envelope: str = "") -> None:
        """CoordinatorError for a coordinator that enforces less than this CVM knows, or something else."""
        reason = self._listener.why_not_enforced(answer.manifest_epoch, answer.manifest_digest, envelope)
        if reason is not None:
            raise CoordinatorError(f"{broker.url}: {reason}")

    async def _challenge(self, broker: Broker) -> tuple[str | None, Challenge]:
        """The slot that was asked for, None for any, and the challenge."""
        try:
            return self._wish.peer_id, await self._ask(broker)
        except RefusedError as error:
            if error.code is not Code.ADMISSION_REJECTED or self._wish.gone().peer_id == self._wish.peer_id:
                raise
            # A challenge is rejected for what is asked for, before any evidence: the manifest lost the slot.
            log.warning("the slot is gone, asking for any of the group", extra={"reason": str(error)})
            self._wish = self._wish.dropped()
        return None, await self._ask(broker)

    async def _ask(self, broker: Broker) -> Challenge:
        claim = self._claim
        return await broker.challenge(
            ChallengeRequest(group=claim.group, instance_id=claim.info.instance_id, peer_id=self._wish.peer_id)
        )

    async def _renew(self, lease_seconds: float) -> None:
        """Returns when the lease is lost."""
        attempt = 0
        while True:
            # A third, so that two may be lost; sooner again after a failure, and while a new certificate is not shown.
            await self._rest(AGAIN.delay(attempt - 1, self._rng) if attempt else self._pace(lease_seconds))
            lease = self._lease
            if lease is None:
                return
            await self._close_dropped()
            try:
                broker, (renewed, given) = await self._any(lambda broker: self._renewed(broker, lease))  # noqa: B023 - called at once
            except RefusedError as error:
                log.warning("lease lost, attesting again", extra={"reason": str(error)})
                return
            except CoordinatorError as error:
                attempt += 1
                self._note("renewing", str(error))
                continue
            if attempt:
                log.info("lease renewed again", extra={"coordinator": broker.url})
            attempt, lease_seconds = 0, renewed.lease_seconds
            self._set_admitted(broker.url, lease_seconds)
            await self._listener.renewed(renewed, given)
            if renewed.secrets is not None:
                self._secrets_epoch = renewed.manifest_epoch

    async def _rest(self, seconds: float) -> None:
        """Sleeps so long, or until it is told to hurry."""
        async with TaskScope() as scope:
            ends = [scope.start("rest", self._sleep(seconds)), scope.start("hurry", self._hurry.wait())]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for task in ends:
                task.cancel()
        self._hurry.clear()

    def _pace(self, lease_seconds: float) -> float:
        certificate, trusts = self._listener.certificate()
        waits = certificate is not None and certificate.following is not None and trusts == certificate.digest
        return POLL_SECONDS if waits else lease_seconds / 3

    async def _renewed(self, broker: Broker, lease: Secret) -> tuple[Renewed, Given]:
        certificate, trusts = self._listener.certificate()
        newest = certificate.newest if certificate is not None else None
        held = Held(
            secrets_epoch=self._secrets_epoch,
            leaf_digest=newest.digest if newest is not None else "",
            leaf_expires_at=newest.expires_at if newest is not None else 0,
            trusts=trusts,
            gossip_ring=self._listener.gossip_ring(),
            agent_expires_at=self.agent_expires_at,
        )
        renewed = await broker.renew(lease, held)
        self._see_clock(broker)
        await self._level(broker, renewed.manifest_epoch)
        self._check_head(broker, renewed)
        given = self._given(broker, renewed, self._wish.held or "")
        if renewed.agent_pem is not None:
            self.agent_expires_at = self._agent_end(broker, renewed.agent_pem)
        return renewed, given

    async def _any(self, call: Callable[[Broker], Awaitable[T]]) -> tuple[Broker, T]:
        """The first answer of any coordinator. CoordinatorError when none can be used; RefusedError is final.

        Only LEASE_INVALID is a refusal here: with any other code a coordinator says that it cannot tell now.
        """
        reasons = []
        for broker in self._in_turn():
            try:
                return broker, await call(broker)
            except RefusedError as error:
                if error.code is Code.LEASE_INVALID:
                    raise
                reasons.append(f"{broker.url}: {error}")
            except CoordinatorError as error:
                reasons.append(str(error))
            except Exception as error:  # noqa: BLE001 -- as in `_admit`
                reasons.append(self._unforeseen(broker, error))
            self._first += 1
        raise CoordinatorError("; ".join(reasons))

    def _in_turn(self) -> tuple[Broker, ...]:
        """All brokers, beginning with the one that answered last."""
        brokers = self._brokers()
        start = self._first % len(brokers)
        return brokers[start:] + brokers[:start]

    def _note(self, state: State, reason: str) -> None:
        self.status = AdmissionStatus(
            state=state,
            coordinator=self.status.coordinator,
            lease_seconds=self.status.lease_seconds,
            expires_at=self.status.expires_at,
            reason=reason,
            skew=self.status.skew,
        )

    def _set_admitted(self, coordinator: str, lease_seconds: float) -> None:
        self._lease_seconds, self._refusal = lease_seconds, ""
        self._admitted_until = self._clock() + lease_seconds
        self.status = AdmissionStatus(
            state="admitted",
            coordinator=coordinator,
            lease_seconds=lease_seconds,
            expires_at=self._clock() + lease_seconds,
            skew=self.status.skew,
        )

    def _see_clock(self, broker: Broker) -> None:
        """Notes what `broker` has shown of this CVM's clock. Said when it becomes a problem, and when it is none."""
        before, now = self.status.skew, broker.skew
        problem = now.problem if now is not None else ""
        if bool(problem) != (before is not None and bool(before.problem)):
            if problem:
                log.warning("the clock is off", extra={"coordinator": broker.url, "reason": problem})
            else:
                log.info("the clock agrees again", extra={"coordinator": broker.url})
        self.status = replace(self.status, skew=now)
