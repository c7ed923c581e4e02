"""The admission loop against coordinators that answer by script: what it asks, in which order, and what it tells.

Long because it is a list: each answer of a coordinator is a case of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest

from admission.broker import Admitted, Held, Renewed, decode_admission, decode_renewal
from admission.client import CoordinatorError, RefusedError
from admission.clocks import Skew
from admission.protocol import AttestRequest, Challenge, ChallengeRequest, Code
from evidence.binding import report_data
from runtime.guest import GuestError, GuestInfo, GuestQuote
from runtime.secret import Secret
from runtime.tasks import TaskScope
from sidecar import identity
from sidecar.admission import Admission, Claim
from sidecar.certificate import Certificate, begun, heard
from sidecar.certificate_reading import Given
from sidecar.slot import Wish
from tests.admission.test_broker import ADMISSION
from tests.sidecar.world import DIGEST, NOW, agent_pem, granted
from tests.support import eventually

NONCE = "5a" * 32
KEYS = identity.make()
CONSUL: Any = ADMISSION["consul"]
NO_WISH = Wish()


def node() -> tuple[str, ...]:
    """What a CVM without backends is admitted as."""
    return ("spiffe://demo/node",)


TAKEN = RefusedError(Code.SLOT_TAKEN, "api-0 is held by another boot that is alive")
LOST = RefusedError(Code.LEASE_INVALID, "unknown")


def renewal(*digests: str, epoch: int = 3, leaf: bool = False, **changes: Any) -> Renewed:
    """An answer to a renewal, with a new certificate or without."""
    answer = granted(KEYS.public.leaf, *digests, epoch=epoch)
    if not leaf:
        del answer["leaf_pem"]
    return dataclasses.replace(decode_renewal({"lease_seconds": 15.0, "manifest_epoch": epoch, **answer}), **changes)


class FakeBroker:
    """A coordinator by script: each call takes the next failure of its list, else succeeds."""

    def __init__(self, url: str, **failures: list[Exception]) -> None:
        self.url = url
        self.skew: Skew | None = None
        self.failures = failures
        self.calls: list[str] = []
        self.attested: list[AttestRequest] = []
        self.asked: list[ChallengeRequest] = []
        self.renewal = renewal()
        self.manifest_epoch = 3
        self.address = ADMISSION["address"]
        self.agent_pem = agent_pem(KEYS.public.tls)
        self.closed = False
        self.held: list[Held] = []
        self.brought: list[str] = []

    def _call(self, name: str) -> None:
        self.calls.append(name)
        script = self.failures.get(name)
        if script:
            raise script.pop(0)

    async def challenge(self, request: ChallengeRequest) -> Challenge:
        self.asked.append(request)
        self._call("challenge")
        return Challenge(nonce=NONCE, peer_id=request.peer_id or "api-0", expires_in=60)

    async def attest(self, request: AttestRequest) -> Admitted:
        self.attested.append(request)
        self._call("attest")
        answer = {
            **ADMISSION,
            **granted(KEYS.public.leaf),
            "consul": {**CONSUL, "certificate_pem": self.agent_pem},
            "manifest_epoch": self.manifest_epoch,
            "address": self.address,
        }
        return decode_admission(answer, self.url)

    async def renew(self, lease: Secret, held: Held) -> Renewed:
        assert lease.reveal() == "s3cret-lease"
        self.held.append(held)
        self._call("renew")
        return self.renewal

    async def ask(self, path: str) -> dict[str, object]:
        raise AssertionError(path)

    async def bring(self, envelope: str) -> None:
        self.brought.append(envelope)

    async def release(self, lease: Secret) -> None:
        assert lease.reveal() == "s3cret-lease"
        self._call("release")

    async def close(self) -> None:
        self.closed = True


class FakeGuest:
    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.quoted: list[bytes] = []

    async def quote(self, report_data: bytes) -> GuestQuote:
        if self.failures:
            raise self.failures.pop(0)
        self.quoted.append(report_data)
        return GuestQuote(quote=b"quote", event_log="[]", vm_config="{}")


class Rig:
    """An Admission whose sleeps end when the test says so, and that tells what it heard."""

    def __init__(self, *brokers: FakeBroker, guest: FakeGuest | None = None, wish: Wish = NO_WISH) -> None:
        self.now = NOW
        self.told: list[str] = []
        self.shown: Certificate | None = None
        self.trusts = ""
        self.ring = ""
        self.heard: list[object] = []
        self.holds = 0
        self.known = {DIGEST, NEXT}
        self.place = str(ADMISSION["address"])
        self.sleeps: list[float] = []
        self.pass_on = asyncio.Semaphore(0)
        self.guest = guest or FakeGuest()
        info = GuestInfo(app_id="11" * 20, instance_id="aa" * 20, compose_hash="22" * 32)
        claim = Claim(cluster="demo", group="api", wish=wish, identities=node, info=info, keys=KEYS)
        self.admission = Admission(
            lambda: brokers,  # type: ignore[arg-type, return-value]
            self.guest,
            claim,
            self,
            clock=lambda: self.now,
            sleep=self.sleep,
            rng=Random(1),
        )

    def newest_envelope(self) -> str:
        return "held"

    async def lead_on(self, _epoch: int, _ask: object) -> None:
        """Nothing is missing."""

    def successors_of(self, _epoch: int) -> tuple[str, ...]:
        """None."""
        return ()

    def why_not_enforced(self, epoch: int, digest: str, envelope: str) -> str | None:
        assert envelope in ("", "envelope")
        if digest not in self.known:
            return "another manifest"
        return "rolled back" if epoch < self.holds else None

    def why_misplaced(self, peer_id: str, address: str, envelope: str) -> str | None:
        assert (peer_id, envelope) == ("api-0", "envelope")
        return "gives another address" if address != self.place else None

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        await self.pass_on.acquire()

    async def admitted(self, admitted: Admitted, given: Given) -> None:
        self.heard.append(admitted)
        held = self.shown
        self.shown = begun(given, self.now, 120.0) if held is None else heard(held, given, self.now, 120.0, self.now)

    async def renewed(self, renewed: Renewed, given: Given) -> None:
        self.heard.append(renewed)
        assert self.shown is not None
        self.shown = heard(self.shown, given, self.now, 120.0, self.now)

    def certificate(self) -> tuple[Certificate | None, str]:
        return self.shown, self.trusts

    def gossip_ring(self) -> str:
        return self.ring

    def not_admitted(self, reason: str) -> None:
        self.told.append(reason)

    async def goes_on(self, seconds: float = 0.0) -> None:
        """Ends the sleep that it is in, after `seconds` of the clock, and returns in the next."""
        self.now += seconds
        before = len(self.sleeps)
        self.pass_on.release()
        await self.slept(before + 1)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with TaskScope() as scope:
            task = scope.start("admission", self.admission.run())
            try:
                yield
            finally:
                task.cancel()

    async def slept(self, times: int) -> None:
        await eventually(lambda: len(self.sleeps) == times, f"{times} sleeps, has {self.sleeps}")


async def test_quote_covers_the_binding_of_the_offered_slot_and_the_nonce() -> None:
    """The report data is the hash of the very bytes that are sent, with every field of the statement."""
    broker = FakeBroker("one")
    rig = Rig(broker)
    async with rig.running():
        await rig.slept(1)
    sent = broker.attested[0]
    raw = bytes.fromhex(sent.binding)
    assert rig.guest.quoted == [report_data(raw, bytes.fromhex(NONCE))]
    assert sent.quote == b"quote".hex()
    assert json.loads(raw) == {
        "version": 2,
        "cluster": "demo",
        "peer_id": "api-0",
        "identities": ["spiffe://demo/node"],
        "app_id": "11" * 20,
        "instance_id": "aa" * 20,
        "compose_hash": "22" * 32,
        "boot": {
            "wireguard": KEYS.public.wireguard,
            "tls": KEYS.public.tls,
            "leaf": KEYS.public.leaf,
            "public": KEYS.public.public,
        },
        "issued_at": int(NOW),
    }


async def test_lease_is_renewed_at_a_third_of_its_life() -> None:
    """15 s of lease mean a renewal every 5 s, and the status tells when it would end."""
    broker = FakeBroker("one")
    rig = Rig(broker)
    async with rig.running():
        await rig.slept(1)
        assert rig.sleeps == [5.0]
        assert rig.admission.status.state == "admitted"
        assert rig.admission.status.expires_at == NOW + 15.0
        rig.pass_on.release()
        await rig.slept(2)
        assert broker.calls == ["challenge", "attest", "renew"]
        assert [type(one) for one in rig.heard] == [Admitted, Renewed]


async def test_the_clock_is_measured_at_admission_and_at_each_renewal(caplog: pytest.LogCaptureFixture) -> None:
    """What is wrong with it is said once, and once that it is well again; a refused CVM's is known, too."""
    broker = FakeBroker("one", attest=[RefusedError(Code.ADMISSION_REJECTED, "set the CVM's clock")])
    broker.skew = Skew(-401.0, -400.0)
    caplog.set_level("INFO")
    rig = Rig(broker)
    async with rig.running():
        await rig.slept(1)
        assert rig.admission.status.skew == Skew(-401.0, -400.0)
        for count, skew in enumerate((Skew(-9.0, -8.0), Skew(-9.0, -7.0), Skew(-0.9, 0.1)), 2):
            broker.skew = skew
            rig.pass_on.release()
            await rig.slept(count)
            assert rig.admission.status.skew == skew
    said = [record.getMessage() for record in caplog.records if "clock" in record.getMessage()]
    assert said == ["the clock is off", "the clock agrees again"]


