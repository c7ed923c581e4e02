"""Real nodes for the peer tests: per machine a namespace, a wireguard-go, and a thread with an event loop."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self, TypeVar

from lab.network import CvmNet, HostNet, LabNetwork, enter
from peer.driver import PeerLink
from peer.keys import AdmittedKey, KeySet
from peer.relay import Relay
from peer.service import Rendezvous
from peer.spec import InterfaceSpec, Peer, RendezvousPeer
from peer.wireguard import USERSPACE_ENV, UserspaceDevice, generate_key, userspace_argv
from tests import support

T = TypeVar("T")
POOL = "100.96.0.0/16"
TRANSFER_SECONDS = 30.0
"""Longer than TCP waits before it sends anything again while a path's MTU is found."""
_numbers = itertools.count()


class Node:
    """One machine: its namespace, loop, key, device and wireguard-go."""

    def __init__(self, netns: str, address: str) -> None:
        self.netns = netns
        self.address = address
        self.private, self.key = generate_key()
        # Sockets of wireguard-go are named after the interface and shared by the whole machine: make names unique.
        name = f"t{os.getpid() % 100000}n{next(_numbers)}"
        self.spec = InterfaceSpec(private_key=self.private, address=address, pool=POOL, name=name)
        self.device = UserspaceDevice(self.spec)
        self.child: subprocess.Popen[bytes] | None = None
        self.main: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        ready.wait()

    def _run(self, ready: threading.Event) -> None:
        enter(self.netns)
        asyncio.set_event_loop(self._loop)
        self._loop.call_soon(ready.set)
        self._loop.run_forever()
        self._loop.close()

    def call(self, work: Callable[[], T]) -> T:
        """Runs a function on the node's thread."""

        async def wrapped() -> T:
            return work()

        return self.run(wrapped())

    def run(self, work: Coroutine[Any, Any, T], seconds: float = 60.0) -> T:
        """Runs a coroutine on the node's loop and waits for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

    def start_wireguard(self) -> None:
        """Starts wireguard-go, as a supervisor would."""
        argv = userspace_argv(support.tool("wireguard-go"), self.spec.name)
        self.child = self.call(lambda: support.popen(argv, env=USERSPACE_ENV, stdin=subprocess.DEVNULL))

    def kill_wireguard(self) -> None:
        """SIGKILL."""
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            self.child = None

    def begin(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Starts the node's main task."""

        def start() -> asyncio.Task[None]:
            return self._loop.create_task(work())

        self.main = self.call(start)

    def end(self) -> None:
        """Cancels the main task; raises what it died of, if it did."""

        async def stop() -> None:
            assert self.main is not None
            self.main.cancel()
            with suppress(asyncio.CancelledError):
                await self.main

        if self.main is not None:
            self.run(stop())
            self.main = None

    def close(self) -> None:
        """Ends everything."""
        try:
            self.end()
        finally:
            self.kill_wireguard()
            self.run(_settle())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()


async def _settle() -> None:
    """Lets connections close: their tasks end a few turns of the loop later."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=2.0)


class ListSource:
    """A coordinator whose keys are a list that the test sets."""

    def __init__(self) -> None:
        self.keys = KeySet(version=1, peers=())
        self.seen = 0
        self._changed = asyncio.Event()

    async def watch(self, seen: int) -> KeySet:
        """See KeySource."""
        self.seen = seen
        while self.keys.version == seen:
            await self._changed.wait()
            self._changed.clear()
        return self.keys

    def set(self, nodes: Sequence[Node]) -> None:
        """Admits these. On the rendezvous' loop."""
        peers = tuple(AdmittedKey(public_key=node.key, address=node.address) for node in nodes)
        self.keys = KeySet(version=self.keys.version + 1, peers=peers)
        self._changed.set()


