"""The wire: what is taken for a query, and what replies look like."""

from __future__ import annotations

import struct

import pytest
from dnslib import EDNS0, QTYPE, RR, A, DNSHeader, DNSQuestion, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from dns import message
from dns.message import Fault, Query, Rcode, Transport


def wire(name: str = "worker.mesh", qtype: str = "A", **edns: int) -> bytes:
    """A query; with keyword arguments it has an OPT."""
    record = DNSRecord.question(name, qtype)
    if edns:
        record.add_ar(EDNS0(**edns))
    return bytes(record.pack())


def parsed(data: bytes) -> Query:
    """The query that `data` must be."""
    query = message.parse(data)
    assert isinstance(query, Query)
    return query


def rcode_of(data: bytes) -> int:
    """The response code in the fault's reply."""
    fault = message.parse(data)
    assert isinstance(fault, Fault)
    assert fault.reply is not None
    assert fault.reply[:2] == data[:2]
    assert fault.reply[2] & 0x80
    return fault.reply[3] & 0xF


def test_a_query_is_read() -> None:
    """Name in both cases, type, class, EDNS, and where the question ends."""
    query = parsed(wire("Worker.Mesh", "AAAA", udp_len=1400, version=0))
    assert query.labels == (b"Worker", b"Mesh")
    assert query.name == (b"worker", b"mesh")
    assert (query.qtype, query.qclass, query.question_end) == (28, 1, 12 + 13 + 4)
    assert query.edns == message.Edns(payload=1400, version=0, dnssec_ok=False)


def test_dnssec_ok_and_version_are_read_from_the_opt() -> None:
    """They share the TTL field (RFC 6891 6.1.3)."""
    record = DNSRecord.question("worker")
    record.add_ar(EDNS0(udp_len=1232, version=1, flags="do"))
    assert parsed(bytes(record.pack())).edns == message.Edns(payload=1232, version=1, dnssec_ok=True)


@pytest.mark.parametrize(
    ("payload", "limit"), [(None, 512), (0, 512), (100, 512), (1232, 1232), (4096, 4096), (65535, 4096)]
)
def test_udp_limit_follows_edns(payload: int | None, limit: int) -> None:
    """512 octets without EDNS or below it (RFC 6891 6.2.3), the client's size up to our own, and no limit of it on
    TCP."""
    query = parsed(wire() if payload is None else wire(udp_len=payload))
    assert query.limit(Transport.UDP) == limit
    assert query.limit(Transport.TCP) == 65535


@pytest.mark.parametrize("data", [b"", b"\x12", b"\x12\x34", b"\x12\x34\x80", b"\x12\x34\xff" * 10])
def test_replies_and_fragments_without_id_and_flags_are_dropped(data: bytes) -> None:
    """Answering them would be a loop, or impossible."""
    assert message.parse(data) == Fault(reply=None)


@pytest.mark.parametrize("opcode", [1, 2, 4, 5, 15])
def test_other_opcodes_are_not_implemented(opcode: int) -> None:
    """NOTIMP, with the opcode echoed."""
    data = bytes(DNSRecord(DNSHeader(id=7, opcode=opcode), q=DNSQuestion("worker")).pack())
    assert rcode_of(data) == Rcode.NOTIMP
    fault = message.parse(data)
    assert isinstance(fault, Fault)
    assert fault.reply is not None
    assert fault.reply[2] >> 3 & 0xF == opcode


def header(questions: int = 1, answers: int = 0, authority: int = 0, additional: int = 0) -> bytes:
    """A query's header with these counts."""
    return struct.pack("!HHHHHH", 7, 0x0100, questions, answers, authority, additional)


QUESTION = b"\x06worker\x00\x00\x01\x00\x01"
OPT = b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00"


