"""A spec → a snapshot: every resource as bytes with a version that is a hash of them. Pure.

A snapshot is a value. It carries what it was built from, so that the next build only does what changed: an entry, or
a part of it, that is as before keeps its bytes.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xds import check, public, refusal, resources, tls
from xds.spec import EgressRoute, Endpoint, Ingress, Leaf, Outside, PublicListener, Spec

if TYPE_CHECKING:
    import betterproto2

_PREFIX = "type.googleapis.com/"
CLUSTER = f"{_PREFIX}envoy.config.cluster.v3.Cluster"
ENDPOINT = f"{_PREFIX}envoy.config.endpoint.v3.ClusterLoadAssignment"
SECRET = f"{_PREFIX}envoy.extensions.transport_sockets.tls.v3.Secret"
LISTENER = f"{_PREFIX}envoy.config.listener.v3.Listener"
TYPES = (CLUSTER, ENDPOINT, SECRET, LISTENER)
"""Type URLs in the order in which additions go out (make before break)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One serialised resource."""

    name: str
    version: str
    """Hash of `body`: equal content has an equal version, in every process."""
    body: bytes = field(repr=False)
    """The message, serialised. A secret's holds a private key: hence no repr."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One resource and what it was made from."""

    made_from: object = field(repr=False)
    type_url: str
    resource: Resource


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One spec entry and its parts."""

    entry: object = field(repr=False)
    parts: tuple[_Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A consistent set of resources."""

    version: str
    """Hash of everything in it."""
    resources: Mapping[str, Mapping[str, Resource]]
    """Type URL → name → resource. Every type of `TYPES` is there."""
    entries: Mapping[Hashable, _Entry] = field(repr=False)
    """What it was built from; only for the next `build`."""


