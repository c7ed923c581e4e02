"""The peer registry: which WireGuard keys are admitted. What Consul's KV says, overlaid with what this coordinator
just did. Pure.

An admission is applied here first, so that the link and the rendezvous know the key before the CVM does; the KV,
from which all others learn it, follows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from admission.protocol import PEERS_PREFIX, MeshPeer
from runtime import jsons
from topology.trees import ManifestError, from_tree


@dataclass(frozen=True, slots=True)
class _Local:
    """An own change: the peer (None: removed) and the KV index that carries it (None: not written yet, or never)."""

    peer: MeshPeer | None
    index: int | None


class Registry:
    """All admitted peers; `changed` is called, without arguments, when the set has changed."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._remote: dict[str, MeshPeer] = {}
        self._remote_index = 0
        self._local: dict[str, _Local] = {}
        self._merged: dict[str, MeshPeer] = {}
        self._peers: tuple[MeshPeer, ...] | None = None

    def peers(self) -> tuple[MeshPeer, ...]:
        """Everyone admitted, by peer ID."""
        if self._peers is None:
            # Once a change: each admission asks several times.
            self._peers = tuple(self._merged[peer_id] for peer_id in sorted(self._merged))
        return self._peers

    def remember(self, peers: Mapping[str, MeshPeer]) -> None:
        """Takes `peers` as admitted until the KV's first answer: who was so before this coordinator restarted."""
        if self._remote_index == 0:
            self._remote = dict(peers)
            self._merge()

    def get(self, peer_id: str) -> MeshPeer | None:
        """The peer of that ID, if it is admitted."""
        return self._merged.get(peer_id)

    def put(self, peer: MeshPeer) -> None:
        """Applies an own admission before it is written."""
        self._local[peer.peer_id] = _Local(peer, None)
        self._merge()

    def remove(self, peer_id: str, index: int | None = None) -> None:
        """Applies an own removal; `index` as in `written`."""
        self._local[peer_id] = _Local(None, index)
        self._settle()

    def written(self, peer_id: str, index: int) -> None:
        """The own change of `peer_id` is in the KV as of `index`."""
        local = self._local.get(peer_id)
        if local is not None:
            self._local[peer_id] = _Local(local.peer, index)
            self._settle()

    def undo(self, peer_id: str) -> None:
        """The own change of `peer_id` was not written."""
        self._local.pop(peer_id, None)
        self._merge()

    def snapshot(self, index: int, peers: Mapping[str, MeshPeer]) -> None:
        """The KV as of `index`. Own changes that it carries, or that came before it, are settled."""
        self._remote, self._remote_index = dict(peers), index
        self._settle()

    def _settle(self) -> None:
        self._local = {
            peer_id: local
            for peer_id, local in self._local.items()
            if local.index is None or local.index > self._remote_index
        }
        self._merge()

    def _merge(self) -> None:
        merged = dict(self._remote)
        for peer_id, local in self._local.items():
            if local.peer is None:
                merged.pop(peer_id, None)
            else:
                merged[peer_id] = local.peer
        if merged != self._merged:
            self._merged, self._peers = merged, None
            self._changed()


def encode_peer(peer: MeshPeer) -> bytes:
    """The JSON value under `mesh/peers/<peer_id>`."""
    return jsons.canonical(peer)


def decode_peer(key: str, value: bytes) -> MeshPeer | None:
    """The peer in a KV entry; None when it is not one of ours, or sits under another's key."""
    try:
        peer: MeshPeer = from_tree(MeshPeer, json.loads(value), key)
    except (ManifestError, ValueError, RecursionError):
        return None
    return peer if key == PEERS_PREFIX + peer.peer_id else None