@pytest.mark.parametrize(
    "data",
    [
        header()[:3],
        header()[:11],
        header(),
        header(questions=0),
        header(questions=2) + QUESTION * 2,
        header() + QUESTION[:-1],
        header() + QUESTION + b"\x00",
        header(answers=1) + QUESTION + OPT,
        header(authority=1) + QUESTION + OPT,
        header(additional=1) + QUESTION,
        header(additional=2) + QUESTION + OPT * 2,
        header(additional=9) + QUESTION + OPT * 9,
        header(additional=65535) + QUESTION + OPT,
        header() + b"\xc0\x0c\x00\x01\x00\x01",
        header() + b"\x06worker\xc0\x0c\x00\x01\x00\x01",
        header() + b"\xc0\x00\x00\x01\x00\x01",
        header() + b"\x40" + b"a" * 64 + b"\x00\x00\x01\x00\x01",
        header() + (b"\x3f" + b"a" * 63) * 4 + b"\x00\x00\x01\x00\x01",
        header() + b"\x06worker\x00\x00\x29\x00\x01",
        header(additional=1) + QUESTION + b"\x01a" + OPT,
        header(additional=1) + QUESTION + b"\xc0\x0c" + OPT[1:],
        header(additional=1) + QUESTION + OPT[:-1] + b"\x03abc",
        header(additional=1) + QUESTION + OPT[:-1] + b"\x04\x00\x0a\x00\x01",
        header() + b"".join(b"\xc0" + bytes([12 + 2 * i]) for i in range(100)),
        header(additional=1) + QUESTION + b"".join(struct.pack("!H", 0xC000 | 24 + 2 * i) for i in range(8000)),
    ],
)
def test_malformed_queries_are_format_errors(data: bytes) -> None:
    """FORMERR, with the ID, for whatever breaks the format that RFC 1035 and 6891 set."""
    assert rcode_of(data) == Rcode.FORMERR


def test_a_label_is_any_octets() -> None:
    """RFC 2181 11: neither UTF-8 nor letters are demanded; a reply carries the same octets."""
    query = parsed(header() + b"\x03\xff\xfeA\x04Mesh\x00\x00\x01\x00\x01")
    assert (query.labels, query.name) == ((b"\xff\xfeA", b"Mesh"), (b"\xff\xfea", b"mesh"))
    reply = message.reply(query, 512, rcode=Rcode.NXDOMAIN)
    assert reply[12 : query.question_end] == query.wire[12 : query.question_end]


def test_a_signature_beside_the_opt_is_seen() -> None:
    """Its record is skipped whole, its name may be a pointer, and the query is marked as signed."""
    signature = b"\xc0\x0c\x00\xfa\x00\xff" + bytes(4) + b"\x00\x03sig"
    query = parsed(header(additional=2) + QUESTION + OPT + signature)
    assert (query.signed, query.edns is not None) == (True, True)
    assert not parsed(header(additional=1) + QUESTION + OPT).signed


@pytest.mark.parametrize(
    ("data", "rcode"),
    [
        (header(additional=2) + QUESTION + OPT * 2, Rcode.FORMERR),
        (header(additional=1) + QUESTION + b"\x01a" + OPT, Rcode.FORMERR),
        (b"\x00\x07\x10\x00" + header(additional=1)[4:] + QUESTION + OPT, Rcode.NOTIMP),
        (b"\x00\x07\x10\x00" + header()[4:] + QUESTION, Rcode.NOTIMP),
    ],
)
def test_an_error_has_the_question_and_an_opt_like_the_query(data: bytes, rcode: Rcode) -> None:
    """RFC 1035 4.1.1, RFC 6891 7: a client tells by them what it is about, and that its OPT was read."""
    fault = message.parse(data)
    assert isinstance(fault, Fault)
    assert fault.reply is not None
    reply = DNSRecord.parse(fault.reply)
    assert (reply.header.rcode, str(reply.q.qname)) == (rcode, "worker.")
    assert [record.rtype for record in reply.ar] == ([QTYPE.OPT] if b"\x29" in data else [])


