"""Devices: kernel messages as values, and a real wireguard-go."""

from __future__ import annotations

import base64
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from lab.network import LabNetwork
from peer.spec import InterfaceSpec, LinkError, RemovePeer, SetPeer
from peer.wireguard import (
    DeviceGoneError,
    UserspaceDevice,
    device_state,
    generate_key,
    kernel_peer,
    kernel_supported,
    public_key,
    userspace_argv,
)
from runtime.secret import Secret
from tests.peer.nodes import POOL, Node
from tests.support import eventually, need_root_or_userns, tool

KEY = base64.b64encode(b"k" * 32).decode()


class Message(dict[str, Any]):
    """As pyroute2's: attributes by name."""

    def get_attr(self, name: str) -> Any:
        """The attribute's value or None."""
        return self.get(name)


def test_keys_are_pairs() -> None:
    """The public half follows from the private one, and the private one is a Secret."""
    private, public = generate_key()
    assert isinstance(private, Secret)
    assert public_key(private) == public
    assert len(base64.b64decode(public)) == 32


def test_kernel_operations() -> None:
    """What pyroute2 takes: only the named parts."""
    assert kernel_peer(RemovePeer(public_key=KEY)) == {"public_key": KEY, "remove": True}
    assert kernel_peer(SetPeer(public_key=KEY, endpoint="1.2.3.4:5")) == {
        "public_key": KEY,
        "endpoint_addr": "1.2.3.4",
        "endpoint_port": 5,
    }
    assert kernel_peer(SetPeer(public_key=KEY, allowed=(), keepalive=0)) == {
        "public_key": KEY,
        "replace_allowed_ips": True,
        "allowed_ips": [],
        "persistent_keepalive": 0,
    }


def test_kernel_state_over_several_messages() -> None:
    """A peer with many networks is continued in the next message."""
    peer_key = {"value": KEY.encode()}
    first = Message(
        WGPEER_A_PUBLIC_KEY=peer_key,
        WGPEER_A_ENDPOINT={"addr": "1.2.3.4", "port": 5},
        WGPEER_A_LAST_HANDSHAKE_TIME={"tv_sec": 10, "tv_nsec": 500_000_000},
        WGPEER_A_RX_BYTES=3,
        WGPEER_A_TX_BYTES=4,
        WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL=25,
        WGPEER_A_ALLOWEDIPS=[{"addr": "100.96.0.1/32"}],
    )
    second = Message(WGPEER_A_PUBLIC_KEY=peer_key, WGPEER_A_ALLOWEDIPS=[{"addr": "100.96.0.2/32"}])
    state = device_state(
        [
            Message(WGDEVICE_A_PUBLIC_KEY={"value": KEY.encode()}, WGDEVICE_A_LISTEN_PORT=7, WGDEVICE_A_PEERS=[first]),
            Message(WGDEVICE_A_PEERS=[second]),
        ]
    )
    assert (state.public_key, state.listen_port) == (KEY, 7)
    (peer,) = state.peers.values()
    assert peer.allowed == ("100.96.0.1/32", "100.96.0.2/32")
    assert (peer.endpoint, peer.latest_handshake, peer.keepalive) == ("1.2.3.4:5", 10.5, 25)


async def test_no_device_is_said() -> None:
    """A socket that is not there is a DeviceGoneError, not a hang."""
    spec = InterfaceSpec(private_key=generate_key()[0], address="100.96.0.1", pool=POOL, name="nosuch0")
    with pytest.raises(DeviceGoneError):
        await UserspaceDevice(spec, Path("/nonexistent")).wait_device(0.05)


@pytest.fixture
def node() -> Any:
    """A node with a wireguard-go in a namespace of its own."""
    need_root_or_userns()
    tool("wireguard-go")
    with LabNetwork("t") as network:
        made = Node(network.add_host("h").netns, "100.96.0.7")
        made.start_wireguard()
        try:
            yield made
        finally:
            made.close()


@pytest.mark.netns
def test_a_real_device_takes_and_gives(node: Node) -> None:
    """Configure, peers in, state out, peers changed and removed; twice the same is fine."""
    device = node.device
    node.run(device.wait_device(5.0))
    assert node.run(device.read()).public_key == ""
    for _ in range(2):
        node.run(device.configure())
    peer = SetPeer(public_key=KEY, allowed=("100.96.0.9/32",), endpoint="198.18.0.9:5", keepalive=25)
    node.run(device.apply([peer]))
    state = node.run(device.read())
    assert (state.public_key, state.listen_port) == (node.key, 51820)
    assert state.peers[KEY].allowed == ("100.96.0.9/32",)
    assert (state.peers[KEY].endpoint, state.peers[KEY].keepalive) == ("198.18.0.9:5", 25)
    node.run(device.apply([SetPeer(public_key=KEY, allowed=()), SetPeer(public_key=KEY, keepalive=0)]))
    state = node.run(device.read())
    assert (state.peers[KEY].allowed, state.peers[KEY].keepalive) == ((), 0)
    node.run(device.apply([RemovePeer(public_key=KEY)]))
    assert node.run(device.read()).peers == {}


