"""What to do with a query: answer it from the zone, forward it, refuse it or drop it. Pure.

Never NXDOMAIN from a zone that is not loaded: names that could be ours get SERVFAIL, which no resolver remembers as
absence.
"""

from __future__ import annotations

from dataclasses import dataclass

from dnslib import NS, PTR, RR, SOA, SRV, A, DNSLabel

from dns import message
from dns.message import IN, Fault, Query, Rcode, Transport
from dns.zone import APEX, NEGATIVE_TTL, SERVER, TTL, Name, SrvTarget, Zone, could_be_ours, parse_name, peer_name

_A, _NS, _SOA, _PTR, _SRV, _IXFR, _AXFR, _ANY = 1, 2, 6, 12, 33, 251, 252, 255
_Key = tuple[Transport, bytes, bytes, bytes]
_MEMO_ENTRIES = 2048
"""Twice, with the two limits below: 4 MiB each at the very most, and room for 1,000 routes asked for A and AAAA."""
_MEMO_QUERY = 512
_MEMO_REPLY = 1232


@dataclass(frozen=True, slots=True)
class Answer:
    """Send this."""

    wire: bytes


@dataclass(frozen=True, slots=True)
class Refuse:
    """Send this error."""

    wire: bytes


@dataclass(frozen=True, slots=True)
class Forward:
    """Not ours: ask the machine's resolvers."""

    query: Query


@dataclass(frozen=True, slots=True)
class Drop:
    """Say nothing."""


Outcome = Answer | Refuse | Forward | Drop


class Resolver:
    """`resolve` for one zone, with a bounded memory of answers already encoded.

    A stub resolver repeats itself to the bit except for the ID and, with 0x20 mixing, the case of the name; so that
    is what the memory leaves out and what is patched into a remembered reply. Working it out with dnslib takes 30
    times as long.
    """

    def __init__(self, zone: Zone | None, search: tuple[Name, ...] = ()) -> None:
        self.zone = zone
        self.search = search
        self._memo: dict[_Key, bytes] = {}
        self._lent: dict[_Key, bytes] = {}

    def resolve(self, wire: bytes, transport: Transport) -> Outcome:
        """As the function of the same name."""
        # Up to the first zero octet, which ends the name as a rule, case is left out. No other query has the same key:
        # lower() leaves length octets, at most 63 in a remembered query, as they are.
        end, key = _remembered_as(wire, transport)
        known = self._memo.get(key) or self._lent.get(key)
        if known is not None:
            return Answer(wire[:2] + known[2 : message.HEADER] + wire[message.HEADER : end] + known[end:])
        query = message.parse(wire)
        outcome = resolve(query, self.zone, transport, self.search)
        if isinstance(outcome, Answer):
            self._remember(key, outcome.wire, len(wire))
        return outcome

    def lend(self, wire: bytes, transport: Transport, reply: bytes) -> None:
        """Remembers somebody else's answer to `wire`, which was to be forwarded, until `expire`."""
        _keep(self._lent, _remembered_as(wire, transport)[1], reply, len(wire))

    def expire(self) -> None:
        """Forgets others' answers: their TTLs have changed."""
        self._lent.clear()

    def _remember(self, key: _Key, reply: bytes, query_size: int) -> None:
        _keep(self._memo, key, reply, query_size)


def _remembered_as(wire: bytes, transport: Transport) -> tuple[int, _Key]:
    end = wire.find(0, message.HEADER)
    return end, (transport, wire[2 : message.HEADER], wire[message.HEADER : end].lower(), wire[end:])


def _keep(memo: dict[_Key, bytes], key: _Key, reply: bytes, query_size: int) -> None:
    if query_size > _MEMO_QUERY or len(reply) > _MEMO_REPLY:
        return
    if len(memo) >= _MEMO_ENTRIES:
        memo.clear()
    memo[key] = reply


