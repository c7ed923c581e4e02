"""The registry: the KV overlaid with own changes."""

from __future__ import annotations

import json

from admission.protocol import MeshPeer
from coordinator.registry import Registry, decode_peer, encode_peer


def peer(name: str, key: str = "k") -> MeshPeer:
    """A workload's entry."""
    return MeshPeer(peer_id=name, public_key=key, address="100.96.0.1", kind="workload")


class Watched:
    """A registry that counts its changes."""

    def __init__(self) -> None:
        self.changes = 0
        self.registry = Registry(self._changed)

    def _changed(self) -> None:
        self.changes += 1

    def names(self) -> list[str]:
        """IDs of all peers."""
        return [each.peer_id for each in self.registry.peers()]


def test_an_own_admission_shows_before_it_is_written() -> None:
    """`put` changes the set at once, and only once."""
    watched = Watched()
    watched.registry.put(peer("api-0"))
    watched.registry.put(peer("api-0"))
    assert watched.names() == ["api-0"]
    assert watched.changes == 1


def test_an_older_snapshot_does_not_undo_an_own_write() -> None:
    """The KV as of before our write must not make the peer vanish; as of our write or later it decides."""
    watched = Watched()
    watched.registry.put(peer("api-0"))
    watched.registry.written("api-0", 10)
    watched.registry.snapshot(9, {})
    assert watched.names() == ["api-0"]
    watched.registry.snapshot(10, {"api-0": peer("api-0")})
    watched.registry.snapshot(11, {})
    assert watched.names() == []


def test_an_unwritten_admission_is_undone() -> None:
    """When the write failed, what the KV says is what holds."""
    watched = Watched()
    watched.registry.snapshot(5, {"api-0": peer("api-0", "old")})
    watched.registry.put(peer("api-0", "new"))
    watched.registry.undo("api-0")
    assert watched.registry.get("api-0") == peer("api-0", "old")


def test_an_own_removal_holds_against_an_older_snapshot() -> None:
    """A freed peer does not come back from a late answer."""
    watched = Watched()
    watched.registry.snapshot(5, {"api-0": peer("api-0")})
    watched.registry.remove("api-0", 7)
    watched.registry.snapshot(6, {"api-0": peer("api-0")})
    assert watched.names() == []
    watched.registry.snapshot(8, {"api-0": peer("api-0", "again")})
    assert watched.names() == ["api-0"]


def test_an_equal_snapshot_is_no_change() -> None:
    """Nobody is woken when nothing changed."""
    watched = Watched()
    watched.registry.snapshot(5, {"api-0": peer("api-0")})
    watched.registry.snapshot(6, {"api-0": peer("api-0")})
    assert watched.changes == 1


def test_entries_that_are_not_ours_are_left_out() -> None:
    """Garbage, unknown fields and an entry under another's key are ignored."""
    good = peer("api-0")
    values = {
        "mesh/peers/api-0": encode_peer(good),
        "mesh/peers/api-1": encode_peer(good),
        "mesh/peers/api-2": b"no JSON",
        "mesh/peers/api-3": json.dumps({"peer_id": "api-3", "more": 1}).encode(),
    }
    assert [decode_peer(key, value) for key, value in values.items()] == [good, None, None, None]
