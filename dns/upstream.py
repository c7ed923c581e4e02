"""The sockets of forwarded queries: carries out what `dns.forward` orders and tells it what came of it. An edge.

Callbacks only, no tasks. Each attempt has a socket of its own while it lasts: the kernel gives it a random source port
and, as it is connected, drops datagrams from anyone else. A UDP socket whose attempt was answered may have a few more
attempts at the same server, within a second: making and closing one costs three times what a question does, and a port
that is open so briefly is no help to whoever has to guess it and the ID. resolv.conf is looked at once a second at
most, while queries come.
"""

from __future__ import annotations

import asyncio
import errno
import resource
import secrets
import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path

from dns import resolvconf
from dns.forward import MAX_ATTEMPTS, Again, Close, Command, Forwarder, Reply, Send
from dns.message import MAX_TCP, Query, Transport

CHECK_EVERY = 1.0
"""Seconds between two looks at resolv.conf: a stat() a second costs nothing, and a new network is taken up at once."""
MAX_USES = 16
"""Attempts that one UDP socket has at most."""
MAX_IDLE = 32
"""Sockets kept for the next attempts: as many as questions are under way at once in a busy CVM."""
IDLE_SECONDS = 1.0
"""After this they close."""
MAX_SEARCH = 64
"""Search domains that are remembered. A resolv.conf has a handful, and changes when the machine changes networks."""
_Stamp = tuple[int, int, int, int]


class _Exchange:
    """One attempt's socket."""

    __slots__ = ("answered", "attempt", "data", "incoming", "server", "since", "sock", "transport", "uses")

    def __init__(self, order: Send, sock: socket.socket) -> None:
        self.attempt = order.attempt
        self.server = order.server
        self.uses = 1
        self.since = 0.0
        self.answered = False
        self.transport = order.transport
        self.data = order.data
        self.incoming = bytearray()
        self.sock = sock


