"""Which endpoint a peer's tunnel uses: direct, a relay, and back. Pure: state and time in, state and orders out.

Two ways lead to a peer: `direct`, its public mapping, and `relay`, a port of a rendezvous. Each is probed from
WireGuard's own port, and the tunnel moves only to a way whose probe was answered a moment ago, which is why a move
loses no packet: an answer proves both directions, on the very NAT mappings that the tunnel then uses.

1. A new or changed endpoint is probed at once and fast: both ends do so at about the same time, so that each one's
   probe opens its NAT for the other's.
2. Direct has preference. A relay is asked for once direct has not answered for RELAY_AFTER.
3. The way in use is probed every ACTIVE_EVERY; when an answer is late, faster, and the relay is probed too; after
   DEAD_AFTER without an answer it is dead.
4. On the relay, direct is tried again after RETRY_FIRST, then ever less often, up to RETRY_CAP, with jitter; at once
   when the endpoint changes or the peer calls. Both must try in the same seconds, or each NAT drops the other's probes:
   so whoever tries *calls* the peer over the relay. Direct has to answer STEADY times in a row before the tunnel moves.
5. Where neither way answers, the device keeps the endpoint that it has (WireGuard itself may still know better), and
   both ways are probed every ACTIVE_EVERY, which also keeps our NAT open for the peer's probes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from random import Random

FAST_EVERY, FAST_FOR = 0.05, 0.6
"""Seconds between probes of a new endpoint, and how long they go on so fast."""
BRISK_EVERY, BRISK_FOR = 0.25, 3.0
"""The same for the time after that, and for a way whose answer is late."""
ACTIVE_EVERY = 2.0
"""Seconds between probes of the way in use."""
STANDBY_EVERY = 15.0
"""Seconds between probes of a relay not in use: NATs forget after 30."""
LATE_AFTER = 2.5
DEAD_AFTER = 6.0
"""Seconds without an answer. Five fast probes get lost in between before a way counts as dead."""
RELAY_AFTER = 0.8
"""Seconds that direct gets before a relay is asked for."""
RETRY_FIRST, RETRY_CAP = 30.0, 300.0
"""Seconds between tries of a direct way that did not work."""
STEADY = 3
"""Answers in a row before the tunnel leaves a working relay."""
PROOF = 0.5
"""Seconds that a working endpoint gets to answer when there is news of another one."""
_GRID = 0.5
"""Seconds: slow probes of different peers are sent together, to wake the process less often."""


class Via(Enum):
    """The way that a tunnel uses."""

    DIRECT = "direct"
    RELAY = "relay"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to a peer."""

    endpoint: str | None = None
    """`ip:port`; None while not known."""
    burst_at: float = -math.inf
    """When the running series of fast probes began, or the next one will."""
    next_probe: float = math.inf
    """When the next probe is due; infinite while there is no endpoint."""
    answered_at: float = -math.inf
    """When the last good answer came."""
    streak: int = 0
    """Answers since the last silence."""
    failures: int = 0
    """Series of probes in a row that ended without a working way."""
    round_trip: float | None = None
    """Seconds, of the last answer."""

    def alive(self, now: float) -> bool:
        """Whether an answer came recently enough."""
        return self.endpoint is not None and now - self.answered_at < DEAD_AFTER


@dataclass(frozen=True, slots=True, kw_only=True)
class PathState:
    """What is known about the ways to one peer."""

    direct: Way = Way()
    relay: Way = Way()
    via: Via = Via.NONE
    """The way last chosen."""
    candidate: str | None = None
    """News about the direct endpoint that the present one has not yet given way to."""
    contact: bool = False
    """Whether the peer was ever heard, on any way: it knows us."""

    def way(self, via: Via) -> Way:
        """The way called `via`."""
        return self.direct if via is Via.DIRECT else self.relay

    def _with(self, via: Via, way: Way) -> PathState:
        return replace(self, direct=way) if via is Via.DIRECT else replace(self, relay=way)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What to do now."""

    via: Via
    endpoint: str | None
    """The device's endpoint for this peer; None: leave it."""
    probe: tuple[Via, ...]
    """Ways to send a probe on now."""
    call: bool
    """Call the peer over the relay: it should try direct now."""
    want_relay: bool
    """Ask a rendezvous for a relay port."""
    wake: float
    """When to look again at the latest, if nothing happens before."""


def learn(state: PathState, via: Via, endpoint: str | None, now: float) -> PathState:
    """The endpoint of a way, from a rendezvous or from the peer's own probe. A new one is probed at once.

    A direct endpoint that works gets PROOF seconds to answer once more before it gives way to other news: a rendezvous
    sees only the mapping towards itself.
    """
    way = state.way(via)
    if way.endpoint == endpoint:
        return replace(state, candidate=None) if via is Via.DIRECT else state
    if endpoint is None:
        return state if via is Via.DIRECT and way.alive(now) else state._with(via, Way())
    if via is Via.DIRECT and way.alive(now):
        proof = replace(way, next_probe=now, answered_at=min(way.answered_at, now - DEAD_AFTER + PROOF))
        return replace(state, direct=proof, candidate=endpoint)
    return state._with(via, Way(endpoint=endpoint, burst_at=now, next_probe=now))


def heard(state: PathState, via: Via, now: float) -> PathState:
    """The peer's own probe came in: its NAT is open for us now, so a probe of ours is worth sending at once."""
    way = state.way(via)
    if way.endpoint is None or way.alive(now):
        return replace(state, contact=True)
    burst_at = way.burst_at if 0 <= now - way.burst_at < BRISK_FOR else now
    return replace(state._with(via, replace(way, next_probe=now, burst_at=burst_at)), contact=True)


