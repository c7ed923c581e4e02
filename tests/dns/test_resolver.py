"""What is answered, forwarded, refused and dropped."""

from __future__ import annotations

import pytest
from dnslib import EDNS0, QTYPE, DNSHeader, DNSLabel, DNSQuestion, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from dns import resolver, zone
from dns.message import MAX_UDP, Rcode, Transport
from dns.resolver import Answer, Drop, Forward, Outcome, Refuse, Resolver
from dns.zone import SrvTarget

PEERS = {f"api-{index}": f"100.96.0.{index + 1}" for index in range(40)}
ZONE = zone.build(
    {"worker": "127.10.1.2", "postgres-master": "127.10.1.3"},
    PEERS,
    {"api": tuple(SrvTarget(peer_id=peer, port=21000) for peer in PEERS), "idle": ()},
    serial=42,
)
WHOLE = zone.build(
    {"worker": "127.10.1.2"},
    {f"api-{index}": f"100.96.16.{index + 1}" for index in range(9)},
    {},
    serial=42,
    former=("gone",),
    pools=("127.10.0.0/16", "100.96.16.0/20"),
    server="127.10.0.53",
)
TYPES = ("A", "AAAA", "TXT", "MX", "SRV", "HTTPS", "ANY", "SOA", "NS", "PTR", "CNAME", "DS")


def query(name: str, qtype: str = "A", qclass: str = "IN", payload: int | None = None) -> bytes:
    """A query's octets."""
    record = DNSRecord.question(name, qtype, qclass)
    if payload is not None:
        record.add_ar(EDNS0(udp_len=payload))
    return bytes(record.pack())


def answered(outcome: Outcome) -> DNSRecord:
    """The message that the outcome sends."""
    assert isinstance(outcome, Answer | Refuse), outcome
    return DNSRecord.parse(outcome.wire)


def ask(name: str, qtype: str = "A", transport: Transport = Transport.UDP, payload: int | None = None) -> DNSRecord:
    """The answer from ZONE."""
    outcome = resolver.resolve(query(name, qtype, payload=payload), ZONE, transport)
    assert isinstance(outcome, Answer)
    return answered(outcome)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("worker", "127.10.1.2"),
        ("worker.mesh", "127.10.1.2"),
        ("POSTGRES-master", "127.10.1.3"),
        ("api-3.peer.mesh", "100.96.0.4"),
        ("API-3.Peer.MESH", "100.96.0.4"),
    ],
)
def test_addresses(name: str, address: str) -> None:
    """A route and a peer give one A record, authoritative, short-lived, in the case of the question."""
    reply = ask(name)
    assert [(str(record.rname), str(record.rdata), record.ttl) for record in reply.rr] == [
        (f"{name}.", address, zone.TTL)
    ]
    assert (reply.header.aa, reply.header.rcode, str(reply.q.qname)) == (1, 0, f"{name}.")


@pytest.mark.parametrize("qtype", ["AAAA", "TXT", "MX", "SRV", "HTTPS", "SVCB", "SOA", "NS", "PTR", "CNAME", "DS"])
@pytest.mark.parametrize(
    ("name", "owner"), [("Worker.mesh", "mesh."), ("peer.mesh", "mesh."), ("_idle._tcp.mesh", "mesh.")]
)
def test_other_types_of_our_names_are_empty_with_soa(name: str, owner: str, qtype: str) -> None:
    """NOERROR without answers, and the SOA that lets resolvers remember it for a second only (RFC 2308)."""
    reply = ask(name, qtype)
    assert (reply.header.rcode, reply.rr) == (Rcode.NOERROR, [])
    [soa] = reply.auth
    assert (str(soa.rname), soa.ttl, soa.rdata.times) == (owner, zone.NEGATIVE_TTL, (42, 3600, 600, 86400, 1))


def test_the_soa_of_a_plain_route_is_its_own() -> None:
    """An SOA whose owner is no ancestor of the name would be thrown away; the root is not ours to speak for."""
    [soa] = ask("Worker", "AAAA").auth
    assert str(soa.rname).lower() == "worker."


def test_the_apex_and_a_route_answer_soa_queries() -> None:
    """Both are the top of a zone."""
    for name in ("mesh", "worker"):
        [soa] = ask(name, "SOA").rr
        assert (soa.rtype, str(soa.rname)) == (QTYPE.SOA, f"{name}.")


