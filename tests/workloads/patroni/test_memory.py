"""Members whose Consul forgot the cluster, and members whose data are a fork: real Consul, Patroni, PostgreSQL."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.workloads.patroni.world import Member, World, forget, world
from workloads.patroni import standing

pytestmark = [pytest.mark.netns, pytest.mark.timeout(900)]


async def _begin(made: World, replicas: int) -> Member:
    leader = await made.settled(replicas)
    async with await made.connect(made.master_port) as connection:
        await connection.execute("CREATE TABLE t (i int)")
    return leader


async def _write(made: World, *values: int) -> None:
    """Rows through the master's route, each acknowledged."""
    async with await made.connect(made.master_port) as connection:
        for value in values:
            await connection.execute("INSERT INTO t VALUES (%s)", (value,))


async def _rows(made: World, member: Member) -> list[int]:
    async with await made.connect(member.port) as connection:
        cursor = await connection.execute("SELECT i FROM t ORDER BY i")
        return [row[0] for row in await cursor.fetchall()]


def _stop(member: Member, number: signal.Signals = signal.SIGKILL) -> None:
    """Ends the container, as a power cut does, and waits for its end."""
    assert member.container is not None
    member.container.send_signal(number)
    member.container.wait(60)


def _standing(member: Member) -> dict[str, Any]:
    text = Path(f"/proc/{member.first_pid()}/root/run/patroni/{standing.FILE}").read_text()
    found: dict[str, Any] = json.loads(text)
    return found


async def _waits(member: Member, *missing: Member) -> str:
    """Why the member waits, once it does because of just these."""
    found = _standing(member)
    wanted = f"missing: {', '.join(sorted(m.peer_id for m in missing))}"
    return str(found["reason"]) if found["state"] == "waiting" and found["reason"].endswith(wanted) else ""


async def test_stale_member_does_not_lead_an_empty_consul() -> None:
    """Fault A1: Consul's data are lost, and the member that missed the last writes starts first. It waits for the
    others; the one that has everything leads, and no acknowledged row is lost."""
    async with world(3) as made:
        leader = await _begin(made, 2)
        await _write(made, 1)
        stale = next(m for m in made.members if m is not leader)
        _stop(stale, signal.SIGTERM)
        await made.settled(1)
        await _write(made, *range(2, 30))
        others = [m for m in made.members if m is not stale]
        for member in others:
            _stop(member)
        await forget(made)
        made.start_member(stale)
        await made.until(lambda: _waits(stale, *others), "the stale member waits for both others")
        made.start_member(others[0])
        await made.until(lambda: _waits(stale, others[1]), "the stale member waits for the other one")
        assert await made.dcs("leader") is None
        assert await made.dcs("initialize") is None
        made.start_member(others[1])
        await made.settled(2)
        for member in made.members:
            assert await _rows(made, member) == list(range(1, 30)), member.peer_id
