"""Slots: who holds which peer ID. One holder a peer ID, one peer ID an instance, as long as the holder lives.

A pure state machine over frozen values; `coordinator.ledger` keeps the values in Consul's KV and learns which nodes
live.

Terms: a *slot* is a peer ID of the manifest. Its *holder* is one boot of one instance, known by the WireGuard key
that this boot made. A *lease* is renewed by the holder while it lives. A *node* is the holder's Consul agent as
gossip sees it. A *newcomer* is an attested instance that claims no slot: it asks for whichever is free.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

LEASE_SECONDS = 15.0
"""A lease lasts three renewals (one every 5 s): two may be lost."""


class NodeState(Enum):
    """A Consul node as this coordinator sees it."""

    ABSENT = "absent"
    """Never joined, or left."""
    ALIVE = "alive"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """State of a node, and since when (unix seconds, as noticed here)."""

    state: NodeState
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """What is written about a slot. JSON value of `coordinator/slots/<peer_id>`."""

    peer_id: str
    group: str
    instance_id: str
    boot_key: str
    """WireGuard public key, base64."""
    leaf_key: str
    """SubjectPublicKeyInfo of the attested key that its certificates are for, DER in base64; empty at a coordinator."""
    public_key: str = ""
    """Likewise of the key that its public listeners show; empty where it opens none."""
    agent_key: str = ""
    """Likewise of the key of its Consul agent's RPC TLS."""
    compose_hash: str
    """What it was admitted with; a newer manifest may no longer allow it."""
    app_id: str = ""
    """Likewise its app, 40 hex digits. Empty: none that a manifest has."""
    address: str = ""
    """Likewise the mesh address that it was given."""
    image: str = ""
    """Likewise its OS image, as `topology.allowed.image_id`. Empty: none that a manifest allows."""
    device: str = ""
    """The machine that it attested on, as `evidence.verify.Evidence` has it."""
    renewed_at: float
    """Unix seconds of the admission or the last renewal that is known here."""
    accessor: str = ""
    """Accessor ID of the Consul token."""
    workload_accessor: str = ""
    """Likewise of the workload's token; empty where there is none. Both expire together."""
    token_expires_at: float = 0.0
    """Unix seconds."""
    former: tuple[str, ...] = ()
    """Accessor IDs of its tokens before those: it has them until it has heard of the next ones. They end with it."""
    evidence: str = ""
    """Digest of what it was admitted by (`evidence.statement.evidence_digest`)."""
    trusts: str = ""
    """Digest of the newest manifest whose mesh CA it trusts: which it was admitted with, or of which it said so."""
    joined: bool = False
    """Its node was alive once."""
    released: bool = False
    """Stopped cleanly, or found dead. The entry stays to give the instance its old slot."""

    def with_tokens(self, accessor: str, workload_accessor: str, expires_at: float) -> Holder:
        """The same holder with other tokens."""
        return replace(self, accessor=accessor, workload_accessor=workload_accessor, token_expires_at=expires_at)

    @property
    def tokens(self) -> tuple[str, ...]:
        """Accessor IDs of its tokens, without former ones."""
        return tuple(each for each in (self.accessor, self.workload_accessor) if each)


