"""Which names a manifest has: of its cluster, CVMs, groups, backends, routes and secrets, and where one names another.
Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from topology.texts import shown

if TYPE_CHECKING:
    from topology.manifest import CoordinatorPeer, Coordinators, GroupEntry, Manifest, PeerEntry


def named(manifest: Manifest, everybody: str) -> Iterator[tuple[str, str]]:
    """Where each name stands in `manifest`, and the name. `everybody`, as a caller, is none."""
    yield ".cluster", manifest.cluster
    entries: tuple[tuple[str, Coordinators | GroupEntry], ...] = (
        (".coordinators", manifest.coordinators),
        *((f".groups.{shown(name)}", it) for name, it in manifest.groups.items()),
    )
    for entry, app in entries:
        peers: tuple[PeerEntry | CoordinatorPeer, ...] = app.peers
        yield from ((f"{entry}.peers[{n}].peer_id", peer.peer_id) for n, peer in enumerate(peers))
    for name, group in manifest.groups.items():
        yield f".groups.{shown(name)}", name
        for backend, it in group.backends.items():
            inside = f".groups.{name}.backends.{shown(backend)}"
            yield inside, backend
            yield f"{inside}.service", it.service
            yield from ((f"{inside}.callers[{n}]", each) for n, each in enumerate(it.callers) if each != everybody)
    for n, route in enumerate(manifest.routes):
        for field_name in ("name", "group", "backend", "service", "role", "fallback"):
            if (name := getattr(route, field_name)) is not None:
                yield f".routes[{n}].{field_name}", name
    for name, secret in manifest.secrets.items():
        yield f".secrets.{shown(name)}", name
        yield f".secrets.{name}.owner", secret.owner
        yield from ((f".secrets.{name}.groups[{n}]", each) for n, each in enumerate(secret.groups))
