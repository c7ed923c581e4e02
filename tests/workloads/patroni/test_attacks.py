"""Attacks on a leader by somebody inside the mesh who belongs to another group: it goes on, and says what happened."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import Any

import pytest

from runtime.consul import ConsulClient
from runtime.secret import Secret
from runtime.tasks import TaskScope
from sidecar.listed import Listed
from tests.sidecar.gossip import say_left
from tests.workloads.patroni.world import CLUSTER, GOSSIP_KEY, Member, World, world

pytestmark = [pytest.mark.netns, pytest.mark.timeout(900)]

ROUNDS = 13
"""Of Patroni's loop, 2 s each: longer than a silent Patroni is left alone (`life.HANG_SECONDS`)."""


async def _rounds(made: World, member: Member, count: int) -> None:
    """Waits for so many rounds of Patroni as the leader."""
    before = member.log().count("the leader with the lock")

    async def passed() -> bool:
        return member.log().count("the leader with the lock") >= before + count

    await made.until(passed, f"{count} rounds of Patroni as the leader")


async def _forge(attacker: ConsulClient, member: Member) -> None:
    """Failing checks of the IDs that the leader's node has, as another service's; and one that says it is gossip's."""
    names = [f"{member.service_id}:{name}" for name in ("member", "database", "proxy")]
    for check_id in ("serfHealth", *names):
        body: dict[str, Any] = {
            "Node": member.peer_id,
            "Address": member.address,
            "SkipNodeUpdate": True,
            "Service": {"ID": "web-1", "Service": "web", "Port": 1},
            "Check": {"CheckID": check_id, "Name": "x", "ServiceID": "web-1", "Status": "critical"},
        }
        assert await attacker.put("/v1/catalog/register", body) is True


async def test_leader_keeps_its_key_and_its_route_under_attack() -> None:
    """Faults B1 and B2: half-sent requests fill Patroni's REST server, and forged checks its node; nothing changes."""
    async with world(1) as made:
        leader = await made.settled(0)
        await made.until(lambda: made.sql(made.master_port, "SELECT 7"), "the application logs in")
        pids = leader.patroni(), leader.postmaster()
        _, key = await made.consul.get(f"/v1/kv/service/{CLUSTER}/leader")
        await made.consul.put("/v1/acl/policy", {"Name": "web", "Rules": 'service "web" { policy = "write" }'})
        token = await made.consul.put("/v1/acl/token", {"Policies": [{"Name": "web"}]})
        attacker = ConsulClient(Secret(str(token["SecretID"])), port=leader.http)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(leader.address, leader.rest)
        async with contextlib.AsyncExitStack() as held:
            held.push_async_callback(attacker.close)
            for _ in range(8):
                _, writer = await asyncio.open_connection("127.0.0.1", leader.rest)
                held.callback(writer.close)
                writer.write(b"GET /")
            for _ in range(ROUNDS):
                await _forge(attacker, leader)
                await _rounds(made, leader, 1)
                assert await made.tagged("master") == [leader.peer_id]
            assert await made.sql(made.master_port, "SELECT 8") == 8
        assert (leader.patroni(), leader.postmaster()) == pids
        _, after = await made.consul.get(f"/v1/kv/service/{CLUSTER}/leader")
        assert after[0]["Session"] == key[0]["Session"]
        assert "checks were replaced or are missing" in leader.log()


async def test_a_leave_that_another_forged_moves_no_leader() -> None:
    """Whoever has the gossip key takes the leader's node out of the catalog, and its session and key with it. It takes
    the key again: nobody is promoted, no process ends, and it is published again.
    """
    async with world(2) as made, TaskScope() as scope:
        leader = await made.settled(1)
        await made.until(lambda: made.sql(made.master_port, "SELECT 7"), "the application logs in")
        pids = leader.patroni(), leader.postmaster()
        _, key = await made.consul.get(f"/v1/kv/service/{CLUSTER}/leader")
        # As the sidecar of each CVM does.
        running = [
            scope.start(
                "listed",
                Listed(each.consul, each.peer_id, each.address, partial(_join, made, each), lambda: None).run(),
            )
            for each in made.members
        ]
        say_left(Secret(GOSSIP_KEY), leader.peer_id, f"{made.network}.1")

        async def has_another_session() -> bool:
            _, now = await made.consul.get(f"/v1/kv/service/{CLUSTER}/leader")
            return bool(now) and now[0].get("Session") not in (None, key[0]["Session"])

        await made.until(has_another_session, "the key is of another session")
        assert await made.settled(1) is leader
        assert await made.until(lambda: made.sql(made.master_port, "SELECT 8"), "the route leads to it") == 8
        assert (leader.patroni(), leader.postmaster()) == pids
        timeline = "SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()"
        assert await made.sql(leader.port, timeline) == 1
        for task in running:
            task.cancel()


async def _join(made: World, member: Member) -> None:
    await member.consul.put(f"/v1/agent/join/{made.network}.1")
