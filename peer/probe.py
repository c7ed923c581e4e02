"""Probes: small authenticated packets that show, before any tunnel packet moves there, that a path works. Pure.

A probe leaves from and comes in at WireGuard's own UDP port, so it opens and measures exactly the NAT mappings that the
tunnel uses; WireGuard drops it as a packet of unknown type. Two peers authenticate their probes with a key that only
they can compute (X25519 of their WireGuard keys), so that nobody else can make a path look alive, and nobody but an
admitted peer can take a relay's port.

Layout: magic 4 | kind 1 | flags 1 | padding's length 2 | sender hint 8 | number 8 | zero 8 | MAC 16 | padding, zeros.
Only a size probe has padding: it makes the packet as large as the tunnel packet that it stands for. The MAC covers it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
from dataclasses import dataclass
from enum import IntEnum

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from peer.spec import LinkError
from runtime.secret import Secret

MAGIC = b"\xc5mp1"
"""WireGuard's first byte is 1 to 4."""
SIZE = 48
"""Bytes, without padding."""
_HEAD = struct.Struct(">4sBBH8sQ8x")
_MAC_SIZE = 16
_KEY_LABEL = b"cvm-mesh probe 1"
_HINT_LABEL = b"cvm-mesh hint 1"


class Kind(IntEnum):
    """What a probe says."""

    PING = 1
    PONG = 2
    CALL = 3
    """Sent over a relay, for the peer itself: try direct now."""
    SIZE = 4
    """A padded probe for the peer itself, directly or over a relay: did a packet of this size arrive?"""
    SIZED = 5
    """Its answer, without padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A probe whose MAC was right."""

    kind: Kind
    number: int
    """A ping's or size probe's number, repeated by the answer. A sender's numbers grow for as long as its key lives."""
    through: bool
    """In a relay's pong: the relay knows the other side's path too, so packets get through. Else False."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeKey:
    """What two parties need to exchange probes."""

    mac: bytes
    """32 bytes, the same for both. Not a Secret object, but never shown: see __repr__."""
    own_hint: bytes
    """Marks packets of ours."""
    their_hint: bytes
    """Marks theirs; lets a receiver find the key among many."""

    def __repr__(self) -> str:
        return "ProbeKey(***)"


def probe_key(private_key: Secret, public_key: str, own_public_key: str) -> ProbeKey:
    """The key between the holder of `private_key` and the peer with `public_key` (base64).

    Static Diffie-Hellman of WireGuard keys, as WireGuard's handshake does itself; the label keeps the uses apart.
    LinkError when the public key is none.
    """
    private = X25519PrivateKey.from_private_bytes(base64.b64decode(private_key.reveal()))
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(base64.b64decode(public_key)))
    except ValueError as error:
        # A point of small order: it agrees with every private key in the same way.
        raise LinkError(f"{public_key!r} is no key that X25519 agrees with") from error
    mac = hashlib.blake2s(_KEY_LABEL, key=shared).digest()
    return ProbeKey(mac=mac, own_hint=_hint(mac, own_public_key), their_hint=_hint(mac, public_key))


def _hint(mac: bytes, sender: str) -> bytes:
    # Keyed, so that an onlooker cannot tell from a probe whose it is.
    return hashlib.blake2s(_HINT_LABEL + sender.encode(), key=mac, digest_size=8).digest()


def encode(key: ProbeKey, kind: Kind, number: int, *, through: bool = False, padding: int = 0) -> bytes:
    """A probe of ours as bytes; `padding` bytes of zeros make it larger."""
    head = _HEAD.pack(MAGIC, kind, int(through), padding, key.own_hint, number)
    zeros = bytes(padding)
    return head + _mac(key, head, zeros) + zeros


def sender_hint(data: bytes) -> bytes | None:
    """The hint in a packet that looks like a probe, to find its key by; None when it is something else."""
    return data[8:16] if len(data) >= SIZE and data.startswith(MAGIC) else None


def decode(key: ProbeKey, data: bytes) -> Probe | None:
    """The probe in `data` when it is one of the other side's with the right MAC, else None."""
    if sender_hint(data) != key.their_hint:
        return None
    head, mac, zeros = data[: _HEAD.size], data[_HEAD.size : SIZE], data[SIZE:]
    _, kind, flags, padding, _, number = _HEAD.unpack(head)
    if padding != len(zeros) or not hmac.compare_digest(_mac(key, head, zeros), mac):
        return None
    try:
        return Probe(kind=Kind(kind), number=number, through=bool(flags & 1))
    except ValueError:
        return None


def _mac(key: ProbeKey, head: bytes, padding: bytes) -> bytes:
    return hashlib.blake2s(head + padding, key=key.mac, digest_size=_MAC_SIZE).digest()
