"""Queries on their way to the machine's resolvers: attempts, retries, deadlines and which answer counts. Pure.

`Forwarder` is told what happened (a query was forwarded, a datagram came, an attempt failed, time passed) and returns
orders for the edge. A *question* is what clients ask alike: name, type, flags and EDNS; it is asked once, however many
clients wait for it, and its answer is kept (`dns.cache`). An *attempt* is one question to one server through a socket
of its own; attempts of one question overlap: a slow server may still answer after the next one was asked, and the first
good answer wins.

The source of an answer is checked by the kernel (each attempt's socket is connected to its server), its ID and
question here, its records by `dns.records`.

A *loop* is a server that asks us in turn. Its question equals the one under way, so it waits with the others and
nothing multiplies. Where an equal question waits for longer than LOOP_AFTER, each server is asked for a name that
nobody else can know, below the one in question; when somebody asks us for it, that server leads back here and has
failed.

Long because all decisions about a question under way are in one place: they depend on each other.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from dns import message, records
from dns.cache import Cache, aged
from dns.message import HEADER, MAX_NAME, Query, Rcode, Transport
from dns.records import Reading

PATIENCE = 10.0
"""Seconds until SERVFAIL, unless resolv.conf says otherwise: as long as a stub resolver asks one server by default (5
s, twice; resolv.conf(5)). Whoever gives up sooner does so by its own clock."""
GAP = 0.25
"""Seconds before the next server is asked as well: above a near resolver's usual answer."""
AGAIN = 1.0
"""Seconds before all servers are asked again, and up to half as many more, doubled each time: a datagram that was lost
costs this, and a resolver that takes seconds over a cold name is not flooded."""
BURST = 256
"""Datagrams that may go out together. Linux keeps some 270 small ones for a server that does not read just now."""
RATE = 10_000.0
"""Datagrams a second after that: 5,000 look-ups are on their way in half a second, and nobody's buffer overflows who
answers as many."""
PACE = 0.005
"""Seconds between two looks at who may be asked next."""
DEMOTION = 30.0
"""Seconds for which a server that answered in place of a silent one is asked first."""
STALE_AFTER = 1.8
"""Seconds after which an answer past its end is given while no server answers (RFC 8767 5)."""
STALE_RETRY = 5.0
"""Seconds for which it is given at once after that: clients do not wait 1.8 s each while all servers are away. RFC 8767
5 has up to 30; less, so that what comes back is seen soon."""
LOOP_AFTER = 0.1
"""Seconds: clients that ask alike at once are as a rule answered sooner, and make no look-up more."""
MAX_WAITING = 16384
"""Clients that wait. A burst of 5,000 has its place three times over, at some 500 octets each."""
MAX_ATTEMPTS = 8192
"""Attempts under way, a socket each; the edge lowers it to what it may open. Further questions wait for a place."""
# These say "not from me" rather than "no such name": another server may know better.
_UNHELPFUL = frozenset({Rcode.FORMERR, Rcode.SERVFAIL, Rcode.NOTIMP, Rcode.REFUSED})
_SLACK = 64
"""Alarms that may be behind; more than these and four for each question are cleared away together."""
_LABEL = 16
"""Hex digits of the label that makes a probe's name one of a kind: 64 bits of chance."""
# RD, AD and CD are what an answer depends on (RFC 1035 4.1.1, 6840 5.7, 4035 3.2.2).
_FLAGS = 0x0130

Key = tuple[int, bytes, int | None, bool]


@dataclass(frozen=True, slots=True)
class Send:
    """Open a socket to `server`, connected, and send `data` by `transport` (TCP: with the length before it)."""

    attempt: int
    server: str
    transport: Transport
    data: bytes


@dataclass(frozen=True, slots=True)
class Again:
    """Send the attempt's datagram once more, by its socket."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Close:
    """Close the attempt's socket."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Reply:
    """The query called `token` is done: send `data` to its client."""

    token: int
    data: bytes


Command = Send | Again | Close | Reply


@dataclass(slots=True)
class _Attempt:
    question: _Question
    server: str
    transport: Transport
    ident: int
    probe: bytes = b""
    """The name that is asked for, in lower case, when this only looks for a loop."""


