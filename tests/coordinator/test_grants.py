"""What a CVM is handed, and, in a real Consul, what it can do with it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import json
import logging
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from admission.protocol import LeaseRequest
from coordinator import grants, records
from coordinator.keys import AGENT_CERTIFICATE_DAYS, derive, workload_secret
from coordinator.slots import Holder
from coordinator.tokens import TOKEN_SECONDS
from runtime.consul import ConsulClient, ConsulError
from runtime.secret import Secret
from tests.coordinator.world import (
    API_COMPOSE,
    CLIENT_COMPOSE,
    DB_COMPOSE,
    OWNER,
    Applicant,
    Cluster,
    Running,
    cluster,
    cvm,
    make_database_manifest,
    tls_key,
)
from tests.support import eventually
from tests.topology.support import after, opened
from topology.envelope import seal
from topology.manifest import Rotate, SecretEntry
from topology.public import Public

MANIFEST = make_database_manifest()
KEYS = derive(Secret("11" * 32), "tests")
LEAF_KEY = tls_key()
COMPOSES = {"api": API_COMPOSE, "client": CLIENT_COMPOSE, "db": DB_COMPOSE}


def holder(group: str, **changes: object) -> Holder:
    """A holder of the group's first slot with a token of full life."""
    held = Holder(
        peer_id=f"{group}-0", group=group, instance_id="i", boot_key="k", leaf_key=LEAF_KEY,
        compose_hash="c", renewed_at=0.0, token_expires_at=float(TOKEN_SECONDS),
    )  # fmt: skip
    return dataclasses.replace(held, **changes)  # type: ignore[arg-type]


def test_secrets_are_for_the_owner_and_the_granted() -> None:
    """Nobody else gets them, and everybody who does gets the same."""
    assert grants.secrets(KEYS, MANIFEST, "db") == {"database": workload_secret(KEYS, "db", "database", 0).reveal()}
    assert grants.secrets(KEYS, MANIFEST, "client") == grants.secrets(KEYS, MANIFEST, "db")
    assert grants.secrets(KEYS, MANIFEST, "api") == {}


def test_a_secret_that_is_rotated_is_another_and_the_rest_stays() -> None:
    """For all that it is granted to alike."""
    more = dataclasses.replace(MANIFEST, secrets={**MANIFEST.secrets, "other": SecretEntry(owner="db", groups=())})
    turned = dataclasses.replace(more, rotate=Rotate(secrets={"database": 1}))
    before, after_it = grants.secrets(KEYS, more, "db"), grants.secrets(KEYS, turned, "db")
    assert before["database"] != after_it["database"] == grants.secrets(KEYS, turned, "client")["database"]
    assert before["other"] == after_it["other"]


