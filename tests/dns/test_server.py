"""The whole server over real sockets on loopback."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from dnslib import DNSRecord

from dns import server, zone
from dns.message import Rcode
from dns.server import BindError, DnsServer
from tests.dns.servers import (
    answer,
    ask_tcp,
    ask_udp,
    big,
    connection,
    fast_upstream,
    forwarder,
    free_port,
    silent,
    upstream,
)
from tests.support import eventually, soon

ONE, TWO = "127.11.7.1", "127.11.7.2"
OURS = "127.11.7.53"
ZONE = zone.build({"worker": "127.10.1.2"}, {"api-0": "100.96.0.1"}, {}, serial=1)


def query(name: str, qtype: str = "A") -> bytes:
    """A query's octets."""
    return bytes(DNSRecord.question(name, qtype).pack())


@asynccontextmanager
async def running(tmp_path: Path, *servers: str, port: int = 53, patience: int = 1) -> AsyncIterator[DnsServer]:
    """A started server whose resolv.conf names `servers`."""
    conf = tmp_path / "resolv.conf"
    conf.write_text(
        "".join(f"nameserver {name}\n" for name in servers)
        + f"options timeout:{min(patience, 30)} attempts:{-(-patience // 30)}\n"
    )
    dns = DnsServer(OURS, 0, resolv_conf=conf, upstream_port=port)
    await dns.start()
    try:
        yield dns
    finally:
        await dns.stop()


@pytest.mark.parametrize("ask", [ask_udp, ask_tcp])
async def test_our_names_are_answered_by_udp_and_tcp(tmp_path: Path, ask: object) -> None:
    """SERVFAIL until the zone is set, the address from then on, a new zone's at once."""
    async with running(tmp_path) as dns:
        [where] = dns.addresses

        async def address_of(name: str) -> str:
            reply = await ask_udp(where, query(name)) if ask is ask_udp else (await ask_tcp(where, query(name)))[0]
            read = DNSRecord.parse(reply)
            return str(read.a.rdata) if read.rr else Rcode(read.header.rcode).name

        assert await address_of("worker") == "SERVFAIL"
        dns.set_zone(ZONE)
        assert await address_of("worker") == "127.10.1.2"
        dns.set_zone(zone.build({"worker": "127.10.1.9"}, {}, {}, serial=2))
        assert await address_of("WORKER.mesh") == "127.10.1.9"
        assert await address_of("gone.mesh") == "NXDOMAIN"


async def test_other_names_are_forwarded(tmp_path: Path) -> None:
    """With a fresh ID from a port of its own each time; the client's ID comes back."""
    port = free_port(ONE, TWO)
    async with upstream(ONE, port, lambda q, _: [answer(q)]) as one, running(tmp_path, ONE, TWO, port=port) as dns:
        wires = [query(f"n{index}.example.org") for index in range(12)]
        replies = [DNSRecord.parse(await ask_udp(dns.addresses[0], wire)) for wire in wires]
    assert [reply.header.id for reply in replies] == [DNSRecord.parse(wire).header.id for wire in wires]
    assert {str(reply.a.rdata) for reply in replies} == {"192.0.2.1"}
    asked = [seen.header.id for seen, _ in one.seen]
    assert len(set(asked)) > 6
    assert asked != [reply.header.id for reply in replies]


async def test_a_silent_and_a_closed_server_are_passed_over(tmp_path: Path) -> None:
    """The second server answers, whether the first says nothing or is not there at all."""
    port = free_port(ONE, TWO)
    async with upstream(TWO, port, lambda q, _: [answer(q)]), running(tmp_path, ONE, TWO, port=port) as dns:
        assert DNSRecord.parse(await ask_udp(dns.addresses[0], query("closed.example"))).rr
        async with upstream(ONE, port, silent) as one:
            assert DNSRecord.parse(await ask_udp(dns.addresses[0], query("silent.example"))).rr
    assert len(one.seen) == 0 or one.seen[0][0].q.qname == "silent.example"


async def test_servfail_when_no_server_answers(tmp_path: Path) -> None:
    """By UDP and by TCP, for silent servers, closed ones and none; the exact time is dns.forward's test."""
    port = free_port(ONE, TWO)
    async with upstream(ONE, port, silent) as one, running(tmp_path, ONE, TWO, port=port) as dns:
        by_udp, [by_tcp] = await asyncio.gather(
            ask_udp(dns.addresses[0], query("a.example")), ask_tcp(dns.addresses[0], query("b.example"))
        )
        assert {DNSRecord.parse(by_udp).header.rcode, DNSRecord.parse(by_tcp).header.rcode} == {Rcode.SERVFAIL}
        assert len(one.seen) >= 2
    async with running(tmp_path) as dns:
        assert DNSRecord.parse(await ask_udp(dns.addresses[0], query("a.example"))).header.rcode == Rcode.SERVFAIL


