"""Which of Consul's answers are watched, and how each one changes the `World`. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from admission.admitted import admitted_as
from admission.protocol import MANIFEST_KEY, PEERS_PREFIX, RECORDS_KEY, MeshPeer
from runtime.secret import Secret
from sidecar import catalog, roles
from sidecar.catalog import CatalogError, Instance
from sidecar.certificate import aged, begun, heard
from sidecar.certificate_reading import Given
from sidecar.desired import World, watched_services
from topology.allowed import coordinators, why_not_allowed
from topology.envelope import SHOWN_DIGITS, Signed, digest_of
from topology.manifest import CoordinatorPeer, Manifest
from topology.succession import Fault, SuccessionError, overtake

CONSISTENT = ("consistent", "")
"""Parameter of a watch that must not go back in time. A server that restarts alone leads before it has applied its log,
and would answer with an earlier leader, and without the CVMs that were admitted since."""
NO_RECORDS = "of other coordinators"
"""In the place of those that are held, where no records will show that nothing was lost: the new coordinators' have a
text of their own (`coordinator.heir`), which is never this one."""
MAX_BEFORE = 1 << 20
"""Characters of envelopes of former manifests that are kept: as much again as one manifest may have. A change of one
manifest of a small mesh has some 20 KiB, so this is some fifty changes."""
Change = Callable[[World, Any, int], World]
"""(world, answer, its index) → the world with the answer in it; CatalogError when the answer does not fit."""


class BehindError(CatalogError):
    """Consul has a manifest to which some are missing here: a coordinator's history has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One thing to watch. Equal queries are the same watch."""

    path: str
    params: tuple[tuple[str, str], ...] = ()


def queries(world: World, *, check_signatures: bool) -> Mapping[Query, Change]:
    """Everything to watch for `world`. Without `check_signatures` an unsigned manifest is taken."""
    wanted: dict[Query, Change] = {
        Query(path=f"/v1/kv/{PEERS_PREFIX}", params=(("recurse", ""), CONSISTENT)): lambda now, tree, _: _listed(
            now, catalog.peers(tree)
        ),
        Query(path=f"/v1/kv/{MANIFEST_KEY}", params=(CONSISTENT,)): lambda now, tree, _: take_manifest(
            now, tree, check_signatures=check_signatures
        ),
    }
    wanted[Query(path=f"/v1/kv/{RECORDS_KEY}", params=(CONSISTENT,))] = _records
    for service in watched_services(world.manifest):
        wanted.update(instances_of(service))
    for key in world.manifest.leader_keys():
        wanted[Query(path=f"/v1/kv/{key}", params=(CONSISTENT,))] = _leader(key)
    return wanted


def instances_of(service: str) -> Mapping[Query, Change]:
    """The watch of one service's passing instances."""
    # `cached`: from the agent's own stream of the service, pushed by the servers, and still there without them.
    query = Query(path=f"/v1/health/service/{service}", params=(("passing", ""), ("cached", "")))

    def change(world: World, tree: Any, _: int) -> World:
        found = catalog.instances(tree)
        same = world.catalog.get(service) == found
        return world if same else replace(world, catalog={**world.catalog, service: found})

    return {query: change}


def merge_peers(older: tuple[MeshPeer, ...], newer: tuple[MeshPeer, ...]) -> tuple[MeshPeer, ...]:
    """All peers of both; where they differ, as `newer` has them."""
    return tuple(peer for _, peer in sorted({peer.peer_id: peer for peer in (*older, *newer)}.items()))


def _listed(world: World, listed: tuple[MeshPeer, ...]) -> World:
    """The world in which Consul lists these peers.

    A coordinator that was on the list and is not is one that the others put out: only they take its entry away. Where
    none is left, the servers have lost what they knew, and say nothing of any.
    """
    leads = {peer.peer_id for peer in listed if peer.kind == "coordinator"}
    before = {peer.peer_id for peer in world.listed_peers if peer.kind == "coordinator"}
    out = before - leads if leads else frozenset()
    return _with_peers(
        replace(
            world,
            listed_peers=listed,
            admitted_peers=tuple(peer for peer in world.admitted_peers if peer.peer_id not in out),
            held_peers=tuple(peer for peer in world.held_peers if peer.peer_id not in out),
        )
    )


def _with_peers(world: World) -> World:
    """The world whose peers are those that are held, admitted and listed, and that the manifest has: who lists one can
    be wrong, or behind.
    """
    found = merge_peers(merge_peers(world.held_peers, world.admitted_peers), world.listed_peers)
    peers = tuple(peer for peer in found if _stays(world.manifest, peer) or _is_former(world, peer))
    return world if peers == world.peers else replace(world, peers=peers)


def _stays(manifest: Manifest, peer: MeshPeer) -> bool:
    """Whether the manifest has the peer where it is, and still allows what it was admitted with. Of a coordinator that
    is what it says of itself; the others judge it by its evidence, and take it from the list (`_listed`).
    """
    if any((lead.peer_id, lead.address) == (peer.peer_id, peer.address) for lead in coordinators(manifest)):
        # One of an earlier version says nothing. And who lists one can be wrong in what kind it is.
        said = replace(peer, kind="coordinator")
        return not peer.compose_hash or why_not_allowed(manifest, admitted_as(said)) is None
    return peer.kind == "workload" and why_not_allowed(manifest, admitted_as(peer)) is None


