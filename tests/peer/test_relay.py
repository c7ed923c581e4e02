"""The relay, on loopback."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from peer.probe import Kind, ProbeKey, decode, encode, probe_key
from peer.relay import Budget, Relay, RelayFullError
from peer.wireguard import generate_key

DATA = b"\x04" + bytes(63)
HANDSHAKE = b"\x01" + bytes(147)
_numbers = itertools.count(1)


@dataclass
class Client:
    """A peer at one side of a pair."""

    public: str
    mine: ProbeKey
    """Its key towards the rendezvous."""
    theirs: ProbeKey
    """The rendezvous' key towards it."""
    socket: socket.socket

    async def send(self, data: bytes, port: int) -> None:
        """Sends to a relay port."""
        await asyncio.get_running_loop().sock_sendto(self.socket, data, ("127.0.0.1", port))

    async def receive(self, seconds: float = 2.0) -> bytes:
        """The next packet; TimeoutError without one."""
        async with asyncio.timeout(seconds):
            return await asyncio.get_running_loop().sock_recv(self.socket, 65536)

    async def register(self, port: int) -> bool | None:
        """Probes a port: True or False as the answer says whether the other side is there."""
        await self.send(encode(self.mine, Kind.PING, next(_numbers)), port)
        answer = decode(self.mine, await self.receive())
        assert answer is not None
        assert answer.kind is Kind.PONG
        return answer.through


def _client(rendezvous: tuple[object, str]) -> Client:
    private, public = generate_key()
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    made.bind(("127.0.0.1", 0))
    return Client(
        public=public,
        mine=probe_key(private, rendezvous[1], public),
        theirs=probe_key(rendezvous[0], public, rendezvous[1]),  # type: ignore[arg-type]
        socket=made,
    )


@dataclass
class Setting:
    """A relay with one pair, and a stranger."""

    relay: Relay
    one: Client
    other: Client
    stranger: Client
    one_port: int
    other_port: int


@pytest.fixture
async def setting() -> AsyncIterator[Setting]:
    """Ports are the system's choice: port 0 in the range means any."""
    rendezvous = generate_key()
    one, other, stranger = (_client(rendezvous) for _ in range(3))
    relay = Relay("127.0.0.1", _free_ports(4))
    assert await relay.open(one.public, one.theirs, other.public, other.theirs)
    ports = relay.ports_of(one.public)[other.public], relay.ports_of(other.public)[one.public]
    yield Setting(relay, one, other, stranger, *ports)
    relay.close()
    for client in (one, other, stranger):
        client.socket.close()
    await asyncio.sleep(0)


