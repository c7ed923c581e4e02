"""Boundaries on the wire: DNS, the rendezvous, probes and relays, WireGuard's device, gossip, xDS."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from dnslib import DNSRecord

from dns import message, resolvconf
from dns.forward import Forwarder, Reply, Send
from dns.message import Query, Transport
from dns.resolver import Answer, Forward, Refuse, Resolver
from dns.zone import SrvTarget, Zone, build
from peer import control, probe, uapi
from peer.probe import Kind, ProbeKey
from peer.relay import _Side
from peer.spec import LinkError, parse_endpoint
from peer.wireguard import public_key
from runtime import gossip
from runtime.gossip import GossipError
from runtime.secret import Secret
from tests.fuzz.harness import Harness, part, text
from tests.xds import entries
from xds import snapshot, wire
from xds.snapshot import Snapshot
from xds.stream import Response, Stream
from xds.wire import RequestError

MAX_RESPONSES = 64
"""What one stream may have to say in a row. Six types, each with additions and removals, and one change."""
MAX_REQUESTS = 64
"""Of one stream. Envoy sends two dozen at its start; what is wrong with more shows with these."""
GOSSIP_KEY = Secret("QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=")
PRIVATE = Secret("QEFCQ0RFRkdISUpLTE1OT1BRUlNUVVZXWFlaW1xdXl8=")
"""Our WireGuard key, and that of the other side of every probe."""
THEIRS = Secret("YGFiY2RlZmdoaWprbG1ub3BxcnN0dXZ3eHl6e3x9fn8=")


@functools.cache
def zone() -> Zone:
    """What the mesh answers for."""
    services = {"api": (SrvTarget(peer_id="api-0", port=8080),)}
    return build({"api": "127.10.0.1"}, {"api-0": "100.96.0.10"}, services, serial=7)


def _dns_query(data: bytes) -> None:
    """Never an error; what is sent fits, can be read, and answers this query."""
    for place in (zone(), None):
        resolver = Resolver(place)
        for transport in Transport:
            first = resolver.resolve(data, transport)
            # The second answer comes out of the memory of the first.
            assert type(resolver.resolve(data, transport)) is type(first)
            if isinstance(first, Answer | Refuse):
                limit = message.MAX_TCP if transport is Transport.TCP else message.MAX_UDP
                assert len(first.wire) <= limit
                assert first.wire[:2] == data[:2]
                DNSRecord.parse(first.wire)
            elif isinstance(first, Forward):
                _dns_forward(first.query, b"")


@functools.cache
def question() -> Query:
    """What a client asked."""
    found = message.parse(bytes(DNSRecord.question("Example.org").pack()))
    assert isinstance(found, Query)
    return found


def _dns_forward(query: Query, data: bytes) -> None:
    """A forwarded query ends in one reply, whatever the servers answer."""
    forwarder = Forwarder(("10.0.0.1", "10.0.0.2"), ident=lambda: 1000)
    commands = forwarder.forward(1, query, Transport.UDP, 0.0)
    done = list(commands)
    while sent := [each for each in commands if isinstance(each, Send)]:
        commands = forwarder.received(sent[-1].attempt, data, 0.1)
        commands += forwarder.failed(sent[-1].attempt, 0.2)
        done += commands
        assert len(done) < MAX_RESPONSES
    done += forwarder.passed(100.0)
    replies = [each for each in done if isinstance(each, Reply)]
    assert len(replies) == 1
    assert len(replies[0].data) <= query.limit(Transport.UDP)
    assert replies[0].data[:2] == query.wire[:2]


def _dns_reply(data: bytes) -> None:
    """What a server says about our question: with our ID and question before it, or as it is."""
    which, rest = part(data, ("ours", "as it is"))
    query = question()
    head = (1000).to_bytes(2, "big") + rest[:10] + query.wire[message.HEADER : query.question_end]
    _dns_forward(query, head + rest[10:] if which == "ours" else rest)


def _resolv_conf(data: bytes) -> None:
    resolvconf.parse(text(data))


def _rendezvous(data: bytes) -> None:
    which, rest = part(data, ("table", "relay answer", "relay request"))
    if which == "table":
        found = control.decode_table(rest)
        assert control.decode_table(control.encode_table(found)) == found
        for endpoint in found.mappings.values():
            # It becomes a line of what the device is told.
            assert endpoint == "{}:{}".format(*parse_endpoint(endpoint))
    elif which == "relay answer":
        control.decode_relay_answer(rest)
    else:
        control.decode_relay_request(rest)


@functools.cache
def probe_keys() -> tuple[ProbeKey, ProbeKey]:
    """Ours for the other side, and its own for us."""
    return (
        probe.probe_key(PRIVATE, public_key(THEIRS), public_key(PRIVATE)),
        probe.probe_key(THEIRS, public_key(PRIVATE), public_key(THEIRS)),
    )


def signed_probe(data: bytes) -> bytes:
    """A probe with these bytes as kind, flags, padding and number, which has the other side's MAC: an admitted peer may
    send anything, too.
    """
    _, theirs = probe_keys()
    head = (probe.MAGIC + data[:4].ljust(4, b"\0") + theirs.own_hint + data[4:12].ljust(8, b"\0") + bytes(8))[:32]
    return head + probe._mac(theirs, head, data[12:]) + data[12:]


def _probes(data: bytes) -> None:
    ours, _ = probe_keys()
    assert probe.decode(ours, data) is None
    found = probe.decode(ours, signed_probe(data))
    if found is not None:
        probe.encode(ours, Kind.PONG, found.number)
    probe.sender_hint(data)


class _Line:
    """The socket of a relay's port, which notes how much leaves it."""

    def __init__(self) -> None:
        self.sent = 0

    def get_write_buffer_size(self) -> int:
        """Nothing waits."""
        return 0

    def sendto(self, data: bytes, address: Any) -> None:
        """Counts it."""
        assert address
        self.sent += len(data)