@pytest.mark.parametrize(
    "name", ["nothing.mesh", "api-99.peer.mesh", "a.b.c.mesh", "_none._tcp.mesh", "tcp.mesh", "x.worker.mesh"]
)
@pytest.mark.parametrize("qtype", TYPES)
def test_unknown_names_below_mesh_do_not_exist(name: str, qtype: str) -> None:
    """NXDOMAIN with SOA, from a loaded zone."""
    reply = ask(name, qtype)
    assert (reply.header.rcode, reply.rr, len(reply.auth), reply.header.aa) == (Rcode.NXDOMAIN, [], 1, 1)


def test_any_gives_the_addresses() -> None:
    """RFC 8482 leaves the choice; clients that ask ANY want an address."""
    assert [str(record.rdata) for record in ask("worker", "ANY").rr if record.rtype == QTYPE.A] == ["127.10.1.2"]


def test_services_point_at_peers() -> None:
    """SRV records with port and target, each target's address beside them, over TCP all of them."""
    reply = ask("_API._tcp.mesh", "SRV", Transport.TCP)
    assert len(reply.rr) == len(PEERS)
    assert {(str(record.rdata.target), record.rdata.port) for record in reply.rr} == {
        (f"{peer}.peer.mesh.", 21000) for peer in PEERS
    }
    assert {str(record.rname): str(record.rdata) for record in reply.ar} == {
        f"{peer}.peer.mesh.": address for peer, address in PEERS.items()
    }


@pytest.mark.parametrize("payload", [None, 512, 1232, 2200, 4096, 65535])
def test_udp_answers_keep_to_the_clients_size(payload: int | None) -> None:
    """Addresses of targets go first; when the records themselves do not fit, the answer is empty and says so."""
    outcome = resolver.resolve(query("_api._tcp.mesh", "SRV", payload=payload), ZONE, Transport.UDP)
    assert isinstance(outcome, Answer)
    assert len(outcome.wire) <= min(MAX_UDP, payload or 512)
    reply = answered(outcome)
    assert (len(reply.rr) == len(PEERS)) != bool(reply.header.tc)
    assert bool(reply.header.tc) == ((payload or 512) < 1300)


@pytest.mark.parametrize(
    "name", ["example.org", "com", "worker.corp.example", "mesh.example", ".", "localhost", "1.0.10.in-addr.arpa"]
)
def test_other_names_are_forwarded(name: str) -> None:
    """Also single labels that are no routes, and names below a domain that is not searched."""
    assert isinstance(resolver.resolve(query(name), ZONE, Transport.UDP), Forward)


SEARCH = zone.search_names(("corp.example", "mesh", "lab.corp.example", "."))


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("x.worker", "worker"),
        ("gone", "gone"),
        ("x.Gone", "Gone"),
        ("gone.corp.example", "gone.corp.example"),
        ("x.gone.corp.example", "gone.corp.example"),
        ("worker.corp.example", "worker.corp.example"),
        ("worker.lab.corp.example", "worker.lab.corp.example"),
        ("worker.mesh.corp.example", "mesh.corp.example"),
        ("nothing.mesh.lab.corp.example", "mesh.lab.corp.example"),
        ("gone.mesh.corp.example", "mesh.corp.example"),
        ("9.2.10.127.in-addr.arpa", "10.127.in-addr.arpa"),
        ("x.2.1.10.127.in-addr.arpa", "10.127.in-addr.arpa"),
        ("9.18.96.100.in-addr.arpa", "18.96.100.in-addr.arpa"),
    ],
)
@pytest.mark.parametrize("qtype", TYPES)
def test_names_of_the_mesh_never_leave_it(name: str, owner: str, qtype: str) -> None:
    """What is below a route, a route that is gone, both with each search domain behind them, addresses that nobody has:
    NXDOMAIN, whatever is asked, with an SOA of a zone above."""
    outcome = resolver.resolve(query(name, qtype), WHOLE, Transport.UDP, SEARCH)
    assert isinstance(outcome, Answer)
    reply = answered(outcome)
    assert (reply.header.rcode, reply.rr, reply.header.aa) == (Rcode.NXDOMAIN, [], 1)
    assert str(reply.auth[0].rname).lower() == f"{owner}.".lower()


@pytest.mark.parametrize(
    "name", ["db.corp.example", "corp.example", "x.y.corp.example", "worker.example", "example", "127.in-addr.arpa",
             "1.0.0.127.in-addr.arpa", "1.32.96.100.in-addr.arpa", "10.127.in-addr.arpa.org", "01.10.in-addr.arpa"],
)  # fmt: skip
def test_hosts_of_the_search_domains_are_forwarded(name: str) -> None:
    """Only names of the mesh are taken, and only reverse names of its pools."""
    assert isinstance(resolver.resolve(query(name), WHOLE, Transport.UDP, SEARCH), Forward)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("2.1.10.127.in-addr.arpa", "worker.mesh."),
        ("4.16.96.100.In-Addr.ARPA", "api-3.peer.mesh."),
        ("53.0.10.127.in-addr.arpa", "ns.dns.mesh."),
    ],
)
def test_addresses_have_names(name: str, target: str) -> None:
    """Of routes, peers and the server itself."""
    outcome = resolver.resolve(query(name, "PTR"), WHOLE, Transport.UDP)
    assert [str(record.rdata) for record in answered(outcome).rr] == [target]


