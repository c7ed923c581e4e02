"""The probe socket, on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from peer.probe import Kind, ProbeKey, encode, probe_key
from peer.prober import Arrival, Prober
from peer.wireguard import generate_key
from tests.support import eventually, need_root_or_userns

pytestmark = pytest.mark.netns


@dataclass
class End:
    """One WireGuard port: an ordinary socket as WireGuard's, and the probes beside it."""

    public: str
    socket: socket.socket
    prober: Prober
    arrivals: list[Arrival]

    @property
    def endpoint(self) -> str:
        """Where it is."""
        return f"127.0.0.1:{self.socket.getsockname()[1]}"


@dataclass
class Pair:
    """Two ends that know each other, and the keys."""

    one: End
    other: End
    one_key: ProbeKey
    other_key: ProbeKey


@pytest.fixture
async def pair() -> Iterator[Pair]:  # type: ignore[misc]
    """Both on loopback."""
    need_root_or_userns()
    keys = [generate_key() for _ in range(2)]
    with ExitStack() as stack:
        ends = [_end(stack, public) for _, public in keys]
        (one_private, one), (other_private, other) = keys
        one_key, other_key = probe_key(one_private, other, one), probe_key(other_private, one, other)
        ends[0].prober.set_keys({other: one_key})
        ends[1].prober.set_keys({one: other_key})
        yield Pair(ends[0], ends[1], one_key, other_key)


def _end(stack: ExitStack, public: str) -> End:
    made = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
    made.bind(("127.0.0.1", 0))
    arrivals: list[Arrival] = []
    prober = stack.enter_context(Prober(made.getsockname()[1], arrivals.append))
    return End(public, made, prober, arrivals)


async def test_a_ping_is_answered_from_port_to_port(pair: Pair) -> None:
    """The other end hears the ping, we hear the pong, and both come from the WireGuard ports."""
    pair.one.prober.ping(pair.other.public, "holder", pair.other.endpoint)
    await eventually(lambda: bool(pair.one.arrivals), "the pong comes")
    (ping,), (pong,) = pair.other.arrivals, pair.one.arrivals
    assert (ping.probe.kind, ping.sender, ping.endpoint) == (Kind.PING, pair.one.public, pair.one.endpoint)
    assert (pong.probe.kind, pong.sender, pong.endpoint) == (Kind.PONG, pair.other.public, pair.other.endpoint)
    assert pong.sent is not None
    assert (pong.sent.holder, pong.sent.endpoint) == ("holder", pair.other.endpoint)
    assert ping.sent is None


async def test_calls_are_heard_and_not_answered(pair: Pair) -> None:
    """A call comes by way of a relay: only its content counts."""
    pair.one.prober.call(pair.other.public, pair.other.endpoint)
    await eventually(lambda: bool(pair.other.arrivals), "the call comes")
    assert pair.other.arrivals[0].probe.kind is Kind.CALL
    assert pair.one.arrivals == []


async def test_pongs_that_nobody_waits_for_are_ignored(pair: Pair) -> None:
    """An invented or repeated pong proves nothing; nor does one from elsewhere than the ping went."""
    forged = encode(pair.other_key, Kind.PONG, 12345)
    address = pair.one.socket.getsockname()
    pair.other.socket.sendto(forged, address)
    pair.one.prober.ping(pair.other.public, "holder", "127.0.0.1:9")
    (number,) = pair.one.prober._waiting
    pair.other.socket.sendto(encode(pair.other_key, Kind.PONG, number), address)
    pair.one.prober.ping(pair.other.public, "holder", pair.other.endpoint)
    await eventually(lambda: bool(pair.one.arrivals), "the good pong comes")
    await asyncio.sleep(0)
    assert [arrival.probe.number for arrival in pair.one.arrivals if arrival.probe.number in (12345, number)] == []


async def test_strangers_are_not_answered(pair: Pair) -> None:
    """A probe of a key that is no peer's, and garbage with our magic, cause nothing."""
    stranger_private, stranger = generate_key()
    key = probe_key(stranger_private, pair.one.public, stranger)
    address = pair.one.socket.getsockname()
    pair.other.socket.sendto(encode(key, Kind.PING, 1), address)
    pair.other.socket.sendto(b"\xc5mp1" + bytes(44), address)
    pair.other.socket.sendto(b"\xc5mp1", address)
    pair.one.prober.ping(pair.other.public, "holder", pair.other.endpoint)
    await eventually(lambda: bool(pair.one.arrivals), "the pong comes")
    assert len(pair.one.arrivals) == 1


async def test_other_traffic_stays_out(pair: Pair) -> None:
    """The filter passes probes to our port only; WireGuard's own socket still gets everything."""
    address = pair.one.socket.getsockname()
    for _ in range(20):
        pair.other.socket.sendto(b"\x04" + bytes(1000), address)
    received = 0
    while received < 20:
        received += len(await asyncio.get_running_loop().sock_recv(pair.one.socket, 2000)) > 1000
    assert pair.one.prober._socket is not None
    with pytest.raises(BlockingIOError):
        pair.one.prober._socket.recv(1)


async def test_numbers_grow_and_old_pings_are_forgotten(pair: Pair) -> None:
    """The list of pings on their way is bounded."""
    for _ in range(5000):
        pair.one.prober.ping(pair.other.public, "holder", "127.0.0.1:9")
    waiting = list(pair.one.prober._waiting)
    assert len(waiting) <= 4096
    assert waiting == sorted(set(waiting))
