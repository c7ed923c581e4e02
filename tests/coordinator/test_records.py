"""The work on Consul after the start: holders that vanish, rights that end, a manifest that no longer allows."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from admission.protocol import MANIFEST_KEY, MANIFESTS_PREFIX, Code, MeshPeer
from coordinator import governance, proposal, tokens
from coordinator.broker import Broker
from coordinator.head import Head
from coordinator.history import name_of
from coordinator.records import Records
from coordinator.refusal import RefusalError
from runtime.consul import ConsulClient, ConsulError
from runtime.guest import GuestInfo
from runtime.secret import Secret
from tests.coordinator.world import (
    API_COMPOSE,
    CLIENT_COMPOSE,
    COORDINATOR_COMPOSE,
    OWNER,
    OWNERS,
    Applicant,
    Running,
    cluster,
    cvm,
    make_manifest,
)
from tests.support import eventually, soon
from tests.topology.support import after, opened
from topology.envelope import Signed, seal
from topology.revocation import Revocation


def applicant(lead: Running, **changes: object) -> Applicant:
    """An honest CVM of `api`."""
    return Applicant(url=lead.url, manifest=lead.coordinator.head.manifest, **changes)  # type: ignore[arg-type]


def age(lead: Running, peer_id: str, seconds: float) -> None:
    """Makes a holder's last renewal older, as time would."""
    ledger = lead.coordinator.ledger
    held = ledger.slots[peer_id]
    ledger.slots[peer_id] = dataclasses.replace(held, renewed_at=held.renewed_at - seconds)


async def test_a_holder_that_neither_renews_nor_lives_is_forgotten() -> None:
    """After its lease its slot is free, its key is off the link, its token is revoked."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        admission = await applicant(lead).admitted()

        def gone() -> bool:
            # Again each time: a watch that answers meanwhile brings the written renewal back.
            age(lead, "api-0", 60.0)
            return lead.link.peers == ()

        await eventually(gone, "the peer is off the link")
        await eventually(lambda: lead.coordinator.document()["admitted"] == [], "the slot is free")
        async with ConsulClient(Secret(admission["consul"]["token"]), socket=lead.consul) as consul:
            await eventually_refused(consul)


async def eventually_refused(consul: ConsulClient) -> None:
    """Waits until Consul no longer knows the token: revoking follows the freeing of the slot."""
    async with asyncio.timeout(10):
        while await status(consul) != 403:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def status(consul: ConsulClient) -> int:
    """How Consul answers to the token."""
    try:
        await consul.get("/v1/acl/token/self")
    except ConsulError as error:
        return error.status
    return 200


async def test_a_token_can_do_what_its_group_may_and_no_more() -> None:
    """Own service, own keys, reading the mesh: yes. Others' services, others' keys, the records, policies: no."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        admission = await applicant(lead).admitted()
        other = await applicant(lead, group="client", who=cvm(CLIENT_COMPOSE, "client-0")).admitted()
        async with (
            ConsulClient(Secret(admission["consul"]["token"]), socket=lead.consul) as api,
            ConsulClient(Secret(other["consul"]["token"]), socket=lead.consul) as client,
        ):
            await api.put("/v1/kv/service/api/leader", b"me")
            for path in ("mesh/peers/api-1", "coordinator/slots/api-0", "mesh/manifest", "else"):
                with pytest.raises(ConsulError, match="403"):
                    await api.put(f"/v1/kv/{path}", b"x")
            with pytest.raises(ConsulError, match="403"):
                await client.put("/v1/kv/service/api/leader", b"me")
            assert (await api.get("/v1/kv/coordinator/", params={"recurse": ""}))[1] in (None, [])
            assert (await client.get("/v1/kv/mesh/manifest"))[1]
            node = {"Node": "api-0", "Address": "100.96.0.9", "Service": {"Service": "api", "Port": 1}}
            assert await api.put("/v1/catalog/register", node)
            for wrong in (node | {"Node": "api-1"}, node | {"Service": {"Service": "db", "Port": 1}}):
                with pytest.raises(ConsulError, match="403"):
                    await api.put("/v1/catalog/register", wrong)
            assert (await client.get("/v1/health/service/api"))[1][0]["Service"]["Port"] == 1
            with pytest.raises(ConsulError, match="403"):
                await api.put("/v1/acl/policy", {"Name": "mine", "Rules": ""})


