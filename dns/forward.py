"""Queries on their way to the machine's resolvers: attempts, retries, deadlines and which answer counts. Pure.

`Forwarder` is told what happened (a query was forwarded, a datagram came, an attempt failed, time passed) and returns
orders for the edge. An *attempt* is one query to one server through a socket of its own; attempts of one query
overlap: a slow server may still answer after the next one was asked, and the first good answer wins.

The source of an answer is checked by the kernel (each attempt's socket is connected to its server), its ID and
question here. A loop through another forwarder cannot be seen, but ends: each round takes one of MAX_IN_FLIGHT
places, and then SERVFAIL runs back through it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dns import message
from dns.message import HEADER, Query, Rcode, Transport

BUDGET = 0.9
"""Seconds until SERVFAIL: within one second, the promise to the client, with room for a busy machine."""
GAP = 0.25
"""Seconds before the next server is asked as well. Above a slow resolver's usual answer, and three retries fit into
BUDGET."""
DEMOTION = 30.0
"""Seconds for which a server that answered in place of a silent one is asked first."""
MAX_IN_FLIGHT = 128
"""Queries under way. Each holds at most max(4, servers) sockets, so 512 of the usual limit of 1024 files."""
# These say "not from me" rather than "no such name": another server may know better.
_UNHELPFUL = frozenset({Rcode.FORMERR, Rcode.SERVFAIL, Rcode.NOTIMP, Rcode.REFUSED})


@dataclass(frozen=True, slots=True)
class Send:
    """Open a socket to `server`, connected, and send `data` by `transport` (TCP: with the length before it)."""

    attempt: int
    server: str
    transport: Transport
    data: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """Close the attempt's socket."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Reply:
    """The query called `token` is done: send `data` to its client."""

    token: int
    data: bytes


Command = Send | Close | Reply


@dataclass(slots=True)
class _Attempt:
    pending: _Pending
    server: str
    transport: Transport
    ident: int


@dataclass(slots=True)
class _Pending:
    token: int
    query: Query
    transport: Transport
    servers: tuple[str, ...]
    deadline: float
    gap: float
    next_try: float
    tries: int = 0
    attempts: set[int] = field(default_factory=set)
    out: set[str] = field(default_factory=set)
    """Servers that failed in so many words; they are not asked again."""
    unhelpful: bytes | None = None
    truncated: bytes | None = None


