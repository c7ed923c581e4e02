"""How coordinators of a new app take a mesh over from the former ones. IO: their API, our records.

Before a coordinator with new records goes by the manifest that hands the mesh over, it brings that one to the former
coordinators, which go by it from then on, attests to them as it says, and writes what they hand out into its own
records. Only once those are complete the coordinator goes on, and admits CVMs. Whatever happens before, all of it is
done again: the same is written once more. The key that is written last (`inheritance.INHERITANCE_KEY`) ends it for all
coordinators of the app at once: what one of them still has to write is refused by Consul.

Whom it asks is verified by the manifest before the handover, which the former coordinators show, and whose digest the
owners signed with the new one. So nobody else's word comes in here; and a former coordinator can withhold what it has,
and grant nothing.
"""

from __future__ import annotations

import base64
import json
import logging
import secrets
from collections.abc import Callable

from admission.broker import Broker, decode
from admission.client import CoordinatorError, Greeting, RefusedError
from admission.offers import HISTORY, Ask
from admission.protocol import (
    ESTATE,
    RECORDS_KEY,
    ChallengeRequest,
    Code,
    EstatePage,
    EstateRequest,
    ManifestHistory,
)
from admission.trust import check_with, nothing
from coordinator import inheritance
from coordinator.governance import stored_manifest
from coordinator.inheritance import INHERITANCE_KEY, InheritanceError
from coordinator.keys import ClusterKeys, Inherited
from coordinator.ledger import BEGAN_KEY
from coordinator.refusal import RefusalError
from coordinator.siblings import TIMEOUT, Own, attest
from evidence.verify import EvidenceVerifier
from runtime.consul import ConsulClient, ConsulError
from runtime.guest import GuestAgent, GuestError
from runtime.secret import Secret
from topology.envelope import Signed, digest_of, open_envelope
from topology.handover import Handover
from topology.manifest import COORDINATORS
from topology.trees import ManifestError, from_tree

log = logging.getLogger(__name__)

MAX_STEPS = 32
"""Manifests between the one that we go by and the last one of the former app: an owner may have signed some more until
the mesh was taken over."""
MAX_ESTATE = 64 << 20
"""Characters of keys and values that are taken over, and ENTRY for each: a hundred times what the records of 1,000 CVMs
have."""
ENTRY = 64
"""So that entries without a value have an end, too: at a million."""
_REFUSES = frozenset({Code.MANIFEST_STALE, Code.MANIFEST_REFUSED, Code.MANIFEST_NOT_SIGNED})
"""How a former coordinator says that it will not go by our manifest."""
_FORESEEN = (RefusedError, CoordinatorError, GuestError, InheritanceError, ManifestError)


