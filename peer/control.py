"""The words of a rendezvous' control API, both ways. Pure.

`GET /v1/watch?index=N&wait=S` answers when the table is not (or no longer) at index N, or after S seconds.
`POST /v1/relay` with `{"peer": public key}` answers `{"port": N}`. Who asks is known by its mesh address.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from peer.spec import LinkError, check_key, parse_endpoint

MAX_WAIT = 25.0
"""Seconds that a watch is held at most."""
MAX_BODY = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What a rendezvous tells one caller."""

    index: int
    mappings: Mapping[str, str] = field(default_factory=dict)
    """Public `ip:port` by public key: where each admitted peer's packets come from."""
    relays: Mapping[str, int] = field(default_factory=dict)
    """Port at the rendezvous' public address by public key: the caller's way to that peer."""


def encode_table(table: Table) -> bytes:
    """The answer to a watch."""
    fields = {"index": table.index, "mappings": dict(table.mappings), "relays": dict(table.relays)}
    return json.dumps(fields, separators=(",", ":")).encode()


def decode_table(body: bytes) -> Table:
    """The table in an answer; LinkError names what does not fit."""
    tree = _object(body)
    mappings, relays = _entries(tree, "mappings"), _entries(tree, "relays")
    for key, endpoint in mappings.items():
        check_key(key)
        if not isinstance(endpoint, str):
            raise LinkError(f"mapping of {key!r} is {reprlib.repr(endpoint)}, expected 'ip:port'")
        parse_endpoint(endpoint)
    for key in relays:
        check_key(key)
    return Table(
        index=_number(tree, "index"),
        mappings={key: str(endpoint) for key, endpoint in mappings.items()},
        relays={key: check_port(port) for key, port in relays.items()},
    )


def encode_relay_request(public_key: str) -> bytes:
    """The body of `POST /v1/relay`."""
    return json.dumps({"peer": public_key}).encode()


def decode_relay_request(body: bytes) -> str:
    """The peer's public key in the body of `POST /v1/relay`; LinkError when there is none."""
    key = _object(body).get("peer")
    if not isinstance(key, str):
        raise LinkError(f"the body has peer {reprlib.repr(key)}, expected a WireGuard public key")
    return check_key(key)


def decode_relay_answer(body: bytes) -> int:
    """The port in the answer to `POST /v1/relay`."""
    return check_port(_object(body).get("port"))


def check_port(port: object) -> int:
    """`port` when it is one, else LinkError."""
    if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
        raise LinkError(f"{reprlib.repr(port)} is not a UDP port")
    return port


def _object(body: bytes) -> dict[str, object]:
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise LinkError(f"not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise LinkError(f"expected a JSON object, got {reprlib.repr(tree)}")
    return tree


def _entries(tree: dict[str, object], name: str) -> dict[str, object]:
    value = tree.get(name)
    if not isinstance(value, dict):
        raise LinkError(f"{name} is {reprlib.repr(value)}, expected an object")
    return value


def _number(tree: dict[str, object], name: str) -> int:
    value = tree.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise LinkError(f"{name} is {reprlib.repr(value)}, expected an integer")
    return value
