"""One DNS query in, one reply out: the wire format of what clients ask and of what we answer. Pure.

Queries are read here, octet by octet, replies are written through dnslib. Strict where a resolver must be (RFC 1035,
6891), because a forwarded query goes to others under our name: exactly one question, written without compression, no
answer or authority records, at most one OPT, whose owner is the root, nothing after the last record. A label is any
octets (RFC 2181, 11): what a name may be is not for us to say.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum

from dnslib import EDNS0, RR, DNSHeader, DNSLabel, DNSQuestion, DNSRecord

from dns.zone import Name

HEADER = 12
OPT = 41
IN = 1
PLAIN_UDP = 512
"""Octets of a UDP reply to a client that did not send EDNS (RFC 1035 4.2.1)."""
MAX_UDP = 4096
"""Octets that we take and send by UDP at most. Clients share our loopback (MTU 65536), so nothing is fragmented at
this size."""
MAX_TCP = 65535
_MAX_ADDITIONAL = 4
"""A query carries an OPT and perhaps a signature; more is not worth parsing."""
MAX_NAME = 255
MAX_LABEL = 63
"""Octets (RFC 1035 2.3.4)."""
_RECORD = struct.Struct("!HHIH")
"""Of a record, after its name: type, class, TTL, length of the data."""


class Transport(Enum):
    """How the client asked."""

    UDP = "udp"
    TCP = "tcp"


class Rcode(IntEnum):
    """Response codes that we send or look at. BADVERS needs EDNS (RFC 6891 6.1.3)."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Edns:
    """The OPT record of a query."""

    payload: int
    """Octets of UDP that the client takes."""
    version: int
    dnssec_ok: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A well-formed query."""

    wire: bytes
    """The whole message as it came."""
    ident: int
    labels: tuple[bytes, ...]
    """The name in the client's case."""
    name: Name
    """The name in lower case."""
    qtype: int
    qclass: int
    question_end: int
    """Offset after the question, in `wire` and in every reply to it."""
    edns: Edns | None
    signed: bool = False
    """Whether there are records beside the OPT: a signature, which covers the octets as they are."""

    def limit(self, transport: Transport) -> int:
        """Octets that the reply may have."""
        if transport is Transport.TCP:
            return MAX_TCP
        return min(max(PLAIN_UDP, self.edns.payload), MAX_UDP) if self.edns else PLAIN_UDP


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A message that is no query we can work on."""

    reply: bytes | None
    """What to send back; None: nothing (the message is itself a reply, or has no ID)."""


def parse(wire: bytes) -> Query | Fault:
    """The query in `wire`, or what to do about a message that is none. Never raises."""
    # Without the first flags octet it cannot be told from a reply; answering replies is how two servers bounce one
    # for ever.
    if len(wire) < 3 or wire[2] & 0x80:
        return Fault(reply=None)
    if len(wire) < HEADER:
        return Fault(reply=_header_only(wire, Rcode.FORMERR if _opcode(wire) == 0 else Rcode.NOTIMP))
    question = _question(wire)
    if _opcode(wire) != 0:
        return Fault(reply=_fault(wire, question, Rcode.NOTIMP))
    if question is None or int.from_bytes(wire[6:10], "big"):
        return Fault(reply=_fault(wire, question, Rcode.FORMERR))
    labels, end = question
    qtype, qclass = int.from_bytes(wire[end - 4 : end - 2], "big"), int.from_bytes(wire[end - 2 : end], "big")
    records = _additional(wire, end)
    if records is None or qtype == OPT:
        return Fault(reply=_fault(wire, question, Rcode.FORMERR))
    options = [edns for edns in records if edns is not None]
    if len(options) > 1:
        return Fault(reply=_fault(wire, question, Rcode.FORMERR))
    return Query(
        wire=wire,
        ident=wire[0] << 8 | wire[1],
        labels=labels,
        name=tuple([label.lower() for label in labels]),
        qtype=qtype,
        qclass=qclass,
        question_end=end,
        edns=options[0] if options else None,
        signed=len(records) > len(options),
    )


def _opcode(wire: bytes) -> int:
    return wire[2] >> 3 & 0xF


def _question(wire: bytes) -> tuple[tuple[bytes, ...], int] | None:
    """Labels, and the offset after the question; None unless there is one, whole and written out."""
    if wire[4:6] != b"\0\1":
        return None
    labels: list[bytes] = []
    offset = HEADER
    while offset < len(wire) and (size := wire[offset]):
        # Two upper bits: a pointer, or a label of a kind that was given up (RFC 6891 5).
        if size > MAX_LABEL:
            return None
        labels.append(wire[offset + 1 : offset + 1 + size])
        offset += 1 + size
    end = offset + 5
    return (tuple(labels), end) if end <= len(wire) and offset + 1 - HEADER <= MAX_NAME else None


def _additional(wire: bytes, offset: int) -> list[Edns | None] | None:
    """The OPT records after the question, None for records of other types; None for all when they are not well formed
    or not the last."""
    count = int.from_bytes(wire[10:HEADER], "big")
    if count > _MAX_ADDITIONAL:
        return None
    found: list[Edns | None] = []
    for _ in range(count):
        body = _after_name(wire, offset)
        if body is None or body + _RECORD.size > len(wire):
            return None
        rtype, rclass, ttl, size = _RECORD.unpack_from(wire, body)
        start = body + _RECORD.size
        if rtype == OPT and (body != offset + 1 or not _are_options(wire[start : start + size])):
            return None
        # RFC 6891 6.1.3: the TTL field is extended RCODE, version, DO bit and zeros; the class is the payload size.
        found.append(
            Edns(payload=rclass, version=ttl >> 16 & 0xFF, dnssec_ok=bool(ttl & 0x8000)) if rtype == OPT else None
        )
        offset = start + size
    return found if offset == len(wire) else None


def _after_name(wire: bytes, offset: int) -> int | None:
    """The offset after a name that may end in a pointer, which nobody follows."""
    start = offset
    while offset < len(wire) and offset - start < MAX_NAME:
        size = wire[offset]
        if size == 0:
            return offset + 1
        if size >= 0xC0:
            return offset + 2
        if size > MAX_LABEL:
            return None
        offset += 1 + size
    return None


def _are_options(data: bytes) -> bool:
    """Whether an OPT's data is options that fill it (RFC 6891 6.1.2)."""
    offset = 0
    while offset + 4 <= len(data):
        offset += 4 + int.from_bytes(data[offset + 2 : offset + 4], "big")
    return offset == len(data)


