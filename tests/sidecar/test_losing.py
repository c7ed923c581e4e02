"""Lost peers: the loop that looks for them, and what a client sees, with real Envoys and a wire that is cut."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from lab.nat import drop_arrivals
from peer.link import Contact
from runtime.tasks import TaskScope
from sidecar.losing import Losing
from sidecar.lost import LOST_SECONDS
from sidecar.refusing import Refusing
from tests.sidecar.test_desired import world
from tests.sidecar.test_effects import FakeRefusals
from tests.support import eventually, tool
from tests.xds.test_lost_peer import CALLEE_PLACE, dial, route, wired, within
from vip.nftables import RefusalTable
from vip.table import Wanted
from xds.transport import DEAD_AFTER

CHANGE_OF_PATH = 6.1
"""Seconds without any packet that a change from a direct path to the relay takes (docs/peer-link.md)."""
DOWNLOAD = 16 << 20
"""Bytes: more than the buffers between the ends hold."""


WORLD = world()


class FakeLink:
    """A link to one peer, by a clock that goes a second further with each look."""

    def __init__(self) -> None:
        self.now = 100.0
        self.heard_at = 100.0
        self.silent = False
        self.looks = 0
        self.restarts = 0
        self.wake: Callable[[], None] = lambda: None

    def clock(self) -> float:
        return self.now

    def on_return(self, call: Callable[[], None]) -> None:
        self.wake = call

    def contacts(self) -> tuple[Contact, ...]:
        self.looks += 1
        self.now += 1.0
        if not self.silent:
            self.heard_at = self.now
        # The next look is due as soon as everybody else had a turn.
        asyncio.get_running_loop().call_soon(self.wake)
        return (
            Contact(
                peer_id="a",
                public_key="k",
                address=CALLEE_PLACE,
                heard_at=self.heard_at,
                asked=9,
                restarts=self.restarts,
            ),
        )


async def test_a_lost_peer_is_reset_and_one_that_is_back_is_not() -> None:
    """The kernel has the address from the loss until the first arrival, and status has the peer's key."""
    link, table = FakeLink(), FakeRefusals()
    link.silent = True
    losing = Losing(lambda: WORLD, Refusing(table), link.clock)
    async with TaskScope() as scope:
        task = scope.start("lost", losing.run(link))
        await eventually(lambda: table.lost == {CALLEE_PLACE}, "it is lost")
        assert link.now - link.heard_at >= LOST_SECONDS
        assert losing.keys == {"k"}
        link.silent = False
        await eventually(lambda: table.lost == frozenset(), "it is back")
        task.cancel()


async def test_a_return_that_the_kernel_did_not_take_is_tried_again() -> None:
    """A peer that is back must not stay cut off."""
    link, table = FakeLink(), FakeRefusals()
    link.silent = True
    async with TaskScope() as scope:
        task = scope.start("lost", Losing(lambda: WORLD, Refusing(table), link.clock).run(link))
        await eventually(lambda: table.lost == {CALLEE_PLACE}, "it is lost")
        table.fails, link.silent = 3, False
        await eventually(lambda: table.lost == frozenset(), "it is back")
        task.cancel()


async def test_half_open_connections_to_a_peer_that_restarted_are_ended_once() -> None:
    """Not at the first sight of a peer; a kernel that refuses is no reason to stop looking."""
    link, asked = FakeLink(), list[frozenset[str]]()

    def end(remotes: frozenset[str]) -> int:
        asked.append(remotes)
        raise PermissionError("no raw socket")

    losing = Losing(lambda: WORLD, Refusing(FakeRefusals()), link.clock, end)
    async with TaskScope() as scope:
        task = scope.start("lost", losing.run(link))
        await eventually(lambda: link.looks > 10, "it looks")
        assert asked == []
        for number in (1, 2):
            link.restarts = number
            looks = link.looks
            await eventually(lambda looks=looks: link.looks > looks + 10, "it looks on")  # type: ignore[misc]
        task.cancel()
    assert asked == [frozenset({CALLEE_PLACE})] * 2


async def test_calm_links_touch_no_table() -> None:
    """Nothing is sent to the kernel while nobody is lost."""
    link, table = FakeLink(), FakeRefusals()
    async with TaskScope() as scope:
        task = scope.start("lost", Losing(lambda: WORLD, Refusing(table), link.clock).run(link))
        await eventually(lambda: link.looks > 100, "it looks")
        task.cancel()
    assert table.applied == []


