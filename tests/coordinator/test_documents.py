"""App-compose texts on real coordinators: kept for whoever verifies, and only those that the manifest names."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.documents import Documents
from evidence.bundle import decode
from evidence.documents import digest
from tests.coordinator.setting import all_enforce
from tests.coordinator.world import (
    API_COMPOSE,
    CLIENT_COMPOSE,
    COORDINATOR_COMPOSE,
    OWNER,
    Running,
    cluster,
    make_manifest,
)
from tests.topology.support import after, opened
from topology.envelope import seal

SECOND = Ed25519PrivateKey.from_private_bytes(bytes(32))


async def post(lead: Running, path: str, body: object) -> tuple[int, bytes]:
    """Status and body of the answer."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session,
        session.post(f"{lead.url}{path}", json=body) as response,
    ):
        return response.status, await response.read()


async def texts(lead: Running) -> Any:
    """The texts in the bundle that the coordinator gives."""
    status, data = await post(lead, "/v1/attest", {"nonce": "ab" * 32})
    return decode(data).documents if status == 200 else status


class Written:
    """Consul's KV, as far as texts are written."""

    def __init__(self) -> None:
        self.names: list[str] = []

    async def put(self, path: str, body: bytes, params: dict[str, str]) -> bool:
        """Takes it."""
        assert (body != b"", params) == (True, {"cas": "0"})
        self.names.append(path.rpartition("/")[2])
        return True


async def test_only_what_the_manifest_in_force_names_is_kept() -> None:
    """They came with one that may not be in force any more, or that fills the history."""
    client = Written()
    found = Documents(client)  # type: ignore[arg-type]
    await found.keep({digest(text): text for text in (API_COMPOSE, "{}")}, make_manifest())
    assert client.names == [digest(API_COMPOSE)]


async def test_texts_come_with_a_manifest_and_go_with_their_hash() -> None:
    """Set with the manifest in force, seen at every coordinator; gone when no compose hash is theirs any more."""
    async with cluster(2) as mesh:
        for n in range(2):
            await mesh.start(n)
        leads = [await mesh.ready(n) for n in range(2)]
        head = leads[0].coordinator.head.signed
        api = {digest(API_COMPOSE): API_COMPOSE}
        for wrong in ({digest(API_COMPOSE): API_COMPOSE + " "}, {digest("{}"): "{}"}):
            status, said = await post(leads[0], "/v1/manifest", {"envelope": head.envelope, "documents": wrong})
            assert (status, b"MANIFEST_REFUSED" in said) == (422, True), said
        # Who brings a manifest that nobody signed is told so before anything in it is read.
        for envelope in (seal(after(head), SECOND), seal(after(head))):
            status, said = await post(leads[0], "/v1/manifest", {"envelope": envelope, "documents": {"ab": "x"}})
            assert (status, b"MANIFEST_NOT_SIGNED" in said) == (403, True), said
        assert await texts(leads[0]) == {}
        status, said = await post(leads[0], "/v1/manifest", {"envelope": head.envelope, "documents": api})
        assert status == 200, said

        async def seen(wanted: dict[str, str]) -> None:
            found: list[Any] = []
            async with asyncio.timeout(60):
                while found != [wanted, wanted]:
                    found = [await texts(lead) for lead in leads]

        await seen(api)
        groups = dict(head.manifest.groups)
        del groups["api"]
        routes = tuple(route for route in head.manifest.routes if route.group != "api")
        without = opened(after(head, groups=groups, routes=routes), OWNER)
        others = {digest(text): text for text in (COORDINATOR_COMPOSE, CLIENT_COMPOSE)}
        status, said = await post(leads[1], "/v1/manifest", {"envelope": without.envelope, "documents": api})
        assert status == 422, said
        status, said = await post(leads[1], "/v1/manifest", {"envelope": without.envelope, "documents": others})
        assert status == 200, said
        await all_enforce(leads, without.digest)
        await seen(others)
        _, keys = await leads[0].coordinator.consul.get("/v1/kv/mesh/documents/", params={"keys": ""})
        async with asyncio.timeout(60):
            while len(keys) > 2:
                _, keys = await leads[0].coordinator.consul.get("/v1/kv/mesh/documents/", params={"keys": ""})
