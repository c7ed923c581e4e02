"""Which instances a route may use: by role, by who holds the leader key, and by what is remembered. Pure.

Terms: an instance *claims* a role by its tag. The *holder* is the peer ID in a leader key that a session holds; it is
what decides of several claims to an exclusive role, and without it none counts. A holder that *serves* has said so in
the key, and needs no tag to have the role. *Listed* instances are those that Consul lists now; *held* ones were good
when the servers lost what they knew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from sidecar.catalog import Holder, Instance
from topology.manifest import EXCLUSIVE_ROLES, RouteEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Leader:
    """What a leader key said last."""

    holder: str | None
    """None: nobody holds it."""
    serves: bool = False
    """The holder takes requests; it says so itself."""
    index: int
    """Consul's index of that answer. It only grows, unless the servers lost what they knew."""
    remembered: bool = False
    """The servers lost the key with everything else; `holder` held it before, and nobody took it since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is behind a route."""

    instances: tuple[Instance, ...]
    conflict: tuple[str, ...] = ()
    """Peer IDs of all whose tags claim the route's exclusive role, when there are several."""


def heard(before: Leader | None, holder: Holder, index: int, *, holding: bool) -> Leader:
    """The leader after an answer of Consul. `holding`: we hold on to what was good before the servers lost it.

    A key that is gone because somebody let go of it is nobody's at once. Only one that is gone together with the
    servers' memory, which the index shows, stays its holder's for as long as we hold on.
    """
    if holder.name is not None or before is None or before.holder is None or not holding:
        return Leader(holder=holder.name, serves=holder.serves, index=index)
    if before.remembered or index < before.index:
        return replace(before, index=index, remembered=True)
    return Leader(holder=None, index=index)


def let_go(leader: Leader) -> Leader:
    """The leader once nothing is held on to any more."""
    return Leader(holder=None, index=leader.index) if leader.remembered else leader


def choose(
    route: RouteEntry, listed: tuple[Instance, ...], held: tuple[Instance, ...], leader: Leader | None
) -> Choice:
    """What is behind `route`. `leader` is None until its leader key was read once, and where it has none: then nobody
    has the role, or the latest who claims it.
    """
    known = {instance.service_id for instance in listed}
    remembered = tuple(instance for instance in held if instance.service_id not in known)
    if route.role is None:
        return Choice(instances=(*listed, *remembered))
    conflict: tuple[str, ...] = ()
    if route.role in EXCLUSIVE_ROLES:
        # By tag alone: at a change of leader the key is ahead of the old one's tag, and that is no conflict.
        claims = sorted({instance.peer_id for instance in _claims(route.role, listed, None)})
        conflict = tuple(claims) if len(claims) > 1 else ()
    for role in (route.role, route.fallback):
        # A role may have moved meanwhile: one that is listed is never joined by one that is remembered.
        for found in (listed, remembered):
            if role is not None and (having := _having(route, role, found, leader)):
                return Choice(instances=having, conflict=conflict)
    return Choice(instances=(), conflict=conflict)


def generation(route: RouteEntry, chosen: tuple[Instance, ...]) -> str:
    """Cuts the connections held through the route when it changes: the holder of an exclusive role, else constant."""
    if route.role not in EXCLUSIVE_ROLES:
        return ""
    return ",".join(f"{instance.peer_id}/{instance.service_id}" for instance in chosen)


def _having(
    route: RouteEntry, role: str, found: Iterable[Instance], leader: Leader | None
) -> tuple[Instance, ...]:  # fmt: skip
    """The instances of `found` that have `role`; of an exclusive role one at most."""
    if role not in EXCLUSIVE_ROLES:
        return _claims(role, found, None)
    if leader is None and route.leader_key is not None:
        # Anybody who may register the service can carry the tag: it is a claim, and what decides is not known yet.
        return ()
    claims = _claims(role, found, leader)
    if leader is not None:
        claims = tuple(instance for instance in claims if instance.peer_id == leader.holder)
    # On a route without a key, and of two registrations of the holder: the latest.
    return tuple(sorted(claims, key=lambda instance: (instance.modify_index, instance.service_id)))[-1:]


def _claims(role: str, found: Iterable[Instance], leader: Leader | None) -> tuple[Instance, ...]:
    """By tag, or by the leader key."""
    serving = leader.holder if leader is not None and leader.serves else None
    return tuple(instance for instance in found if role in instance.tags or instance.peer_id == serving)
