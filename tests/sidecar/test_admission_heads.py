"""The admission loop against coordinators that enforce less than the CVM knows, or something else."""

from __future__ import annotations

from admission.broker import Admitted, Renewed
from admission.client import CoordinatorError
from runtime.secret import Secret
from tests.sidecar.test_admission import FakeBroker, Rig, renewal


async def test_a_renewal_under_another_manifest_of_the_epoch_is_not_taken() -> None:
    """Its digest counts, not its epoch: nothing of the answer is taken, the next one is asked, and the status says why
    while there is none.
    """
    forked, good = FakeBroker("forked"), FakeBroker("good")
    forked.renewal = renewal("f0" * 32, leaf=True, token=Secret("new"), token_expires_at=9)
    good.failures["renew"] = [CoordinatorError("busy")]
    rig = Rig(forked, good)
    async with rig.running():
        await rig.slept(1)
        rig.pass_on.release()
        await rig.slept(2)
        assert rig.admission.status.state == "renewing"
        assert "forked: another manifest" in rig.admission.status.reason
        rig.pass_on.release()
        await rig.slept(3)
        assert rig.admission.status.coordinator == "good"
    assert [type(one) for one in rig.heard] == [Admitted, Renewed]
    assert rig.heard[-1] == good.renewal


async def test_nothing_is_taken_from_a_coordinator_that_has_rolled_back() -> None:
    """Neither its admission nor its renewal: the next one is asked, and the status says why while there is none."""
    behind, good = FakeBroker("behind"), FakeBroker("good", attest=[CoordinatorError("busy")])
    good.renewal = renewal(epoch=4, token=Secret("new"), token_expires_at=9)
    good.manifest_epoch = 4
    rig = Rig(behind, good)
    rig.holds = 4
    async with rig.running():
        await rig.slept(1)
        assert rig.heard == []
        assert rig.told[0] == "behind: rolled back"
        assert [request.manifest for request in behind.attested] == ["held"]
        rig.pass_on.release()
        await rig.slept(2)
        assert [type(one) for one in rig.heard] == [Admitted]
        assert rig.admission.status.coordinator == "good"
        # One that has a greater epoch by now; then none has.
        good.failures["renew"] = [CoordinatorError("busy")]
        rig.pass_on.release()
        await rig.slept(3)
        assert rig.admission.status.state == "renewing"
        assert "behind: rolled back" in rig.admission.status.reason
        rig.pass_on.release()
        await rig.slept(4)
        assert rig.heard[1:] == [good.renewal]
