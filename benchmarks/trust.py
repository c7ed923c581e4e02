"""The owner's manifest on a mesh that runs: how fast one that is set is everywhere, what is lost meanwhile, how fast an
evicted CVM falls silent, and what verifying from outside takes.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from benchmarks.stage import BenchError
from meshctl import bring_up, evict, owner_access, runs, set_command
from meshctl.bench_report import Aim, Row, figure, single
from meshctl.console import Progress
from meshctl.errors import UserError
from meshctl.trust_load import Caller, Spread, following
from topology.envelope import open_envelope
from topology.manifest import Manifest

GROUP = "trust"
SIDECARS = 20
MEMORY = 250 << 20
"""Bytes that one more CVM may take: sidecar, Envoy, Consul agent and application (`footprint` measures less)."""
READY_SECONDS = 900.0
"""20 CVMs start at once, on two cores, and each takes seconds of CPU time."""
SECONDS = 30.0
"""For a connection to be cut, which is a hundredth of it."""
API, WORKER = "http://api:8080/hello", "http://worker:9090/hello"
AIMS = {"set": Aim(of="p50", limit=2000, ratio=False), "lost": Aim(of="p50", limit=0, ratio=False),
        "verify": Aim(of="p50", limit=2000, ratio=False), "evicted": Aim(of="max", limit=500, ratio=False)}  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Samples:
    """What was measured, in milliseconds, and counted."""

    sets: list[float]
    evictions: list[float]
    verifications: list[float]
    calls: int = 0
    lost: int = 0


def measure(progress: Progress, *, quick: bool) -> list[Row]:
    """All rows. BenchError where the mesh cannot be had, or lets something through that it must not."""
    count = 4 if quick else sidecars(psutil.virtual_memory().available)
    rounds = 1 if quick else 5
    with mesh(count, progress) as run:
        samples = Samples(sets=[], evictions=[], verifications=[])
        callers = {peer: Caller(run, peer) for peer in ("api-0", "api-1")}
        try:
            for caller in callers.values():
                caller.do("calls", url=API)
            for number in range(rounds):
                progress.update(f"setting, verifying and evicting, {number + 1} of {rounds}")
                samples.sets.append(1000 * _set_another_life(run, count, number))
                samples.verifications.append(1000 * _verify(run))
            for number in range(min(rounds, count // 2 - 1)):
                samples.evictions.append(
                    1000 * _evict(run, count, f"worker-{count // 2 - 1 - number}", callers["api-0"])
                )
            for caller in callers.values():
                found = caller.do("enough", url=API)
                samples.calls, samples.lost = (
                    samples.calls + found["good"] + found["lost"],
                    samples.lost + found["lost"],
                )
        finally:
            for caller in callers.values():
                caller.close()
    return rows(samples, count)


def rows(samples: Samples, count: int) -> list[Row]:
    """The rows of what was measured on `count` sidecars. Pure."""
    fewer = f"; {SIDECARS} were aimed at, and this machine's memory holds {count}" if count < SIDECARS else ""
    return [
        Row(
            name=f"manifest set → each of {count} sidecars shows a certificate of its mesh CA", group=GROUP, unit="ms",
            ours=figure(samples.sets), aim=AIMS["set"], n=len(samples.sets),
            note="from the last look at which the coordinator did not enforce it to the first at which all show such a "
            f"certificate; a look every 20 ms; all CVMs on this machine's cores{fewer}. No anchor: a root change "
            "reaches Consul's agents within a random 0 to 30 s",
        ),
        Row(
            name="calls lost while manifests are set and CVMs evicted", group=GROUP, unit="calls",
            ours=single(samples.lost), aim=AIMS["lost"], n=samples.calls,
            note="of a group that does not change, from two CVMs, each call on a connection of its own, every 10 ms",
        ),
        Row(
            name="CVM evicted → last byte on a connection held to it", group=GROUP, unit="ms",
            ours=figure(samples.evictions), aim=AIMS["evicted"], n=len(samples.evictions),
            note="from the same moment as the first row, to the last answer that came; a call every 10 ms",
        ),
        Row(
            name="./mesh verify, from its start to its end", group=GROUP, unit="ms",
            ours=figure(samples.verifications), aim=AIMS["verify"], n=len(samples.verifications),
            note="a process of its own: start of Python, a fresh quote, evidence, history, members, folder written",
        ),
    ]  # fmt: skip


def sidecars(available: int) -> int:
    """How many CVMs to run with `available` bytes of memory: SIDECARS, or fewer, an even number. Pure."""
    return max(4, min(SIDECARS, available // MEMORY) // 2 * 2)


@contextlib.contextmanager
def mesh(count: int, progress: Progress) -> Iterator[runs.Run]:
    """A starter with `count` workload CVMs, half of them api, up within the block and gone after it."""
    run = runs.run_of(f"bench-trust-{os.getpid()}")
    replicas = {"replicas.api": str(count // 2), "replicas.worker": str(count // 2)}
    try:
        bring_up.bring_up(run, runs.CHECKOUT / "clusters" / "starter", replicas, "preserving", progress)
        bring_up.wait_ready(run, progress, READY_SECONDS)
        yield run
    finally:
        if run.folder.exists():
            runs.end(run)


def _peers(count: int, gone: Sequence[str] = ()) -> tuple[str, ...]:
    every = [f"{group}-{number}" for group in ("api", "worker") for number in range(count // 2)]
    return tuple(peer for peer in every if peer not in gone)


def _set(run: runs.Run, change: Callable[[Manifest], Manifest], peers: Sequence[str]) -> Spread:
    here = owner_access.lab(run.name)
    envelope = here.sign(change(here.draft()))
    # What `./mesh set` tells a person is of no use here.
    with (
        following(run, open_envelope(envelope, None).digest, peers) as spread,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        set_command.put(here.mesh, envelope, yes=True)
        return spread.result()


def _set_another_life(run: runs.Run, count: int, number: int) -> float:
    return _set(run, lambda manifest: replace(manifest, leaf_hours=9 + number % 2), _peers(count)).seconds


def _evict(run: runs.Run, count: int, peer: str, caller: Caller) -> float:
    """Seconds from the eviction to the last byte from `peer`."""
    caller.do("hold", name=peer, url=WORKER, peer=peer)
    gone = [f"worker-{number}" for number in range(int(peer.rpartition("-")[2]), count // 2)]
    spread = _set(run, lambda manifest: evict.without(manifest, peer), _peers(count, gone))
    found = caller.do("held", name=peer, seconds=SECONDS)
    if found["cut"] is None:
        raise BenchError(f"the connection to {peer} was not cut within {SECONDS:g} s of its eviction")
    return float(found["last"] - spread.set_at)


def _verify(run: runs.Run) -> float:
    with tempfile.TemporaryDirectory() as folder:
        argv = [str(runs.CHECKOUT / "mesh"), "verify", "--name", run.name, "--out", str(Path(folder) / "verify")]
        began = time.monotonic()
        done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS * 2, check=False)
        taken = time.monotonic() - began
    if done.returncode != 0:
        raise UserError(f"./mesh verify ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return taken
