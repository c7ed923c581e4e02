"""Servers outside of the mesh behind a real Envoy: TLS servers and a DNS server on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dnslib import AAAA, QTYPE, RR, A, DNSRecord

from dns.server import DnsServer
from tests.dns.servers import UpstreamServer, free_port, upstream
from tests.xds.mesh import Node, closing, echo, loopback, pair
from tests.xds.pki import Authority
from xds import outside
from xds.spec import Endpoint, Outside, Spec

NAME = "bank.example.com"
PORT = 8443


class Names:
    """What a DNS server answers, changed while it runs."""

    def __init__(self, *addresses: str, ttl: int = 1) -> None:
        self.addresses, self.ttl = addresses, ttl
        self.rcode, self.silent = 0, False

    def __call__(self, query: DNSRecord, _is_tcp: bool) -> list[DNSRecord]:
        """The reply to a query."""
        if self.silent:
            return []
        reply = query.reply(aa=0)
        reply.header.rcode = self.rcode
        if self.rcode == 0 and str(query.q.qname).rstrip(".") == NAME:
            for address in self.addresses:
                kind, data = (QTYPE.AAAA, AAAA(address)) if ":" in address else (QTYPE.A, A(address))
                if kind == query.q.qtype:
                    reply.add_answer(RR(query.q.qname, kind, ttl=self.ttl, rdata=data))
        return [reply]


class World:
    """An Envoy, a DNS server, and TLS servers outside."""

    def __init__(self, folder: Path, node: Node) -> None:
        self.folder, self.node = folder, node
        self.authority = Authority()
        self.names = Names()
        self.dns: UpstreamServer
        self.resolver: Endpoint
        self.entry = Outside(
            name="bank",
            listen=Endpoint(loopback(), 8081),
            host=NAME,
            port=PORT,
            server_name=NAME,
            roots_pem=self.authority.pem,
        )

    async def serve(self, address: str, *certified: str, authority: Authority | None = None, **more: Any) -> str:
        """A TLS server at `address`, certified for `certified`, that echoes; the address."""
        context = (authority or self.authority).server(self.folder, *certified, **more)
        await self.listen(address, context)
        return address

    async def listen(self, address: str, context: ssl.SSLContext) -> None:
        """A TLS server that echoes until the test ends."""
        server = await asyncio.start_server(echo, address, PORT, ssl=context)
        self.servers.callback(server.close)

    async def apply(self, *entries: Outside) -> None:
        """Makes Envoy lead to `entries`."""
        spec = Spec(egress=(), ingress=(), leaves=(), roots_pem="", outside=entries, resolver=self.resolver)
        await self.node.apply(spec)

    async def ask(self, at: Endpoint | None = None, data: bytes = b"ping") -> bytes:
        """What comes back of `data` over a connection in clear; nothing where it is closed."""
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionError):
                reader, writer = await asyncio.open_connection(*(at or self.entry.listen))
                with closing(writer):
                    writer.write(data)
                    return await reader.read(len(data))
        return b""

    async def settles_on(self, answer: bytes) -> None:
        """Fails unless connections soon get `answer` and go on to."""
        row = 0
        for _ in range(400):
            row = row + 1 if await self.ask() == answer else 0
            if row == 5:
                return
            await asyncio.sleep(0.02)
        pytest.fail(f"connections do not settle on {answer!r}: {self.node.log.read_text()[-2000:]}")

    async def looked_up(self, times: int) -> None:
        """Returns once the name was looked up so often. A silent resolver takes 4 s and more for each."""
        for _ in range(2000):
            if await self.node.stat("cluster.outside/bank.update_attempt") >= times:
                return
            await asyncio.sleep(0.02)
        pytest.fail("the name is not resolved again")

    async def refused(self) -> None:
        """Fails unless the server's certificate is what keeps connections out."""
        await self.settles_on(b"")
        assert (
            await self.node.stat("cluster.outside/bank.ssl.fail_verify_.*|cluster.outside/bank.ssl.connection_error")
            > 0
        )

    servers: contextlib.AsyncExitStack


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Envoy runs, and leads nowhere yet."""
    node = Node("out", tmp_path)
    found = World(tmp_path, node)
    async with contextlib.AsyncExitStack() as stack:
        found.servers = stack
        address = loopback()
        port = free_port(address)
        found.resolver = Endpoint(address, port)
        found.dns = await stack.enter_async_context(upstream(address, port, found.names))
        stack.push_async_callback(node.close)
        await node.start()
        yield found


async def test_a_name_leads_to_its_server(world: World) -> None:
    """In clear to the local address, by TLS with SNI to the server, whose certificate is for the name."""
    asked = []
    context = world.authority.server(world.folder, NAME)
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    world.names.addresses = (loopback(),)
    await world.listen(world.names.addresses[0], context)
    await world.apply(world.entry)
    await world.settles_on(b"ping")
    assert set(asked) == {NAME}


async def test_the_sidecars_dns_answers_envoy(world: World) -> None:
    """It passes questions on to the machine's resolvers, and each of them keeps to what it was told."""
    resolv_conf = world.folder / "resolv.conf"
    resolv_conf.write_text(f"nameserver {world.resolver.address}\nsearch other.example\n")
    address = loopback()
    server = DnsServer(address, 0, resolv_conf=resolv_conf, upstream_port=world.resolver.port)
    await server.start()
    world.servers.push_async_callback(server.stop)
    world.resolver = Endpoint(*server.addresses[0])
    world.names.addresses = (await world.serve(loopback(), NAME),)
    await world.apply(world.entry)
    await world.settles_on(b"ping")
    assert {str(query.q.qname) for query, _ in world.dns.seen} == {f"{NAME}."}