@dataclass(frozen=True, slots=True, kw_only=True)
class Newcomer:
    """An attested CVM that waits for a slot of its group. JSON value of `coordinator/newcomers/<instance_id>`."""

    instance_id: str
    group: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Why a slot is refused."""

    reason: str


def dead(holder: Holder, node: Node | None, now: float, lease_seconds: float = LEASE_SECONDS) -> bool:
    """True when another boot may have the slot.

    A node that had joined and failed or left is dead at once, unless its CVM renewed its lease after that was
    noticed: then only its agent is gone. Without such a verdict of gossip, the lease must have lapsed.
    """
    if holder.released:
        return True
    if node is not None and node.state is NodeState.ALIVE:
        return False
    if holder.joined and node is not None and holder.renewed_at < node.since:
        return True
    return now - holder.renewed_at > lease_seconds


def lapsed(holder: Holder, node: Node | None, now: float, lease_seconds: float = LEASE_SECONDS) -> bool:
    """True when the holder is to be forgotten: the lease ran out and its node is not alive.

    Stricter than `dead`: an agent that restarts must not cost a living CVM its links.
    """
    alive = node is not None and node.state is NodeState.ALIVE
    return not holder.released and not alive and now - holder.renewed_at > lease_seconds


def claim(
    slots: Mapping[str, Holder], wanted: Holder, nodes: Mapping[str, Node], lease_seconds: float = LEASE_SECONDS
) -> Holder | Taken:
    """The new entry of the slot that `wanted` asks for, or why it cannot have it. `wanted.renewed_at` is now.

    Asking again from the same boot is always granted; whoever else lives keeps what it has.
    """
    now = wanted.renewed_at
    for other in slots.values():
        if other.peer_id == wanted.peer_id or other.instance_id != wanted.instance_id:
            continue
        if not dead(other, nodes.get(other.peer_id), now, lease_seconds):
            return Taken(reason=f"instance {wanted.instance_id} already holds {other.peer_id}, which is alive")
    current = slots.get(wanted.peer_id)
    if current is None:
        return wanted
    if current.boot_key == wanted.boot_key and current.instance_id == wanted.instance_id:
        # Not `joined` from before a release: an agent that left and comes again starts over. But an Envoy that runs
        # trusts what it trusted before, until its CVM says more.
        return replace(wanted, joined=current.joined and not current.released, trusts=current.trusts)
    if not dead(current, nodes.get(wanted.peer_id), now, lease_seconds):
        return Taken(reason=f"{wanted.peer_id} is held by another boot that is alive; try again later")
    return wanted


def all_trust(slots: Mapping[str, Holder], nodes: Mapping[str, Node], digest: str, now: float) -> bool:
    """Whether every holder that lives trusts the mesh CA of the manifest `digest`, as far as the records say."""
    return all(holder.trusts == digest or dead(holder, nodes.get(holder.peer_id), now) for holder in slots.values())


def left_behind(slots: Mapping[str, Holder], taken: Holder) -> tuple[Holder, ...]:
    """Other slots that the instance of `taken` held: to be freed, or an old boot could renew itself into a second
    slot.
    """
    return tuple(
        other
        for other in slots.values()
        if other.instance_id == taken.instance_id and other.peer_id != taken.peer_id and not other.released
    )


def doubled(slots: Mapping[str, Holder], written: Mapping[str, int]) -> tuple[Holder, ...]:
    """Holders with a WireGuard key that another holder had before them; `written` is each slot's KV index.

    Two coordinators that admit at the same moment do not see each other's keys, and no link takes two peers with one
    key: until the later one is freed, all links would stay as they were.
    """
    first: dict[str, str] = {}
    return tuple(
        holder
        for holder in sorted(slots.values(), key=lambda each: (written.get(each.peer_id, 0), each.peer_id))
        if not holder.released and first.setdefault(holder.boot_key, holder.peer_id) != holder.peer_id
    )


def propose(
    peer_ids: Iterable[str],
    slots: Mapping[str, Holder],
    instance_id: str,
    nodes: Mapping[str, Node],
    now: float,
    lease_seconds: float = LEASE_SECONDS,
) -> str | None:
    """The slot that an instance should ask for: the one it has or had, else one nobody had, else one whose holder is
    dead; or None.
    """
    candidates = tuple(peer_ids)
    for peer_id in candidates:
        holder = slots.get(peer_id)
        if holder is not None and holder.instance_id == instance_id:
            return peer_id
    for peer_id in candidates:
        if peer_id not in slots:
            return peer_id
    for peer_id in candidates:
        if dead(slots[peer_id], nodes.get(peer_id), now, lease_seconds):
            return peer_id
    return None


def newcomers_wait(
    peer_ids: Collection[str],
    slots: Mapping[str, Holder],
    nodes: Mapping[str, Node],
    waiting: Collection[str],
    left: float,
    now: float,
) -> float:
    """Seconds that the newcomers of a group have to wait yet; 0: they may have its free slots now.

    `peer_ids` are the group's slots, `waiting` the instance IDs of its newcomers, `left` are the seconds until a lease
    has passed since the records began. Records that have just begun know no holder, but CVMs that run hold slots: they
    claim them again within a lease, and come first. The wait ends early when a newcomer waits for each slot that is
    free: then all CVMs of the group are accounted for, and nobody is left who could claim one of them.
    """
    living = [slots[peer] for peer in peer_ids if peer in slots and not dead(slots[peer], nodes.get(peer), now)]
    holding = {holder.instance_id for holder in living}
    free = len(peer_ids) - len(living)
    return 0.0 if left <= 0 or len(set(waiting) - holding) >= free else left