def _free_ports(count: int) -> range:
    """A run of ports that are free now."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            first = int(probe.getsockname()[1])
        if first + count < 65536:
            return range(first + 1, first + 1 + count)


async def _nothing(client: Client) -> None:
    with pytest.raises(TimeoutError):
        await client.receive(0.05)


async def test_packets_pass_both_ways_once_both_are_known(setting: Setting) -> None:
    """Neither end gets anything before its probe; then handshakes and data pass, unchanged."""
    assert await setting.one.register(setting.one_port) is False
    assert await setting.other.register(setting.other_port) is True
    assert await setting.one.register(setting.one_port) is True
    await setting.one.send(HANDSHAKE, setting.one_port)
    assert await setting.other.receive() == HANDSHAKE
    await setting.other.send(DATA, setting.other_port)
    assert await setting.one.receive() == DATA


async def test_a_stranger_takes_no_path(setting: Setting) -> None:
    """Packets of an address that did not prove its key go nowhere, and its probes are not answered."""
    await setting.one.register(setting.one_port)
    await setting.other.register(setting.other_port)
    for data in (DATA, HANDSHAKE, encode(setting.stranger.mine, Kind.PING, next(_numbers)), b"", b"GET / HTTP/1.1"):
        await setting.stranger.send(data, setting.one_port)
    await _nothing(setting.other)
    await _nothing(setting.stranger)
    await setting.other.send(DATA, setting.other_port)
    assert await setting.one.receive() == DATA


async def test_a_replayed_probe_moves_nothing(setting: Setting) -> None:
    """An onlooker who repeats a good probe from elsewhere does not become the peer."""
    probe = encode(setting.one.mine, Kind.PING, next(_numbers))
    await setting.one.send(probe, setting.one_port)
    assert decode(setting.one.mine, await setting.one.receive()) is not None
    await setting.other.register(setting.other_port)
    await setting.stranger.send(probe, setting.one_port)
    await _nothing(setting.stranger)
    await setting.other.send(DATA, setting.other_port)
    assert await setting.one.receive() == DATA


async def test_a_peer_may_move(setting: Setting) -> None:
    """A fresh probe from another address (a new NAT mapping) takes over."""
    await setting.one.register(setting.one_port)
    await setting.other.register(setting.other_port)
    moved = Client(setting.one.public, setting.one.mine, setting.one.theirs, setting.stranger.socket)
    assert await moved.register(setting.one_port) is True
    await setting.other.send(DATA, setting.other_port)
    assert await moved.receive() == DATA


async def test_only_wireguard_and_probes_of_sane_size_pass(setting: Setting) -> None:
    """The relay is no general proxy, also not for its peers."""
    await setting.one.register(setting.one_port)
    await setting.other.register(setting.other_port)
    for data in (b"\x05" + bytes(63), b"\x04" + bytes(10), b"\x04" + bytes(9001), b""):
        await setting.one.send(data, setting.one_port)
    await setting.one.send(DATA, setting.one_port)
    assert await setting.other.receive() == DATA
    await _nothing(setting.other)


def test_the_rate_is_bounded() -> None:
    """A flood is cut to a burst and then to the rate."""
    budget = Budget(1000.0, now=0.0)
    assert [budget.take(100, 0.0) for _ in range(4)] == [True, True, False, False]
    assert budget.take(100, 0.05)
    assert not budget.take(100, 0.05)
    assert [budget.take(100, 60.0) for _ in range(4)] == [True, True, False, False]


async def test_pairs_end_with_their_peers(setting: Setting) -> None:
    """When either is no longer admitted the ports close; packets go nowhere, and the ports are free again."""
    await setting.one.register(setting.one_port)
    await setting.other.register(setting.other_port)
    now = asyncio.get_running_loop().time()
    both = {setting.one.public: None, setting.other.public: None}
    assert not setting.relay.retain(both, now)
    assert setting.relay.retain({setting.one.public: None}, now)
    assert setting.relay.ports_of(setting.one.public) == {}
    await setting.other.send(DATA, setting.other_port)
    await _nothing(setting.one)
    await asyncio.sleep(0)
    for _ in range(2):
        await setting.relay.open(setting.one.public, setting.one.theirs, setting.other.public, setting.other.theirs)


async def test_idle_pairs_end(setting: Setting) -> None:
    """Nobody probes: after IDLE_AFTER the ports go back."""
    both = {setting.one.public: None, setting.other.public: None}
    assert setting.relay.retain(both, asyncio.get_running_loop().time() + 200.0)


async def test_a_full_relay_says_so(setting: Setting) -> None:
    """Two pairs fit into four ports, a third does not and leaves nothing behind."""
    more = [_client(generate_key()) for _ in range(2)]
    try:
        assert await setting.relay.open(
            setting.one.public, setting.one.theirs, setting.stranger.public, setting.stranger.theirs
        )
        with pytest.raises(RelayFullError, match="port range"):
            await setting.relay.open(more[0].public, more[0].theirs, more[1].public, more[1].theirs)
        assert setting.relay.ports_of(more[0].public) == {}
    finally:
        for client in more:
            client.socket.close()


async def test_opening_twice_is_one_pair(setting: Setting) -> None:
    """Both ends ask; the second finds the pair of the first."""
    before = setting.relay.ports_of(setting.one.public)
    assert not await setting.relay.open(
        setting.other.public, setting.other.theirs, setting.one.public, setting.one.theirs
    )
    assert setting.relay.ports_of(setting.one.public) == before


def test_numbers_come_from_the_clock() -> None:
    """A restarted peer's numbers are greater than any before: the clock in nanoseconds fits the field."""
    assert time.time_ns() < 2**64
