"""The probe socket, on loopback."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.network import LabNetwork
from peer.probe import Kind, ProbeKey, encode, probe_key
from peer.prober import Arrival, Prober, known_path_mtu
from peer.wireguard import generate_key
from tests.peer.nodes import Node
from tests.support import eventually, need_root_or_userns

pytestmark = pytest.mark.netns
ETH_P_IP, DONT_FRAGMENT = 0x0800, 0x40


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


async def test_sizes_are_measured(pair: Pair) -> None:
    """A size probe is as large as the tunnel packet's outer packet, with DF set; its answer is small."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.ntohs(ETH_P_IP)) as wire:
        wire.bind(("lo", ETH_P_IP))
        wire.setblocking(False)
        pair.one.prober.measure(pair.other.public, pair.other.endpoint, 1440)
        await eventually(lambda: bool(pair.one.arrivals), "the answer comes")
        (asked,), (answer,) = pair.other.arrivals, pair.one.arrivals
        assert (asked.probe.kind, asked.sender, asked.sent) == (Kind.SIZE, pair.one.public, None)
        assert answer.probe.kind is Kind.SIZED
        assert answer.sent is not None
        assert (answer.sent.holder, answer.sent.endpoint, answer.sent.mtu) == (
            pair.other.public,
            pair.other.endpoint,
            1440,
        )
        port = int(pair.other.endpoint.rpartition(":")[2]).to_bytes(2, "big")
        seen = _drain(wire)
    assert {(len(each), each[6] & DONT_FRAGMENT) for each in seen if each[22:24] == port} == {(1500, DONT_FRAGMENT)}


def _drain(wire: socket.socket) -> list[bytes]:
    seen = []
    while True:
        try:
            seen.append(wire.recv(70000))
        except BlockingIOError:
            return seen


async def test_an_answer_of_the_other_kind_proves_nothing(pair: Pair) -> None:
    """A pong with a size probe's number is no proof of the size, nor the other way round."""
    address = pair.one.socket.getsockname()
    pair.one.prober.measure(pair.other.public, "127.0.0.1:9", 1440)
    pair.one.prober.ping(pair.other.public, "holder", "127.0.0.1:9")
    size, ping = pair.one.prober._waiting
    for number, kind in ((size, Kind.PONG), (ping, Kind.SIZED)):
        pair.one.prober._waiting[number] = dataclasses.replace(
            pair.one.prober._waiting[number], endpoint=pair.other.endpoint
        )
        pair.other.socket.sendto(encode(pair.other_key, kind, number), address)
    pair.one.prober.ping(pair.other.public, "holder", pair.other.endpoint)
    await eventually(lambda: bool(pair.one.arrivals), "the good pong comes")
    assert {arrival.probe.number for arrival in pair.one.arrivals}.isdisjoint((size, ping))


async def test_errors_of_others_cost_no_probe(pair: Pair) -> None:
    """ICMP errors about other UDP packets reach the probe socket too; the next ping goes out all the same."""
    for _ in range(50):
        pair.one.prober.ping(pair.other.public, "holder", "127.0.0.1:9")
        pair.one.prober.ping(pair.other.public, "holder", pair.other.endpoint)
    await eventually(lambda: len(pair.one.arrivals) == 50, "every ping is answered")


def test_a_routers_refusal_is_told() -> None:
    """Whoever's UDP packet it was, WireGuard's too: the destination is told, and the kernel knows the path's MTU.

    A size probe is sent whole all the same, and is refused as well.
    """
    need_root_or_userns()
    with LabNetwork("t") as network:
        host, cvm = network.add_host("h"), network.add_cvm("c0")
        network.limit_mtu("c0", 1400)
        node = Node(cvm.netns, "100.96.0.7")
        told: list[frozenset[str]] = []
        prober = node.call(Prober(51820, lambda _: None, told.append).__enter__)
        try:
            with node.call(functools.partial(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)) as other:
                other.sendto(bytes(1400 - 28), (host.address, 51820))
                other.sendto(bytes(1401 - 28), (host.address, 51820))
            node.run(eventually(lambda: bool(told), "the refusal is told"))
            assert told == [frozenset({host.address})]
            assert node.call(functools.partial(known_path_mtu, f"{host.address}:51820")) == 1400
            private, public = generate_key()
            node.call(functools.partial(prober.set_keys, {public: probe_key(private, node.key, public)}))
            node.call(functools.partial(prober.measure, public, f"{host.address}:51820", 1440))
            node.run(eventually(lambda: len(told) == 2, "the size probe is refused"))
        finally:
            node.call(functools.partial(prober.__exit__, None, None, None))
            node.close()


async def test_the_kernel_is_asked_for_the_paths_mtu() -> None:
    """The interface's MTU where nothing is known, and Ethernet's where there is no way at all."""
    loopback = int(Path("/sys/class/net/lo/mtu").read_text(encoding="ascii"))
    assert known_path_mtu("127.0.0.1:9") == min(loopback, 65535)
    assert known_path_mtu("255.255.255.255:9") == 1500


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
