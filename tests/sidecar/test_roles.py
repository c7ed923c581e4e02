"""Who is behind a route with a role: by hand, under every interleaving of events, and under any events at all.

Long because it is a list: each history of a leader key is a case of its own, and all three ways share one model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import leader_key
from sidecar import sources
from sidecar.catalog import Holder, Instance
from sidecar.desired import World, desired
from sidecar.roles import Choice, Leader, choose, generation, heard, let_go
from sidecar.sources import CONSISTENT, Query
from sidecar.terms import Term, settle
from tests.sidecar.test_desired import instance, with_database, world
from tests.sidecar.world import health, kv, route
from topology.manifest import RouteEntry
from xds.spec import EgressRoute, Spec

KEY = "service/pg/leader"
MASTER = dataclasses.replace(route("pg-master", "pg", role="master", vip="127.10.0.2"), leader_key=KEY)
REPLICA = dataclasses.replace(
    route("pg-replica", "pg", role="replica", vip="127.10.0.3"), fallback="master", leader_key=KEY
)
PEERS = ("pg-0", "pg-1", "pg-2")


def names(choice: Choice) -> tuple[str, ...]:
    """The peers behind a route."""
    return tuple(one.peer_id for one in choice.instances)


def held_by(holder: str | None, index: int = 10, *, serves: bool = False) -> Leader:
    """A leader key that was read."""
    return Leader(holder=holder, index=index, serves=serves)


def says(name: str | None, *, serves: bool = False) -> Holder:
    """What an answer for the key says."""
    return Holder(name=name, serves=serves)


def test_the_holder_of_the_key_wins_over_every_other_claim() -> None:
    """Two claims leave the holder's, however old; the conflict names all who claim."""
    old, new = instance("pg-0", "master", index=5), instance("pg-1", "master", index=9)
    assert choose(MASTER, (old, new), (), held_by("pg-0")) == Choice(instances=(old,), conflict=("pg-0", "pg-1"))
    assert choose(MASTER, (old,), (), held_by("pg-0")) == Choice(instances=(old,))


@pytest.mark.parametrize("holder", [None, "pg-1", "pg-2", "nobody", ""])
def test_no_claim_counts_that_does_not_hold_the_key(holder: str | None) -> None:
    """Unheld, held by one without the tag, by one that is not passing, or by a stranger: no endpoint."""
    found = (instance("pg-0", "master"), instance("pg-1", "replica"))
    assert choose(MASTER, found, (), held_by(holder)).instances == ()


def test_until_the_key_was_read_no_claim_counts() -> None:
    """A sidecar that just started waits for what decides. Only a route without a key goes by the latest claim."""
    old, new = instance("pg-0", "master", index=5), instance("pg-1", "master", index=9)
    assert choose(MASTER, (old, new), (), None) == Choice(instances=(), conflict=("pg-0", "pg-1"))
    assert choose(MASTER, (), (old,), None).instances == ()
    keyless = route("m", "pg", role="master")
    assert choose(keyless, (new, old), (), None) == Choice(instances=(new,), conflict=("pg-0", "pg-1"))


def test_replicas_are_all_those_with_the_tag_and_the_fallback_is_for_none() -> None:
    """The leader is used when there is no replica, by the same rule as through its own route."""
    master, replica, unknown = instance("pg-0", "master"), instance("pg-1", "replica"), instance("pg-2")
    assert names(choose(REPLICA, (master, replica, unknown), (), held_by("pg-0"))) == ("pg-1",)
    assert names(choose(REPLICA, (master, unknown), (), held_by("pg-0"))) == ("pg-0",)
    assert names(choose(REPLICA, (master, unknown), (), held_by(None))) == ()
    assert names(choose(REPLICA, (master, unknown), (), None)) == ()
    assert names(choose(dataclasses.replace(REPLICA, fallback=None), (master, unknown), (), held_by("pg-0"))) == ()
    assert choose(REPLICA, (master, instance("pg-1", "master")), (), held_by("pg-0")).conflict == ()


def test_a_fallback_role_of_many_gives_them_all() -> None:
    """Only an exclusive role is for one."""
    back = dataclasses.replace(route("r", "pg", role="arbiter"), fallback="replica")
    found = (instance("pg-0", "master"), instance("pg-1", "replica"), instance("pg-2", "replica"))
    assert names(choose(back, found, (), None)) == ("pg-1", "pg-2")


def test_without_a_role_everybody_passing_counts() -> None:
    """Tags mean nothing then; what is remembered is added."""
    found, lost = (instance("pg-0", "master"), instance("pg-2")), (instance("pg-1"), instance("pg-2", "x"))
    assert choose(route("all", "pg"), found, lost, None).instances == (*found, instance("pg-1"))


