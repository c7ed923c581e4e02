"""What Consul says, as values: instances of a service, peers, keys. Pure.

Consul's answers are decoded here and nowhere else. A part that does not fit is a `CatalogError`; the caller keeps the
last good value.
"""

from __future__ import annotations

import base64
import contextlib
import json
import reprlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from admission.protocol import PEERS_PREFIX, MeshPeer
from runtime import leader_key
from topology.trees import from_tree


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


@contextlib.contextmanager
def _reading(what: str) -> Iterator[None]:
    """Whatever an answer lacks, or has in another shape, is Consul's failure."""
    try:
        yield
    except CatalogError:
        raise
    except Exception as error:
        raise CatalogError(f"{what} cannot be read: {error!r:.200}") from error


def instances(tree: object) -> tuple[Instance, ...]:
    """The answer of `/v1/health/service/<service>?passing`, in a fixed order."""
    found = [_instance(entry) for entry in _list(tree, "health")]
    return tuple(sorted(found, key=lambda instance: (instance.peer_id, instance.service_id)))


def _instance(entry: Any) -> Instance:
    with _reading("an entry of health"):
        node, service = entry["Node"], entry["Service"]
        return Instance(
            service_id=_text(service["ID"]),
            peer_id=_text(node["Node"]),
            tags=tuple(map(_text, service.get("Tags") or ())),
            modify_index=int(service.get("ModifyIndex") or 0),
        )


def peers(tree: object) -> tuple[MeshPeer, ...]:
    """The admitted peers in the answer of `/v1/kv/mesh/peers/?recurse`, by peer ID. None (no such key) is nobody."""
    return tuple(sorted((_peer(entry) for entry in _list(tree or [], "peers")), key=lambda peer: peer.peer_id))


def _peer(entry: Any) -> MeshPeer:
    with _reading("a peer entry"):
        peer: MeshPeer = from_tree(MeshPeer, json.loads(base64.b64decode(entry["Value"])), "peer")
        key = _text(entry["Key"])
    if key != PEERS_PREFIX + peer.peer_id:
        raise CatalogError(f"the entry {key!r:.200} holds peer {peer.peer_id!r:.80}")
    return peer


def value(tree: object) -> str | None:
    """The text of the one entry in the answer of `/v1/kv/<key>`; None when there is no such key."""
    entries: Iterable[Any] = _list(tree or [], "key")
    for entry in entries:
        with _reading("a key's value"):
            return base64.b64decode(entry["Value"]).decode()
    return None


def lock_holder(tree: object) -> Holder:
    """Who holds the one entry in the answer of `/v1/kv/<key>`: the text, while a session has it."""
    entries = [entry for entry in _list(tree or [], "lock") if isinstance(entry, dict) and entry.get("Session")]
    return Holder(name=value(entries), serves=any(leader_key.serves(entry.get("Flags")) for entry in entries))


def _list(tree: object, what: str) -> list[Any]:
    if not isinstance(tree, list):
        raise CatalogError(f"{what} is {reprlib.repr(tree)}, expected a list")
    return tree


def _text(it: object) -> str:
    if not isinstance(it, str):
        raise TypeError(f"{reprlib.repr(it)} is not text")
    return it
