"""The owner's manifest on a mesh that runs: how fast one that is set is everywhere, what is lost meanwhile, how fast an
evicted CVM falls silent, how fast one starts in such a mesh, and what verifying from outside takes.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from benchmarks.stage import BenchError, readiness, wait_until
from meshctl import bring_up, ending, evict, owner_access, runs, set_command
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
START_SECONDS = 60.0
"""For a CVM to be out of a caller's endpoints, and for it to be ready again; each is a few seconds."""
BUDGET_SECONDS = 420.0
"""After which no further round begins: a machine that is busy gets fewer samples instead of none in an hour."""
API, WORKER = "http://api:8080/hello", "http://worker:9090/hello"
AIMS = {"set": Aim(of="p50", limit=2000, ratio=False), "lost": Aim(of="p50", limit=0, ratio=False),
        "verify": Aim(of="p50", limit=2000, ratio=False), "evicted": Aim(of="max", limit=500, ratio=False),
        "start": Aim(of="p50", limit=1500, ratio=False)}  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Samples:
    """What was measured, in milliseconds, and counted."""

    sets: list[float] = field(default_factory=list)
    evictions: list[float] = field(default_factory=list)
    verifications: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    calls: int = 0
    lost: int = 0
    problem: str = ""
    """Why there is not more of it."""


def measure(progress: Progress, *, quick: bool) -> list[Row]:
    """All rows; where something fails, of what was measured before, and why there is no more. BenchError and UserError
    where the mesh cannot be had.
    """
    count = 4 if quick else sidecars(psutil.virtual_memory().available)
    with ending.catching(), mesh(count, progress) as run:
        samples = Samples()
        try:
            _under_load(run, count, samples, progress, rounds=1 if quick else 5)
        except (BenchError, UserError, subprocess.TimeoutExpired) as error:
            samples.problem = f"{type(error).__name__}: {error}"
            progress.line(f"no more is measured: {samples.problem}")
    return rows(samples, count)


def _under_load(run: runs.Run, count: int, samples: Samples, progress: Progress, *, rounds: int) -> None:
    """Measures into `samples` while two CVMs that no step changes are called. BenchError, UserError."""
    callers = {peer: Caller(run, peer) for peer in ("api-0", "api-1")}
    try:
        for caller in callers.values():
            caller.do("calls", url=API)
        try:
            _rounds(run, count, samples, progress, callers["api-0"], rounds)
        finally:
            for caller in callers.values():
                found = caller.do("enough", url=API)
                samples.calls += found["good"] + found["lost"]
                samples.lost += found["lost"]
    finally:
        for caller in callers.values():
            caller.close()


def _rounds(run: runs.Run, count: int, samples: Samples, progress: Progress, caller: Caller, rounds: int) -> None:
    began = time.monotonic()
    for number in range(rounds):
        if number and time.monotonic() > began + BUDGET_SECONDS / 2:
            break
        progress.update(f"setting, verifying and starting, {number + 1} of {rounds}")
        samples.sets.append(1000 * _set_another_life(run, count, number))
        samples.verifications.append(1000 * _verify(run))
        samples.starts.append(1000 * _start(run, "worker-0"))
    for number in range(min(rounds, count // 2 - 1)):
        if number and time.monotonic() > began + BUDGET_SECONDS:
            break
        progress.update(f"evicting, {number + 1} of {rounds}")
        samples.evictions.append(1000 * _evict(run, count, f"worker-{count // 2 - 1 - number}", caller))


def rows(samples: Samples, count: int) -> list[Row]:
    """The rows of what was measured on `count` sidecars. Pure."""
    fewer = f"; {SIDECARS} were aimed at, and this machine's memory holds {count}" if count < SIDECARS else ""
    ended = f". Ended early: {samples.problem}" if samples.problem else ""
    shown = (
        (
            "set", f"manifest set → each of {count} sidecars shows a certificate of its mesh CA", samples.sets,
            ("from the last look at which the coordinator did not enforce it to the first at which all show such a "
            "certificate; a look every 20 ms, or less often where one takes longer; all CVMs on this machine's cores"
            f"{fewer}. No anchor: a root change reaches Consul's agents within a random 0 to 30 s"),
        ),
        (
            "evicted", "CVM evicted → last byte on a connection held to it", samples.evictions,
            "from the same moment as the first row, to the last answer that came; a call every 10 ms",
        ),
        (
            "verify", "./mesh verify, from its start to its end", samples.verifications,
            "a process of its own: start of Python, a fresh quote, evidence, history, members, folder written",
        ),
        (
            "start", f"start → ready of a CVM, in a mesh of {count} under this load", samples.starts,
            "from power-on to ready: attested, joined, link, Envoy; it was killed, and gone from every caller",
        ),
    )  # fmt: skip
    first, *others = [
        Row(name=name, group=GROUP, unit="ms", ours=figure(taken), aim=AIMS[aim], n=len(taken), note=f"{note}{ended}")
        for aim, name, taken, note in shown
    ]
    lost = Row(
        name="calls lost while manifests are set, and CVMs start and are evicted", group=GROUP, unit="calls",
        ours=single(samples.lost if samples.calls else None), aim=AIMS["lost"], n=samples.calls,
        note="of a group that does not change, from two CVMs, each call on a connection of its own, every 10 ms"
        f"{ended}",
    )  # fmt: skip
    return [first, lost, *others]


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


def _start(run: runs.Run, peer: str) -> float:
    """Seconds from power-on of the CVM `peer`, which is killed first, until it is ready."""
    run.call("POST", f"/machines/{peer}/kill", seconds=START_SECONDS)
    wait_until(lambda: peer not in _endpoints(run, "api-0"), START_SECONDS, f"{peer} is no endpoint any more", 0.05)
    began = time.monotonic()
    run.call("POST", f"/machines/{peer}/start", seconds=START_SECONDS)
    return wait_until(lambda: readiness(run).get(peer, False), START_SECONDS, f"{peer} is ready", 0.02) - began


def _endpoints(run: runs.Run, caller: str) -> set[str]:
    """The instances that `caller` may be led to."""
    machines = run.call("GET", "/status")["machines"]
    own = next(each["sidecar"] or {} for each in machines if each["peer_id"] == caller)
    return {peer for route in own.get("routes") or () for peer in route["endpoints"]}


def _verify(run: runs.Run) -> float:
    with tempfile.TemporaryDirectory() as folder:
        argv = [str(runs.CHECKOUT / "mesh"), "verify", "--name", run.name, "--out", str(Path(folder) / "verify")]
        began = time.monotonic()
        done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS * 2, check=False)
        taken = time.monotonic() - began
    if done.returncode != 0:
        raise UserError(f"./mesh verify ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return taken
