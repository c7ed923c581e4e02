"""The coordinator's work on Consul once it has a leader: carry out the manifest, watch the records, free what is
abandoned.

Long because whatever brings a manifest ends here: all of it writes the same key and changes the same head.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, Protocol

from admission.protocol import (
    DOCUMENTS_PREFIX,
    MANIFEST_KEY,
    PEERS_PREFIX,
    Code,
    ManifestHead,
    ManifestHistory,
    MeshPeer,
)
from coordinator import governance, proposal
from coordinator.broker import why_not_allowed
from coordinator.chronicle import Chronicle
from coordinator.documents import Documents, judge
from coordinator.estate import TAKEN_KEY
from coordinator.governance import StandoffError
from coordinator.head import Head
from coordinator.ledger import Ledger
from coordinator.refusal import RefusalError
from coordinator.server_process import ServerProcess
from coordinator.slots import Holder, lapsed
from coordinator.tokens import LEDGER_PREFIX
from runtime.backoff import Backoff
from runtime.consul import ConsulError, reading
from runtime.log import BY_STRANGERS
from runtime.tasks import TaskScope
from topology.envelope import Signed
from topology.manifest import Manifest
from topology.owners import Owners
from topology.succession import SuccessionError

log = logging.getLogger(__name__)

RETRY = Backoff(base=0.1, cap=5.0)
LEADER_SECONDS = 0.01
"""Between two looks for a leader: on loopback, and only while there is none."""
CONFIRM_SECONDS = 5.0
"""For the records' answer on what is in force: an election takes about 2 s."""
SETTLE_SECONDS = 0.05
SWEEP_SECONDS = 1.0
"""How often lapsed holders are looked for."""
ENFORCE_SECONDS = 15.0
"""How often all holders are held against the manifest, beside each new one's first time: for an admission that was
under way when it came, and for a slot that could not be freed."""
SERF_FILTER = 'CheckID == "serfHealth"'


class Forming(Protocol):
    """What is asked of `coordinator.formation`."""

    @property
    def leaderless(self) -> bool:
        """This coordinator has records, and nobody leads them."""
        ...

    def take_word(self) -> None:
        """The owners have said who is lost, by the manifest that is enforced now."""


class Inheriting(Protocol):
    """What is asked of `coordinator.heir`."""

    async def take(self, signed: Signed) -> None:
        """Returns when the records have whatever that manifest lets them take over. RefusalError, ConsulError."""


class Rotation(Protocol):
    """What is asked of `coordinator.rotator`."""

    async def begin(self) -> None:
        """Has a record of which gossip key there is, and goes by it. ConsulError."""