@pytest.mark.netns
def test_the_link_is_set_up(node: Node) -> None:
    """Address, MTU, state, and the route to the pool, which has the MTU that any path carries."""
    from pyroute2 import AsyncIPRoute

    async def look() -> tuple[Any, Any, Any]:
        async with AsyncIPRoute() as links:
            (index,) = await links.link_lookup(ifname=node.spec.name)
            (link,) = await links.link("get", index=index)
            addresses = [each async for each in await links.addr("dump", index=index, family=2)]
            routes = [each async for each in await links.route("dump", family=2) if each.get_attr("RTA_OIF") == index]
            return link, addresses, routes

    node.run(node.device.wait_device(5.0))
    node.run(node.device.configure())
    link, addresses, routes = node.run(look())
    assert link.get_attr("IFLA_MTU") == 1440
    assert link["flags"] & 1
    assert [(each.get_attr("IFA_ADDRESS"), each["prefixlen"]) for each in addresses] == [("100.96.0.7", 32)]
    (pool,) = [each for each in routes if (each.get_attr("RTA_DST"), each["dst_len"]) == ("100.96.0.0", 16)]
    assert pool.get_attr("RTA_METRICS").get_attr("RTAX_MTU") == 1216


@pytest.mark.netns
def test_refused_operations_are_link_errors(node: Node) -> None:
    """The device's errno becomes an error of ours."""
    node.run(node.device.wait_device(5.0))
    with pytest.raises(LinkError, match="refused"):
        node.run(node.device.apply([SetPeer(public_key=KEY, allowed=("nonsense",))]))


@pytest.mark.netns
def test_a_stopped_device_is_gone_not_a_hang(node: Node) -> None:
    """SIGSTOP: an exchange ends after its limit."""
    node.run(node.device.wait_device(5.0))
    assert node.child is not None
    os.kill(node.child.pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{node.child.pid}/task")

    def stopped() -> bool:
        return all((task / "stat").read_text().rpartition(")")[2].split()[0] == "T" for task in tasks.iterdir())

    try:
        # A stop reaches a program's threads one by one.
        node.run(eventually(stopped, "all threads are stopped"))
        with pytest.raises(DeviceGoneError):
            node.run(node.device.read())
    finally:
        os.kill(node.child.pid, signal.SIGCONT)


@pytest.mark.netns
def test_the_private_key_is_nowhere_to_be_seen(node: Node) -> None:
    """Not in the child's arguments, nor in its environment."""
    node.run(node.device.wait_device(5.0))
    node.run(node.device.configure())
    assert node.child is not None
    secret = node.private.reveal()
    for name in ("cmdline", "environ"):
        text = Path(f"/proc/{node.child.pid}/{name}").read_bytes()
        assert secret.encode() not in text
        assert base64.b64decode(secret).hex().encode() not in text
    assert userspace_argv("wireguard-go", "mesh0") == ("wireguard-go", "mesh0")


@pytest.mark.netns
def test_the_kernel_probe_leaves_nothing(node: Node) -> None:
    """Whatever the answer, no interface stays behind."""
    from pyroute2 import AsyncIPRoute

    async def names() -> set[str]:
        async with AsyncIPRoute() as links:
            return {each.get_attr("IFLA_IFNAME") async for each in await links.link("dump")}

    # Its own device has to be there first: it would come in between.
    node.run(node.device.wait_device(5.0))
    before = node.run(names())
    assert node.run(kernel_supported()) in (True, False)
    assert node.run(names()) == before


@pytest.mark.netns
def test_one_peers_keepalive_starts_nothing_with_another(node: Node) -> None:
    """A peer without endpoint keeps its first handshake, the only one in 5 s, until it has somewhere to go."""
    other = base64.b64encode(b"o" * 32).decode()
    listeners = [node.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2)]
    for listener in listeners:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(2.0)
    first, second = (f"127.0.0.1:{listener.getsockname()[1]}" for listener in listeners)
    try:
        node.run(node.device.wait_device(5.0))
        node.run(node.device.configure())
        known = SetPeer(public_key=KEY, allowed=("100.96.0.8/32",), endpoint=first, keepalive=25)
        node.run(node.device.apply([known, SetPeer(public_key=other, allowed=("100.96.0.9/32",), keepalive=0)]))
        assert len(listeners[0].recv(200)) == 148
        node.run(node.device.apply([SetPeer(public_key=other, endpoint=second, keepalive=25)]))
        assert len(listeners[1].recv(200)) == 148
    finally:
        for listener in listeners:
            listener.close()
