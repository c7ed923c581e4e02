"""The search for a path's size, played against simulated paths in virtual time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peer import mtu
from peer.mtu import BASE, LEAST, TOP, MtuState
from peer.spec import OVERHEAD, PADDING, link_mtu

ENDPOINT = "198.18.1.1:51820"


@dataclass
class World:
    """One end's search over a path that carries outer packets of `path` bytes, and a kernel that hears ICMP or not."""

    path: int
    icmp: bool = False
    loss: float = 0.0
    latency: float = 0.02
    local: int = 1500
    """The MTU of our own interface."""
    answers: bool = True
    """Whether the peer knows size probes."""
    seed: int = 0
    now: float = 0.0
    state: MtuState = field(default_factory=MtuState)
    probes: list[tuple[float, int]] = field(default_factory=list)
    worst: int = TOP
    """The smallest MTU that was in force."""

    def __post_init__(self) -> None:
        self.rng = Random(self.seed)
        self.known, self.known_until = self.local, math.inf
        self.arrivals: list[tuple[float, str, int]] = []
        self.move(ENDPOINT)

    def move(self, endpoint: str) -> None:
        """The tunnel goes another way."""
        self.state = mtu.moved(self.state, endpoint, self.now)

    def load(self) -> None:
        """The tunnel carries a full packet."""
        self.state = mtu.loaded(self.state, self.now)

    def run(self, seconds: float, each: Callable[[], None] | None = None) -> None:
        """Plays on; `each` is called every second."""
        end, tick = self.now + seconds, self.now if each else math.inf
        while True:
            due = min(self.state.wake, tick, *(at for at, _, _ in self.arrivals), end)
            self.now = max(self.now, due)
            if self.now >= end:
                return
            if self.now >= tick:
                tick += 1.0
                if each:
                    each()
            for arrival in sorted(each for each in self.arrivals if each[0] <= self.now):
                self.arrivals.remove(arrival)
                self.state = mtu.answered(self.state, arrival[1], arrival[2], self.now, self.rng)
            self._turn()
            self.worst = min(self.worst, self.state.mtu)

    def _turn(self) -> None:
        if self.now > self.known_until:
            self.known, self.known_until = self.local, math.inf
        self.state, sizes = mtu.choose(
            self.state, self.now, path_mtu=self.known, round_trip=2 * self.latency, rng=self.rng
        )
        assert self.state.wake > self.now
        assert LEAST <= self.state.mtu <= TOP
        assert self.state.mtu % PADDING == 0
        for size in sizes:
            self.probes.append((self.now, size))
            outer = size + OVERHEAD
            if outer > self.path:
                if self.icmp and outer <= self.local:
                    self.known, self.known_until = self.path, self.now + 600
            elif outer <= self.local and self.answers and self.rng.random() >= self.loss:
                assert self.state.endpoint is not None
                self.arrivals.append((self.now + 2 * self.latency, self.state.endpoint, size))


PATHS = [9000, 1500, 1492, 1460, 1440, 1420, 1400, 1380, 1300, 1281, 1280]


@pytest.mark.parametrize("icmp", [True, False])
@pytest.mark.parametrize("path", PATHS)
def test_the_size_that_the_path_carries_is_found(path: int, icmp: bool) -> None:
    """Exactly the path's size, below it nothing was ever in force but the base, above it nothing at all."""
    world = World(path=path, icmp=icmp)
    assert world.state.mtu == BASE
    world.run(10)
    assert world.state.mtu == min(TOP, link_mtu(path))
    assert world.worst >= BASE


@pytest.mark.parametrize("icmp", [True, False])
@pytest.mark.parametrize("path", [1279, 1200, 576, 540])
def test_paths_below_the_base_are_followed_too(path: int, icmp: bool) -> None:
    """A tunnel in a tunnel in a tunnel still carries packets of some size."""
    world = World(path=path, icmp=icmp)
    world.run(15)
    assert world.state.mtu == link_mtu(path)


def test_a_good_path_costs_one_probe_and_then_nothing() -> None:
    """Ethernet's size is tried first; an idle tunnel is not probed again, not in a day."""
    world = World(path=1500)
    world.run(86400)
    assert [size for _, size in world.probes] == [TOP]
    assert world.state.mtu == TOP


@pytest.mark.parametrize("icmp", [True, False])
def test_a_narrow_path_costs_little(icmp: bool) -> None:
    """An idle tunnel over a narrow path looks for more about every ten minutes, with a handful of probes."""
    world = World(path=1400, icmp=icmp)
    world.run(3600)
    first = len(world.probes)
    assert first < 120
    world.run(86400)
    assert len(world.probes) - first < 86400 / 480 * 2 * mtu.TRIES
    assert world.state.mtu == link_mtu(1400)


