"""Which peers are lost: connections to them get a reset, for an end would look like the end of an answer. Pure.

The CVM's own link decides. A peer is lost after LOST_SECONDS in which it was asked and nothing arrived from it. What
Consul says can only shorten that, to GIVEN_UP_SECONDS, and only if it gave the peer up in this same silence: a forged
health check cuts nobody whose packets arrive. The first arrival ends it, and so does a new key.

Silence means something on an idle tunnel too: the way in use is probed every 2 s, and every 0.25 s once an answer is
2.5 s late (`peer.path`). It is counted by looks at the link, at most LOOK_COUNTS for each: a process or a machine that
stood still for a minute has not listened for a minute.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from peer.link import Contact
from sidecar.catalog import Instance

LOST_SECONDS = 8.0
"""Of silence. Longer than a change of path takes: a direct way counts as dead after 6 s without an answer, and a relay
answers some 0.1 s later (0.6 s after the direct way died, where there is a relay already). Short enough for TCP: data
that nobody acknowledges is sent again at times that double, so the first time after 8 s is before 17 s, and the kernel
gives up, with an end instead of a reset, at 19 s (`xds.transport.DEAD_AFTER`)."""
GIVEN_UP_SECONDS = 3.0
"""Of silence, where Consul stopped to list the peer meanwhile: gossip probes it through other CVMs as well."""
ASKED_AT_LEAST = 3
"""Probes without an answer: one or two may have been lost on the way."""
LOOK_SECONDS = 0.5
"""Between looks at the link."""
LOOK_COUNTS = 2 * LOOK_SECONDS
"""Seconds of silence that one look adds at most."""
FORGET_SECONDS = 60.0
"""Of silence, after which a peer that is no longer admitted is forgotten: no connection to it is left by then."""


Boot = tuple[str, int]
"""A peer's public key, and how often it has restarted with it: what was connected under another one is half-open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """One mesh address, as last looked at."""

    contact: Contact
    listed: bool
    """Whether Consul listed the peer when it was last heard."""
    looked_at: float
    """Monotonic seconds."""
    silent: float = 0.0
    """Seconds of silence so far."""
    lost: bool = False


def watch(
    before: Mapping[str, Watched], contacts: Iterable[Contact], listed_now: frozenset[str], now: float
) -> Mapping[str, Watched]:
    """Every peer that was ever heard, by mesh address, `now` (monotonic seconds). `contacts` are the admitted peers,
    `listed_now` the peer IDs of passing instances in Consul's catalog.

    A peer that is no longer admitted has no tunnel: it goes on being silent until its address has another key.
    """
    present = {contact.address: contact for contact in contacts}
    found = {}
    for address, contact in present.items():
        if contact.heard_at is not None:
            found[address] = _look(before.get(address), contact, contact.peer_id in listed_now, now)
    for address, old in before.items():
        if address not in present and old.silent < FORGET_SECONDS:
            found[address] = _judged(_longer(old, now), given_up=False)
    return found


def boots(before: Mapping[str, Boot], contacts: Iterable[Contact]) -> Mapping[str, Boot]:
    """The boot of every peer that was heard, by mesh address; of one that is away now, the last one."""
    heard = {one.address: (one.public_key, one.restarts) for one in contacts if one.heard_at is not None}
    return {**before, **heard}


def listed(*catalogs: Mapping[str, tuple[Instance, ...]]) -> frozenset[str]:
    """The peer IDs of all instances in `catalogs` (instances by service)."""
    return frozenset(one.peer_id for catalog in catalogs for found in catalog.values() for one in found)


def addresses(watched: Mapping[str, Watched]) -> frozenset[str]:
    """The mesh addresses of lost peers."""
    return frozenset(address for address, one in watched.items() if one.lost)


def _look(old: Watched | None, contact: Contact, listed: bool, now: float) -> Watched:
    if old is None or (old.contact.public_key, old.contact.heard_at) != (contact.public_key, contact.heard_at):
        return Watched(contact=contact, listed=listed, looked_at=now)
    longer = replace(_longer(old, now), contact=contact)
    if contact.asked < ASKED_AT_LEAST:
        return replace(longer, lost=False)
    return _judged(longer, given_up=old.listed and not listed)


def _longer(old: Watched, now: float) -> Watched:
    return replace(old, looked_at=now, silent=old.silent + min(max(0.0, now - old.looked_at), LOOK_COUNTS))


def _judged(one: Watched, *, given_up: bool) -> Watched:
    return replace(one, lost=one.silent >= (GIVEN_UP_SECONDS if given_up else LOST_SECONDS))
