"""What anybody who has the gossip key can say in another's name, as packets of hashicorp/memberlist and serf."""

from __future__ import annotations

import base64
import os
import socket

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from runtime.consul_config import SERF_PORT
from runtime.gossip import packed
from runtime.secret import Secret

_DEAD, _USER = 5, 8
"""Message types of memberlist (net.go)."""
_LEAVE = 0
"""`messageLeaveType` of serf (serf/messages.go)."""
_LATE = 1_000_000
"""Of Lamport clock and incarnation: beyond any that counts."""


def say_left(key: Secret, member: str, address: str, late: int = _LATE) -> None:
    """Tells the agent at `address` that `member` has left the cluster: an intent, then the end by its own word."""
    intent = bytes((_USER, _LEAVE)) + packed({"LTime": late, "Node": member, "Prune": False})
    end = bytes((_DEAD,)) + packed({"Incarnation": late, "Node": member, "From": member})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for message in (intent, end):
            nonce = os.urandom(12)
            sealed = AESGCM(base64.b64decode(key.reveal())).encrypt(nonce, message, b"")
            sender.sendto(b"\x01" + nonce + sealed, (address, SERF_PORT))
