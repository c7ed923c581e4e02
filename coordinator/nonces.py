"""Challenges: nonces that prove themselves, so that asking for one costs the coordinator no memory.

A nonce is `milliseconds (8) | random (8) | HMAC-SHA256 over both, cut to 16 bytes`; the key is this process's own,
so a nonce is worth nothing at another coordinator. Only answered nonces are remembered, until they would have
expired. Pure: time and chance are arguments.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict

from admission.protocol import NONCE_LIFETIME

NONCE_BYTES = 32
RANDOM_BYTES = 8
CAPACITY = 1 << 16
"""Answered nonces remembered at most: 1,000 attestations a second for a nonce's lifetime; about 10 MB."""


class NonceError(ValueError):
    """The nonce is not one that may be answered now. The message says why."""


class Challenges:
    """Issues and redeems the nonces of one process. `key` is random and stays in it."""

    def __init__(self, key: bytes, lifetime: float = NONCE_LIFETIME, capacity: int = CAPACITY) -> None:
        self._key = key
        self._lifetime = lifetime
        self._capacity = capacity
        self._used: OrderedDict[bytes, float] = OrderedDict()

    @property
    def full(self) -> bool:
        """True when no more answers can be remembered; a nonce issued now might not be redeemable."""
        return len(self._used) >= self._capacity

    def issue(self, random: bytes, now: float) -> bytes:
        """A fresh nonce. `random`: RANDOM_BYTES from the system's generator; `now`: seconds on a clock that never
        goes back.
        """
        if len(random) != RANDOM_BYTES:
            raise AssertionError(f"{len(random)} random bytes, expected {RANDOM_BYTES}")
        self._forget(now)
        head = int(now * 1000).to_bytes(8, "big") + random
        return head + self._mac(head)

    def redeem(self, nonce: bytes, now: float) -> None:
        """Takes the nonce in: once, in time, and only if this process issued it. NonceError otherwise."""
        if len(nonce) != NONCE_BYTES or not hmac.compare_digest(self._mac(nonce[:16]), nonce[16:]):
            raise NonceError("the nonce was not issued by this coordinator; ask it for a challenge")
        issued = int.from_bytes(nonce[:8], "big") / 1000
        # The stamp is cut to milliseconds, so a nonce may seem issued a moment before it was, never after.
        if now - issued > self._lifetime or issued > now:
            raise NonceError(f"the nonce is older than {self._lifetime:g} s; ask for a new challenge")
        self._forget(now)
        if nonce in self._used:
            raise NonceError("the nonce was used before; ask for a new challenge")
        if self.full:
            raise NonceError("too many attestations at once; try again later")
        self._used[nonce] = issued + self._lifetime

    def _forget(self, now: float) -> None:
        # Entries are in order of redemption; one that expires later than its successors only stays a little longer.
        while self._used:
            first = next(iter(self._used))
            if self._used[first] >= now:
                return
            del self._used[first]

    def _mac(self, head: bytes) -> bytes:
        return hmac.new(self._key, b"cvm-mesh nonce\0" + head, hashlib.sha256).digest()[:16]