async def test_renewal_says_of_which_manifest_the_secrets_are() -> None:
    """That of the admission, until a renewal brings those of a later one."""
    broker = FakeBroker("one")
    rig = Rig(broker)
    async with rig.running():
        for secrets, slept in ((None, 2), ({"database": Secret("new")}, 3), (None, 4)):
            broker.renewal = renewal(epoch=9, secrets=secrets)
            rig.pass_on.release()
            await rig.slept(slept)
        assert [held.secrets_epoch for held in broker.held] == [3, 3, 9]


async def test_next_coordinator_is_asked_at_once_and_remembered() -> None:
    """One that is unreachable costs no wait when another answers, and renewals begin with the good one."""
    dead = FakeBroker("dead", challenge=[CoordinatorError("no answer")] * 9, renew=[CoordinatorError("no answer")] * 9)
    good = FakeBroker("good")
    rig = Rig(dead, good)
    async with rig.running():
        await rig.slept(1)
        assert rig.sleeps == [5.0]
        rig.pass_on.release()
        await rig.slept(2)
        assert dead.calls == ["challenge"]
        assert good.calls == ["challenge", "attest", "renew"]


async def test_a_coordinator_that_goes_on_failing_oddly_has_its_stack_in_the_log_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whoever stands at its name can cause it again and again."""
    rig = Rig(FakeBroker("odd", challenge=[RuntimeError("no such version")] * 4))
    async with rig.running():
        for slept in (1, 2, 3):
            await rig.slept(slept)
            assert "no such version" in rig.admission.status.reason
            rig.pass_on.release()
        await rig.slept(4)
    assert len([record for record in caplog.records if record.exc_info]) == 1


async def test_a_coordinator_that_fails_in_a_way_nobody_foresaw_is_passed_over() -> None:
    """At the admission and at a renewal: only it has failed, the next one is asked, and the process goes on."""
    odd = FakeBroker("odd", challenge=[RuntimeError("3 is not a valid version")], renew=[RuntimeError("no key")] * 2)
    rig = Rig(odd, FakeBroker("good"))
    async with rig.running():
        await rig.slept(1)
        assert rig.admission.status.state == "admitted"
        rig.admission._first = 0
        rig.pass_on.release()
        await rig.slept(2)
        assert odd.calls == ["challenge", "renew"]
        assert rig.admission.status.state == "admitted"


@pytest.mark.parametrize(
    ("failure", "state", "seconds"),
    [
        (RefusedError(Code.SLOT_TAKEN, "api-0 is held by another boot"), "waiting", 0.1),
        (RefusedError(Code.NOT_READY, "no leader"), "waiting", 0.1),
        (CoordinatorError("https://one does not answer"), "waiting", 0.1),
        (RefusedError(Code.ADMISSION_REJECTED, "compose hash is not allowed"), "refused", 5.0),
        (RefusedError(Code.QUOTE_INVALID, "debug"), "refused", 5.0),
    ],
)
async def test_failures_are_told_and_retried_at_their_pace(failure: Exception, state: str, seconds: float) -> None:
    """What may pass is tried again soon; what the same evidence will get again, slowly. Status says why. A coordinator
    that refuses for good is asked for its manifest once more: by a newer one it may not.
    """
    broker = FakeBroker("one", attest=[failure])
    rig = Rig(broker)
    async with rig.running():
        await rig.slept(1)
        assert seconds * 0.8 <= rig.sleeps[0] <= seconds
        assert rig.admission.status.state == state
        assert broker.closed == (state == "refused")
        assert str(failure) in rig.admission.status.reason
        rig.pass_on.release()
        await rig.slept(2)
        assert rig.admission.status.state == "admitted"
        assert rig.admission.status.reason == ""


async def test_who_was_evicted_is_told_so() -> None:
    """Also while no other slot of the group is free: that another CVM has those is not what an owner looks for. With a
    slot it is over.
    """
    gone = RefusedError(Code.ADMISSION_REJECTED, "group api has no peer 'api-1'")
    full = RefusedError(Code.SLOT_TAKEN, "all 1 slots of api are held by living instances")
    broker = FakeBroker("one", challenge=[gone, full, full])
    rig = Rig(broker, wish=Wish(held="api-1"))
    async with rig.running():
        for times in (1, 2):
            await rig.slept(times)
            assert [request.peer_id for request in broker.asked] == ["api-1", None, None][: times + 1]
            assert rig.admission.status.state == "refused"
            assert rig.admission.status.reason == (
                "one: EVICTED: the manifest in force has no slot api-1 any more, which this CVM held; and of the "
                "others of its group none is free (all 1 slots of api are held by living instances)"
            )
            rig.pass_on.release()
        await rig.slept(3)
        assert rig.admission.status.state == "admitted"


async def test_guest_agent_that_gives_no_quote_is_waited_for() -> None:
    """A failing quote is no end either."""
    rig = Rig(FakeBroker("one"), guest=FakeGuest(GuestError("GetQuote", "busy")))
    async with rig.running():
        await rig.slept(1)
        assert "busy" in rig.admission.status.reason
        rig.pass_on.release()
        await rig.slept(2)
        assert rig.admission.status.state == "admitted"


async def test_all_coordinators_gone_keeps_the_admission_and_goes_on_asking() -> None:
    """Nothing is heard, nothing torn down; the renewal succeeds when one is back."""
    broker = FakeBroker("one", renew=[CoordinatorError("gone"), RefusedError(Code.NOT_READY, "no leader")])
    rig = Rig(broker)
    async with rig.running():
        await rig.slept(1)
        for times in (2, 3):
            rig.pass_on.release()
            await rig.slept(times)
            assert rig.admission.status.state == "renewing"
            assert rig.admission.status.reason
        assert len(rig.heard) == 1
        rig.pass_on.release()
        await rig.slept(4)
        assert rig.admission.status.state == "admitted"
        assert broker.calls == ["challenge", "attest", "renew", "renew", "renew"]


async def test_a_coordinator_that_the_manifest_drops_has_its_connections_closed() -> None:
    """With the next renewal; who stays keeps its own."""
    stays, goes = FakeBroker("one"), FakeBroker("two")
    named = [stays, goes]
    rig = Rig(stays, goes)
    rig.admission._brokers = lambda: tuple(named)  # type: ignore[assignment, return-value]
    async with rig.running():
        await rig.slept(1)
        named.remove(goes)
        await rig.goes_on()
        assert (stays.closed, goes.closed) == (False, True)


async def test_lost_lease_is_attested_anew_for_the_same_slot() -> None:
    """LEASE_INVALID leads to a second admission in place, asking for the slot of this boot."""
    broker = FakeBroker("one", renew=[RefusedError(Code.LEASE_INVALID, "unknown")])
    rig = Rig(broker)
    async with rig.running():
        await rig.slept(1)
        rig.pass_on.release()
        await rig.slept(2)
        assert broker.calls == ["challenge", "attest", "renew", "challenge", "attest"]
        assert [ask.peer_id for ask in broker.asked] == [None, "api-0"]
        assert [type(one) for one in rig.heard] == [Admitted, Admitted]


async def test_another_slot_than_asked_for_is_not_attested() -> None:
    """A coordinator cannot move us to a slot that we did not ask for."""
    broker = FakeBroker("one")

    async def other(request: ChallengeRequest) -> Challenge:
        broker.asked.append(request)
        return Challenge(nonce=NONCE, peer_id="api-1", expires_in=60)

    broker.challenge = other  # type: ignore[method-assign]
    rig = Rig(broker, wish=Wish(pinned="api-0"))
    async with rig.running():
        await rig.slept(1)
        assert "offers slot 'api-1'" in rig.admission.status.reason
        assert broker.attested == []


async def test_release_gives_the_slot_back_once_and_survives_failure() -> None:
    """A clean stop releases the lease and closes the connections, also when nobody answers."""
    failures: dict[str, list[Any]] = {"release": [CoordinatorError("gone")]}
    for script in ({}, failures):
        broker = FakeBroker("one", **script)
        rig = Rig(broker)
        async with rig.running():
            await rig.slept(1)
        await rig.admission.release()
        await rig.admission.release()
        assert broker.calls.count("release") == 1
        assert broker.closed


@pytest.mark.parametrize("away", [CoordinatorError("gone"), RefusedError(Code.NOT_READY, "no leader")])
async def test_coordinators_that_are_away_take_no_admission(away: Exception) -> None:
    """However long: nobody refused this CVM, so what it was admitted for goes on."""
    broker = FakeBroker("one", renew=[LOST])
    rig = Rig(broker)
    async with rig.running():
        await rig.slept(1)
        broker.failures["challenge"] = [away] * 9
        for _ in range(5):
            await rig.goes_on(100.0)
    assert rig.told == []


async def test_who_was_never_admitted_is_told_every_reason() -> None:
    """A CVM that starts shows what it waits for, whether it is refused or nobody answers."""
    broker = FakeBroker("one", challenge=[CoordinatorError("one does not answer")], attest=[TAKEN])
    rig = Rig(broker)
    async with rig.running():
        await rig.slept(1)
        await rig.goes_on()
        assert rig.told[0] == "one does not answer"
        assert "SLOT_TAKEN" in rig.told[-1]


async def test_nothing_is_taken_from_a_coordinator_that_gives_another_address() -> None:
    """Where this CVM is, the manifest says: the next coordinator is asked, and status says why."""
    astray = FakeBroker("astray")
    astray.address = "100.96.0.99"
    rig = Rig(astray, FakeBroker("good"))
    async with rig.running():
        await eventually(lambda: rig.heard != [], "admitted by the other one")
        assert rig.heard[0].address == rig.place  # type: ignore[attr-defined]
        assert rig.told[0] == "astray gives another address"


NEXT = "e2" * 32


async def test_renewal_says_which_certificate_is_held_and_what_envoy_trusts() -> None:
    """The newest leaf's manifest and end: the coordinator decides whether it is time for another."""
    broker = FakeBroker("one")
    rig = Rig(broker)
    async with rig.running():
        await rig.slept(1)
        rig.trusts, rig.ring = DIGEST, "1+0"
        await rig.goes_on()
        assert rig.shown is not None
        ends = rig.shown.leaf.expires_at
        wanted = Held(
            secrets_epoch=3,
            leaf_digest=DIGEST,
            leaf_expires_at=ends,
            trusts=DIGEST,
            gossip_ring="1+0",
            agent_expires_at=rig.admission.agent_expires_at,
        )
        assert broker.held == [wanted]