class Forwarder:
    """All queries under way."""

    def __init__(self, servers: tuple[str, ...], *, ident: Callable[[], int]) -> None:
        """`servers` are IP addresses in order of preference; `ident` gives an unpredictable query ID, 0 to 65535."""
        self.servers = servers
        self._ident = ident
        self._pending: dict[int, _Pending] = {}
        self._attempts: dict[int, _Attempt] = {}
        self._last_attempt = 0
        self._preferred: tuple[str, float] = ("", 0.0)

    def __len__(self) -> int:
        return len(self._pending)

    def wake_at(self) -> float | None:
        """When `passed` has something to do; None while nothing is under way."""
        return min((min(p.deadline, p.next_try) for p in self._pending.values()), default=None)

    def forward(self, token: int, query: Query, transport: Transport, now: float) -> list[Command]:
        """A client's query, called `token` from now on, is to be forwarded. Ends in exactly one Reply, unless
        forgotten."""
        if not self.servers or len(self._pending) >= MAX_IN_FLIGHT:
            return [Reply(token, _servfail(query, transport))]
        servers = self._order(now)
        gap = min(GAP, BUDGET / (len(servers) + 1))
        pending = _Pending(token, query, transport, servers, deadline=now + BUDGET, gap=gap, next_try=now)
        self._pending[token] = pending
        return self._ask_next(pending, now)

    def forget(self, token: int) -> list[Command]:
        """The client of `token` is gone."""
        pending = self._pending.pop(token, None)
        return self._close_all(pending) if pending else []

    def received(self, attempt: int, data: bytes, now: float) -> list[Command]:
        """`data` came on the attempt's socket. What is no answer to its question is ignored (a late or forged
        datagram)."""
        this = self._attempts.get(attempt)
        if this is None or not _answers(data, this):
            return []
        pending = this.pending
        rcode = data[3] & 0xF
        if rcode in _UNHELPFUL:
            pending.unhelpful = data
            return self.failed(attempt, now)
        if data[2] & 0x02 and this.transport is Transport.UDP:
            pending.truncated = data
            again = self._ask(pending, this.server, Transport.TCP)
            pending.next_try = now + pending.gap
            return [*self._close(attempt), again]
        self._learn(pending, this.server, now)
        return self._finish(pending, data)

    def failed(self, attempt: int, now: float) -> list[Command]:
        """The attempt cannot succeed any more: refused, unreachable, closed, or an answer that helps nobody."""
        this = self._attempts.get(attempt)
        if this is None:
            return []
        pending = this.pending
        commands = self._close(attempt)
        pending.out.add(this.server)
        if len(pending.out) == len(pending.servers):
            return commands if pending.attempts else commands + self._give_up(pending)
        # A server still being waited for keeps its time; one not asked yet is asked at once.
        if pending.tries < len(pending.servers):
            commands += self._ask_next(pending, now)
        return commands

    def passed(self, now: float) -> list[Command]:
        """Time went by: retries and expiries that are due."""
        commands: list[Command] = []
        for pending in list(self._pending.values()):
            if now >= pending.deadline:
                commands += self._give_up(pending)
            elif now >= pending.next_try:
                commands += self._ask_next(pending, now)
        return commands

    def _order(self, now: float) -> tuple[str, ...]:
        server, until = self._preferred
        if now >= until or server not in self.servers:
            return self.servers
        start = self.servers.index(server)
        return self.servers[start:] + self.servers[:start]

    def _learn(self, pending: _Pending, server: str, now: float) -> None:
        # Only silence costs the next query time. A first server that refuses some names is asked first again: servers
        # that know different names are told apart by nothing but their order.
        if server != pending.servers[0] and pending.servers[0] not in pending.out:
            self._preferred = (server, now + DEMOTION)

    def _ask_next(self, pending: _Pending, now: float) -> list[Command]:
        pending.next_try = now + pending.gap
        for _ in pending.servers:
            server = pending.servers[pending.tries % len(pending.servers)]
            pending.tries += 1
            if server not in pending.out:
                return [self._ask(pending, server, Transport.UDP)]
        pending.next_try = pending.deadline
        return []

    def _ask(self, pending: _Pending, server: str, transport: Transport) -> Send:
        self._last_attempt += 1
        ident = self._ident()
        self._attempts[self._last_attempt] = _Attempt(pending, server, transport, ident)
        pending.attempts.add(self._last_attempt)
        return Send(self._last_attempt, server, transport, ident.to_bytes(2, "big") + pending.query.wire[2:])

    def _give_up(self, pending: _Pending) -> list[Command]:
        # A cut answer tells a UDP client to come back by TCP, and old musl uses what is in it; to a TCP client it is
        # no answer.
        if pending.truncated is not None and pending.transport is Transport.UDP:
            return self._finish(pending, pending.truncated)
        return self._finish(pending, pending.unhelpful or _servfail(pending.query, pending.transport))

    def _finish(self, pending: _Pending, data: bytes) -> list[Command]:
        del self._pending[pending.token]
        if len(data) > pending.query.limit(pending.transport):
            data = pending.truncated or b""
            if not 0 < len(data) <= pending.query.limit(pending.transport):
                data = message.truncated(pending.query)
        return [Reply(pending.token, _for_client(data, pending.query)), *self._close_all(pending)]

    def _close(self, attempt: int) -> list[Command]:
        self._attempts.pop(attempt).pending.attempts.discard(attempt)
        return [Close(attempt)]

    def _close_all(self, pending: _Pending) -> list[Command]:
        return [command for attempt in sorted(pending.attempts) for command in self._close(attempt)]


def _for_client(data: bytes, query: Query) -> bytes:
    """`data` with the client's ID, and its question as the client wrote it: the server may have changed the case."""
    if data[4:6] != b"\0\1":
        return query.wire[:2] + data[2:]
    return query.wire[:2] + data[2:HEADER] + query.wire[HEADER : query.question_end] + data[query.question_end :]


def _servfail(query: Query, transport: Transport) -> bytes:
    return message.reply(query, query.limit(transport), rcode=Rcode.SERVFAIL)


def _answers(data: bytes, attempt: _Attempt) -> bool:
    """True when `data` is a reply to the attempt's question: its ID, and its question in any case."""
    if len(data) < HEADER or int.from_bytes(data[:2], "big") != attempt.ident or data[2] & 0xF8 != 0x80:
        return False
    questions = int.from_bytes(data[4:6], "big")
    # A server that could not read the query may leave the question out; such an answer never succeeds (RFC 1035 4.1.1).
    if questions == 0:
        return data[3] & 0xF in _UNHELPFUL
    query = attempt.pending.query
    end = query.question_end
    same_name = data[HEADER : end - 4].lower() == query.wire[HEADER : end - 4].lower()
    return questions == 1 and same_name and data[end - 4 : end] == query.wire[end - 4 : end]
