"""Which replies are well formed, how long they are kept, and what of them is passed on."""

from __future__ import annotations

import struct

import pytest
from dnslib import AAAA, CNAME, EDNS0, MX, NS, PTR, QTYPE, RR, SOA, SRV, TXT, A, DNSHeader, DNSQuestion, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from dns import records
from dns.records import MAX_NEGATIVE_TTL, MAX_TTL, Reading

NAME = "www.example.org"
END = 12 + len(NAME) + 2 + 4


def reply(*answers: RR, rcode: int = 0, authority: tuple[RR, ...] = (), additional: tuple[RR, ...] = ()) -> bytes:
    """A reply's octets."""
    header = DNSHeader(id=1, qr=1, rd=1, ra=1, rcode=rcode)
    record = DNSRecord(header, q=DNSQuestion(NAME), rr=list(answers), auth=list(authority), ar=list(additional))
    return bytes(record.pack())


def a(ttl: int = 60, address: str = "192.0.2.1") -> RR:
    """An A record of NAME."""
    return RR(NAME, QTYPE.A, ttl=ttl, rdata=A(address))


def soa(ttl: int, minimum: int) -> RR:
    """The SOA of a denial."""
    return RR("example.org", QTYPE.SOA, ttl=ttl, rdata=SOA("ns.example.org", "root.example.org", (1, 2, 3, 4, minimum)))


def read(wire: bytes) -> Reading:
    """The reading that there must be."""
    found = records.read(wire, END)
    assert found is not None
    return found


def test_what_resolvers_send_is_well_formed() -> None:
    """Each type whose data is checked, compressed as servers do it."""
    every = (
        a(),
        RR(NAME, QTYPE.AAAA, ttl=9, rdata=AAAA("2001:db8::1")),
        RR(NAME, QTYPE.CNAME, ttl=9, rdata=CNAME("other.example.org")),
        RR(NAME, QTYPE.MX, ttl=9, rdata=MX("mail.example.org", 10)),
        RR(NAME, QTYPE.SRV, ttl=9, rdata=SRV(1, 2, 3, "srv.example.org")),
        RR(NAME, QTYPE.TXT, ttl=9, rdata=TXT(["one", "two"])),
        RR(NAME, QTYPE.PTR, ttl=9, rdata=PTR("ptr.example.org")),
    )
    found = read(reply(*every, authority=(RR("example.org", QTYPE.NS, ttl=5, rdata=NS("ns.example.org")),)))
    assert (len(found.ttls), found.lifetime) == (len(every) + 1, 5)
    assert [int.from_bytes(found.wire[at : at + 4], "big") for at in found.ttls] == [60, *[9] * 6, 5]


@pytest.mark.parametrize(
    ("wire", "lifetime"),
    [
        (reply(a(60), a(30)), 30),
        (reply(a(10**6)), MAX_TTL),
        (reply(a(0)), 0),
        (reply(a(2**31)), 0),
        (reply(rcode=3, authority=(soa(50, 20),)), 20),
        (reply(rcode=3, authority=(soa(10, 20),)), 10),
        (reply(rcode=0, authority=(soa(10**5, 10**5),)), MAX_NEGATIVE_TTL),
        (reply(rcode=3), 0),
        (reply(rcode=0), 0),
        (reply(a(60), rcode=2), 0),
        (reply(RR(NAME, QTYPE.CNAME, ttl=50, rdata=CNAME("x.org")), rcode=3, authority=(soa(40, 30),)), 30),
    ],
)
def test_how_long_a_reply_is_kept(wire: bytes, lifetime: int) -> None:
    """The shortest TTL, capped; a denial by its SOA and not without one (RFC 2308 5); no error and no cut reply."""
    assert read(wire).lifetime == lifetime
    cut = bytes([*wire[:2], wire[2] | 2, *wire[3:]])
    assert read(cut).lifetime == 0


