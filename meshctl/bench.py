"""`./mesh bench [NAME]...`: measures ours beside the anchor, prints the table, writes the report.

What is measured lives in `benchmarks/`, which belongs to the checkout and not to the installed package.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meshctl.bench_report import HEADINGS, Row, cells, document, markdown, triple
from meshctl.console import Console
from meshctl.errors import UserError
from meshctl.runs import CHECKOUT

if TYPE_CHECKING:
    from benchmarks.sides import Scene

REPORT = CHECKOUT / "docs" / "benchmarks.md"
GROUPS: dict[str, str] = {
    "change": "catalog change and failed check, as a caller sees them",
    "path": "throughput, round trip, connection set-up",
    "failures": "killed Consul agent, killed Envoy",
    "failover": "role changes of a database cluster, as its clients see them",
    "footprint": "memory and idle CPU",
    "start": "start to ready",
    "dns": "route-name DNS beside dnsmasq",
    "admissions": "admissions per second and core",
    "trust": "a manifest set under load, eviction, verification from outside",
    "xds": "snapshot rebuild",
    "public": "public HTTPS beside a plain Envoy",
}
_ON_A_MESH = ("change", "path", "failures", "footprint", "start")


@click.command(epilog="NAME: " + "; ".join(f"{name} ({text})" for name, text in GROUPS.items()))
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--quick", is_flag=True, help="A few samples each: shows that it works, not how fast it is.")
@click.option("--no-anchor", is_flag=True, help="Ours alone.")
@click.option("--report", is_flag=True, help="Write docs/benchmarks.md, though only some are measured.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures there.")
def command(names: tuple[str, ...], quick: bool, no_anchor: bool, report: bool, json_file: Path | None) -> None:
    """Measure, beside the anchor, and write the report.

    A whole run that is not --quick writes docs/benchmarks.md. Nobody else should use the machine meanwhile.
    """
    chosen = _chosen(names)
    progress = Console()
    rows = measure(chosen, quick=quick, with_anchor=not no_anchor, progress=progress)
    facts = machine()
    if json_file is not None:
        json_file.write_text(json.dumps(document(facts, rows), indent=2) + "\n", encoding="utf-8")
    print_table(rows)
    if report or (not names and not quick and not no_anchor):
        REPORT.write_text(markdown(facts, rows), encoding="utf-8")
        click.echo(f"written: {REPORT.relative_to(CHECKOUT)}")


def _chosen(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in GROUPS:
            raise UserError(f"there is no benchmark {name!r}", f"choose from: {', '.join(GROUPS)}; without NAME, all")
    return tuple(group for group in GROUPS if group in names) or tuple(GROUPS)


def measure(groups: tuple[str, ...], *, quick: bool, with_anchor: bool, progress: Console) -> list[Row]:
    """All rows of `groups`. What cannot be measured is a row that says why."""
    if not (CHECKOUT / "benchmarks").is_dir():
        raise UserError("this is no checkout: benchmarks/ is missing", "run ./mesh bench in a clone of the repository")
    if str(CHECKOUT) not in sys.path:
        sys.path.insert(0, str(CHECKOUT))
    from benchmarks import failover, parts, trust

    rows: list[Row] = []

    alone: dict[str, Callable[[], list[Row]]] = {
        "dns": parts.dns,
        "admissions": lambda: parts.admissions(50 if quick else 300),
        "xds": parts.xds,
        "public": lambda: parts.public(quick=quick),
        "failover": lambda: failover.measure(progress, quick=quick),
        "trust": lambda: trust.measure(progress, quick=quick),
    }
    for group, take in alone.items():
        if group in groups:
            rows += _guarded(group, GROUPS[group], take, progress)
    on_mesh = [group for group in _ON_A_MESH if group in groups]
    if on_mesh:
        rows = _on_mesh(on_mesh, quick, with_anchor, progress) + rows
    return rows


def _guarded(group: str, what: str, take: Callable[[], list[Row]], progress: Console) -> list[Row]:
    """What `take` measures, or one row that says why it could not be."""
    progress.line(f"measuring: {what}")
    try:
        return take()
    except Exception as error:  # noqa: BLE001 -- the boundary: one figure that fails must not take the others with it
        return [Row(name=what, group=group, unit="", ours=None, note=f"{type(error).__name__}: {error}")]


def _on_mesh(groups: list[str], quick: bool, with_anchor: bool, progress: Console) -> list[Row]:
    from benchmarks import changes, failures, footprint, paths, starts
    from benchmarks.stage import mesh

    steps: dict[str, list[tuple[str, Callable[[Scene], list[Row]]]]] = {
        "change": [("role moves", changes.role_moves), ("check critical and passing", changes.checks)],
        "path": [("throughput, round trip, connection set-up", paths.measure)],
        "failures": [
            ("Envoy killed → new connections served", failures.envoy_killed),
            ("Consul agent killed and restarted → changes seen again", lambda scene: [failures.agent_restart(scene)]),
        ],
        "footprint": [("memory and idle CPU", footprint.measure)],
        # Last: it takes a CVM away.
        "start": [
            ("start → ready, whole mesh", lambda scene: [starts.whole_mesh(scene)]),
            ("start → ready, one CVM", starts.one_cvm),
        ],
    }
    rows: list[Row] = []
    progress.line("bringing up the bench's mesh")
    try:
        with mesh(progress) as stage, _scene(stage, quick, with_anchor, progress) as scene:
            for group in groups:
                for what, take in steps[group]:
                    rows += _guarded(group, what, lambda take=take: take(scene), progress)  # type: ignore[misc]
    except UserError as error:
        rows += [Row(name=GROUPS[group], group=group, unit="", ours=None, note=str(error)) for group in groups]
    return rows


@contextlib.contextmanager
def _scene(stage: object, quick: bool, with_anchor: bool, progress: Console) -> Iterator[Scene]:
    from benchmarks.anchor import Anchor
    from benchmarks.sides import Ours, Scene, Theirs
    from benchmarks.stage import BenchError, Stage

    assert isinstance(stage, Stage)
    theirs = None
    if with_anchor:
        progress.line("starting the anchor beside it")
        try:
            anchor = Anchor(stage)
            anchor.start()
            theirs = Theirs(anchor)
        except (BenchError, UserError) as error:
            progress.line(f"the anchor cannot run, its figures will be missing: {error}")
    yield Scene(stage=stage, ours=Ours(stage), theirs=theirs, quick=quick)


def machine() -> dict[str, str]:
    """Where and how this ran, for the report."""
    from meshctl.tools import TOOLS, kernel_wireguard

    wireguard = "kernel" if kernel_wireguard() else f"wireguard-go {TOOLS['wireguard-go'].version}"
    return {
        "machine": f"{os.cpu_count()} CPUs, {_cpu_model()}, {_memory_gib():.1f} GiB, Linux {platform.release()}",
        "software": f"Python {platform.python_version()}, Consul {TOOLS['consul'].version}, Envoy "
        f"{TOOLS['envoy'].version} (the anchor's: 1.36.2), WireGuard: {wireguard}",
        "load before the run": " ".join(f"{value:.1f}" for value in os.getloadavg()) + " (1, 5, 15 minutes)",
        "command": shlex.join(["./mesh", "bench", *sys.argv[2:]]),
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)


def print_table(rows: list[Row]) -> None:
    """The table for a person, then what was not measured and why."""
    from rich.console import Console as Screen
    from rich.table import Table

    table = Table(title="ours beside the anchor", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold")
    for row in rows:
        if row.ours is not None:
            table.add_row(*cells(row))
            for path, value in row.beside.items():
                table.add_row(f"  on {path}", row.unit, triple(value), style="dim")
    # A table in a file or a pipe is read elsewhere: it keeps its width.
    screen = Screen() if sys.stdout.isatty() else Screen(width=200)
    screen.print(table)
    for row in rows:
        if row.ours is None:
            screen.print(f"not measured: {row.name}: {row.note}", markup=False)
