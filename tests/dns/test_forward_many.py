"""The machine behind forwarding: many clients, equal questions, answers that are kept, loops."""

from __future__ import annotations

import pytest
from dnslib import EDNS0, QTYPE, DNSRecord, EDNSOption

from dns import forward, message
from dns.forward import LOOP_AFTER, STALE_AFTER, STALE_RETRY, Close, Reply, Send
from dns.message import Query, Rcode, Transport
from tests.dns.forwarding import ONE, TWO, answer, live, machine, question, reply_in, sends


def test_questions_beyond_the_room_wait_for_a_place() -> None:
    """They are not refused: the next answer, failure or client that goes makes a place, and the oldest has it."""
    upstream = machine(ONE, room=2)
    sent = [upstream.forward(token, question(f"n{token}.example"), Transport.UDP, 0.0) for token in range(5)]
    assert [len(commands) for commands in sent] == [1, 1, 0, 0, 0]
    [_, closed, third] = upstream.received(1, answer(sent[0][0]), 0.5)
    assert (closed, sends([third])) == (Close(1), [(ONE, Transport.UDP)])
    [_, fourth] = upstream.forget(1)
    assert sends([fourth]) == [(ONE, Transport.UDP)]
    assert {it.token for _, it in live(upstream) if isinstance(it, Reply)} == {2, 3, 4}
    assert len(upstream) == 0


def test_a_burst_goes_out_at_a_pace() -> None:
    """BURST datagrams at once, RATE a second after them, first come first served: no buffer of a server overflows."""
    upstream = machine(ONE, room=9000)
    first = [it for token in range(5000) for it in upstream.forward(token, question(f"n{token}.example"),
             Transport.UDP, 0.0)]  # fmt: skip
    assert len(first) == forward.BURST
    later = [(when, it) for when, it in live(upstream, 0.9) if isinstance(it, Send)]
    assert len(later) == 5000 - forward.BURST
    assert all(
        sum(start <= when < start + 0.1 for when, _ in later) <= 0.1 * forward.RATE + forward.BURST
        for start in (0.0, 0.1, 0.2, 0.3)
    )
    assert later[-1][0] < 5000 / forward.RATE + 0.1


def test_five_thousand_questions_at_once_are_all_answered() -> None:
    """Whatever the room, each with one datagram."""
    upstream = machine(ONE, room=500)
    orders = [it for token in range(5000) for it in upstream.forward(token, question(f"n{token}.example"),
              Transport.UDP, 0.0)]  # fmt: skip
    replies = 0
    while orders:
        order = orders.pop()
        if isinstance(order, Send):
            orders += upstream.received(order.attempt, answer(order), 0.1)
        replies += isinstance(order, Reply)
        if not orders and (wake := upstream.wake_at()) is not None and wake < 1.0:
            orders += upstream.passed(wake)
    assert (replies, len(upstream)) == (5000, 0)


def test_clients_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than MAX_WAITING is refused with SERVFAIL; a place that is free again is used again."""
    monkeypatch.setattr(forward, "MAX_WAITING", 4)
    upstream = machine(ONE)
    for token in range(4):
        upstream.forward(token, question(f"n{token}.example"), Transport.UDP, 0.0)
    assert reply_in(upstream.forward(9, question(), Transport.UDP, 0.0)).header.rcode == Rcode.SERVFAIL
    upstream.forget(3)
    assert sends(upstream.forward(9, question(), Transport.UDP, 0.0))


def test_equal_questions_are_asked_once() -> None:
    """In any case of the name; each client has the answer under its own ID and as it wrote the name."""
    upstream = machine(ONE)
    [sent] = upstream.forward(1, question("Example.org"), Transport.UDP, 0.0)
    assert upstream.forward(2, question("eXample.ORG"), Transport.TCP, 0.01) == []
    replies = [it for it in upstream.received(1, answer(sent), 0.05) if isinstance(it, Reply)]
    assert {it.token: str(DNSRecord.parse(it.data).q.qname) for it in replies} == {
        1: "Example.org.",
        2: "eXample.ORG.",
    }


def test_questions_that_differ_are_asked_apart() -> None:
    """By type, by EDNS, by its size: their answers differ."""
    upstream = machine(ONE)
    asked = [question(), question("other.org"), question(payload=1232), question(payload=4096)]
    assert [len(sends(upstream.forward(i, it, Transport.UDP, 0.0))) for i, it in enumerate(asked)] == [1, 1, 1, 1]


def test_the_others_wait_on_when_the_first_client_goes() -> None:
    """The question is everybody's who asked it."""
    upstream = machine(ONE)
    [sent] = upstream.forward(1, question(), Transport.UDP, 0.0)
    upstream.forward(2, question(), Transport.UDP, 0.01)
    assert upstream.forget(1) == []
    assert len(reply_in(upstream.received(1, answer(sent), 0.05)).rr) == 1


