"""What a member of Consul's gossip says and hears, as bytes on a TCP connection: hashicorp/memberlist 0.5.2 (net.go,
security.go, util.go) and serf 0.10.2 (messages.go, internal_query.go). Pure.

Only what a key's change needs: a ping, which says whether a key opens and which one seals the answer; and the queries
that change the keyring of the agent that is asked. Consul's own `/v1/operator/keyring` sends such a query to all
members, sealed with the key that is to be replaced: whoever has that one reads the new one. Here it is marked as not to
be passed on, and is sent to one's own agent.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from runtime.secret import Secret

_PING, _ACK, _USER, _COMPRESSED, _ENCRYPTED = 0, 2, 8, 9, 10
"""Message types of memberlist (net.go)."""
_QUERY, _KEY_REQUEST = 4, 7
"""Message types of serf (messages.go)."""
_NO_BROADCAST = 2
"""`queryFlagNoBroadcast` of serf."""
_NOWHERE = (bytes((127, 0, 0, 1)), 9)
"""Where the agent sends its answer to a query, address and port (discard): what came of it is asked by a ping."""
_ANSWER_NANOSECONDS = 5_000_000_000
"""Within which the agent may answer a query: beyond it, it logs an error."""
NONCE = 12
"""Bytes."""
_TAG = 16
HEADER = 5
"""Bytes before what is sealed: the type, and the length of the rest."""
MAX_ANSWER = 4096
"""Bytes of an answer to a ping. An acknowledgement has some 60, an error some 150."""


class Change(Enum):
    """What a query does to the keyring, as serf names it."""

    INSTALL = "install-key"
    USE = "use-key"
    REMOVE = "remove-key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """Keys that an agent is to have, and no others."""

    name: str
    """Which: what is said of it where the keys are not."""
    keys: tuple[Secret, ...]
    """Base64. The first one seals, all open."""


class GossipError(ValueError):
    """Bytes that are no answer of a member."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What an answer to a ping shows."""

    opens: bool
    """The member has the key that the ping was sealed with."""
    sealed_by: Secret | None
    """With which it seals what it sends; None: with none that was tried."""


def seal(key: Secret, message: bytes, nonce: bytes) -> bytes:
    """`message` for a connection, sealed with `key` (base64). `nonce`: NONCE random bytes, new each time."""
    header = struct.pack(">BI", _ENCRYPTED, 1 + NONCE + len(message) + _TAG)
    return header + b"\x01" + nonce + AESGCM(base64.b64decode(key.reveal())).encrypt(nonce, message, header)


def length(header: bytes) -> int:
    """How many bytes follow the first HEADER of an answer. GossipError."""
    kind, size = header[0], int.from_bytes(header[1:], "big")
    if kind != _ENCRYPTED or not 1 + NONCE + _TAG <= size <= MAX_ANSWER:
        raise GossipError(f"an answer of type {kind} and {size} bytes, expected {_ENCRYPTED} and {MAX_ANSWER} at most")
    return size


def heard(header: bytes, rest: bytes, known: Sequence[Secret]) -> Heard:
    """What an answer to a ping shows to one who has the keys `known`. GossipError."""
    for key in known:
        try:
            sealer = AESGCM(base64.b64decode(key.reveal()))
            message = sealer.decrypt(rest[1 : 1 + NONCE], rest[1 + NONCE :], header)
        except InvalidTag:
            continue
        return Heard(opens=_kind(message) == _ACK, sealed_by=key)
    # Also an error is sealed so: that the ping was opened, nobody can tell who does not read it.
    return Heard(opens=False, sealed_by=None)


def ping(name: str) -> bytes:
    """The question whether `name` is there, for `seal`."""
    return bytes((_PING,)) + packed({"SeqNo": 1, "Node": name})


def query(change: Change, key: Secret, *, name: str, time: int, number: int) -> bytes:
    """Has the agent `name`, and nobody else, change its keyring, for `seal`. `time` is its own query clock: an older
    one counts for nothing, and a newer one would make it deaf to what others ask. `number`: 32 random bits.
    """
    address, port = _NOWHERE
    request = bytes((_KEY_REQUEST,)) + packed({"Key": base64.b64decode(key.reveal())})
    asked = bytes((_QUERY,)) + packed(
        {
            "LTime": time, "ID": number, "Addr": address, "Port": port, "SourceNode": name,
            "Flags": _NO_BROADCAST, "Timeout": _ANSWER_NANOSECONDS, "Name": f"_serf_{change.value}", "Payload": request,
        }
    )  # fmt: skip
    return bytes((_USER,)) + packed({"UserMsgLen": len(asked)}) + asked


def packed(fields: Mapping[str, int | str | bool | bytes]) -> bytes:
    """A struct of Go as msgpack, in the form that both programs write: text and bytes are one kind."""
    parts = [bytes((0x80 + len(fields),))]
    for name, value in fields.items():
        parts.append(_raw(name.encode()))
        if isinstance(value, bool):
            parts.append(b"\xc3" if value else b"\xc2")
        elif isinstance(value, int):
            parts.append(b"\xcf" + struct.pack(">Q", value))
        else:
            parts.append(_raw(value.encode() if isinstance(value, str) else value))
    return b"".join(parts)


def _raw(data: bytes) -> bytes:
    return (bytes((0xA0 + len(data),)) if len(data) < 32 else b"\xda" + struct.pack(">H", len(data))) + data


def _kind(message: bytes) -> int:
    """The type of `message`, or of what is compressed in it. GossipError."""
    if message[:1] != bytes((_COMPRESSED,)):
        return message[0] if message else -1
    marker = b"\xa3Buf"
    _, found, rest = message.partition(marker)
    if not found or len(rest) < 6:
        raise GossipError("a compressed answer without content")
    start = {0xDA: 3, 0xDB: 5, 0xC4: 2, 0xC5: 3, 0xD9: 2}.get(rest[0], 1)
    return _first(rest[start:])


def _first(compressed: bytes) -> int:
    """The first byte of an LZW stream as Go writes it: codes of 9 bits to begin with, the lowest bit first, a "clear"
    (256) before the rest, and a first code that stands for itself.
    """
    bits = int.from_bytes(compressed[:3], "little")
    clear, code = bits & 0x1FF, bits >> 9 & 0x1FF
    if clear != 256 or code > 255:
        raise GossipError("a compressed answer that does not begin as one")
    return code
