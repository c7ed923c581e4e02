"""How large a packet the path to a peer carries, hence the MTU of the tunnel to it. Pure: state and time in, state out.

Sizes here are MTUs of the link: bytes of an IPv4 packet inside the tunnel, multiples of PADDING. A probe of a size is
as large as the outer packet that a tunnel packet of that size becomes, and has DF set. An answer proves the size for
our direction only: each end measures the direction in which it sends.

1. A new endpoint starts with BASE, so that nothing is lost before the path is known. TOP is probed at once. If it is
   not answered: BASE, then halves between the largest size that was answered and the smallest that was lost.
2. A size counts as lost after TRIES probes, and only if a small probe was answered meanwhile: a path that loses
   everything for a moment says nothing about sizes.
3. While the tunnel carries traffic, the size in use is checked every CHECK_EVERY. If it is lost, the path has shrunk:
   BASE at once, then a search. An idle tunnel is not checked.
4. A path that carries less than TOP is tried again with the next larger size after SEARCH_FIRST, then ever less often.
5. What the kernel has learned about the path (ICMP "fragmentation needed") limits all sizes: `wireguard-go` sends
   batches (UDP_SEGMENT), and the kernel refuses a batch whose packets are larger than that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from random import Random

from peer.spec import BASE_PATH_MTU, PADDING, TOP_PATH_MTU, link_mtu

BASE = link_mtu(BASE_PATH_MTU)
"""Bytes. In use while nothing larger is proved."""
TOP = link_mtu(TOP_PATH_MTU)
"""Bytes. The largest size that is probed."""
LEAST = 480
"""Bytes, 540 outside: Linux takes no path MTU below 552 from ICMP (net.ipv4.route.min_pmtu, ip-sysctl.rst)."""
TRIES = 5
"""Probes of one size. With 10 % loss each way, one good size in 4,000 is taken for lost, until the next search."""
EVERY_LEAST, EVERY_MOST = 0.2, 1.0
"""Seconds between probes of one size: twice the round trip, within these limits."""
CHECK_EVERY = 2.0
"""Seconds between checks of the size in use while the tunnel carries traffic."""
SEARCH_FIRST, SEARCH_CAP = 30.0, 600.0
"""Seconds until a larger size is tried again; doubled each time. Linux forgets ICMP's path MTU after 600 s
(net.ipv4.route.mtu_expires)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MtuState:
    """What is known about the sizes that the path to one peer carries."""

    endpoint: str | None = None
    """The way in use, `ip:port`; None before there was one."""
    mtu: int = BASE
    """Bytes: the link's MTU now."""
    proved: bool = False
    """Whether any probe of a size was answered on this path."""
    top: int = TOP
    """The largest size that the kernel lets through, as far as it knows."""
    size: int | None = None
    """The size that is probed now; None while no search or check is going on."""
    good: int = 0
    """The largest size that was answered in this search; 0: none."""
    bad: int = TOP + PADDING
    """The smallest size that was lost in this search."""
    tries: int = 0
    """Probes of `size` sent."""
    heard: bool = False
    """Whether any probe was answered since `size` is probed."""
    next_at: float = math.inf
    """When the next probe of `size` is due."""
    search_at: float = math.inf
    """When to try larger sizes again."""
    searches: int = 0
    """Searches on this path that ended below TOP, which is how often waiting was doubled."""
    checked_at: float = -math.inf
    """When the last search or check ended."""

    @property
    def wake(self) -> float:
        """When `choose` has something to do."""
        if self.endpoint is None:
            return math.inf
        return self.search_at if self.size is None else self.next_at


def moved(state: MtuState, endpoint: str | None, now: float) -> MtuState:
    """The tunnel uses `endpoint` from now on. Another one is another path: its sizes are not known."""
    if endpoint is None or endpoint == state.endpoint:
        return state
    return MtuState(endpoint=endpoint, size=TOP, next_at=now, search_at=now)


def loaded(state: MtuState, now: float) -> MtuState:
    """The tunnel carried at least a full packet since the last check: check that full packets arrive."""
    # A peer that never answered a size is of a version that knows no such probes.
    if not state.proved or state.size is not None or now - state.checked_at < CHECK_EVERY:
        return state
    return _check(state, now)


