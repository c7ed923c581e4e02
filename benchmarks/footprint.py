"""Memory and idle CPU of what runs in the caller's CVM: sidecar, agent, Envoy; ours and the anchor's in one window."""

from __future__ import annotations

import time

import psutil

from benchmarks.sides import Scene
from benchmarks.stage import CLIENT
from meshctl.bench_report import Aim, Figure, Row, single

MIB = 1 << 20
SECONDS = 20.0
WIREGUARD = "wireguard-go"
WHOLE = "all but WireGuard, which both use"


def measure(scene: Scene) -> list[Row]:
    """RSS and share of a core, each process."""
    stage = scene.stage
    ours = {
        "sidecar process": stage.sidecar(CLIENT),
        "Consul agent": stage.child(CLIENT, "consul"),
        "Envoy": stage.child(CLIENT, "envoy"),
    }
    if "wireguard" in stage.peers[CLIENT]["children"]:
        ours[WIREGUARD] = stage.child(CLIENT, "wireguard")
    theirs: dict[str, psutil.Process] = {}
    if scene.theirs:
        for child in stage.client.processes():
            name = {"consul": "Consul agent", "envoy": "Envoy"}.get(child.name())
            # The bootstrap's helper of `consul connect envoy` stays behind, ended but not collected.
            if name and child.status() != psutil.STATUS_ZOMBIE:
                theirs[name] = child
    processes = {("ours", name): p for name, p in ours.items()} | {("anchor", name): p for name, p in theirs.items()}
    seconds = 3.0 if scene.quick else SECONDS
    before = {key: sum(process.cpu_times()[:2]) for key, process in processes.items()}
    start = time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - start
    load = {key: 100 * (sum(process.cpu_times()[:2]) - before[key]) / elapsed for key, process in processes.items()}
    memory = {key: process.memory_info().rss / MIB for key, process in processes.items()}
    aims = {"MiB": Aim(of="p50", limit=70, ratio=False), "% of a core": Aim(of="p50", limit=0.5, ratio=False)}
    notes = {
        "MiB": "client-0 after the other measurements; counts program pages that are shared on this machine only",
        "% of a core": f"client-0, {seconds:g} s without traffic; counted in ticks of 10 ms, {1 / seconds:.2g} %",
    }
    return [
        Row(
            name=f"{what} of {name}",
            group="footprint",
            unit=unit,
            n=1,
            ours=_sum(values, "ours", name),
            anchor=_sum(values, "anchor", name),
            aim=aims[unit] if name == "sidecar process" else None,
            note=notes[unit],
        )
        for what, unit, values in (("RSS", "MiB", memory), ("idle CPU", "% of a core", load))
        for name in [*ours, WHOLE]
    ]


def _sum(values: dict[tuple[str, str], float], side: str, name: str) -> Figure | None:
    chosen = [
        value
        for (owner, own), value in values.items()
        if owner == side and (name == own or (name == WHOLE and own != WIREGUARD))
    ]
    return single(sum(chosen)) if chosen else None
