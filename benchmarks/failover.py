"""Role changes of a database cluster as its clients see them: the rounds of `./mesh chaos`, as rows of the bench."""

from __future__ import annotations

from benchmarks.stage import BenchError
from meshctl import chaos
from meshctl.bench_report import Aim, Row, figure
from meshctl.chaos_cluster import SCENARIOS
from meshctl.chaos_engine import Evidence
from meshctl.chaos_figures import Fault, Round
from meshctl.console import Progress

GROUP = "failover"
AIMS: dict[Fault, float] = {
    "crash-postgres": 500,
    "crash-patroni": 500,
    "switchover": 300,
    "cvm-loss": 4000,
    "partition-both": 4000,
}
"""Milliseconds, of the median."""
NAMES: dict[Fault, str] = {
    "crash-postgres": "PostgreSQL of the leader killed",
    "crash-patroni": "Patroni of the leader killed",
    "switchover": "switchover by patronictl",
    "cvm-loss": "CVM of the leader lost",
    "partition-both": "leader cut off both ways",
}
CUT_BY_THE_MESH: tuple[Fault, ...] = ("cvm-loss", "partition-both")
"""Here nobody else closes what is held to the old leader."""
CLOSE_LIMIT = 10.0
ROUNDS = 5


def measure(progress: Progress, *, quick: bool) -> list[Row]:
    """All rows. BenchError when the rounds could not all be made."""
    kept: list[Evidence] = []
    scenario = SCENARIOS["patroni"]
    with chaos.mesh(scenario, "bench-failover", progress) as run:
        problem = chaos.make(run, scenario, tuple(AIMS), 1 if quick else ROUNDS, kept, progress, asynchronous=False)
    if problem:
        raise BenchError(problem)
    return rows([evidence.result for evidence in kept])


def rows(rounds: list[Round]) -> list[Row]:
    """The rows of these rounds."""
    lost = sum(len(each.lost) for each in rounds)
    told = sum(each.acknowledged for each in rounds)
    note = f"seen from another CVM that dials postgres-master; {lost} of {told} acknowledged writes lost in all rounds"
    found = [
        Row(
            name=f"{NAMES[fault]} → {'pause of writes' if fault == 'switchover' else 'first acknowledged write'}",
            group=GROUP,
            unit="ms",
            ours=figure([1000 * each.rto for each in rounds if each.fault == fault and each.rto is not None]),
            aim=Aim(of="p50", limit=limit, ratio=False),
            n=sum(each.fault == fault for each in rounds),
            note=note,
        )
        for fault, limit in AIMS.items()
    ]
    after = [
        1000 * (moment - each.decided)
        for each in rounds
        if each.fault in CUT_BY_THE_MESH and each.decided is not None
        for moment in each.closed.values()
        if moment is not None
    ]
    held = sum(len(each.closed) for each in rounds if each.fault in CUT_BY_THE_MESH)
    return [
        *found,
        Row(
            name="leader lost → connection held to it is closed, from the caller's sidecar's decision",
            group=GROUP,
            unit="ms",
            ours=figure(after),
            aim=Aim(of="max", limit=CLOSE_LIMIT, ratio=False),
            n=len(after),
            note=f"an idle and a talking connection each, {len(after)} of {held} closed; the anchor closes none",
        ),
    ]