def test_what_is_remembered_fills_in_for_a_role_that_nobody_listed_has() -> None:
    """It is judged by the same rule, and an instance that is listed again is what its listing says."""
    leader, replica = instance("pg-0", "master"), instance("pg-1", "replica")
    held = (leader, replica)
    assert names(choose(MASTER, (), held, held_by("pg-0"))) == ("pg-0",)
    assert names(choose(MASTER, (), held, held_by("pg-1"))) == ()
    assert names(choose(MASTER, (), held, held_by(None))) == ()
    assert names(choose(MASTER, (instance("pg-0", "replica"),), held, held_by("pg-0"))) == ()
    assert names(choose(REPLICA, (instance("pg-1", "master"),), held, held_by("pg-1"))) == ("pg-1",)


def test_generation_changes_with_the_leader_only() -> None:
    """Held connections are cut when an exclusive role moves or is lost, and by nothing else."""
    first = generation(MASTER, (instance("pg-0", "master", index=5),))
    assert generation(MASTER, (instance("pg-0", "master", index=50),)) == first
    assert generation(MASTER, (instance("pg-1", "master"),)) != first
    assert generation(MASTER, ()) == ""
    for harmless in (REPLICA, route("all", "pg")):
        assert generation(harmless, (instance("pg-0"),)) == generation(harmless, (instance("pg-1"), instance("pg-2")))


def test_a_holder_that_serves_needs_no_tag() -> None:
    """What the key says is enough for the holder, for nobody else, and for no role but the exclusive one."""
    found = (instance("pg-0", "replica"), instance("pg-1"))
    assert names(choose(MASTER, found, (), held_by("pg-1", serves=True))) == ("pg-1",)
    assert names(choose(MASTER, found, (), held_by("pg-2", serves=True))) == ()
    assert names(choose(REPLICA, found, (), held_by("pg-1", serves=True))) == ("pg-0",)
    assert names(choose(REPLICA, found[1:], (), held_by("pg-1", serves=True))) == ("pg-1",), "the fallback"
    stale = (instance("pg-0", "master"), instance("pg-1"))
    assert choose(MASTER, stale, (), held_by("pg-1", serves=True)) == Choice(instances=stale[1:])


def test_a_key_that_was_let_go_of_is_nobodys_at_once() -> None:
    """Also while we hold on to other things: the index shows that the servers still know what they knew."""
    for serves in (True, False):
        before = held_by("pg-0", serves=serves)
        assert heard(before, says(None), 11, holding=True) == held_by(None, 11)
        assert heard(before, says(None), 10, holding=True) == held_by(None, 10)
        assert heard(before, says(None), 3, holding=False) == held_by(None, 3)
    assert heard(None, says(None), 3, holding=True) == held_by(None, 3)
    assert heard(None, says("pg-0", serves=True), 3, holding=True) == held_by("pg-0", 3, serves=True)
    assert heard(held_by("pg-0", serves=True), says("pg-1"), 11, holding=True) == held_by("pg-1", 11)


def test_a_key_that_the_servers_lost_stays_its_holders_until_somebody_takes_it_or_we_let_go() -> None:
    """A smaller index is of servers that came back with nothing; once somebody held it, its end counts again."""
    lost = heard(held_by("pg-0", 100, serves=True), says(None), 3, holding=True)
    assert lost == Leader(holder="pg-0", serves=True, index=3, remembered=True)
    assert heard(lost, says(None), 200, holding=True) == dataclasses.replace(lost, index=200)
    assert let_go(lost) == held_by(None, 3)
    taken = heard(lost, says("pg-1"), 4, holding=True)
    assert taken == let_go(taken) == held_by("pg-1", 4)
    assert heard(taken, says(None), 5, holding=True) == held_by(None, 5)


# ---- every interleaving


BASE = world(manifest=with_database(MASTER, REPLICA))
CHANGES = sources.queries(BASE, check_signatures=False)


