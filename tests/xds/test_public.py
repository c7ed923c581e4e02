"""Public listeners in a real Envoy, with the mesh's own authority, asked by the programs that people have.

The local server, its addresses and programs are those of the transparency suite, which runs over such a listener too.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import socket
import ssl
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from coordinator.authority import issue_public, mesh_ca, root
from coordinator.keys import derive
from runtime.secret import Secret
from runtime.tasks import TaskScope
from sidecar.identity import make
from tests.xds.mesh import PORT, PUBLIC_PORT, Handler, Pair, closing, echo
from tests.xds.test_transparency_programs import BODY, MESSAGES, grpc_echo, http_1_1, program, run
from xds.protos import TlsInspector
from xds.public import ANSWER, HELLO_SECONDS, MAX_CONNECTIONS, listener, listener_name
from xds.resources import egress_listener, ingress_listener
from xds.snapshot import LISTENER, build
from xds.spec import Endpoint, Leaf, PublicListener, Spec

KEYS = derive(Secret("5e" * 32), "tests")
NAME = "web.example.com"
GENERATIONS = ("aa" * 32, "bb" * 32)
BIG = 200 << 20
"""Bytes of a long download."""
BLOCK = bytes(range(256)) * 4096


@dataclass(kw_only=True)
class Site:
    """A CVM's Envoy with a public listener on `address`, and the files that its clients pin."""

    pair: Pair
    folder: Path
    keys: object = field(default_factory=make)
    epoch: int = 1

    @property
    def address(self) -> str:
        """Where the listener is."""
        return self.pair.address

    @property
    def root(self) -> Path:
        """The root's certificate."""
        return self._file("root.pem", root(KEYS))

    def mesh_ca(self, epoch: int) -> Path:
        """That of a manifest."""
        return self._file(f"mesh-ca.{epoch}.pem", mesh_ca(KEYS, epoch, GENERATIONS[epoch - 1]).certificate)

    def _file(self, name: str, certificate: x509.Certificate) -> Path:
        path = self.folder / name
        path.write_bytes(certificate.public_bytes(Encoding.PEM))
        return path

    def spec(self, *alpn: str) -> Spec:
        """The Envoy's, with a certificate of generation `epoch`."""
        keys = self.keys
        chain = issue_public(
            mesh_ca(KEYS, self.epoch, GENERATIONS[self.epoch - 1]),
            base64.b64decode(keys.public.public),  # type: ignore[attr-defined]
            sans=(NAME, self.address, f"https://{NAME}"),
            hours=1,
            now=time.time(),
        )
        leaf = Leaf(name="outside", uri=None, chain_pem=chain, key_pem=keys.public_private_pem)  # type: ignore[attr-defined]
        spec = self.pair.ingress()
        public = self.pair.listener(alpn=alpn or ("http/1.1",))
        return replace(spec, public=(public,), leaves=(self.pair.callee_leaf, leaf))

    async def rotate(self) -> None:
        """The next manifest's certificate."""
        self.epoch += 1
        await self.pair.callee.apply(self.spec())

    def tls(self) -> ssl.SSLContext:
        """A client that pins the root."""
        return ssl.create_default_context(cafile=str(self.root))

    async def curl(self, *arguments: str, pin: Path | None = None, name: str = NAME) -> tuple[int, bytes]:
        """What curl says when it is asked for the listener under `name`."""
        return await run(
            program("curl"), "-sS", "--max-time", "50", "--cacert", str(pin or self.root),
            "--resolve", f"{name}:{PUBLIC_PORT}:{self.address}", *arguments,
        )  # fmt: skip

    async def epoch_shown(self) -> int:
        """The generation of the certificate that a new connection gets."""
        _, writer = await asyncio.open_connection(self.address, PUBLIC_PORT, ssl=self.tls(), server_hostname=NAME)
        with closing(writer):
            der = writer.get_extra_info("ssl_object").getpeercert(True)
        issuer = x509.load_der_x509_certificate(der).issuer
        return next(i for i, d in enumerate(GENERATIONS, 1) if mesh_ca(KEYS, i, d).certificate.subject == issuer)