async def test_a_token_cannot_make_its_cvm_another_service() -> None:
    """No instance of another's service, no proxy of any, no intention, no session of another node, no keyring; and
    nobody gives out certificates.
    """
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        await applicant(lead).admitted()
        other = await applicant(lead, group="client", who=cvm(CLIENT_COMPOSE, "client-0")).admitted()
        proxy = {
            "Kind": "connect-proxy",
            "Service": "client-sidecar-proxy",
            "Port": 1,
            "Proxy": {"DestinationServiceName": "client"},
        }
        intention = {"Kind": "service-intentions", "Name": "api", "Sources": [{"Name": "client", "Action": "allow"}]}
        forbidden = (
            ("/v1/catalog/register", {"Node": "client-0", "Address": "100.96.0.9", "Service": proxy}),
            ("/v1/agent/service/register", {"Name": "api", "Port": 1}),
            ("/v1/config", intention),
            ("/v1/config", {"Kind": "proxy-defaults", "Name": "global"}),
            ("/v1/config", {"Kind": "service-defaults", "Name": "api", "Protocol": "tcp"}),
            ("/v1/session/create", {"Node": "api-0", "Checks": []}),
            ("/v1/operator/keyring", {"Key": other["consul"]["gossip_keys"][0]}),
            ("/v1/event/fire/x", None),
            ("/v1/connect/ca/configuration", {"Provider": "consul", "Config": {}}),
        )
        async with ConsulClient(Secret(other["consul"]["token"]), socket=lead.consul) as client:
            for path, body in forbidden:
                with pytest.raises(ConsulError, match=r"403|Connect must be enabled"):
                    await client.put(path, body)
            for path in ("/v1/operator/keyring", "/v1/acl/tokens"):
                with pytest.raises(ConsulError, match="403"):
                    await client.get(path)
        for path in ("/v1/agent/connect/ca/leaf/api", "/v1/agent/connect/ca/roots"):
            with pytest.raises(ConsulError, match="Connect must be enabled"):
                await lead.coordinator.consul.get(path)


async def test_a_renewal_hands_a_fresh_token_past_half_life() -> None:
    """The fresh one works, and the next renewal gives none."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        asker = applicant(lead)
        admission = await asker.admitted()
        ledger = lead.coordinator.ledger
        half = time.time() + tokens.TOKEN_SECONDS / 2 - 1
        renewal = {"token": None}
        for _ in range(50):
            # A watch that answers meanwhile brings the written expiry back.
            ledger.slots["api-0"] = dataclasses.replace(ledger.slots["api-0"], token_expires_at=half)
            _, renewal = await asker.post("renew", {"lease": admission["lease"]})
            if renewal["token"] is not None:
                break
        assert renewal["token"] not in (None, admission["consul"]["token"])
        async with ConsulClient(Secret(renewal["token"]), socket=lead.consul) as consul:
            assert (await consul.get("/v1/acl/token/self"))[1]["ExpirationTime"]
        _, again = await asker.post("renew", {"lease": admission["lease"]})
        assert again["token"] is None


async def test_a_manifest_that_drops_a_compose_hash_ends_the_admission() -> None:
    """At the next renewal the CVM of the old hash loses its lease and its slot."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        asker = applicant(lead, who=cvm(API_COMPOSE, "api-0"))
        admission = await asker.admitted()
        broker = lead.coordinator.broker
        groups = dict(broker.rules.manifest.groups)
        groups["api"] = dataclasses.replace(groups["api"], compose_hashes=("00" * 32,))
        lead.coordinator.head.adopt(opened(after(broker.rules.signed, groups=groups)), time.time())
        status, answer = await asker.post("renew", {"lease": admission["lease"]})
        assert (status, answer["code"]) == (401, "LEASE_INVALID")
        assert lead.coordinator.document()["admitted"] == []


