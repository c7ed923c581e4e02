"""One DNS query in, one reply out: the only place that knows the wire format, through dnslib. Pure.

Strict where a resolver must be (RFC 1035, 6891), because a forwarded query goes to others under our name: exactly one
question, written without compression, no answer or authority records, at most one OPT, nothing after the last record.
dnslib reads labels as UTF-8; a name with other octets in it, which no program of ours uses, is taken for malformed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum

from dnslib import EDNS0, RR, DNSBuffer, DNSError, DNSHeader, DNSLabel, DNSQuestion, DNSRecord
from dnslib.bimap import BimapError
from dnslib.buffer import BufferError as DnslibBufferError
from dnslib.label import DNSLabelError

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
# What dnslib's parsers let out on hostile input, RecursionError for long chains of compression pointers included.
_PARSE_ERRORS = (
    *(DNSError, DNSLabelError, DnslibBufferError, BimapError, struct.error),
    *(ValueError, IndexError, KeyError, TypeError, RecursionError),
)


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
    opcode = wire[2] >> 3 & 0xF
    if opcode != 0:
        return Fault(reply=_header_only(wire, Rcode.NOTIMP))
    try:
        query = _parse(wire)
    except _PARSE_ERRORS:
        query = None
    return query or Fault(reply=_header_only(wire, Rcode.FORMERR))


def _parse(wire: bytes) -> Query | None:
    buffer = DNSBuffer(wire)
    header = DNSHeader.parse(buffer)
    if (header.q, header.a, header.auth) != (1, 0, 0) or header.ar > _MAX_ADDITIONAL:
        return None
    question = DNSQuestion.parse(buffer)
    labels: tuple[bytes, ...] = question.qname.label
    end = HEADER + sum(len(label) + 1 for label in labels) + 1 + 4
    # A pointer, a label above 63 octets or a name above 255 (RFC 1035 2.3.4) is malformed in a question.
    if (
        buffer.offset != end
        or end - HEADER - 4 > 255
        or any(len(label) > 63 for label in labels)
        or question.qtype == OPT
    ):
        return None
    additional = [RR.parse(buffer) for _ in range(header.ar)]
    options = [record for record in additional if record.rtype == OPT]
    if buffer.remaining() or len(options) > 1:
        return None
    return Query(
        wire=wire,
        ident=header.id,
        labels=labels,
        name=tuple(label.lower() for label in labels),
        qtype=question.qtype,
        qclass=question.qclass,
        question_end=end,
        edns=_edns(options[0]) if options else None,
    )


def _edns(record: RR) -> Edns:
    # RFC 6891 6.1.3: the TTL field is extended RCODE, version, DO bit and zeros; the class is the payload size.
    return Edns(payload=record.rclass, version=record.ttl >> 16 & 0xFF, dnssec_ok=bool(record.ttl & 0x8000))


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
