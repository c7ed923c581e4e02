"""A broker without Consul and without a TEE, for tests of the order in which it does things."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from admission.protocol import Admission, AttestRequest, ChallengeRequest, MeshPeer
from coordinator.broker import Broker, Clocks, Rules
from coordinator.feed import Feed
from coordinator.head import Head
from coordinator.keys import derive
from coordinator.refusal import RefusalError
from coordinator.registry import Registry
from coordinator.slots import Holder, Node, Taken, claim
from evidence.errors import EvidenceError
from evidence.verify import Evidence
from runtime.guest import GuestInfo
from runtime.secret import Secret
from tests.coordinator.world import COORDINATOR_COMPOSE, OWNER, Applicant, cvm, encode, make_manifest
from tests.topology.support import opened
from topology.envelope import Signed
from topology.manifest import Manifest

FIRST = opened(make_manifest(), OWNER)
Offered = Callable[[str, Callable[[Manifest], bool]], Any]


class Tee:
    """Takes the quote for whatever the CVM `who` would show, once `gate` is open; or none."""

    def __init__(self, applicant: Applicant) -> None:
        self.who = applicant.who
        self.genuine = True
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def verify(self, **_: object) -> Evidence:
        """See `evidence.verify.EvidenceVerifier`."""
        self.asked.set()
        await self.gate.wait()
        if not self.genuine:
            raise EvidenceError("QUOTE_INVALID", "it is no quote")
        reference = FIRST.manifest.references[0]
        image = reference.os_images[0]
        return Evidence(
            app_id=self.who.app_id,
            instance_id=self.who.instance_id,
            compose_hash=self.who.compose_hash,
            os_image_hash=None,
            key_provider_name=reference.key_provider.name,
            key_provider_id=reference.key_provider.id.lower(),
            mrtd=image.mrtd,
            rtmr0=image.rtmr0,
            rtmr1=image.rtmr1,
            rtmr2=image.rtmr2,
            rtmr3="",
            report_data=b"",
            tcb_status="UpToDate",
            advisory_ids=(),
            evaluation_data_number=17,
            device="ab" * 16,
            development_root=True,
        )


class Book:
    """The records, in memory."""

    complete = True

    def __init__(self, registry: Registry) -> None:
        self.slots: dict[str, Holder] = {}
        self.nodes: Mapping[str, Node] = {}
        self.freed: list[str] = []
        self.issued: list[str] = []
        self.taken: Callable[[], None] = lambda: None
        """Called when a slot was taken."""
        self._registry = registry

    async def take(self, wanted: Holder, peer: MeshPeer) -> None:
        """See `coordinator.ledger`. So the next ones."""
        decision = claim(self.slots, wanted, self.nodes)
        assert not isinstance(decision, Taken)
        self.slots[wanted.peer_id] = decision
        self._registry.put(peer)
        self.taken()

    async def issue(self, bodies: Iterable[Mapping[str, object]]) -> None:
        self.issued += [str(body["AccessorID"]) for body in bodies]

    async def confirm(self, holder: Holder) -> None:
        assert self.slots[holder.peer_id].boot_key == holder.boot_key

    async def free(self, holder: Holder, reason: str) -> bool:
        self.slots.pop(holder.peer_id)
        self._registry.remove(holder.peer_id)
        self.freed.append(reason)
        return True


class Alone:
    """A coordinator of FIRST that `applicant` asks."""

    def __init__(self, offered: Offered, applicant: Applicant | None = None) -> None:
        self.applicant = applicant or Applicant(url="", manifest=FIRST.manifest)
        self.tee = Tee(self.applicant)
        self.registry = Registry(lambda: None)
        self.book = Book(self.registry)
        self.broker = Broker(
            rules=Rules(signed=FIRST, adopted_at=0.0),
            verifier=self.tee,
            keys=derive(Secret("11" * 32), "tests"),
            ledger=self.book,  # type: ignore[arg-type]
            registry=self.registry,
            feed=Feed(1, lambda: 0.0),
            clocks=Clocks(unix=time.time, monotonic=time.monotonic),
            random=os.urandom,
            offered=offered,
        )
        self.broker.not_ready = None

    async def attest(self, manifest: str = "", peer_id: str | None = None) -> Admission:
        """Challenge and attestation. RefusalError."""
        who = self.applicant
        asked = ChallengeRequest(group=who.group, instance_id=who.who.instance_id, peer_id=peer_id)
        challenge = self.broker.challenge(asked)
        return await self.broker.attest(
            AttestRequest(
                binding=encode(who.binding(challenge.peer_id)).hex(),
                nonce=challenge.nonce,
                quote="00",
                event_log="[]",
                manifest=manifest,
            )
        )

    async def refused(self, manifest: str = "") -> str:
        """Attests, and gives the name of the code that refuses it; empty where it is admitted."""
        try:
            await self.attest(manifest)
        except RefusalError as error:
            return error.code.name
        return ""


def head(signed: Signed = FIRST) -> Head:
    """One whose records agree."""
    who = cvm(COORDINATOR_COMPOSE, "coordinator-0")
    address = FIRST.manifest.coordinators.peers[0].address
    own = MeshPeer(peer_id="coordinator-0", public_key="", address=address, kind="coordinator")
    info = GuestInfo(app_id=who.app_id, instance_id=who.instance_id, compose_hash=who.compose_hash)
    found = Head(signed, info, own, check_signatures=True, keep=lambda _: None, changed=lambda: None)
    found.settle(0.0)
    return found