@dataclass
class Truth:
    """What Consul would say now, and what the sidecar made of all that it heard."""

    tags: dict[str, str] = field(default_factory=lambda: {"pg-0": "master", "pg-1": "replica", "pg-2": "replica"})
    passing: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(PEERS, True))
    holder: str | None = "pg-0"
    serves: bool = False
    index: int = 10
    terms: Mapping[str, Term] = field(default_factory=dict)
    published: EgressRoute | None = None
    """The master route as Envoy has it."""
    seen: World = BASE

    def __post_init__(self) -> None:
        self._made: tuple[World, Spec] | None = None
        self.tell_health()
        self.tell_key()

    def event(self, source: str, value: str | bool | None) -> None:
        """One thing happens and is heard of: `tag pg-0`, `health pg-1`, `key` (the holder, and whether it serves)."""
        kind, _, peer = source.partition(" ")
        self.index += 1
        if kind == "key":
            assert not isinstance(value, bool)
            name, _, serves = (value or "").partition(" ")
            self.holder, self.serves = name or None, bool(serves)
            self.tell_key()
            return
        if kind == "tag":
            assert isinstance(value, str)
            self.tags[peer] = value
        else:
            self.passing[peer] = bool(value)
        self.tell_health()

    def tell_health(self) -> None:
        """The answer of the health watch."""
        self._tell(
            Query(path="/v1/health/service/pg", params=(("passing", ""), ("cached", ""))),
            [
                health(peer, service="pg", tags=(tag,) if tag else (), index=self.index)
                for peer, tag in self.tags.items()
                if self.passing[peer]
            ],
        )

    def tell_key(self) -> None:
        """The answer of the leader key's watch."""
        said = {"Session": "5e55", "Flags": leader_key.flags(serves=self.serves)}
        found = [] if self.holder is None else [kv({KEY: self.holder})[0] | said]
        self._tell(Query(path=f"/v1/kv/{KEY}", params=(CONSISTENT,)), found or None)

    def _publish(self) -> None:
        """As the effects do it; what is published cuts exactly when there is somebody to cut off."""
        self.terms, settled = settle(self.terms, self._spec())
        before = self.published
        self.published = next(one for one in settled.egress if one.name == "pg-master")
        if before is not None:
            left = before.sole.endpoint is not None and before.sole != self.published.sole
            assert (before.generation != self.published.generation) == left

    def _tell(self, query: Query, tree: object) -> None:
        self.seen = CHANGES[query](self.seen, tree, self.index)

    def route(self, name: str) -> EgressRoute:
        """The route as Envoy would get it now."""
        return next(one for one in self._spec().egress if one.name == name)

    def _spec(self) -> Spec:
        if self._made is None or self._made[0] is not self.seen:
            spec = desired(self.seen).spec
            assert spec is not None
            self._made = self.seen, spec
        return self._made[1]

    def behind(self, name: str) -> tuple[str, ...]:
        """The peers behind a route."""
        now = self.route(name)
        found = now.endpoints if now.sole is None else (now.sole.endpoint,)
        return tuple(f"pg-{endpoint.address[-1]}" for endpoint in found if endpoint is not None)

    def check(self, before: EgressRoute | None) -> EgressRoute:
        """The master route, after everything was checked that must hold at each moment."""
        now, behind = self.route("pg-master"), self.behind("pg-master")
        assert len(behind) <= 1, "never two"
        for peer in behind:
            assert (peer, self.passing[peer]) == (self.holder, True)
            assert self.serves or self.tags[peer] == "master"
        serves = self.serves or self.tags.get(self.holder or "") == "master"
        if self.holder is not None and serves and self.passing[self.holder]:
            assert behind == (self.holder,), "the right one, as soon as everything is known"
        if before is not None:
            assert (before.generation != now.generation) == (before.sole != now.sole)
        self._publish()
        assert self.route("pg-replica").generation == "", "connections to replicas are never cut"
        replicas = tuple(peer for peer in PEERS if self.tags[peer] == "replica" and self.passing[peer])
        assert self.behind("pg-replica") == (replicas or behind)
        return now


Events = Mapping[str, Sequence[str | bool | None]]
CRASH: Events = {
    "key": (None, "pg-1"),
    "health pg-0": (False, True),
    "tag pg-0": ("", "replica"),
    "tag pg-1": ("master",),
}
SWITCHOVER: Events = {"key": (None, "pg-1"), "tag pg-0": ("replica",), "tag pg-1": ("master",)}
THERE_AND_BACK: Events = {
    "key": (None, "pg-1", "pg-0"),
    "tag pg-0": ("replica", "master"),
    "tag pg-1": ("master", "replica"),
}
SPLIT: Events = {"key": ("pg-1",), "tag pg-1": ("master",), "health pg-0": (False, True), "tag pg-2": ("master", "")}
SERVING: Events = {
    "key": (None, "pg-1", "pg-1 serves"),
    "health pg-0": (False, True),
    "tag pg-0": ("replica",),
    "tag pg-1": ("master",),
}
BENIGN: Events = {"tag pg-2": ("", "replica"), "health pg-1": (False, True), "health pg-2": (False, True)}


def interleavings(events: Events) -> Iterator[tuple[tuple[str, str | bool | None], ...]]:
    """Every order in which the sources' events may come; each source's own order stays."""
    if not any(events.values()):
        yield ()
    for source, values in events.items():
        if values:
            rest = {**events, source: values[1:]}
            for following in interleavings(rest):
                yield ((source, values[0]), *following)


