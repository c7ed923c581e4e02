"""`./mesh chaos patroni`: breaks the database cluster in turn, shows what its clients saw, fails when a write was lost.

It uses a running mesh of that cluster, or brings up its own and takes it down. Evidence of what must not be is kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from meshctl import ending, runs
from meshctl.bench_report import number
from meshctl.chaos_cluster import SCENARIOS, ChaosError, Cluster, Scenario
from meshctl.chaos_engine import Engine, Evidence
from meshctl.chaos_figures import (
    BY_DEFAULT,
    FAULTS,
    STAYS,
    Fault,
    Round,
    Spread,
    Summary,
    document,
    last_closed,
    summaries,
)
from meshctl.console import Console, Progress
from meshctl.errors import UserError
from meshctl.probes import ProbeError

HEADINGS = (
    "fault", "rounds", "first write again, s", "old connections closed, s", "acknowledged", "lost", "outcome unknown",
    "longest time without a read, s",
)  # fmt: skip

DISK_MEBIBYTES = 2048
"""Of each CVM in a mesh that is brought up for a full disk: PostgreSQL's log may take 1 GiB (`max_wal_size`)."""


@click.command()
@click.argument("scenario", type=click.Choice(sorted(SCENARIOS)))
@click.option("--rounds", type=click.IntRange(1, 1000), default=1, show_default=True, help="Of each fault, in turns.")
@click.option(
    "--fault",
    "faults",
    multiple=True,
    type=click.Choice(FAULTS),
    help="Only this one; may be repeated. Default: all but crash-sidecar and disk-full.",
)
@click.option("--async", "asynchronous", is_flag=True, help="Without synchronous mode: what is lost is shown.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures there.")
@click.option("--name", help="Which mesh; brought up and taken down again when it does not run.")
def command(
    scenario: str,
    rounds: int,
    faults: tuple[Fault, ...],
    asynchronous: bool,
    json_file: Path | None,
    name: str | None,
) -> int:
    """Kills, cuts off and switches the leader under load, and compares what was acknowledged with what is there.

    Exit code 1 when a synchronous cluster lost an acknowledged write, or did not become whole again.
    """
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise UserError(f"--json {str(json_file)!r}: its folder does not exist", f"mkdir -p {json_file.parent}")
    progress = Console()
    chosen = tuple(fault for fault in FAULTS if fault in (faults or BY_DEFAULT))
    kept: list[Evidence] = []
    problem = ""
    disk = DISK_MEBIBYTES if "disk-full" in chosen else None
    with ending.catching(), mesh(SCENARIOS[scenario], name, progress, disk) as run:
        try:
            problem = make(run, SCENARIOS[scenario], chosen, rounds, kept, progress, asynchronous=asynchronous)
        finally:
            # Also of a run that was interrupted: what it found is found.
            verdict = _report(kept, json_file, progress, run, asynchronous=asynchronous)
    if problem:
        raise UserError(problem, "./mesh logs of the CVM that it names shows why", exit_code=1)
    return verdict


@contextlib.contextmanager
def mesh(scenario: Scenario, name: str | None, progress: Progress, disk: int | None = None) -> Iterator[runs.Run]:
    """The running mesh called `name` (without one: the only one of that cluster), or one of our own for the block.

    `disk`: MiB of each CVM's disk in one of our own.
    """
    running = [
        run
        for run in runs.all_runs()
        if run.alive and (run.name == name if name else _cluster_of(run) == scenario.cluster)
    ]
    if len(running) > 1:
        raise UserError(
            f"several meshes of {scenario.cluster} are running: {', '.join(run.name for run in running)}",
            f"add --name {running[0].name}",
        )
    if running:
        progress.line(f"using mesh {running[0].name}")
        yield running[0]
        return
    from meshctl.lab_commands import start_mesh

    run, _, _ = start_mesh(f"clusters/{scenario.cluster}", {}, "preserving", name or f"chaos-{os.getpid()}", disk=disk)
    try:
        yield run
    finally:
        with ending.held_back():
            runs.end(run, at_once=True)
            progress.line(f"mesh {run.name} is down")


def _cluster_of(run: runs.Run) -> str:
    with contextlib.suppress(UserError, KeyError):
        return Path(run.call("GET", "/status")["cluster"]).name
    return ""


