from __future__ import annotations

import asyncio
import dataclasses

import pytest

from peer.spec import Peer, RendezvousPeer
from peer.wireguard import generate_key
from sidecar.link import Link, rendezvous, to_peers
from tests.sidecar.world import manifest, peer
from tests.support import network_namespace
from tests.xds.test_lost_peer import within
from topology.manifest import Rendezvous


def make_link(path_mtu: int | None = None) -> Link:
    private, _ = generate_key()
    return Link(userspace=True, private_key=private, address="100.96.0.10", manifest=manifest(), path_mtu=path_mtu)


def test_manifest_and_registry_become_the_links_words() -> None:
    """Rendezvous hosts and admitted CVMs keep key, endpoint and address."""
    host = Rendezvous(public_key="k", endpoint="1.2.3.4:51820", address="100.96.0.1")
    assert rendezvous(manifest(rendezvous=(host,))) == (
        RendezvousPeer(public_key="k", endpoint="1.2.3.4:51820", address="100.96.0.1"),
    )
    one = peer("api-1", "100.96.0.11")
    assert to_peers([one]) == (Peer(public_key=one.public_key, address="100.96.0.11", peer_id="api-1"),)


async def test_list_that_does_not_fit_leaves_the_last_good_one(caplog: pytest.LogCaptureFixture) -> None:
    """One entry outside the pool must not cost the tunnels to all others; it is logged."""
    link = make_link()
    good = (peer("api-1", "100.96.0.11"),)
    link.set_peers(good)
    link.set_peers((dataclasses.replace(good[0], address="10.0.0.1"),))
    assert [row.peer_id for row in link.status()] == ["api-1"]
    assert "peers refused" in caplog.text


async def test_the_mtu_may_be_set_by_hand() -> None:
    """MESH_PATH_MTU less the tunnel's overhead is every link's MTU; without it a link begins with the least."""
    for path_mtu, mtu in ((None, 1216), (1280, 1216), (1400, 1328), (9000, 8928)):
        link = make_link(path_mtu)
        link.set_peers((peer("api-1", "100.96.0.11"),))
        assert [row.mtu for row in link.status()] == [mtu]


async def test_nothing_to_wait_for_is_up() -> None:
    """Without coordinators to reach there is no wait; with one that never comes, the wait is bounded."""
    link = make_link()
    assert await link.up_to_any((), 60)
    async with asyncio.timeout(10):
        assert not await link.up_to_any((peer("coordinator-0", "100.96.0.9"),), 0.05)


@pytest.mark.netns
def test_a_device_of_the_kernels_goes_with_the_link() -> None:
    """It would stay with all its peers, in a namespace that the applications share. A veth stands for it, so that
    the kernel needs no WireGuard.
    """
    from pyroute2 import NetNS
    from pyroute2.netlink.exceptions import NetlinkError

    private, _ = generate_key()
    link = Link(userspace=False, private_key=private, address="100.96.0.10", manifest=manifest())
    with network_namespace() as namespace, NetNS(namespace) as links:
        links.link("add", ifname="mesh0", kind="veth", peer="end")
        # However the link ends; here because a veth takes no key.
        with pytest.raises((NetlinkError, RuntimeError)):
            within(namespace, lambda: asyncio.run(link.run()))
        assert not links.link_lookup(ifname="mesh0")
