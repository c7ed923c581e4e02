"""The choice of ways, played through with two peers in a simulated network in virtual time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peer import path
from peer.path import Choice, PathState, Via

MAPPING, RELAY = "198.18.1.{}:51820", "198.18.0.10:5200{}"
LATENCY = 0.02
NAT_FORGETS = 30.0
RELAY_FORGETS = 40.0


class World:
    """Two peers, their NATs and a relay. NATs drop what comes from where nothing was sent to lately."""

    def __init__(self, *, direct: bool = True, relay: bool = True, seed: int = 0) -> None:
        self.now = 0.0
        self.direct_open = {0: direct, 1: direct}
        self.relay_up = relay
        self.states = [PathState(), PathState()]
        self.choices: list[Choice | None] = [None, None]
        self.allow_direct = True
        self.probes = 0
        self._rng = Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._opened = [-1e9, -1e9]
        self._registered = [-1e9, -1e9]
        self._started = [False, False]
        self._turns = [0, 0]

    def start(self, end: int, at: float = 0.0) -> None:
        """From `at` on, the end knows the other's mapping."""

        def begin() -> None:
            self._started[end] = True
            self.states[end] = path.learn(self.states[end], Via.DIRECT, MAPPING.format(1 - end), self.now)
            self._turn(end)

        self._at(at, begin)

    def run(self, until: float) -> None:
        """Plays on to virtual time `until`."""
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
        self.now = until

    def via(self) -> tuple[Via, Via]:
        """What the two ends use."""
        return self.states[0].via, self.states[1].via

    def _at(self, at: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at, next(self._order), event))

    def _turn(self, end: int) -> None:
        if not self._started[end]:
            return
        state, choice = path.choose(self.states[end], self.now, self._rng, allow_direct=self.allow_direct)
        self.states[end], self.choices[end] = state, choice
        assert choice.wake > self.now
        self._turns[end] += 1
        turn = self._turns[end]
        if choice.wake < float("inf"):
            self._at(choice.wake, lambda: self._turn(end) if self._turns[end] == turn else None)
        for via in choice.probe:
            self.probes += 1
            self._send(end, via)
        if choice.call:
            self._later(lambda: self._called(1 - end), self.relay_up)
        if choice.want_relay and self.relay_up:
            self._later(self._give_relay)

    def _later(self, event: Callable[[], None], happens: bool = True) -> None:
        if happens:
            self._at(self.now + LATENCY, event)

    def _give_relay(self) -> None:
        for end in (0, 1):
            self.states[end] = path.learn(self.states[end], Via.RELAY, RELAY.format(end), self.now)
            self._turn(end)

    def _called(self, end: int) -> None:
        self.states[end] = path.called(self.states[end], self.now)
        self._turn(end)

    def _send(self, end: int, via: Via) -> None:
        sent = self.now
        if via is Via.RELAY:
            if self.relay_up:
                self._later(lambda: self._at_relay(end, sent))
            return
        self._opened[end] = self.now
        self._later(lambda: self._arrive(end, sent), self.direct_open[end])

    def _at_relay(self, end: int, sent: float) -> None:
        self._registered[end] = self.now
        if self.now - self._registered[1 - end] < RELAY_FORGETS:
            self._later(lambda: self._answer(end, Via.RELAY, RELAY.format(end), sent), self.relay_up)

    def _arrive(self, sender: int, sent: float) -> None:
        end = 1 - sender
        if self.now - self._opened[end] > NAT_FORGETS or not self._started[end]:
            return
        self.states[end] = path.heard(self.states[end], Via.DIRECT, self.now)
        # The answer takes the way back, if that is open.
        self._later(lambda: self._answer(sender, Via.DIRECT, MAPPING.format(end), sent), self.direct_open[end])
        self._turn(end)

    def _answer(self, end: int, via: Via, endpoint: str, sent: float) -> None:
        self.states[end] = path.answered(self.states[end], via, endpoint, self.now - sent, self.now)
        self._turn(end)


def _both(world: World) -> World:
    world.start(0)
    world.start(1)
    return world


def test_direct_is_there_within_a_few_round_trips() -> None:
    """Two ends that learn of each other at the same time use the direct way after one lost probe at most."""
    world = _both(World())
    world.run(0.2)
    assert world.via() == (Via.DIRECT, Via.DIRECT)
    assert world.choices[0] is not None
    assert world.choices[0].endpoint == MAPPING.format(1)


@pytest.mark.parametrize("behind", [0.01, 0.5, 2.9, 20.0, 300.0])
def test_a_late_end_is_met_at_once(behind: float) -> None:
    """However much later the second end starts, its first probe finds the first end's NAT open."""
    world = World()
    world.start(0)
    world.start(1, behind)
    world.run(behind + 0.2)
    assert world.via() == (Via.DIRECT, Via.DIRECT)


def test_the_relay_takes_over_where_direct_never_works() -> None:
    """Without a direct way the relay is used within about a second."""
    world = _both(World(direct=False))
    world.run(1.2)
    assert world.via() == (Via.RELAY, Via.RELAY)


