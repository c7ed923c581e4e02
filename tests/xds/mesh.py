"""Two Envoys back to back on loopback addresses of their own, each with its xDS server: the harness of the end-to-end
tests.

`caller` has egress routes on a VIP, `callee` an ingress in front of an echo server. Addresses are drawn per test from
127/8, so tests do not meet each other; everything ends with the context.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from tests.support import spawn, tool
from tests.xds.pki import Authority
from xds.bootstrap import MAX_HEAP, argv, bootstrap
from xds.server import XdsServer
from xds.snapshot import Snapshot, build
from xds.spec import EgressRoute, Endpoint, Ingress, Principal, PublicListener, Spec

CALLER = "spiffe://test/caller"
CALLEE = "spiffe://test/callee"
PORT = 9090
INGRESS_PORT = 19090
PUBLIC_PORT = 19443
OUTSIDE = "https://callee.example"
"""The name of the callee's public listener."""
_counter = itertools.count()


def loopback() -> str:
    """A loopback address that no other test of this machine uses."""
    index = next(_counter)
    return f"127.{64 + os.getpid() % 64}.{(os.getpid() // 64) % 256}.{index % 250 + 1}"


class Node:
    """One Envoy with its control plane."""

    def __init__(self, name: str, directory: Path, *, max_heap: int = MAX_HEAP, max_connections: int = 50_000) -> None:
        self.name = name
        self.admin = directory / f"{name}-admin.sock"
        self.socket = directory / f"{name}-xds.sock"
        self.config = directory / f"{name}.json"
        self.log = directory / f"{name}.log"
        self.server = XdsServer(self.socket)
        self.snapshot: Snapshot | None = None
        self.process: asyncio.subprocess.Process | None = None
        text = bootstrap(
            node_id=name,
            cluster="test",
            xds_socket=str(self.socket),
            admin_socket=str(self.admin),
            max_heap=max_heap,
            max_connections=max_connections,
        )
        self.config.write_text(text)

    async def start(self) -> None:
        """Server, then Envoy."""
        await self.server.start()
        await self.exec()

    async def exec(self) -> None:
        """Envoy alone."""
        with self.log.open("ab") as out:
            self.process = await spawn(
                *argv(tool("envoy"), str(self.config)), stdout=out, stderr=out, start_new_session=True
            )

    async def apply(self, spec: Spec, seconds: float = 10.0) -> Snapshot:
        """Publishes `spec` and waits until Envoy runs it."""
        self.publish(spec)
        assert self.snapshot is not None
        await self.server.wait_acked(self.snapshot.version, seconds)
        return self.snapshot

    def publish(self, spec: Spec) -> None:
        """Publishes `spec` without waiting."""
        self.snapshot = build(spec, self.snapshot)
        self.server.publish(self.snapshot)

    async def get(self, path: str, method: str = "GET") -> str:
        """An answer of Envoy's admin interface."""
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self.admin))) as session,
            session.request(method, f"http://admin{path}") as answer,
        ):
            return await answer.text()

    async def stat(self, name: str) -> int:
        """One counter or gauge; 0 if it is not there."""
        text = await self.get(f"/stats?usedonly&filter=^{name}$")
        return sum(int(line.rsplit(":", 1)[1]) for line in text.splitlines() if ":" in line)

    async def counted(self, name: str, least: int = 1) -> None:
        """Returns once a counter is at `least`: Envoy counts after it has answered, so a client may be ahead of it."""
        for _ in range(500):
            if await self.stat(name) >= least:
                return
            await asyncio.sleep(0.01)
        pytest.fail(f"{name} is not {least}: {await self.get('/stats?usedonly')}")

    async def kill(self) -> None:
        """SIGKILL of this Envoy."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    def pause(self, stop: bool) -> None:
        """SIGSTOP or SIGCONT: a host that no longer answers, and back."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP if stop else signal.SIGCONT)

    async def close(self) -> None:
        """Ends Envoy and the server."""
        await self.kill()
        await self.server.stop()


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], "asyncio.Future[None] | object"]
Behind = Callable[[str], contextlib.AbstractAsyncContextManager[object]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends back what it gets, until the client has shut down its side."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()


class Pair:
    """Two nodes and the addresses between them."""

    def __init__(
        self,
        directory: Path,
        *,
        max_heap: int = MAX_HEAP,
        public: bool = False,
        max_connections: int = 50_000,
    ) -> None:
        """`public`: the route leads to the callee's public listener, which a caller's Envoy uses as any client does."""
        self.public = public
        self.authority = Authority()
        self.caller = Node("caller", directory)
        self.callee = Node("callee", directory, max_heap=max_heap, max_connections=max_connections)
        self.vip, self.address, self.backend, self.source = (loopback() for _ in range(4))
        self.caller_leaf = self.authority.leaf("caller", CALLER)
        self.callee_leaf = self.authority.leaf("callee", CALLEE)
        self.public_leaf = replace(self.authority.leaf("outside", OUTSIDE), uri=None)

    def route(self, **changes: object) -> EgressRoute:
        """The caller's route to the callee, with `changes`."""
        values: dict[str, object] = {
            "name": "worker",
            "vip": self.vip,
            "port": PORT,
            "endpoints": (Endpoint(address=self.address, port=PUBLIC_PORT if self.public else INGRESS_PORT),),
            "identity": "caller",
            "peer_sans": (OUTSIDE if self.public else CALLEE,),
        }
        return EgressRoute(**{**values, **changes})  # type: ignore[arg-type]

    def egress(self, *routes: EgressRoute) -> Spec:
        """The caller's spec."""
        return Spec(
            egress=routes or (self.route(),), ingress=(), leaves=(self.caller_leaf,), roots_pem=self.authority.pem
        )

    def ingress(self, *allowed: Principal) -> Spec:
        """The callee's spec."""
        ingress = Ingress(
            name="worker",
            address=self.address,
            port=INGRESS_PORT,
            identity="callee",
            target=Endpoint(address=self.backend, port=PORT),
            source=self.source,
            allowed=allowed or (Principal(uri=CALLER),),
        )
        spec = Spec(egress=(), ingress=(ingress,), leaves=(self.callee_leaf,), roots_pem=self.authority.pem)
        return (
            replace(spec, public=(self.listener(),), leaves=(*spec.leaves, self.public_leaf)) if self.public else spec
        )

    def listener(self, **changes: object) -> PublicListener:
        """The callee's public listener, with `changes`."""
        values: dict[str, object] = {
            "name": "worker",
            "address": self.address,
            "port": PUBLIC_PORT,
            "identity": "outside",
            "ingress": "worker",
            "alpn": ("http/1.1",),
        }
        return PublicListener(**{**values, **changes})  # type: ignore[arg-type]

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A client connection to the VIP."""
        return await asyncio.open_connection(self.vip, PORT)

    async def listening(self) -> None:
        """Returns once both listeners accept: Envoy's workers start to listen a moment after the ACK."""
        for place in ((self.address, PUBLIC_PORT if self.public else INGRESS_PORT), (self.vip, PORT)):
            for _ in range(1000):
                if await _accepts(place):
                    break
                await asyncio.sleep(0.01)
            else:
                pytest.fail(f"nothing listens on {place}")

    async def settles_on(self, answer: bytes, data: bytes = b"ping") -> None:
        """Fails unless connections that send `data` soon get `answer` and go on to. Each worker of Envoy applies a
        change a moment after the ACK, and may accept one connection that was waiting before it does."""
        row = 0
        for _ in range(200):
            row = row + 1 if await self.ask(data) == answer else 0
            if row == 8:
                return
        pytest.fail(f"connections do not settle on {answer!r}")

    async def ask(self, data: bytes = b"ping", seconds: float = 5.0) -> bytes:
        """One connection: sends `data`, gives as much of the answer as comes before the close."""
        async with asyncio.timeout(seconds):
            try:
                reader, writer = await self.dial()
                with closing(writer):
                    writer.write(data)
                    return await reader.readexactly(len(data))
            except asyncio.IncompleteReadError as error:
                return error.partial
            except ConnectionError:
                return b""


async def _accepts(place: tuple[str, int]) -> bool:
    try:
        _, writer = await asyncio.open_connection(*place)
    except ConnectionError:
        return False
    writer.transport.abort()
    return True


@contextlib.contextmanager
def closing(writer: asyncio.StreamWriter):  # type: ignore[no-untyped-def]
    """Closes a connection at the end of a block, without waiting for the other side."""
    try:
        yield writer
    finally:
        writer.transport.abort()


@contextlib.asynccontextmanager
async def pair(
    *,
    serve: Handler = echo,
    behind: Behind | None = None,
    max_heap: int = MAX_HEAP,
    public: bool = False,
) -> AsyncIterator[Pair]:
    """Two Envoys that talk, acknowledged and ready, with a backend behind the callee: `serve` on the test's own loop,
    or whatever `behind` starts on the address that it is given. `max_heap` is the callee's; `public` as Pair has it."""
    with tempfile.TemporaryDirectory(prefix="xds") as name:
        both = Pair(Path(name), max_heap=max_heap, public=public)
        async with contextlib.AsyncExitStack() as stack:
            if behind is None:
                backend = await asyncio.start_server(serve, both.backend, PORT, backlog=4096)  # type: ignore[arg-type]
                stack.callback(backend.close)
            else:
                await stack.enter_async_context(behind(both.backend))
            for node in (both.callee, both.caller):
                stack.push_async_callback(node.close)
                await node.start()
            await both.callee.apply(both.ingress())
            await both.caller.apply(both.egress())
            await both.listening()
            yield both
