"""A peer that vanishes: two Envoys in namespaces of their own, and a wire between them that loses everything."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from lab.nat import drop_arrivals
from lab.network import enter
from tests.support import network_namespace, spawn, tool
from tests.xds.mesh import PORT, Node, Pair
from vip.nftables import RefusalTable
from vip.resets import Resets
from vip.table import Wanted
from xds.bootstrap import argv
from xds.transport import DEAD_AFTER

T = TypeVar("T")
CALLER_PLACE, CALLEE_PLACE = "10.9.9.1", "10.9.9.2"


class Inside(Node):
    """A node whose Envoy runs in a namespace."""

    namespace = ""

    async def exec(self) -> None:
        """Envoy alone."""
        with self.log.open("ab") as out:
            self.process = await spawn(
                "nsenter", f"--net=/var/run/netns/{self.namespace}", *argv(tool("envoy"), str(self.config)),
                stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip


def within(namespace: str, work: Callable[[], T]) -> T:
    """What `work` gives on a thread that is in the namespace."""

    def moved() -> T:
        enter(f"/var/run/netns/{namespace}")
        return work()

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(moved).result()


@contextlib.contextmanager
def wired() -> Iterator[tuple[str, str]]:
    """Two namespaces with a wire between them."""
    from pyroute2 import NetNS

    with network_namespace() as caller, network_namespace() as callee:
        with NetNS(caller) as link:
            link.link("add", ifname="wire", kind="veth", peer={"ifname": "wire", "net_ns_fd": callee})
        for namespace, address in ((caller, CALLER_PLACE), (callee, CALLEE_PLACE)):
            with NetNS(namespace) as link:
                index = link.link_lookup(ifname="wire")[0]
                link.addr("add", index=index, address=address, prefixlen=24)
                link.link("set", index=index, state="up")
        yield caller, callee


def serve(listener: socket.socket) -> None:
    """Echoes, until the listener is shut down."""

    def talk(connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):
            while data := connection.recv(1 << 16):
                connection.sendall(data)

    while True:
        try:
            connection = listener.accept()[0]
        except OSError:
            return
        threading.Thread(target=talk, args=(connection,), daemon=True).start()


def lose(namespace: str, address: str) -> None:
    """What the sidecar has the kernel do once the link calls the peer at `address` lost."""
    within(namespace, lambda: RefusalTable().apply(Wanted(Resets(lost=frozenset({address})))))


def ended_after(client: socket.socket, data: bytes) -> float:
    """Seconds until a connection ends on which `data` is sent now."""
    start = time.monotonic()
    client.settimeout(3 * DEAD_AFTER)
    with client, contextlib.suppress(ConnectionError):
        client.sendall(data)
        while client.recv(1 << 16):
            pass
    return time.monotonic() - start


@contextlib.asynccontextmanager
async def route(caller: str, callee: str, serve: Callable[[socket.socket], None] = serve) -> AsyncIterator[Pair]:
    """A route from an Envoy in one namespace to one in the other, with `serve` behind it."""
    with tempfile.TemporaryDirectory(prefix="xds") as name:
        both = Pair(Path(name))
        both.caller, both.callee = Inside("caller", Path(name)), Inside("callee", Path(name))
        both.caller.namespace, both.callee.namespace = caller, callee
        both.address = CALLEE_PLACE
        listener = within(callee, lambda: socket.create_server((both.backend, PORT)))
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        try:
            await both.callee.start()
            await both.caller.start()
            await both.callee.apply(both.ingress())
            await both.caller.apply(both.egress())
            yield both
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            await both.caller.close()
            await both.callee.close()


def test_a_peer_that_vanished_ends_connections_that_wait_and_those_that_talk() -> None:
    """Neither FIN nor RST comes from it. Keep-alive ends those that wait, on both sides, later than a change of path
    takes (6.1 s) and well before anybody gives up; those that talk end when the peer is called lost.
    """
    with wired() as (caller, callee):
        asyncio.run(_vanish(caller, callee))


async def _vanish(caller: str, callee: str) -> None:
    async with route(caller, callee) as both:
        clients = [await asyncio.to_thread(within, caller, lambda: dial(both.vip)) for _ in range(2)]
        for namespace in (caller, callee):
            await asyncio.to_thread(within, namespace, lambda: drop_arrivals(["wire"]))
        clients[1].sendall(b"more")
        assert await asyncio.to_thread(ended_after, clients[0], b"") > 6.1
        clients[1].setblocking(False)
        with pytest.raises(BlockingIOError):
            clients[1].recv(1)
        # What was under way is sent again, not probed for, on either side.
        await asyncio.to_thread(lose, caller, CALLEE_PLACE)
        await asyncio.to_thread(lose, callee, CALLER_PLACE)
        await asyncio.to_thread(ended_after, clients[1], b"")
        async with asyncio.timeout(2 * DEAD_AFTER):
            while await both.callee.stat("listener.*_19090.downstream_cx_active"):
                pass


def dial(vip: str) -> socket.socket:
    """A connection that works, made in the namespace of the thread. The listener may come a moment after the ACK."""
    for _ in range(500):
        try:
            client = socket.create_connection((vip, PORT), timeout=10)
        except ConnectionError:
            time.sleep(0.01)
            continue
        client.sendall(b"hi")
        if client.recv(2) == b"hi":
            return client
        client.close()
    raise AssertionError("the route does not serve")
