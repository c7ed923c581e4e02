"""The upstream edge: resolv.conf as it changes, and clients that go away."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from dnslib import DNSRecord

from dns import message, upstream
from dns.message import Query, Rcode, Transport
from dns.upstream import Upstream
from tests.dns.servers import UpstreamServer, answer, big, free_port, silent
from tests.dns.servers import upstream as running
from tests.support import eventually

ONE, TWO = "127.11.8.1", "127.11.8.2"


@pytest.fixture
def look_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """resolv.conf is looked at for every query, so that no test waits a second."""
    monkeypatch.setattr(upstream, "CHECK_EVERY", 0.0)


def question(name: str = "example.org") -> Query:
    """A client's query."""
    query = message.parse(bytes(DNSRecord.question(name).pack()))
    assert isinstance(query, Query)
    return query


def never_self(server: str, port: int) -> bool:
    """No server is us."""
    return False


@pytest.mark.usefixtures("look_always")
async def test_resolv_conf_is_followed_as_it_changes(tmp_path: Path) -> None:
    """Rewritten in place, replaced by rename, emptied, gone and back: the last servers named are asked."""
    conf = tmp_path / "resolv.conf"
    edge = Upstream(conf, 53, never_self)
    assert edge.servers == ()
    conf.write_text(f"nameserver {ONE}\n")
    assert edge.servers == (ONE,)
    conf.write_text(f"nameserver {TWO}\nnameserver {ONE}\n")
    assert edge.servers == (TWO, ONE)
    other = tmp_path / "new"
    other.write_text(f"nameserver {ONE}\n")
    other.replace(conf)
    assert edge.servers == (ONE,)
    conf.write_text("")
    assert edge.servers == (ONE,)
    conf.unlink()
    assert edge.servers == (ONE,)
    conf.write_text(f"nameserver {TWO}\n")
    assert edge.servers == (TWO,)
    edge.close()


@pytest.mark.usefixtures("look_always")
async def test_a_change_of_the_same_size_in_place_is_seen(tmp_path: Path) -> None:
    """Not only the size counts, and not only a modification time that someone set back."""
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 10.0.0.1\n")
    os.utime(conf, ns=(1, 1))
    edge = Upstream(conf, 53, never_self)
    assert edge.servers == ("10.0.0.1",)
    # The kernel's file times advance in ticks of some milliseconds.
    await asyncio.sleep(0.02)
    conf.write_text("nameserver 10.0.0.2\n")
    os.utime(conf, ns=(1, 1))
    assert edge.servers == ("10.0.0.2",)
    edge.close()


async def test_resolv_conf_is_not_read_for_every_query(tmp_path: Path) -> None:
    """Within CHECK_EVERY of a look the servers stay."""
    conf = tmp_path / "resolv.conf"
    conf.write_text(f"nameserver {ONE}\n")
    edge = Upstream(conf, 53, never_self)
    assert edge.servers == (ONE,)
    conf.write_text(f"nameserver {TWO}\n")
    assert edge.servers == (ONE,)
    edge.close()


@pytest.mark.usefixtures("look_always")
async def test_ourselves_are_left_out(tmp_path: Path) -> None:
    """A server that `is_self` knows is never asked; if it was the only one, the answer is SERVFAIL."""
    conf = tmp_path / "resolv.conf"
    conf.write_text(f"nameserver {ONE}\nnameserver {TWO}\n")
    edge = Upstream(conf, 53, lambda server, port: (server, port) == (ONE, 53))
    assert edge.servers == (TWO,)
    conf.write_text(f"nameserver {ONE}\n")
    assert edge.servers == ()
    replies: list[bytes] = []
    edge.forward(question(), Transport.UDP, replies.append)
    assert [DNSRecord.parse(reply).header.rcode for reply in replies] == [Rcode.SERVFAIL]
    edge.close()