@contextlib.asynccontextmanager
async def site(*alpn: str, serve: Handler = echo, behind: object = None) -> AsyncIterator[Site]:
    """One Envoy and what is behind it."""
    with tempfile.TemporaryDirectory(prefix="xds") as name:
        here = Site(pair=Pair(Path(name)), folder=Path(name))
        async with contextlib.AsyncExitStack() as stack:
            if behind is None:
                server = await asyncio.start_server(serve, here.pair.backend, PORT)  # type: ignore[arg-type]
                stack.callback(server.close)
            else:
                await stack.enter_async_context(behind(here.pair.backend))  # type: ignore[operator]
            stack.push_async_callback(here.pair.callee.close)
            await here.pair.callee.start()
            await here.pair.callee.apply(here.spec(*alpn))
            await listens(here.address)
            yield here


async def listens(address: str, port: int = PUBLIC_PORT) -> None:
    """Returns when the listener accepts: Envoy's workers begin a moment after the ACK."""
    for _ in range(1000):
        with contextlib.suppress(ConnectionError):
            _, writer = await asyncio.open_connection(address, port)
            writer.transport.abort()
            return
        await asyncio.sleep(0.01)
    pytest.fail("the public listener does not accept")


def url(path: str, name: str = NAME, scheme: str = "https") -> str:
    """Of the listener."""
    return f"{scheme}://{name}:{PUBLIC_PORT}{path}"


async def test_ordinary_clients_verify_a_public_listener_by_what_they_pin() -> None:
    """curl and openssl: the root takes every generation, a mesh CA its own alone, by DNS name and address; a name that
    the certificate does not have is refused."""
    digest = hashlib.sha256(BODY).hexdigest()
    async with site(behind=http_1_1) as here:
        for epoch in (1, 2):
            if epoch == 2:
                await here.rotate()
            for pin in (here.root, here.mesh_ca(epoch)):
                code, body = await here.curl(url("/length"), pin=pin)
                assert (code, hashlib.sha256(body).hexdigest()) == (0, digest)
                assert (await here.curl(url("/length", here.address), pin=pin, name=here.address))[0] == 0
            code, said = await here.curl(url("/length"), pin=here.mesh_ca(3 - epoch))
            assert (code, b"certificate" in said) == (60, True), said
            code, said = await here.curl(url("/length", "other.example.com"), name="other.example.com")
            assert code == 60, said
            openssl = program("openssl")
            place = ("-connect", f"{here.address}:{PUBLIC_PORT}", "-verify_return_error")
            asked = (openssl, "s_client", *place, "-brief", "-verify_hostname", NAME)
            code, said = await run(*asked, "-CAfile", str(here.root), data=b"")
            assert (code, b"Verification: OK" in said) == (0, True), said
            code, said = await run(*asked, "-CAfile", str(here.mesh_ca(3 - epoch)), data=b"")
            assert code != 0, said


async def test_plain_http_gets_one_clear_answer() -> None:
    """Status 400 and what to do, also for a body that is still being sent; the local server hears nothing."""
    heard: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            heard.append(await reader.read(1))

    async with site(serve=note) as here:
        form = ("-o", str(here.folder / "answer"), "-w", "%{http_code}")
        file = here.folder / "body"
        file.write_bytes(BODY)
        for arguments in ((), ("-0",), ("-T", str(file))):
            assert await here.curl(*form, *arguments, url("/", scheme="http")) == (0, b"400")
            assert (here.folder / "answer").read_text() == ANSWER
        reader, writer = await asyncio.open_connection(here.address, PUBLIC_PORT)
        with closing(writer):
            writer.write(b"SSH-2.0-client\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        assert not heard


async def test_a_listener_offers_by_alpn_what_the_application_is_said_to_speak() -> None:
    """curl speaks HTTP/1.1 to a listener that offers nothing else, and sends HTTP/2's preface to one that offers it."""
    async with site(behind=http_1_1) as here:
        form = ("--http2", "-o", "/dev/null", "-w", "%{http_version} %{http_code}")
        assert await here.curl(*form, url("/length")) == (0, b"1.1 200")
    first: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), contextlib.suppress(asyncio.IncompleteReadError):
            first.append(await reader.readexactly(14))

    async with site("h2", "http/1.1", serve=note) as here:
        await here.curl("--http2", url("/"))
        assert first[0] == b"PRI * HTTP/2.0"


