"""Tunnels over paths that carry less than Ethernet: real wireguard-go, real routers, ICMP or none."""

from __future__ import annotations

import functools
import socket
from pathlib import Path

import pytest

from lab.nat import Direction
from peer.prober import known_path_mtu
from peer.spec import link_mtu
from tests import support
from tests.peer.nodes import Mesh, Node, Transfer, mesh

pytestmark = pytest.mark.netns

BULK = 16 << 20
"""Bytes. With packets that are too large, a tenth of it arrives in TRANSFER_SECONDS."""


def _wait_mtu(made: Mesh, one: int, other: int, path_mtu: int) -> None:
    """Waits until the link from `one` to `other` has found its size, and the kernel's route has it."""
    node, link, address = made.nodes[one], made.links[one], made.nodes[other].address

    def there() -> bool:
        rows = {row.public_key: row.mtu for row in link.status()}
        return rows[made.nodes[other].key] == link_mtu(path_mtu) == known_path_mtu(f"{address}:1")

    node.run(support.eventually(there, f"the MTU from c{one} to c{other} is that of {path_mtu}"))


def _carries(one: Node, other: Node) -> bool:
    with Transfer(one, other) as transfer:
        transfer.send(BULK)
        return transfer.whole()


@pytest.mark.parametrize("icmp", [True, False])
@pytest.mark.parametrize("path_mtu", [1400, 1280, 1200])
def test_narrow_paths_carry_bulk_traffic(path_mtu: int, icmp: bool) -> None:
    """Both ends find the path's size, whether routers say it or not, and a download is whole in either direction."""
    with mesh("preserving", "preserving") as made:
        made.network.limit_mtu("c1", path_mtu, icmp=icmp)
        made.start()
        made.wait_up()
        for one, other in ((0, 1), (1, 0)):
            _wait_mtu(made, one, other, path_mtu)
            assert _carries(made.nodes[one], made.nodes[other])


def test_nothing_is_lost_before_the_size_is_known() -> None:
    """The first connection over a narrow path without ICMP carries bulk traffic, also while the search goes on."""
    with mesh("preserving", "preserving") as made:
        made.network.limit_mtu("c1", 1280, icmp=False)
        made.start()
        made.wait_up()
        assert _carries(made.nodes[0], made.nodes[1])


@pytest.mark.parametrize("direction", ["in", "out"])
def test_each_direction_has_its_own_size(direction: Direction) -> None:
    """A path that is narrow one way only carries bulk traffic both ways."""
    with mesh("preserving", "preserving") as made:
        made.network.limit_mtu("c1", 1400, direction, icmp=False)
        made.start()
        made.wait_up()
        _wait_mtu(made, 0, 1, 1400 if direction == "in" else 1500)
        _wait_mtu(made, 1, 0, 1400 if direction == "out" else 1500)
        assert _carries(made.nodes[0], made.nodes[1])
        assert _carries(made.nodes[1], made.nodes[0])


@pytest.mark.parametrize("icmp", [True, False])
def test_a_connection_survives_a_path_that_shrinks(icmp: bool) -> None:
    """A download that is under way when the path shrinks ends whole."""
    with mesh("preserving", "preserving") as made:
        made.start()
        made.wait_up()
        _wait_mtu(made, 0, 1, 1500)
        with Transfer(made.nodes[0], made.nodes[1]) as transfer:
            for path_mtu in (1400, 1280):
                transfer.send(BULK)
                made.network.limit_mtu("c1", path_mtu, icmp=icmp)
                transfer.send(BULK)
                _wait_mtu(made, 0, 1, path_mtu)
            assert transfer.whole()


def test_a_refusal_by_a_router_lowers_the_mtu_without_traffic() -> None:
    """What ICMP says about any packet to a peer's public address counts at once: the tunnel itself is idle."""
    with mesh("preserving", "preserving") as made:
        made.start()
        made.wait_up()
        _wait_mtu(made, 0, 1, 1500)
        made.network.limit_mtu("c0", 1400, "out")
        with made.nodes[0].call(functools.partial(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)) as other:
            other.sendto(bytes(1401 - 28), (made.places[1].public_address, 51820))
        _wait_mtu(made, 0, 1, 1400)


def test_one_narrow_path_does_not_slow_the_others() -> None:
    """The MTU is each peer's own."""
    with mesh("preserving", "preserving", "preserving") as made:
        made.network.limit_mtu("c2", 1280)
        made.start()
        made.wait_up()
        _wait_mtu(made, 0, 1, 1500)
        _wait_mtu(made, 0, 2, 1280)


@pytest.mark.parametrize("icmp", [True, False])
def test_relayed_paths_are_measured_from_end_to_end(icmp: bool) -> None:
    """A narrow link between relay and peer counts: the relay fragments nothing."""
    with mesh("random", "random") as made:
        made.network.limit_mtu("c1", 1400, "in", icmp=icmp)
        made.start()
        made.wait_up()
        made.wait_path("relay")
        _wait_mtu(made, 0, 1, 1400)
        _wait_mtu(made, 1, 0, 1500)
        assert _carries(made.nodes[0], made.nodes[1])


def test_a_move_measures_the_new_way() -> None:
    """A tunnel that moves to the relay, whose path is narrower than the direct one, takes that path's size."""
    with mesh("preserving", "preserving") as made:
        made.start()
        made.wait_up()
        made.wait_path("direct")
        _wait_mtu(made, 0, 1, 1500)
        made.network.limit_mtu("c1", 1400, "in", icmp=False)
        for number, node in enumerate(made.nodes):
            node.call(functools.partial(made.links[number].set_allow_direct, False))
        made.wait_path("relay")
        _wait_mtu(made, 0, 1, 1400)


def test_a_restarted_device_has_its_routes_again() -> None:
    """Routes go with the device, and come back with it."""
    with mesh("preserving", "preserving") as made:
        made.start()
        made.wait_up()
        _wait_mtu(made, 0, 1, 1500)
        made.nodes[0].kill_wireguard()
        gone = Path("/proc/thread-self/net/dev")
        name = made.nodes[0].spec.name
        made.nodes[0].run(support.eventually(lambda: name not in gone.read_text(), "the device is gone"))
        made.nodes[0].start_wireguard()
        _wait_mtu(made, 0, 1, 1500)
        assert _carries(made.nodes[0], made.nodes[1])