class Upstream:
    """Forwards queries and calls back with each reply."""

    def __init__(self, path: Path, port: int, is_self: Callable[[str, int], bool]) -> None:
        """`path` is the original resolv.conf; `port` is the servers' port; `is_self` tells whether a server would be
        us."""
        self._path = path
        self._port = port
        self._is_self = is_self
        self._loop = asyncio.get_running_loop()
        self._forwarder = Forwarder((), ident=lambda: secrets.randbits(16), room=_room())
        self._search: tuple[str, ...] = ()
        self._addresses: dict[tuple[str, socket.SocketKind], tuple[int, tuple[object, ...]]] = {}
        self._exchanges: dict[int, _Exchange] = {}
        self._idle: deque[_Exchange] = deque()
        """Sockets without an attempt, the one idle longest first."""
        self._sweep: asyncio.TimerHandle | None = None
        self._clients: dict[int, Callable[[bytes], None]] = {}
        self._last_token = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._stamp: _Stamp | None = None
        self._checked_at = float("-inf")

    def __len__(self) -> int:
        return len(self._forwarder)

    @property
    def servers(self) -> tuple[str, ...]:
        """The servers asked, in order; ourselves left out."""
        self._reload(self._loop.time())
        return self._forwarder.servers

    @property
    def search(self) -> tuple[str, ...]:
        """The search domains that the file has or had: a container may have copied it at any time. The same object
        while they are the same."""
        self._reload(self._loop.time())
        return self._search

    def forward(self, query: Query, transport: Transport, done: Callable[[bytes], None]) -> int:
        """Forwards `query`; `done` is called once with the reply, perhaps before this returns. Gives a token for
        `forget`."""
        now = self._loop.time()
        self._reload(now)
        self._last_token += 1
        token = self._last_token
        self._clients[token] = done
        self._run(self._forwarder.forward(token, query, transport, now))
        return token

    def forget(self, token: int) -> None:
        """The client is gone: `done` is not called any more."""
        self._clients.pop(token, None)
        self._run(self._forwarder.forget(token))

    def close(self) -> None:
        """Drops everything under way."""
        for token in list(self._clients):
            self.forget(token)
        if self._timer is not None:
            self._timer.cancel()
        if self._sweep is not None:
            self._sweep.cancel()
        while self._idle:
            self._drop(self._idle.popleft())

    def _reload(self, now: float) -> None:
        if now - self._checked_at < CHECK_EVERY:
            return
        self._checked_at = now
        try:
            stat = self._path.stat()
            stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)
            if stamp == self._stamp:
                return
            text = self._path.read_text(errors="replace")
        except OSError:
            # A file that is gone, or not readable, is being replaced; what it said last is the best that is known.
            self._stamp = None
            return
        self._stamp = stamp
        found = resolvconf.parse(text)
        # A file without servers is one being rewritten: as above.
        if found.nameservers:
            named = (server for server in found.nameservers if not self._is_self(server, self._port))
            self._forwarder.servers = tuple(named)
            self._forwarder.patience = found.patience
            self._addresses.clear()
        known = (*self._search, *(domain.lower().rstrip(".") for domain in found.search))
        # The newest ones, where somebody writes others for ever.
        search = tuple(dict.fromkeys(domain for domain in known if domain))[-MAX_SEARCH:]
        if search != self._search:
            self._search = search

    def _run(self, commands: list[Command]) -> None:
        queue = deque(commands)
        while queue:
            command = queue.popleft()
            match command:
                case Send():
                    queue += self._send(command)
                case Again():
                    queue += self._again(command.attempt)
                case Close():
                    self._close(command.attempt)
                case Reply():
                    done = self._clients.pop(command.token, None)
                    if done is not None:
                        done(command.data)
        self._set_timer()

    def _set_timer(self) -> None:
        wake_at = self._forwarder.wake_at()
        # One that fires too soon finds nothing to do and is set again; most questions are answered before theirs.
        if wake_at is None or (self._timer is not None and self._timer_at <= wake_at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = wake_at
        self._timer = self._loop.call_at(wake_at, self._passed)

    def _passed(self) -> None:
        self._timer = None
        # call_at may fire a clock tick early; the machine compares with the very time that it asked for.
        self._run(self._forwarder.passed(self._loop.time() + 0.001))

    def _send(self, order: Send) -> list[Command]:
        is_udp = order.transport is Transport.UDP
        if is_udp and self._reuse(order):
            return []
        kind = socket.SOCK_DGRAM if is_udp else socket.SOCK_STREAM
        sock: socket.socket | None = None
        try:
            family, address = self._address(order.server, kind)
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
            result = sock.connect_ex(address)
            if result not in (0, errno.EINPROGRESS):
                raise OSError(result, "connect")
            if is_udp:
                sock.send(order.data)
        except OSError:
            if sock is not None:
                sock.close()
            return self._forwarder.failed(order.attempt, self._loop.time())
        exchange = self._exchanges[order.attempt] = _Exchange(order, sock)
        if is_udp:
            self._loop.add_reader(sock, self._readable, exchange)
        else:
            self._loop.add_writer(sock, self._connected, exchange)
        return []

    def _address(self, server: str, kind: socket.SocketKind) -> tuple[int, tuple[object, ...]]:
        """Family and address of a server; OSError for a scope that is not there."""
        known = self._addresses.get((server, kind))
        if known is None:
            flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
            family, _, _, _, address = socket.getaddrinfo(server, self._port, type=kind, flags=flags)[0]
            known = (family, address)
            # The number behind a scope is another when its interface was made anew.
            if "%" not in server:
                self._addresses[server, kind] = known
        return known

    def _again(self, attempt: int) -> list[Command]:
        exchange = self._exchanges.get(attempt)
        if exchange is None:
            return []
        try:
            exchange.sock.send(exchange.data)
        except BlockingIOError:
            # A full buffer loses a datagram, as a network does.
            return []
        except OSError:
            return self._forwarder.failed(attempt, self._loop.time())
        return []

    def _connected(self, exchange: _Exchange) -> None:
        """The TCP connection stands, or failed. A query fits into an empty send buffer whole."""
        self._loop.remove_writer(exchange.sock)
        try:
            exchange.sock.send(len(exchange.data).to_bytes(2, "big") + exchange.data)
        except OSError:
            self._run(self._forwarder.failed(exchange.attempt, self._loop.time()))
            return
        self._loop.add_reader(exchange.sock, self._readable, exchange)

    def _readable(self, exchange: _Exchange) -> None:
        try:
            data = exchange.sock.recv(MAX_TCP + 2)
        except BlockingIOError:
            return
        except OSError:
            # For UDP this is the ICMP error: nobody listens there.
            data = b""
        now = self._loop.time()
        if exchange.transport is Transport.UDP:
            exchange.answered = bool(data)
            if self._exchanges.get(exchange.attempt) is not exchange:
                # An answer that is late, or an error: nobody waits for it.
                return
            received = self._forwarder.received(exchange.attempt, data, now) if data else self._forwarder.failed
            self._run(received if isinstance(received, list) else received(exchange.attempt, now))
            return
        exchange.incoming += data
        size = int.from_bytes(exchange.incoming[:2], "big") + 2
        complete = len(exchange.incoming) >= max(size, 3)
        if complete:
            self._run(self._forwarder.received(exchange.attempt, bytes(exchange.incoming[2:size]), now))
        # Still ours after that: a wrong answer, or the end of the stream. One answer is all that a connection is for.
        if (complete or not data) and exchange.attempt in self._exchanges:
            self._run(self._forwarder.failed(exchange.attempt, now))

    def _close(self, attempt: int) -> None:
        exchange = self._exchanges.pop(attempt, None)
        if exchange is None:
            return
        again = exchange.transport is Transport.UDP and exchange.answered and exchange.uses < MAX_USES
        if not again or len(self._idle) >= MAX_IDLE:
            self._drop(exchange)
            return
        exchange.since = self._loop.time()
        self._idle.append(exchange)
        if self._sweep is None:
            self._sweep = self._loop.call_later(IDLE_SECONDS, self._sweep_idle)

    def _reuse(self, order: Send) -> bool:
        """Whether an idle socket of that server took the query."""
        for exchange in self._idle:
            if exchange.server == order.server:
                break
        else:
            return False
        self._idle.remove(exchange)
        try:
            exchange.sock.send(order.data)
        except OSError:
            # What an earlier datagram met.
            self._drop(exchange)
            return False
        exchange.attempt, exchange.data, exchange.answered = order.attempt, order.data, False
        exchange.uses += 1
        self._exchanges[order.attempt] = exchange
        return True

    def _sweep_idle(self) -> None:
        self._sweep = None
        now = self._loop.time()
        while self._idle and self._idle[0].since <= now - IDLE_SECONDS / 2:
            self._drop(self._idle.popleft())
        if self._idle:
            self._sweep = self._loop.call_later(IDLE_SECONDS / 2, self._sweep_idle)

    def _drop(self, exchange: _Exchange) -> None:
        self._loop.remove_reader(exchange.sock)
        self._loop.remove_writer(exchange.sock)
        exchange.sock.close()


def _room() -> int:
    """Sockets that may be open at once: half of what this process may have, for it has others, too."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_ATTEMPTS if soft == resource.RLIM_INFINITY else max(1, min(MAX_ATTEMPTS, soft // 2))
