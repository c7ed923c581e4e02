"""What anybody who has the gossip key can say in another's name, as packets of hashicorp/memberlist and serf."""

from __future__ import annotations

import base64
import os
import socket
import struct

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from runtime.consul_config import SERF_PORT
from runtime.secret import Secret

_DEAD, _USER = 5, 8
"""Message types of memberlist (net.go)."""
_LEAVE = 0
"""`messageLeaveType` of serf (serf/messages.go)."""
_LATE = 1_000_000
"""Of Lamport clock and incarnation: beyond any that counts."""


def say_left(key: Secret, member: str, address: str, late: int = _LATE) -> None:
    """Tells the agent at `address` that `member` has left the cluster: an intent, then the end by its own word."""
    intent = bytes((_USER, _LEAVE)) + _packed({"LTime": late, "Node": member, "Prune": False})
    end = bytes((_DEAD,)) + _packed({"Incarnation": late, "Node": member, "From": member})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for message in (intent, end):
            nonce = os.urandom(12)
            sealed = AESGCM(base64.b64decode(key.reveal())).encrypt(nonce, message, b"")
            sender.sendto(b"\x01" + nonce + sealed, (address, SERF_PORT))


def _packed(fields: dict[str, int | str | bool]) -> bytes:
    """As msgpack."""
    parts = [bytes((0x80 + len(fields),))]
    for name, value in fields.items():
        parts.append(_text(name))
        if isinstance(value, bool):
            parts.append(b"\xc3" if value else b"\xc2")
        elif isinstance(value, int):
            parts.append(b"\xcf" + struct.pack(">Q", value))
        else:
            parts.append(_text(value))
    return b"".join(parts)


def _text(value: str) -> bytes:
    data = value.encode()
    return bytes((0xA0 + len(data),)) + data