def test_an_answer_is_kept_for_as_long_as_it_holds() -> None:
    """Its TTL counts down; at its end the server is asked again."""
    upstream = machine(ONE)
    [sent] = upstream.forward(1, question(), Transport.UDP, 0.0)
    upstream.received(1, answer(sent), 0.05)
    reply = reply_in(upstream.forward(2, question("EXAMPLE.org"), Transport.UDP, 20.06))
    assert (reply.rr[0].ttl, str(reply.q.qname), reply.header.aa) == (40, "EXAMPLE.org.", 0)
    assert sends(upstream.forward(3, question(), Transport.UDP, 60.06))


def test_other_servers_know_other_answers() -> None:
    """Nothing that was had from the servers of one network is told in another."""
    upstream = machine(ONE)
    [sent] = upstream.forward(1, question(), Transport.UDP, 0.0)
    upstream.received(1, answer(sent), 0.05)
    upstream.servers = (ONE,)
    assert not sends(upstream.forward(2, question(), Transport.UDP, 1.0))
    upstream.servers = (TWO,)
    assert sends(upstream.forward(3, question(), Transport.UDP, 1.0))


def test_an_answer_past_its_end_stands_in_while_servers_are_silent() -> None:
    """After STALE_AFTER, with a short TTL; then at once for STALE_RETRY; a late answer still counts for the next."""
    upstream = machine(ONE)
    [sent] = upstream.forward(1, question(), Transport.UDP, 0.0)
    upstream.received(1, answer(sent), 0.0)
    [sent] = upstream.forward(2, question(), Transport.UDP, 100.0)
    [(when, stale)] = [(when, it) for when, it in live(upstream, 103.0) if isinstance(it, Reply)]
    assert (when, DNSRecord.parse(stale.data).rr[0].ttl) == (100.0 + STALE_AFTER, 30)
    assert reply_in(upstream.forward(3, question(), Transport.UDP, 100.0 + STALE_RETRY)).rr
    assert isinstance(sent, Send)
    upstream.received(sent.attempt, answer(sent, addresses=2), 106.0)
    assert len(reply_in(upstream.forward(4, question(), Transport.UDP, 107.0)).rr) == 2


@pytest.mark.parametrize("how", ["refused", "servfail", "none"])
def test_an_answer_past_its_end_stands_in_when_all_servers_fail(how: str) -> None:
    """At once, whether they are not there, cannot answer, or none is named."""
    upstream = machine(ONE)
    [sent] = upstream.forward(1, question(), Transport.UDP, 0.0)
    upstream.received(1, answer(sent), 0.0)
    if how == "none":
        upstream._servers = ()
        commands = upstream.forward(2, question(), Transport.UDP, 100.0)
    else:
        [sent] = upstream.forward(2, question(), Transport.UDP, 100.0)
        assert isinstance(sent, Send)
        bad = answer(sent, Rcode.SERVFAIL)
        commands = upstream.failed(2, 100.1) if how == "refused" else upstream.received(2, bad, 100.1)
    assert len(reply_in(commands).rr) == 1


def test_a_malformed_answer_is_no_answer() -> None:
    """Neither passed on nor kept: the next server is asked, and SERVFAIL when there is none."""
    upstream = machine(ONE, TWO)
    [first] = upstream.forward(1, question(), Transport.UDP, 0.0)
    good = answer(first)
    broken = good[:-6] + b"\x00\x03" + good[-4:-1]
    commands = upstream.received(1, broken, 0.01)
    assert sends(commands) == [(TWO, Transport.UDP)]
    broken = answer(commands[-1])[:-1]
    assert reply_in(upstream.received(2, broken, 0.02)).header.rcode == Rcode.SERVFAIL
    assert sends(upstream.forward(2, question(), Transport.UDP, 0.03))


