"""What the manifest makes of Consul; a real server shows that Consul takes it."""

from __future__ import annotations

import dataclasses

from coordinator import governance
from runtime.consul import ConsulClient
from tests.coordinator.world import OWNER, OWNER_KEY, cluster, make_manifest
from tests.support import eventually
from topology.manifest import Intention, sign, unsigned

MANIFEST = make_manifest()
KEY = OWNER.public_key().public_bytes_raw()


def test_only_a_greater_epoch_of_the_same_cluster_is_newer() -> None:
    """Equal, smaller, other cluster, unsigned and garbage are not."""
    current = dataclasses.replace(MANIFEST, epoch=5)
    assert governance.newer(sign(dataclasses.replace(MANIFEST, epoch=6), OWNER), current, KEY) is not None
    for envelope in (
        sign(current, OWNER),
        sign(dataclasses.replace(MANIFEST, epoch=4), OWNER),
        sign(dataclasses.replace(MANIFEST, epoch=6, cluster="other"), OWNER),
        unsigned(dataclasses.replace(MANIFEST, epoch=6)),
        "garbage",
    ):
        assert governance.newer(envelope, current, KEY) is None


async def test_a_newer_manifest_in_the_kv_is_adopted_and_carried_out() -> None:
    """Intentions change, the old ones go, the epoch in the status grows; an older one changes nothing."""
    assert OWNER_KEY
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        newer = dataclasses.replace(mesh.manifest, epoch=2, intentions=(Intention(source="client", destination="api"),))
        consul = lead.coordinator.consul
        assert await intentions(consul) == {"*"}
        await consul.put("/v1/kv/mesh/manifest", sign(newer, OWNER).encode())
        await eventually(lambda: lead.coordinator.document()["manifest_epoch"] == 2, "the manifest is adopted")
        found: set[str] = set()
        while found != {"api"}:
            found = await intentions(consul)
        await consul.put("/v1/kv/mesh/manifest", sign(mesh.manifest, OWNER).encode())
        await consul.put("/v1/kv/mesh/manifest", b"garbage")
        assert lead.coordinator.document()["manifest_epoch"] == 2


async def intentions(consul: ConsulClient) -> set[str]:
    """Destinations that have an entry."""
    _, entries = await consul.get("/v1/config/service-intentions")
    return {entry["Name"] for entry in entries}


async def test_a_restarted_coordinator_takes_the_newest_manifest() -> None:
    """Of its own and the one in the KV, the greater epoch wins, in both directions."""
    async with cluster() as mesh:
        await mesh.start()
        consul = (await mesh.ready()).coordinator.consul
        old, new = sign(mesh.manifest, OWNER), sign(dataclasses.replace(mesh.manifest, epoch=3), OWNER)
        newest = dataclasses.replace(mesh.manifest, epoch=4)
        assert await governance.publish_manifest(consul, mesh.manifest, old, KEY) == old
        assert await governance.publish_manifest(consul, newest, new, KEY) == new
        assert await governance.publish_manifest(consul, mesh.manifest, old, KEY) == new
