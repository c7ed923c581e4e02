"""What a CVM brings with its attestation: who may, and what it can do."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from coordinator.broker import Rules
from coordinator.head import Head
from coordinator.records import Records
from coordinator.refusal import RefusalError
from runtime.tasks import TaskScope
from tests.coordinator.alone import FIRST, Alone, head
from tests.coordinator.test_head import of_newer_program
from tests.coordinator.test_history import SECOND
from tests.coordinator.world import CLIENT_COMPOSE, OWNER, OWNERS, Applicant, cvm
from tests.topology.support import after, opened
from topology.envelope import seal
from topology.manifest import Manifest
from topology.revocation import Revocation

UNREADABLE = of_newer_program(after(FIRST), version=3)
STRANGER = Applicant(url="", manifest=FIRST.manifest, who=cvm(CLIENT_COMPOSE, "stranger"))
"""Genuine, of an app that has no place in the group that it names."""


class Heard:
    """The coordinators' part, which takes nothing."""

    def __init__(self) -> None:
        self.brought: list[str] = []

    async def offered(self, envelope: str, _allows: Callable[[Manifest], bool]) -> None:
        """As `coordinator.records`."""
        self.brought.append(envelope)


def records(found: Head) -> Records:
    """Those of a coordinator that enforces what `found` has; Consul answers nothing."""
    return Records(
        SimpleNamespace(client=None),  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        own=None,  # type: ignore[arg-type]
        owners=OWNERS,
        head=found,
        chronicle=SimpleNamespace(history=SimpleNamespace(chain=()), lacked=lambda _: None),  # type: ignore[arg-type]
        documents=None,  # type: ignore[arg-type]
    )


async def test_nothing_is_looked_at_before_the_quote_holds() -> None:
    """Signatures cost time, and what cannot be read stops a coordinator."""
    heard = Heard()
    it = Alone(heard.offered)
    it.tee.genuine = False
    assert await it.refused(UNREADABLE) == "QUOTE_INVALID"
    assert heard.brought == []
    it.tee.genuine = True
    assert await it.refused(UNREADABLE) == ""
    assert heard.brought == [UNREADABLE]


@pytest.mark.parametrize("applicant", [None, STRANGER], ids=["a CVM of the mesh", "a stranger"])
async def test_what_cannot_be_read_stops_a_coordinator_only_from_a_cvm_of_the_mesh(applicant: Applicant | None) -> None:
    """Its sidecar has it from coordinators; a stranger may have what the owners signed by mistake, and was refused."""
    found = head()
    it = Alone(records(found).offered, applicant)
    assert (await it.refused(UNREADABLE) == "") == (applicant is None)
    assert (found.hindrance is None) == (applicant is not None)


async def test_a_newer_manifest_is_taken_from_a_cvm_that_it_allows_and_from_no_stranger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or that the one in force allows: it may bring its own end."""
    written: list[str] = []

    async def publish(_client: object, signed: object, *_: object) -> tuple[object, float]:
        written.append(signed.envelope)  # type: ignore[attr-defined]
        return signed, 0.0

    monkeypatch.setattr("coordinator.governance.publish_manifest", publish)
    revoked = Revocation(instance_id=Applicant(url="", manifest=FIRST.manifest).who.instance_id)
    envelope = seal(after(FIRST, revoked=(revoked,)), OWNER)
    found = head()
    assert await Alone(records(found).offered, STRANGER).refused(envelope) == "ADMISSION_REJECTED"
    assert (found.signed, written) == (FIRST, [])
    await Alone(records(found).offered).refused(envelope)
    assert (found.signed.envelope, written) == (envelope, [envelope])


async def test_what_strangers_bring_leaves_time_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who brings the next one waits for as long as the one before took in vain; what its owners signed costs nobody."""
    found = records(head())
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("coordinator.records.asyncio.sleep", sleep)
    for envelope, code, waits in (
        (seal(after(FIRST), SECOND), "MANIFEST_NOT_SIGNED", 1),
        (seal(after(FIRST, cluster="staging"), OWNER), "MANIFEST_REFUSED", 0),
    ):
        slept.clear()
        with pytest.raises(RefusalError, match=code):
            await found.propose(envelope, {})
        assert len(slept) == waits
        assert all(seconds > 0.0 for seconds in slept)


@pytest.mark.parametrize("when", ["before its evidence is judged", "while it gets the slot"])
async def test_who_is_revoked_while_it_attests_is_not_admitted(when: str) -> None:
    """Collateral and newcomers are waited for; the manifest in force at the end counts, and nothing is left."""
    it = Alone(Heard().offered)
    instance = it.applicant.who.instance_id
    newer = Rules(signed=opened(after(FIRST, revoked=(Revocation(instance_id=instance),)), OWNER), adopted_at=0.0)

    def revoke() -> None:
        it.broker.rules = newer

    if when == "while it gets the slot":
        it.book.taken = revoke
        assert await it.refused() == "ADMISSION_REJECTED"
        assert len(it.book.freed) == 1
    else:
        it.tee.gate.clear()
        async with TaskScope() as scope:
            attesting = scope.start("attest", it.refused())
            await it.tee.asked.wait()
            revoke()
            it.tee.gate.set()
            assert await attesting == "REVOKED"
    assert (it.book.slots, it.book.issued, it.registry.peers()) == ({}, [], ())
