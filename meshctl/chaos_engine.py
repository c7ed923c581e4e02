"""The rounds of chaos: start clients, break something, wait until writes go on, mend, wait until all is whole, compare.

Every wait is bounded, and what was broken is mended however a round ends. IO through `meshctl.chaos_cluster`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from meshctl.chaos_cluster import ROUTES, ChaosError, Cluster, Hit
from meshctl.chaos_figures import (
    PAUSES,
    STAYS,
    Ack,
    Fault,
    Round,
    after_demotion,
    longest_gap,
    lost,
    outage,
    recovery,
)
from meshctl.console import Progress
from meshctl.ending import held_back
from meshctl.probes import ProbeError

WRITERS = 4
WRITE_PAUSE, READ_PAUSE, HELD_PAUSE = 0.02, 0.02, 0.005
"""Seconds between the statements of one client: together the writers notice an outage's end to some 5 ms."""
WARM_ACKS, STEADY_ACKS = 40, 20
"""Acknowledged writes before the fault, and after it until clients count as served again."""
WARM_SECONDS = 60.0
RECOVER_SECONDS = 60.0
CLOSE_SECONDS = 20.0
"""How long a held connection is watched once writes go on."""
SAME_LEADER_SECONDS = 10.0
"""Writes that go on for so long without a new leader: there will be none."""
LEADER_SECONDS = 60.0
EQUAL_SECONDS = 60.0
POLL = 0.02
NOTED = ("unknown", "failures", "attempts_failed", "read_failures", "held")
"""What of the clients' record is kept as it is."""
WITNESS = 1000
"""Number of the writer beside the old leader: it dials 127.0.0.1, past the mesh."""
_WITNESSED: frozenset[Fault] = frozenset(
    {"crash-sidecar", "partition-both", "partition-in", "partition-out", "switchover"}
)
_MOVES: frozenset[Fault] = frozenset({"switchover", "rolling-update"})
"""Faults in which the old leader serves on for a while, so that only a new timeline ends them."""


@dataclass(slots=True)
class Evidence:
    """What a round noted, whole."""

    result: Round
    acks: list[Ack] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)