def _fault(wire: bytes, question: tuple[tuple[bytes, ...], int] | None, rcode: Rcode) -> bytes:
    """An error, with the question where it can be read (RFC 1035 4.1.1 copies it), and an OPT where the query may have
    had one: whoever breaks an OPT is to learn that we know it (RFC 6891 7)."""
    if question is None:
        return _header_only(wire, rcode)
    labels, end = question
    header = DNSHeader(id=wire[0] << 8 | wire[1], bitmap=wire[2] << 8 & 0x7900, qr=1, ra=1, rcode=int(rcode))
    asked = DNSQuestion(DNSLabel(labels), *struct.unpack_from("!HH", wire, end - 4))
    # The type of an OPT behind the root's name; what merely looks like one costs the client eleven octets.
    options = [EDNS0(udp_len=MAX_UDP)] if b"\0\0\x29" in wire[end - 1 :] else []
    return bytes(DNSRecord(header, q=asked, ar=options).pack())


def _header_only(wire: bytes, rcode: Rcode) -> bytes:
    flags = wire[2] << 8
    header = DNSHeader(id=int.from_bytes(wire[:2], "big"), bitmap=flags & 0x7900, qr=1, ra=1, rcode=int(rcode))
    return bytes(DNSRecord(header).pack())


def reply(
    query: Query,
    limit: int,
    *,
    rcode: Rcode = Rcode.NOERROR,
    authoritative: bool = False,
    answers: Sequence[RR] = (),
    authority: Sequence[RR] = (),
    additional: Sequence[RR] = (),
) -> bytes:
    """The reply to `query` in at most `limit` octets, question in the client's case, OPT when the client sent one.

    What does not fit: additional records are left out silently (RFC 2181 9), then everything, with the truncation bit.
    """
    full = _pack(query, rcode, authoritative, answers, authority, additional)
    if len(full) <= limit:
        return full
    plain = _pack(query, rcode, authoritative, answers, authority, ())
    return plain if len(plain) <= limit else truncated(query, rcode, authoritative=authoritative)


def truncated(query: Query, rcode: Rcode = Rcode.NOERROR, *, authoritative: bool = False) -> bytes:
    """A reply that holds nothing but "ask again over TCP"."""
    return _pack(query, rcode, authoritative, (), (), (), cut=True)


def _pack(
    query: Query,
    rcode: Rcode,
    authoritative: bool,
    answers: Sequence[RR],
    authority: Sequence[RR],
    additional: Sequence[RR],
    cut: bool = False,
) -> bytes:
    flags = query.wire[2] << 8 | query.wire[3]
    # RD and CD are the client's (RFC 1035 4.1.1, RFC 4035 3.2.2); RA: we forward what is not ours.
    header = DNSHeader(
        id=query.ident, bitmap=flags & 0x0110, qr=1, aa=int(authoritative), tc=int(cut), ra=1, rcode=int(rcode) & 0xF
    )
    tail = list(additional)
    if query.edns is not None:
        tail.append(EDNS0(udp_len=MAX_UDP, ext_rcode=int(rcode) >> 4, flags="do" if query.edns.dnssec_ok else ""))
    question = DNSQuestion(DNSLabel(query.labels), query.qtype, query.qclass)
    return bytes(DNSRecord(header, q=question, rr=list(answers), auth=list(authority), ar=tail).pack())
