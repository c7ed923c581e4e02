"""A member whose CVM becomes another peer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from workloads.patroni import moves


async def _ends(code: int) -> int:
    return code


async def test_a_member_ends_with_its_own_exit_code(tmp_path: Path) -> None:
    """A stop is no move, whether there is an identity or not."""
    assert await moves.live(_ends(0), "db-0", tmp_path / "none") == 0
    assert await moves.live(_ends(2), "db-0", tmp_path / "none") == 2


async def test_a_member_whose_cvm_is_another_peer_stops_in_order_and_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own name and half a file change nothing; another peer's name ends it, after its own clean-up."""
    monkeypatch.setattr(moves, "IDENTITY_SECONDS", 0.01)
    identity, begun, cleaned = tmp_path / "identity.json", asyncio.Event(), asyncio.Event()

    async def member() -> int:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()
        return 0

    async def other_peer() -> None:
        await begun.wait()
        for text in ("{", "[]", '{"peer_id": "db-2"}'):
            identity.write_text(text)
            await asyncio.sleep(0.03)
        assert not cleaned.is_set()
        identity.write_text('{"peer_id": "db-0"}')

    async with asyncio.timeout(10):
        code, _ = await asyncio.gather(moves.live(member(), "db-2", identity), other_peer())
    assert code == moves.ANEW
    assert cleaned.is_set()