class Engine:
    """Makes rounds in one cluster."""

    def __init__(self, cluster: Cluster, progress: Progress, *, synchronous: bool, name: str) -> None:
        self._cluster = cluster
        self._progress = progress
        self._synchronous = synchronous
        self._name = name
        """Prefix of the rows' runs."""
        cluster.on_wait = lambda missing: progress.update(f"waiting until the cluster is whole: {missing}")

    def rounds(self, faults: Sequence[Fault], number: int, keep: Callable[[Evidence], None]) -> None:
        """Each fault once in turn, `number` times over; `keep` gets each round as it ends. ChaosError ends them all."""
        self.wait_whole()
        self._patiently("create")
        done = 0
        for turn in range(number):
            for fault in faults:
                self._label = f"round {done + 1} of {number * len(faults)}: {fault}"
                keep(self._round(fault, turn, f"{self._name}-{done}"))
                done += 1

    def wait_whole(self) -> None:
        """Waits until every member and every CVM is as it should be."""
        self._cluster.wait_whole(synchronous=self._synchronous)

    def _patiently(self, command: str, **fields: Any) -> Any:
        """One command of the clients that needs the leader, again until there is one."""
        cluster = self._cluster
        end = time.monotonic() + LEADER_SECONDS
        while True:
            try:
                return cluster.clients.do(command, target=cluster.target(ROUTES[0]), **fields)
            except ProbeError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def _round(self, fault: Fault, turn: int, run: str) -> Evidence:
        cluster = self._cluster
        try:
            run, leader, timeline = self._begin(run, witness=fault in _WITNESSED)
            self._progress.update(f"{self._label} in {leader}")
            hit = cluster.hit(fault, leader, turn)
            problem = self._wait_served(fault, hit, timeline)
            problem = cluster.finish(hit) or problem
        finally:
            with held_back():
                cluster.mend()
        self.wait_whole()
        return self._account(fault, turn, run, leader, timeline, hit, problem)

    def _begin(self, run: str, *, witness: bool) -> tuple[str, str, int]:
        """Starts the clients until all of them are at the leader: what their rows are called, it, and its timeline.

        Between two looks the leadership may move by itself, on a machine with too much to do.
        """
        end = time.monotonic() + WARM_SECONDS
        attempt, problem = 0, ""
        while time.monotonic() < end:
            leader = self._cluster.leader()
            # Numbers are never used twice, so each attempt has rows of its own.
            attempt += 1
            label = f"{run}.{attempt}"
            try:
                if leader is not None:
                    timeline = self._start_clients(label, leader, witness=witness)
                    if timeline is not None and self._cluster.leader() == leader:
                        return label, leader, timeline
                problem = "the leader moved meanwhile"
            except ProbeError as error:
                problem = str(error)
            time.sleep(0.2)
        raise ChaosError(f"the clients are not served before anything is broken: {problem}")

    def _start_clients(self, run: str, leader: str, *, witness: bool) -> int | None:
        """Starts everyone and waits until they are served; the leader's timeline, None where another one leads."""
        cluster, clients = self._cluster, self._cluster.clients
        clients.do("write", target=cluster.target(ROUTES[0]), run=run, writers=WRITERS, pause=WRITE_PAUSE)
        clients.do("read", target=cluster.target(ROUTES[1]), pause=READ_PAUSE)
        held = clients.do("hold", target=cluster.target(ROUTES[0]), pause=HELD_PAUSE)
        if witness:
            local = cluster.target("127.0.0.1")
            # A demoted server refuses it as fast as it asks: slowly, then.
            cluster.ask(leader, "write", target=local, run=f"{run}-w", writers=1, pause=WRITE_PAUSE, retry=0.1)
        end = time.monotonic() + WARM_SECONDS
        state: dict[str, Any] = {"acks": 0}
        while state["acks"] < WARM_ACKS:
            if time.monotonic() > end:
                raise ChaosError(f"the clients are not served before anything is broken: {state}")
            time.sleep(POLL)
            state = clients.do("state", after=0.0, timeline=0)
        at_leader = all(each["peer"] == leader for each in held.values())
        still_open = all(each["closed"] is None for each in state["held"].values())
        return int(held["idle"]["timeline"]) if at_leader and still_open else None

    def _wait_served(self, fault: Fault, hit: Hit, timeline: int) -> str:
        """Waits until writes go on and what was held is closed; why that did not come about."""
        end = time.monotonic() + RECOVER_SECONDS
        while True:
            state = self._cluster.clients.do("state", after=hit.over if fault in STAYS else hit.at, timeline=timeline)
            now = state["now"]
            if fault in STAYS:
                # The fault is over, and was to be noticed by nobody: what is held is held on.
                if state["acks"] >= STEADY_ACKS:
                    return self._unmoved(state)
                same = False
            else:
                same = state["acks"] >= STEADY_ACKS and fault not in _MOVES and self._settled(state, hit)
            if state["beyond"] >= STEADY_ACKS or same:
                break
            if now - max(hit.at, hit.over) > RECOVER_SECONDS or time.monotonic() > end:
                return f"no write was acknowledged within {RECOVER_SECONDS:.0f} s; {state['last_failure']}"
            self._progress.update(f"{self._label} in {hit.victim}: {now - hit.at:.1f} s")
            time.sleep(POLL)
        end = time.monotonic() + CLOSE_SECONDS
        while any(held["closed"] is None for held in state["held"].values()):
            if time.monotonic() > end:
                return "a connection to the old leader was not closed"
            time.sleep(POLL)
            state = self._cluster.clients.do("state", after=hit.at, timeline=timeline)
        return ""

    @staticmethod
    def _unmoved(state: dict[str, Any]) -> str:
        """What the clients noticed of a fault that nobody was to notice; empty when nothing."""
        closed = sorted(name for name, held in state["held"].items() if held["closed"] is not None)
        if state["beyond"]:
            return "the leadership moved, and nothing had happened to the leader"
        return f"connections to the leader were closed: {', '.join(closed)}" if closed else ""

    @staticmethod
    def _settled(state: dict[str, Any], hit: Hit) -> bool:
        """Whether the fault is over with the same leader: its connections were cut and writes go on, or long ago."""
        closed = [held["closed"] for held in state["held"].values()]
        if all(moment is not None for moment in closed):
            # Served again after the cut, not only before it.
            return state["last"] is not None and state["last"] > max(closed) + 1.0
        return bool(state["now"] - hit.at > SAME_LEADER_SECONDS)

    def _account(
        self, fault: Fault, turn: int, run: str, leader: str, timeline: int, hit: Hit, problem: str
    ) -> Evidence:
        """Compares what was acknowledged with what there is."""
        cluster = self._cluster
        record = cluster.clients.do("stop", _seconds=60.0)
        acks = [_ack(item) for item in record["acks"]]
        rows = self._patiently("rows", run=run)
        beside, beside_rows = self._witness(leader, run) if fault in _WITNESSED else ([], [])
        acks += beside
        rows += beside_rows
        different, forked = self._compare_members()
        seen = [ack for ack in acks if ack.writer < WITNESS]
        # A switchover is asked for long before it begins: what counts is from the old leader's last word on.
        found = outage(seen, hit.at, timeline) if fault in PAUSES else None
        begin = hit.at if found is None else found[0]
        decided = cluster.decided(leader, hit.at)
        result = Round(
            fault=fault,
            number=turn,
            victim=hit.victim,
            at=hit.at,
            leader=leader,
            new_leader=cluster.leader() or "",
            rto=recovery(seen, hit.at, timeline, pause=fault in PAUSES),
            # Of a fault that moves nothing they are to stay open; `_unmoved` says when they did not.
            closed={
                name: None if held["closed"] is None else max(0.0, held["closed"] - begin)
                for name, held in (() if fault in STAYS else record["held"].items())
            },
            decided=None if decided is None else decided - begin,
            acknowledged=len(acks),
            unknown=len(record["unknown"]),
            lost=lost(acks, rows),
            demoted=after_demotion(acks),
            reads=len(record["reads"]),
            read_gap=longest_gap(read[0] for read in record["reads"]),
            forked=forked,
            problem=problem or different,
        )
        said, cluster.notes = cluster.notes, []
        notes: dict[str, Any] = {"fault": said}
        notes |= {name: record[name] for name in NOTED}
        return Evidence(result=result, acks=acks, rows=rows, notes=notes)

    def _witness(self, leader: str, run: str) -> tuple[list[Ack], list[list[int]]]:
        """What the writer beside the old leader was told, and its rows. Nothing when it did not outlive the fault."""
        cluster = self._cluster
        try:
            record = cluster.ask(leader, "stop", _seconds=60.0)
        except ProbeError:
            return [], []
        rows = self._patiently("rows", run=f"{run}-w")
        return (
            [_ack([WITNESS + item[0], *item[1:]]) for item in record["acks"]],
            [[WITNESS + writer, seq] for writer, seq in rows],
        )

    def _compare_members(self) -> tuple[str, tuple[str, ...]]:
        """Waits until all members have the same rows and none says that it has another history than the leader.

        What differs when that does not come about, and the members that differ from the leader.
        """
        cluster = self._cluster
        end = time.monotonic() + EQUAL_SECONDS
        while True:
            rows, standing = self._looks()
            same = len(set(rows.values())) == 1 and all(isinstance(value, tuple) for value in rows.values())
            if same and not any(standing.values()):
                return "", ()
            if time.monotonic() > end:
                break
            time.sleep(0.2)
        leads = rows.get(cluster.leader() or "")
        forked = tuple(sorted(peer for peer in rows if rows[peer] != leads or standing.get(peer)))
        return f"the members differ: rows {rows}, they say {standing}", forked

    def _looks(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Of each member: count and checksum of all rows, or why it does not say; and how it says that it stands."""
        cluster = self._cluster
        rows: dict[str, Any] = {}
        standing: dict[str, str] = {}
        for member in cluster.members:
            try:
                digest = cluster.ask(member, "digest", target=cluster.target("127.0.0.1"))
                rows[member] = (digest["count"], digest["sum"])
                standing[member] = cluster.standing(member)
            except ProbeError as error:
                rows[member] = str(error)
        return rows, standing


def _ack(item: Sequence[Any]) -> Ack:
    writer, seq, start, end, timeline, peer = item
    return Ack(writer=writer, seq=seq, start=start, end=end, timeline=timeline, peer=peer)