@pytest.mark.parametrize(
    ("events", "orders", "final"),
    [
        (CRASH, 630, "pg-1"),
        (SWITCHOVER, 12, "pg-1"),
        (THERE_AND_BACK, 210, "pg-0"),
        (SPLIT, 180, "pg-1"),
        (SERVING, 420, "pg-1"),
        (BENIGN, 90, "pg-0"),
    ],
    ids=["crash", "switchover", "there and back", "split", "serving", "benign"],
)
def test_every_order_of_events_is_safe_and_ends_at_the_right_one(events: Events, orders: int, final: str) -> None:
    """Never a leader without the key, a cut exactly when it changes, in the end the right one."""
    count = 0
    for order in interleavings(events):
        count += 1
        truth = Truth()
        before = truth.check(None)
        for source, value in order:
            before = truth.check(before)
            truth.event(source, value)
        truth.check(before)
        assert truth.behind("pg-master") == (final,)
    assert count == orders


def test_benign_events_leave_the_master_route_as_it_is() -> None:
    """Replicas that come, go and lose their role, in every order: not one push for the master's listener."""
    for order in interleavings(BENIGN):
        truth = Truth()
        first = truth.route("pg-master")
        for source, value in order:
            truth.event(source, value)
            assert truth.route("pg-master") == first


def test_a_role_change_is_one_change_of_the_route_an_event() -> None:
    """The old leader is left with the event that says so, the new one is reached with the last that it needs."""
    for order in interleavings(SWITCHOVER):
        truth = Truth()
        changes = [truth.route("pg-master")]
        for source, value in order:
            truth.event(source, value)
            now = truth.route("pg-master")
            if now != changes[-1]:
                changes.append(now)
        leaders = [change.sole.endpoint and change.sole.endpoint.address for change in changes if change.sole]
        assert leaders == ["100.96.1.0", None, "100.96.1.1"]


STEPS = st.one_of(
    st.tuples(st.sampled_from([f"tag {peer}" for peer in PEERS]), st.sampled_from(["master", "replica", ""])),
    st.tuples(st.sampled_from([f"health {peer}" for peer in PEERS]), st.booleans()),
    st.tuples(st.just("key"), st.sampled_from([None, *PEERS, *(f"{peer} serves" for peer in PEERS)])),
)


@given(st.lists(STEPS, max_size=12))
def test_whatever_happens_the_rules_hold(steps: list[tuple[str, str | bool | None]]) -> None:
    """Any events in any order, sensible or not."""
    truth = Truth()
    before = truth.check(None)
    for source, value in steps:
        truth.event(source, value)
        before = truth.check(before)


@given(st.lists(STEPS, max_size=8), st.integers(0, 8))
def test_servers_that_come_back_with_nothing_move_no_role(
    steps: list[tuple[str, str | bool | None]], lost_at: int
) -> None:
    """The leader stays while nobody has taken the key again; who takes it counts; letting go leaves what is known."""
    truth = Truth()
    for source, value in steps[:lost_at]:
        truth.event(source, value)
    before = truth.behind("pg-master")
    truth.seen = sources.hold(truth.seen)
    holder, truth.holder, truth.serves, truth.index = truth.holder, None, False, 1
    listed, truth.passing = truth.passing, dict.fromkeys(PEERS, False)
    truth.tell_key()
    truth.tell_health()
    assert truth.behind("pg-master") == before
    truth.passing = listed
    truth.tell_health()
    assert truth.behind("pg-master") == before
    for source, value in steps[lost_at:]:
        truth.event(source, value)
        assert len(truth.behind("pg-master")) <= 1
    if truth.holder is not None:
        assert set(truth.behind("pg-master")) <= {truth.holder}
    elif not any(source == "key" for source, _ in steps[lost_at:]):
        assert set(truth.behind("pg-master")) <= {holder}
    truth.seen = sources.let_go(truth.seen)
    truth.check(None)


def test_a_lost_lease_alone_keeps_no_leader_that_let_go() -> None:
    """We attest again while the servers know everything: the key's end still cuts at once."""
    truth = Truth()
    truth.seen = sources.hold(truth.seen)
    truth.event("key", None)
    assert truth.behind("pg-master") == ()


def test_the_key_alone_does_not_make_an_unlisted_leader() -> None:
    """`choose` never invents: what it returns is among what it was given."""
    found: tuple[Instance, ...] = (instance("pg-1", "replica"),)
    plain: RouteEntry = MASTER
    assert choose(plain, found, (), held_by("pg-0")).instances == ()
