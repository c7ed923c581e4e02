"""Sends and receives probes at WireGuard's own UDP port, by a raw socket. IO edge; `peer.probe` says what one is.

WireGuard owns the port's ordinary socket. A raw socket sees a copy of every UDP packet that comes in; a filter in the
kernel passes only probes. It needs CAP_NET_RAW, which containers have by default. Probes have DF set, and the kernel
sends them whatever it has learned about the path's MTU: that is how larger sizes are tried.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from peer.probe import MAGIC, SIZE, Kind, Probe, ProbeKey, decode, encode, sender_hint
from peer.spec import IP_MTU_DISCOVER, IP_PMTUDISC_PROBE, OVERHEAD, TOP_PATH_MTU, parse_endpoint

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h; Python has no name for it
# linux/in.h, linux/errqueue.h and linux/icmp.h; Python has no names for them.
_IP_RECVERR, _IP_MTU = 11, 14
_FRAGMENTATION_NEEDED = (2, 3, 4)
"""Origin ICMP, type "destination unreachable", code "fragmentation needed"."""
_ERROR = struct.Struct("=IBBBxII")
"""errno, origin, type, code, info, data."""
_MAX_AT_ONCE = 64
"""Packets, and errors, that are taken before other tasks get their turn."""
_UDP_HEADER = struct.Struct(">HHHH")
_IP_HEADER_SIZE = 20
_MAX_PACKET = 2048
"""Bytes: the largest probe, of TOP_PATH_MTU, with IP options."""
_ANSWERS = {Kind.PING: Kind.PONG, Kind.SIZE: Kind.SIZED}
_FORGET_AFTER = 10.0
"""Seconds after which an unanswered probe is forgotten."""
_MOST_WAITING = 4096


class ProbeSocketError(OSError):
    """The probe socket cannot be made. Says what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A ping or size probe on its way."""

    holder: str
    """Public key of the peer that the ping is about."""
    endpoint: str
    at: float
    """Monotonic seconds."""
    mtu: int | None = None
    """Of a size probe: bytes of the tunnel's packet that it stands for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A probe that came in with a right MAC."""

    sender: str
    """Public key of who made it."""
    endpoint: str
    """Where it came from."""
    probe: Probe
    sent: Sent | None
    """Our ping or size probe that it answers, if it is an answer."""
    at: float
    """Monotonic seconds."""