async def test_a_wildcard_certificate_counts_as_everywhere(world: World) -> None:
    """RFC 6125: `*.example.com` is for one label."""
    world.names.addresses = (await world.serve(loopback(), "*.example.com"),)
    await world.apply(world.entry)
    await world.settles_on(b"ping")


@pytest.mark.parametrize("certified", ["evil.example.com", "example.com", "127.0.0.1"])
async def test_a_server_with_another_name_is_refused(world: World, certified: str) -> None:
    """Whoever answers for the name has to have a certificate for it."""
    world.names.addresses = (await world.serve(loopback(), certified),)
    await world.apply(world.entry)
    await world.refused()


async def test_a_server_of_another_authority_is_refused(world: World) -> None:
    """Certificates chain to what is pinned."""
    world.names.addresses = (await world.serve(loopback(), NAME, authority=Authority()),)
    await world.apply(world.entry)
    await world.refused()


async def test_a_certificate_that_has_expired_is_refused(world: World) -> None:
    """By this CVM's clock."""
    world.names.addresses = (await world.serve(loopback(), NAME, hours=-1),)
    await world.apply(world.entry)
    await world.refused()


async def test_the_roots_of_a_file_count_as_pinned_ones(world: World) -> None:
    """And a file without the server's authority lets nobody in."""
    world.names.addresses = (await world.serve(loopback(), NAME),)
    for name, pem, answer in (("own", world.authority.pem, b"ping"), ("other", Authority().pem, b"")):
        file = world.folder / f"{name}.crt"
        file.write_text(pem)
        await world.apply(replace(world.entry, roots_pem=None, roots_file=str(file)))
        await world.settles_on(answer)


async def test_addresses_of_both_families_lead_to_their_servers(world: World) -> None:
    """Certificates for the address; without SNI, which is for names."""
    four = loopback()
    entries = []
    for number, address in enumerate((four, "::1")):
        await world.serve(address, address)
        listen = Endpoint(world.entry.listen.address, 8090 + number)
        entries.append(replace(world.entry, name=f"ip{number}", listen=listen, host=address, server_name=address))
    await world.apply(*entries, replace(entries[0], name="x", listen=Endpoint(loopback(), 1), server_name="127.9.9.9"))
    for entry in entries:
        for _ in range(100):
            if await world.ask(entry.listen) == b"ping":
                break
            await asyncio.sleep(0.02)
        else:
            pytest.fail(f"{entry.host} is not reached")
    assert await world.ask(Endpoint(entries[0].listen.address, 8090)) == b"ping"


async def test_a_name_with_an_ipv6_address_alone_leads_there(world: World) -> None:
    """And one with both goes on where one of them does not answer."""
    await world.serve("::1", NAME)
    world.names.addresses = ("::1",)
    await world.apply(world.entry)
    await world.settles_on(b"ping")


async def test_an_address_that_does_not_answer_is_not_the_end(world: World) -> None:
    """The next one of the answer is tried, of the other family too."""
    good = await world.serve(loopback(), NAME)
    world.names.addresses = ("::1", loopback(), good)
    await world.apply(world.entry)
    await world.settles_on(b"ping")


async def test_a_moved_name_is_followed(world: World) -> None:
    """For as long as an answer says that it holds; what is held goes on."""
    first, second = loopback(), loopback()
    world.names.addresses = (await world.serve(first, NAME),)
    await world.apply(world.entry)
    await world.settles_on(b"ping")
    reader, writer = await asyncio.open_connection(*world.entry.listen)
    with closing(writer):
        writer.write(b"before")
        assert await reader.readexactly(6) == b"before"
        await world.serve(second, NAME)
        world.names.addresses = (second,)
        for _ in range(500):
            if second in await world.node.get("/clusters"):
                break
            await asyncio.sleep(0.02)
        else:
            pytest.fail("the name is not resolved again")
        await world.settles_on(b"ping")
        writer.write(b"after")
        assert await reader.readexactly(5) == b"after"