@pytest.mark.parametrize("change", ["compose hash", "OS image", "machine"])
async def test_a_holder_that_never_renews_is_put_out_when_the_manifest_drops_it(change: str) -> None:
    """A CVM that means ill keeps its agent alive and never asks: key off the link, token revoked all the same."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        admission = await applicant(lead).admitted()
        broker, ledger = lead.coordinator.broker, lead.coordinator.ledger
        assert [peer.peer_id for peer in lead.link.peers] == ["api-0"]
        manifest = broker.rules.manifest
        [reference] = manifest.references
        if change == "OS image":
            other = dataclasses.replace(reference.os_images[0], mrtd="00" * 48)
            newer = after(broker.rules.signed, references=(dataclasses.replace(reference, os_images=(other,)),))
        elif change == "machine":
            newer = after(broker.rules.signed, references=(dataclasses.replace(reference, devices=("ab" * 16,)),))
        else:
            group = dataclasses.replace(manifest.groups["api"], compose_hashes=("00" * 32,))
            newer = after(broker.rules.signed, groups={**manifest.groups, "api": group})
        # Its lease is not what ends it.
        ledger.slots["api-0"] = dataclasses.replace(ledger.slots["api-0"], renewed_at=time.time() + 1000)
        lead.coordinator.head.adopt(opened(newer), time.time())
        await eventually(lambda: lead.link.peers == (), "the peer is off the link")
        async with ConsulClient(Secret(admission["consul"]["token"]), socket=lead.consul) as consul:
            await eventually_refused(consul)


async def test_a_key_that_two_coordinators_admitted_at_once_is_the_first_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """No link takes two peers with one key: the later slot is freed, and the links go on."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        first = applicant(lead)
        await first.admitted()
        # As at a coordinator that has not heard of the first yet.
        monkeypatch.setattr(Broker, "_check_key_is_own", lambda *_: None)
        await applicant(lead, who=cvm(API_COMPOSE, "api-1"), boot=first.boot).admitted()
        # The records first: the link may not have heard of the later one yet.
        await eventually(lambda: lead.coordinator.document()["admitted"] == ["api-0"], "the later slot is freed")
        await eventually(lambda: [peer.peer_id for peer in lead.link.peers] == ["api-0"], "the later one is off")


async def proposed(lead: Running, envelope: str) -> tuple[int, dict[str, object]]:
    """The answer of a coordinator to a manifest that is to be set."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session,
        session.post(f"{lead.url}/v1/manifest", json={"envelope": envelope}) as response,
    ):
        return response.status, await response.json()


async def put(lead: Running, envelope: str) -> None:
    """Sets it, as soon as Consul takes writes: on a busy machine its leader may change."""
    while (found := await proposed(lead, envelope))[0] == 503:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    assert found[0] == 200, found


async def all_enforce(leads: Sequence[Running], digest: str) -> None:
    """Waits until `enforce`; a failure shows what each says."""
    if not await soon(lambda: enforce(leads, digest), 30):
        pytest.fail(f"not within 30 s: all enforce {digest}; {[lead.coordinator.document() for lead in leads]}")


def enforce(leads: Sequence[Running], digest: str) -> bool:
    """Whether all of them enforce that manifest, and are ready."""
    return all(
        lead.coordinator.head.signed.digest == digest and lead.coordinator.document()["ready"] is True for lead in leads
    )


async def test_any_coordinator_takes_the_next_manifest_and_the_others_follow() -> None:
    """Right after one another, each at another coordinator; the same again changes nothing."""
    async with cluster(3) as mesh:
        for n in range(3):
            await mesh.start(n)
        leads = [await mesh.ready(n) for n in range(3)]
        head = leads[0].coordinator.head.signed
        for lead in leads:
            newer = opened(after(head, leaf_hours=head.manifest.leaf_hours + 1), OWNER)
            status, answer = await proposed(lead, newer.envelope)
            assert (status, answer) == (200, dataclasses.asdict(proposal.shown(newer)))
            assert enforce([lead], newer.digest)
            assert await proposed(lead, newer.envelope) == (200, answer)
            head = newer
        await all_enforce(leads, head.digest)
        _, entries = await leads[0].coordinator.consul.get(f"/v1/kv/{MANIFEST_KEY}")
        # Repeating wrote nothing: the first entry, and three changes.
        assert governance.held(entries).envelope == head.envelope
        assert [lead.coordinator.document()["manifest_notes"] for lead in leads] == [[], [], []]


async def test_manifests_in_between_are_read_from_the_records() -> None:
    """A watch brings the last of several alone. It is enforced once those before it are found, and not before; nor is
    one that follows a fork.
    """
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        head, consul = lead.coordinator.head, lead.coordinator.consul
        first = head.signed
        second = opened(after(first, leaf_hours=9), OWNER)
        third = opened(after(second), OWNER)
        await consul.put(f"/v1/kv/{MANIFEST_KEY}", third.envelope.encode())
        await eventually(lambda: head.behind, "it knows that some are missing")
        assert head.signed == first
        await consul.put(f"/v1/kv/{MANIFESTS_PREFIX}{name_of(second)}", second.envelope.encode())
        await all_enforce([lead], third.digest)
        assert head.notes == ()


async def test_of_two_owners_at_once_one_is_told_the_others_manifest() -> None:
    """At two coordinators, again and again: never both, and never neither."""
    async with cluster(3) as mesh:
        for n in range(3):
            await mesh.start(n)
        leads = [await mesh.ready(n) for n in range(3)]
        head = leads[0].coordinator.head.signed
        for _ in range(5):
            rivals = [opened(after(head, leaf_hours=hours), OWNER) for hours in (20, 30)]
            answers = await asyncio.gather(
                *(proposed(lead, rival.envelope) for lead, rival in zip(leads[:2], rivals, strict=True))
            )
            assert sorted(status for status, _ in answers) == [200, 409]
            won, lost = sorted(answers, key=lambda answer: answer[0])
            assert lost[1]["head"] == won[1]
            head = next(rival for rival in rivals if rival.envelope == won[1]["envelope"])
            await all_enforce(leads, head.digest)


async def test_what_is_not_to_be_set_reaches_no_records() -> None:
    """Not signed, too old, of another app: nothing is written, and the head goes on."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        head = lead.coordinator.head.signed
        _, before = await lead.coordinator.consul.get(f"/v1/kv/{MANIFEST_KEY}")
        other = dataclasses.replace(head.manifest.coordinators, compose_hashes=("22" * 32,))
        for envelope, wanted in (
            (seal(after(head), Ed25519PrivateKey.generate()), 403),
            (seal(after(head, coordinators=other), OWNER), 422),
            (seal(after(opened(after(head))), OWNER), 409),
            ("garbage", 400),
        ):
            assert (await proposed(lead, envelope))[0] == wanted
        assert (await lead.coordinator.consul.get(f"/v1/kv/{MANIFEST_KEY}"))[1] == before
        assert enforce([lead], head.digest)