async def test_truncated_answers_are_fetched_over_tcp(tmp_path: Path) -> None:
    """A TCP client gets all of it; a UDP client with 512 octets is told to use TCP, by what is known then."""
    port = free_port(ONE)
    async with upstream(ONE, port, big) as one, running(tmp_path, ONE, port=port) as dns:
        [by_tcp] = await ask_tcp(dns.addresses[0], query("big.example", "TXT"))
        by_udp = await ask_udp(dns.addresses[0], query("big.example", "TXT"))
    assert len(DNSRecord.parse(by_tcp).rr) == 12
    assert DNSRecord.parse(by_udp).header.tc == 1
    assert [is_tcp for _, is_tcp in one.seen] == [False, True]


async def test_truncated_answers_without_tcp_upstream(tmp_path: Path) -> None:
    """The UDP client still learns that the answer was cut; the TCP client that it cannot be had."""
    port = free_port(ONE)
    async with upstream(ONE, port, big, tcp=False), running(tmp_path, ONE, port=port) as dns:
        assert DNSRecord.parse(await ask_udp(dns.addresses[0], query("big.example", "TXT"))).header.tc == 1
        [by_tcp] = await ask_tcp(dns.addresses[0], query("big.example", "TXT"))
    assert DNSRecord.parse(by_tcp).header.rcode == Rcode.SERVFAIL


async def test_many_forwarded_queries_at_once(tmp_path: Path) -> None:
    """Each gets its own answer."""
    port = free_port(ONE)

    def behave(asked: DNSRecord, is_tcp: bool) -> list[DNSRecord]:
        return [answer(asked, f"192.0.2.{str(asked.q.qname)[1:].split('.')[0]}")]

    async with upstream(ONE, port, behave), running(tmp_path, ONE, port=port) as dns:
        replies = await asyncio.gather(*(ask_udp(dns.addresses[0], query(f"n{i}.example")) for i in range(100)))
    assert [str(DNSRecord.parse(reply).a.rdata) for reply in replies] == [f"192.0.2.{i}" for i in range(100)]


async def test_five_thousand_look_ups_at_once_all_succeed(tmp_path: Path) -> None:
    """More than a resolver's usual bounds, from few sockets, as a program with a resolver of its own sends them."""
    port, loop, count = free_port(ONE), asyncio.get_running_loop(), 5000
    answered: set[bytes] = set()

    class Client(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:  # noqa: ARG002
            assert data[3] & 0xF == Rcode.NOERROR
            answered.add(data[13:18])

    async with fast_upstream(ONE, port), running(tmp_path, ONE, port=port, patience=60) as dns:
        transport, _ = await loop.create_datagram_endpoint(Client, remote_addr=dns.addresses[0])
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, 33, 4 << 20)
        try:
            # Who is not answered asks again after 5 s, as stub resolvers do.
            for _ in range(12):
                for index in range(count):
                    if (name := f"n{index:04}").encode() not in answered:
                        transport.sendto(query(f"{name}.example"))
                if await soon(lambda: len(answered) == count, 5):
                    break
            assert len(answered) == count
        finally:
            transport.close()


async def test_a_kept_answer_counts_down_and_a_new_route_is_seen_at_once(tmp_path: Path) -> None:
    """However often it was given: it is asked for once, and ends where a zone has the name."""
    port = free_port(ONE)
    async with upstream(ONE, port, lambda q, _: [answer(q)]) as one, running(tmp_path, ONE, port=port) as dns:
        dns.set_zone(ZONE)
        ttls: list[int] = []

        async def ask() -> str:
            reply = DNSRecord.parse(await ask_udp(dns.addresses[0], query("single")))
            ttls.append(reply.rr[0].ttl)
            return str(reply.a.rdata)

        assert [await ask() for _ in range(5)] == ["192.0.2.1"] * 5
        end = asyncio.get_running_loop().time() + 20
        while ttls[-1] == 60 and asyncio.get_running_loop().time() < end:
            await ask()
        assert (ttls[0], ttls[-1] < 60, len(one.seen)) == (60, True, 1)
        dns.set_zone(zone.build({"single": "127.10.1.7"}, {}, {}, serial=2))
        assert await ask() == "127.10.1.7"


