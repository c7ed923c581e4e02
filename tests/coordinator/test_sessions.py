"""The end of sessions whose CVM is gone: the pure choice, and a real Consul."""

from __future__ import annotations

import time
from typing import Any

import pytest

from coordinator.sessions import SessionEnder, lost, to_end
from runtime.consul import SERVER_PORT, ConsulClient
from runtime.secret import Secret
from runtime.tasks import TaskScope
from tests.workloads.patroni.world import CLUSTER, Member, World, agents

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize(
    ("members", "names"),
    [
        ([{"Name": "a", "Status": 1}, {"Name": "b", "Status": 4}, {"Name": "c", "Status": 3}], {"b", "c"}),
        ([{"Name": "a", "Status": 2}], set()),
        ([{"Name": "a", "Status": 4}, {"Name": "a", "Status": 1}], set()),
        ([{"Name": 7, "Status": 4}, "text", None], set()),
        (None, set()),
    ],
    ids=["failed and left", "leaving", "back under its name", "nonsense", "nothing"],
)
def test_gossip_says_who_is_lost(members: Any, names: set[str]) -> None:
    """Failed and left nodes are lost; whoever is alive under the name, or unknown, is not."""
    assert lost(members) == names


def test_only_sessions_without_checks_of_lost_nodes_end() -> None:
    """What names a check is Consul's to end; what another node made stays."""
    sessions = [
        {"ID": "1", "Node": "b", "NodeChecks": [], "ServiceChecks": None},
        {"ID": "2", "Node": "b", "NodeChecks": ["serfHealth"]},
        {"ID": "3", "Node": "b", "ServiceChecks": [{"ID": "x"}]},
        {"ID": "4", "Node": "a"},
        {"Node": "b"},
        "text",
    ]
    assert to_end(sessions, frozenset({"b"})) == ["1"]
    assert to_end(None, frozenset({"b"})) == []


async def _lock(made: World, member: Member) -> str:
    body = {"Name": "x", "Checks": [], "LockDelay": "1ms", "Behavior": "delete", "TTL": "600s"}
    session = str((await member.consul.put("/v1/session/create", body))["ID"])
    key = f"/v1/kv/service/{CLUSTER}/lock-{member.peer_id}"
    assert await made.consul.put(key, b"x", params={"acquire": session}) is True
    return session


async def _forge(made: World, member: Member, status: str) -> None:
    """Fault B2: `serfHealth` of another's node, written with the right to write one service."""
    await made.consul.put("/v1/acl/policy", {"Name": "web", "Rules": 'service "web" { policy = "write" }'})
    token = await made.consul.put("/v1/acl/token", {"Policies": [{"Name": "web"}]})
    client = ConsulClient(Secret(str(token["SecretID"])), port=made.members[1].http)
    check = {"CheckID": "serfHealth", "Name": "x", "ServiceID": "web-1", "Status": status}
    service = {"ID": "web-1", "Service": "web", "Port": 1}
    body = {"Node": member.peer_id, "Address": member.address, "SkipNodeUpdate": True}
    assert await client.put("/v1/catalog/register", {**body, "Service": service, "Check": check}) is True
    await client.close()


async def test_session_of_a_lost_node_ends_whatever_the_catalog_says() -> None:
    """A living node's lock stays under a forged failure; a dead one's goes although a forged check says it passes."""
    async with agents(2) as made, TaskScope() as scope:
        first, second = made.members
        sessions = [await _lock(made, member) for member in (first, second)]
        ender = SessionEnder(made.consul, f"{made.network}.1:{SERVER_PORT}", time.monotonic)
        task = scope.start("sessions", ender.run())
        await _forge(made, first, "critical")

        async def left() -> list[str]:
            _, found = await made.consul.get("/v1/session/list")
            return sorted(session["ID"] for session in found or ())

        first.stop_agent()

        async def failed() -> bool:
            _, members = await made.consul.get("/v1/agent/members")
            if first.peer_id in lost(members):
                return True
            assert await left() == sorted(sessions), "ended while gossip still knew it as alive"
            return False

        await made.until(failed, "gossip gives the node up")

        async def ended() -> bool:
            return await left() == [sessions[1]]

        await made.until(ended, "its session ends, and nobody else's")
        _, key = await made.consul.get(f"/v1/kv/service/{CLUSTER}/lock-{first.peer_id}")
        assert key is None
        task.cancel()


async def test_server_that_does_not_lead_ends_nothing() -> None:
    """Only the Raft leader's view of gossip counts."""
    async with agents(1) as made:
        member = made.members[0]
        session = await _lock(made, member)
        member.stop_agent()

        async def failed() -> bool:
            _, members = await made.consul.get("/v1/agent/members")
            return member.peer_id in lost(members)

        await made.until(failed, "gossip gives the node up")
        await SessionEnder(made.consul, "192.0.2.1:8300", time.monotonic).look()
        _, found = await made.consul.get("/v1/session/list")
        assert [entry["ID"] for entry in found] == [session]
        await SessionEnder(made.consul, f"{made.network}.1:{SERVER_PORT}", time.monotonic).look()
        _, found = await made.consul.get("/v1/session/list")
        assert not found
