"""What Consul says, as values: instances of a service, peers, keys. Pure.

Consul's answers are decoded here and nowhere else. A part that does not fit is a `CatalogError`; the caller keeps the
last good value.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from admission.protocol import PEERS_PREFIX, MeshPeer
from runtime import leader_key
from topology.manifest import ManifestError, from_tree


class CatalogError(ValueError):
    """An answer of Consul is not what its interface says. The message names the part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One passing instance of a service. Where it is, the manifest says: an address that Consul lists counts for
    nothing.
    """

    service_id: str
    """Consul's ID of the registration."""
    peer_id: str
    """Name of the node."""
    tags: tuple[str, ...]
    modify_index: int
    """Raft index of the registration's last change: of two claims, the greater is the later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """What a leader key says."""

    name: str | None
    """None: no session holds it."""
    serves: bool
    """The holder has said in the key itself that it takes requests (`runtime.leader_key`)."""


def instances(tree: object) -> tuple[Instance, ...]:
    """The answer of `/v1/health/service/<service>?passing`, in a fixed order."""
    found = [_instance(entry) for entry in _list(tree, "health")]
    return tuple(sorted(found, key=lambda instance: (instance.peer_id, instance.service_id)))


def _instance(entry: Any) -> Instance:
    try:
        node, service = entry["Node"], entry["Service"]
        return Instance(
            service_id=_text(service["ID"]),
            peer_id=_text(node["Node"]),
            tags=tuple(map(_text, service.get("Tags") or ())),
            modify_index=int(service.get("ModifyIndex") or 0),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CatalogError(f"health has an entry that cannot be read: {error!r}") from error


def peers(tree: object) -> tuple[MeshPeer, ...]:
    """The admitted peers in the answer of `/v1/kv/mesh/peers/?recurse`, by peer ID. None (no such key) is nobody."""
    return tuple(sorted((_peer(entry) for entry in _list(tree or [], "peers")), key=lambda peer: peer.peer_id))


def _peer(entry: Any) -> MeshPeer:
    try:
        peer: MeshPeer = from_tree(MeshPeer, json.loads(base64.b64decode(entry["Value"])), "peer")
        key = _text(entry["Key"])
    except (KeyError, TypeError, ValueError, ManifestError) as error:
        raise CatalogError(f"a peer entry cannot be read: {error}") from error
    if key != PEERS_PREFIX + peer.peer_id:
        raise CatalogError(f"the entry {key!r} holds peer {peer.peer_id!r}")
    return peer


def value(tree: object) -> str | None:
    """The text of the one entry in the answer of `/v1/kv/<key>`; None when there is no such key."""
    entries: Iterable[Any] = _list(tree or [], "key")
    for entry in entries:
        try:
            return base64.b64decode(entry["Value"]).decode()
        except (KeyError, TypeError, ValueError) as error:
            raise CatalogError(f"a key's value cannot be read: {error!r}") from error
    return None


def lock_holder(tree: object) -> Holder:
    """Who holds the one entry in the answer of `/v1/kv/<key>`: the text, while a session has it."""
    entries = [entry for entry in _list(tree or [], "lock") if isinstance(entry, dict) and entry.get("Session")]
    return Holder(name=value(entries), serves=any(leader_key.serves(entry.get("Flags")) for entry in entries))


def _list(tree: object, what: str) -> list[Any]:
    if not isinstance(tree, list):
        raise CatalogError(f"{what} is {tree!r:.60}, expected a list")
    return tree


def _text(it: object) -> str:
    if not isinstance(it, str):
        raise TypeError(f"{it!r:.40} is not text")
    return it