def test_the_opt_and_what_stands_behind_it_go() -> None:
    """It is between neighbours; names behind it could point to where nothing is any more."""
    found = read(reply(a(), additional=(EDNS0(udp_len=1232, ext_rcode=1), a(5))))
    assert found.wire == reply(a())
    assert (found.rcode, len(found.ttls)) == (16, 1)


def test_octets_behind_the_last_record_go() -> None:
    """Stub resolvers do not look at them either."""
    assert read(reply(a()) + b"rest").wire == reply(a())


def record(rtype: int, data: bytes, name: bytes = b"\xc0\x0c", size: int | None = None) -> bytes:
    """A reply with one record of this data."""
    plain = DNSRecord(DNSHeader(id=1, qr=1), q=DNSQuestion(NAME))
    wire = bytearray(plain.pack())
    wire[6:8] = b"\0\1"
    return bytes(wire) + name + struct.pack("!HHIH", rtype, 1, 60, len(data) if size is None else size) + data


@pytest.mark.parametrize(
    "wire",
    [
        reply(a())[:-1],
        reply(a())[:END],
        reply(a())[:-5],
        record(1, b"\1\2\3"),
        record(1, b"\1\2\3\4\5"),
        record(28, bytes(15)),
        record(5, b"\xc0\x0c\x00"),
        record(5, b"\x03ww"),
        record(5, b"\xff\xff"),
        record(5, b""),
        record(15, b"\0\1"),
        record(33, bytes(6)),
        record(6, b"\0\0" + bytes(19)),
        record(16, b""),
        record(16, b"\x05ab"),
        record(65, b"\0\1\0\0\1"),
        record(65, b"\0\1\0\0\1\0\x09ab"),
        record(1, b"\1\2\3\4", name=b"\xc0\xff"),
        record(1, b"\1\2\3\4", name=b"\x40" + b"a" * 64 + b"\0"),
        record(1, b"\1\2\3\4", name=(b"\x3f" + b"a" * 63) * 4 + b"\0"),
        record(1, b"\1\2\3\4", name=b"\xc0" + bytes([END])),
        record(1, b"\1\2\3\4", size=65535),
        record(41, b""),
        reply(a(), additional=(EDNS0(udp_len=1232), EDNS0(udp_len=1232))),
    ],
)
def test_malformed_replies_are_none(wire: bytes) -> None:
    """Cut records, data of the wrong length, names that do not end or point ahead, an OPT that is no option."""
    assert records.read(wire, END) is None


def test_names_of_any_octets_and_unknown_types_pass() -> None:
    """What nobody here can judge is the client's."""
    assert read(record(5, b"\x02\xff\xfe\xc0\x0c")).ttls
    assert read(record(65280, b"\xff" * 9)).ttls
    assert read(record(65, b"\0\1\0\0\1\0\2ab")).ttls


def test_long_chains_of_pointers_end() -> None:
    """However many records point at however many pointers: each is looked at once."""
    chain = b"".join(
        struct.pack("!H", 0xC000 | (12 if index == 0 else END + 12 + 2 * (index - 1))) for index in range(200)
    )
    wire = bytearray(record(65280, chain))
    wire[6:8] = (2).to_bytes(2, "big")
    last = END + 12 + 2 * 199
    wire += struct.pack("!HHHIH", 0xC000 | last, 65280, 1, 60, 0)
    assert records.read(bytes(wire), END) is not None


@given(st.binary(max_size=80), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_no_octets_raise(body: bytes, answers: int, authority: int, additional: int) -> None:
    """Whatever a server sends behind the question, it is read or it is malformed; what is kept reads the same again."""
    head = reply()[:6] + struct.pack("!HHH", answers, authority, additional)
    found = records.read(head + reply()[12:END] + body, END)
    if found is not None:
        again = records.read(found.wire, END)
        assert again is not None
        assert (again.wire, again.ttls) == (found.wire, found.ttls)