def _is_former(world: World, peer: MeshPeer) -> bool:
    """Whether the peer is a coordinator that had the mesh before, and is needed still."""
    return any((lead.peer_id, lead.address) == (peer.peer_id, peer.address) for lead in world.former)


def _by_manifest(world: World) -> World:
    """The world without anybody whom its manifest dropped: neither a peer nor an instance that is held."""
    gone = {peer.peer_id for peer in (*world.held_peers, *world.listed_peers) if not _stays(world.manifest, peer)}
    held = {
        service: tuple(instance for instance in found if instance.peer_id not in gone)
        for service, found in world.held.items()
    }
    held_peers = tuple(peer for peer in world.held_peers if peer.peer_id not in gone)
    return _with_peers(replace(world, held=held, held_peers=held_peers) if gone else world)


def take_manifest(world: World, tree: Any, *, check_signatures: bool) -> World:
    """As `take`, of the KV's answer `tree`. CatalogError when the manifest is not to be believed."""
    envelope = catalog.value(tree)
    if envelope is None:
        return world
    try:
        return take(world, envelope, check_signatures=check_signatures)
    except SuccessionError as error:
        # Owners may have changed in between, so that its signatures say nothing yet.
        kind = BehindError if error.fault in (Fault.GAP, Fault.INVALID) else CatalogError
        raise kind(f"the manifest in Consul is refused: {error}") from error


def take(world: World, envelope: str, *, check_signatures: bool) -> World:
    """The world with the manifest in `envelope`, which a coordinator enforces, if it counts more than ours. It is the
    same world where there is nothing new. SuccessionError when it is not to be believed.
    """
    if envelope == world.signed.envelope:
        return world
    found = overtake(world.signed, envelope, settled=True, signed=check_signatures)
    return world if found is None else adopt(world, found)


def adopt(world: World, found: Signed) -> World:
    """The world with the manifest `found`, which was judged to count, and may have been overtaken since: whoever judged
    it waited for the coordinator's evidence. SuccessionError when a CVM that runs cannot take it.
    """
    now, new = world.manifest, found.manifest
    if found.digest == world.signed.digest or new.epoch < now.epoch:
        return world
    if new.epoch == now.epoch:
        raise SuccessionError(Fault.FORKED, f"it is another manifest of epoch {new.epoch} than {world.signed.name}")
    if new.vip_pool != now.vip_pool or new.mesh_pool != now.mesh_pool:
        raise SuccessionError(Fault.FOREIGN, "it has other address pools; restart the CVMs to change those")
    before = _kept((*world.before, world.signed)) if new.previous == world.signed.digest else ()
    taken = replace(world, signed=found, before=before)
    if new.coordinators.app_id == now.coordinators.app_id:
        return _by_manifest(taken)
    moved = _with_former(taken, now.coordinators.peers)
    if not moved.former:
        # One of them has admitted this CVM already, and what was good is held since; or a handover was taken back.
        return _by_manifest(moved)
    # Other CVMs leave the former coordinators' Consul one after the other, and live all the same.
    held = replace(hold(world), held_records=NO_RECORDS)
    return _by_manifest(replace(held, signed=found, before=before, former=moved.former))


def _with_former(world: World, former: tuple[CoordinatorPeer, ...]) -> World:
    """The world in which the coordinators `former` are needed until one of those that the manifest has now has admitted
    this CVM.
    """
    names = {lead.peer_id for lead in world.manifest.coordinators.peers}
    admitted = any(peer.peer_id in names for peer in world.admitted_peers)
    return replace(world, former=() if admitted else former)


def overlap(manifest: Manifest, unix: float) -> float:
    """Seconds from now (`unix`, in Unix seconds) for which certificates under what came before `manifest` are trusted:
    while a handover lasts, some CVM may not have been admitted by the new coordinators yet.
    """
    handover = manifest.coordinators.handover
    return max(float(manifest.overlap_seconds), handover.until - unix if handover is not None else 0.0)


def _kept(before: tuple[Signed, ...]) -> tuple[Signed, ...]:
    """The last of them, as many as MAX_BEFORE has room for."""
    room = MAX_BEFORE
    for count, each in enumerate(reversed(before)):
        room -= len(each.envelope)
        if room < 0:
            return before[len(before) - count :]
    return before


def after(world: World, epoch: int) -> tuple[str, ...]:
    """The envelopes that lead from the manifest of `epoch` to the newest, oldest first, for a coordinator that has that
    one; nothing where some are not known.
    """
    found = tuple(each for each in (*world.before, world.signed) if each.manifest.epoch > epoch)
    whole = len(found) == world.manifest.epoch - epoch
    return tuple(each.envelope for each in found) if whole else ()