class Records:
    """`head` is what is enforced; `owners` are those of the measured compose file."""

    def __init__(
        self,
        consul: ServerProcess,
        ledger: Ledger,
        *,
        own: MeshPeer,
        owners: Owners | None,
        head: Head,
        chronicle: Chronicle,
        documents: Documents,
    ) -> None:
        self._consul, self._client, self._ledger = consul, consul.client, ledger
        self._own, self._owners, self._head, self._chronicle = own, owners, head, chronicle
        self._documents = documents
        self.forming: Forming | None = None
        """Set before `run`, as the next."""
        self.rotation: Rotation | None = None
        self.heir: Inheriting | None = None
        self._rng = Random()
        self._adopted = asyncio.Event()
        self._swept = asyncio.Event()
        self._behind = asyncio.Event()
        self._strained = asyncio.Lock()

    async def run(self, ready: Callable[[], None]) -> None:
        """Calls `ready` when workloads can be admitted; then watches until cancelled."""
        await self._begin()
        async with TaskScope() as scope:
            slots, peers = f"/v1/kv/{LEDGER_PREFIX}", f"/v1/kv/{PEERS_PREFIX}"
            scope.start("watch slots", self._watch(slots, {"recurse": ""}, self._ledger.take_records))
            scope.start("watch peers", self._watch(peers, {"recurse": ""}, self._ledger.take_peers))
            scope.start(
                "watch nodes", self._watch("/v1/health/state/any", {"filter": SERF_FILTER}, self._ledger.take_nodes)
            )
            scope.start("watch manifest", self._watch(f"/v1/kv/{MANIFEST_KEY}", {}, self._take_manifest))
            scope.start(
                "watch documents", self._watch(f"/v1/kv/{DOCUMENTS_PREFIX}", {"recurse": ""}, self._documents.take)
            )
            scope.start("carry out manifests", self._carry_out())
            scope.start("sweep", self._sweep())
            scope.start("catch up", self._catch_up())
            ready()

    async def _begin(self) -> None:
        attempt = 0
        while True:
            try:
                if await self._consul.leader():
                    if self.heir is not None and self._head.misfit is None:
                        # First: what is written before it would pass for records of its own.
                        await self.heir.take(self._head.signed)
                    if await self._settle():
                        await governance.establish(self._client, self._head.manifest)
                        await governance.publish_peer(self._client, self._own)
                        await self._ledger.refresh()
                        await self._ledger.begin()
                        if self.rotation is not None:
                            await self.rotation.begin()
                        return
                    attempt += 1
            except (ConsulError, RefusalError) as error:
                log.warning("records not ready", extra={"reason": str(error)})
                attempt += 1
            pause = RETRY.delay(attempt, self._rng) if attempt else LEADER_SECONDS
            await asyncio.sleep(SWEEP_SECONDS if self.leaderless or self._head.dismissed else pause)

    async def _settle(self) -> bool:
        """Finds the manifest that counts; False while this coordinator must not enforce it, and writes nothing then."""
        head = self._head
        await self._chronicle.gather()
        history = self._chronicle.history
        head.hold_back(history.unreadable_epoch, history.unreadable)
        for kept in history.chain:
            if kept.manifest.epoch > head.manifest.epoch:
                head.take(kept.envelope, time.time())
        try:
            stored = await governance.stored_manifest(self._client)
            counts = governance.weigh(stored.envelope, head.signed, self._owners, history.chain)
            head.adopt(counts, stored.adopted_at)
            if stored.envelope == head.signed.envelope:
                head.agree()
            if head.misfit is not None:
                return False
            counts, adopted_at = await self._publish(head.signed, time.time())
            head.adopt(counts, adopted_at)
        except StandoffError as error:
            head.stand_off(str(error))
            return False
        head.settle(adopted_at)
        return head.hindrance is None

    async def _publish(self, signed: Signed, now: float) -> tuple[Signed, float]:
        """As `governance.publish_manifest`."""
        return await governance.publish_manifest(self._client, signed, self._owners, now, self._chronicle.history.chain)

    async def _watch(self, path: str, params: dict[str, str], take: Callable[[int, Any], None]) -> None:
        index, attempt = 0, 0
        while True:
            try:
                index, tree = await self._client.get(path, index=index, params=params)
                with reading(path):
                    take(index, tree)
                attempt = 0
                # The first change is taken at once; what follows it closely is taken together, as each answer brings
                # all entries. Own admissions do not wait for this.
                await asyncio.sleep(SETTLE_SECONDS)
            except ConsulError as error:
                # Said once: the server of a coordinator that was dropped has left for good.
                level = logging.WARNING if attempt == 0 else logging.DEBUG
                log.log(level, "watch interrupted", extra={"path": path, "reason": str(error)})
                await asyncio.sleep(RETRY.delay(attempt, self._rng))
                index, attempt = 0, attempt + 1

    def _take_manifest(self, _: int, entries: Any) -> None:
        # By our own clock, for we saw it come: what the records say is for who was away.
        self._follow(governance.held(entries).envelope, time.time())

    async def offered(self, envelope: str, allows: Callable[[Manifest], bool]) -> None:
        """Takes the manifest that a CVM brings, when it is newer, into the records and then as what is enforced.
        RefusalError when that is not possible now.

        `allows` says whether a manifest allows that CVM: one that neither the manifest in force does nor the one that
        it brings is no CVM of this mesh. What cannot be read stops nothing unless the manifest in force allows who
        brings it: owners sign by mistake, too, and what `set` refused is in the hands of whoever has seen it.
        """
        head = self._head
        if not head.settled and head.dismissed is None:
            return
        try:
            found = head.brought(envelope)
            if found is not None and not (allows(found.manifest) or allows(head.manifest)):
                return
            now = time.time()
            if found is not None and head.dismissed is None:
                # One that had to leave has no records to write into: it goes by what the owners signed.
                found, _ = await governance.publish_manifest(
                    self._client, found, self._owners, now, self._chronicle.history.chain
                )
        except SuccessionError as error:
            # Anyone may bring anything, so only what the owners signed is worth a word.
            if allows(head.manifest):
                head.cannot_read(envelope, error)
        except StandoffError as error:
            log.warning("manifest of a CVM not taken", extra={**BY_STRANGERS, "reason": str(error)})
        except ConsulError as error:
            raise RefusalError(Code.NOT_READY, f"the newer manifest cannot be written yet: {error}") from error
        else:
            self._follow(None if found is None else found.envelope, now)

    async def confirm(self) -> None:
        """Has a majority of the servers confirm that what is enforced here is what the records have, and follows them
        where they have a newer one. RefusalError: one that is cut off may be behind, for as long as its host likes.
        """
        try:
            async with asyncio.timeout(CONFIRM_SECONDS):
                stored = await governance.stored_manifest(self._client)
        except (ConsulError, TimeoutError) as error:
            reason = f"the records do not confirm which manifest is in force: {str(error) or 'no answer in time'}"
            raise RefusalError(Code.NOT_READY, reason) from error
        self._follow(stored.envelope, time.time())
        if not self._head.is_in(stored.envelope):
            raise RefusalError(Code.NOT_READY, "the records have another manifest than this coordinator enforces")

    def shown(self) -> ManifestHead:
        """The manifest in force."""
        return proposal.shown(self._head.signed)

    async def propose(self, envelope: str, documents: Mapping[str, str]) -> ManifestHead:
        """Sets the manifest that an owner brings: into the records, and then as what is enforced; and keeps
        `documents`, which are texts of its compose hashes. The manifest in force afterwards, which is that one.
        RefusalError; with MANIFEST_STALE, what is in force instead.
        """
        if documents and self.leaderless:
            raise RefusalError(Code.NOT_READY, "nobody leads the records; documents are taken later")
        async with self._strained:
            began = time.perf_counter()
        try:
            shown = await self._propose(envelope, documents)
        except RefusalError as refusal:
            if refusal.code is Code.MANIFEST_NOT_SIGNED:
                await self._rest(time.perf_counter() - began)
            raise
        try:
            await self._documents.keep(documents, self._head.manifest)
        except ConsulError as error:
            reason = f"the manifest is in force, its documents cannot be written now: {error}"
            raise RefusalError(Code.NOT_READY, reason) from error
        return shown

    async def _rest(self, seconds: float) -> None:
        """Has whoever brings a manifest wait for as long as it took to see that nobody signed one: what strangers bring
        takes half of this coordinator's time at most, and admissions have the rest.
        """
        async with self._strained:
            await asyncio.sleep(seconds)

    async def _propose(self, envelope: str, documents: Mapping[str, str]) -> ManifestHead:
        """`documents` are judged after the signatures, for a stranger's manifest is not read, and before it is set."""
        head = self._head
        if self.leaderless:
            return self._propose_alone(envelope)
        if (lacked := self._chronicle.lacked(envelope)) is not None:
            judge(documents, lacked.manifest)
            if await self._chronicle.fill(lacked):
                self._adopted.set()
                return self.shown()
        try:
            found = head.proposed(envelope)
            judge(documents, (found or head.signed).manifest)
            if found is None:
                return self.shown()
        except RefusalError as refusal:
            # Another coordinator may have taken what comes before it a moment ago. Anything else costs Consul nothing.
            if refusal.code is not Code.MANIFEST_STALE:
                raise
        now = time.time()
        try:
            stored = await governance.stored_manifest(self._client)
            self._follow(stored.envelope, now)
            found = head.proposed(envelope)
            judge(documents, (found or head.signed).manifest)
            await self._check_may_set(new=found is not None)
            if found is None:
                return self.shown()
            counts, _ = await governance.publish_manifest(
                self._client, found, self._owners, now, self._chronicle.history.chain
            )
        except StandoffError as error:
            raise proposal.stale(head.signed, str(error)) from error
        except ConsulError as error:
            raise RefusalError(Code.NOT_READY, f"the manifest cannot be written now: {error}") from error
        self._follow(counts.envelope, now)
        if counts.digest != found.digest:
            raise proposal.stale(head.signed, f"{counts.name} was set before {found.name}")
        return self.shown()

    async def _check_may_set(self, *, new: bool) -> None:
        """RefusalError where no manifest is set here now; or no `new` one, for other coordinators have the mesh: until
        then its owners may take a handover back, or lead it elsewhere. ConsulError.
        """
        if not self._head.handed_over:
            if (hindrance := self._head.hindrance) is not None:
                raise RefusalError(Code.NOT_READY, hindrance)
            return
        _, entries = await self._client.get(f"/v1/kv/{TAKEN_KEY}", params={"consistent": ""})
        if entries and new:
            raise RefusalError(
                Code.MANIFEST_REFUSED,
                "other coordinators have taken the mesh over: set it on those that the manifest in force names",
            )

    @property
    def handed_over(self) -> bool:
        """Whether the manifest gives the mesh to coordinators of another app."""
        return self._head.handed_over

    @property
    def leaderless(self) -> bool:
        """Whether only the owners can say how the records here go on."""
        return self.forming is not None and self.forming.leaderless and self._head.hindrance is None

    def _propose_alone(self, envelope: str) -> ManifestHead:
        """Takes the manifest that an owner brings while nobody leads the records: one that drops coordinators that are
        lost. The records have it once they go on. RefusalError.
        """
        assert self.forming is not None
        found = self._head.proposed(envelope)
        if found is not None:
            before, after = (
                {(peer.peer_id, peer.address) for peer in it.coordinators.peers}
                for it in (self._head.manifest, found.manifest)
            )
            if before <= after:
                raise RefusalError(
                    Code.NOT_READY, "nobody leads the records; a manifest is taken only if it drops coordinators"
                )
            self._head.adopt(found, time.time())
        log.warning("the owners say who is lost", extra={"manifest": self._head.signed.name})
        self.forming.take_word()
        return self.shown()

    def history(self, after: int) -> ManifestHistory:
        """The manifests that led to the one in force, from epoch `after` on."""
        return self._chronicle.page(after)

    def sibling_enforces(self, envelope: str) -> None:
        """Follows what another coordinator showed as what it enforces."""
        self._follow(envelope, time.time())
        if self._head.signed.envelope == envelope:
            self._head.agree()

    def _follow(self, envelope: str | None, now: float) -> None:
        """Enforces the manifest in `envelope` from `now` (Unix seconds) on, when it is newer, and carries it out: the
        one way for what the records or a sibling have.
        """
        if envelope is not None and self._head.take(envelope, now):
            self._adopted.set()
            self._swept.set()
        elif self._head.behind:
            self._behind.set()

    async def _catch_up(self) -> None:
        """Takes the manifests in between when the records show one that does not follow directly: two were set in a
        moment. Who set the later one has the former in its history, and puts that into the records right after.
        """
        attempt = 0
        while True:
            await self._behind.wait()
            self._behind.clear()
            try:
                await self._chronicle.gather()
                for kept in self._chronicle.history.chain:
                    if kept.manifest.epoch > self._head.manifest.epoch:
                        self._follow(kept.envelope, time.time())
                self._follow((await governance.stored_manifest(self._client)).envelope, time.time())
            except ConsulError as error:
                log.warning("the manifests in between are not read yet", extra={"reason": str(error)})
                self._behind.set()
            attempt = attempt + 1 if self._behind.is_set() else 0
            if attempt:
                await asyncio.sleep(RETRY.delay(attempt - 1, self._rng))

    async def _carry_out(self) -> None:
        attempt = 0
        # What a coordinator that was killed has not done is done now.
        self._adopted.set()
        while True:
            await self._adopted.wait()
            self._adopted.clear()
            if self._head.hindrance is not None:
                continue
            try:
                await governance.establish(self._client, self._head.manifest)
                await self._chronicle.spread()
                await self._documents.forget(self._head.manifest)
                attempt = 0
            except ConsulError as error:
                log.warning("manifest not carried out yet", extra={"reason": str(error)})
                self._adopted.set()
                await asyncio.sleep(RETRY.delay(attempt, self._rng))
                attempt += 1

    async def _sweep(self) -> None:
        """Frees the slots of holders that are gone, and of those that the manifest no longer allows: a CVM that means
        ill does not come to renew, and its agent may live for ever.
        """
        enforced, enforce_at = self._head.manifest, 0.0
        while True:
            # At once when a manifest comes: who it no longer allows is to have nothing any more.
            self._swept.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_SECONDS):
                    await self._swept.wait()
            if self._head.hindrance is not None:
                continue
            now, manifest = time.time(), self._head.manifest
            enforce = manifest is not enforced or now >= enforce_at
            if enforce:
                enforced, enforce_at = manifest, now + ENFORCE_SECONDS
                await self._complete()
            await self._forget()
            for holder in self._ledger.doubled():
                await self._free(holder, "another peer had its WireGuard key before")
            for holder in tuple(self._ledger.slots.values()):
                if lapsed(holder, self._ledger.nodes.get(holder.peer_id), now):
                    await self._free(holder, "lease lapsed")
                elif enforce and (reason := why_not_allowed(manifest, holder)) is not None:
                    await self._free(holder, reason)

    async def _complete(self) -> None:
        """Looks for what the history lacks: another coordinator may have put it into the KV."""
        if self._chronicle.history.missing or self._chronicle.history.unproven:
            try:
                await self._chronicle.gather()
            except ConsulError as error:
                log.warning("the history is not complete yet", extra={"reason": str(error)})

    async def _forget(self) -> None:
        """Removes what nobody needs any more."""
        try:
            await self._ledger.forget_newcomers()
            await self._ledger.forget_instances()
        except (RefusalError, ConsulError) as error:
            log.warning("records of nobody not removed yet", extra={"reason": str(error)})

    async def _free(self, holder: Holder, reason: str) -> None:
        try:
            await self._ledger.free(holder, reason)
        except (RefusalError, ConsulError) as error:
            log.warning("slot not freed yet", extra={"peer_id": holder.peer_id, "reason": str(error)})
