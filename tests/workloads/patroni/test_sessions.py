"""The end of a member's sessions: the pure choice, and a real Consul."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.consul import ConsulClient
from runtime.secret import Secret
from tests.workloads.patroni.world import CLUSTER, Member, World, agents
from workloads.patroni import sessions
from workloads.patroni.sessions import Sessions

NAME = f"{CLUSTER}-postgres-0"
CHECKLESS = {"Name": NAME, "LockDelay": "1ms", "Behavior": "delete", "TTL": "10s", "Checks": []}
"""As Patroni asks for it (`patroni.dcs.consul`) with `consul.checks: []`."""


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ([{"ID": "a", "Name": NAME}, {"ID": "b", "Name": "else"}, {"ID": "c", "Name": NAME}], ["a", "c"]),
        ([{"Name": NAME}, "text", None], []),
        (None, []),
        ({}, []),
    ],
)
def test_only_patronis_sessions_are_its_own(answer: Any, found: list[str]) -> None:
    """Sessions of other names on the node are not touched, and an answer of another shape has none."""
    assert sessions.own(answer, NAME) == found


async def _acquire(made: World, member: Member, body: dict[str, Any]) -> str:
    session = str((await member.consul.put("/v1/session/create", body))["ID"])
    taken = await made.consul.put(f"/v1/kv/service/{CLUSTER}/leader", b"postgres-0", params={"acquire": session})
    assert taken is True
    return session


async def _register_failing(made: World, member: Member, check_id: str) -> None:
    """What any token with `service:write` for one service may do: a check of any ID on another's node."""
    rules = {"service": {"web": {"policy": "write"}}}
    await made.consul.put("/v1/acl/policy", {"Name": "web", "Rules": json.dumps(rules)})
    token = await made.consul.put("/v1/acl/token", {"Policies": [{"Name": "web"}]})
    attacker = ConsulClient(Secret(str(token["SecretID"])), port=member.http)
    try:
        body = {
            "Node": member.peer_id, "Address": member.address, "SkipNodeUpdate": True,
            "Service": {"ID": "web-1", "Service": "web", "Port": 1},
            "Check": {"CheckID": check_id, "Name": check_id, "ServiceID": "web-1", "Status": "critical"},
        }  # fmt: skip
        assert await attacker.put("/v1/catalog/register", body) is True
    finally:
        await attacker.close()


async def test_failing_check_of_a_stranger_ends_no_session_of_patroni() -> None:
    """Fault B2: a session falls with a check of that ID that anybody wrote; Patroni's names none, and stays."""
    async with agents(1) as made:
        member = made.members[0]
        named = str((await member.consul.put("/v1/session/create", {**CHECKLESS, "Checks": ["serfHealth"]}))["ID"])
        held = await _acquire(made, member, CHECKLESS)
        await _register_failing(made, member, "serfHealth")

        async def fallen() -> bool:
            _, found = await made.consul.get(f"/v1/session/info/{named}")
            return not found

        await made.until(fallen, "a session that names the check falls")
        _, left = await made.consul.get(f"/v1/session/info/{held}")
        assert left
        assert not left[0].get("NodeChecks")
        _, key = await made.consul.get(f"/v1/kv/service/{CLUSTER}/leader")
        assert key[0]["Session"] == held


async def test_end_deletes_the_leader_key_and_spares_others() -> None:
    """With the workload's token: the session is gone when `end` returns, the key with it; another session stays."""
    async with agents(1) as made:
        member = made.members[0]
        await _acquire(made, member, CHECKLESS)
        other = str((await member.consul.put("/v1/session/create", {**CHECKLESS, "Name": "other"}))["ID"])
        client = ConsulClient(Secret(member.token), port=member.http)
        try:
            await Sessions(client, CLUSTER, "postgres-0").end()
            _, key = await made.consul.get(f"/v1/kv/service/{CLUSTER}/leader")
            assert key is None
            _, left = await made.consul.get("/v1/session/node/postgres-0")
            assert [entry["ID"] for entry in left] == [other]
        finally:
            await client.close()