@dataclass
class Wire:
    """The link over the wire between two namespaces, which may be cut."""

    caller: str
    callee: str
    cut_at: float | None = None
    wake: Callable[[], None] = lambda: None

    def on_return(self, call: Callable[[], None]) -> None:
        self.wake = call

    def contacts(self) -> tuple[Contact, ...]:
        heard_at = time.monotonic() if self.cut_at is None else self.cut_at
        asked = 0 if self.cut_at is None else 9
        return (Contact(peer_id="a", public_key="k", address=CALLEE_PLACE, heard_at=heard_at, asked=asked),)

    def cut(self) -> None:
        for namespace in (self.caller, self.callee):
            within(namespace, lambda: drop_arrivals(["wire"]))
        self.cut_at = time.monotonic()

    def mend(self) -> None:
        for namespace in (self.caller, self.callee):
            within(namespace, lambda: drop_arrivals([]))
        self.cut_at = None
        self.wake()


class TableIn:
    """The kernel's table of another namespace."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._table = RefusalTable()
        self.lost: frozenset[str] = frozenset()

    def apply(self, wanted: Wanted) -> None:
        within(self._namespace, lambda: self._table.apply(wanted))
        self.lost = wanted.resets.lost

    def remove(self) -> None:
        within(self._namespace, self._table.remove)


def end_of(client: socket.socket, data: bytes) -> str:
    """How a connection ends on which `data` is sent now."""
    client.settimeout(3 * DEAD_AFTER)
    try:
        with client:
            client.sendall(data)
            while client.recv(1 << 16):
                pass
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "end"


@pytest.mark.netns
def test_a_client_of_a_lost_peer_sees_a_reset_and_no_end() -> None:
    """A connection that waits for its answer, and one that sends: both fail. A peer that is back serves at once."""
    tool("envoy")
    with wired() as (caller, callee):
        asyncio.run(_lose(Wire(caller, callee)))


async def _lose(wire: Wire) -> None:
    table = TableIn(wire.caller)
    refusing = Refusing(table)
    async with route(wire.caller, wire.callee) as both, TaskScope() as scope:
        task = scope.start("lost", Losing(lambda: WORLD, refusing).run(wire))
        clients = [await asyncio.to_thread(within, wire.caller, lambda: dial(both.vip)) for _ in range(2)]
        await asyncio.to_thread(wire.cut)
        ends = await asyncio.gather(
            asyncio.to_thread(end_of, clients[0], b""), asyncio.to_thread(end_of, clients[1], b"more")
        )
        assert ends == ["ECONNRESET", "ECONNRESET"]
        await asyncio.to_thread(wire.mend)
        await eventually(lambda: not table.lost, "the kernel resets nothing any more")
        (await asyncio.to_thread(within, wire.caller, lambda: dial(both.vip))).close()
        assert refusing.problem is None
        task.cancel()


def give(listener: socket.socket) -> None:
    """Gives DOWNLOAD bytes to each that says `hi`, after the answer that `dial` waits for; until it is shut down."""
    while True:
        try:
            connection = listener.accept()[0]
        except OSError:
            return
        with connection:
            connection.sendall(connection.recv(2) + bytes(DOWNLOAD))


@pytest.mark.netns
def test_a_change_of_path_cuts_no_transfer() -> None:
    """A download that stands still for as long as a change of path takes arrives whole."""
    tool("envoy")
    with wired() as (caller, callee):
        asyncio.run(_interrupt(Wire(caller, callee)))


async def _interrupt(wire: Wire) -> None:
    async with route(wire.caller, wire.callee, give) as both, TaskScope() as scope:
        task = scope.start("lost", Losing(lambda: WORLD, Refusing(TableIn(wire.caller))).run(wire))
        client = await asyncio.to_thread(within, wire.caller, lambda: dial(both.vip))
        await asyncio.to_thread(wire.cut)
        # The download waits for its reader meanwhile: it cannot be over.
        await asyncio.sleep(CHANGE_OF_PATH)
        await asyncio.to_thread(wire.mend)
        assert await asyncio.to_thread(count, client) == DOWNLOAD
        task.cancel()


def count(client: socket.socket) -> int:
    """Bytes until the end."""
    found = 0
    client.settimeout(3 * DEAD_AFTER)
    with client:
        while data := client.recv(1 << 16):
            found += len(data)
    return found
