"""A route that loses its last endpoint and gets it back: real Envoys and the real nftables table.

All of it is in a network namespace of the test's own, in which the process that runs `scene` is.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from runtime.tasks import TaskScope
from sidecar.config import parse
from sidecar.desired import Desired, desired
from sidecar.effects import Effects
from tests.sidecar.test_desired import world
from tests.sidecar.test_effects import FakeVips
from tests.sidecar.world import environment
from tests.support import ROOT, network_namespace, tool
from tests.xds.mesh import PORT, Pair, closing, echo
from vip.resets import Refusal

pytestmark = pytest.mark.netns
ROUNDS = 20
SOON = 30.0


async def scene() -> dict[str, object]:
    """Dials as fast as it can while the route is emptied and filled; gives how the dials ended, and the held one."""
    with tempfile.TemporaryDirectory(prefix="mesh-test-", dir="/dev/shm") as folder:
        pair = Pair(Path(folder))
        effects = Effects(parse(environment(MESH_RUN_DIR=f"{folder}/run", MESH_STATE_DIR=folder)))
        effects._vips = FakeVips()  # type: ignore[assignment]
        effects.files.prepare()
        server = await asyncio.start_server(echo, pair.backend, PORT)
        try:
            await pair.callee.start()
            await pair.caller.start()
            await pair.callee.apply(pair.ingress(), seconds=SOON)
            effects.xds = pair.caller.server
            return await _play(pair, effects)
        finally:
            server.close()
            await effects.refusing.stop()
            await pair.caller.close()
            await pair.callee.close()


async def _play(pair: Pair, effects: Effects) -> dict[str, object]:
    full, empty = _wish(pair, empty=False), _wish(pair, empty=True)
    await _carry_out(effects, full)
    await pair.listening()
    reader, writer = await _carried(pair)
    held: list[bool] = []
    emptying: list[list[str]] = []
    filling: list[str] = []
    async with TaskScope() as scope:
        for _ in range(ROUNDS):
            emptying.append([])
            work = scope.start("empty", _carry_out(effects, empty))
            while not work.done():
                emptying[-1].append(await _end_of_a_dial(pair))
            held.append(await _says(reader, writer))
            assert await _end_of_a_dial(pair) == "refused"
            acked = asyncio.Event()
            work = scope.start("fill", _carry_out(effects, full, acked))
            while not work.done():
                end = await _end_of_a_dial(pair)
                if not acked.is_set():
                    filling.append(end)
            held.append(await _says(reader, writer))
            (await _carried(pair))[1].transport.abort()
    writer.transport.abort()
    return {"held": held.count(True), "emptying": emptying, "filling": sorted(set(filling))}


def _wish(pair: Pair, *, empty: bool) -> Desired:
    route = pair.route(endpoints=()) if empty else pair.route()
    return dataclasses.replace(
        desired(world()), spec=pair.egress(route), refused=frozenset({Refusal(pair.vip, PORT)} if empty else ())
    )


async def _carried(pair: Pair) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that carries bytes. Envoy's workers apply endpoints a moment after the ACK, each by itself: until
    then a dial that it takes is accepted and closed, also after one that another worker took was carried.
    """
    async with asyncio.timeout(SOON):
        while True:
            reader, writer = await pair.dial()
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                assert await _says(reader, writer)
                return reader, writer
            writer.transport.abort()


async def _carry_out(effects: Effects, wish: Desired, acked: asyncio.Event | None = None) -> None:
    """As the supervisor does it."""
    await effects.apply(wish, None)
    assert effects.xds is not None
    assert effects.snapshot is not None
    await effects.xds.wait_acked(effects.snapshot.version, SOON)
    if acked is not None:
        acked.set()
    await effects.refusing.envoy_has(effects.snapshot.version)


async def _says(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    writer.write(b"ping")
    async with asyncio.timeout(SOON):
        return await reader.readexactly(4) == b"ping"


async def _end_of_a_dial(pair: Pair) -> str:
    """How one connection ends: `refused`, `ping` where it was carried, `closed` where it was accepted for nothing."""
    try:
        reader, writer = await pair.dial()
    except ConnectionRefusedError:
        return "refused"
    with closing(writer):
        try:
            return "ping" if await _says(reader, writer) else "garbled"
        except (asyncio.IncompleteReadError, ConnectionError):
            return "closed"


def test_an_empty_route_refuses_and_its_held_connections_go_on() -> None:
    """While the route is emptied a dial is carried, then refused: none but the one in that moment is accepted for
    nothing. While it is filled each is refused until Envoy has acknowledged the endpoint. The held connection carries
    bytes all the time.
    """
    tool("envoy")
    start = (
        "import asyncio, json, sys; from pyroute2 import netns; netns.setns(sys.argv[1]); "
        "from tests.sidecar.test_empty_route import scene; print(json.dumps(asyncio.run(scene())))"
    )
    with network_namespace() as namespace:
        done = subprocess.run(
            [sys.executable, "-c", start, namespace], capture_output=True, text=True, cwd=ROOT, timeout=200, check=False
        )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["held"] == 2 * ROUNDS
    for dials in found["emptying"]:
        assert dials == sorted(dials, key=["ping", "closed", "refused"].index), dials
        assert dials.count("closed") <= 1, dials
    assert any("refused" in dials for dials in found["emptying"])
    assert found["filling"] == ["refused"]