@pytest.mark.parametrize("what", ["peer_id", "instance_id", "compose_hash", "device"])
async def test_who_is_revoked_is_out_at_once_and_stays_out(what: str) -> None:
    """Off the link and the lists without a renewal; each answer says what is revoked. Another CVM of the group takes
    the slot, unless the slot itself is revoked.
    """
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        bad, other = applicant(lead), applicant(lead, who=cvm(API_COMPOSE, "api-1"))
        admission = await bad.admitted("api-0")
        value = {
            "peer_id": "api-0",
            "instance_id": bad.who.instance_id,
            "compose_hash": bad.who.compose_hash,
            "device": lead.coordinator.ledger.slots["api-0"].device,
        }[what]
        entry = Revocation(**{what: value})
        newer = opened(after(lead.coordinator.head.signed, revoked=(entry,)), OWNER)
        assert (await proposed(lead, newer.envelope))[0] == 200
        await eventually(lambda: lead.link.peers == (), "it is off the link")
        await eventually(lambda: lead.coordinator.document()["admitted"] == [], "and off the list")
        status, answer = await bad.post("renew", {"lease": admission["lease"]})
        assert (status, answer["code"]) == (401, "LEASE_INVALID")
        for peer_id in ("api-0", None) if what != "peer_id" else ("api-0",):
            status, answer = await bad.attest(peer_id)
            assert (status, answer["code"]) == (403, "REVOKED")
            assert answer["reason"] == f"the manifest revokes {entry.text}"
        if what == "peer_id":
            assert (await other.admitted())["peer_id"] == "api-1"
        if what == "instance_id":
            await other.admitted("api-0")