class Mesh:
    """A rendezvous and CVMs."""

    def __init__(self, nats: Sequence[str]) -> None:
        self.network = LabNetwork("t")
        self.nodes: list[Node] = []
        self.links: list[PeerLink] = []
        self.places: list[CvmNet] = []
        self.host: HostNet = self.network.add_host("rendezvous")
        self.rendezvous = Node(self.host.netns, "100.96.0.1")
        self.source = ListSource()
        self.start_rendezvous()
        for number, nat in enumerate(nats):
            place = self.network.add_cvm(f"c{number}", nat)  # type: ignore[arg-type]
            self.places.append(place)
            node = Node(place.netns, f"100.96.1.{number + 1}")
            self.nodes.append(node)
            node.start_wireguard()
            where = RendezvousPeer(
                public_key=self.rendezvous.key, endpoint=f"{self.host.address}:51820", address=self.rendezvous.address
            )
            self.links.append(node.call(lambda node=node, where=where: PeerLink(node.device, rendezvous=[where])))

    def start_rendezvous(self) -> None:
        """Starts it, with its wireguard-go; admitted keys come from `source`."""
        node = self.rendezvous
        node.start_wireguard()

        async def work() -> None:
            relay = Relay("0.0.0.0", range(52000, 52100))
            await Rendezvous(node.device, [self.source], relay).run()

        node.begin(work)

    def stop_rendezvous(self) -> None:
        """Kills the rendezvous and its wireguard-go."""
        self.rendezvous.end()
        self.rendezvous.kill_wireguard()

    def admit(self, nodes: Sequence[Node] | None = None) -> None:
        """Admits nodes (default: all) and waits until the rendezvous' device has them."""
        admitted = self.nodes if nodes is None else nodes
        self.rendezvous.call(lambda: self.source.set(admitted))

        async def applied() -> None:
            await support.eventually(lambda: self.source.seen == self.source.keys.version, "the keys are applied")

        self.rendezvous.run(applied())

    def start(self, admit: bool = True) -> None:
        """Starts every node's link with all others as peers."""
        if admit:
            self.admit()
        peers = [Peer(public_key=node.key, address=node.address, peer_id=f"c{i}") for i, node in enumerate(self.nodes)]
        for node, link in zip(self.nodes, self.links, strict=True):
            node.call(lambda link=link: link.set_peers(peers))
            node.begin(link.run)

    def wait_up(self, seconds: float = 15.0) -> None:
        """Fails unless every tunnel is up within `seconds`."""
        keys = [node.key for node in self.nodes]
        for node, link in zip(self.nodes, self.links, strict=True):
            assert node.run(link.wait_up(keys, seconds)), node.call(link.status)

    def wait_path(self, path: str, seconds: float = 15.0) -> None:
        """Fails unless every link uses `path` within `seconds`."""

        def there(link: PeerLink) -> bool:
            return all(row.path == path for row in link.status())

        for node, link in zip(self.nodes, self.links, strict=True):
            node.run(support.eventually(lambda link=link: there(link), f"links are {path}", seconds))

    def close(self) -> None:
        """Ends everything."""
        try:
            for node in [*self.nodes, self.rendezvous]:
                node.close()
        finally:
            self.network.close()


@contextmanager
def mesh(*nats: str) -> Iterator[Mesh]:
    """A mesh whose CVMs have these NATs; removed at the end."""
    support.need_root_or_userns()
    support.tool("wireguard-go")
    made = Mesh(nats)
    try:
        yield made
    finally:
        made.close()


class Transfer:
    """One TCP connection through the tunnel, from one node to another, and what arrives of what is sent.

    A context manager: at its end the connection is closed, whatever became of it.
    """

    def __init__(self, one: Node, other: Node) -> None:
        self._received = hashlib.sha256()
        self._sent = hashlib.sha256()
        listener = other.call(lambda: socket.create_server((other.address, 0)))
        with listener:
            self._client = one.call(lambda: _tcp(one.address))
            self._client.settimeout(TRANSFER_SECONDS)
            try:
                self._client.connect(listener.getsockname())
                listener.settimeout(TRANSFER_SECONDS)
                self._server, _ = listener.accept()
            except BaseException:
                self._client.close()
                raise
        self._server.settimeout(TRANSFER_SECONDS)
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._client.close()
        self._server.close()

    def _receive(self) -> None:
        with suppress(OSError):
            while data := self._server.recv(1 << 16):
                self._received.update(data)

    def send(self, size: int) -> None:
        """Sends `size` bytes; what the kernel takes may still be on its way."""
        data = os.urandom(size)
        self._sent.update(data)
        self._client.sendall(data)

    def whole(self) -> bool:
        """Ends the connection; whether everything arrived, in TRANSFER_SECONDS without a byte at most."""
        self._client.shutdown(socket.SHUT_WR)
        self._thread.join()
        return self._received.digest() == self._sent.digest()


class Echo:
    """Numbered datagrams from one node to another and back, at a steady rate, through the tunnel."""

    def __init__(self, one: Node, other: Node, rate: float = 100.0) -> None:
        self._one, self._other, self._rate = one, other, rate
        self._stop = threading.Event()
        self.sent = 0
        self.returned: set[int] = set()
        self._server = other.call(lambda: _udp(other.address))
        try:
            self._client = one.call(lambda: _udp(one.address))
        except BaseException:
            self._server.close()
            raise
        self._target = (other.address, self._server.getsockname()[1])
        self._threads = [threading.Thread(target=each) for each in (self._serve, self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                data, address = self._server.recvfrom(100)
                self._server.sendto(data, address)
            except TimeoutError:
                continue

    def _send(self) -> None:
        while not self._stop.wait(1 / self._rate):
            # Without a device there is no route: a packet that could not be sent counts as lost.
            with suppress(OSError):
                self._client.sendto(self.sent.to_bytes(8, "big"), self._target)
            self.sent += 1

    def _receive(self) -> None:
        while not self._stop.is_set():
            try:
                self.returned.add(int.from_bytes(self._client.recv(100), "big"))
            except TimeoutError:
                continue

    def close(self) -> tuple[int, int]:
        """Stops; (sent, lost)."""
        self._threads[1].join(0)
        sent_before = self.sent
        # What is still on its way gets a moment: the loss counted is of what was sent until now.
        waiter = threading.Event()
        for _ in range(100):
            if self.returned.issuperset(range(sent_before)):
                break
            waiter.wait(0.01)
        lost = len(set(range(sent_before)) - self.returned)
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._server.close()
        self._client.close()
        return sent_before, lost


def _tcp(address: str) -> socket.socket:
    made = socket.socket()
    try:
        made.bind((address, 0))
    except BaseException:
        made.close()
        raise
    return made


def _udp(address: str) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        made.bind((address, 0))
    except BaseException:
        made.close()
        raise
    made.settimeout(0.1)
    return made
