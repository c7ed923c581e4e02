"""The lab's networks: what reaches what, and what does not.

Long because it is a list: each way to reach or cut a CVM is a case of its own, on one network.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import pytest

from lab.nat import Direction
from lab.network import CVM_ADDRESS, PLATFORM_GATEWAY, LabNetwork, LabNetworkError, enter
from tests.support import ROOT, need_root_or_userns, network_namespace

pytestmark = pytest.mark.netns
T = TypeVar("T")
IP_MTU_DISCOVER, IP_PMTUDISC_PROBE, IP_MTU = 10, 3, 14
"""linux/in.h. Packets have DF set, whatever the kernel knows about the path; and what it knows."""
HEADERS = 28
"""Bytes of IPv4 and UDP."""
QUIET = 0.5
"""Seconds within which a packet that is not dropped has long arrived."""


def inside(netns: str, work: Callable[[], T]) -> T:
    """Runs `work` in a namespace: on a thread of its own, so that this one stays."""
    results: list[T] = []

    def run() -> None:
        enter(netns)
        results.append(work())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


class Sockets:
    """Sockets in namespaces, closed at the end."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def udp(self, netns: str, port: int = 0) -> socket.socket:
        """A UDP socket on all addresses of a namespace."""
        made = self._stack.enter_context(inside(netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
        made.settimeout(QUIET)
        made.bind(("", port))
        return made

    def listen(self, netns: str, port: int) -> socket.socket:
        """A TCP listener on all addresses of a namespace; nobody needs to accept."""
        made = self._stack.enter_context(inside(netns, socket.socket))
        made.bind(("", port))
        made.listen()
        return made

    def accept(self, listener: socket.socket) -> socket.socket:
        """The next connection."""
        listener.settimeout(30)
        made = self._stack.enter_context(listener.accept()[0])
        made.settimeout(QUIET)
        return made

    def connect(self, netns: str, address: str, port: int) -> socket.socket:
        """A TCP connection from a namespace."""
        made = self._stack.enter_context(inside(netns, socket.socket))
        made.settimeout(30)
        made.connect((address, port))
        return made

    def connects(self, netns: str, address: str, port: int) -> bool:
        """Whether a TCP connection comes about."""
        made = self._stack.enter_context(inside(netns, socket.socket))
        made.settimeout(1.0)
        try:
            made.connect((address, port))
        except OSError:
            return False
        return True


def arrives(sender: socket.socket, receiver: socket.socket, address: tuple[str, int]) -> tuple[str, int] | None:
    """Where a packet from `sender` to `address` came from for `receiver`; None when it did not come."""
    sender.sendto(b"x", address)
    try:
        source = receiver.recvfrom(10)[1]
    except TimeoutError:
        return None
    return (str(source[0]), int(source[1]))


def sizes(sender: socket.socket, receiver: socket.socket, address: tuple[str, int]) -> list[int]:
    """Which of IP packets of 1400, 1401 and 1500 bytes arrive."""
    for size in (1400, 1401, 1500):
        sender.sendto(bytes(size - HEADERS), address)
    arrived = []
    while True:
        try:
            arrived.append(len(receiver.recv(2000)) + HEADERS)
        except TimeoutError:
            return arrived


def known_mtu(netns: str, address: tuple[str, int]) -> int:
    """What the kernel in a namespace takes for the MTU of the path to `address`."""
    with inside(netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as asked:
        asked.connect(address)
        return asked.getsockopt(socket.IPPROTO_IP, IP_MTU)


@pytest.fixture
def network() -> Iterator[LabNetwork]:
    """An empty lab."""
    need_root_or_userns()
    with LabNetwork("test") as made:
        yield made


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    """Sockets for one test."""
    with ExitStack() as stack:
        yield Sockets(stack)


def test_cvms_look_out_through_their_router(network: LabNetwork, sockets: Sockets) -> None:
    """All CVMs have the same address of their own; outside each one is its router, with its port kept."""
    host = network.add_host("rendezvous")
    server = sockets.udp(host.netns, 4000)
    for number in range(2):
        cvm = network.add_cvm(f"c{number}")
        assert cvm.address == CVM_ADDRESS
        client = sockets.udp(cvm.netns, 51820)
        assert arrives(client, server, (host.address, 4000)) == (cvm.public_address, 51820)


def test_a_host_may_live_in_a_namespace_that_is_there(network: LabNetwork, sockets: Sockets) -> None:
    """As a container's; when it has gone, the next one of that name has its address, and is reached as it was."""
    cvm = network.add_cvm("c0")
    addresses = []
    for port in (4000, 4001):
        with network_namespace() as name:
            host = network.add_host("rendezvous", adopt=f"/run/netns/{name}")
            addresses.append(host.address)
            server = sockets.udp(host.netns, port)
            client = sockets.udp(cvm.netns, 50000 + port)
            assert arrives(client, server, (host.address, port)) == (cvm.public_address, 50000 + port)
            network.remove_host("rendezvous")
    assert addresses[0] == addresses[1]


def test_random_nats_pick_a_port_per_destination(network: LabNetwork, sockets: Sockets) -> None:
    """Two destinations see two ports, and not the CVM's."""
    host = network.add_host("rendezvous")
    client = sockets.udp(network.add_cvm("c0", "random").netns, 51820)
    seen = {arrives(client, sockets.udp(host.netns, port), (host.address, port)) for port in range(4000, 4004)}
    assert len(seen) == 4
    assert 51820 not in {source[1] for source in seen if source}


def test_unsolicited_packets_are_dropped_and_leave_no_trace(network: LabNetwork, sockets: Sockets) -> None:
    """The first packet of each side is dropped, and still each side keeps its port towards the other afterwards."""
    one, other = network.add_cvm("c0"), network.add_cvm("c1")
    first, second = sockets.udp(one.netns, 51820), sockets.udp(other.netns, 51820)
    assert arrives(first, second, (other.public_address, 51820)) is None
    assert arrives(second, first, (one.public_address, 51820)) == (other.public_address, 51820)
    assert arrives(first, second, (other.public_address, 51820)) == (one.public_address, 51820)


def test_there_is_no_inbound_and_no_way_between_cvms(network: LabNetwork, sockets: Sockets) -> None:
    """No host and no CVM can connect to a CVM, by its public or its platform address."""
    host = network.add_host("rendezvous")
    one, other = network.add_cvm("c0"), network.add_cvm("c1")
    sockets.listen(one.netns, 8080)
    for netns in (host.netns, other.netns):
        assert not sockets.connects(netns, one.public_address, 8080)
        assert not sockets.connects(netns, one.platform_address, 8080)


def test_the_gateway_reaches_every_cvm(network: LabNetwork, sockets: Sockets) -> None:
    """Over dstack-wg0, and a CVM reaches the gateway's public address through its NAT."""
    platform = network.add_host("platform")
    cvm = network.add_cvm("c0")
    sockets.listen(cvm.netns, 8080)
    sockets.listen(platform.netns, 443)
    assert sockets.connects(platform.netns, network.gateway_address("c0"), 8080)
    assert sockets.connects(cvm.netns, platform.address, 443)
    assert sockets.connects(cvm.netns, PLATFORM_GATEWAY, 443)
    assert network.netns_path("c0") == cvm.netns


@pytest.mark.parametrize(
    ("direction", "there", "back"), [("both", False, False), ("out", False, True), ("in", True, False)]
)
def test_udp_blocks(network: LabNetwork, sockets: Sockets, direction: str, there: bool, back: bool) -> None:
    """UDP between two CVMs is dropped each way that is asked for, other UDP is not, and the block ends."""
    host = network.add_host("rendezvous")
    one, other = network.add_cvm("c0"), network.add_cvm("c1")
    first, second, third = (sockets.udp(each.netns, 51820) for each in (one, other, host))
    to_one, to_other = (one.public_address, 51820), (other.public_address, 51820)
    arrives(first, second, to_other)
    arrives(second, first, to_one)
    network.block_udp("c0", other.public_address, direction)  # type: ignore[arg-type]
    assert (arrives(first, second, to_other) is not None) is there
    assert (arrives(second, first, to_one) is not None) is back
    assert arrives(first, third, (host.address, 51820)) is not None
    network.block_udp("c0")
    assert arrives(first, third, (host.address, 51820)) is None
    network.unblock_udp("c0")
    assert arrives(first, second, to_other) is not None
    assert arrives(second, first, to_one) is not None


@pytest.mark.parametrize("icmp", [True, False])
@pytest.mark.parametrize("direction", ["out", "in", "both"])
def test_narrow_paths(network: LabNetwork, sockets: Sockets, direction: Direction, icmp: bool) -> None:
    """A packet above the limit is lost, one at the limit arrives; the sender's kernel learns the limit by ICMP only."""
    host, cvm = network.add_host("rendezvous"), network.add_cvm("c0")
    inner, outer = sockets.udp(cvm.netns, 51820), sockets.udp(host.netns, 51820)
    assert arrives(inner, outer, (host.address, 51820)) is not None
    network.limit_mtu("c0", 1400, direction, icmp=icmp)
    ways = (
        ("out", inner, outer, cvm.netns, (host.address, 51820)),
        ("in", outer, inner, host.netns, (cvm.public_address, 51820)),
    )
    for way, sender, receiver, netns, address in ways:
        sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
        narrow = direction in (way, "both")
        assert sizes(sender, receiver, address) == ([1400] if narrow else [1400, 1401, 1500])
        assert known_mtu(netns, address) == (1400 if narrow and icmp else 1500)
    network.limit_mtu("c0", None)
    for _, sender, receiver, _, address in ways:
        assert sizes(sender, receiver, address) == [1400, 1401, 1500]


def test_cut_and_heal(network: LabNetwork, sockets: Sockets) -> None:
    """A cut CVM reaches nobody and is reached by nobody; healed, all is as before. Twice the same is fine."""
    host = network.add_host("platform")
    cvm = network.add_cvm("c0")
    client, server = sockets.udp(cvm.netns, 51820), sockets.udp(host.netns, 4000)
    sockets.listen(cvm.netns, 8080)
    assert arrives(client, server, (host.address, 4000)) is not None
    for _ in range(2):
        network.cut("c0")
    assert arrives(client, server, (host.address, 4000)) is None
    assert not sockets.connects(host.netns, cvm.platform_address, 8080)
    for _ in range(2):
        network.heal("c0")
    assert arrives(client, server, (host.address, 4000)) is not None
    assert sockets.connects(host.netns, cvm.platform_address, 8080)


@pytest.mark.parametrize(
    ("direction", "there", "back"), [("both", False, False), ("out", False, True), ("in", True, False)]
)
def test_one_way_cuts(network: LabNetwork, sockets: Sockets, direction: Direction, there: bool, back: bool) -> None:
    """A cut loses what it says and nothing else, on the segment and the platform's link; healed, all is as before."""
    platform, cvm = network.add_host("platform"), network.add_cvm("c0")
    other, outside = sockets.udp(network.add_cvm("c1").netns), sockets.udp(platform.netns, 4000)
    client = sockets.udp(cvm.netns, 51820)
    ways = {
        "segment": ((platform.address, 4000), (cvm.public_address, 51820)),
        "platform link": ((PLATFORM_GATEWAY, 4000), (cvm.platform_address, 51820)),
    }

    def reach() -> set[tuple[bool, bool]]:
        return {
            (arrives(client, outside, to) is not None, arrives(outside, client, back) is not None)
            for to, back in ways.values()
        }

    assert reach() == {(True, True)}
    network.cut("c0", direction)
    assert network.cut_of("c0") == direction
    assert reach() == {(there, back)}
    assert arrives(other, outside, (platform.address, 4000)) is not None
    network.heal("c0")
    assert network.cut_of("c0") is None
    assert reach() == {(True, True)}


def test_cuts_add_up_and_stay_with_their_cvm(network: LabNetwork, sockets: Sockets) -> None:
    """In and out make both; a block of UDP, the cut of another CVM and its removal leave a cut as it is."""
    host, cvm = network.add_host("platform"), network.add_cvm("c0")
    network.add_cvm("c1")
    client, server = sockets.udp(cvm.netns, 51820), sockets.udp(host.netns, 4000)
    sockets.listen(cvm.netns, 8080)
    network.cut("c0", "in")
    network.cut("c0", "out")
    assert network.cut_of("c0") == "both"
    network.cut("c1", "out")
    network.block_udp("c0", "192.0.2.1")
    network.unblock_udp("c0")
    network.remove_cvm("c1")
    assert arrives(client, server, (host.address, 4000)) is None
    assert arrives(client, server, (PLATFORM_GATEWAY, 4000)) is None
    assert not sockets.connects(host.netns, cvm.platform_address, 8080)
    assert network.cut_of("c9") is None


def test_a_connection_survives_a_cut_that_ends(network: LabNetwork, sockets: Sockets) -> None:
    """What was sent over an open connection during a cut arrives after it: packets are lost, nothing is reset."""
    host, cvm = network.add_host("platform"), network.add_cvm("c0")
    server = sockets.listen(host.netns, 4000)
    client = sockets.connect(cvm.netns, host.address, 4000)
    accepted = sockets.accept(server)
    network.cut("c0", "out")
    client.sendall(b"late")
    with pytest.raises(TimeoutError):
        accepted.recv(10)
    network.heal("c0")
    accepted.settimeout(30)
    assert accepted.recv(10) == b"late"


def test_a_reset_cvm_is_new_with_the_same_addresses(network: LabNetwork, sockets: Sockets) -> None:
    """A boot finds a fresh namespace: what the last one left is gone, faults included, and the network works."""
    host = network.add_host("rendezvous")
    before = network.add_cvm("c0", "random", 7)
    network.cut("c0")
    after = network.reset_cvm("c0")
    assert network.cut_of("c0") is None
    assert after.public_address == before.public_address
    assert after.platform_address == before.platform_address
    server = sockets.udp(host.netns, 4000)
    source = arrives(sockets.udp(after.netns, 51820), server, (host.address, 4000))
    assert source is not None
    assert source[0] == after.public_address
    assert source[1] != 51820


def test_addresses_follow_the_index(network: LabNetwork) -> None:
    """A CVM keeps its addresses whatever else there is; gaps are filled."""
    third = network.add_cvm("c", index=2)
    first, second = network.add_cvm("a"), network.add_cvm("b")
    far = network.add_cvm("far", index=1000)
    assert [each.public_address for each in (first, second, third)] == ["198.18.1.1", "198.18.1.2", "198.18.1.3"]
    assert (far.public_address, far.platform_address) == ("198.18.5.1", "10.4.5.1")


def test_mistakes_are_named(network: LabNetwork) -> None:
    """Taken names and indexes, and names that are not there."""
    network.add_cvm("c0", index=0)
    with pytest.raises(LabNetworkError, match="already in lab 'test'"):
        network.add_cvm("c0")
    with pytest.raises(LabNetworkError, match="already"):
        network.add_host("c0")
    with pytest.raises(LabNetworkError, match="index 0"):
        network.add_cvm("c1", index=0)
    with pytest.raises(LabNetworkError, match=r"no CVM 'c9'.*\['c0'\]"):
        network.cut("c9")


def test_removed_cvms_leave_no_interface(network: LabNetwork) -> None:
    """The ends of a removed CVM's links are gone from the segment and the gateway at once."""
    platform = network.add_host("platform")
    network.add_cvm("c0")
    assert "cvm0" in _interfaces(platform.netns)
    network.remove_cvm("c0")
    assert "cvm0" not in _interfaces(platform.netns)
    assert network.add_cvm("c0").public_address == "198.18.1.1"


def _interfaces(netns: str) -> set[str]:
    return set(inside(netns, lambda: {name for _, name in socket.if_nameindex()}))


def test_two_labs_do_not_see_each_other(network: LabNetwork, sockets: Sockets) -> None:
    """Same names, same addresses, no connection."""
    with LabNetwork("other") as other:
        cvm, twin = network.add_cvm("c0"), other.add_cvm("c0")
        assert cvm.public_address == twin.public_address
        server = sockets.udp(other.add_host("h").netns, 4000)
        here = network.add_host("h")
        client = sockets.udp(cvm.netns, 51820)
        assert arrives(client, server, (here.address, 4000)) is None


def test_close_lets_go_of_everything() -> None:
    """No descriptor is kept; closing twice is fine; the caller's own namespace was never left."""
    need_root_or_userns()
    home = Path("/proc/thread-self/ns/net").readlink()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    made = LabNetwork("test")
    made.add_cvm("c0")
    made.close()
    made.close()
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208
    assert Path("/proc/thread-self/ns/net").readlink() == home
    assert not Path("/run/netns/c0").exists()


def test_an_ordinary_user_may_have_a_lab() -> None:
    """In an unprivileged user namespace, without any mount: the same network."""
    program = (
        "from lab import namespaces\n"
        "namespaces.become_root_of_user_namespace()\n"
        "from lab.network import LabNetwork\n"
        "with LabNetwork('u') as network:\n"
        "    network.add_host('h')\n"
        "    print(network.add_cvm('c0', 'random').public_address)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    if "unshare" in done.stderr:
        pytest.skip("user namespaces are not allowed here")
    assert done.stdout == "198.18.1.1\n", done.stderr