def open_files() -> int:
    """File descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_no_socket_is_left_behind(tmp_path: Path) -> None:
    """After answers, TCP retries, failures and forgotten clients the process holds as many files as before."""
    port = free_port(ONE, TWO)
    conf = tmp_path / "resolv.conf"
    conf.write_text(f"nameserver {ONE}\nnameserver {TWO}\n")
    replies: list[bytes] = []
    async with running(ONE, port, big), running(TWO, port, silent):
        edge = Upstream(conf, port, never_self)
        before = open_files()
        for index in range(10):
            edge.forward(question(f"n{index}.example"), Transport.TCP, replies.append)
        for index in range(5):
            edge.forget(edge.forward(question(f"f{index}.example"), Transport.UDP, replies.append))
        await eventually(lambda: len(replies) == 10, "ten answers over TCP")
        assert len(edge) == 0
        # The servers' ends of those connections are open until they have seen ours close.
        await eventually(lambda: open_files() <= before, "all sockets closed")
        edge.close()


async def test_an_answered_socket_is_used_again_and_not_for_long(tmp_path: Path) -> None:
    """MAX_USES questions one after the other come from one port, others from other ports; a late answer is nobody's;
    unused for a second, it is closed."""
    port = free_port(ONE)
    conf = tmp_path / "resolv.conf"
    conf.write_text(f"nameserver {ONE}\n")
    async with running(ONE, port, lambda q, _: [answer(q), answer(q)]) as server:
        edge = Upstream(conf, port, never_self)
        before = open_files()
        for index in range(upstream.MAX_USES + 1):
            replies: list[bytes] = []
            edge.forward(question(f"n{index}.example"), Transport.UDP, replies.append)
            await eventually(lambda: len(replies) == 1, "the answer")  # noqa: B023  # awaited at once
            assert str(DNSRecord.parse(replies[0]).q.qname) == f"n{index}.example."
        ports = server.ports
        assert len(set(ports[:-1])) == 1
        assert ports[-1] != ports[0]
        await eventually(lambda: open_files() <= before, "idle sockets closed")
        edge.close()


async def test_a_server_that_cannot_be_reached_is_passed_over(tmp_path: Path) -> None:
    """A broadcast address, an interface that is not there: the socket refuses at once, and the next server answers."""
    port = free_port(ONE)
    conf = tmp_path / "resolv.conf"
    conf.write_text(f"nameserver 255.255.255.255\nnameserver fe80::1%none\nnameserver {ONE}\n")
    replies: list[bytes] = []
    async with running(ONE, port, lambda q, _: [answer(q)]) as server:
        edge = Upstream(conf, port, never_self)
        edge.forward(question(), Transport.UDP, replies.append)
        await eventually(lambda: len(replies) == 1, "the answer")
        assert (len(server.seen), DNSRecord.parse(replies[0]).header.rcode) == (1, Rcode.NOERROR)
        edge.close()


async def test_a_forgotten_client_hears_nothing(tmp_path: Path) -> None:
    """The answer that comes later is nobody's."""
    port = free_port(ONE)
    conf = tmp_path / "resolv.conf"
    conf.write_text(f"nameserver {ONE}\n")
    replies: list[bytes] = []
    async with running(ONE, port, lambda q, _: [answer(q)]) as server:
        edge = Upstream(conf, port, never_self)
        edge.forget(edge.forward(question("first.example"), Transport.UDP, replies.append))
        edge.forward(question("second.example"), Transport.UDP, replies.append)
        await eventually(lambda: len(replies) == 1, "the second answer")
        assert [str(DNSRecord.parse(reply).q.qname) for reply in replies] == ["second.example."]
        assert isinstance(server, UpstreamServer)
        edge.close()


async def test_tcp_answers_that_break_off_or_are_wrong_are_failures(tmp_path: Path) -> None:
    """A stream that ends early, or carries an answer to something else, moves on to SERVFAIL for a TCP client."""
    port = free_port(ONE)
    conf = tmp_path / "resolv.conf"
    conf.write_text(f"nameserver {ONE}\n")
    replies: list[bytes] = []

    def behave(query: DNSRecord, is_tcp: bool) -> list[DNSRecord]:
        reply = query.reply(aa=0)
        if is_tcp:
            reply.header.id = query.header.id ^ 1
        else:
            reply.header.tc = 1
        return [reply]

    async with running(ONE, port, behave):
        edge = Upstream(conf, port, never_self)
        edge.forward(question(), Transport.TCP, replies.append)
        await eventually(lambda: bool(replies), "an answer")
        assert DNSRecord.parse(replies[0]).header.rcode == Rcode.SERVFAIL
        edge.close()