class Heir:
    """A coordinator that may have something to take over."""

    def __init__(
        self,
        consul: ConsulClient,
        own: Own,
        *,
        guest: GuestAgent,
        verifier: EvidenceVerifier,
        keys: ClusterKeys,
        use: Callable[[Inherited], None],
        unix: Callable[[], float],
    ) -> None:
        """`use` is called with what comes from the former coordinators; `unix` gives Unix seconds."""
        self._consul, self._own, self._guest, self._verifier = consul, own, guest, verifier
        self._keys, self._use, self._unix = keys, use, unix
        self.reason = ""
        """What is waited for; empty: nothing."""

    async def take(self, signed: Signed) -> None:
        """Returns when these records have whatever the manifest `signed` lets them take over. RefusalError, ConsulError
        when that is not so now.
        """
        _, entries = await self._consul.get(f"/v1/kv/{INHERITANCE_KEY}", params={"consistent": ""})
        if entries:
            try:
                self._use(inheritance.unseal(base64.b64decode(entries[0]["Value"] or ""), self._keys.inheritance_key))
            except InheritanceError as error:
                raise self._waits(str(error)) from error
            self.reason = ""
            return
        handover = signed.manifest.coordinators.handover
        # Records that have begun are this app's own: nothing is to be written over them.
        if handover is None or (await stored_manifest(self._consul)).envelope is not None:
            self.reason = ""
            return
        if self._unix() >= handover.until:
            raise self._waits(
                "the time to take the mesh over ended before it was done; sign a manifest with a later "
                "coordinators.handover.until"
            )
        self._use(await self._from_any(signed, handover))
        self.reason = ""

    def _waits(self, reason: str) -> RefusalError:
        self.reason = f"takes the mesh over: {reason}"
        return RefusalError(Code.NOT_READY, self.reason)

    async def _from_any(self, signed: Signed, handover: Handover) -> Inherited:
        """What the first former coordinator has that answers, written into our records."""
        reasons = []
        for url in handover.urls:
            try:
                return await self._from(url, signed, handover)
            except _FORESEEN as error:
                reasons.append(f"{url}: {error}")
        raise self._waits("; ".join(reasons))

    async def _from(self, url: str, signed: Signed, handover: Handover) -> Inherited:
        async def judge(greeting: Greeting) -> Signed:
            return await former(greeting.ask, signed, handover.from_app_id)

        broker = Broker(url, check_with(self._verifier, judge, nothing, self._unix), seconds=TIMEOUT)
        try:
            try:
                await broker.bring(signed.envelope)
            except RefusedError as error:
                # One that goes by it already enforces nothing, and says so.
                if error.code in _REFUSES:
                    raise
            own = self._own
            asked = ChallengeRequest(group=COORDINATORS, instance_id=own.info.instance_id, peer_id=own.peer_id)
            nonce = (await broker.challenge(asked)).nonce
            lease = (await attest(broker, self._guest, own, signed, nonce, self._unix())).lease
            found = await self._read(broker, lease, handover.until)
        finally:
            await broker.close()
        return found

    async def _read(self, broker: Broker, lease: Secret, until: int) -> Inherited:
        after, room = "", MAX_ESTATE
        while True:
            page = await _ask(broker, EstateRequest(lease=lease.reveal(), after=after))
            keys = [entry.key for entry in page.entries]
            if keys != sorted(set(keys)) or (keys and keys[0] <= after) or (page.more and not keys):
                raise InheritanceError("the pages of the estate do not follow one another")
            room -= sum(len(entry.key) + len(entry.value) + ENTRY for entry in page.entries)
            if room < 0:
                raise InheritanceError(f"the estate has more than {MAX_ESTATE} characters")
            for body in inheritance.transactions(inheritance.writes(page.entries, self._unix())):
                await self._write(body)
            log.info("records taken over", extra={"entries": len(keys), "more": page.more})
            if not page.more:
                break
            after = keys[-1]
        found = inheritance.inherited(page, until)
        await self._finish(found)
        try:
            await _ask(broker, EstateRequest(lease=lease.reveal(), done=True))
        except _FORESEEN as error:
            # It ends with `until` for those, too.
            log.warning("the former coordinators do not know that it is done", extra={"reason": str(error)})
        return found

    async def _finish(self, found: Inherited) -> None:
        """The last write: from here on these records are the mesh's, and CVMs that run come before newcomers."""
        sealed = inheritance.seal(found, self._keys.inheritance_key, secrets.token_bytes(12))
        ends = [
            inheritance.Write(key=BEGAN_KEY, value=_b64(json.dumps(self._unix()).encode())),
            inheritance.Write(key=RECORDS_KEY, value=_b64(secrets.token_hex(16).encode())),
            inheritance.Write(key=INHERITANCE_KEY, value=_b64(sealed)),
        ]
        for body in inheritance.transactions(ends):
            await self._write(body)
        log.warning("the mesh was taken over", extra={"secrets": len(found.secrets)})

    async def _write(self, body: list[dict[str, object]]) -> None:
        try:
            await self._consul.put("/v1/txn", body)
        except ConsulError as error:
            if error.status != 409:
                raise
            raise self._waits("another coordinator was faster") from error


async def former(ask: Ask, signed: Signed, app_id: str) -> Signed:
    """The last manifest of the coordinators' app `app_id` before `signed`, of the history that `ask` shows: each one
    names the digest of the one before, so what the owners signed vouches for it. CoordinatorError.
    """
    wanted, epoch = signed.manifest.previous, signed.manifest.epoch - 1
    for _ in range(MAX_STEPS):
        if wanted is None:
            break
        try:
            page: ManifestHistory = from_tree(ManifestHistory, await ask(f"{HISTORY}?after={epoch - 1}"), "history")
            envelope = next((it.envelope for it in page.manifests if digest_of(it.envelope) == wanted), None)
            found = open_envelope(envelope, None) if envelope is not None else None
        except (ManifestError, RefusedError) as error:
            raise CoordinatorError(f"its history cannot be read: {error}") from error
        if found is None:
            raise CoordinatorError(f"its history lacks the manifest of epoch {epoch}, which {signed.name} follows")
        if found.manifest.coordinators.app_id == app_id:
            return found
        wanted, epoch = found.manifest.previous, epoch - 1
    raise CoordinatorError(f"no manifest before {signed.name} is of the coordinators' app {app_id}")


async def _ask(broker: Broker, request: EstateRequest) -> EstatePage:
    body = {"lease": request.lease, "after": request.after, "done": request.done}
    page: EstatePage = decode(EstatePage, await broker.post(ESTATE, body))
    return page


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