async def test_a_new_certificate_is_asked_for_until_all_trust_it() -> None:
    """Five times a second from when our own Envoy trusts its CA; then at the old pace."""
    broker = FakeBroker("one")
    rig = Rig(broker)
    async with rig.running():
        await rig.slept(1)
        broker.renewal = renewal(NEXT, DIGEST, epoch=4, leaf=True)
        await rig.goes_on()
        assert rig.sleeps[-1] == 5.0
        rig.trusts = NEXT
        broker.renewal = renewal(NEXT, DIGEST, epoch=4)
        await rig.goes_on()
        assert rig.sleeps[-1] == 0.2
        assert [held.leaf_digest for held in broker.held] == [DIGEST, NEXT]
        assert rig.shown is not None
        assert rig.shown.leaf.digest == DIGEST
        broker.renewal = renewal(NEXT, DIGEST, epoch=4, all_trust=True)
        await rig.goes_on()
        assert rig.shown.leaf.digest == NEXT
        assert rig.sleeps[-1] == 5.0


async def test_who_hurries_renews_at_once() -> None:
    """Told while it rests, or just before."""
    broker = FakeBroker("one")
    rig = Rig(broker)
    async with rig.running():
        await rig.slept(1)
        rig.admission.hurry()
        await rig.slept(2)
        assert broker.calls == ["challenge", "attest", "renew"]