def why_misplaced(world: World, peer_id: str, address: str, envelope: str, *, check_signatures: bool) -> str | None:
    """Why `address` is not that of the slot `peer_id`, by the newest manifest that is known or in `envelope`; None when
    it is. What a coordinator says of it can be wrong, and the manifest decides.
    """
    if envelope:
        # What cannot be taken is another check's reason.
        with contextlib.suppress(SuccessionError):
            world = take(world, envelope, check_signatures=check_signatures)
    entry = world.manifest.groups.get(world.group, world.own)
    slots = {peer.peer_id: peer.address for peer in entry.peers}
    if slots.get(peer_id) == address:
        return None
    return f"gives {peer_id} the mesh address {address!r:.60}, the manifest has {slots.get(peer_id, 'no such slot')}"


def why_not_enforced(world: World, epoch: int, digest: str, envelope: str, *, check_signatures: bool) -> str | None:
    """Why a coordinator that enforces the manifest of `epoch` with `digest` (hex), in `envelope` (empty when it did not
    send it), is not to be used; None when it may be. A sidecar that is too old to read a newer manifest may use it: the
    coordinator judges by it.
    """
    held = world.signed
    if epoch < world.manifest.epoch:
        return f"rolled back: enforces epoch {epoch}, this CVM holds epoch {world.manifest.epoch}"
    if epoch == world.manifest.epoch and digest != held.digest:
        return (
            f"enforces another manifest: epoch {epoch} ({digest:.{SHOWN_DIGITS}}), and this CVM holds {held.name}; two "
            "were signed for one epoch"
        )
    if not envelope:
        return None
    try:
        overtake(held, envelope, settled=True, signed=check_signatures)
    except SuccessionError as error:
        return None if error.fault.unread else f"enforces another manifest: {error}"
    shown = digest_of(envelope)
    if shown != digest:
        return f"shows the manifest {shown:.{SHOWN_DIGITS}} and certifies by {digest:.{SHOWN_DIGITS}}"
    return None


def hold(world: World) -> World:
    """The world in which what was a good instance or a peer until now is held: the servers may have lost what they
    knew. Until `let_go`, or until they show that they have not (`_records`).
    """
    kept = {service: (*found, *world.held.get(service, ())) for service, found in world.catalog.items()}
    return _by_manifest(
        replace(
            world,
            held={service: _unique(found) for service, found in kept.items()},
            held_peers=merge_peers(world.held_peers, world.peers),
            # Held twice: those that were lost first are what is waited for.
            held_records=world.held_records or world.records,
        )
    )


def let_go(world: World) -> World:
    """The world in which only what Consul lists counts."""
    leaders = {key: roles.let_go(leader) for key, leader in world.leaders.items()}
    return _with_peers(replace(world, held={}, held_peers=(), held_records="", leaders=leaders))


def _records(world: World, tree: Any, _: int) -> World:
    """The world that knows which records the servers have. Where they are those from before the loss of a lease, then
    that was all that was lost.
    """
    found = catalog.value(tree)
    if found is None:
        return world
    return let_go(world) if found == world.held_records else replace(world, records=found)


def _unique(found: tuple[Instance, ...]) -> tuple[Instance, ...]:
    return tuple({instance.service_id: instance for instance in reversed(found)}.values())


def _leader(key: str) -> Change:
    def change(world: World, tree: Any, index: int) -> World:
        before = world.leaders.get(key)
        after = roles.heard(before, catalog.lock_holder(tree), index, holding=bool(world.held))
        return world if after == before else replace(world, leaders={**world.leaders, key: after})

    return change


def with_certificate(
    world: World, given: Given, key: Secret, public: Secret, now: float, last: float, seconds: float
) -> World:
    """The world after a coordinator gave a certificate for our `key`, and those of public listeners for the key
    `public`, at `now`; the answer before came at `last` (both monotonic seconds). What came before it is trusted for
    `seconds` (`overlap`). CertificateError when it is the first and has no leaf.
    """
    held = world.certificate
    certificate = begun(given, now, seconds) if held is None else heard(held, given, now, seconds, last)
    return world if certificate == held else replace(world, certificate=certificate, leaf_key=key, public_key=public)


def with_time(world: World, now: float) -> World:
    """The world at `now` (monotonic seconds)."""
    if world.certificate is None or (certificate := aged(world.certificate, now)) == world.certificate:
        return world
    return replace(world, certificate=certificate)


def with_admission(world: World, peers: tuple[MeshPeer, ...], address: str) -> World:
    """The world once we are admitted (again): our address, and the coordinators as they are now.

    They count more than what Consul listed before: a coordinator that booted anew has a new key, and without a tunnel
    to it no newer list would ever arrive.
    """
    named = {peer.peer_id for peer in peers}
    listed = tuple(peer for peer in world.listed_peers if peer.peer_id not in named)
    held = tuple(peer for peer in world.held_peers if peer.peer_id not in named)
    world = replace(world, address=address, admitted_peers=peers, listed_peers=listed, held_peers=held)
    return _with_peers(_with_former(world, world.former))