def limited(state: MtuState, path_mtu: int, now: float) -> MtuState:
    """The kernel learned that the path carries no outer packets above `path_mtu` bytes: act on it now if it is news."""
    if link_mtu(path_mtu) >= max(state.mtu, state.size or 0):
        return state
    return _check(state, now) if state.size is None else replace(state, next_at=now)


def answered(state: MtuState, endpoint: str, size: int, now: float, rng: Random) -> MtuState:
    """A probe of `size` that was sent to `endpoint` came through."""
    if endpoint != state.endpoint:
        return state
    larger = size > state.mtu
    state = replace(
        state,
        mtu=max(state.mtu, min(size, state.top)),
        proved=True,
        good=max(state.good, size),
        bad=max(state.bad, size + PADDING),
        heard=True,
    )
    if state.size is None:
        # Later than it was waited for. There may be more above it.
        return replace(state, search_at=now) if larger else state
    return _advance(state, now, rng) if state.good >= state.size else state


def choose(
    state: MtuState, now: float, *, path_mtu: int, round_trip: float | None, rng: Random
) -> tuple[MtuState, tuple[int, ...]]:
    """The state after `now`, and the sizes to probe now; they count as sent. Nothing to do before `state.wake`.

    `path_mtu` is what the kernel has as the path's MTU (bytes, outer packets), `round_trip` seconds, if known.
    """
    if now < state.wake:
        return state, ()
    state = replace(state, top=max(LEAST, min(TOP, link_mtu(path_mtu))))
    if state.mtu > state.top:
        state = _check(replace(state, mtu=state.top, search_at=now, searches=0), now)
    elif state.size is None:
        state = _look_higher(state, now, rng)
    elif state.size > state.top:
        state = _advance(state, now, rng)
    elif state.tries >= TRIES:
        state = _lost(state, now, rng)
    if state.size is None:
        return state, ()
    pause = min(EVERY_MOST, max(EVERY_LEAST, 2 * (round_trip or 0.0)))
    # The first probe of a size mostly is the only one. From the second on, a small one tells whether the path works.
    sizes = (state.size, LEAST) if state.tries else (state.size,)
    return replace(state, tries=state.tries + 1, next_at=now + pause), sizes


def _begin(state: MtuState, size: int, now: float) -> MtuState:
    return replace(state, size=size, tries=0, heard=False, next_at=now)


def _check(state: MtuState, now: float) -> MtuState:
    """Does the size in use still come through?"""
    return replace(_begin(state, state.mtu, now), good=0, bad=state.mtu + PADDING)


def _look_higher(state: MtuState, now: float, rng: Random) -> MtuState:
    """A search above the size in use. One step first: mostly nothing has changed, and that one is lost."""
    if state.mtu >= state.top:
        return _end(state, now, rng)
    return replace(_begin(state, state.mtu + PADDING, now), good=state.mtu, bad=TOP + PADDING)


def _lost(state: MtuState, now: float, rng: Random) -> MtuState:
    """All probes of the present size went unanswered."""
    size = state.size
    assert size is not None
    if not state.heard:
        return _end(state, now, rng)
    if size <= state.mtu:
        fallback = state.good if size <= BASE else max(state.good, BASE)
        state = replace(state, mtu=fallback, search_at=now, searches=0)
    return _advance(replace(state, bad=size), now, rng)


def _advance(state: MtuState, now: float, rng: Random) -> MtuState:
    """On to the next size, or the end of the search."""
    bad = min(state.bad, state.top + PADDING)
    if bad - state.good <= PADDING:
        return _end(state, now, rng)
    if bad > state.top:
        return _begin(state, state.top, now)
    if state.good < BASE < bad:
        return _begin(state, BASE, now)
    return _begin(state, (state.good + bad) // 2 // PADDING * PADDING, now)


def _end(state: MtuState, now: float, rng: Random) -> MtuState:
    state = replace(state, size=None, checked_at=now)
    if state.search_at > now:
        # It was a check: larger sizes have their time already.
        return state
    if state.mtu >= TOP:
        return replace(state, search_at=math.inf, searches=0)
    delay = min(SEARCH_CAP, SEARCH_FIRST * 2.0 ** min(state.searches, 8)) * (1 - 0.2 * rng.random())
    return replace(state, search_at=now + delay, searches=state.searches + 1)