@pytest.mark.parametrize("name", ["mesh", "worker", "10.127.in-addr.arpa"])
def test_each_zone_has_a_server_whose_name_has_an_address(name: str) -> None:
    """The server in the NS record is the one in the SOA."""
    reply = answered(resolver.resolve(query(name, "NS"), WHOLE, Transport.UDP))
    assert ([str(it.rdata) for it in reply.rr], str(reply.ar[0].rdata)) == (["ns.dns.mesh."], "127.10.0.53")
    [soa] = answered(resolver.resolve(query(name, "SOA"), WHOLE, Transport.UDP)).rr
    address = answered(resolver.resolve(query(str(soa.rdata.mname)), WHOLE, Transport.UDP)).rr
    assert [str(it.rdata) for it in address] == ["127.10.0.53"]


@pytest.mark.parametrize("name", ["x.corp.example", "worker.mesh.corp.example", "anything.lab.corp.example"])
def test_searched_names_fail_before_the_zone_is_loaded(name: str) -> None:
    """They may be a route's, and nobody else is to answer for it."""
    assert answered(resolver.resolve(query(name), None, Transport.UDP, SEARCH)).header.rcode == Rcode.SERVFAIL


@pytest.mark.parametrize("name", ["worker", "anything", "mesh", "worker.mesh", "a.b.mesh", "com"])
@pytest.mark.parametrize("qtype", TYPES)
def test_names_that_could_be_ours_fail_before_the_zone_is_loaded(name: str, qtype: str) -> None:
    """SERVFAIL, never NXDOMAIN and never a leak to others."""
    outcome = resolver.resolve(query(name, qtype), None, Transport.UDP)
    assert isinstance(outcome, Refuse)
    assert answered(outcome).header.rcode == Rcode.SERVFAIL


@pytest.mark.parametrize("name", ["example.org", ".", "x.worker"])
def test_other_names_are_forwarded_before_the_zone_is_loaded(name: str) -> None:
    """The machine's names work from the start."""
    assert isinstance(resolver.resolve(query(name), None, Transport.UDP), Forward)


@given(
    st.lists(st.binary(min_size=1, max_size=9).filter(lambda label: label.isascii()), max_size=4),
    st.sampled_from(TYPES),
)
def test_nothing_is_nxdomain_without_a_zone(labels: list[bytes], qtype: str) -> None:
    """Whatever the name, an unloaded table denies nothing."""
    wire = bytes(DNSRecord(DNSHeader(id=1), q=DNSQuestion(DNSLabel(labels), getattr(QTYPE, qtype))).pack())
    outcome = resolver.resolve(wire, None, Transport.UDP)
    assert isinstance(outcome, Forward) or answered(outcome).header.rcode == Rcode.SERVFAIL


@pytest.mark.parametrize("name", ["version.bind", "worker", "worker.mesh"])
@pytest.mark.parametrize("qclass", ["CH", "Hesiod", "*"])
def test_other_classes_are_refused(name: str, qclass: str) -> None:
    """Not answered, not forwarded."""
    outcome = resolver.resolve(query(name, "TXT", qclass), ZONE, Transport.UDP)
    assert answered(outcome).header.rcode == Rcode.REFUSED


@pytest.mark.parametrize("qtype", ["AXFR", "IXFR"])
@pytest.mark.parametrize("name", ["mesh", "example.org"])
def test_transfers_are_refused(name: str, qtype: str) -> None:
    """Nobody gets the whole table, and nobody else's through us."""
    assert answered(resolver.resolve(query(name, qtype), ZONE, Transport.TCP)).header.rcode == Rcode.REFUSED


def test_unknown_edns_versions_are_told_ours() -> None:
    """BADVERS for our names and for others alike."""
    for name in ("worker", "example.org"):
        record = DNSRecord.question(name)
        record.add_ar(EDNS0(udp_len=1232, version=1))
        reply = answered(resolver.resolve(bytes(record.pack()), ZONE, Transport.UDP))
        assert reply.ar[0].ttl >> 16 == 0x0100


