"""The text protocol of userspace WireGuard devices (https://www.wireguard.com/xplatform/). Pure: text in, values out.

Keys are hexadecimal there and base64 everywhere else.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from peer.spec import DeviceState, LinkError, Operation, PeerState, RemovePeer
from runtime.secret import Secret

GET = "get=1\n\n"


def configure_request(private_key: Secret, listen_port: int) -> Secret:
    """The request that gives a device its key and port. A Secret, because the key is in it."""
    return Secret(f"set=1\nprivate_key={_hex(private_key.reveal())}\nlisten_port={listen_port}\n\n")


def set_request(operation: Operation) -> str:
    """The request that carries out one operation.

    One request each: within one, `wireguard-go` forgets to forget that a keep-alive was turned on for an earlier peer,
    and then starts handshakes with the later ones too, also where they have no endpoint yet.
    """
    lines = ["set=1", f"public_key={_hex(operation.public_key)}"]
    if isinstance(operation, RemovePeer):
        lines.append("remove=true")
        return "\n".join(lines) + "\n\n"
    if operation.endpoint is not None:
        lines.append(f"endpoint={operation.endpoint}")
    if operation.allowed is not None:
        lines.append("replace_allowed_ips=true")
        lines.extend(f"allowed_ip={network}" for network in operation.allowed)
    # Last: going from 0 to more sends a packet, which has to find the endpoint above.
    if operation.keepalive is not None:
        lines.append(f"persistent_keepalive_interval={operation.keepalive}")
    return "\n".join(lines) + "\n\n"


def check_answer(answer: str) -> None:
    """LinkError unless the device said `errno=0`."""
    fields = dict(_pairs(answer))
    if fields.get("errno") != "0":
        raise LinkError(f"the WireGuard device refused: errno {fields.get('errno', 'missing')!r}")


def parse_state(answer: str) -> DeviceState:
    """The state in the answer to GET, LinkError when it is none. The private key in it becomes the public one."""
    check_answer(answer)
    try:
        return _state(answer)
    except LinkError:
        raise
    except (ValueError, KeyError) as error:
        raise LinkError(f"the WireGuard device's state cannot be read: {error!r:.200}") from error


def _state(answer: str) -> DeviceState:
    public_key, listen_port = "", 0
    peers: list[dict[str, str]] = []
    allowed: list[list[str]] = []
    for name, value in _pairs(answer):
        if name == "private_key":
            public_key = _public_of(value)
        elif name == "listen_port":
            listen_port = int(value)
        elif name == "public_key":
            peers.append({name: value})
            allowed.append([])
        elif name == "allowed_ip" and allowed:
            allowed[-1].append(value)
        elif peers:
            peers[-1][name] = value
    states = [_peer(fields, networks) for fields, networks in zip(peers, allowed, strict=True)]
    return DeviceState(
        public_key=public_key, listen_port=listen_port, peers={state.public_key: state for state in states}
    )


def _peer(fields: dict[str, str], allowed: list[str]) -> PeerState:
    seconds, nanos = int(fields.get("last_handshake_time_sec", 0)), int(fields.get("last_handshake_time_nsec", 0))
    return PeerState(
        public_key=_base64(fields["public_key"]),
        endpoint=fields.get("endpoint"),
        latest_handshake=seconds + nanos / 1e9,
        rx=int(fields.get("rx_bytes", 0)),
        tx=int(fields.get("tx_bytes", 0)),
        allowed=tuple(allowed),
        keepalive=int(fields.get("persistent_keepalive_interval", 0)),
    )


def _pairs(answer: str) -> Iterator[tuple[str, str]]:
    for line in answer.splitlines():
        if line:
            name, equals, value = line.partition("=")
            if not equals:
                raise LinkError(f"the WireGuard device answered {line!r:.60}, expected name=value")
            yield name, value


def _public_of(private_hex: str) -> str:
    raw = bytes.fromhex(private_hex)
    # A device without a key reports 64 zeros, or nothing.
    if not any(raw):
        return ""
    public = X25519PrivateKey.from_private_bytes(raw).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return base64.b64encode(public).decode()


def _hex(key: str) -> str:
    try:
        return base64.b64decode(key, validate=True).hex()
    except binascii.Error as error:
        raise LinkError("a WireGuard key is not base64") from error


def _base64(key: str) -> str:
    return base64.b64encode(bytes.fromhex(key)).decode()