async def test_a_renewal_of_who_is_revoked_says_so() -> None:
    """Where it comes before the sweep."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        asker = applicant(lead)
        admission = await asker.admitted()
        entry = Revocation(instance_id=asker.who.instance_id)
        lead.coordinator.head.adopt(opened(after(lead.coordinator.head.signed, revoked=(entry,)), OWNER), time.time())
        status, answer = await asker.post("renew", {"lease": admission["lease"]})
        assert (status, answer["code"]) == (401, "LEASE_INVALID")
        assert answer["reason"] == f"the manifest revokes {entry.text}"


@pytest.mark.parametrize("what", ["app", "group", "mesh address"])
async def test_who_is_in_another_place_than_the_manifest_has_is_out_at_once(what: str) -> None:
    """Its group has another app, or its slot is another group's or elsewhere, with the compose file as it was."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        asker = applicant(lead)
        admission = await asker.admitted("api-0")
        groups = dict(mesh.manifest.groups)
        api = groups.pop("api")
        elsewhere = dataclasses.replace(api.peers[0], address="127.0.0.77")
        changed = {
            "app": {"api": dataclasses.replace(api, app_id="99" * 20)},
            "group": {"web": api},
            "mesh address": {"api": dataclasses.replace(api, peers=(elsewhere, *api.peers[1:]))},
        }[what]
        newer = opened(after(lead.coordinator.head.signed, groups=groups | changed), OWNER)
        assert (await proposed(lead, newer.envelope))[0] == 200
        await eventually(lambda: lead.link.peers == (), "it is off the link")
        await eventually(lambda: lead.coordinator.document()["admitted"] == [], "and off the list")
        status, answer = await asker.post("renew", {"lease": admission["lease"]})
        assert (status, answer["code"]) == (401, "LEASE_INVALID")
        if what == "mesh address":
            assert (await asker.admitted())["address"] == "127.0.0.77"


class Kv:
    """The manifest's entry in the records, or why it cannot be read."""

    def __init__(self) -> None:
        self.fails: Exception | None = None
        self.envelope: str | None = None

    async def get(self, path: str, **_: object) -> tuple[int, list[dict[str, object]]]:
        """As ConsulClient."""
        assert path == f"/v1/kv/{MANIFEST_KEY}"
        if self.fails is not None:
            raise self.fails
        if self.envelope is None:
            return 1, []
        return 1, [{"Value": base64.b64encode(self.envelope.encode()).decode(), "ModifyIndex": 1, "Flags": 0}]


def unfounded(kv: Any, first: Signed) -> tuple[Records, Head]:
    """Records of which nothing but `kv` is there, of a coordinator that enforces `first`."""
    lead = cvm(COORDINATOR_COMPOSE, "coordinator-0")
    info = GuestInfo(app_id=lead.app_id, instance_id=lead.instance_id, compose_hash=lead.compose_hash)
    place = first.manifest.coordinators.peers[0]
    own = MeshPeer(peer_id=place.peer_id, public_key="k", address=place.address, kind="coordinator")
    head = Head(first, info, own, check_signatures=True, keep=lambda _: None, changed=lambda: None)
    head.settle(1.0)
    parts: Any = SimpleNamespace(client=kv)
    nothing: Any = None
    return Records(parts, nothing, own=own, owners=OWNERS, head=head, chronicle=nothing, documents=nothing), head


def test_what_a_sibling_enforces_is_carried_out_as_what_the_records_have() -> None:
    """Whom it ends is put out, and what is missing before it is looked for."""
    first = opened(make_manifest(), OWNER)
    it, head = unfounded(Kv(), first)
    second = opened(after(first, leaf_hours=9), OWNER)
    it.sibling_enforces(opened(after(second), OWNER).envelope)
    assert (it._behind.is_set(), it._adopted.is_set(), it._swept.is_set()) == (True, False, False)
    it.sibling_enforces(second.envelope)
    assert (it._adopted.is_set(), it._swept.is_set(), head.signed) == (True, True, second)


async def test_what_is_in_force_is_confirmed_by_the_records() -> None:
    """With nobody to ask, or nothing there, it is not certain; a newer manifest is enforced first."""
    kv, first = Kv(), opened(make_manifest(), OWNER)
    it, head = unfounded(kv, first)

    async def refusal() -> str:
        with pytest.raises(RefusalError) as caught:
            await it.confirm()
        assert caught.value.code is Code.NOT_READY
        return caught.value.reason

    kv.fails = ConsulError(500, "No cluster leader")
    assert "do not confirm which manifest is in force: " in await refusal()
    kv.fails = None
    assert "another manifest" in await refusal()
    for envelope in (first.envelope, seal(first.manifest, Ed25519PrivateKey.generate(), OWNER)):
        kv.envelope = envelope
        await it.confirm()
    second = opened(after(first, leaf_hours=9), OWNER)
    kv.envelope = second.envelope
    await it.confirm()
    assert head.signed.digest == second.digest
    kv.envelope = first.envelope
    assert "another manifest" in await refusal()