async def test_websockets_uploads_and_grpc_pass_a_public_listener() -> None:
    """Messages come back in order, a chunked upload is whole, a gRPC stream ends with its status."""
    async with site(behind=http_1_1) as here, aiohttp.ClientSession() as session:
        async with session.ws_connect(url("/talk", here.address), ssl=here.tls()) as talk:
            for number in range(MESSAGES):
                data = BODY[number : 2 * number]
                await talk.send_bytes(data)
                assert await talk.receive_bytes() == data
        file = here.folder / "file"
        file.write_bytes(BODY)
        digest = hashlib.sha256(BODY).hexdigest().encode()
        chunked = ("-H", "Transfer-Encoding: chunked", "-H", "Expect: 100-continue")
        assert await here.curl(url("/upload"), "-T", str(file), *chunked) == (0, digest)
    async with site("h2", behind=grpc_echo) as here:
        trust = grpc.ssl_channel_credentials(here.root.read_bytes())
        named = (("grpc.ssl_target_name_override", NAME),)
        async with grpc.aio.secure_channel(f"{here.address}:{PUBLIC_PORT}", trust, named) as channel:

            async def requests() -> AsyncIterator[bytes]:
                for number in range(MESSAGES):
                    yield BODY[number : 2 * number]

            answers = [answer async for answer in channel.stream_stream("/test.Test/Echo")(requests())]
            assert answers == [BODY[number : 2 * number] for number in range(MESSAGES)]
            call = channel.unary_stream("/test.Test/Breaks")(b"")
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for _ in call:
                    pass
            assert await call.code() == grpc.StatusCode.DATA_LOSS


