"""A conversation through a route is the conversation without one: the same program on both ends, both ways.

Two real Envoys back to back. Each cell is played directly and through the route, and both have to show what TCP shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.xds.cells import ENDLESS, READERS, SIDES, Cell, Torn, cells, demanded, part, torn
from tests.xds.director import Place, Stage, running
from tests.xds.mesh import PORT, Pair, pair
from xds.transport import DEAD_AFTER

pytestmark = pytest.mark.asyncio(loop_scope="module")


CLOCKS = {"max_downstream_connection_duration", "max_downstream_connection_duration_jitter_percentage"}
"""What else of a TcpProxy (extensions/filters/network/tcp_proxy/v3) would end a connection by its age."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """The ways to the same server: through the route, and beside the mesh's also directly."""

    stage: Stage
    pair: Pair
    places: dict[str, Place]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["mesh", "public"])
async def ways(request: pytest.FixtureRequest) -> AsyncIterator[Ways]:
    """A client's and a server's process, and a route between them: by the mesh, and by a public listener."""
    with tempfile.TemporaryDirectory(prefix="xds") as name:
        server, client = Path(name, "server.sock"), Path(name, "client.sock")
        async with (
            running(client),
            pair(behind=lambda address: running(server, (address, PORT)), public=request.param == "public") as both,
        ):
            places = {"through the route": (both.vip, PORT)}
            if not both.public:
                # What TCP shows without a route is the same beside either: it is played once.
                places["directly"] = (both.backend, PORT)
            yield Ways(stage=Stage(client, server), pair=both, places=places)


CELLS = [pytest.param(cell, marks=pytest.mark.long if cell.long else (), id=str(cell)) for cell in cells()]


@pytest.mark.parametrize("cell", CELLS)
async def test_a_conversation_through_a_route_is_the_one_without(ways: Ways, cell: Cell) -> None:
    """Each side gets the same bytes and sees the same end, directly and through a route: what TCP demands."""
    allowed = demanded(cell)
    for way, place in ways.places.items():
        observed = await ways.stage.play(cell, place)
        assert observed.keys() == allowed.keys(), way
        for side, words in observed.items():
            assert words in allowed[side], f"{way}, the {side} of {cell}"


@pytest.mark.parametrize("case", torn(), ids=str)
async def test_a_sender_whose_reader_leaves_is_reset(ways: Ways, case: Torn) -> None:
    """Whoever leaves with something unread, or under way, resets: the sender learns that not all of it was taken."""
    for way, place in ways.places.items():
        async with ways.stage.talking(case.parts(), place) as voices:
            sender, reader = voices[case.sender], voices[case.reader]
            if case.read == "stop":
                await sender.until("stuck", "sent", "saw")
                # All may be sent before any of it has come. A reader that leaves then leaves nothing unread: an end.
                await reader.until("unread", "saw")
            else:
                await reader.until("ready", "ended", "saw")
            reader.kill() if case.end == "kill" else reader.go()
        saw = sender.saw()
        assert case.signs & {saw["end"], saw["write_error"]}, f"{way}: {saw}"


@pytest.mark.parametrize("size", [pytest.param(1 << 30, marks=[pytest.mark.long, pytest.mark.timeout(900)], id="1GB")])
async def test_a_gigabyte_each_way_at_once_is_whole(ways: Ways, size: int) -> None:
    """Both sides send a gigabyte at the same time, and get one."""
    for way, place in ways.places.items():
        parts = {side: part(side, send=size, end="half-close", bound=400) for side in SIDES}
        async with ways.stage.talking(parts, place) as voices:
            pass
        for side, voice in voices.items():
            saw = voice.saw()
            assert (saw["got"], saw["intact"], saw["end"]) == (size, True, "EOF"), f"{way}, the {side}: {saw}"


@pytest.mark.timeout(180)
async def test_a_reader_may_pause_for_longer_than_a_dead_peer_is_waited_for(ways: Ways) -> None:
    """Its window is closed, and it answers the probes of that: what was sent waits, as it does without a route."""
    talks = {}
    async with contextlib.AsyncExitStack() as stack:
        for sender, reader in (SIDES, SIDES[::-1]):
            parts = {
                sender: part(sender, send=8 << 20, end="half-close", bound=120),
                reader: part(reader, read="stop", end="half-close", bound=120),
            }
            talk = ways.stage.talking(parts, ways.places["through the route"])
            talks[sender, reader] = await stack.enter_async_context(talk)
        for (sender, _), voices in talks.items():
            await voices[sender].until("stuck")
        # Nothing shows that a clock in the kernel would have ended it, but its time: both directions pause at once.
        await asyncio.sleep(DEAD_AFTER + 4)
        for (_, reader), voices in talks.items():
            voices[reader].go()
    for (_, reader), voices in talks.items():
        saw = voices[reader].saw()
        assert (saw["got"], saw["intact"], saw["end"]) == (8 << 20, True, "EOF"), f"the {reader}: {saw}"


async def test_nothing_is_left_in_the_envoys_of_conversations_whose_both_sides_were_killed(ways: Ways) -> None:
    """Neither Envoy keeps a connection that has no process on either end, also with bytes that nobody will read."""
    for reader in READERS:
        parts = {side: part(side, send=ENDLESS, read=reader) for side in SIDES}
        async with ways.stage.talking(parts, ways.places["through the route"]) as voices:
            if reader == "stop":
                for voice in voices.values():
                    await voice.until("stuck", "saw")
            for voice in voices.values():
                voice.kill()
    for node, clusters in ((ways.pair.caller, "egress"), (ways.pair.callee, "local")):
        async with asyncio.timeout(60):
            while await node.stat(f"cluster.{clusters}/.*upstream_cx_active"):
                pass


async def test_no_clock_ends_a_connection_that_waits(ways: Ways) -> None:
    """No filter of a route has a time of its own, and Envoy's default for its proxy (an hour) is switched off: an idle
    connection stands for as long as the kernels' probes are answered."""
    seen = set()
    for node in (ways.pair.caller, ways.pair.callee):
        for found in walk(json.loads(await node.get("/config_dump"))):
            kind = found.get("@type", "").rsplit(".", 1)[-1]
            if kind == "TcpProxy" and found["stat_prefix"] != "refuse":
                # Strangers hold no place for ever; nor would the platform's gateway let them.
                outside = found["stat_prefix"].startswith("public.")
                assert found["idle_timeout"] == ("3600s" if outside else "0s")
                assert not CLOCKS & found.keys()
            if "filters" in found:
                seen |= {one["name"] for one in found["filters"]} if not found["name"].endswith("/plain") else set()
    assert seen == {"envoy.filters.network.tcp_proxy", "envoy.filters.network.connection_limit"}


def walk(value: object) -> Iterator[dict[str, Any]]:
    """Each object within a JSON document."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)
