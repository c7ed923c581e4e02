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
from tests.xds.mesh import PORT, Pair, pair

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """Both ways to the same server."""

    stage: Stage
    pair: Pair
    places: dict[str, Place]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ways() -> AsyncIterator[Ways]:
    """A client's and a server's process, and a route between them."""
    with tempfile.TemporaryDirectory(prefix="xds") as name:
        server, client = Path(name, "server.sock"), Path(name, "client.sock")
        async with running(client), pair(behind=lambda address: running(server, (address, PORT))) as both:
            places = {"directly": (both.backend, PORT), "through the route": (both.vip, PORT)}
            yield Ways(stage=Stage(client, server), pair=both, places=places)


@pytest.mark.parametrize("cell", cells(), ids=str)
async def test_a_conversation_through_a_route_is_the_one_without(ways: Ways, cell: Cell) -> None:
    """Each side gets the same bytes and sees the same end, directly and through a route: what TCP demands."""
    allowed = demanded(cell)
    for way, place in ways.places.items():
        observed = await ways.stage.play(cell, place)
        assert observed.keys() == allowed.keys(), way
        for side, words in observed.items():
            assert words in allowed[side], f"{way}, the {side} of {cell}"