def test_a_name_of_255_octets_is_the_longest() -> None:
    """RFC 1035 2.3.4 counts length octets and root."""
    longest = (b"\x3f" + b"a" * 63) * 3 + b"\x3d" + b"a" * 61 + b"\x00"
    assert len(longest) == 255
    assert isinstance(message.parse(header() + longest + b"\x00\x01\x00\x01"), Query)
    longer = (b"\x3f" + b"a" * 63) * 3 + b"\x3e" + b"a" * 62 + b"\x00"
    assert rcode_of(header() + longer + b"\x00\x01\x00\x01") == Rcode.FORMERR


@given(st.binary(max_size=200))
def test_no_octets_raise_and_no_reply_is_a_query(data: bytes) -> None:
    """Whatever comes, the outcome is a query, a reply with QR set, or nothing."""
    outcome = message.parse(data)
    if isinstance(outcome, Fault) and outcome.reply is not None:
        assert outcome.reply[2] & 0x80
        assert outcome.reply[:2] == data[:2]


@given(st.binary(max_size=120), st.integers(0, 3), st.integers(0, 4))
def test_no_body_after_a_query_header_raises(body: bytes, questions: int, additional: int) -> None:
    """As above, with a header that leads the parser into the body."""
    outcome = message.parse(header(questions, 0, 0, additional) + body)
    assert isinstance(outcome, Query) or outcome.reply is not None


def test_a_reply_echoes_question_case_and_the_clients_flags() -> None:
    """RD and CD are copied, RA is set, AD and Z are not."""
    data = bytearray(wire("WoRKer"))
    data[2:4] = b"\x01\x70"
    reply = DNSRecord.parse(message.reply(parsed(bytes(data)), 512))
    assert str(reply.q.qname) == "WoRKer."
    assert (reply.header.qr, reply.header.rd, reply.header.cd, reply.header.ra) == (1, 1, 1, 1)
    assert (reply.header.ad, reply.header.z, reply.header.aa) == (0, 0, 0)


def test_a_reply_has_an_opt_exactly_when_the_query_had_one() -> None:
    """RFC 6891 6.1.1; the DO bit is copied (RFC 3225 3)."""
    assert DNSRecord.parse(message.reply(parsed(wire()), 512)).ar == []
    record = DNSRecord.question("worker")
    record.add_ar(EDNS0(udp_len=1232, flags="do"))
    [opt] = DNSRecord.parse(message.reply(parsed(bytes(record.pack())), 1232)).ar
    assert (opt.rtype, opt.rclass, opt.ttl) == (QTYPE.OPT, message.MAX_UDP, 0x8000)


def test_badvers_is_split_between_header_and_opt() -> None:
    """RFC 6891 6.1.3: the upper eight bits of the code are in the OPT."""
    reply = DNSRecord.parse(message.reply(parsed(wire(udp_len=1232, version=1)), 1232, rcode=Rcode.BADVERS))
    assert (reply.header.rcode, reply.ar[0].ttl >> 24) == (0, 1)


def records(count: int) -> list[RR]:
    """Distinct records of 16 octets beside the compressed name."""
    return [RR("worker.mesh", QTYPE.A, ttl=5, rdata=A(f"10.0.0.{index}")) for index in range(count)]


def test_a_reply_too_long_loses_additional_records_first() -> None:
    """RFC 2181 9: what the client did not ask for goes without the truncation bit."""
    reply = message.reply(parsed(wire()), 512, answers=records(20), additional=records(20))
    assert len(reply) <= 512
    read = DNSRecord.parse(reply)
    assert (len(read.rr), len(read.ar), read.header.tc) == (20, 0, 0)


def test_a_reply_that_still_does_not_fit_is_truncated() -> None:
    """TC, question and OPT, nothing else."""
    read = DNSRecord.parse(message.reply(parsed(wire(udp_len=512)), 512, answers=records(60), authoritative=True))
    assert (read.rr, read.header.tc, read.header.aa, len(read.ar)) == ([], 1, 1, 1)
    assert str(read.q.qname) == "worker.mesh."
