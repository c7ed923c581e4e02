"""Who listens where a backend's server should: from the kernel's tables to what the status says. Pure."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from topology.manifest import BackendEntry, Manifest
from topology.public import OFF

LISTEN = "0A"
"""The state of a listening socket in /proc/net/tcp (TCP_LISTEN of the kernel's include/net/tcp_states.h)."""
_SERVES = frozenset({"127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1", "::ffff:0.0.0.0"})
"""Addresses on which a server is reached at 127.0.0.1. `::` takes IPv4 too unless its program says otherwise."""
_ALL = frozenset({"0.0.0.0", "::", "::ffff:0.0.0.0"})
_SHOWN = 16
"""Listeners that are shown of one port: a program with SO_REUSEPORT may have one per CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """One listening TCP socket."""

    address: str
    port: int
    inode: int
    """What `/proc/<pid>/fd` calls it: `socket:[<inode>]`."""


def parse(line: str) -> Listener | None:
    """The listening socket in one line of /proc/net/tcp or tcp6; None for any other line."""
    words = line.split()
    if len(words) < 10 or words[3] != LISTEN:
        return None
    try:
        address, port = words[1].split(":")
        return Listener(address=_address(address), port=int(port, 16), inode=int(words[9]))
    except ValueError:
        return None


def _address(text: str) -> str:
    """An address as the kernel prints it: 32-bit words, each in this machine's byte order."""
    words = [bytes.fromhex(text[at : at + 8]) for at in range(0, len(text), 8)]
    raw = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    found = ipaddress.ip_address(raw)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return f"::ffff:{mapped}" if mapped is not None else str(found)


def document(manifest: Manifest, group: str, listeners: Iterable[Listener]) -> list[dict[str, Any]]:
    """One object for each backend of `group`: its port, who listens on it, and what is wrong (None: nothing is)."""
    if group not in manifest.groups:
        return []
    there = tuple(listeners)
    shown = []
    for name, backend in sorted(manifest.groups[group].backends.items()):
        vips = {route.vip for route in manifest.routes if route.port == backend.port}
        own = [item for item in there if item.port == backend.port and item.address not in vips]
        held = {item.address for item in there if item.port == backend.port and item.address in vips}
        shown.append(
            {
                "name": name,
                "port": backend.port,
                "listeners": [{"address": item.address, "inode": item.inode} for item in own[:_SHOWN]],
                "problem": problem(backend, tuple(dict.fromkeys(item.address for item in own)), vips - held, held),
            }
        )
    return shown


def _loopback(address: str) -> bool:
    found = ipaddress.ip_address(address)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


def problem(backend: BackendEntry, addresses: tuple[str, ...], lacking: set[str], held: set[str]) -> str | None:
    """What keeps calls from the server at `backend`'s port, or lets others in.

    `addresses`: where the port is listened on, VIPs apart. `held` and `lacking`: the VIPs of routes with this port
    on which the mesh's Envoy does and does not listen.
    """
    port = backend.port
    if not addresses:
        told = f"nothing listens on 127.0.0.1:{port}"
        if held:
            told += f" (a server that binds 0.0.0.0:{port} cannot: the mesh has {min(held)}:{port}; bind 127.0.0.1)"
        return told
    if backend.ingress == OFF:
        outside = [address for address in addresses if not _loopback(address)]
        if outside:
            return (
                f"port {port} is bound on {', '.join(outside)}, and its ingress is off: it answers in clear whoever "
                "reaches the CVM there; bind 127.0.0.1"
            )
        return None
    if lacking and _ALL & set(addresses):
        return (
            f"a server has bound 0.0.0.0:{port}, so the mesh cannot have {min(lacking)}:{port} for its route; "
            "bind 127.0.0.1"
        )
    if not _SERVES & set(addresses):
        return f"port {port} is bound on {', '.join(addresses)} only, where the mesh does not call; bind 127.0.0.1"
    return None