def resolve(
    query: bytes | Query | Fault, zone: Zone | None, transport: Transport, search: tuple[Name, ...] = ()
) -> Outcome:
    """What to do with `query` (bytes or parsed) that came by `transport`; `zone` is None until one has been loaded,
    `search` are the domains that stub resolvers here put behind names."""
    if isinstance(query, bytes):
        query = message.parse(query)
    if isinstance(query, Fault):
        return Drop() if query.reply is None else Refuse(query.reply)
    limit = query.limit(transport)
    rcode = _refusal(query, zone, search)
    if rcode is not None:
        return Refuse(message.reply(query, limit, rcode=rcode))
    owner = (zone.owner(query.name) or zone.searched(query.name, search)) if zone else None
    if zone is None or owner is None:
        return Forward(query)
    return Answer(_answer(query, zone, owner, limit))


def _refusal(query: Query, zone: Zone | None, search: tuple[Name, ...]) -> Rcode | None:
    if query.edns is not None and query.edns.version != 0:
        return Rcode.BADVERS
    # Other classes ask about the server itself (CHAOS `version.bind`); a transfer would hand out the whole table.
    if query.qclass != IN or query.qtype in (_AXFR, _IXFR):
        return Rcode.REFUSED
    return Rcode.SERVFAIL if zone is None and could_be_ours(query.name, search) else None


def _answer(query: Query, zone: Zone, owner: Name, limit: int) -> bytes:
    asked = DNSLabel(query.labels)
    answers: list[RR] = []
    additional: list[RR] = []
    address = zone.addresses.get(query.name)
    if address is not None and query.qtype in (_A, _ANY):
        answers.append(RR(asked, _A, ttl=TTL, rdata=A(address)))
    if query.qtype in (_SRV, _ANY):
        for target in zone.services.get(query.name, ()):
            answers.append(_service(asked, target))
            additional.append(_glue(zone, target))
    if query.qtype in (_PTR, _ANY) and query.name in zone.pointers:
        answers.append(RR(asked, _PTR, ttl=TTL, rdata=PTR(DNSLabel(zone.pointers[query.name]))))
    if query.name == owner and query.name in zone.names:
        if query.qtype in (_SOA, _ANY):
            answers.append(_soa(asked, zone.serial))
        if query.qtype in (_NS, _ANY):
            answers.append(RR(asked, _NS, ttl=TTL, rdata=NS(DNSLabel(SERVER))))
            if SERVER in zone.addresses:
                additional.append(RR(DNSLabel(SERVER), _A, ttl=TTL, rdata=A(zone.addresses[SERVER])))
    if answers:
        return message.reply(query, limit, authoritative=True, answers=answers, additional=_unique(additional))
    # RFC 2308: the SOA in the authority section is what lets a resolver remember the absence, for NEGATIVE_TTL.
    rcode = Rcode.NOERROR if query.name in zone.names else Rcode.NXDOMAIN
    authority = [_soa(DNSLabel(owner), zone.serial)]
    return message.reply(query, limit, rcode=rcode, authoritative=True, authority=authority)


def _service(asked: DNSLabel, target: SrvTarget) -> RR:
    host = DNSLabel(parse_name(peer_name(target.peer_id)))
    return RR(asked, _SRV, ttl=TTL, rdata=SRV(target.priority, target.weight, target.port, host))


def _glue(zone: Zone, target: SrvTarget) -> RR:
    name = parse_name(peer_name(target.peer_id))
    return RR(DNSLabel(name), _A, ttl=TTL, rdata=A(zone.addresses[name]))


def _unique(records: list[RR]) -> list[RR]:
    return list({record.rname.label: record for record in records}.values())


def _soa(owner: DNSLabel, serial: int) -> RR:
    # Refresh, retry and expire only matter to secondaries, which there are none of; the last time is the negative TTL.
    times = (serial, 3600, 600, 86400, NEGATIVE_TTL)
    return RR(owner, _SOA, ttl=NEGATIVE_TTL, rdata=SOA(DNSLabel(SERVER), DNSLabel((b"hostmaster", APEX)), times))