@dataclass(slots=True, eq=False)
class _Question:
    key: Key | None
    query: Query
    """The first client's, whose octets are sent."""
    waiting: dict[int, tuple[Query, Transport]]
    servers: tuple[str, ...]
    began: float
    deadline: float
    next_try: float
    stale_at: float
    probe_at: float = float("inf")
    alarm: int = 0
    tries: int = 0
    again: float = AGAIN
    attempts: set[int] = field(default_factory=set)
    out: set[str] = field(default_factory=set)
    """Servers that failed in so many words; they are not asked again."""
    unhelpful: Rcode | None = None
    truncated: bytes | None = None
    probed: bool = False
    ended: bool = False


class Forwarder:
    """All questions under way, and the answers that were had."""

    def __init__(self, servers: tuple[str, ...], *, ident: Callable[[], int], room: int = MAX_ATTEMPTS) -> None:
        """`servers` are IP addresses in order of preference; `ident` gives unpredictable numbers, 0 to 65535; `room` is
        how many attempts there may be at once."""
        self._servers = servers
        self.patience = PATIENCE
        self._ident = ident
        self._room = room
        self._cache = Cache()
        self._questions: dict[Key, _Question] = {}
        self._clients: dict[int, _Question] = {}
        self._queue: deque[_Question] = deque()
        self._attempts: dict[int, _Attempt] = {}
        self._probes: dict[bytes, int] = {}
        self._last_attempt = 0
        self._preferred: tuple[str, float] = ("", 0.0)
        self._alarms: list[tuple[float, int]] = []
        """A heap of times and numbers; a number that `_due` does not have was taken back."""
        self._due: dict[int, _Question] = {}
        self._last_alarm = 0
        self._now = float("-inf")
        self._tokens = float(BURST)

    def __len__(self) -> int:
        return len(self._clients)

    @property
    def servers(self) -> tuple[str, ...]:
        """Whom it asks."""
        return self._servers

    @servers.setter
    def servers(self, servers: tuple[str, ...]) -> None:
        if servers != self._servers:
            # Another network, or another view of the same names.
            self._cache.clear()
        self._servers = servers

    def wake_at(self) -> float | None:
        """When `passed` has something to do; None while nothing is under way."""
        while self._alarms and self._alarms[0][1] not in self._due:
            heapq.heappop(self._alarms)
        wake = self._alarms[0][0] if self._alarms else None
        if self._queue and len(self._attempts) < self._room:
            paced = self._now + max(PACE, (1 - self._tokens) / RATE)
            return paced if wake is None else min(wake, paced)
        return wake

    def _turn(self, now: float) -> None:
        """It is `now`; with time comes leave to send."""
        if now > self._now:
            self._tokens = min(float(BURST), self._tokens + (now - self._now) * RATE)
            self._now = now

    def forward(self, token: int, query: Query, transport: Transport, now: float) -> list[Command]:
        """A client's query, called `token` from now on, is to be forwarded. Ends in exactly one Reply, unless
        forgotten."""
        self._turn(now)
        if query.wire[HEADER : query.question_end - 4].lower() in self._probes:
            return [Reply(token, _error(query, transport)), *self._found_loop(query)]
        key = _key(query)
        stored = self._cache.get(key, now) if key is not None else None
        if stored is not None and (now < stored.until or now < stored.retry_at):
            return [Reply(token, _for_client(aged(stored, now), query, transport))]
        known = self._questions.get(key) if key is not None else None
        if len(self._clients) >= MAX_WAITING:
            return [Reply(token, _error(query, transport))]
        if known is not None:
            return self._join(known, token, query, transport, now)
        if not self._servers:
            data = aged(stored, now) if stored is not None else None
            return [Reply(token, _for_client(data, query, transport) if data else _error(query, transport))]
        question = _Question(
            key=key, query=query, waiting={token: (query, transport)}, servers=self._order(now), began=now,
            deadline=now + self.patience, next_try=now, stale_at=now + STALE_AFTER if stored else float("inf"),
        )  # fmt: skip
        if key is not None:
            self._questions[key] = question
        self._clients[token] = question
        if self._queue or not self._may_send():
            self._queue.append(question)
            question.next_try = question.deadline
            self._set_alarm(question)
            return []
        return self._ask_next(question)

    def forget(self, token: int) -> list[Command]:
        """The client of `token` is gone."""
        question = self._clients.pop(token, None)
        if question is None:
            return []
        del question.waiting[token]
        return [] if question.waiting else self._end(question)

    def received(self, attempt: int, data: bytes, now: float) -> list[Command]:
        """`data` came on the attempt's socket. What is no answer to its question is ignored (a late or forged
        datagram)."""
        self._turn(now)
        this = self._attempts.get(attempt)
        if this is None or not _answers(data, this):
            return []
        if this.probe:
            return self._close(attempt) + self._fill()
        question = this.question
        if data[3] & 0xF in _UNHELPFUL:
            question.unhelpful = Rcode(data[3] & 0xF)
            return self.failed(attempt, now)
        reading = records.read(data, question.query.question_end)
        if data[2] & 0x02 and this.transport is Transport.UDP:
            # A cut reply is often cut through a record: it says that there is more, and no more than that.
            question.truncated = reading.wire if reading is not None else b""
            question.next_try = now + GAP
            again = self._ask(question, this.server, Transport.TCP)
            self._set_alarm(question)
            return [*self._close(attempt), again]
        if reading is None or reading.rcode > 0xF:
            return self.failed(attempt, now)
        self._learn(question, this.server)
        return self._finish(question, reading)

    def failed(self, attempt: int, now: float) -> list[Command]:
        """The attempt cannot succeed any more: refused, unreachable, closed, or an answer that helps nobody."""
        self._turn(now)
        this = self._attempts.get(attempt)
        if this is None:
            return []
        commands = self._close(attempt)
        if this.probe:
            return commands + self._fill()
        question = this.question
        question.out.add(this.server)
        if len(question.out) == len(question.servers):
            return commands if self._is_asked(question) else commands + self._give_up(question)
        # A server still being waited for keeps its time; one not asked yet is asked at once.
        if question.tries < len(question.servers):
            commands += self._ask_next(question)
        return commands + self._fill()

    def passed(self, now: float) -> list[Command]:
        """Time went by: retries and expiries that are due."""
        self._turn(now)
        commands = self._fill()
        while self._alarms and self._alarms[0][0] <= now:
            if self._alarms[0][1] not in self._due:
                heapq.heappop(self._alarms)
                continue
            question = self._due.pop(heapq.heappop(self._alarms)[1])
            if now >= question.deadline:
                commands += self._give_up(question)
                continue
            if now >= question.stale_at:
                commands += self._give_stale(question)
            if now >= question.probe_at:
                commands += self._probe(question)
            if now >= question.next_try:
                commands += self._ask_next(question)
            else:
                self._set_alarm(question)
        return commands

    # ---- who is asked

    def _order(self, now: float) -> tuple[str, ...]:
        server, until = self._preferred
        if now >= until or server not in self._servers:
            return self._servers
        start = self._servers.index(server)
        return self._servers[start:] + self._servers[:start]

    def _learn(self, question: _Question, server: str) -> None:
        # Only silence costs the next query time. A first server that refuses some names is asked first again: servers
        # that know different names are told apart by nothing but their order.
        if server != question.servers[0] and question.servers[0] not in question.out:
            self._preferred = (server, self._now + DEMOTION)

    def _join(self, question: _Question, token: int, query: Query, transport: Transport, now: float) -> list[Command]:
        question.waiting[token] = (query, transport)
        self._clients[token] = question
        # Whoever comes later has patience of its own; twice is the end, or a loop would never have one.
        question.deadline = max(question.deadline, min(now + self.patience, question.began + 2 * self.patience))
        if not question.probed:
            question.probed = True
            question.probe_at = max(now, question.began + LOOP_AFTER)
        self._set_alarm(question)
        return []

    def _ask_next(self, question: _Question) -> list[Command]:
        """The next server that was not asked; all that are waited for once more when there is none."""
        # The first attempt has its place by now; others wait for one like everybody.
        if question.attempts and not self._may_send():
            question.next_try = self._now + GAP + self._chance(GAP)
            self._set_alarm(question)
            return []
        commands: list[Command] = []
        while question.tries < len(question.servers) and not commands:
            server = question.servers[question.tries]
            question.tries += 1
            if server not in question.out:
                commands.append(self._ask(question, server, Transport.UDP))
        if commands:
            last = question.tries == len(question.servers)
            gap = min(GAP, AGAIN / len(question.servers))
            question.next_try = self._now + (question.again + self._chance(question.again / 2) if last else gap)
        else:
            open_ones = [(number, self._attempts[number]) for number in sorted(question.attempts)]
            commands += [Again(number) for number, it in open_ones if it.transport is Transport.UDP and not it.probe]
            question.again *= 2
            question.next_try = self._now + question.again + self._chance(question.again / 2)
        self._tokens -= len(commands)
        self._set_alarm(question)
        return commands

    def _may_send(self) -> bool:
        return len(self._attempts) < self._room and self._tokens >= 1

    def _chance(self, most: float) -> float:
        """0 to `most` seconds: what was sent together, and lost together, is not sent together once more."""
        return self._ident() / 65536 * most

    def _ask(self, question: _Question, server: str, transport: Transport) -> Send:
        data = question.query.wire if question.key is None else _upstream(question.query)
        return self._send(_Attempt(question, server, transport, self._ident()), data)

    def _send(self, attempt: _Attempt, data: bytes) -> Send:
        self._last_attempt += 1
        self._attempts[self._last_attempt] = attempt
        attempt.question.attempts.add(self._last_attempt)
        wire = attempt.ident.to_bytes(2, "big") + data[2:]
        return Send(self._last_attempt, attempt.server, attempt.transport, wire)

    def _fill(self) -> list[Command]:
        """Questions that waited for a place, as far as there are places."""
        commands: list[Command] = []
        while self._queue and self._may_send():
            question = self._queue.popleft()
            if not question.ended:
                commands += self._ask_next(question)
        return commands

    # ---- loops

    def _probe(self, question: _Question) -> list[Command]:
        """Asks each server that is waited for for a name of chance."""
        question.probe_at = float("inf")
        query = question.query
        if query.question_end - 4 - HEADER + 1 + _LABEL > MAX_NAME:
            return []
        commands: list[Command] = []
        for number in sorted(question.attempts):
            if len(self._attempts) >= self._room:
                break
            label = b"".join(b"%04x" % self._ident() for _ in range(_LABEL // 4))
            asked = bytes([_LABEL]) + label + query.wire[HEADER : query.question_end - 4]
            probe = _Attempt(question, self._attempts[number].server, Transport.UDP, self._ident(), asked.lower())
            tail = query.wire[query.question_end - 4 : query.question_end]
            command = self._send(probe, query.wire[:4] + b"\0\1" + bytes(6) + asked + tail)
            self._probes[probe.probe] = command.attempt
            commands.append(command)
        return commands

    def _found_loop(self, query: Query) -> list[Command]:
        """Somebody asks for a name that only one server was told."""
        number = self._probes[query.wire[HEADER : query.question_end - 4].lower()]
        probe = self._attempts[number]
        commands = self._close(number)
        for other in sorted(probe.question.attempts):
            it = self._attempts.get(other)
            if it is not None and it.server == probe.server and not it.probe:
                commands += self.failed(other, self._now)
        return commands

    def _is_asked(self, question: _Question) -> bool:
        return any(not self._attempts[number].probe for number in question.attempts)

    # ---- how it ends

    def _give_stale(self, question: _Question) -> list[Command]:
        """Those who wait get what there is, if there is any; the question goes on, so that the next ones get better."""
        question.stale_at = float("inf")
        stored = self._cache.get(question.key, self._now) if question.key is not None else None
        if stored is None:
            return []
        stored.retry_at = self._now + STALE_RETRY
        return self._reply_all(question, aged(stored, self._now))

    def _give_up(self, question: _Question) -> list[Command]:
        stale = self._give_stale(question)
        if stale:
            return stale + self._end(question)
        commands: list[Command] = []
        for token, (query, transport) in question.waiting.items():
            # A cut answer tells a UDP client to come back by TCP, and old musl uses what is in it; to a TCP client it
            # is no answer.
            if question.truncated is not None and transport is Transport.UDP:
                data = _for_client(question.truncated, query, transport)
            else:
                data = _error(query, transport, question.unhelpful or Rcode.SERVFAIL)
            commands.append(Reply(token, data))
        return commands + self._end(question)

    def _finish(self, question: _Question, reading: Reading) -> list[Command]:
        if question.key is not None:
            self._cache.put(question.key, reading, self._now)
        return self._reply_all(question, reading.wire, question.truncated) + self._end(question)

    def _reply_all(self, question: _Question, wire: bytes, cut: bytes | None = None) -> list[Command]:
        replies: list[Command] = [
            Reply(token, _for_client(wire, query, transport, cut))
            for token, (query, transport) in question.waiting.items()
        ]
        for token in question.waiting:
            del self._clients[token]
        question.waiting.clear()
        return replies

    def _end(self, question: _Question) -> list[Command]:
        """The question is no more: its sockets close, and others have their place."""
        for token in question.waiting:
            self._clients.pop(token, None)
        question.waiting.clear()
        question.ended = True
        self._due.pop(question.alarm, None)
        if question.key is not None:
            self._questions.pop(question.key, None)
        commands = [command for number in sorted(question.attempts) for command in self._close(number)]
        return commands + self._fill()

    def _close(self, number: int) -> list[Command]:
        attempt = self._attempts.pop(number)
        attempt.question.attempts.discard(number)
        self._probes.pop(attempt.probe, None)
        return [Close(number)]

    def _set_alarm(self, question: _Question) -> None:
        self._due.pop(question.alarm, None)
        self._last_alarm += 1
        question.alarm = self._last_alarm
        self._due[question.alarm] = question
        wake = min(question.deadline, question.next_try, question.stale_at, question.probe_at)
        heapq.heappush(self._alarms, (wake, question.alarm))
        if len(self._alarms) > 4 * len(self._due) + _SLACK:
            self._alarms = [alarm for alarm in self._alarms if alarm[1] in self._due]
            heapq.heapify(self._alarms)


def _key(query: Query) -> Key | None:
    """What makes questions equal; None for one that is like no other, because a signature covers its octets."""
    if query.signed:
        return None
    wire, end = query.wire, query.question_end
    flags = (wire[2] << 8 | wire[3]) & _FLAGS
    edns = query.edns
    asked = wire[HEADER : end - 4].lower() + wire[end - 4 : end]
    return (flags, asked, query.limit(Transport.UDP) if edns else None, edns is not None and edns.dnssec_ok)


def _upstream(query: Query) -> bytes:
    """The query as servers get it. Of the client's EDNS only the size and DO go on: options are between neighbours (RFC
    6891 6.1.1), and one who sends cookies is to share answers with one who does not."""
    wire, end = query.wire, query.question_end
    flags = (wire[2] << 8 | wire[3]) & _FLAGS
    head = wire[:2] + flags.to_bytes(2, "big") + b"\0\1\0\0\0\0"
    return head + (b"\0\1" if query.edns else b"\0\0") + wire[HEADER:end] + _opt(query, query.limit(Transport.UDP))


def _opt(query: Query, size: int) -> bytes:
    """The OPT beside `query`; nothing when the client sent none."""
    if query.edns is None:
        return b""
    return b"\0\0\x29" + size.to_bytes(2, "big") + (b"\0\0\x80\0" if query.edns.dnssec_ok else bytes(4)) + b"\0\0"


def _for_client(data: bytes, query: Query, transport: Transport, cut: bytes | None = None) -> bytes:
    """`data`, an answer without OPT, under the client's ID and with its question as it wrote it, in the size that it
    takes; what does not fit is `cut`, when that does, or nothing but the word that there is more."""
    end, limit = query.question_end, query.limit(transport)
    option = _opt(query, message.MAX_UDP)
    for wire in (data, cut):
        if wire and len(wire) + len(option) <= limit:
            additional = int.from_bytes(wire[10:HEADER], "big") + (1 if option else 0)
            head = query.wire[:2] + wire[2:10] + additional.to_bytes(2, "big")
            return head + query.wire[HEADER:end] + wire[end:] + option
    return message.truncated(query)


def _error(query: Query, transport: Transport, rcode: Rcode = Rcode.SERVFAIL) -> bytes:
    return message.reply(query, query.limit(transport), rcode=rcode)


def _answers(data: bytes, attempt: _Attempt) -> bool:
    """True when `data` is a reply to the attempt's question: its ID, and its question in any case."""
    if len(data) < HEADER or int.from_bytes(data[:2], "big") != attempt.ident or data[2] & 0xF8 != 0x80:
        return False
    if attempt.probe:
        return True
    questions = int.from_bytes(data[4:6], "big")
    # A server that could not read the query may leave the question out; such an answer never succeeds (RFC 1035 4.1.1).
    if questions == 0:
        return data[3] & 0xF in _UNHELPFUL
    query = attempt.question.query
    end = query.question_end
    same_name = data[HEADER : end - 4].lower() == query.wire[HEADER : end - 4].lower()
    return questions == 1 and same_name and data[end - 4 : end] == query.wire[end - 4 : end]
