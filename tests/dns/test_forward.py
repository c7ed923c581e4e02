"""The machine behind forwarding: who is asked when, and which answer counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dns import message
from dns.forward import AGAIN, DEMOTION, GAP, PATIENCE, Again, Close, Command, Forwarder, Reply, Send
from dns.message import Query, Rcode, Transport
from tests.dns.forwarding import ONE, THREE, TWO, answer, live, machine, question, reply_in, sends


def test_an_answer_comes_back_under_the_clients_id() -> None:
    """The server sees a fresh ID and otherwise the client's octets; the client sees its own ID."""
    upstream = machine(ONE, TWO)
    query = question()
    [sent] = upstream.forward(5, query, Transport.UDP, 0.0)
    assert sent == Send(1, ONE, Transport.UDP, (1000).to_bytes(2, "big") + query.wire[2:])
    commands = upstream.received(1, answer(sent), 0.1)
    reply = reply_in(commands)
    assert (reply.header.id, str(reply.q.qname), str(reply.rr[0].rdata)) == (7, "Example.org.", "192.0.2.0")
    assert commands[1:] == [Close(1)]
    assert len(upstream) == 0
    assert upstream.wake_at() is None


def test_the_next_server_is_asked_when_one_is_silent() -> None:
    """After GAP, the first staying in the race; all once more after about 1, 3 and 7 s, by the same sockets; SERVFAIL
    when the client's own patience is over."""
    upstream = machine(ONE, TWO)
    upstream.forward(5, question(), Transport.UDP, 0.0)
    orders = live(upstream)
    assert [(when, it.server) for when, it in orders if isinstance(it, Send)] == [(GAP, TWO)]
    again = [(when, it.attempt) for when, it in orders if isinstance(it, Again)]
    assert [number for _, number in again] in ([1, 2] * 2, [1, 2] * 3)
    for (when, _), after in zip(again[::2], (AGAIN, 3 * AGAIN, 7 * AGAIN), strict=False):
        assert GAP + after <= when <= GAP + 1.5 * after
    reply = reply_in([it for _, it in orders])
    assert (orders[-1][0], reply.header.rcode, reply.header.id) == (PATIENCE, Rcode.SERVFAIL, 7)
    assert {it.attempt for _, it in orders if isinstance(it, Close)} == {1, 2}


@pytest.mark.parametrize("seconds", [1.5, 4.9, 9.9])
def test_a_slow_server_is_waited_for(seconds: float) -> None:
    """As long as the client itself would: a cold name may take a resolver seconds."""
    upstream = machine(ONE)
    [sent] = upstream.forward(5, question(), Transport.UDP, 0.0)
    assert [it for _, it in live(upstream, seconds) if not isinstance(it, Again)] == []
    assert len(reply_in(upstream.received(1, answer(sent), seconds)).rr) == 1


@pytest.mark.parametrize("count", [1, 2, 3, 5, 12])
def test_every_server_is_asked_within_a_second(count: int) -> None:
    """Even many silent servers each get their turn, sooner than a stub resolver turns to its second one."""
    servers = tuple(f"10.0.0.{index}" for index in range(count))
    upstream = machine(*servers, room=20)
    asked = sends(upstream.forward(1, question(), Transport.UDP, 0.0))
    asked += sends([it for _, it in live(upstream, 1.0)])
    assert [server for server, _ in asked] == list(servers)


def test_a_late_answer_of_the_first_server_counts() -> None:
    """Attempts overlap."""
    upstream = machine(ONE, TWO)
    [first] = upstream.forward(5, question(), Transport.UDP, 0.0)
    upstream.passed(GAP)
    commands = upstream.received(1, answer(first), GAP + 0.01)
    assert len(reply_in(commands).rr) == 1
    assert {command for command in commands if isinstance(command, Close)} == {Close(1), Close(2)}


def test_a_refused_attempt_moves_on_at_once() -> None:
    """No waiting for a server that is not there; when none is, SERVFAIL at once."""
    upstream = machine(ONE, TWO)
    upstream.forward(5, question(), Transport.UDP, 0.0)
    assert sends(upstream.failed(1, 0.01)) == [(TWO, Transport.UDP)]
    assert reply_in(upstream.failed(2, 0.02)).header.rcode == Rcode.SERVFAIL


