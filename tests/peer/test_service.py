"""The rendezvous' service on loopback: real HTTP, a device that the test plays."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

import aiohttp
import pytest

from peer import control
from peer.keys import AdmittedKey, KeySet
from peer.relay import Relay
from peer.service import MAX_WATCHES, Rendezvous
from peer.spec import CONTROL_PORT, DeviceState, InterfaceSpec, Operation, PeerState, RemovePeer
from peer.wireguard import DeviceGoneError, generate_key, public_key
from runtime.tasks import TaskScope
from tests.support import eventually

_subnets = itertools.count(1)


class FakeDevice:
    """A device in memory. `meet` plays a handshake."""

    def __init__(self, spec: InterfaceSpec) -> None:
        self.spec = spec
        self.gone = False
        self._state = DeviceState(public_key="", listen_port=0)

    async def wait_device(self, seconds: float) -> None:
        """See Device."""
        if self.gone:
            raise DeviceGoneError(f"gone, also after {seconds} s")

    async def configure(self) -> None:
        """See Device."""
        await self.wait_device(0)
        self._state = replace(self._state, public_key=public_key(self.spec.private_key))

    async def read(self) -> DeviceState:
        """See Device."""
        await self.wait_device(0)
        return self._state

    async def apply(self, operations: Sequence[Operation]) -> None:
        """See Device."""
        peers = dict(self._state.peers)
        for operation in operations:
            if isinstance(operation, RemovePeer):
                del peers[operation.public_key]
                continue
            peers[operation.public_key] = PeerState(
                public_key=operation.public_key,
                endpoint=operation.endpoint,
                latest_handshake=0.0,
                rx=0,
                tx=0,
                allowed=operation.allowed or (),
                keepalive=0,
            )
        self._state = replace(self._state, peers=peers)

    def meet(self, key: str, endpoint: str) -> None:
        """A peer's handshake came from `endpoint`."""
        peer = replace(self._state.peers[key], endpoint=endpoint, latest_handshake=time.time())
        self._state = replace(self._state, peers={**self._state.peers, key: peer})

    def restart(self) -> None:
        """As after a crash of its process."""
        self._state = DeviceState(public_key="", listen_port=0)

    def keys(self) -> set[str]:
        """Who is a peer."""
        return set(self._state.peers)


class FakeSource:
    """A coordinator."""

    def __init__(self) -> None:
        self.answers: asyncio.Queue[KeySet | Exception] = asyncio.Queue()
        self.seen = -1

    async def watch(self, seen: int) -> KeySet:
        """See KeySource."""
        self.seen = seen
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer


@dataclass
class Setting:
    """A rendezvous at 127.x.0.1 whose peers call from 127.x.0.2 and up."""

    device: FakeDevice
    sources: list[FakeSource]
    net: str
    keys: list[str]

    def address(self, number: int) -> str:
        """Mesh address of peer `number`."""
        return f"{self.net}.{number + 2}"

    def keyset(self, version: int, *numbers: int) -> KeySet:
        """A set of these peers."""
        peers = tuple(AdmittedKey(public_key=self.keys[n], address=self.address(n)) for n in numbers)
        return KeySet(version=version, peers=peers)

    async def admit(self, version: int, *numbers: int, source: int = 0) -> None:
        """Admits these, and waits until it is applied."""
        self.sources[source].answers.put_nowait(self.keyset(version, *numbers))
        await eventually(lambda: self.sources[source].seen == version, "the set is applied")

    async def call(self, number: int, method: str, path: str, **arguments: object) -> tuple[int, bytes]:
        """A request from peer `number`'s address."""
        connector = aiohttp.TCPConnector(local_addr=(self.address(number), 0))
        async with aiohttp.ClientSession(connector=connector) as session:
            url = f"http://{self.net}.1:{CONTROL_PORT}{path}"
            async with session.request(method, url, **arguments) as answer:  # type: ignore[arg-type]
                return answer.status, await answer.read()

    async def table(self, number: int, index: int = 0, wait: float = 5.0) -> control.Table:
        """What peer `number` is told."""
        status, body = await self.call(number, "GET", f"/v1/watch?index={index}&wait={wait}")
        assert status == 200, body
        return control.decode_table(body)


@pytest.fixture
async def setting() -> AsyncIterator[Setting]:
    """Two coordinators, four keys."""
    net = f"127.{80 + os.getpid() % 100}.{next(_subnets)}"
    private, _ = generate_key()
    device = FakeDevice(InterfaceSpec(private_key=private, address=f"{net}.1", pool="127.0.0.0/8"))
    made = Setting(device, [FakeSource(), FakeSource()], net, [generate_key()[1] for _ in range(4)])
    service = Rendezvous(device, made.sources, Relay("127.0.0.1", range(45000, 45010)), through_tunnel_only=False)
    async with TaskScope() as scope:
        task = scope.start("service", service.run())
        await eventually(lambda: all(source.seen == 0 for source in made.sources), "the service runs")
        yield made
        task.cancel()


async def test_callers_learn_each_others_mappings(setting: Setting) -> None:
    """A mapping is told as soon as its CVM has met the rendezvous; a waiting watch returns at once."""
    await setting.admit(1, 0, 1)
    setting.device.meet(setting.keys[0], "198.18.1.1:51820")
    first = await setting.table(0)
    assert first.mappings == {}
    async with TaskScope() as scope:
        waiting = scope.start("watch", setting.table(0, first.index, wait=20.0))
        setting.device.meet(setting.keys[1], "198.18.1.2:51820")
        second = await setting.table(1)
        assert second.mappings == {setting.keys[0]: "198.18.1.1:51820"}
        assert (await waiting).mappings == {setting.keys[1]: "198.18.1.2:51820"}