class Prober:
    """The probe socket of one WireGuard port. Use as a context manager inside a running loop."""

    def __init__(
        self,
        listen_port: int,
        on_arrival: Callable[[Arrival], None],
        on_refused: Callable[[frozenset[str]], None] = lambda _: None,
    ) -> None:
        """`on_refused` gets the destinations (IPv4 addresses) of UDP packets that a router said were too large."""
        self._port = listen_port
        self._on_arrival = on_arrival
        self._on_refused = on_refused
        self._keys: dict[str, ProbeKey] = {}
        self._senders: dict[bytes, str] = {}
        self._waiting: dict[int, Sent] = {}
        self._last_number = 0
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        self._socket = _raw_socket(self._port)
        asyncio.get_running_loop().add_reader(self._socket, self._on_readable)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def set_keys(self, keys: dict[str, ProbeKey]) -> None:
        """Whose probes are taken: key by public key. Replaces what was there."""
        self._keys = dict(keys)
        self._senders = {key.their_hint: public_key for public_key, key in keys.items()}

    def ping(self, to: str, holder: str, endpoint: str) -> None:
        """Sends a ping to `endpoint`, to be answered by `to`, about the peer `holder` (public keys)."""
        self._send(endpoint, encode(self._keys[to], Kind.PING, self._await(holder, endpoint)))

    def measure(self, to: str, endpoint: str, mtu: int) -> None:
        """Sends `to` (public key) a probe as large as the outer packet of a tunnel packet of `mtu` bytes.

        `endpoint` is the peer's own, or our port of the relay between us.
        """
        number = self._await(to, endpoint, mtu)
        padding = max(0, mtu + OVERHEAD - _IP_HEADER_SIZE - _UDP_HEADER.size - SIZE)
        self._send(endpoint, encode(self._keys[to], Kind.SIZE, number, padding=padding))

    def call(self, to: str, endpoint: str) -> None:
        """Sends a call to `to` by way of the relay port at `endpoint`."""
        self._send(endpoint, encode(self._keys[to], Kind.CALL, self._number()))

    def _await(self, holder: str, endpoint: str, mtu: int | None = None) -> int:
        """The number of a new probe that is to be answered."""
        number = self._number()
        now = time.monotonic()
        self._forget(now)
        self._waiting[number] = Sent(holder=holder, endpoint=endpoint, at=now, mtu=mtu)
        return number

    def _number(self) -> int:
        # From the clock, so that numbers also grow across restarts of this process.
        self._last_number = max(self._last_number + 1, time.time_ns())
        return self._last_number

    def _forget(self, now: float) -> None:
        while self._waiting:
            number, sent = next(iter(self._waiting.items()))
            if len(self._waiting) < _MOST_WAITING and now - sent.at < _FORGET_AFTER:
                return
            del self._waiting[number]

    def _send(self, endpoint: str, payload: bytes) -> None:
        if self._socket is None:
            return
        address, port = parse_endpoint(endpoint)
        # Checksum 0 is "none" in IPv4. It also keeps GRO from merging a probe into a train of tunnel packets of the
        # same flow, where our filter would not find it. What it would protect, the MAC does.
        header = _UDP_HEADER.pack(self._port, port, _UDP_HEADER.size + len(payload), 0)
        # No route, a full queue, a firewall: all the same as a lost packet, which probing is made for. Twice, because
        # the first attempt may only have reported an ICMP error of an earlier packet (IP_RECVERR, ip(7)).
        for _ in range(2):
            with contextlib.suppress(OSError):
                self._socket.sendto(header + payload, (address, 0))
                return

    def _on_readable(self) -> None:
        assert self._socket is not None
        self._take_errors(self._socket)
        for _ in range(_MAX_AT_ONCE):
            try:
                packet, (address, _) = self._socket.recvfrom(_MAX_PACKET)
            except BlockingIOError:
                return
            except OSError:
                # An ICMP error of an earlier packet; what it says was taken from the error queue.
                continue
            self._take(packet, address)

    def _take_errors(self, raw: socket.socket) -> None:
        """Empties the error queue. It has ICMP errors about WireGuard's packets too: a raw socket gets those of all."""
        refused = set()
        for _ in range(_MAX_AT_ONCE):
            try:
                _, messages, _, (address, _) = raw.recvmsg(0, 512, socket.MSG_ERRQUEUE)
            except BlockingIOError:
                break
            except OSError:
                continue
            errors = (data for level, kind, data in messages if (level, kind) == (socket.IPPROTO_IP, _IP_RECVERR))
            if any(_ERROR.unpack_from(data)[1:4] == _FRAGMENTATION_NEEDED for data in errors):
                refused.add(address)
        if refused:
            self._on_refused(frozenset(refused))

    def _take(self, packet: bytes, address: str) -> None:
        start = (packet[0] & 0x0F) * 4
        port = int.from_bytes(packet[start : start + 2], "big")
        payload = packet[start + _UDP_HEADER.size :]
        sender = self._senders.get(sender_hint(payload) or b"")
        if sender is None:
            return
        probe = decode(self._keys[sender], payload)
        if probe is None:
            return
        now = time.monotonic()
        endpoint = f"{address}:{port}"
        sent = None
        if probe.kind in _ANSWERS:
            self._send(endpoint, encode(self._keys[sender], _ANSWERS[probe.kind], probe.number))
        elif probe.kind in _ANSWERS.values():
            sent = self._waiting.pop(probe.number, None)
            if sent is None or sent.endpoint != endpoint or (sent.mtu is None) is not (probe.kind is Kind.PONG):
                return
        self._on_arrival(Arrival(sender=sender, endpoint=endpoint, probe=probe, sent=sent, at=now))


def known_path_mtu(endpoint: str) -> int:
    """The MTU of the path to `endpoint` (`ip:port`) as the kernel has it: the interface's, or less, as ICMP told it.

    Bytes of an outer IP packet. Where the kernel knows no way at all: TOP_PATH_MTU.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            # Connecting sends nothing.
            asked.connect(parse_endpoint(endpoint))
            return asked.getsockopt(socket.IPPROTO_IP, _IP_MTU)
        except OSError:
            return TOP_PATH_MTU


def _raw_socket(port: int) -> socket.socket:
    try:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_UDP)
    except PermissionError as error:
        raise ProbeSocketError(
            errno.EPERM, "no right to open a raw socket; give the container the capability NET_RAW (cap_add)"
        ) from error
    try:
        raw.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
        raw.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        program, count = _filter(port)
        raw.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", count, ctypes.addressof(program)))
        # What came in before the filter was there is not for us.
        with contextlib.suppress(BlockingIOError):
            while raw.recv(1):
                pass
    except BaseException:
        raw.close()
        raise
    return raw


def _filter(port: int) -> tuple[ctypes.Array[ctypes.c_char], int]:
    """Classic BPF: UDP destination `port`, payload beginning with MAGIC. The packet begins with the IP header."""
    load_header_length, load_half, load_word, equal, give = 0xB1, 0x48, 0x40, 0x15, 0x06
    program = (
        (load_header_length, 0, 0, 0),
        (load_half, 0, 0, 2),
        (equal, 0, 3, port),
        (load_word, 0, 0, 8),
        (equal, 0, 1, int.from_bytes(MAGIC, "big")),
        (give, 0, 0, 0xFFFF),
        (give, 0, 0, 0),
    )
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    return ctypes.create_string_buffer(code, len(code)), len(program)
