"""What a caller sees when a Consul agent or an Envoy is killed."""

from __future__ import annotations

import time

from benchmarks.changes import first
from benchmarks.sides import Scene
from benchmarks.stage import CLIENT, ECHOES, BenchError, wait_until
from meshctl.bench_report import Aim, Row, figure

SECONDS = 30.0
NEVER_SECONDS = 3.0
"""How long the anchor's caller is watched after its Envoy was killed."""
GOOD_RUN_SECONDS = 10.5
"""Between two kills of one process: a child that ran this long is restarted without a penalty."""


def agent_restart(scene: Scene) -> Row:
    """The caller's agent is killed, the role moves meanwhile, the agent comes back: when the new master answers."""
    outage = 2.0 if scene.quick else 7.0
    ours = [_our_agent(scene, number) for number in range(scene.n(4, 1))]
    theirs = [_their_agent(scene, number, outage) for number in range(scene.n(3, 1))] if scene.theirs else []
    return Row(
        name="Consul agent killed and restarted → changes seen again", group="failures", unit="ms",
        ours=figure([1000 * value for value in ours]), anchor=figure([1000 * value for value in theirs]),
        aim=Aim(of="max", limit=1000, ratio=False), n=len(ours),
        note="`master` moves while the caller's agent is away. Ours: from the kill, the supervisor restarts it. "
        f"Anchor: from the restart, which the bench does after {outage:g} s, for nothing of Consul's does",
    )  # fmt: skip


def _roles(number: int) -> tuple[dict[str, str], dict[str, str]]:
    old, new = ECHOES if number % 2 == 0 else ECHOES[::-1]
    return {old: "master", new: "replica"}, {new: "master", old: "replica"}


def _our_agent(scene: Scene, number: int) -> float:
    before, after = _roles(number)
    scene.settle(scene.ours, before)
    agent = scene.stage.child(CLIENT, "consul")
    time.sleep(0 if scene.quick else 2)
    host, port = scene.ours.master
    killed = time.monotonic()
    agent.kill()
    scene.ours.set_roles(after)
    seen = scene.stage.client.do("until", host=host, port=port, answer=next(iter(after))[-1], seconds=SECONDS)
    scene.ours.follow()
    if seen is None:
        raise BenchError(f"the new master did not answer within {SECONDS:g} s of the agent's end")
    return float(seen) - killed


def _their_agent(scene: Scene, number: int, outage: float) -> float:
    assert scene.theirs is not None
    before, after = _roles(number)
    scene.settle(scene.theirs, before)
    host, port = scene.theirs.master
    ended = scene.stage.client.do("end", name="agent")["start"]
    scene.theirs.set_roles(after)
    time.sleep(max(0.0, ended + outage - time.monotonic()))
    started = scene.theirs.anchor.start_agent(CLIENT, wait=False)
    seen = scene.stage.client.do("until", host=host, port=port, answer=next(iter(after))[-1], seconds=SECONDS)
    if seen is None:
        raise BenchError(f"the anchor's new master did not answer within {SECONDS:g} s of its agent's restart")
    return float(seen) - started


def envoy_killed(scene: Scene) -> list[Row]:
    """Envoy at the caller or at the instance is killed: when new connections are served again."""
    for side in scene.sides:
        scene.settle(side, {ECHOES[0]: "master", ECHOES[1]: "replica"})
    taken: dict[str, list[float]] = {CLIENT: [], ECHOES[0]: []}
    killed = {peer: time.monotonic() for peer in taken}
    for _ in range(scene.n(5, 1)):
        for peer, samples in taken.items():
            if not scene.quick:
                time.sleep(max(0.0, killed[peer] + GOOD_RUN_SECONDS - time.monotonic()))
            killed[peer] = time.monotonic()
            samples.append(_kill_ours(scene, peer))
    note = _kill_theirs(scene) if scene.theirs else "the anchor was not there"
    places = {CLIENT: "at the caller", ECHOES[0]: "at the instance"}
    return [
        Row(
            name=f"Envoy killed {places[peer]} → new connections served",
            group="failures",
            unit="ms",
            ours=figure([1000 * value for value in samples]),
            aim=Aim(of="p99", limit=300, ratio=False),
            n=len(samples),
            note=note if peer == CLIENT else "as above; the instance's Envoy",
        )
        for peer, samples in taken.items()
    ]


def _kill_ours(scene: Scene, peer: str) -> float:
    """Seconds from the kill until ten connections in a row are served: the first of them."""
    client, (host, port) = scene.stage.client, scene.ours.master
    envoy = scene.stage.child(peer, "envoy")
    client.do("watch", host=host, port=port, pause=0.002)
    killed = time.monotonic()
    envoy.kill()
    wait_until(lambda: not envoy.is_running() or envoy.status() == "zombie", 5.0, "Envoy is gone", 0.001)
    gone = time.monotonic()
    if not client.do("watch_until", answer="0", times=10, seconds=SECONDS):
        raise BenchError(f"new connections were not served within {SECONDS:g} s of the end of Envoy in {peer}")
    time.sleep(0.05)
    events = client.do("watch_stop")
    refused = [end for start, end, got in events if start >= killed and got.startswith("!")]
    served = first(events, "0", max(refused, default=gone))
    if served is None:
        raise BenchError("no connection was served after the last refused one")
    return float(served) - killed


def _kill_theirs(scene: Scene) -> str:
    """What the anchor does, in words; its Envoy is started again by us."""
    assert scene.theirs is not None
    client, (host, port) = scene.stage.client, scene.theirs.master
    client.do("end", name="envoy")
    served = client.do("until", host=host, port=port, answer="?", seconds=NEVER_SECONDS)
    scene.theirs.anchor.start_envoy(CLIENT)
    if client.do("until", host=host, port=port, answer="0", seconds=SECONDS) is None:
        raise BenchError("the anchor's Envoy did not come back")
    if served is not None:
        raise BenchError("the anchor served without an Envoy; the figure would mean nothing")
    return f"anchor: never; nothing restarts its Envoy (watched for {NEVER_SECONDS:g} s)"
