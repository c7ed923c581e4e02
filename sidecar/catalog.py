"""What Consul says, as values: instances of a service, roots, leaves, intentions, peers. Pure.

Consul's answers are decoded here and nowhere else. A part that does not fit is a `CatalogError`; the caller keeps the
last good value.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from coordinator.protocol import PEERS_PREFIX, MeshPeer
from runtime import leader_key
from runtime.secret import Secret
from topology.manifest import ManifestError, from_tree


class CatalogError(ValueError):
    """An answer of Consul is not what its interface says. The message names the part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One passing, Connect-aware instance of a service."""

    service: str
    """The service itself, not its proxy."""
    proxy_id: str
    """Consul's ID of the proxy registration."""
    peer_id: str
    """Name of the node."""
    address: str
    """Mesh address."""
    port: int
    """Ingress port."""
    tags: tuple[str, ...]
    modify_index: int
    """Raft index of the registration's last change: of two claims, the greater is the later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roots:
    """The certificate authorities of the services' certificates."""

    trust_domain: str
    pem: str
    """All roots that count now, one after the other: during a rotation there are two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsulLeaf:
    """A service certificate."""

    service: str
    uri: str
    chain_pem: str
    key_pem: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One intention for a destination."""

    source: str
    """Service name or `*`."""
    allow: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """What a leader key says."""

    name: str | None
    """None: no session holds it."""
    serves: bool
    """The holder has said in the key itself that it takes requests (`runtime.leader_key`)."""


def instances(tree: object) -> tuple[Instance, ...]:
    """The answer of `/v1/health/connect/<service>?passing`, in a fixed order."""
    found = [_instance(entry) for entry in _list(tree, "health")]
    return tuple(sorted(found, key=lambda instance: (instance.peer_id, instance.proxy_id)))


def _instance(entry: Any) -> Instance:
    try:
        node, service = entry["Node"], entry["Service"]
        proxy = service.get("Proxy") or {}
        return Instance(
            service=_text(proxy.get("DestinationServiceName") or service["Service"]),
            proxy_id=_text(service["ID"]),
            peer_id=_text(node["Node"]),
            address=_text(service.get("Address") or node["Address"]),
            port=int(service["Port"]),
            tags=tuple(map(_text, service.get("Tags") or ())),
            modify_index=int(service.get("ModifyIndex") or 0),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CatalogError(f"health has an entry that cannot be read: {error!r}") from error


def roots(tree: object) -> Roots:
    """The answer of `/v1/agent/connect/ca/roots`."""
    try:
        assert isinstance(tree, dict)
        pems = [_text(root["RootCert"]).strip() + "\n" for root in tree["Roots"]]
        if not pems:
            raise CatalogError("roots is empty, expected one at least")
        return Roots(trust_domain=_text(tree["TrustDomain"]), pem="".join(pems))
    except (KeyError, TypeError, AssertionError) as error:
        raise CatalogError(f"roots cannot be read: {error!r}") from error


def leaf(tree: object) -> ConsulLeaf:
    """The answer of `/v1/agent/connect/ca/leaf/<service>`."""
    try:
        assert isinstance(tree, dict)
        return ConsulLeaf(
            service=_text(tree["Service"]),
            uri=_text(tree["ServiceURI"]),
            chain_pem=_text(tree["CertPEM"]),
            key_pem=Secret(_text(tree["PrivateKeyPEM"])),
        )
    except (KeyError, TypeError, AssertionError) as error:
        # Not the error's own text: it may quote the key.
        raise CatalogError(f"leaf certificate cannot be read: {type(error).__name__}") from None


def rules(tree: object, destination: str) -> tuple[Rule, ...]:
    """The rules for `destination` in the answer of `/v1/connect/intentions/match?by=destination`, strongest first.

    An intention by HTTP properties (no `Action`) is no rule for TCP and counts as a refusal.
    """
    if not isinstance(tree, dict):
        raise CatalogError(f"intentions is {tree!r:.60}, expected an object")
    try:
        entries = sorted(tree.get(destination) or (), key=lambda entry: -int(entry.get("Precedence") or 0))
        return tuple(Rule(source=_text(e["SourceName"]), allow=e.get("Action") == "allow") for e in entries)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CatalogError(f"intentions for {destination!r} cannot be read: {error!r}") from error


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