def make(
    run: runs.Run,
    scenario: Scenario,
    faults: Sequence[Fault],
    rounds: int,
    kept: list[Evidence],
    progress: Progress,
    *,
    asynchronous: bool,
) -> str:
    """Makes the rounds, each into `kept` as it ends; why they ended early, if they did."""

    def keep(evidence: Evidence) -> None:
        kept.append(evidence)
        progress.line(f"{evidence.result.fault}: {_sentence(evidence.result)}")

    cluster = None
    try:
        cluster = Cluster(run, scenario)
        with _mode(cluster, synchronous=not asynchronous):
            label = f"{os.getpid()}-{int(time.time())}"
            engine = Engine(cluster, progress, synchronous=not asynchronous, name=label)
            engine.rounds(faults, rounds, keep)
    except (ChaosError, ProbeError) as error:
        return str(error)
    finally:
        if cluster is not None:
            with ending.held_back():
                with contextlib.suppress(UserError):
                    cluster.mend()
                cluster.close()
    return ""


@contextlib.contextmanager
def _mode(cluster: Cluster, *, synchronous: bool) -> Iterator[None]:
    """The cluster is in that mode within the block, and in its own again afterwards."""
    before = cluster.synchronous()
    if before == synchronous:
        yield
        return
    cluster.set_synchronous(synchronous)
    try:
        yield
    finally:
        cluster.set_synchronous(before)


def _sentence(result: Round) -> str:
    """One round in a line."""
    taken = "no write again" if result.rto is None else f"first write again after {result.rto:.3f} s"
    closed = last_closed(result.closed)
    if result.fault in STAYS:
        taken = "no write again" if result.rto is None else f"longest pause {result.rto:.3f} s"
        cut = "connections were held"
    elif closed is None:
        cut = "not all old connections were closed"
    else:
        cut = f"old connections closed after {closed:.3f} s"
    moved = f"{result.leader} → {result.new_leader}" if result.new_leader != result.leader else result.leader
    hit = "" if result.victim == result.leader else f" (hit: {result.victim})"
    said = [f"{moved}{hit}", taken, cut, f"{result.acknowledged} acknowledged, {len(result.lost)} lost"]
    if result.forked:
        said.append(f"{', '.join(result.forked)} FORKED")
    if result.demoted:
        said.append(f"{len(result.demoted)} ACKNOWLEDGED BY A DEMOTED LEADER")
    return "; ".join([*said, *([result.problem] if result.problem else [])])


def _report(
    kept: Sequence[Evidence], json_file: Path | None, progress: Progress, run: runs.Run, *, asynchronous: bool
) -> int:
    """Table, JSON, evidence; the exit code."""
    results = [evidence.result for evidence in kept]
    found = summaries(results)
    if json_file is not None:
        json_file.write_text(json.dumps(document(found), indent=2) + "\n", encoding="utf-8")
    if found:
        print_table(found, asynchronous=asynchronous)
    # A demoted leader must not acknowledge anything in any mode; what asynchronous replication loses is its price.
    bad = [
        e
        for e in kept
        if e.result.problem or e.result.demoted or e.result.forked or (e.result.lost and not asynchronous)
    ]
    if bad:
        progress.line(f"evidence: {keep_evidence(bad, run)}")
    return 1 if bad else 0


def print_table(found: Sequence[Summary], *, asynchronous: bool) -> None:
    """A line a fault."""
    from rich.console import Console as Screen
    from rich.table import Table

    mode = "asynchronous" if asynchronous else "synchronous"
    table = Table(title=f"chaos, {mode} replication (median / p99 / max)", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold", no_wrap=heading == HEADINGS[0])
    for each in found:
        unclosed = f", {each.never_closed} never" if each.never_closed else ""
        lost = f"{each.lost}" + (f", {each.demoted} by a demoted leader" if each.demoted else "")
        lost += f", {each.forked} members forked" if each.forked else ""
        table.add_row(
            each.fault,
            str(each.rounds),
            _triple(each.rto),
            _triple(each.closed) + unclosed,
            str(each.acknowledged),
            lost,
            str(each.unknown),
            _triple(each.read_gap),
            style="bold red" if each.lost or each.demoted or each.forked else None,
        )
    screen = Screen() if sys.stdout.isatty() else Screen(width=160)
    screen.print(table)


def _triple(spread: Spread) -> str:
    shown = [number(value) for value in (spread.median, spread.p99, spread.max)]
    # Of one round there is one value.
    return " / ".join(shown if len(set(shown)) > 1 else shown[:1])


def keep_evidence(kept: Sequence[Evidence], run: runs.Run) -> Path:
    """Writes the rounds and the logs of every CVM into a folder of its own; the folder."""
    folder = Path(tempfile.mkdtemp(prefix="cvm-mesh-chaos-"))
    for evidence in kept:
        tree: dict[str, Any] = {
            "round": asdict(evidence.result),
            "notes": evidence.notes,
            "acks": [asdict(ack) for ack in evidence.acks],
            "rows": evidence.rows,
        }
        name = f"{evidence.result.fault}-{evidence.result.number}.json"
        (folder / name).write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    with contextlib.suppress(OSError, shutil.Error):
        shutil.copytree(run.folder / "logs", folder / "logs")
    return folder
