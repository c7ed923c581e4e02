"""Figures of single parts, each measured by its own script in a process of its own: DNS, admission, xDS snapshots."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.stage import BenchError
from meshctl.bench_report import Aim, Figure, Row, figure, single

ROOT = Path(__file__).resolve().parent.parent


def dns() -> list[Row]:
    """Queries a second and latency beside dnsmasq."""
    from benchmarks.dns_bench import get_tools

    get_tools()
    if shutil.which("dnsperf") is None:
        raise BenchError("dnsperf is not installed; apt-get install dnsperf dnsmasq-base")
    as_quick, half = Aim(of="p50", limit=1.2, ratio=True), Aim(of="p50", limit=0.5, ratio=True, at_least=True)
    names: dict[str, tuple[str, str, Aim | None]] = {
        "dns_udp_queries_per_second": ("DNS over UDP, as fast as it goes", "queries/s", None),
        "dns_tcp_queries_per_second": ("DNS over TCP, as fast as it goes", "queries/s", None),
        "dns_udp_p99_ms_at_5000": ("DNS latency p99 at 5,000 queries/s", "ms", Aim(of="p50", limit=2.0, ratio=False)),
        "dns_forwarded_p99_ms_at_500": ("DNS latency p99 of forwarded names at 500 queries/s", "ms", as_quick),
        "dns_new_p99_ms_at_500": ("DNS latency p99 of names asked for once, at 500 queries/s", "ms", as_quick),
        "dns_forwarded_queries_per_second": ("DNS forwarded names, as fast as it goes", "queries/s", half),
        "dns_new_queries_per_second": ("DNS names asked for once, as fast as it goes", "queries/s", half),
    }
    rows = []
    for found in _run("benchmarks/dns_bench.py"):
        name, unit, aim = names[found["name"]]
        rows.append(
            Row(
                name=name,
                group="dns",
                unit=unit,
                ours=single(found["ours"]),
                anchor=single(found["anchor"]),
                beside={"the machine's resolver": direct} if (direct := single(found["machine"])) is not None else {},
                n=3,
                aim=aim,
                more_is_better=unit == "queries/s",
                note="the anchor here is dnsmasq; dnsperf, medians of 3 rounds in turns, 100 routes, no query failed",
            )
        )
    return rows


SHARED_MACHINES = 16
"""Machines for the CVMs of the second figure: some twenty CVMs on each, as a cloud's hosts have them."""


def admissions(count: int) -> list[Row]:
    """Admissions a second and core, of CVMs on machines of their own, and on few."""
    aim = Aim(of="p50", limit=200, ratio=False, at_least=True)
    rows = []
    for machines, where in ((0, "each on a machine of its own"), (SHARED_MACHINES, f"on {SHARED_MACHINES} machines")):
        argv = ("--json", "--count", str(count), "--machines", str(machines))
        found = _run("benchmarks/admission_bench.py", *argv)
        rows.append(
            Row(
                name=f"admissions per second and core, CVMs {where}", group="admissions", unit="1/s", n=count,
                ours=single(found["per_second_and_core"]), aim=aim, more_is_better=True,
                note=f"CPU per admission: broker {found['broker_cpu_ms']:.2f} ms, Consul {found['consul_cpu_ms']:.2f} "
                "ms; 8 applicants at once, whose own work does not count. No anchor: Consul attests nothing",
            )
        )  # fmt: skip
    return rows


def xds() -> list[Row]:
    """Rebuild of a snapshot after one change, and what is sent."""
    found = {row["name"]: row["ours"] for row in _run("-c", _XDS)}
    middle, worst = (found[f"rebuild_after_one_change_1000x10_ms_{which}"] for which in ("p50", "max"))
    return [
        Row(
            name="snapshot rebuild after one change, 1,000 routes x 10 endpoints", group="xds", unit="ms", n=20,
            ours=Figure(p50=middle, p99=worst, max=worst), aim=Aim(of="p50", limit=10, ratio=False),
            note=f"the first build takes {found['build_1000x10_ms']:.0f} ms",
        ),
        Row(
            name="bytes sent after one change of 1,000 routes x 10 endpoints", group="xds", unit="bytes", n=20,
            ours=single(found["bytes_sent_for_one_changed_route"]),
            aim=Aim(of="p50", limit=found["bytes_sent_for_everything"] / 100, ratio=False),
            note=f"everything is {found['bytes_sent_for_everything']:,.0f} bytes; the aim is a hundredth of that",
        ),
    ]  # fmt: skip


def public(*, quick: bool) -> list[Row]:
    """The public listener beside a plain Envoy."""
    return public_rows(_run("benchmarks/public_bench.py", *(("--quick",) if quick else ())))


def public_rows(found: dict[str, dict[str, list[float]]]) -> list[Row]:
    """The rows of what `benchmarks/public_bench.py` prints. Pure."""
    plain = "the anchor here is an Envoy of the same version with one TLS listener, the same certificate and server"
    plans = (
        ("connections per CPU second", "new HTTPS connections per second and core", "1/s", 0.95, True,
         f"full TLS 1.3 handshakes, by Envoy's own CPU time; {plain}"),
        ("connection, ms", "new HTTPS connection + first byte", "ms", 1 / 0.95, False, "one after the other"),
        ("Gbit/s", "public HTTPS, one stream", "Gbit/s", 0.95, True, "uploads; client and server share the cores"),
        ("gigabytes per CPU second", "public HTTPS, per second and core", "GB", 0.95, True, "by Envoy's own CPU time"),
    )  # fmt: skip
    return [
        Row(
            name=name, group="public", unit=unit, ours=figure(found[key]["ours"], more_is_better=more),
            anchor=figure(found[key]["plain"], more_is_better=more), n=len(found[key]["ours"]), more_is_better=more,
            aim=Aim(of="p50" if more else "p99", limit=limit, at_least=more), note=note,
        )
        for key, name, unit, limit, more, note in plans
    ]  # fmt: skip


_XDS = """
import dataclasses, json
from benchmarks.xds_bench import build_rows
print(json.dumps([dataclasses.asdict(row) for row in build_rows()]))
"""


def _run(*argv: str) -> Any:
    """The JSON that a script prints."""
    done = subprocess.run(
        [sys.executable, *argv],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode != 0:
        raise BenchError(f"{argv[0]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout)
