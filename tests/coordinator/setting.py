"""How tests set a manifest on coordinators, and wait until it is enforced."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp
import pytest

from tests.coordinator.world import (
    Running,
)
from tests.support import soon


async def proposed(lead: Running, envelope: str) -> tuple[int, dict[str, object]]:
    """The answer of a coordinator to a manifest that is to be set."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session,
        session.post(f"{lead.url}/v1/manifest", json={"envelope": envelope}) as response,
    ):
        return response.status, await response.json()


async def put(lead: Running, envelope: str) -> None:
    """Sets it, as soon as Consul takes writes: on a busy machine its leader may change."""
    while (found := await proposed(lead, envelope))[0] == 503:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    assert found[0] == 200, found


async def all_enforce(leads: Sequence[Running], digest: str) -> None:
    """Waits until `enforce`; a failure shows what each says."""
    if not await soon(lambda: enforce(leads, digest), 30):
        pytest.fail(f"not within 30 s: all enforce {digest}; {[lead.coordinator.document() for lead in leads]}")


def enforce(leads: Sequence[Running], digest: str) -> bool:
    """Whether all of them enforce that manifest, and are ready."""
    return all(
        lead.coordinator.head.signed.digest == digest and lead.coordinator.document()["ready"] is True for lead in leads
    )
