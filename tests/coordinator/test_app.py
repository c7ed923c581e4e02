"""A whole coordinator: real Consul, simulated TEE."""

from __future__ import annotations

from runtime.consul import ConsulClient
from runtime.secret import Secret
from tests.coordinator.world import Applicant, cluster


async def test_a_cvm_is_admitted() -> None:
    """An honest CVM gets its slot, its address, a token that works, and is in the registry and on the link."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        api = Applicant(url=lead.url, manifest=mesh.manifest)
        admission = await api.admitted()
        assert admission["peer_id"] == "api-0"
        assert [peer.peer_id for peer in lead.link.peers] == ["api-0"]
        async with ConsulClient(Secret(admission["consul"]["token"]), socket=lead.consul) as consul:
            _, entries = await consul.get("/v1/kv/mesh/peers/", params={"recurse": ""})
            assert [entry["Key"] for entry in entries] == ["mesh/peers/api-0", "mesh/peers/coordinator-0"]
        assert lead.coordinator.document()["admitted"] == ["api-0"]
