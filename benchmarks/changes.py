"""Catalog changes as a caller sees them: a role that moves, an instance that fails its check and passes again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from benchmarks.failover import CLOSE_LIMIT
from benchmarks.sides import Scene, Side
from benchmarks.stage import ECHOES, MASTER
from meshctl.bench_report import Aim, Row, figure

PAUSE = 0.001
"""Seconds from the start of one connection to the start of the next, at least."""
SECONDS = 10.0
ALIAS_SECONDS = 1.3
"""Between two changes of one check: Consul's alias checks follow at most once a second, on both sides."""
HELD_SECONDS = 0.3
"""How long a held connection is watched after the new master answered."""
Event = tuple[float, float, str]


def first(events: list[Event], answer: str, after: float) -> float | None:
    """When the first connection answered by `answer` that began after `after` had its answer."""
    return next((end for start, end, got in events if got == answer and start >= after), None)


def last(events: list[Event], answer: str) -> float | None:
    """When the last connection that `answer` answered had its answer."""
    return max((end for _, end, got in events if got == answer), default=None)


def failed(events: list[Event]) -> int:
    """Connections without an answer."""
    return sum(got.startswith("!") for _, _, got in events)


class _Samples:
    def __init__(self) -> None:
        self.by: dict[str, dict[str, list[float]]] = {}
        self.failed: dict[str, int] = {}
        self.connections: dict[str, int] = {}

    def add(self, side: Side, what: str, seconds: float | None) -> None:
        """One sample, kept in milliseconds."""
        if seconds is not None:
            self.by.setdefault(what, {}).setdefault(side.name, []).append(seconds * 1000)

    def count(self, side: Side, events: list[Event]) -> None:
        self.failed[side.name] = self.failed.get(side.name, 0) + failed(events)
        self.connections[side.name] = self.connections.get(side.name, 0) + len(events)

    def row(self, what: str, name: str, aim: Aim | None, note: str) -> Row:
        found = self.by.get(what, {})
        failures = "; ".join(
            f"{side}: {self.failed[side]} of {total} connections failed" for side, total in self.connections.items()
        )
        return Row(
            name=name, group="change", unit="ms", ours=figure(found.get("ours", [])),
            anchor=figure(found.get("anchor", [])), aim=aim, n=len(found.get("ours", [])), note=f"{note}. {failures}",
        )  # fmt: skip


def role_moves(scene: Scene) -> list[Row]:
    """The role `master` moves from one instance to the other and back: at once, and as a failover does it."""
    at_once, failing_over = _Samples(), _Samples()
    for side in scene.sides:
        scene.settle(side, {ECHOES[0]: "master", ECHOES[1]: "replica"})
    roles = {side.name: ECHOES for side in scene.sides}
    for _ in range(scene.n(30, 3)):
        for side, set_roles, keeping in _ways(scene, at_once, failing_over):
            old, new = roles[side.name]
            _move(scene, side, set_roles, old, new, keeping)
            roles[side.name] = (new, old)
    what = (
        "role `master` moves, new connections every ≥ 1 ms. The anchor: two PUTs to two local agents (promotion, then "
        "demotion). Ours: one write, with which the new leader takes the leader key and says that it serves"
    )
    return [
        *_rows(at_once, "role moves", what),
        *_rows(
            failing_over,
            "role fails over",
            "as a promoted database has to do it, in two writes: the key, then that it serves. In between there is no "
            "leader, and a new connection fails instead of reaching the wrong one. The anchor knows one way only",
        ),
    ]


SetRoles = Callable[[dict[str, str]], tuple[float, float]]
"""`Side.set_roles`."""


def _ways(
    scene: Scene, at_once: _Samples, failing_over: _Samples
) -> Iterator[tuple[Side, SetRoles, tuple[_Samples, ...]]]:
    """Who moves the role how, in turns, and where that is a sample."""
    yield scene.ours, scene.ours.set_roles, (at_once,)
    yield scene.ours, scene.ours.fail_over, (failing_over,)
    if scene.theirs is not None:
        yield scene.theirs, scene.theirs.set_roles, (at_once, failing_over)


