"""A conversation through a route is the conversation without one: the same program on both ends, both ways.

Two real Envoys back to back. Each cell is played directly and through the route, and both have to show what TCP shows.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.xds.cells import Cell, cells, demanded
from tests.xds.director import Place, Stage, running
from tests.xds.mesh import PORT, Pair

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """Both ways to the same server."""

    stage: Stage
    pair: Pair
    direct: Place
    route: Place


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ways() -> AsyncIterator[Ways]:
    """A client's and a server's process, and a route between them."""
    with tempfile.TemporaryDirectory(prefix="xds") as name:
        place = Path(name)
        both = Pair(place, delta=True)
        server = running(place / "server.sock", (both.backend, PORT))
        async with running(place / "client.sock") as client, server as listening:
            try:
                await both.callee.start()
                await both.caller.start()
                await both.callee.apply(both.ingress())
                await both.caller.apply(both.egress())
                await both.listening()
                yield Ways(
                    stage=Stage(client, listening), pair=both, direct=(both.backend, PORT), route=(both.vip, PORT)
                )
            finally:
                await both.caller.close()
                await both.callee.close()


@pytest.mark.parametrize("cell", cells(), ids=str)
async def test_a_conversation_through_a_route_is_the_one_without(ways: Ways, cell: Cell) -> None:
    """Each side gets the same bytes and sees the same end, directly and through a route: what TCP demands."""
    allowed = demanded(cell)
    for way, place in (("directly", ways.direct), ("through the route", ways.route)):
        observed = await ways.stage.play(cell, place)
        assert observed.keys() == allowed.keys(), way
        for side, words in observed.items():
            assert words in allowed[side], f"{way}, the {side} of {cell}"
