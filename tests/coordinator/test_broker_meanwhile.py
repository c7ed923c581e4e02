"""What a broker answers by: the manifest and the records of the moment in which it answers, without Consul."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

from admission.protocol import AttestRequest, ChallengeRequest, Code, LeaseRequest
from coordinator.broker import Broker, Clocks, Rules
from coordinator.keys import derive
from coordinator.leases import Lease, seal
from coordinator.refusal import RefusalError
from coordinator.registry import Registry
from coordinator.rotation import Record, ring
from coordinator.slots import Holder, Node
from evidence.verify import Evidence
from lab.tee import CvmIdentity
from runtime.secret import Secret
from tests.coordinator.world import (
    OWNER,
    TEE,
    Applicant,
    encode,
    make_manifest,
    tls_key,
)
from tests.topology.support import after, opened
from topology.allowed import image_id
from topology.envelope import Signed

KEYS = derive(Secret("11" * 32), "tests")
LEASE = seal(Lease(peer_id="api-0", group="api", instance_id="i", boot_key="k"), KEYS.broker_key).reveal()


def test_rules_keep_every_window_that_is_open() -> None:
    """What was enforced here until a moment ago, also where one in between was missed, and not what a coordinator began
    with; a moment that is known later counts.
    """
    chain = [opened(make_manifest(), OWNER)]
    for _ in range(4):
        chain.append(opened(after(chain[-1], overlap_seconds=120), OWNER))
    one, two, three, four, five = chain
    now = 1_800_000_000.0

    def open_at(rules: Rules) -> dict[str, float]:
        return {each.digest: each.until - now for each in rules.windows}

    began = Rules(signed=one, adopted_at=0.0)
    found = began.replaced(three, now)
    assert open_at(found) == {two.digest: 120.0}
    assert open_at(found.replaced(three, now - 50)) == {two.digest: 70.0}
    found = found.replaced(five, now + 10)
    assert open_at(found) == {four.digest: 130.0, three.digest: 130.0, two.digest: 120.0}
    assert open_at(began.replaced(two, now).replaced(three, now + 10)) == {two.digest: 130.0, one.digest: 120.0}


def judging(head: Signed, ledger: Any = None) -> Broker:
    """A broker that is asked for nothing but what it thinks of those that it knows."""
    return Broker(
        rules=Rules(signed=head, adopted_at=0.0),
        verifier=None,  # type: ignore[arg-type]
        keys=KEYS,
        ledger=ledger,
        registry=None,  # type: ignore[arg-type]
        feed=None,  # type: ignore[arg-type]
        clocks=Clocks(unix=time.time, monotonic=time.monotonic),
        random=os.urandom,
        offered=None,  # type: ignore[arg-type]
    )


def test_what_answers_at_its_url_takes_no_sibling_away() -> None:
    """Nobody has attested here yet, as after a restart: the manifest alone says who is a sibling. Whether one has shown
    evidence is known by what it showed last.
    """
    broker = judging(opened(make_manifest(coordinators=2), OWNER))
    assert broker.allows_sibling("coordinator-1"), "it is away"
    assert not broker.allows_sibling("coordinator-2")
    for good in (True, False):
        broker.verified_sibling("coordinator-1", good=good)
        assert (broker.allows_sibling("coordinator-1"), broker.proven_sibling("coordinator-1")) == (True, good)


def test_nobody_is_stated_whom_the_manifest_has_just_ended() -> None:
    """Before the sweep has freed the slot, too: who verifies holds the list against that very manifest."""
    head = opened(make_manifest(), OWNER)
    held = admitted_api(head)
    broker = judging(head, SimpleNamespace(slots={"api-0": held}, nodes={}))
    assert broker.admitted() == (held,)
    broker.rules = Rules(signed=revoking(head), adopted_at=0.0)
    assert broker.admitted() == ()


class SlowLedger:
    """Records whose writes take so long that `meanwhile` happens before the first one to `at` is answered."""

    complete = True
    nodes: Mapping[str, Node] = MappingProxyType({})

    def __init__(self, at: str, *held: Holder) -> None:
        self.slots = {each.peer_id: each for each in held}
        self.meanwhile: Callable[[], None] = lambda: None
        self._at = at

    def _answered(self, name: str) -> None:
        if name == self._at:
            self.meanwhile()

    async def take(self, wanted: Holder, _: object) -> None:
        """Gives the slot."""
        self.slots[wanted.peer_id] = wanted

    async def renew(self, _: Holder) -> None:
        """Noted nowhere."""
        self._answered("renew")

    async def trusts(self, _: Holder, __: str) -> None:
        """Noted nowhere."""
        self._answered("trusts")

    async def issue(self, _: object) -> None:
        """Makes none."""
        self._answered("issue")

    async def replace_tokens(self, _: Holder, __: object) -> None:
        """Noted nowhere."""
        self._answered("replace_tokens")

    async def confirm(self, _: Holder) -> None:
        """It was held when it was looked at."""
        self._answered("confirm")

    async def free(self, holder: Holder, _: str) -> bool:
        """Takes the slot back."""
        self.slots[holder.peer_id] = dataclasses.replace(self.slots[holder.peer_id], released=True)
        return True


def admitted_api(head: Signed) -> Holder:
    """Who holds `api-0` as the manifest allows it, and is due for tokens and a leaf."""
    api, image = head.manifest.groups["api"], head.manifest.references[0].os_images[0]
    return Holder(
        peer_id="api-0", group="api", instance_id="i", boot_key="k", leaf_key=tls_key(),
        compose_hash=api.compose_hashes[0], app_id=api.app_id, address=api.peers[0].address,
        image=image_id(image.mrtd, image.rtmr0, image.rtmr1, image.rtmr2), renewed_at=0.0,
    )  # fmt: skip


def revoking(head: Signed) -> Signed:
    """The manifest that follows `head`, without the app of `api`."""
    moved = dataclasses.replace(head.manifest.groups["api"], app_id="99" * 20)
    return opened(after(head, groups={**head.manifest.groups, "api": moved}), OWNER)


def put_out(broker: Broker, ledger: SlowLedger, how: str) -> None:
    """Ends `api-0` in the records, or by a manifest that comes into force."""
    if how == "freed":
        ledger.slots["api-0"] = dataclasses.replace(ledger.slots["api-0"], released=True)
    else:
        broker.rules = broker.rules.replaced(revoking(broker.rules.signed), time.time())


@pytest.mark.parametrize("how", ["freed", "revoked"])
@pytest.mark.parametrize("at", ["renew", "trusts", "issue", "replace_tokens"])
async def test_who_is_put_out_while_it_renews_gets_nothing(at: str, how: str) -> None:
    """Whatever the renewal waits for: the answer is judged by what is in force when it is given."""
    head = opened(make_manifest(), OWNER)
    held = admitted_api(head)
    ledger = SlowLedger(at, held)
    broker = judging(head, ledger)
    broker.not_ready = None
    ledger.meanwhile = lambda: put_out(broker, ledger, how)
    with pytest.raises(RefusalError) as error:
        await broker.renew(LeaseRequest(lease=LEASE, trusts=head.digest))
    assert error.value.code is Code.LEASE_INVALID
    assert ledger.slots["api-0"].released


class Believed:
    """Finds the evidence of `who` in whatever it is given."""

    def __init__(self, who: CvmIdentity) -> None:
        self._who = who

    async def verify(self, *, report_data: bytes, **_: object) -> Evidence:
        """What an honest CVM's says."""
        who, image = self._who, TEE.os_image("0.6.0")
        return Evidence(
            app_id=who.app_id, instance_id=who.instance_id, compose_hash=who.compose_hash, os_image_hash=None,
            key_provider_name=TEE.key_provider.name, key_provider_id=TEE.key_provider.id, mrtd=image.mrtd,
            rtmr0=image.rtmr0, rtmr1=image.rtmr1, rtmr2=image.rtmr2, rtmr3="", report_data=report_data,
            tcb_status="UpToDate", advisory_ids=(), evaluation_data_number=99, device="00" * 16, development_root=True,
        )  # fmt: skip