def test_no_relay_is_wanted_where_direct_works() -> None:
    """A rendezvous is not burdened with pairs that nobody needs."""
    world = _both(World())
    world.run(600.0)
    assert world.states[0].relay.endpoint is None
    assert world.via() == (Via.DIRECT, Via.DIRECT)


@pytest.mark.parametrize("dead", [(0, 1), (0,), (1,)])
def test_a_dead_direct_way_is_left_within_ten_seconds(dead: tuple[int, ...]) -> None:
    """Dead both ways or one way: both ends are on the relay within 10 s."""
    world = _both(World())
    world.run(100.0)
    for end in dead:
        world.direct_open[end] = False
    world.run(110.0)
    assert world.via() == (Via.RELAY, Via.RELAY)


@pytest.mark.parametrize("blocked_for", [5.0, 60.0, 3600.0])
def test_direct_returns(blocked_for: float) -> None:
    """When direct works again it is used again: within the longest retry interval, however long it was dead."""
    world = _both(World())
    world.run(10.0)
    world.direct_open = {0: False, 1: False}
    world.run(10.0 + blocked_for)
    world.direct_open = {0: True, 1: True}
    world.run(10.0 + blocked_for + path.RETRY_CAP + 5.0)
    assert world.via() == (Via.DIRECT, Via.DIRECT)


def test_both_ends_try_in_the_same_seconds() -> None:
    """Retries an hour into a block still meet: who tries calls the other, and the NATs are open at the same time."""
    for seed in range(20):
        world = _both(World(direct=False, seed=seed))
        world.run(3600.0)
        world.direct_open = {0: True, 1: True}
        world.run(3600.0 + path.RETRY_CAP + 1.0)
        assert world.via() == (Via.DIRECT, Via.DIRECT)


def test_on_the_relay_direct_is_tried_seldom() -> None:
    """A pair that can only use the relay sends few probes: its retries back off."""
    world = _both(World(direct=False))
    world.run(3600.0)
    before = world.probes
    world.run(7200.0)
    # The relay in use costs one probe in 2 s and end; direct a burst of some 25 in 5 minutes.
    assert world.probes - before < 2 * 3600 / 2 + 2 * 12 * 2 * 30


def test_without_any_way_the_endpoint_is_left_alone() -> None:
    """A peer that vanished keeps its endpoint in the device, and is found again soon after it is back."""
    world = _both(World(relay=False))
    world.run(10.0)
    world.direct_open = {0: False, 1: False}
    world.run(1000.0)
    assert world.via() == (Via.NONE, Via.NONE)
    assert world.choices[0] is not None
    assert world.choices[0].endpoint is None
    world.direct_open = {0: True, 1: True}
    world.run(1003.5)
    assert world.via() == (Via.DIRECT, Via.DIRECT)


def test_a_lost_relay_changes_nothing_for_direct() -> None:
    """The relay dies while direct is in use: nothing moves."""
    world = _both(World())
    world.run(10.0)
    world.relay_up = False
    world.run(100.0)
    assert world.via() == (Via.DIRECT, Via.DIRECT)


def test_news_of_another_mapping_does_not_cut_a_working_way() -> None:
    """A rendezvous may see a mapping of its own; an endpoint that still answers stays."""
    world = _both(World())
    world.run(10.0)
    world.states[0] = path.learn(world.states[0], Via.DIRECT, "203.0.113.9:1", world.now)
    world._turn(0)
    world.run(30.0)
    assert world.via() == (Via.DIRECT, Via.DIRECT)
    assert world.states[0].direct.endpoint == MAPPING.format(1)


def test_news_replaces_a_dead_mapping_at_once() -> None:
    """When the old endpoint is silent, the new one is probed within PROOF seconds."""
    world = _both(World())
    world.run(10.0)
    world.direct_open = {0: False, 1: False}
    world.states[0] = path.learn(world.states[0], Via.DIRECT, "203.0.113.9:1", world.now)
    world._turn(0)
    world.run(10.0 + path.PROOF + 0.1)
    assert world.states[0].direct.endpoint == "203.0.113.9:1"


def test_direct_may_be_forbidden() -> None:
    """Without permission for direct, relays are asked for at once and direct is never probed."""
    world = World()
    world.allow_direct = False
    _both(world)
    world.run(0.3)
    assert world.via() == (Via.RELAY, Via.RELAY)
    assert world.states[0].direct.answered_at == float("-inf")


changes = st.lists(st.tuples(st.floats(0.1, 40.0), st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(changes=changes, seed=st.integers(0, 100))
def test_whatever_happens_the_best_way_is_found(changes: list[tuple[float, bool, bool, bool]], seed: int) -> None:
    """After any series of faults that ends well, both ends are on direct; a way in use was answered lately."""
    world = _both(World(seed=seed))
    for length, out, back, relay in changes:
        world.direct_open, world.relay_up = {0: out, 1: back}, relay
        world.run(world.now + length)
        for state in world.states:
            assert state.via is Via.NONE or world.now - state.way(state.via).answered_at <= path.DEAD_AFTER + 0.01
    world.direct_open, world.relay_up = {0: True, 1: True}, True
    world.run(world.now + path.RETRY_CAP * 2 + 10)
    assert world.via() == (Via.DIRECT, Via.DIRECT)