async def test_a_certificate_that_is_not_ours_is_taken_from_nobody() -> None:
    """Another coordinator is asked, and the status says what was wrong."""
    bad, good = FakeBroker("bad"), FakeBroker("good", renew=[CoordinatorError("busy")])
    bad.renewal = dataclasses.replace(renewal(), leaf_pem=granted(identity.make().public.leaf)["leaf_pem"])
    rig = Rig(bad, good)
    async with rig.running():
        await rig.slept(1)
        await rig.goes_on()
        assert "bad gives a certificate that cannot be used: the leaf is for another key" in (
            rig.admission.status.reason
        )
        assert [type(one) for one in rig.heard] == [Admitted]
        bad.failures["renew"] = [CoordinatorError("busy")]
        await rig.goes_on()
        assert [type(one) for one in rig.heard] == [Admitted, Renewed]


async def test_a_renewal_says_when_the_agents_certificate_ends() -> None:
    """So that the coordinator gives a new one in time; one that is not for our key is that coordinator's failure."""
    broker = FakeBroker("one")
    rig = Rig(broker)
    async with rig.running():
        await rig.slept(1)
        year = 365 * 86400
        assert rig.admission.agent_expires_at == NOW + year
        broker.renewal = renewal(agent_pem=agent_pem(KEYS.public.tls, NOW - 60))
        await rig.goes_on()
        assert broker.held[-1].agent_expires_at == NOW + year
        assert rig.admission.agent_expires_at == NOW + year - 60
        for bad in (agent_pem(KEYS.public.leaf), agent_pem(KEYS.public.tls) * 2, "CERT"):
            broker.renewal = renewal(agent_pem=bad)
            await rig.goes_on()
            assert "cannot be used" in rig.admission.status.reason, bad
            assert broker.held[-1].agent_expires_at == NOW + year - 60