@pytest.mark.parametrize("how", ["freed", "revoked", None])
async def test_who_is_put_out_while_it_is_admitted_gets_nothing(how: str | None) -> None:
    """After the records have confirmed its slot, too: then a rendezvous may be waited for."""
    head = opened(make_manifest(), OWNER)
    ledger = SlowLedger("confirm")
    applicant = Applicant(url="", manifest=head.manifest)
    broker = Broker(
        rules=Rules(signed=head, adopted_at=0.0),
        verifier=Believed(applicant.who),
        keys=KEYS,
        ledger=ledger,  # type: ignore[arg-type]
        registry=Registry(lambda: None),
        feed=None,  # type: ignore[arg-type]
        clocks=Clocks(unix=time.time, monotonic=time.monotonic),
        random=os.urandom,
        offered=None,  # type: ignore[arg-type]
    )
    broker.not_ready = None
    if how is not None:
        ledger.meanwhile = lambda: put_out(broker, ledger, how)
    challenge = broker.challenge(ChallengeRequest(group="api", instance_id=applicant.who.instance_id, peer_id="api-0"))
    body = applicant.evidence(encode(applicant.binding("api-0")), challenge.nonce)
    asked = AttestRequest(**body)
    if how is None:
        assert (await broker.attest(asked)).leaf_pem
        return
    with pytest.raises(RefusalError) as error:
        await broker.attest(asked)
    assert error.value.code is (Code.NOT_READY if how == "freed" else Code.ADMISSION_REJECTED)
    assert ledger.slots["api-0"].released


async def test_a_renewal_tells_the_keys_to_whom_has_others_and_only_while_they_are_certain() -> None:
    """A coordinator that has lost sight of the records renews the lease, and leaves the keys as they are."""
    head, now = opened(make_manifest(), OWNER), time.time()
    held = dataclasses.replace(admitted_api(head), trusts=head.digest, token_expires_at=now + 3600)
    broker = judging(head, SlowLedger("nothing", held))
    broker.not_ready = None
    asked = LeaseRequest(lease=LEASE, leaf_digest=head.digest, leaf_expires_at=int(now) + 30000, gossip_ring="0")
    both = ring(KEYS, Record(stage="both", number=1, before=0))
    broker.ring, broker.ring_until = both, time.monotonic() + 60
    told = await broker.renew(asked)
    assert (told.gossip_ring, told.gossip_keys) == ("0+1", tuple(key.reveal() for key in both.keys))
    assert (await broker.renew(dataclasses.replace(asked, gossip_ring="0+1"))).gossip_keys is None
    broker.ring_until = time.monotonic()
    assert (await broker.renew(asked)).gossip_keys is None
