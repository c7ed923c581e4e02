"""A CVM and a second coordinator that enforces an older manifest: real coordinators, real evidence."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from admission.broker import Admitted, Broker, Renewed
from admission.offers import Ask, successors
from admission.protocol import MANIFEST_KEY
from admission.trust import by, coordinator_check, nothing
from lab.agent import GuestAgentServer
from runtime.guest import GuestAgent
from runtime.tasks import TaskScope
from sidecar import identity, sources
from sidecar.admission import Admission, Claim
from sidecar.certificate_reading import Given
from sidecar.desired import World
from sidecar.slot import Wish
from tests.coordinator.setting import put
from tests.coordinator.world import API_COMPOSE, TEE, Cluster, cluster, cvm
from tests.coordinator.world import OWNER as FIRST_OWNER
from tests.support import eventually
from tests.topology.support import after, opened
from topology.envelope import Signed
from topology.owners import Owners, key_of

SECOND_OWNER = Ed25519PrivateKey.from_private_bytes(bytes(32))


class Cvm:
    """What a sidecar knows and was given."""

    def __init__(self, signed: Signed) -> None:
        self.world = World(signed=signed, own=signed.manifest.groups["api"], group="api")
        self.taken: list[Admitted] = []
        self.told: list[str] = []

    def newest_envelope(self) -> str:
        """The world's."""
        return self.world.signed.envelope

    async def lead_on(self, epoch: int, ask: Ask) -> None:
        """As the sidecar does."""
        if epoch > self.world.manifest.epoch + 1:
            async for each in successors(ask, self.world.signed, self.world.manifest.owners):
                self.world = sources.adopt(self.world, each)

    def successors_of(self, epoch: int) -> tuple[str, ...]:
        """As the sidecar has them."""
        return sources.after(self.world, epoch)

    def why_not_enforced(self, epoch: int, digest: str, envelope: str) -> str | None:
        """As the sidecar judges."""
        return sources.why_not_enforced(self.world, epoch, digest, envelope, check_signatures=True)

    def why_misplaced(self, peer_id: str, address: str, envelope: str) -> str | None:
        """As the sidecar judges."""
        return sources.why_misplaced(self.world, peer_id, address, envelope, check_signatures=True)

    def gossip_ring(self) -> str:
        """None."""
        return ""

    def certificate(self) -> tuple[None, str]:
        """None."""
        return None, ""

    async def admitted(self, admitted: Admitted, _given: Given) -> None:
        """Keeps it."""
        self.taken.append(admitted)

    async def renewed(self, renewed: Renewed, _given: Given) -> None:
        """Of no interest."""

    def not_admitted(self, reason: str) -> None:
        """Keeps it."""
        self.told.append(reason)


@contextlib.asynccontextmanager
async def asking(made: Cluster, found: Cvm, *urls: str) -> AsyncIterator[Admission]:
    """The admission of `found`, which asks the coordinators at `urls`."""
    with tempfile.TemporaryDirectory(prefix="mesh-test-", dir="/dev/shm") as text:
        folder = Path(text)
        server = GuestAgentServer(TEE, cvm(API_COMPOSE, "api-0"))
        await server.start(folder / "dstack.sock")
        manifest = found.world.manifest
        verify = coordinator_check(by(found.world.signed), nothing, made.pccs_url, TEE.root_der, time.time)
        async with GuestAgent(folder / "dstack.sock") as guest, TaskScope() as scope:
            claim = Claim(
                cluster="tests", group="api", wish=Wish(), identities=lambda: manifest.identities("api"),
                info=await guest.info(), keys=identity.load_or_make(folder),
            )  # fmt: skip
            brokers = tuple(Broker(url, verify) for url in urls)
            admission = Admission(lambda: brokers, guest, claim, found)
            task = scope.start("admission", admission.run())
            try:
                yield admission
            finally:
                task.cancel()
                await admission.release()
                await server.stop()


async def test_no_credential_is_taken_from_a_coordinator_with_an_older_manifest() -> None:
    """It has no way to follow what the CVM brings: owners changed meanwhile. The CVM says so and asks the next one."""
    async with cluster() as behind, cluster() as ahead:
        await behind.start()
        old = await behind.ready()
        second = Owners(keys=(key_of(SECOND_OWNER),))
        change = opened(after(opened(ahead.manifest), owners=second), FIRST_OWNER)
        await ahead.start(0, change.manifest)
        new = await ahead.ready()
        newest = opened(after(change), SECOND_OWNER)
        await new.coordinator.consul.put(f"/v1/kv/{MANIFEST_KEY}", newest.envelope.encode())
        await eventually(lambda: new.coordinator.head.signed == newest, "the newest is in force")

        alone = Cvm(newest)
        async with asking(behind, alone, old.url) as admission:
            said = f"{old.url}: rolled back: enforces epoch 1, this CVM holds epoch 3"
            await eventually(lambda: said in alone.told, f"it says why: {alone.told}")
            assert admission.status.state != "admitted"
        assert alone.taken == []
        assert old.coordinator.head.manifest.epoch == 1

        found = Cvm(newest)
        async with asking(ahead, found, old.url, new.url):
            await eventually(lambda: bool(found.taken), f"it is admitted: {found.told}")
        assert [each.coordinator for each in found.taken] == [new.url]


async def test_an_older_coordinator_takes_the_manifest_that_a_cvm_brings() -> None:
    """So a CVM whose environment is newer than the coordinators' is not locked out while they are updated."""
    async with cluster() as made:
        await made.start()
        lead = await made.ready()
        newest = opened(after(opened(made.manifest)), FIRST_OWNER)
        found = Cvm(newest)
        async with asking(made, found, lead.url):
            await eventually(lambda: bool(found.taken), f"it is admitted: {found.told}")
        assert (found.taken[0].manifest_epoch, found.taken[0].envelope) == (2, newest.envelope)
        assert lead.coordinator.head.signed == newest


async def test_a_cvm_leads_coordinators_on_that_are_several_manifests_behind() -> None:
    """One after the other, as it took them itself; a greater epoch alone, which may be a fork's, is not taken."""
    async with cluster() as made:
        await made.start()
        lead = await made.ready()
        second = opened(after(opened(made.manifest, FIRST_OWNER)), FIRST_OWNER)
        third = opened(after(second), FIRST_OWNER)
        forgot = Cvm(third)
        said = f"{lead.url}: rolled back: enforces epoch 1, this CVM holds epoch 3"
        async with asking(made, forgot, lead.url):
            await eventually(lambda: said in forgot.told, f"it says why: {forgot.told}")
        assert lead.coordinator.head.manifest.epoch == 1
        remembers = Cvm(opened(made.manifest, FIRST_OWNER))
        for each in (second, third):
            remembers.world = sources.adopt(remembers.world, each)
        async with asking(made, remembers, lead.url):
            await eventually(lambda: bool(remembers.taken), f"it is admitted: {remembers.told}")
        assert lead.coordinator.head.signed == third


async def test_a_cvm_that_missed_several_manifests_is_led_on_at_its_admission() -> None:
    """By the history of the coordinator that admits it."""
    async with cluster() as made:
        await made.start()
        lead = await made.ready()
        first = opened(made.manifest, FIRST_OWNER)
        second = opened(after(first), FIRST_OWNER)
        third = opened(after(second), FIRST_OWNER)
        for each in (second, third):
            await put(lead, each.envelope)
        late = Cvm(first)
        async with asking(made, late, lead.url):
            await eventually(lambda: bool(late.taken), f"it is admitted: {late.told}")
        assert late.world.signed == third