@pytest.mark.parametrize("rcode", [Rcode.SERVFAIL, Rcode.REFUSED, Rcode.NOTIMP, Rcode.FORMERR])
def test_an_unhelpful_answer_is_kept_for_when_nobody_knows_better(rcode: Rcode) -> None:
    """The next server is asked at once; if all are unhelpful the client gets what they said."""
    upstream = machine(ONE, TWO)
    [first] = upstream.forward(5, question(), Transport.UDP, 0.0)
    [closed, second] = upstream.received(1, answer(first, rcode), 0.01)
    assert (closed, sends([second])) == (Close(1), [(TWO, Transport.UDP)])
    assert reply_in(upstream.received(2, answer(second, rcode), 0.02)).header.rcode == rcode


@pytest.mark.parametrize("rcode", [Rcode.NOERROR, Rcode.NXDOMAIN])
def test_a_denial_is_an_answer(rcode: Rcode) -> None:
    """NXDOMAIN and an empty answer come from a server that knows: no other is asked."""
    upstream = machine(ONE, TWO)
    [first] = upstream.forward(5, question(), Transport.UDP, 0.0)
    commands = upstream.received(1, answer(first, rcode, addresses=0), 0.01)
    assert (reply_in(commands).header.rcode, sends(commands)) == (rcode, [])


def test_a_truncated_answer_is_fetched_over_tcp() -> None:
    """From the same server; if it fits the client's size now, it is the answer."""
    upstream = machine(ONE, TWO)
    [first] = upstream.forward(5, question(payload=4096), Transport.UDP, 0.0)
    commands = upstream.received(1, answer(first, cut=True, addresses=0), 0.01)
    assert (commands[0], sends(commands)) == (Close(1), [(ONE, Transport.TCP)])
    reply = reply_in(upstream.received(2, answer(commands[1], addresses=60), 0.02))
    assert (len(reply.rr), reply.header.tc) == (60, 0)


def test_a_udp_client_whose_size_is_too_small_gets_the_truncated_answer() -> None:
    """What UDP could carry, with TC: the client comes back over TCP, or uses what it got."""
    upstream = machine(ONE)
    [first] = upstream.forward(5, question(), Transport.UDP, 0.0)
    [_, again] = upstream.received(1, answer(first, cut=True, addresses=3), 0.01)
    reply = reply_in(upstream.received(2, answer(again, addresses=60), 0.02))
    assert (len(reply.rr), reply.header.tc, reply.header.id) == (3, 1, 7)


def test_a_tcp_client_gets_the_full_answer() -> None:
    """TCP clients are not limited; upstream is asked over UDP first and over TCP when that is cut."""
    upstream = machine(ONE)
    [first] = upstream.forward(5, question(), Transport.TCP, 0.0)
    [_, again] = upstream.received(1, answer(first, cut=True, addresses=3), 0.01)
    assert len(reply_in(upstream.received(2, answer(again, addresses=60), 0.02)).rr) == 60


@pytest.mark.parametrize(("transport", "rcode", "cut"), [(Transport.UDP, 0, 1), (Transport.TCP, Rcode.SERVFAIL, 0)])
def test_when_tcp_fails_after_truncation(transport: Transport, rcode: int, cut: int) -> None:
    """A UDP client gets the cut answer; for a TCP client, which could never get more, it is a failure."""
    upstream = machine(ONE)
    [first] = upstream.forward(5, question(), transport, 0.0)
    upstream.received(1, answer(first, cut=True, addresses=3), 0.01)
    reply = reply_in(upstream.failed(2, 0.02))
    assert (reply.header.rcode, reply.header.tc) == (rcode, cut)


def test_a_truncated_answer_over_tcp_is_final() -> None:
    """There is nothing bigger to turn to; asking again would not end."""
    upstream = machine(ONE)
    [first] = upstream.forward(5, question(), Transport.TCP, 0.0)
    [_, again] = upstream.received(1, answer(first, cut=True), 0.01)
    reply = reply_in(upstream.received(2, answer(again, cut=True, addresses=2), 0.02))
    assert (len(reply.rr), reply.header.tc) == (2, 1)