async def test_a_certificate_is_rotated_in_the_middle_of_a_long_download() -> None:
    """200 MB by curl, whole, while the next manifest's certificate comes: who connects then is shown that one. And the
    local server is dialled from the ingress' own address."""
    halfway, rotated = asyncio.Event(), asyncio.Event()
    sources: set[str] = set()

    async def download(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sources.add(writer.get_extra_info("peername")[0])
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {BIG}\r\nConnection: close\r\n\r\n".encode())
            for at in range(0, BIG, len(BLOCK)):
                if at == BIG // 2:
                    halfway.set()
                    await rotated.wait()
                writer.write(BLOCK)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            # Those who only look at the certificate ask for nothing.
            pass
        finally:
            writer.close()

    async with site(serve=download) as here:
        file = here.folder / "download"
        async with TaskScope() as scope:
            getting = scope.start("download", here.curl("-o", str(file), url("/")))
            await asyncio.wait_for(halfway.wait(), 50)
            assert await here.epoch_shown() == 1
            await here.rotate()
            async with asyncio.timeout(20):
                while await here.epoch_shown() != 2:
                    pass
            rotated.set()
            assert await getting == (0, b"")
        whole = hashlib.sha256(BLOCK * (BIG // len(BLOCK))).digest()
        assert hashlib.sha256(file.read_bytes()).digest() == whole
        assert sources == {here.pair.source}


async def test_a_public_port_may_be_that_of_a_route() -> None:
    """On every address, beside a route's VIP with the same port: who dials the VIP gets the route."""
    with tempfile.TemporaryDirectory(prefix="xds") as name:
        both = Pair(Path(name))
        spec = both.egress(both.route(port=PUBLIC_PORT))
        ingress = both.ingress()
        listener_ = both.listener(address="0.0.0.0")
        leaves = (*spec.leaves, both.callee_leaf, both.public_leaf)
        try:
            await both.caller.start()
            await both.caller.apply(replace(spec, ingress=ingress.ingress, public=(listener_,), leaves=leaves))
            await listens(both.vip)
            seen = [await answers(address) for address in (both.vip, both.address)]
        finally:
            await both.caller.close()
    assert seen == [b"", b"HTTP"]


async def answers(address: str) -> bytes:
    """The beginning of the answer to plain HTTP there."""
    reader, writer = await asyncio.open_connection(address, PUBLIC_PORT)
    with closing(writer):
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            return await reader.read(4)
    return b""


async def held(sockets: list[socket.socket], most: int) -> int:
    """How many of `sockets`, on which nothing was said, are not closed; it returns when that is `most` or fewer."""

    def open_(each: socket.socket) -> bool:
        try:
            return bool(each.recv(1, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        except ConnectionError:
            return False

    for _ in range(int(4 * HELLO_SECONDS.total_seconds() / 0.01)):
        if (found := sum(map(open_, sockets))) <= most:
            return found
        await asyncio.sleep(0.01)
    pytest.fail(f"{found} connections are still held")


async def calls(both: Pair) -> None:
    """Twenty by the mesh, one after the other."""
    for number in range(20):
        reader, writer = await both.dial()
        with closing(writer):
            writer.write(b"%02d" % number)
            assert await asyncio.wait_for(reader.readexactly(2), 10) == b"%02d" % number


def test_the_listeners_of_a_cvm_share_the_connections() -> None:
    """Each has its part of the limit, so several together take no more memory than one."""
    both = Pair(Path())
    two = (both.listener(), both.listener(name="other", port=PUBLIC_PORT + 1))
    for public, most in ((two[:1], MAX_CONNECTIONS), (two, MAX_CONNECTIONS // 2)):
        spec = replace(both.ingress(), public=public, leaves=(both.callee_leaf, both.public_leaf))
        made = build(spec).resources[LISTENER]
        for each in public:
            assert made[listener_name(each)].body == bytes(listener(each, most))


async def test_strangers_at_a_public_listener_do_not_stop_the_mesh() -> None:
    """They use up all connections that Envoy takes from outside and say nothing: calls between CVMs, again and again,
    and the admin interface go on; and who says nothing for long is closed."""
    with tempfile.TemporaryDirectory(prefix="xds") as name:
        both = Pair(Path(name), max_connections=8)
        spec = replace(both.ingress(), public=(both.listener(),), leaves=(both.callee_leaf, both.public_leaf))
        server = await asyncio.start_server(echo, both.backend, PORT)
        try:
            await asyncio.gather(both.caller.start(), both.callee.start())
            await asyncio.gather(both.caller.apply(both.egress()), both.callee.apply(spec))
            await both.listening()
            await listens(both.address)
            # Those that have ended do not make room for more strangers.
            await calls(both)
            with contextlib.ExitStack() as strangers:
                place = (both.address, PUBLIC_PORT)
                silent = [strangers.enter_context(socket.create_connection(place)) for _ in range(24)]
                assert await held(silent, 8) > 0
                await calls(both)
                assert await held(silent, 0) == 0
            await listens(both.address)
        finally:
            server.close()
            await asyncio.gather(both.caller.close(), both.callee.close())


def test_a_listener_does_not_depend_on_its_certificate() -> None:
    """It names a secret, so a rotation changes no listener; it bounds its connections, and asks nobody for a
    certificate."""
    made = listener(
        PublicListener(name="api", address="0.0.0.0", port=443, identity="outside", ingress="api", alpn=("h2",))
    )
    body = bytes(made)
    assert (made.name, b"leaf:outside" in body, b"roots" in body) == ("public/0.0.0.0:443", True, False)
    assert [one.name for one in made.filter_chains[0].filters] == [
        "envoy.filters.network.connection_limit",
        "envoy.filters.network.tcp_proxy",
    ]
    assert MAX_CONNECTIONS >= 2000
    assert made.listener_filters_timeout == HELLO_SECONDS
    assert not made.ignore_global_conn_limit
    pair_ = Pair(Path())
    assert egress_listener(pair_.route(), Endpoint(address=pair_.vip, port=PORT)).ignore_global_conn_limit
    assert ingress_listener(pair_.ingress().ingress[0]).ignore_global_conn_limit
    assert TlsInspector.parse(made.listener_filters[0].typed_config.value).initial_read_buffer_size == 512
