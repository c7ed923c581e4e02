"""The data path: throughput, round trip, connection set-up; ours, the anchor, raw WireGuard and a raw veth in turns."""

from __future__ import annotations

from benchmarks import veth
from benchmarks.backend import PORT
from benchmarks.sides import Scene
from benchmarks.stage import CLIENT, ECHOES, Helper
from meshctl.bench_report import Aim, Row, difference, figure

WIREGUARD, VETH = "raw WireGuard", "raw veth"
TURNS = 10
THROUGHPUT_TURNS = 30
"""Turns of throughput: single samples differ by a third on a machine whose cores all CVMs share."""


def measure(scene: Scene) -> list[Row]:
    """All rows of the data path."""
    for side in scene.sides:
        scene.settle(side, {ECHOES[0]: "master", ECHOES[1]: "replica"})
    targets = {side.name: side.master for side in scene.sides}
    targets[WIREGUARD] = (scene.stage.address(ECHOES[0]), PORT)
    bare = Helper(scene.stage.run, CLIENT, "benchmarks.veth")
    try:
        return [_throughput(scene, targets, bare), *_latencies(scene, targets, bare)]
    finally:
        bare.close()


def _throughput(scene: Scene, targets: dict[str, tuple[str, int]], bare: Helper) -> Row:
    rates: dict[str, list[float]] = {}
    seconds = 0.5 if scene.quick else 1.0
    for _ in range(scene.n(THROUGHPUT_TURNS, 1)):
        for name, (host, port) in [*targets.items(), (VETH, (veth.SERVER, PORT))]:
            helper = bare if name == VETH else scene.stage.client
            rates.setdefault(name, []).append(
                helper.do("throughput", host=host, port=port, seconds=seconds, _seconds=60.0) / 1e9
            )
    found = {name: figure(values, more_is_better=True) for name, values in rates.items()}
    return Row(
        name="throughput, one stream", group="path", unit="Gbit/s", ours=found["ours"], anchor=found.get("anchor"),
        beside={name: value for name in (WIREGUARD, VETH) if (value := found[name])},
        aim=Aim(of="p50", limit=1.0, at_least=True), n=len(rates["ours"]), more_is_better=True,
        note=f"writes of 64 KiB for {seconds:g} s, from client-0 to echo-0",
    )  # fmt: skip


def _latencies(scene: Scene, targets: dict[str, tuple[str, int]], bare: Helper) -> list[Row]:
    trips = {"n": scene.n(400, 50)}
    plans = [
        ("round trip 1 B", "round_trips", trips | {"size": 1}),
        ("round trip 1 KiB", "round_trips", trips | {"size": 1024}),
        ("connect + first byte", "connects", {"n": scene.n(150, 20)}),
    ]
    rows = []
    for name, command, fields in plans:
        taken: dict[str, list[float]] = {}
        for _ in range(scene.n(TURNS, 2)):
            for helper, paths in ((scene.stage.client, targets), (bare, {VETH: (veth.SERVER, PORT)})):
                for path, samples in helper.do(command, paths=paths, **fields).items():
                    taken.setdefault(path, []).extend(samples)
        found = {path: figure(samples) for path, samples in taken.items()}
        beside = {path: value for path in (WIREGUARD, VETH) if (value := found[path])}
        aim = Aim(of="p50", limit=1.0)
        whole = Row(
            name=name, group="path", unit="µs", ours=found["ours"], anchor=found.get("anchor"), beside=beside,
            n=len(taken["ours"]), note="through VIP, Envoy, WireGuard, Envoy",
            aim=aim if command == "connects" else None,
        )  # fmt: skip
        rows.append(whole)
        if command == "round_trips":
            rows.append(
                Row(
                    name=f"added {name}",
                    group="path",
                    unit="µs",
                    ours=difference(found["ours"], found[WIREGUARD]),
                    anchor=difference(found.get("anchor"), found[WIREGUARD]),
                    n=whole.n,
                    aim=aim,
                    note="what its median is above that on raw WireGuard",
                )
            )
    return rows