@functools.cache
def loop() -> asyncio.AbstractEventLoop:
    """One for all runs of this process."""
    return asyncio.new_event_loop()


@functools.cache
def _sides() -> tuple[Any, Any]:
    """Both ports of a relayed pair, without sockets."""

    async def made() -> tuple[Any, Any]:
        ours, _ = probe_keys()
        one, other = _Side(ours), _Side(ours)
        one.other, other.other = other, one
        return one, other

    return loop().run_until_complete(made())


def _relayed(data: bytes) -> None:
    """Datagrams at a relay's port, by anybody and by the peer: no more leaves than came in."""
    one, other = _sides()
    lines = one._transport, other._transport = _Line(), _Line()
    known, stranger = ("192.0.2.1", 1), ("192.0.2.2", 2)
    came = 0
    for address in (known, stranger):
        for packet in (data, signed_probe(data)):
            one.datagram_received(packet, address)
            came += len(packet)
    assert sum(line.sent for line in lines) <= came


def _uapi(data: bytes) -> None:
    state = uapi.parse_state(text(data))
    assert state.listen_port >= 0


def _gossip(data: bytes) -> None:
    """An answer as it came, and one that was sealed with the key: whoever has it is a member, and no more."""
    which, rest = part(data, ("as it is", "sealed"))
    sealed = gossip.seal(GOSSIP_KEY, rest, bytes(gossip.NONCE)) if which == "sealed" else rest
    header, body = sealed[: gossip.HEADER].ljust(gossip.HEADER, b"\0"), sealed[gossip.HEADER :]
    wanted = gossip.length(header)
    if len(body) >= wanted:
        gossip.heard(header, body[:wanted], (GOSSIP_KEY,))


@functools.cache
def snapshots() -> tuple[Snapshot, Snapshot]:
    """What Envoy is to have, and then less of it."""
    routes = entries.route("worker"), entries.route("api", vip="127.10.0.6")
    first = snapshot.build(entries.spec(*routes, entries.ingress()))
    return first, snapshot.build(entries.spec(entries.route("worker")), first)


def _xds(data: bytes) -> None:
    """A whole stream: each line of two bytes of length and a request, then a change."""
    machine = Stream({})
    first, second = snapshots()
    machine.publish(first)
    for _ in range(MAX_REQUESTS):
        if not data:
            break
        size = int.from_bytes(data[:2], "big")
        machine.handle(wire.read_request(data[2 : 2 + size]))
        data = data[2 + size :]
        _drain(machine)
    machine.publish(second)
    machine.retry()
    _drain(machine)
    machine.nacks()
    machine.acknowledged()


def _drain(machine: Stream) -> None:
    for _ in range(MAX_RESPONSES):
        response: Response | None = machine.poll()
        if response is None:
            return
        wire.write_response(response)
    raise AssertionError("the stream always has more to say")


HARNESSES: dict[str, Harness] = {
    "dns_query": Harness(read=_dns_query, most=1024),
    "dns_reply": Harness(read=_dns_reply, most=1024),
    "resolv_conf": Harness(read=_resolv_conf, most=1024),
    "rendezvous": Harness(read=_rendezvous, foreseen=(LinkError,), most=2048),
    "probe": Harness(read=_probes, most=256),
    "relay": Harness(read=_relayed, most=2048),
    "uapi": Harness(read=_uapi, foreseen=(LinkError,), most=2048),
    "gossip": Harness(read=_gossip, foreseen=(GossipError,), most=512),
    "xds": Harness(read=_xds, foreseen=(RequestError,), most=4096, slow=True),
}