def test_names_of_octets_are_names() -> None:
    """What is not ours is forwarded, whatever its octets; below `mesh` it does not exist."""
    for labels, kind in (((b"\xff\xfe", b"example"), Forward), ((b"\xff\xfe", b"mesh"), Answer)):
        wire = bytes(DNSRecord(DNSHeader(id=1), q=DNSQuestion(DNSLabel(labels))).pack())
        assert isinstance(resolver.resolve(wire, ZONE, Transport.UDP), kind)


def test_garbage_is_refused_or_dropped() -> None:
    """FORMERR where there is an ID to answer to; replies get none."""
    assert isinstance(resolver.resolve(b"\x00\x01\x01\x00rest", ZONE, Transport.UDP), Refuse)
    assert resolver.resolve(b"\x00\x01\x81\x00rest", ZONE, Transport.UDP) == Drop()


NAMES = st.sampled_from(
    ["worker", "WORKER", "wOrKeR.mEsH", "api-1.peer.mesh", "_api._tcp.MESH", "no.mesh", "example.org", "mesh"]
)


@given(
    st.lists(
        st.tuples(
            NAMES, st.sampled_from(TYPES), st.sampled_from([None, 512, 1232, 4096]), st.sampled_from(list(Transport))
        )
    )
)
def test_remembered_answers_are_the_ones_worked_out(questions: list[tuple[str, str, int | None, Transport]]) -> None:
    """With its memory the resolver says the same as without: same ID, same case, same content."""
    remembering = Resolver(ZONE)
    for name, qtype, payload, transport in questions + questions:
        wire = query(name, qtype, payload=payload)
        fast, slow = remembering.resolve(wire, transport), resolver.resolve(wire, ZONE, transport)
        assert type(fast) is type(slow)
        if isinstance(fast, Answer) and isinstance(slow, Answer):
            assert fast.wire[:2] == wire[:2]
            assert str(answered(fast).q.qname) == str(answered(slow).q.qname)
            assert str(answered(fast)).lower() == str(answered(slow)).lower()


@given(st.lists(st.binary(max_size=80), max_size=5), st.integers(0, 79), st.integers(0, 255))
def test_remembering_survives_any_octets(messages: list[bytes], position: int, value: int) -> None:
    """Garbage and near-misses of a remembered query never get its answer by mistake."""
    remembering = Resolver(ZONE)
    good = query("worker.mesh")
    remembering.resolve(good, Transport.UDP)
    near = bytearray(good)
    near[position % len(near)] = value
    for wire in [*messages, bytes(near)]:
        assert remembering.resolve(wire, Transport.UDP) == resolver.resolve(wire, ZONE, Transport.UDP)


def test_an_answer_that_is_lent_is_given_until_it_expires() -> None:
    """Under each client's ID and case, to those who ask alike; a name that the zone has is never one of them."""
    remembering = Resolver(ZONE)
    wire = query("example.org")
    reply = bytes(DNSRecord.parse(wire).reply().pack())
    remembering.lend(wire, Transport.UDP, reply)
    other = query("Example.ORG")
    outcome = remembering.resolve(other, Transport.UDP)
    assert isinstance(outcome, Answer)
    assert (outcome.wire[:2], outcome.wire[12:]) == (other[:2], other[12:])
    assert isinstance(remembering.resolve(query("example.org", "AAAA"), Transport.UDP), Forward)
    assert isinstance(remembering.resolve(wire, Transport.TCP), Forward)
    remembering.expire()
    assert isinstance(remembering.resolve(wire, Transport.UDP), Forward)


def test_transports_are_remembered_apart() -> None:
    """A truncated UDP answer is not what TCP gets, nor the other way round."""
    remembering = Resolver(ZONE)
    wire = query("_api._tcp.mesh", "SRV")
    for transport, cut in ((Transport.UDP, 1), (Transport.TCP, 0), (Transport.UDP, 1)):
        assert answered(remembering.resolve(wire, transport)).header.tc == cut


def test_a_zero_octet_inside_a_label_is_no_end_of_the_name() -> None:
    """Such names are answered like others, remembered or not."""
    remembering = Resolver(ZONE)
    for label in (b"a\0B", b"a\0b", b"A\0b", b"a\0B"):
        record = DNSRecord(DNSHeader(id=9), q=DNSQuestion(DNSLabel([label, b"mesh"])))
        wire = bytes(record.pack())
        assert remembering.resolve(wire, Transport.UDP) == resolver.resolve(wire, ZONE, Transport.UDP)


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of distinct questions leaves at most the set number of answers behind."""
    monkeypatch.setattr(resolver, "_MEMO_ENTRIES", 8)
    remembering = Resolver(ZONE)
    for index in range(50):
        remembering.resolve(query(f"n{index}.mesh"), Transport.UDP)
        assert len(remembering._memo) <= 8