async def test_a_coordinator_that_comes_later_is_followed_too() -> None:
    """As those that were there from the start; the next one is waited for."""
    net = f"127.{80 + os.getpid() % 100}.{next(_subnets)}"
    device = FakeDevice(InterfaceSpec(private_key=generate_key()[0], address=f"{net}.1", pool="127.0.0.0/8"))
    made = Setting(device, [FakeSource()], net, [generate_key()[1] for _ in range(2)])
    later: asyncio.Queue[FakeSource] = asyncio.Queue()
    relay = Relay("127.0.0.1", range(45010, 45020))
    service = Rendezvous(device, tuple(made.sources), relay, through_tunnel_only=False, more=later.get)
    async with TaskScope() as scope:
        task = scope.start("service", service.run())
        await made.admit(1, 0)
        for number in (1, 2):
            made.sources.append(FakeSource())
            later.put_nowait(made.sources[number])
            await made.admit(7, 1, source=number)
            assert device.keys() == set(made.keys)
        task.cancel()


async def test_an_unchanged_table_is_waited_for(setting: Setting) -> None:
    """A watch at the newest index is held for as long as it asks."""
    await setting.admit(1, 0)
    table = await setting.table(0, wait=0.0)
    table = await setting.table(0, table.index, wait=0.1)
    assert (await setting.table(0, table.index, wait=0.05)).index == table.index


async def test_one_caller_has_few_watches_and_others_theirs(setting: Setting) -> None:
    """Any program of a CVM can ask from its address: one watch too many has the CVM's oldest answered, no other's."""
    await setting.admit(1, 0, 1)
    index = (await setting.table(0, wait=0.0)).index
    assert (await setting.table(1, wait=0.0)).index == index
    async with TaskScope() as scope:
        other = scope.start("other", setting.table(1, index, wait=60.0))
        watches = [scope.start(f"watch {n}", setting.table(0, index, wait=60.0)) for n in range(MAX_WATCHES + 3)]
        await eventually(lambda: sum(watch.done() for watch in watches) == 3, "the oldest three are answered")
        assert not other.done()
        # A newcomer of the same caller is heard at once when something changes, as all who wait are.
        setting.device.meet(setting.keys[1], "198.18.1.2:51820")
        for watch in (watch for watch in watches if not watch.done()):
            assert (await watch).mappings == {setting.keys[1]: "198.18.1.2:51820"}
        other.cancel()


async def test_only_admitted_addresses_are_served(setting: Setting) -> None:
    """The source address is the identity: others get 403, and nobody is told of them."""
    await setting.admit(1, 0)
    for method, path in (("GET", "/v1/watch"), ("POST", "/v1/relay")):
        assert (await setting.call(1, method, path))[0] == 403
    assert setting.device.keys() == {setting.keys[0]}


async def test_relays_are_for_admitted_pairs(setting: Setting) -> None:
    """A pair gets two ports, each end its own; unknown keys, one's own key and garbage get none."""
    await setting.admit(1, 0, 1)
    body = control.encode_relay_request(setting.keys[1])
    status, answer = await setting.call(0, "POST", "/v1/relay", data=body)
    assert status == 200
    port = control.decode_relay_answer(answer)
    assert (await setting.table(0)).relays == {setting.keys[1]: port}
    (other,) = (await setting.table(1)).relays.items()
    assert other[0] == setting.keys[0]
    assert other[1] != port
    for refused, wanted in (
        (control.encode_relay_request(setting.keys[2]), 404),
        (control.encode_relay_request(setting.keys[0]), 404),
        (b"garbage", 400),
        (b"x" * 5000, 413),
    ):
        assert (await setting.call(0, "POST", "/v1/relay", data=refused))[0] == wanted


async def test_leaving_ends_everything(setting: Setting) -> None:
    """A key that is no longer admitted leaves the device, the tables and the relay, and is served no more."""
    await setting.admit(1, 0, 1)
    for number in (0, 1):
        setting.device.meet(setting.keys[number], f"198.18.1.{number}:51820")
    await setting.call(0, "POST", "/v1/relay", data=control.encode_relay_request(setting.keys[1]))
    await setting.admit(2, 0)
    table = await setting.table(0)
    assert table.mappings == {}
    assert table.relays == {}
    assert setting.device.keys() == {setting.keys[0]}
    assert (await setting.call(1, "GET", "/v1/watch"))[0] == 403


async def test_coordinators_sets_unite_and_last_words_stay(setting: Setting) -> None:
    """Two coordinators' keys count together; one that goes away keeps its last word."""
    await setting.admit(1, 0, source=0)
    await setting.admit(7, 1, source=1)
    assert setting.device.keys() == {setting.keys[0], setting.keys[1]}
    setting.sources[0].answers.put_nowait(OSError("away"))
    await setting.admit(8, 1, 2, source=1)
    assert setting.device.keys() == {setting.keys[0], setting.keys[1], setting.keys[2]}


async def test_a_restarted_device_is_restored(setting: Setting) -> None:
    """A new, empty device gets its key and peers back."""
    await setting.admit(1, 0, 1)
    setting.device.restart()
    await eventually(lambda: setting.device.keys() == {setting.keys[0], setting.keys[1]}, "peers are back")


@pytest.mark.parametrize("query", ["index=x", "wait=x", "index=1&wait="])
async def test_bad_queries(setting: Setting, query: str) -> None:
    """A caller's mistake is a 400."""
    await setting.admit(1, 0)
    assert (await setting.call(0, "GET", f"/v1/watch?{query}"))[0] == 400
