"""`DnsServer`: UDP and TCP sockets on one address, joined to the resolver and the upstream. An edge.

Callbacks only, no tasks: a query that is answered from the zone is answered within the callback that read it.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dns.message import MAX_TCP, Query, Rcode, Transport
from dns.resolver import Answer, Forward, Refuse, Resolver
from dns.tcp import Connection
from dns.upstream import Upstream
from dns.zone import Zone, search_names

_BATCH = 32
"""Datagrams read before other callbacks have their turn: about a millisecond's worth."""
_RECEIVE_BUFFER = 4 << 20
"""Octets; the kernel's default drops queries when a burst meets a busy moment of the event loop. A small query takes
some 800 of them: 5,000 look-ups at once."""
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h; Python has no name for it
_PORT_TRIES = 16
_BACKLOG = 128
"""Connections not yet accepted; as many as are kept open."""
_HINTS = {
    errno.EADDRINUSE: "stop the name server that has it, or give the mesh DNS another address",
    errno.EACCES: "grant CAP_NET_BIND_SERVICE, or lower net.ipv4.ip_unprivileged_port_start",
    errno.EPERM: "grant CAP_NET_BIND_SERVICE, or lower net.ipv4.ip_unprivileged_port_start",
    errno.EADDRNOTAVAIL: "use an address in 127.0.0.0/8, or add this one to an interface first",
}


class BindError(OSError):
    """The address cannot be served. The message names address and port, and what to try; `errno` is the kernel's."""

    def __str__(self) -> str:
        # Without the "[Errno 98]" that OSError puts before its text.
        return self.strerror or ""