def test_a_server_that_failed_is_not_asked_again_for_the_same_query() -> None:
    """Retries go to those that may still answer."""
    upstream = machine(ONE, TWO)
    upstream.forward(5, question(), Transport.UDP, 0.0)
    [_, second] = upstream.failed(1, 0.01)
    assert isinstance(second, Send)
    orders = [it for _, it in live(upstream)]
    assert sends(orders) == []
    assert {it.attempt for it in orders if isinstance(it, Again)} == {second.attempt}


def test_an_oversized_udp_answer_is_cut_for_the_client() -> None:
    """A server that ignores the client's size does not make us ignore it."""
    upstream = machine(ONE)
    [first] = upstream.forward(5, question(), Transport.UDP, 0.0)
    commands = upstream.received(1, answer(first, addresses=60), 0.01)
    reply = reply_in(commands)
    assert (reply.rr, reply.header.tc, reply.header.id) == ([], 1, 7)


def test_answers_that_do_not_match_are_ignored() -> None:
    """Another ID, another question, a query, another opcode, no question with a good code, octets: the attempt goes
    on."""
    upstream = machine(ONE)
    [sent] = upstream.forward(5, question(), Transport.UDP, 0.0)
    assert isinstance(sent, Send)
    good = answer(sent)
    other_id = b"\x00\x01" + good[2:]
    other_name = good.replace(b"xample", b"xemple")
    other_type = good.replace(b"org\x00\x00\x01", b"org\x00\x00\x02")
    other_opcode = good[:2] + bytes([good[2] | 0x20]) + good[3:]
    no_question = good[:4] + bytes(8)
    for bad in (other_id, other_name, other_type, other_opcode, no_question, sent.data, b"", good[:11], good[:20]):
        assert upstream.received(1, bad, 0.01) == []
    lower_case = good.replace(b"Example", b"example")
    reply = reply_in(upstream.received(1, lower_case, 0.02))
    assert (len(reply.rr), str(reply.q.qname)) == (1, "Example.org.")
    assert upstream.received(1, good, 0.03) == []


def test_an_error_without_question_is_an_answer_of_a_kind() -> None:
    """A server that could not read the query sends a bare header; it counts as unhelpful, not as silence."""
    upstream = machine(ONE)
    upstream.forward(5, question(), Transport.UDP, 0.0)
    bare = (1000).to_bytes(2, "big") + b"\x81\x81" + bytes(8)
    assert reply_in(upstream.received(1, bare, 0.01)).header.rcode == Rcode.FORMERR


def test_without_servers_the_answer_is_servfail() -> None:
    """At once: waiting would not find any."""
    assert reply_in(machine().forward(5, question(), Transport.UDP, 0.0)).header.rcode == Rcode.SERVFAIL


def test_a_forgotten_query_gets_no_reply() -> None:
    """Its sockets close, its late answer finds nobody, forgetting twice is nothing."""
    upstream = machine(ONE)
    [sent] = upstream.forward(5, question(), Transport.UDP, 0.0)
    assert upstream.forget(5) == [Close(1)]
    assert upstream.received(1, answer(sent), 0.1) == []
    assert upstream.failed(1, 0.1) == []
    assert upstream.forget(5) == []


def test_a_server_that_stands_in_for_a_silent_one_is_preferred_for_a_while() -> None:
    """Only the first query of DEMOTION seconds pays for a dead first server."""
    upstream = machine(ONE, TWO)
    upstream.forward(1, question(), Transport.UDP, 0.0)
    [second] = upstream.passed(GAP)
    upstream.received(2, answer(second), GAP)
    assert sends(upstream.forward(2, question("b.org"), Transport.UDP, 1.0)) == [(TWO, Transport.UDP)]
    assert sends(upstream.forward(3, question("c.org"), Transport.UDP, GAP + DEMOTION)) == [(ONE, Transport.UDP)]


def test_a_server_that_refuses_is_still_asked_first() -> None:
    """It costs no time, and may be the one that knows the next name."""
    upstream = machine(ONE, TWO)
    [first] = upstream.forward(1, question(), Transport.UDP, 0.0)
    [_, second] = upstream.received(1, answer(first, Rcode.REFUSED), 0.01)
    upstream.received(2, answer(second), 0.02)
    assert sends(upstream.forward(2, question("b.org"), Transport.UDP, 1.0)) == [(ONE, Transport.UDP)]