def test_options_of_a_client_stay_here() -> None:
    """RFC 6891 6.1.1: servers get the size and DO, not the cookie, and one who sends cookies shares the answer."""
    record = DNSRecord.question("example.org")
    record.add_ar(EDNS0(udp_len=1232, flags="do", opts=[EDNSOption(10, b"12345678")]))
    query = message.parse(bytes(record.pack()))
    assert isinstance(query, Query)
    upstream = machine(ONE)
    [sent] = upstream.forward(1, query, Transport.UDP, 0.0)
    assert isinstance(sent, Send)
    [opt] = DNSRecord.parse(sent.data).ar
    assert (opt.rclass, opt.edns_do, opt.rdata) == (1232, 1, [])
    [opt] = reply_in(upstream.received(1, answer(sent), 0.1)).ar
    assert (opt.rtype, opt.edns_do) == (QTYPE.OPT, 1)


def test_a_loop_ends_at_once() -> None:
    """The question that comes back waits with the client's; the probe that comes back shows who sent it."""
    upstream = machine(ONE, TWO)
    [sent] = upstream.forward(1, question(), Transport.UDP, 0.0)
    assert isinstance(sent, Send)
    looped = message.parse(sent.data)
    assert isinstance(looped, Query)
    assert upstream.forward(2, looped, Transport.UDP, 0.01) == []
    [probe] = upstream.passed(LOOP_AFTER)
    assert isinstance(probe, Send)
    seen = message.parse(probe.data)
    assert isinstance(seen, Query)
    assert (probe.server, seen.name[1:]) == (ONE, (b"example", b"org"))
    commands = upstream.forward(3, seen, Transport.UDP, LOOP_AFTER + 0.01)
    assert [it.token for it in commands if isinstance(it, Reply)] == [3]
    [second] = [it for it in commands if isinstance(it, Send)]
    assert second.server == TWO
    replies = upstream.received(second.attempt, answer(second), 0.2)
    assert {it.token for it in replies if isinstance(it, Reply)} == {1, 2}


def test_a_loop_through_the_only_server_is_servfail() -> None:
    """For the client and for whoever looped: the error runs back through it, and nothing is left."""
    upstream = machine(ONE)
    [sent] = upstream.forward(1, question(), Transport.UDP, 0.0)
    assert isinstance(sent, Send)
    looped = message.parse(sent.data)
    assert isinstance(looped, Query)
    upstream.forward(2, looped, Transport.UDP, 0.01)
    [probe] = upstream.passed(LOOP_AFTER)
    assert isinstance(probe, Send)
    seen = message.parse(probe.data)
    assert isinstance(seen, Query)
    replies = [it for it in upstream.forward(3, seen, Transport.UDP, 0.2) if isinstance(it, Reply)]
    assert {it.token: DNSRecord.parse(it.data).header.rcode for it in replies} == dict.fromkeys((1, 2, 3), 2)
    assert (len(upstream), upstream.wake_at()) == (0, None)


def test_two_who_ask_alike_are_no_loop() -> None:
    """The server that denies the probe goes on, and none is sent where the answer comes soon."""
    upstream = machine(ONE)
    [sent] = upstream.forward(1, question(), Transport.UDP, 0.0)
    upstream.forward(2, question(), Transport.UDP, 0.01)
    [probe] = upstream.passed(LOOP_AFTER)
    assert isinstance(probe, Send)
    assert upstream.received(probe.attempt, answer(probe, Rcode.NXDOMAIN), 0.12) == [Close(probe.attempt)]
    assert upstream.forward(3, question(), Transport.UDP, 0.2) == []
    replies = upstream.received(1, answer(sent), 1.0)
    assert {it.token for it in replies if isinstance(it, Reply)} == {1, 2, 3}


def test_what_was_answered_leaves_nothing_behind() -> None:
    """A thousand questions later there is no alarm, attempt or probe more than before."""
    upstream = machine(ONE)
    for token in range(1000):
        [sent] = upstream.forward(token, question(f"n{token}.example"), Transport.UDP, token / 1000)
        assert isinstance(sent, Send)
        upstream.received(sent.attempt, answer(sent), token / 1000)
    assert len(upstream._alarms) <= forward._SLACK + 4
    assert (upstream._due, upstream._attempts, upstream._probes, upstream._questions) == ({}, {}, {}, {})
