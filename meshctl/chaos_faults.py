"""Faults that take several steps, and attacks. Each is made while the clients run, and mended before it returns.

`make` returns when the last step is done. Every wait is bounded. IO through `meshctl.chaos_cluster`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from meshctl.chaos_figures import Fault
from meshctl.errors import UserError
from meshctl.probes import ProbeError

if TYPE_CHECKING:
    from meshctl.chaos_cluster import Cluster

READY_SECONDS = 120.0
"""For a CVM that was started: a boot takes some 3 s, on a machine with too much to do ten times that."""
APART_SECONDS = 3.0
"""Between two steps that are to find the first one's consequences: acknowledged writes that one member lacks, a
coordinator that serves again, a member that has looked for a leader."""
FULL_SECONDS = 10.0
"""How long a disk stays full."""
BURN_BYTES = 256 << 20
"""Written to the leader whose disk is full: more than the log files that PostgreSQL keeps for reuse (80 MB)."""
ATTACK_SECONDS = 25.0
"""Longer than the supervisor waits for a sign of life from Patroni (20 s), and than a session without renewal lives."""
HALF_REQUESTS = 16
"""At each address: Patroni's REST has six threads."""
POLL = 0.1


def make(cluster: Cluster, fault: Fault, leader: str, turn: int) -> float:
    """Makes `fault`; the moment (CLOCK_MONOTONIC) just before it began."""
    steps: dict[Fault, Callable[[], float]] = {
        "coordinators-restart": lambda: _restart_coordinators(cluster, one_by_one=turn % 2 == 1),
        "coordinators-lost": lambda: _lose_coordinators(cluster),
        "coordinator-and-members": lambda: _lose_all(cluster, leader, disks=turn % 2 == 1),
        "rolling-update": lambda: _update(cluster, leader),
        "disk-full": lambda: _fill(cluster, leader),
        "rest-attack": lambda: _occupy(cluster),
        "check-attack": lambda: _poison(cluster),
    }
    return steps[fault]()


MADE_HERE: tuple[Fault, ...] = (
    "coordinators-restart", "coordinators-lost", "coordinator-and-members", "rolling-update", "disk-full",
    "rest-attack", "check-attack",
)  # fmt: skip


def _restart_coordinators(cluster: Cluster, *, one_by_one: bool) -> float:
    """Power cut and boot of every coordinator: all at once, or one after the other, each before the last one serves."""
    at = time.monotonic()
    coordinators = cluster.coordinators()
    if one_by_one:
        for peer in coordinators:
            cluster.act(peer, "kill")
            cluster.act(peer, "start")
            time.sleep(APART_SECONDS)
    else:
        _each(cluster, coordinators, "kill")
        _each(cluster, coordinators, "start")
    wait_ready(cluster, coordinators)
    return at


def _lose_coordinators(cluster: Cluster) -> float:
    """Every coordinator is gone with its disk, and boots with an empty one."""
    at = time.monotonic()
    coordinators = cluster.coordinators()
    for action in ("kill", "wipe", "start"):
        _each(cluster, coordinators, action)
    wait_ready(cluster, coordinators)
    return at


def _lose_all(cluster: Cluster, leader: str, *, disks: bool) -> float:
    """A replica is lost, writes go on, all else is lost. Coordinators boot first, then that replica, then the rest.

    With `disks` the coordinators come back knowing nothing.
    """
    behind = next(member for member in cluster.members if member != leader)
    others = [member for member in cluster.members if member != behind]
    machines = cluster.machines()
    cluster.act(behind, "kill")
    time.sleep(APART_SECONDS)
    at = time.monotonic()
    coordinators = cluster.coordinators()
    _each(cluster, [*others, *coordinators], "kill")
    if disks:
        _each(cluster, coordinators, "wipe")
    _each(cluster, coordinators, "start")
    wait_ready(cluster, coordinators)
    # By the machine: a peer ID belongs to whoever is admitted first.
    cluster.forget(behind)
    cluster.act(machines[behind], "start")
    time.sleep(APART_SECONDS)
    for peer in others:
        cluster.forget(peer)
        cluster.act(machines[peer], "start")
    return at


def _update(cluster: Cluster, leader: str) -> float:
    """Every member is stopped in good order and booted, as an update does: replicas first, the leader last."""
    at = time.monotonic()
    for member in sorted(cluster.members, key=lambda peer: peer == leader):
        machine = cluster.machines()[member]
        cluster.forget(member)
        cluster.act(member, "stop")
        cluster.act(machine, "start")
        cluster.wait_whole()
    return at


def _fill(cluster: Cluster, leader: str) -> float:
    """The leader's disk is full for a while; writes that need more space than the log keeps for reuse go on."""
    at = float(cluster.act(leader, "fill")["at"])
    try:
        end = time.monotonic() + FULL_SECONDS
        try:
            cluster.clients.do("burn", target=cluster.target("postgres-master"), size=BURN_BYTES, seconds=FULL_SECONDS)
        except ProbeError as error:
            raise UserError(f"the clients could not write while the disk was full: {error}") from error
        time.sleep(max(0.0, end - time.monotonic()))
    finally:
        cluster.act(leader, "free")
    return at


def _occupy(cluster: Cluster) -> float:
    """An application of another group holds half-sent requests at each member's REST, by every address that it has."""
    at = time.monotonic()
    routes = cluster.rest_routes()
    targets = [(address, port) for address in cluster.addresses(cluster.members) for port in {p for _, p in routes}]
    targets += routes
    cluster.clients.do(
        "occupy", _seconds=ATTACK_SECONDS * 3, targets=targets, each=HALF_REQUESTS, seconds=ATTACK_SECONDS
    )
    return at


def _poison(cluster: Cluster) -> float:
    """An application of another group writes failing checks onto the members' nodes."""
    at = time.monotonic()
    counts = cluster.clients.do(
        "poison", _seconds=ATTACK_SECONDS * 3, nodes=list(cluster.members), seconds=ATTACK_SECONDS
    )
    if not counts["written"]:
        cluster.note(f"no write of the attack was taken: {counts}")
    return at


def _each(cluster: Cluster, peers: Sequence[str], action: str) -> None:
    for peer in peers:
        cluster.act(peer, action)


def wait_ready(cluster: Cluster, peers: Sequence[str]) -> None:
    """Returns when all of `peers` are ready; UserError when that takes longer than READY_SECONDS."""
    end = time.monotonic() + READY_SECONDS
    while True:
        documents: list[dict[str, Any]] = [p for p in cluster.document()["peers"] if p["peer_id"] in peers]
        waiting = [f"{p['peer_id']}: {'; '.join(p['reasons']) or 'starting'}" for p in documents if not p["ready"]]
        if not waiting and len(documents) == len(peers):
            return
        if time.monotonic() > end:
            raise UserError(f"not ready after {READY_SECONDS:.0f} s: {', '.join(waiting) or 'they are gone'}")
        time.sleep(POLL)