def test_a_preferred_server_that_is_no_longer_listed_is_not_asked() -> None:
    """The list of servers is replaced from outside at any time."""
    upstream = machine(ONE, TWO)
    upstream.forward(1, question(), Transport.UDP, 0.0)
    [second] = upstream.passed(GAP)
    upstream.received(2, answer(second), GAP)
    upstream.servers = (THREE,)
    assert sends(upstream.forward(2, question("b.org"), Transport.UDP, 1.0)) == [(THREE, Transport.UDP)]


class Edge:
    """Obeys the machine and keeps count of what it was told to do."""

    def __init__(self, upstream: Forwarder) -> None:
        self.upstream = upstream
        self.now = 0.0
        self.started: dict[int, float] = {}
        self.forgotten: set[int] = set()
        self.replied: set[int] = set()
        self.sockets: dict[int, Send] = {}

    def obey(self, commands: list[Command]) -> None:
        """Carries out the commands; each socket is closed once and each query replied to once, in time."""
        for command in commands:
            match command:
                case Send():
                    self.sockets[command.attempt] = command
                case Again():
                    assert self.sockets[command.attempt].transport is Transport.UDP
                case Close():
                    del self.sockets[command.attempt]
                case Reply():
                    assert command.token not in self.replied | self.forgotten
                    assert self.now - self.started[command.token] <= 2 * PATIENCE + 1e-9
                    assert command.data[2] & 0x80
                    self.replied.add(command.token)

    def ask(self, number: int) -> None:
        """A new query; every third comes by TCP."""
        token = len(self.started)
        self.started[token] = self.now
        transport = Transport.TCP if number % 3 == 0 else Transport.UDP
        query = question(f"n{number % 5}.org", payload=1232 if number % 2 else None)
        self.obey(self.upstream.forward(token, query, transport, self.now))

    def forget(self, number: int) -> None:
        """One of the clients goes away."""
        if self.started:
            token = number % len(self.started)
            self.forgotten.add(token)
            self.obey(self.upstream.forget(token))

    def hear(self, kind: str, number: int) -> None:
        """Something happens on one of the open sockets."""
        if not self.sockets:
            return
        attempt = sorted(self.sockets)[number % len(self.sockets)]
        if kind == "failed":
            self.obey(self.upstream.failed(attempt, self.now))
        else:
            data = answer(self.sockets[attempt], 2 if kind == "servfail" else 0, cut=kind == "cut", ttl=number % 3)
            self.obey(self.upstream.received(attempt, data[1:] if kind == "noise" else data, self.now))

    def loop(self, number: int) -> None:
        """One of the servers asks us what it was asked."""
        if self.sockets:
            token = len(self.started)
            self.started[token] = self.now
            query = message.parse(self.sockets[sorted(self.sockets)[number % len(self.sockets)]].data)
            assert isinstance(query, Query)
            self.obey(self.upstream.forward(token, query, Transport.UDP, self.now))

    def wait(self, seconds: float) -> None:
        """Time goes by, and the machine is woken no later than it asked to be."""
        self.now = min(self.now + seconds, self.upstream.wake_at() or float("inf"))
        self.obey(self.upstream.passed(self.now))


EVENTS = st.sampled_from(["ask", "ask", "good", "cut", "servfail", "noise", "failed", "wait", "loop", "forget"])


@given(st.lists(st.tuples(EVENTS, st.integers(0, 30))), st.integers(0, 4))
def test_every_query_ends_in_one_reply_and_no_socket_is_left(events: list[tuple[str, int]], servers: int) -> None:
    """Whatever happens in whatever order: one reply each, in time, and each socket opened is closed once."""
    edge = Edge(machine(*(f"10.0.0.{index}" for index in range(servers)), room=4))
    for kind, number in events:
        match kind:
            case "ask":
                edge.ask(number)
            case "forget":
                edge.forget(number)
            case "wait":
                edge.wait(number / 10)
            case "loop":
                edge.loop(number)
            case _:
                edge.hear(kind, number)
    while edge.upstream.wake_at() is not None:
        edge.wait(PATIENCE)
    assert edge.replied | edge.forgotten == set(edge.started)
    assert edge.sockets == {}
    assert len(edge.upstream) == 0
