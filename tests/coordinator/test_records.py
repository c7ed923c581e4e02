"""The work on Consul after the start: holders that vanish, rights that end, a manifest that no longer allows."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from types import SimpleNamespace
from typing import Any

import pytest

from coordinator import tokens
from coordinator.broker import Broker
from coordinator.ledger import Ledger
from coordinator.records import Records
from coordinator.registry import Registry
from runtime.consul import ConsulClient, ConsulError
from runtime.secret import Secret
from runtime.tasks import TaskScope
from tests.coordinator.setting import proposed
from tests.coordinator.world import (
    API_COMPOSE,
    CLIENT_COMPOSE,
    OWNER,
    Applicant,
    Running,
    cluster,
    cvm,
)
from tests.support import eventually
from tests.topology.support import after, opened
from topology.revocation import Revocation


def applicant(lead: Running, **changes: object) -> Applicant:
    """An honest CVM of `api`."""
    return Applicant(url=lead.url, manifest=lead.coordinator.head.manifest, **changes)  # type: ignore[arg-type]


def age(lead: Running, peer_id: str, seconds: float) -> None:
    """Makes a holder's last renewal older, as time would."""
    ledger = lead.coordinator.ledger
    held = ledger.slots[peer_id]
    ledger.slots[peer_id] = dataclasses.replace(held, renewed_at=held.renewed_at - seconds)


class Nonsense:
    """A Consul whose first answers are of any shape, and the next one is good."""

    def __init__(self, *answers: object) -> None:
        self.answers = [*answers]

    async def get(self, *_: object, **__: object) -> tuple[int, object]:
        """The next answer; none once all were given."""
        if not self.answers:
            await asyncio.Event().wait()
        return 7, self.answers.pop(0)


async def test_a_watch_goes_on_after_an_answer_of_any_shape() -> None:
    """What Consul says wrongly is told, and does not end the coordinator."""
    taken: list[object] = []
    client = Nonsense(
        [{"Key": 5}], [5], [{"Key": "coordinator/slots/x"}], [{"Key": "k", "ModifyIndex": 1, "Value": 5}], []
    )
    ledger = Ledger(ConsulClient(), Registry(lambda: None), lambda: 100.0, lambda: 100.0)

    def take(index: int, tree: Any) -> None:
        ledger.take_records(index, tree)
        taken.append(tree)

    nothing: Any = None
    server: Any = SimpleNamespace(client=client)
    records = Records(server, ledger, own=nothing, owners=None, head=nothing, chronicle=nothing, documents=nothing)
    async with TaskScope() as scope:
        watch = scope.start("watch", records._watch("/v1/kv/x", {}, take))
        await eventually(lambda: taken == [[]], "the good answer is taken")
        watch.cancel()


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
