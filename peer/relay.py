"""Relays ciphertext between two admitted peers whose NATs let no direct path through.

Each pair has two UDP ports: A sends to its own, B to its own; what comes in at one goes out of the other. The relay can
neither read nor make a tunnel packet. Where a side is, it learns only from a probe whose MAC nobody but that peer can
make (X25519 of the peer's key and the rendezvous' key) and whose number is new, so nobody else, and no replay, can take
a port; everything else is forwarded only from there.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peer.probe import MAGIC, Kind, ProbeKey, decode, encode, sender_hint
from peer.spec import IP_MTU_DISCOVER, IP_PMTUDISC_PROBE

log = logging.getLogger(__name__)

KNOWN_FOR = 40.0
"""Seconds that a side counts as there after its last probe; peers probe a relay in standby every 15 s."""
IDLE_AFTER = 180.0
"""Seconds after which a pair that neither side probes gives its ports back."""
MAX_DATAGRAM = 9000
"""Bytes: a tunnel packet of a jumbo frame."""
MIN_DATAGRAM = 32
"""Bytes: the smallest WireGuard packet, a keep-alive."""
BYTES_PER_SECOND = 64 << 20
"""What one side may send through the relay."""
_MAX_QUEUED = 256 << 10
"""Bytes that may wait for a full socket. More would only be late."""
_WIREGUARD_TYPES = frozenset((1, 2, 3, 4))

Address = tuple[str, int]


class RelayFullError(RuntimeError):
    """No port is left for another pair."""


class Budget:
    """How many bytes may pass: `rate` bytes/s, with bursts of a quarter of a second's worth. Pure."""

    def __init__(self, rate: float, now: float) -> None:
        self._rate, self._left, self._at = rate, rate / 4, now

    def take(self, size: int, now: float) -> bool:
        """True when `size` bytes fit now; they are then counted."""
        self._left = min(self._rate / 4, self._left + (now - self._at) * self._rate)
        self._at = now
        if size > self._left:
            return False
        self._left -= size
        return True


class _Side(asyncio.DatagramProtocol):
    """One port of a pair: where one peer sends to."""

    def __init__(self, key: ProbeKey) -> None:
        self.key = key
        self.other: _Side = self
        self.port = 0
        self.address: Address | None = None
        self.heard_at = float("-inf")
        self.dropped = 0
        self._number = 0
        self._loop = asyncio.get_running_loop()
        self._budget = Budget(BYTES_PER_SECOND, self._loop.time())
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        """The socket is there."""
        # A relay that fragments would hide from the peers' size probes what the path beyond it carries.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Address) -> None:
        """A packet of anybody's came in."""
        if sender_hint(data) == self.key.their_hint:
            self._register(data, addr)
        elif addr == self.address and self._passes(data):
            self.other.send(data)
        else:
            self.dropped += 1

    def error_received(self, exc: Exception) -> None:
        """ICMP errors say nothing that silence does not."""

    def send(self, data: bytes, address: Address | None = None) -> None:
        """Sends to this side's peer, if it is known."""
        address = address or self.address
        if self._transport is None or address is None or self._transport.get_write_buffer_size() > _MAX_QUEUED:
            self.dropped += 1
            return
        self._transport.sendto(data, address)

    def close(self) -> None:
        """Gives the port back."""
        if self._transport is not None:
            self._transport.abort()

    def known(self, now: float) -> bool:
        """Whether the peer was heard lately."""
        return now - self.heard_at < KNOWN_FOR

    def _register(self, data: bytes, addr: Address) -> None:
        probe = decode(self.key, data)
        if probe is None or probe.kind is not Kind.PING or probe.number <= self._number:
            self.dropped += 1
            return
        self._number, self.address, self.heard_at = probe.number, addr, self._loop.time()
        through = self.other.known(self.heard_at)
        self.send(encode(self.key, Kind.PONG, probe.number, through=through), addr)

    def _passes(self, data: bytes) -> bool:
        """Is it a packet of WireGuard's (or a peer's probe for the other), of a sane size, within the rate?"""
        size = len(data)
        if not MIN_DATAGRAM <= size <= MAX_DATAGRAM:
            return False
        if data[0] not in _WIREGUARD_TYPES and not data.startswith(MAGIC):
            return False
        return self._budget.take(size, self._loop.time())


@dataclass(slots=True)
class _Pair:
    sides: dict[str, _Side]
    made_at: float


class Relay:
    """All pairs of one rendezvous."""

    def __init__(self, bind: str, ports: range) -> None:
        self._bind = bind
        self._free = list(reversed(ports))
        self._pairs: dict[frozenset[str], _Pair] = {}

    async def open(self, one: str, one_key: ProbeKey, other: str, other_key: ProbeKey) -> bool:
        """A pair for these two public keys; True when it is new. RelayFullError when no ports are left."""
        name = frozenset((one, other))
        if name in self._pairs:
            return False
        loop = asyncio.get_running_loop()
        sides = {one: _Side(one_key), other: _Side(other_key)}
        sides[one].other, sides[other].other = sides[other], sides[one]
        # Entered first: a second request for the pair, while sockets are made, finds it.
        self._pairs[name] = _Pair(sides=sides, made_at=loop.time())
        try:
            for side in sides.values():
                await self._bind_port(side)
        except BaseException:
            self._close(name)
            raise
        if name not in self._pairs:
            # It was dropped while its sockets were made.
            for side in sides.values():
                side.close()
            return False
        return True

    async def _bind_port(self, side: _Side) -> None:
        loop = asyncio.get_running_loop()
        skipped = []
        try:
            while self._free:
                port = self._free.pop()
                try:
                    await loop.create_datagram_endpoint(lambda: side, local_addr=(self._bind, port))
                except OSError:
                    # Somebody else's; it comes back into the list for another time.
                    skipped.append(port)
                    continue
                side.port = port
                return
        finally:
            self._free[:0] = skipped
        raise RelayFullError("all relay ports are in use; give the rendezvous a wider port range")

    def ports_of(self, public_key: str) -> dict[str, int]:
        """The caller's own ports, by the peer that each one leads to."""
        ports = {}
        for name, pair in self._pairs.items():
            if public_key in name and all(side.port for side in pair.sides.values()):
                (other,) = name - {public_key}
                ports[other] = pair.sides[public_key].port
        return ports

    def retain(self, admitted: Mapping[str, object], now: float) -> bool:
        """Closes pairs of peers that left, and idle ones; True when any was closed. `now` is the loop's time."""
        gone = [
            name
            for name, pair in self._pairs.items()
            if not all(key in admitted for key in name)
            or now - max(pair.made_at, *(side.heard_at for side in pair.sides.values())) > IDLE_AFTER
        ]
        for name in gone:
            self._close(name)
        return bool(gone)

    def close(self) -> None:
        """Closes every pair."""
        for name in list(self._pairs):
            self._close(name)

    def _close(self, name: frozenset[str]) -> None:
        for side in self._pairs.pop(name).sides.values():
            side.close()
            if side.port:
                # At the end of the list's use: a port is not given to another pair while old packets still come.
                self._free.insert(0, side.port)
