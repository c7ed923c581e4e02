"""Which slot the admission loop asks for, when it gives one up, and what it tells of it."""

from __future__ import annotations

import pytest

from admission.broker import Admitted
from admission.client import RefusedError
from admission.protocol import Code
from sidecar.slot import Wish
from tests.sidecar.test_admission import LOST, TAKEN, FakeBroker, Rig


async def test_who_takes_what_is_proposed_says_so() -> None:
    """A CVM without a slot is a newcomer; one that claims the slot it holds, or was given by its owner, is not."""
    for wish, proposed in ((Wish(), True), (Wish(held="api-0"), False), (Wish(pinned="api-0"), False)):
        broker = FakeBroker("one", renew=[LOST])
        rig = Rig(broker, wish=wish)
        async with rig.running():
            await rig.slept(1)
            await rig.goes_on()
        assert [sent.proposed for sent in broker.attested] == [proposed, False]


async def test_a_slot_that_is_taken_for_longer_than_a_lease_is_given_up() -> None:
    """Until then the same slot is asked for, and afterwards any of the group."""
    broker = FakeBroker("one", renew=[LOST], challenge=[])
    rig = Rig(broker)
    async with rig.running():
        await rig.slept(1)
        broker.failures["challenge"] = [TAKEN] * 3
        for seconds in (5.0, 10.0, 6.0):
            await rig.goes_on(seconds)
        await rig.goes_on()
    assert [ask.peer_id for ask in broker.asked] == [None, "api-0", "api-0", "api-0", None]
    assert rig.admission.status.state == "admitted"


async def test_a_slot_that_left_the_manifest_is_given_up_at_once() -> None:
    """From 3 to 2 replicas: the CVM in the slot that went asks for another, without the pause of a refusal for good."""
    gone = RefusedError(Code.ADMISSION_REJECTED, "group api has no peer 'api-0'")
    broker = FakeBroker("one", renew=[LOST])
    rig = Rig(broker)
    async with rig.running():
        await rig.slept(1)
        broker.failures["challenge"] = [gone]
        await rig.goes_on()
    assert [ask.peer_id for ask in broker.asked] == [None, "api-0", None]
    assert rig.sleeps == [5.0, 5.0]


@pytest.mark.parametrize("code", [Code.SLOT_TAKEN, Code.ADMISSION_REJECTED])
async def test_a_slot_of_the_owners_choice_is_insisted_on(code: Code) -> None:
    """With MESH_PEER_ID no other slot is asked for, and the reason says why."""
    broker = FakeBroker("one", challenge=[RefusedError(code, "no")] * 3)
    rig = Rig(broker, wish=Wish(pinned="api-0"))
    async with rig.running():
        await rig.slept(1)
        for _ in range(2):
            await rig.goes_on(20.0)
    assert {ask.peer_id for ask in broker.asked} == {"api-0"}
    assert "MESH_PEER_ID is api-0" in rig.admission.status.reason
    assert "MESH_PEER_ID is api-0" in rig.told[-1]


async def test_a_refused_cvm_is_told_not_admitted_once_its_lease_has_lapsed() -> None:
    """Not before: the next attempt may succeed. A new admission is heard as one."""
    broker = FakeBroker("one", renew=[LOST])
    rig = Rig(broker)
    async with rig.running():
        await rig.slept(1)
        broker.failures["challenge"] = [TAKEN] * 3
        await rig.goes_on(5.0)
        await rig.goes_on(9.0)
        assert rig.told == []
        await rig.goes_on(1.0)
        assert rig.told
        assert "SLOT_TAKEN: api-0 is held by another boot" in rig.told[-1]
        await rig.goes_on()
        assert [type(one) for one in rig.heard] == [Admitted, Admitted]


async def test_a_lease_that_lapses_in_a_long_pause_is_told_at_that_moment() -> None:
    """After a refusal for good the next attempt is far away; status does not wait for it."""
    broker = FakeBroker("one", renew=[LOST])
    rig = Rig(broker)
    async with rig.running():
        await rig.slept(1)
        broker.failures["attest"] = [RefusedError(Code.ADMISSION_REJECTED, "compose hash is not allowed")]
        await rig.goes_on(13.0)
        assert rig.sleeps[-1] == 2.0
        assert rig.told == []
        await rig.goes_on(2.0)
        assert "compose hash is not allowed" in rig.told[-1]