def build(spec: Spec, previous: Snapshot | None = None) -> Snapshot:
    """The snapshot of `spec`; `previous` saves work. SpecError names the entry that does not fit."""
    check.check_together(spec)
    old: Mapping[Hashable, _Entry] = previous.entries if previous else {}
    callers = {leaf.name: leaf.uri for leaf in spec.leaves if leaf.uri is not None}
    entries: dict[Hashable, _Entry] = {}
    for route in spec.egress:
        key = ("egress", route.name)
        entries[key] = _egress(route, callers[route.identity], old.get(key))
    for each in spec.outside:
        key = ("outside", each.name)
        entries[key] = _outside(each, spec.resolver, old.get(key))
    for ingress in spec.ingress:
        key = ("ingress", ingress.name)
        entries[key] = _ingress(ingress, old.get(key))
        key = ("refusal", ingress.source)
        entries[key] = _refusal(ingress.source, old.get(key))
    for listener in spec.public:
        key = ("public", listener.name)
        entries[key] = _public(listener, public.MAX_CONNECTIONS // len(spec.public), old.get(key))
    # Only secrets that somebody uses: "acknowledged" then means that Envoy holds every one of them.
    # A listener that lets nobody in needs none.
    used = {route.identity for route in spec.egress} | {each.identity for each in spec.ingress if each.allowed}
    shown = {listener.identity for listener in spec.public}
    for leaf in spec.leaves:
        if leaf.name in used | shown:
            key = ("leaf", leaf.name)
            entries[key] = _leaf(leaf, old.get(key))
    if used:
        entries["roots"] = _roots(spec.roots_pem, old.get("roots"))
    found: dict[str, dict[str, Resource]] = {type_url: {} for type_url in TYPES}
    for entry in entries.values():
        for part in entry.parts:
            found[part.type_url][part.resource.name] = part.resource
    return Snapshot(version=_version_of(found), resources=found, entries=entries)


def _egress(route: EgressRoute, caller: str, old: _Entry | None) -> _Entry:
    entry = (route, caller)
    if old and old.entry == entry:
        return old
    check.check_egress(route)
    listener_from = (route.name, route.generation, route.sole)
    has_sole = route.sole is not None
    parts = (
        _part(
            old,
            0,
            CLUSTER,
            (route.name, route.identity, caller, route.peer_sans, has_sole),
            lambda: resources.egress_cluster(route, caller),
        ),
        _part(old, 1, ENDPOINT, (route.name, route.endpoints, has_sole), lambda: resources.assignment(route)),
    )
    listeners = tuple(
        _part(old, index, LISTENER, (at, *listener_from), functools.partial(resources.egress_listener, route, at))
        for index, at in enumerate((Endpoint(route.vip, route.port), *route.doors), len(parts))
    )
    return _Entry(entry=entry, parts=parts + listeners)


def _outside(each: Outside, resolver: Endpoint | None, old: _Entry | None) -> _Entry:
    entry = (each, resolver)
    if old and old.entry == entry:
        return old
    check.check_outside(each, resolver)
    parts = (
        _part(None, 0, CLUSTER, None, lambda: resources.outside_cluster(each, resolver)),
        _part(None, 1, LISTENER, None, lambda: resources.outside_listener(each)),
    )
    return _Entry(entry=entry, parts=parts)


def _ingress(ingress: Ingress, old: _Entry | None) -> _Entry:
    if old and old.entry == ingress:
        return old
    check.check_ingress(ingress)
    cluster_from = (ingress.name, ingress.target, ingress.source, ingress.proxy_protocol)
    rights = (frozenset(ingress.allowed), frozenset(ingress.denied))
    listener_from = (ingress.name, ingress.address, ingress.port, ingress.identity, rights)
    parts = (
        _part(old, 0, CLUSTER, cluster_from, lambda: resources.ingress_cluster(ingress)),
        _part(old, 1, LISTENER, listener_from, lambda: resources.ingress_listener(ingress)),
    )
    return _Entry(entry=ingress, parts=parts)


def _public(listener: PublicListener, most: int, old: _Entry | None) -> _Entry:
    return _Entry(
        entry=listener, parts=(_part(old, 0, LISTENER, (listener, most), lambda: public.listener(listener, most)),)
    )


def _refusal(source: str, old: _Entry | None) -> _Entry:
    return old or _Entry(entry=source, parts=(_part(None, 0, LISTENER, None, lambda: refusal.listener(source)),))


def _leaf(leaf: Leaf, old: _Entry | None) -> _Entry:
    if old and old.entry == leaf:
        return old
    check.check_leaf(leaf)
    return _Entry(entry=leaf, parts=(_part(None, 0, SECRET, None, lambda: tls.leaf_secret(leaf)),))


def _roots(roots_pem: str, old: _Entry | None) -> _Entry:
    if old and old.entry == roots_pem:
        return old
    return _Entry(entry=roots_pem, parts=(_part(None, 0, SECRET, None, lambda: tls.roots_secret(roots_pem)),))


def _part(
    old: _Entry | None, index: int, type_url: str, made_from: object, make: Callable[[], betterproto2.Message]
) -> _Part:
    """The part of `old` at `index` when it was made from the same, else a new one."""
    if old is not None and index < len(old.parts) and old.parts[index].made_from == made_from:
        return old.parts[index]
    message = make()
    body = bytes(message)
    name: str = getattr(message, "cluster_name" if type_url == ENDPOINT else "name")
    return _Part(made_from=made_from, type_url=type_url, resource=Resource(name=name, version=_hash(body), body=body))


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=10).hexdigest()


def _version_of(found: Mapping[str, Mapping[str, Resource]]) -> str:
    """Of the versions alone: they are hashes of bodies, and a body holds its name."""
    whole = hashlib.blake2b(digest_size=10)
    for type_url in TYPES:
        versions = sorted([resource.version for resource in found[type_url].values()])
        whole.update(f"{type_url}\0{len(versions)}\0{''.join(versions)}".encode())
    return whole.hexdigest()
