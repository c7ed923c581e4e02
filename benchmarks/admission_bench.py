"""Admissions per second and core: `python benchmarks/admission_bench.py [--count N] [--machines N] [--json]`.

A coordinator process with a real Consul server admits CVMs of a simulated TEE, each over a TLS connection of its
own, eight at a time; collateral is cached after the first. The applicants' work (quotes, bindings) is done by
another process and does not count: a core's rate is one over the CPU time that coordinator and Consul took for an
admission.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import logging
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil

from lab.tee import CvmIdentity, machine
from tests.coordinator.world import API_COMPOSE, Applicant, Cluster, cluster, cvm
from topology.manifest import PeerEntry

AT_ONCE = 8
WARM = 10
"""Admissions before the count: imports, connections and collateral."""


def with_slots(mesh: Cluster, count: int) -> None:
    """Gives the group `api` as many slots as CVMs will ask."""
    group = mesh.manifest.groups["api"]
    prefix = mesh.manifest.coordinators.peers[0].address.rsplit(".", 2)[0]
    peers = tuple(
        PeerEntry(peer_id=f"api-{n}", address=f"{prefix}.{200 + n // 250}.{n % 250 + 1}") for n in range(count)
    )
    groups = mesh.manifest.groups | {"api": dataclasses.replace(group, peers=peers)}
    mesh.manifest = dataclasses.replace(mesh.manifest, groups=groups)


async def serve(count: int) -> None:
    """The coordinator's process: says where it is, ends with its standard input."""
    async with cluster() as mesh:
        with_slots(mesh, count)
        await mesh.start()
        lead = await mesh.ready()
        children = lead.coordinator.document()["children"]
        assert isinstance(children, dict)
        print(json.dumps({"url": lead.url, "consul": children["consul"]["pid"]}), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def cpu(process: psutil.Process) -> float:
    """Seconds of CPU that `process` has taken."""
    times = process.cpu_times()
    return float(times.user + times.system)


def on_machine(n: int, machines: int) -> CvmIdentity:
    """The CVM of that number, on one of so many machines; 0: each is on a machine of its own."""
    made = cvm(API_COMPOSE, f"cvm-{n}")
    ppid = machine(b"machine %d" % (n % machines)) if machines else made.measurements.ppid
    return dataclasses.replace(made, measurements=dataclasses.replace(made.measurements, ppid=ppid))


async def measure(count: int, machines: int) -> dict[str, float]:
    """Admits `count` CVMs on so many `machines` and gives the figures."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--serve", "--count", str(count + WARM),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        where = json.loads(await child.stdout.readline())
        async with cluster() as mesh:
            with_slots(mesh, count + WARM)
            waiting = [
                Applicant(url=where["url"], manifest=mesh.manifest, who=on_machine(n, machines))
                for n in range(count + WARM)
            ]
        for _ in range(WARM):
            await waiting.pop().admitted()
        both = psutil.Process(child.pid), psutil.Process(where["consul"])
        before, began = [cpu(each) for each in both], time.perf_counter()
        taken: list[float] = []

        async def admit() -> None:
            while waiting:
                applicant, start = waiting.pop(), time.perf_counter()
                await applicant.admitted()
                taken.append(time.perf_counter() - start)

        await asyncio.gather(*(admit() for _ in range(AT_ONCE)))
        elapsed = time.perf_counter() - began
        broker, consul = (cpu(each) - was for each, was in zip(both, before, strict=True))
    finally:
        child.stdin.close()
        await child.wait()
    taken.sort()
    return {
        "admissions": count,
        "per_second_and_core": count / (broker + consul),
        "per_second": count / elapsed,
        "broker_cpu_ms": broker / count * 1000,
        "consul_cpu_ms": consul / count * 1000,
        "p50_ms": taken[len(taken) // 2] * 1000,
        "p99_ms": taken[len(taken) * 99 // 100] * 1000,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--machines", type=int, default=0, help="they share so many; default: each has its own")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if options.serve:
        asyncio.run(serve(options.count))
        return
    found = asyncio.run(measure(options.count, options.machines))
    if options.json:
        print(json.dumps(found))
        return
    print(f"{os.cpu_count()} CPUs, {AT_ONCE} CVMs at once")
    for name, value in found.items():
        print(f"{name:22} {value:10.1f}")


if __name__ == "__main__":
    main()