def called(state: PathState, now: float) -> PathState:
    """The peer calls: it tries direct right now."""
    way = state.direct
    if way.endpoint is None or way.alive(now) or 0 <= now - way.burst_at < FAST_FOR:
        return replace(state, contact=True)
    return replace(state, direct=replace(way, next_probe=now, burst_at=now), contact=True)


def answered(state: PathState, via: Via, endpoint: str, round_trip: float, now: float) -> PathState:
    """A probe that we sent to `endpoint` was answered; for a relay: the other side is there too."""
    way = state.way(via)
    if way.endpoint != endpoint:
        return state
    streak = way.streak + 1 if way.alive(now) else 1
    # A direct way that died soon after it came back keeps its back-off: it flaps.
    failures = 0 if streak > STEADY * 10 else way.failures
    way = replace(way, answered_at=now, streak=streak, round_trip=round_trip, failures=failures)
    return replace(state._with(via, way), contact=True)


def restart(state: PathState, now: float) -> PathState:
    """The network changed, or the device is new: probe everything at once, keep what is in use."""
    for via in (Via.DIRECT, Via.RELAY):
        way = state.way(via)
        if way.endpoint is not None:
            state = state._with(via, replace(way, burst_at=now, next_probe=now, failures=0))
    return state


def choose(state: PathState, now: float, rng: Random, *, allow_direct: bool = True) -> tuple[PathState, Choice]:
    """The state after `now`, and what to do. Probes and calls that it orders count as sent."""
    if state.candidate is not None and not state.direct.alive(now):
        direct = Way(endpoint=state.candidate, burst_at=now, next_probe=now)
        state = replace(state, direct=direct, candidate=None)
    via = _select(state, now, allow_direct=allow_direct)
    state = _hurry_relay(replace(state, via=via), now)
    ways = (Via.DIRECT, Via.RELAY) if allow_direct else (Via.RELAY,)
    due = tuple(each for each in ways if now >= state.way(each).next_probe)
    call = via is Via.RELAY and Via.DIRECT in due and now - state.direct.burst_at < FAST_EVERY
    for each in due:
        state = state._with(each, _schedule(state, each, now, rng))
    want_relay = _wants_relay(state, now, allow_direct=allow_direct)
    return state, Choice(
        via=via,
        endpoint=state.way(via).endpoint if via is not Via.NONE else None,
        probe=due,
        call=call,
        want_relay=want_relay,
        wake=min(_wakes(state, now, ways)),
    )


def _wakes(state: PathState, now: float, ways: tuple[Via, ...]) -> Iterator[float]:
    for each in ways:
        yield state.way(each).next_probe
    if state.via is not Via.NONE:
        # A hair later: exactly then, rounding may still call it alive.
        yield state.way(state.via).answered_at + DEAD_AFTER + 0.001
    relay_due = state.direct.burst_at + RELAY_AFTER
    if state.relay.endpoint is None and state.direct.endpoint is not None and relay_due > now:
        yield relay_due
    yield math.inf


def _hurry_relay(state: PathState, now: float) -> PathState:
    """Direct is late or dead: find out now whether the relay could take over."""
    relay = state.relay
    slow = relay.endpoint is not None and relay.next_probe > now + ACTIVE_EVERY + _GRID
    if slow and now - state.direct.answered_at > LATE_AFTER:
        return replace(state, relay=replace(relay, next_probe=now, burst_at=now))
    return state


def _select(state: PathState, now: float, *, allow_direct: bool) -> Via:
    direct, relay = allow_direct and state.direct.alive(now), state.relay.alive(now)
    if not relay:
        return Via.DIRECT if direct else Via.NONE
    if state.via is Via.RELAY and direct and state.direct.streak < STEADY:
        return Via.RELAY
    return Via.DIRECT if direct else Via.RELAY


def _wants_relay(state: PathState, now: float, *, allow_direct: bool) -> bool:
    # Without a mapping the peer has not reached a rendezvous either, so a relay could not reach it.
    if state.relay.endpoint is not None or state.direct.endpoint is None:
        return False
    if not allow_direct:
        return True
    return not state.direct.alive(now) and now - state.direct.burst_at >= RELAY_AFTER


def _schedule(state: PathState, via: Via, now: float, rng: Random) -> Way:
    """The way `via` after a probe was sent on it at `now`."""
    way = state.way(via)
    if way.alive(now):
        if via is Via.DIRECT and state.via is not Via.DIRECT:
            # On its way back: a few quick answers settle it.
            return replace(way, next_probe=now + FAST_EVERY)
        if now - way.answered_at > LATE_AFTER:
            return replace(way, next_probe=now + BRISK_EVERY)
        return replace(way, next_probe=_grid(now + (ACTIVE_EVERY if state.via is via else STANDBY_EVERY)))
    way = replace(way, streak=0)
    age = now - way.burst_at
    if age < BRISK_FOR:
        return replace(way, next_probe=now + (FAST_EVERY if age < FAST_FOR else BRISK_EVERY))
    if via is Via.RELAY and state.direct.alive(now):
        return replace(way, next_probe=_grid(now + STANDBY_EVERY))
    if via is Via.RELAY or state.via is Via.NONE:
        return replace(way, next_probe=_grid(now + ACTIVE_EVERY))
    delay = min(RETRY_CAP, RETRY_FIRST * 2.0 ** min(way.failures, 8)) * (1 - 0.2 * rng.random())
    return replace(way, next_probe=now + delay, burst_at=now + delay, failures=way.failures + 1)


def _grid(at: float) -> float:
    return math.ceil(at / _GRID) * _GRID