async def test_a_loop_through_a_forwarder_ends(tmp_path: Path) -> None:
    """A server that asks us what we ask it: few questions, one SERVFAIL, long before anybody's patience is over."""
    port = free_port(ONE)
    async with forwarder(ONE, port) as loop_server, running(tmp_path, ONE, port=port, patience=60) as dns:
        loop_server.target = dns.addresses[0]
        reply = DNSRecord.parse(await ask_udp(dns.addresses[0], query("loop.example"), seconds=20))
        assert reply.header.rcode == Rcode.SERVFAIL
        assert loop_server.asked <= 4


async def test_garbage_does_not_stop_the_server(tmp_path: Path) -> None:
    """Octets, replies and broken queries; the next good query is answered."""
    async with running(tmp_path) as dns:
        dns.set_zone(ZONE)
        where = dns.addresses[0]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for garbage in (b"", b"\x00", os.urandom(600), b"\x01\x02\x81\x80" + bytes(8)):
                sock.sendto(garbage, where)
        reply = DNSRecord.parse(await ask_udp(where, b"\x01\x02\x01\x00\x00\x09" + bytes(6)))
        assert (reply.header.id, reply.header.rcode) == (0x0102, Rcode.FORMERR)
        assert DNSRecord.parse(await ask_udp(where, query("worker"))).rr


async def test_a_client_that_is_gone_does_not_stop_the_server(tmp_path: Path) -> None:
    """Replies to closed ports come back as errors on the listening socket; others are still served."""
    async with running(tmp_path) as dns:
        dns.set_zone(ZONE)
        for _ in range(20):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(query("worker"), dns.addresses[0])
        assert DNSRecord.parse(await ask_udp(dns.addresses[0], query("worker"))).rr


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
async def test_a_taken_port_is_named(tmp_path: Path, kind: socket.SocketKind) -> None:
    """BindError says address, port, transport and what to try; nothing stays bound."""
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind((OURS, 0))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        port = taken.getsockname()[1]
        dns = DnsServer(OURS, port, resolv_conf=tmp_path / "none")
        with pytest.raises(BindError) as caught:
            await dns.start()
        assert caught.value.errno == errno.EADDRINUSE
        transport = "UDP" if kind == socket.SOCK_DGRAM else "TCP"
        assert f"'{OURS}' port {port} ({transport}): address already in use; stop " in str(caught.value)
        assert dns.addresses == ()
    await dns.start()
    assert dns.addresses == ((OURS, port),)
    await dns.stop()


@pytest.mark.parametrize("address", ["192.0.2.77", "nonsense", "2001:db8::1"])
async def test_an_address_that_is_not_here_is_named(tmp_path: Path, address: str) -> None:
    """Whatever the kernel or the parser dislikes about it."""
    with pytest.raises(BindError, match=f"'{address}'"):
        await DnsServer(address, 0, resolv_conf=tmp_path / "none").start()


async def test_stop_is_safe_to_repeat_and_frees_the_port(tmp_path: Path) -> None:
    """Also without start, with a client still connected, and with a query under way; a new server takes the port."""
    await DnsServer(OURS, 0, resolv_conf=tmp_path / "none").stop()
    port = free_port(ONE)
    async with upstream(ONE, port, silent) as one, running(tmp_path, ONE, port=port) as dns:
        [(_, own)] = dns.addresses
        async with connection((OURS, own)) as (reader, writer):
            wire = query("a.example")
            writer.write(len(wire).to_bytes(2, "big") + wire)
            await eventually(lambda: bool(one.seen), "the query upstream")
            await dns.stop()
            await dns.stop()
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await asyncio.wait_for(reader.readexactly(1), 5)
        again = DnsServer(OURS, own, resolv_conf=tmp_path / "none")
        await again.start()
        await again.stop()


async def test_we_are_never_our_own_upstream(tmp_path: Path) -> None:
    """A resolv.conf that names our own address, as the mesh's does, is no loop: that server is left out."""
    conf = tmp_path / "resolv.conf"
    own = free_port(OURS)
    conf.write_text(f"nameserver {OURS}\nnameserver {ONE}\n")
    dns = DnsServer(OURS, own, resolv_conf=conf, upstream_port=own)
    await dns.start()
    assert dns.upstreams == (ONE,)
    await dns.stop()
    everywhere = DnsServer("0.0.0.0", own, resolv_conf=conf, upstream_port=own)
    assert everywhere._is_self("127.0.0.1", own)
    assert not everywhere._is_self("10.0.0.1", own)
    assert not everywhere._is_self("127.0.0.1", own + 1)


def test_hints_cover_what_an_operator_meets() -> None:
    """A taken port, a missing right and an address that is not there each have their remedy."""
    assert {errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL} <= set(server._HINTS)