def test_an_agent_gets_a_new_certificate_in_the_second_half_of_its_own() -> None:
    """For the key that it attested, where its sidecar says that it takes one; without end or before any, too."""
    held, life = holder("api", agent_key=tls_key()), AGENT_CERTIFICATE_DAYS * 86400

    def given(expires_at: int | None, who: Holder = held) -> str | None:
        asked = LeaseRequest(lease="l", agent_expires_at=expires_at)
        return grants.agent_renewed(KEYS, MANIFEST, who, asked, 1_800_000_000.0)

    now = 1_800_000_000
    assert given(now + life // 2 - 1) is not None
    assert given(now + life // 2 + 1) is None
    assert given(None) is None
    assert given(10**400) is None
    assert given(0, holder("api")) is None
    found = x509.load_pem_x509_certificate((given(-(10**400)) or "").encode())
    spki = found.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert base64.b64encode(spki).decode() == held.agent_key
    assert found.not_valid_after_utc.timestamp() == now + life


def test_tokens_are_fresh_and_hide_themselves() -> None:
    """One for the node, and one for the workload where there is such a backend."""
    tokens = grants.new_tokens(MANIFEST, "db", os.urandom, 100.0)
    assert tokens.workload is not None
    shown = repr(tokens)
    for token in (tokens.node, tokens.workload):
        assert token.secret.reveal() not in shown
    assert tokens.expires_at == 100.0 + TOKEN_SECONDS
    bodies = tokens.bodies(MANIFEST, "db-0", "db")
    assert [body["Description"] for body in bodies] == ["admitted db-0", "workload of db-0"]
    assert len({body["SecretID"] for body in bodies} | {body["AccessorID"] for body in bodies}) == 4
    assert grants.new_tokens(MANIFEST, "api", os.urandom, 100.0).workload is None


def test_tokens_are_due_past_half_life_and_when_the_workload_comes_or_goes() -> None:
    """And at no other time: each renewal of tokens costs every service of the CVM a registration."""
    assert not grants.due(holder("api"), MANIFEST, 0.0)
    assert grants.due(holder("api"), MANIFEST, TOKEN_SECONDS / 2 + 1)
    assert grants.due(holder("api", workload_accessor="a"), MANIFEST, 0.0)
    assert grants.due(holder("db"), MANIFEST, 0.0)
    assert not grants.due(holder("db", workload_accessor="a"), MANIFEST, 0.0)


def test_public_certificates_are_those_that_the_manifest_has_for_the_group() -> None:
    """One for each public listener, for the key that was attested for them, whatever else a CVM would like; none where
    no key was attested, or where the manifest has no listener.
    """
    api = MANIFEST.groups["api"]
    backends = {
        "web": dataclasses.replace(api.backends["api"], ingress="tls", public=Public(port=443, sans=("web.example",))),
        "own": dataclasses.replace(api.backends["api"], port=9091, sidecar_port=29091),
    }
    groups = {**MANIFEST.groups, "api": dataclasses.replace(api, backends=backends)}
    signed = opened(dataclasses.replace(MANIFEST, groups=groups), OWNER)
    key = tls_key()
    found = grants.public(KEYS, signed, holder("api", public_key=key), time.time())
    assert list(found) == ["web"]
    leaf = x509.load_pem_x509_certificates(found["web"].encode())[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName("web.example")]
    spki = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert base64.b64encode(spki).decode() == key
    assert grants.public(KEYS, signed, holder("api"), time.time()) == {}
    assert grants.public(KEYS, signed, holder("client", public_key=key), time.time()) == {}


@contextlib.asynccontextmanager
async def database() -> AsyncIterator[tuple[Cluster, Running]]:
    """A coordinator of the cluster with a database."""
    # Nobody here renews a lease, and on a busy machine a test may take longer than one lasts.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "SWEEP_SECONDS", 3600.0)
        async with cluster() as mesh:
            mesh.manifest = make_database_manifest(mesh.manifest)
            await mesh.start()
            yield mesh, await mesh.ready()


def applicant(lead: Running, peer_id: str) -> Applicant:
    """An honest CVM for that slot."""
    group = peer_id.rpartition("-")[0]
    return Applicant(
        url=lead.url, manifest=lead.coordinator.head.manifest, group=group, who=cvm(COMPOSES[group], peer_id)
    )


async def refused(call: object) -> None:
    """Expects that Consul's ACLs refuse `call`."""
    with pytest.raises(ConsulError, match="403"):
        await call  # type: ignore[misc]


def test_leaves_are_renewed_about_half_life_and_not_all_at_once() -> None:
    """Each CVM has a moment of its own, a tenth of half a life around it; a leaf of another manifest is due at once."""
    signed = opened(MANIFEST, OWNER)
    half = MANIFEST.leaf_hours * 1800

    def due(peer_id: str, left: float, digest: str = signed.digest) -> bool:
        asked = LeaseRequest(lease="", leaf_digest=digest, leaf_expires_at=int(left))
        return grants.leaf_due(asked, signed, peer_id, 0.0)

    peers = [f"api-{number}" for number in range(100)]
    assert not any(due(peer, half * 1.1 + 1) for peer in peers)
    assert all(due(peer, half * 0.9 - 1) for peer in peers)
    assert 30 < sum(due(peer, half) for peer in peers) < 70
    assert due("api-0", half * 2, "another")


async def test_a_workload_token_does_its_own_things_and_nothing_else() -> None:
    """Each right is used, and its neighbour in another group, node, key or interface is tried and refused."""
    async with database() as (_, lead):
        admission = await applicant(lead, "db-0").admitted()
        await applicant(lead, "db-1").admitted()
        async with ConsulClient(Secret(admission["workload_token"]), socket=lead.consul) as db:
            node = {"Node": "db-0", "Address": "100.96.0.9"}
            async with ConsulClient(Secret(admission["consul"]["token"]), socket=lead.consul) as sidecar:
                await sidecar.put("/v1/catalog/register", node)
            known = node | {"SkipNodeUpdate": True}
            service = {"Service": "db", "ID": "db-db-0", "Port": 5432, "Tags": ["master"]}
            assert await db.put("/v1/catalog/register", known | {"Service": service})
            proxy = {
                "Kind": "connect-proxy", "Service": "db-sidecar-proxy", "Port": 25432,
                "Proxy": {"DestinationServiceName": "db"},
            }  # fmt: skip
            for other in ({"Service": "api", "Port": 1}, {"Service": "db2", "Port": 1}, proxy):
                await refused(db.put("/v1/catalog/register", known | {"Service": other}))
            await refused(db.put("/v1/catalog/register", {"Node": "db-9", "Address": "100.96.0.9"}))
            assert [entry["ServiceID"] for entry in (await db.get("/v1/catalog/service/db"))[1]] == ["db-db-0"]
            # The lock that says who leads: a session on the own node, and the key held with it.
            made = await db.put("/v1/session/create", {"Node": "db-0", "Behavior": "delete", "NodeChecks": []})
            lock = {"acquire": made["ID"]}
            assert await db.put("/v1/kv/service/db/leader", b"db-0", params=lock)
            assert await db.put(f"/v1/session/renew/{made['ID']}")
            for key in (
                "service/api/leader",
                "service/x",
                "mesh/peers/db-0",
                "mesh/manifest",
                "coordinator/slots/db-0",
            ):
                await refused(db.put(f"/v1/kv/{key}", b"x"))
            await refused(db.get("/v1/kv/mesh/manifest"))
            await refused(db.put("/v1/session/create", {"Node": "db-1", "NodeChecks": []}))
            for path in ("/v1/acl/tokens", "/v1/operator/keyring", "/v1/agent/self"):
                await refused(db.get(path))
            for path, body in (
                ("/v1/acl/policy", {"Name": "x"}),
                ("/v1/event/fire/x", None),
                ("/v1/agent/join/127.0.0.1", None),
                ("/v1/config", {"Kind": "service-defaults", "Name": "api"}),
            ):
                await refused(db.put(path, body))


async def test_everyone_may_read_who_leads_and_the_leader_may_write_it() -> None:
    """The sidecars of all groups watch the leader key; none but the database's own may touch it."""
    async with database() as (_, lead):
        clients = [await applicant(lead, peer).admitted() for peer in ("db-0", "api-0", "client-0")]
        async with contextlib.AsyncExitStack() as stack:
            db, api, client = [
                await stack.enter_async_context(ConsulClient(Secret(each["consul"]["token"]), socket=lead.consul))
                for each in clients
            ]
            assert await db.put("/v1/kv/service/db/leader", b"db-0")
            for other in (api, client):
                assert (await other.get("/v1/kv/service/db/leader"))[1][0]["Key"] == "service/db/leader"
                await refused(other.put("/v1/kv/service/db/leader", b"api-0"))
                await refused(other.get("/v1/kv/service/db/config"))


async def test_a_session_of_another_cvm_cannot_be_ended() -> None:
    """Not by a sibling's workload, nor by a group whose name begins the same: its locks would fall with it."""
    async with database() as (_, lead):
        first, second = [await applicant(lead, peer).admitted() for peer in ("db-0", "db-1")]
        async with (
            ConsulClient(Secret(first["workload_token"]), socket=lead.consul) as one,
            ConsulClient(Secret(second["workload_token"]), socket=lead.consul) as two,
            ConsulClient(Secret(first["consul"]["token"]), socket=lead.consul) as sidecar,
        ):
            await sidecar.put("/v1/catalog/register", {"Node": "db-0", "Address": "100.96.0.9"})
            made = await one.put("/v1/session/create", {"Node": "db-0", "NodeChecks": []})
            await refused(two.put(f"/v1/session/destroy/{made['ID']}"))
            assert await one.put(f"/v1/session/destroy/{made['ID']}")


async def test_both_tokens_end_with_the_slot() -> None:
    """A CVM that releases its slot leaves no token behind."""
    async with database() as (_, lead):
        asker = applicant(lead, "db-0")
        admission = await asker.admitted()
        assert (await asker.post("release", {"lease": admission["lease"]}))[0] == 200
        for text in (admission["consul"]["token"], admission["workload_token"]):
            async with ConsulClient(Secret(text), socket=lead.consul) as consul:
                await refused(consul.get("/v1/acl/token/self"))


async def test_a_renewal_past_half_life_brings_both_tokens() -> None:
    """They work, and are what the slot's record names: freeing it ends them."""
    async with database() as (_, lead):
        asker = applicant(lead, "db-0")
        admission = await asker.admitted()
        ledger = lead.coordinator.ledger
        half = time.time() + TOKEN_SECONDS / 2 - 1
        renewal: dict[str, object] = {"token": None}
        for _ in range(50):
            # A watch that answers meanwhile brings the written expiry back.
            ledger.slots["db-0"] = dataclasses.replace(ledger.slots["db-0"], token_expires_at=half)
            _, renewal = await asker.post("renew", {"lease": admission["lease"]})
            if renewal["token"] is not None:
                break
        fresh = [str(renewal["token"]), str(renewal["workload_token"])]
        assert not set(fresh) & {admission["consul"]["token"], admission["workload_token"]}
        async with ConsulClient(Secret(fresh[1]), socket=lead.consul) as consul:
            assert await consul.put("/v1/kv/service/db/x", b"x")
        assert (await asker.post("release", {"lease": admission["lease"]}))[0] == 200
        for text in fresh:
            async with ConsulClient(Secret(text), socket=lead.consul) as consul:
                await refused(consul.get("/v1/acl/token/self"))


async def test_secrets_are_granted_at_the_admission_and_change_with_the_manifest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Owner and granted get the same text at every coordinator start; a newer manifest's grants come with a renewal."""
    caplog.set_level(logging.DEBUG)
    async with database() as (mesh, lead):
        db, client, api = [applicant(lead, peer) for peer in ("db-0", "client-0", "api-0")]
        first, second, third = [await each.admitted() for each in (db, client, api)]
        word = first["secrets"]["database"]
        assert (second["secrets"], third["secrets"]) == ({"database": word}, {})
        asked = {"lease": third["lease"], "secrets_epoch": third["manifest_epoch"]}
        assert (await api.post("renew", asked))[1]["secrets"] is None
        entry = dataclasses.replace(mesh.manifest.secrets["database"], groups=("api",))
        newer = after(lead.coordinator.head.signed, secrets={"database": entry})
        await lead.coordinator.consul.put("/v1/kv/mesh/manifest", seal(newer, OWNER).encode())
        await eventually(lambda: lead.coordinator.document()["manifest_epoch"] == 2, "the manifest is adopted")
        renewed = (await api.post("renew", asked))[1]
        assert (renewed["secrets"], renewed["manifest_epoch"]) == ({"database": word}, 2)
        turned = after(lead.coordinator.head.signed, rotate=Rotate(secrets={"database": 1}))
        await lead.coordinator.consul.put("/v1/kv/mesh/manifest", seal(turned, OWNER).encode())
        await eventually(lambda: lead.coordinator.document()["manifest_epoch"] == 3, "the manifest is adopted")
        rotated = (await api.post("renew", asked | {"secrets_epoch": 2}))[1]["secrets"]
        assert rotated["database"] not in ("", word)
        withdrawn = await client.post("renew", {"lease": second["lease"], "secrets_epoch": second["manifest_epoch"]})
        assert withdrawn[1]["secrets"] == {}
        shown = json.dumps(lead.coordinator.document()) + caplog.text
        for text in (word, rotated["database"], first["workload_token"], first["consul"]["token"]):
            assert text not in shown
    async with cluster() as again:
        again.manifest = make_database_manifest(again.manifest)
        await again.start()
        lead = await again.ready()
        assert (await applicant(lead, "db-0").admitted())["secrets"]["database"] == word


async def renewed_until(asker: Applicant, lease: str, wanted: str) -> Any:
    """The first renewal that has `wanted`: policies follow a manifest a moment after it is adopted."""
    async with asyncio.timeout(30):
        while True:
            status, answer = await asker.post("renew", {"lease": lease})
            if status == 200 and answer[wanted] is not None:
                return answer
            await asyncio.sleep(0.05)


async def test_a_workload_that_a_newer_manifest_makes_or_unmakes_gets_or_loses_its_token() -> None:
    """With the next renewal, not only with the next half of a token's life."""
    async with database() as (mesh, lead):
        asker = applicant(lead, "api-0")
        admission = await asker.admitted()
        assert admission["workload_token"] == ""
        consul, group = lead.coordinator.consul, mesh.manifest.groups["api"]
        backend = dataclasses.replace(group.backends["api"], owner="workload")
        owned = dataclasses.replace(group, backends={"api": backend})
        newer = after(lead.coordinator.head.signed, groups={**mesh.manifest.groups, "api": owned})
        await consul.put("/v1/kv/mesh/manifest", seal(newer, OWNER).encode())
        token = (await renewed_until(asker, admission["lease"], "workload_token"))["workload_token"]
        async with ConsulClient(Secret(token), socket=lead.consul) as workload:
            assert await workload.put("/v1/kv/service/api/x", b"x")
            back = after(lead.coordinator.head.signed, groups=mesh.manifest.groups)
            await consul.put("/v1/kv/mesh/manifest", seal(back, OWNER).encode())
            assert (await renewed_until(asker, admission["lease"], "workload_token"))["workload_token"] == ""
            await refused(workload.get("/v1/acl/token/self"))
        status, answer = await asker.post("renew", {"lease": admission["lease"]})
        assert (status, answer["token"], answer["workload_token"]) == (200, None, None)