class DnsServer:
    """Route-name DNS on one address. SERVFAIL for the mesh's names until the first `set_zone`; forwarding works at
    once."""

    def __init__(self, address: str, port: int, *, resolv_conf: Path, upstream_port: int = 53) -> None:
        """`port` 0 takes a free one. `resolv_conf` is the machine's original; its servers are asked at
        `upstream_port`."""
        self._address = address
        self._port = port
        self._resolv_conf = resolv_conf
        self._upstream_port = upstream_port
        self._resolver = Resolver(None)
        self._search: tuple[str, ...] = ()
        self._second = 0
        self._upstream: Upstream | None = None
        self._udp: socket.socket | None = None
        self._tcp: asyncio.Server | None = None
        self._connections: dict[Connection, None] = {}

    async def start(self) -> None:
        """Returns when both transports are bound. Raises BindError."""
        udp, tcp = _bind(self._address, self._port)
        loop = asyncio.get_running_loop()
        self._port = udp.getsockname()[1]
        self._udp = udp
        self._upstream = Upstream(self._resolv_conf, self._upstream_port, self._is_self)
        self._tcp = await loop.create_server(
            lambda: Connection(self._handle, self._forget, self._connections), sock=tcp
        )
        loop.add_reader(udp, self._readable, udp)

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Where we listen, by UDP and TCP alike: (IP address, port). Empty before `start` and after `stop`."""
        return ((self._address, self._port),) if self._udp is not None else ()

    @property
    def upstreams(self) -> tuple[str, ...]:
        """The servers that other names are forwarded to now, ourselves left out."""
        return self._upstream.servers if self._upstream is not None else ()

    def set_zone(self, zone: Zone) -> None:
        """Serves `zone` from the next query on. The same zone again keeps the answers already encoded."""
        if zone != self._resolver.zone:
            self._resolver = Resolver(zone, self._resolver.search)

    async def stop(self) -> None:
        """Closes everything; queries under way are dropped. Safe to repeat, and without `start`."""
        if self._udp is not None:
            asyncio.get_running_loop().remove_reader(self._udp)
            self._udp.close()
            self._udp = None
        if self._tcp is not None:
            self._tcp.close()
            for connection in list(self._connections):
                connection.abort()
            await self._tcp.wait_closed()
            # An aborted transport closes its socket in the loop's next round; "stopped" means closed.
            await asyncio.sleep(0)
            self._tcp = None
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = None

    def _is_self(self, server: str, port: int) -> bool:
        if port != self._port:
            return False
        own, other = ipaddress.ip_address(self._address), ipaddress.ip_address(server)
        # Bound to every address, we are every loopback address too.
        return own == other or (own.is_unspecified and (other.is_loopback or other.is_unspecified))

    def _readable(self, udp: socket.socket) -> None:
        for _ in range(_BATCH):
            try:
                wire, client = udp.recvfrom(MAX_TCP)
            except BlockingIOError:
                return
            except OSError:
                # An ICMP error for an earlier reply: the client is gone. Nothing to do for the next datagram.
                continue
            self._handle(wire, Transport.UDP, partial(_send, udp, client))

    def _handle(self, wire: bytes, transport: Transport, send: Callable[[bytes], None]) -> int | None:
        """Answers through `send`, now or later; gives the token of a forwarded query that may still be under way."""
        if self._upstream is not None and self._upstream.search is not self._search:
            self._search = self._upstream.search
            self._resolver = Resolver(self._resolver.zone, search_names(self._search))
        second = int(asyncio.get_running_loop().time())
        if second != self._second:
            self._second = second
            self._resolver.expire()
        outcome = self._resolver.resolve(wire, transport)
        if isinstance(outcome, Answer | Refuse):
            send(outcome.wire)
        elif isinstance(outcome, Forward) and self._upstream is not None:
            return self._forward(outcome.query, transport, send)
        return None

    def _forward(self, query: Query, transport: Transport, send: Callable[[bytes], None]) -> int | None:
        """What is answered from memory is answered so to all who ask alike within this second: a TTL says no more."""
        resolver, at_once = self._resolver, True

        def answered(reply: bytes) -> None:
            if at_once and reply[3] & 0xF in (Rcode.NOERROR, Rcode.NXDOMAIN):
                resolver.lend(query.wire, transport, reply)
            send(reply)

        assert self._upstream is not None, "asked for by _handle alone"
        token = self._upstream.forward(query, transport, answered)
        at_once = False
        return token

    def _forget(self, token: int) -> None:
        if self._upstream is not None:
            self._upstream.forget(token)


def _send(udp: socket.socket, client: tuple[Any, ...], reply: bytes) -> None:
    try:
        udp.sendto(reply, client)
    except OSError:
        # The client's port is closed or its buffer full. UDP clients ask again; there is nobody to tell.
        return


def _widen(udp: socket.socket) -> None:
    """Beyond the machine's limit for programs (rmem_max) where CAP_NET_ADMIN lets us, as the sidecar may."""
    try:
        udp.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
    except OSError:
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)


def _bind(address: str, port: int) -> tuple[socket.socket, socket.socket]:
    """UDP and TCP sockets on the same port. Port 0: tries free ports until one is free for both."""
    for attempt in range(_PORT_TRIES):
        sockets: list[socket.socket] = []
        try:
            family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
                sockets.append(sock)
                if kind == socket.SOCK_STREAM:
                    # A restart must not wait for the last run's connections; Linux still refuses a second listener.
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                else:
                    _widen(sock)
                sock.bind((address, sockets[0].getsockname()[1] if sockets[1:] else port))
            # Two sockets may be bound alike while none listens; listening is what takes the port.
            sockets[1].listen(_BACKLOG)
        except (OSError, ValueError) as error:
            for sock in sockets:
                sock.close()
            number = error.errno or 0 if isinstance(error, OSError) else errno.EINVAL
            if port == 0 and number == errno.EADDRINUSE and attempt < _PORT_TRIES - 1:
                continue
            transport = "TCP" if len(sockets) > 1 else "UDP"
            hint = _HINTS.get(number, "check the address")
            reason = f"{os.strerror(number).lower()}; {hint}"
            raise BindError(number, f"cannot serve DNS on {address!r} port {port} ({transport}): {reason}") from error
        return sockets[0], sockets[1]
    raise AssertionError("every try either returns or raises")