def test_the_kernels_limit_is_never_exceeded() -> None:
    """An interface of 1400, or what ICMP said, limits the MTU: the kernel refuses wireguard-go's larger batches."""
    world = World(path=1500, local=1400)
    world.run(5)
    assert world.state.mtu == link_mtu(1400)
    assert len(world.probes) == 1
    world.known = 1300
    world.state = mtu.limited(world.state, 1300, world.now)
    world.run(0.01)
    assert world.state.mtu == link_mtu(1300)


def test_what_the_kernel_learned_is_acted_on_once() -> None:
    """News starts a check at once; the same again, and a limit that does not bind, change nothing."""
    world = World(path=1500)
    world.run(5)
    before = world.state
    assert mtu.limited(before, 1500, world.now) is before
    world.path = world.known = 1400
    world.state = mtu.limited(before, 1400, world.now)
    world.run(1)
    assert world.state.mtu == link_mtu(1400)
    assert mtu.limited(world.state, 1400, world.now) is world.state


@pytest.mark.parametrize("icmp", [True, False])
@pytest.mark.parametrize(("before", "after"), [(1500, 1400), (1500, 1280), (1400, 1280), (1280, 1200)])
def test_a_path_that_shrinks_under_traffic_is_noticed(before: int, after: int, icmp: bool) -> None:
    """Within seconds the MTU is one that gets through, and soon the largest such."""
    world = World(path=before, icmp=icmp)
    world.run(60, world.load)
    world.path = after
    world.run(6, world.load)
    assert world.state.mtu <= link_mtu(after)
    world.run(10, world.load)
    assert world.state.mtu == link_mtu(after)


def test_a_path_that_grows_is_used_in_the_end() -> None:
    """Also where the kernel keeps what ICMP said for ten minutes: half an hour later the larger size is in force."""
    for icmp in (True, False):
        world = World(path=1280, icmp=icmp)
        world.run(3600, world.load)
        assert world.state.mtu == link_mtu(1280)
        world.path = 1500
        world.run(1800, world.load)
        assert world.state.mtu == TOP


def test_another_way_is_another_path() -> None:
    """A move to the relay, or a new mapping, starts with the base and a search; the same endpoint again does not."""
    world = World(path=1500)
    world.run(5)
    world.move(ENDPOINT)
    assert world.state.mtu == TOP
    world.path = 1400
    world.move("198.18.0.10:52000")
    assert world.state.mtu == BASE
    world.run(10)
    assert world.state.mtu == link_mtu(1400)
    # No way at all says nothing about the last one.
    before = world.state
    assert mtu.moved(before, None, world.now) is before


def test_answers_of_another_path_prove_nothing() -> None:
    """A probe that was sent before a move counts for the endpoint that it was sent to."""
    world = World(path=1280)
    world.run(0.001)
    state = mtu.answered(world.state, "198.18.0.10:52000", TOP, world.now, world.rng)
    assert state is world.state


def test_an_outage_is_no_narrow_path() -> None:
    """While nothing gets through, no size is to blame: the MTU stays, and is checked again afterwards."""
    world = World(path=1500)
    world.run(60, world.load)
    world.path = 0
    world.run(60, world.load)
    assert world.state.mtu == TOP
    world.path = 1500
    world.run(10, world.load)
    assert world.worst == BASE
    assert world.state.mtu == TOP


def test_a_peer_that_knows_no_size_probes_keeps_the_base() -> None:
    """It never answers, and is asked ever less often, traffic or not."""
    world = World(path=1500, answers=False)
    world.run(7200, world.load)
    assert world.state.mtu == BASE
    assert len(world.probes) < 7200 / 480 * 2 * mtu.TRIES + 60


def test_checks_are_bounded() -> None:
    """A busy tunnel over a good path costs one probe in CHECK_EVERY."""
    world = World(path=1500)
    world.run(600, world.load)
    assert 100 < len(world.probes) <= 600 / mtu.CHECK_EVERY + 2


@settings(max_examples=60, deadline=None)
@given(path=st.integers(540, 1600), seed=st.integers(0, 10**6), loss=st.floats(0, 0.3), icmp=st.booleans())
def test_lossy_paths(path: int, seed: int, loss: float, icmp: bool) -> None:
    """With up to 30 % of the answers lost the search ends, and the MTU is not above the path's size."""
    world = World(path=path, icmp=icmp, loss=loss, seed=seed)
    world.run(300, world.load)
    assert world.state.mtu <= link_mtu(path)
    assert len(world.probes) < 300 * 3


def test_loss_costs_a_little_size_for_a_while_at_most() -> None:
    """With 20 % loss, tunnels have the full size nearly all of the time."""
    full = total = 0
    for seed in range(4):
        world = World(path=1500, loss=0.2, seed=seed)
        for _ in range(60):
            world.run(30, world.load)
            total += 1
            full += world.state.mtu == TOP
    assert full / total > 0.9


@pytest.mark.parametrize("latency", [0.0001, 0.2, 1.0])
def test_slow_paths(latency: float) -> None:
    """Answers that come late count all the same."""
    world = World(path=1500, latency=latency)
    world.run(30)
    assert world.state.mtu == TOP