@pytest.mark.parametrize("failure", ["nxdomain", "servfail", "empty", "silent"])
async def test_a_name_that_fails_keeps_its_addresses(world: World, failure: str) -> None:
    """Whatever a resolver says instead of an address, or if it says nothing."""
    world.names.addresses = (await world.serve(loopback(), NAME),)
    await world.apply(world.entry)
    await world.settles_on(b"ping")
    world.names.rcode = {"nxdomain": 3, "servfail": 2}.get(failure, 0)
    world.names.silent = failure == "silent"
    kept, world.names.addresses = world.names.addresses, ()
    # The first look-up may have begun before; when the third begins, the second was taken in.
    await world.looked_up(await world.node.stat("cluster.outside/bank.update_attempt") + 3)
    await world.settles_on(b"ping")
    assert kept[0] in await world.node.get("/clusters")


async def test_a_name_that_is_not_there_holds_nothing_up(world: World) -> None:
    """Envoy takes the rest at once, and the name when there is an answer. A resolver that is silent would keep it from
    starting otherwise."""
    world.names.silent = True
    good = replace(world.entry, name="ip", listen=Endpoint(loopback(), 81), host=loopback(), server_name="ip.example")
    await world.serve(good.host, "ip.example")
    async with asyncio.timeout(5):
        await world.apply(world.entry, good)
    for _ in range(100):
        if await world.ask(good.listen) == b"ping":
            break
        await asyncio.sleep(0.02)
    assert await world.ask(good.listen) == b"ping"
    world.names.silent = False
    world.names.addresses = (await world.serve(loopback(), NAME),)
    await world.settles_on(b"ping")


async def test_an_entry_that_changes_cuts_what_it_led_to(world: World) -> None:
    """And nothing of the entries beside it."""
    world.names.addresses = (await world.serve(loopback(), NAME, "other.example"),)
    beside = replace(world.entry, name="beside", listen=Endpoint(loopback(), 81))
    await world.apply(world.entry, beside)
    await world.settles_on(b"ping")
    held = [await asyncio.open_connection(*each.listen) for each in (world.entry, beside)]
    for reader, writer in held:
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
    await world.apply(replace(world.entry, server_name="other.example"), beside)
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionError):
            assert await held[0][0].read() == b""
    held[1][1].write(b"pong")
    assert await held[1][0].readexactly(4) == b"pong"
    for _, writer in held:
        writer.transport.abort()


async def test_a_name_that_leads_back_here_ends(world: World) -> None:
    """A resolver that answers with our own listener makes each connection open the next; they end, and the listeners
    beside it serve."""
    world.names.addresses = (world.entry.listen.address,)
    looping = replace(world.entry, port=world.entry.listen.port)
    good = replace(world.entry, name="ip", listen=Endpoint(loopback(), 81), host=loopback(), server_name="ip.example")
    await world.serve(good.host, "ip.example")
    await world.apply(looping, good)
    assert await world.ask(looping.listen) == b""
    await world.node.counted("cluster.outside/bank.upstream_cx_total", 2)
    assert await world.node.stat("cluster.outside/bank.upstream_cx_total") <= 2 * outside.MAX_CONNECTIONS
    for _ in range(100):
        if await world.ask(good.listen) == b"ping":
            return
        await asyncio.sleep(0.05)
    pytest.fail("the others do not serve any more")


async def test_a_route_is_reached_by_its_doors_too() -> None:
    """Several on one address, each beside the VIP; one that goes is closed, and the others' connections stay."""
    async with pair() as both:
        doors = tuple(Endpoint(address, port) for address in (loopback(),) for port in (81, 82))
        await both.caller.apply(both.egress(both.route(doors=doors)))
        held = []
        for at in (*doors, Endpoint(both.vip, 9090)):
            for _ in range(200):
                with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                    reader, writer = await asyncio.open_connection(*at)
                    writer.write(b"ping")
                    assert await reader.readexactly(4) == b"ping"
                    held.append((reader, writer))
                    break
                await asyncio.sleep(0.02)
        assert len(held) == 3
        await both.caller.apply(both.egress(both.route(doors=doors[1:])))
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                assert await held[0][0].read() == b""
        for reader, writer in held[1:]:
            writer.write(b"pong")
            assert await reader.readexactly(4) == b"pong"
        for _, writer in held:
            writer.transport.abort()
