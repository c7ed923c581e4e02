"""Real members through what happens to Consul, and a leader that stops in its first seconds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import psycopg
import pytest

from runtime.tasks import TaskScope
from tests.workloads.patroni.world import CLUSTER, Member, World, restart_server, world

GOES_ON = "continue to run as a leader because failsafe mode is enabled"
"""What Patroni says of each round in which it leads without Consul (patroni/ha.py)."""

pytestmark = [pytest.mark.netns, pytest.mark.timeout(900)]


async def _keep_writing(made: World, leader: Member, acknowledged: list[int], refused: list[str]) -> None:
    """Rows over one connection to the leader, as an application beside the database has it, until cancelled."""
    async with await made.connect(leader.port) as connection:
        for number in range(1_000_000):
            try:
                await connection.execute("INSERT INTO t VALUES (%s)", (number,))
            except psycopg.Error as error:
                refused.append(str(error))
                return
            acknowledged.append(number)
            await asyncio.sleep(0.02)


async def _through(made: World, leader: Member, happens: Callable[[], Awaitable[None]]) -> None:
    """Writes while something `happens` to Consul and until the leader leads by it again, with a standby."""
    acknowledged: list[int] = []
    refused: list[str] = []
    postmaster = leader.postmaster()
    async with TaskScope() as scope:
        writing = scope.start("write", _keep_writing(made, leader, acknowledged, refused))

        async def wrote() -> bool:
            return len(acknowledged) > 10

        await made.until(wrote, "writes are acknowledged")
        await happens()
        assert await made.settled(1) is leader

        async def writes_on(count: int = len(acknowledged)) -> bool:
            return len(acknowledged) > count or bool(refused)

        await made.until(writes_on, "a write is acknowledged after all")
        writing.cancel()
    assert refused == [], leader.log()[-8000:]
    assert leader.postmaster() == postmaster
    for member in made.members:
        assert "demoting self" not in member.log()
        assert "Demoting self" not in member.log()


@pytest.mark.parametrize("keeps", [True, False], ids=["with its data", "on an empty disk"])
async def test_leader_goes_on_when_consul_comes_back(keeps: bool) -> None:
    """Fault A2: a restart of all coordinators demotes nobody and refuses no write, whatever they remember."""
    async with world(2) as made:
        leader = await made.settled(1)
        async with await made.connect(made.master_port) as connection:
            await connection.execute("CREATE TABLE t (i int)")
        # What the leader asks its members by in failsafe mode.
        await made.until(lambda: made.dcs("failsafe"), "the failsafe topology is there")
        told: list[int] = []

        def decided() -> bool:
            """After three more rounds, the first of which may have begun before servers and tokens were there."""
            text = leader.log()
            told.append(text.count(GOES_ON))
            return told[-1] >= told[0] + 3 or "emoting self" in text

        await _through(made, leader, lambda: restart_server(made, keeps=keeps, until=decided))


async def test_leader_that_stops_in_its_first_seconds_hands_over() -> None:
    """Fault A6: its `sync` key names nobody yet, and the replica has everything: that one leads, while it is away."""
    async with world(2) as made:
        leader = await made.settled(1)
        async with await made.connect(made.master_port) as connection:
            await connection.execute("CREATE TABLE t AS SELECT 7 AS i")
        # As it is until Patroni's loop has seen the standby: a moment later it would name it.
        nobody = json.dumps({"leader": leader.peer_id, "quorum": 0, "sync_standby": None})
        await made.consul.put(f"/v1/kv/service/{CLUSTER}/sync", nobody.encode())
        assert leader.container is not None
        leader.container.terminate()

        async def taken_over() -> bool:
            return await made.tagged("master") not in ([], [leader.peer_id])

        await made.until(taken_over, "the replica leads")
        assert await made.until(lambda: made.sql(made.master_port, "SELECT i FROM t"), "it has every row") == 7
        assert leader.container.wait(60) == 0
