"""The link's adapter; the link itself is tested in tests/peer."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
from pathlib import Path

import pytest

from admission.protocol import MeshPeer
from coordinator.config import begun, parse
from coordinator.link import MeshLink, make_link
from peer.spec import InterfaceSpec
from peer.wireguard import UserspaceDevice, generate_key
from runtime.tasks import TaskScope
from tests.coordinator.world import OWNER, OWNER_KEY, make_manifest, wireguard_key
from tests.support import eventually, network_namespace
from tests.topology.support import opened
from tests.vip.test_filter import OTHER, OWN, POOL, dial, listen, wire
from tests.xds.test_lost_peer import within

CONFIG = begun(parse({"MESH_CLUSTER": "tests", "MESH_OWNERS": OWNER_KEY}), opened(make_manifest(), OWNER))


def peer(name: str, address: str, key: str | None = None) -> MeshPeer:
    """An admitted workload."""
    return MeshPeer(peer_id=name, public_key=key or wireguard_key(), address=address, kind="workload")


async def made() -> MeshLink:
    """A link that does not run."""
    return await make_link(CONFIG, generate_key()[0], "127.90.0.1")


async def test_peers_become_links() -> None:
    """Each peer has a row in the status; before its first handshake it has no path."""
    link = await made()
    link.set_peers((peer("api-0", "127.90.0.20"), peer("api-1", "127.90.0.21")))
    assert link.status() == [
        {"peer_id": "api-0", "path": "none", "handshake_age_s": None, "mtu": 1216},
        {"peer_id": "api-1", "path": "none", "handshake_age_s": None, "mtu": 1216},
    ]


async def test_the_mtu_may_be_set_by_hand() -> None:
    """MESH_PATH_MTU less the tunnel's overhead, in whole units of its padding, is every link's MTU."""
    link = await make_link(dataclasses.replace(CONFIG, path_mtu=1400), generate_key()[0], "127.90.0.1")
    link.set_peers((peer("api-0", "127.90.0.20"),))
    assert [row["mtu"] for row in link.status()] == [1328]


async def test_a_set_that_cannot_be_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Two peers with one key are logged and left out; the good set before stays."""
    link = await made()
    good = peer("api-0", "127.90.0.20")
    link.set_peers((good,))
    link.set_peers((good, peer("api-1", "127.90.0.21", good.public_key)))
    assert [row["peer_id"] for row in link.status()] == ["api-0"]
    assert "peers not applied" in caplog.text


async def test_each_boot_has_a_key_of_its_own() -> None:
    """Keys are made per process."""
    one, two = await made(), await made()
    assert one.public_key != two.public_key


async def test_up_means_bindable() -> None:
    """`up` returns as soon as the mesh address can be bound; on loopback that is now."""
    await (await made()).up()


@pytest.mark.netns
def test_the_mesh_reaches_consuls_ports_only_while_the_link_runs() -> None:
    """Its RPC and its gossip; neither the HTTP API nor the broker. A wire stands for the device."""
    ports = (8300, 8301, 8500, 8787)
    name = f"t{os.getpid()}c"
    # A program that ends at once: there is no device of WireGuard's.
    config = dataclasses.replace(CONFIG, wireguard_go=Path("/bin/false"))

    async def run(cvm: str, other: str) -> None:
        spec = InterfaceSpec(private_key=generate_key()[0], address=OWN, pool=POOL, name=name)
        link = MeshLink(UserspaceDevice(spec), "", config)
        async with TaskScope() as scope:
            task = scope.start("link", link.run())
            await eventually(lambda: dial(other, OWN, 8500) == errno.ECONNREFUSED, "the filter is there")
            assert [dial(other, OWN, port) for port in ports] == [0, 0, errno.ECONNREFUSED, errno.ECONNREFUSED]
            assert [dial(cvm, OWN, port) for port in ports] == [0, 0, 0, 0]
            task.cancel()
        assert link.problem is None
        assert [dial(other, OWN, port) for port in ports] == [0, 0, 0, 0]

    with network_namespace() as cvm, network_namespace() as other:
        wire((cvm, other), name, (OWN, OTHER), 16)
        servers = [listen(cvm, port) for port in ports]
        within(cvm, lambda: asyncio.run(run(cvm, other)))
        for server in servers:
            server.close()
