"""From the start of a CVM to its readiness, its attestation and health check included; and of the whole mesh."""

from __future__ import annotations

import re
import statistics
import time
from datetime import datetime

from benchmarks.anchor import API, FOLDER
from benchmarks.sides import Scene
from benchmarks.stage import CLIENT, ECHOES, PLAIN, BenchError, readiness, wait_until
from meshctl import runs
from meshctl.bench_report import Aim, Row, figure

PEER = ECHOES[1]
SECONDS = 60.0
AIM = Aim(of="p50", limit=1500, ratio=False)


def whole_mesh(scene: Scene) -> Row:
    """What the bench's own mesh took."""
    taken = 1000 * (scene.stage.ready - scene.stage.started)
    return Row(
        name="start → ready, whole mesh of 4 CVMs", group="start", unit="ms", ours=figure([taken]), n=1,
        note="from the launch of the lab (its network and development TEE are part of it) until each CVM is ready, "
        "attested; they start at the same time and share the machine's cores",
    )  # fmt: skip


def one_cvm(scene: Scene) -> list[Row]:
    """A CVM is powered off and on again."""
    ready, answers, logs = [], [], []
    for _ in range(scene.n(5, 1)):
        place = len(_log(scene))
        up, served = _start_ours(scene)
        ready.append(1000 * up)
        answers.append(1000 * served)
        logs.append(_log(scene)[place:])
    theirs = [1000 * _start_theirs(scene) for _ in range(scene.n(5, 1))] if scene.theirs else []
    return [
        Row(
            name="start → ready, one CVM", group="start", unit="ms", ours=figure(ready), aim=AIM, n=len(ready),
            note="from power-on of a CVM of a running mesh until its sidecar is ready: attested, joined, link, Envoy. "
            f"Nothing of the anchor's is like it. {where_it_goes(logs)}",
        ),
        Row(
            name="start → a caller in another CVM is answered by it", group="start", unit="ms", ours=figure(answers),
            anchor=figure(theirs), n=len(answers),
            note="from power-on: ready, the application's start, its check's first pass, the change at the caller. "
            "Anchor: agent on empty data, registration and `consul connect envoy` in a CVM that runs already, "
            "without attestation, WireGuard or the application's start",
        ),
    ]  # fmt: skip


def _log(scene: Scene) -> str:
    return runs.log_of_peer(scene.stage.run, PEER, "sidecar").read_text(encoding="utf-8", errors="replace")


def where_it_goes(logs: list[str]) -> str:
    """Median length of each phase between the sidecar's first line and `ready`, and its CPU time, from its log."""
    spans: dict[str, list[float]] = {}
    used = []
    for log in logs:
        before: tuple[str, datetime] | None = None
        for line in log.splitlines():
            stamp = re.match(r"time=(\S+)Z ", line)
            if stamp is None:
                continue
            now = datetime.fromisoformat(stamp[1])
            before = before or ("before the first phase", now)
            phase = re.search(r"event=phase phase=(\S+)", line)
            if phase:
                spans.setdefault(before[0], []).append(1000 * (now - before[1]).total_seconds())
                before = (phase[1], now)
            cpu = re.search(r"event=ready .*cpu_seconds=([\d.]+)", line)
            if cpu:
                used.append(1000 * float(cpu[1]))
                break
    if not used:
        return ""
    parts = ", ".join(f"{name} {statistics.median(values):.0f}" for name, values in spans.items())
    return (
        f"From its first line on, ms, medians: {parts}; CPU time of the sidecar process {statistics.median(used):.0f}"
    )


def _start_ours(scene: Scene) -> tuple[float, float]:
    stage = scene.stage
    host, port = stage.vips[PLAIN]
    stage.machine_action(PEER, "kill")
    # The dead instance is an endpoint until gossip notices: wait until only the other one answers.
    client = stage.client
    client.do("watch", host=host, port=port, pause=0.02)
    client.do("watch_until", answer="0", times=100, seconds=SECONDS, _seconds=90.0)
    started = time.monotonic()
    stage.machine_action(PEER, "start")
    up = wait_until(lambda: readiness(stage.run).get(PEER, False), SECONDS, f"{PEER} is ready")
    served = None
    try:
        wait_until(
            lambda: client.do("watch_until", answer="1", times=1, seconds=0.05), SECONDS, f"{PEER} answers", 0.001
        )
    finally:
        events = client.do("watch_stop")
    served = next(end for start, end, got in events if got == "1" and start >= started)
    return up - started, served - started


def _start_theirs(scene: Scene) -> float:
    assert scene.theirs is not None
    anchor, stage = scene.theirs.anchor, scene.stage
    scene.theirs.set_roles({ECHOES[0]: "master"})
    if PEER not in stage.replaced:
        stage.replace_helper(PEER)
    helper = stage.helpers[PEER]
    host, port = scene.theirs.replica
    if PEER in stage.replaced:
        for name in ("envoy", "agent"):
            helper.do("end", name=name)
    stage.replaced.add(PEER)
    helper.do("remove", path=f"{FOLDER}/data")
    started = anchor.start_agent(PEER)
    helper.http("PUT", f"{API}/v1/agent/service/register", anchor.body(PEER, "replica"))
    anchor.start_envoy(PEER)
    # From the moment it has no instance, the replica route is refused; the first answer is the new instance's.
    served = stage.helpers[CLIENT].do("until", host=host, port=port, answer="1", seconds=SECONDS, _seconds=90.0)
    if served is None:
        raise BenchError(f"the anchor's instance in {PEER} did not answer")
    return float(served) - started