def _rows(samples: _Samples, event: str, what: str) -> list[Row]:
    return [
        samples.row("first call", f"{event} → first new connection at the right instance, from the first call",
                    Aim(of="p50", limit=0.2), what),
        samples.row("return", f"{event} → first new connection at the right instance, from the last call's return",
                    Aim(of="p50", limit=0.1), "as above; negative: it answered before the last call returned"),
        samples.row("last old", f"{event} → last new connection at the old instance, from the first call",
                    None, "as above"),
        samples.row("held", f"{event} → connection held to the old instance is closed, from the first call",
                    None, "as above; the anchor closes none (no figure)"),
        samples.row("cut", f"{event} → connection held to the old instance is closed, from the sidecar's decision",
                    Aim(of="max", limit=CLOSE_LIMIT, ratio=False), "as above; it is logged before Envoy is told"),
    ]  # fmt: skip


def _move(
    scene: Scene,
    side: Side,
    set_roles: SetRoles,
    old: str,
    new: str,
    keeping: tuple[_Samples, ...],
) -> None:
    client, (host, port) = scene.stage.client, side.master
    client.do("hold", host=host, port=port)
    client.do("watch", host=host, port=port, pause=PAUSE)
    client.do("watch_until", answer=old[-1], times=20, seconds=SECONDS)
    start, returned = set_roles({new: "master", old: "replica"})
    client.do("watch_until", answer=new[-1], times=50, seconds=SECONDS)
    time.sleep(HELD_SECONDS)
    closed = client.do("hold_end")
    events = client.do("watch_stop")
    side.follow()
    decided = scene.stage.decided(MASTER, old, start) if side is scene.ours else None
    answered, ended = first(events, new[-1], start), last(events, old[-1])
    for samples in keeping:
        samples.count(side, events)
        samples.add(side, "first call", None if answered is None else answered - start)
        samples.add(side, "return", None if answered is None else answered - returned)
        samples.add(side, "last old", None if ended is None else max(0.0, ended - start))
        samples.add(side, "held", None if closed is None else closed - start)
        samples.add(side, "cut", None if closed is None or decided is None else max(0.0, closed - decided))


def checks(scene: Scene) -> list[Row]:
    """One of two instances fails its check, then passes again."""
    samples = _Samples()
    for side in scene.sides:
        scene.settle(side, dict.fromkeys(ECHOES, "replica"))
    for _ in range(scene.n(20, 2)):
        for change in (_fails, _passes):
            time.sleep(ALIAS_SECONDS)
            for side in scene.sides:
                change(scene, side, samples)
    what = "TTL check of one of two instances set through its local agent, new connections every ≥ 1 ms"
    return [
        samples.row(
            "critical", "check critical → last new connection to that instance", Aim(of="p50", limit=0.2), what
        ),
        samples.row("passing", "check passing → first new connection to that instance", Aim(of="p50", limit=0.2), what),
    ]


def _fails(scene: Scene, side: Side, samples: _Samples) -> None:
    client, (host, port) = scene.stage.client, side.replica
    away, stays = ECHOES[1], ECHOES[0]
    client.do("watch", host=host, port=port, pause=PAUSE)
    client.do("watch_until", answer=away[-1], times=1, seconds=SECONDS)
    start, _ = side.set_check(away, "fail")
    client.do("watch_until", answer=stays[-1], times=60, seconds=SECONDS)
    events = client.do("watch_stop")
    ended = last(events, away[-1])
    samples.add(side, "critical", None if ended is None else max(0.0, ended - start))
    samples.count(side, events)


def _passes(scene: Scene, side: Side, samples: _Samples) -> None:
    client, (host, port) = scene.stage.client, side.replica
    away = ECHOES[1]
    client.do("watch", host=host, port=port, pause=PAUSE)
    start, _ = side.set_check(away, "pass")
    client.do("watch_until", answer=away[-1], times=1, seconds=SECONDS)
    events = client.do("watch_stop")
    answered = first(events, away[-1], start)
    samples.add(side, "passing", None if answered is None else answered - start)
    samples.count(side, events)
