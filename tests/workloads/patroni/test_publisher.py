"""Publishing against a real Consul server and agent."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from runtime import leader_key
from runtime.consul import ConsulClient
from runtime.secret import Secret
from runtime.tasks import TaskScope
from tests.workloads.patroni.world import CLUSTER, Member, World, agents, new_token, placeholder, restart_agent
from workloads.patroni import publisher, roles
from workloads.patroni.publisher import Publisher

pytestmark = pytest.mark.timeout(600)


@contextlib.asynccontextmanager
async def publishing(made: World) -> AsyncIterator[Publisher]:
    """A publisher for the first member, with the rights of a workload and no more."""
    member = made.members[0]
    consul = ConsulClient(Secret(member.token), port=member.http)
    _, service = await consul.get(f"/v1/agent/service/{member.service_id}")
    it = Publisher(consul, roles.place(service), member.peer_id, KEY)
    async with TaskScope() as scope:
        task = scope.start("publish", it.run())
        try:
            yield it
        finally:
            task.cancel()
            await consul.close()


KEY = f"service/{CLUSTER}/leader"


async def _session(member: Member, name: str = "x") -> str:
    """A session as Patroni makes it, but for what ends it on a starved machine: a time to live."""
    client = ConsulClient(Secret(member.token), port=member.http)
    body: dict[str, Any] = {"Checks": [], "LockDelay": "1ms", "Behavior": "delete"}
    made = await client.put("/v1/session/create", body)
    key = await client.put(f"/v1/kv/{KEY}", name.encode(), params={"acquire": made["ID"]})
    await client.close()
    assert key is True
    return str(made["ID"])


async def _listed(made: World) -> None:
    """Waits until the servers have the member check as passing."""
    member = made.members[0]

    async def there() -> bool:
        _, checks = await made.consul.get(f"/v1/health/node/{member.peer_id}")
        return any(c["CheckID"] == f"{member.service_id}:member" and c["Status"] == "passing" for c in checks)

    await made.until(there, "the servers have the member check")


async def _key(made: World) -> Any:
    _, found = await made.consul.get(f"/v1/kv/{KEY}")
    return found


async def test_role_change_keeps_the_session() -> None:
    """Registering the service again with another tag leaves its checks, and the session on them, alone."""
    async with agents(1) as made, publishing(made) as it:
        it.want(member=True, database=True, role="replica")
        await _listed(made)
        session = await made.until(lambda: _session(made.members[0]), "a session holds the key")
        for role in ("master", None, "replica", "master"):
            it.want(role=role)
            await it.reached()
            if role:
                await made.until(lambda role=role: made.tagged(role), f"it is published as {role}")
        _, found = await made.consul.get(f"/v1/kv/service/{CLUSTER}/leader")
        assert found[0]["Session"] == session


async def test_leader_says_in_its_key_that_it_serves() -> None:
    """The flag comes with the role and goes with it; the session holds the key throughout. Another's key is left."""
    async with agents(1) as made, publishing(made) as it:

        async def said(flags: int) -> bool:
            found = await _key(made)
            return bool(found) and (found[0]["Flags"], found[0]["Session"]) == (flags, session)

        it.want(member=True, database=True, role="replica")
        await _listed(made)
        session = await made.until(lambda: _session(made.members[0], "postgres-0"), "a session holds the key")
        assert await said(0)
        for role, flags in (("master", leader_key.SERVES), (None, 0), ("replica", 0)):
            it.want(role=role)
            await it.reached()
            assert await said(flags), role

        async def read_ahead() -> bool:
            return it._index is not None

        it.promise()
        await made.until(read_ahead, "the key was read ahead")
        await made.consul.put(f"/v1/kv/{KEY}", b"postgres-0", params={"acquire": session, "flags": "7"})
        it.want(role="master")
        await it.reached()
        assert await said(leader_key.SERVES), "what was read ahead was outdated"
        it.want(role="replica")
        await it.reached()
        await made.consul.put(f"/v1/session/destroy/{session}")
        session = await made.until(lambda: _session(made.members[0], "postgres-1"), "another one leads")
        it.want(role="master")
        await it.reached()
        assert await said(0)


async def test_the_tag_follows_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader whose key says that it serves has its old tag for a moment; all else is told at once."""
    monkeypatch.setattr(publisher, "LATER_SECONDS", 600.0)
    async with agents(1) as made, publishing(made) as it:
        member = made.members[0]

        async def told() -> tuple[Any, Any]:
            _, service = await member.consul.get(f"/v1/agent/service/{member.service_id}")
            _, checks = await member.consul.get("/v1/agent/checks")
            return service["Tags"], checks[f"{member.service_id}:database"]["Status"]

        async def said() -> bool:
            return bool((await _key(made))[0]["Flags"])

        it.want(member=True, database=True, role="replica")
        await _listed(made)
        await made.until(lambda: _session(member, "postgres-0"), "a session holds the key")
        it.want(role="master")
        await made.until(said, "the key says it")
        it.want(database=False)

        async def failed() -> bool:
            return await told() == (["replica"], "critical")

        await made.until(failed, "bad news does not wait, the tag does")
        monkeypatch.setattr(publisher, "LATER_SECONDS", 0.0)
        it.want(database=True, role=None)
        await it.reached()
        assert (await told(), await said()) == (([], "passing"), False), "the key was its own: all is told at once"
        it.want(role="master")
        await it.reached()
        assert await told() == (["master"], "passing")


@pytest.mark.parametrize("crashes", [True, False])
async def test_what_led_through_the_key_is_told_later(monkeypatch: pytest.MonkeyPatch, crashes: bool) -> None:
    """A leader that has died, or has lost its key, tells nothing yet: the route went with the key."""
    async with agents(1) as made, publishing(made) as it:
        member = made.members[0]

        async def told() -> tuple[Any, ...]:
            _, service = await member.consul.get(f"/v1/agent/service/{member.service_id}")
            _, checks = await member.consul.get("/v1/agent/checks")
            return (
                service["Tags"],
                *(checks[f"{member.service_id}:{name}"]["Status"] for name in ("member", "database")),
            )

        it.want(member=True, database=True, role="replica")
        await _listed(made)
        session = await made.until(lambda: _session(member, "postgres-0"), "a session holds the key")
        it.want(role="master")
        await it.reached()
        assert await told() == (["master"], "passing", "passing")
        monkeypatch.setattr(publisher, "LATER_SECONDS", 600.0)
        if crashes:
            it.want(member=False, database=False, role=None)

            async def taken_back() -> bool:
                return not it._serves

            await made.until(taken_back, "the key is given up")
            assert await told() == (["master"], "passing", "passing")
        else:
            await made.consul.put(f"/v1/session/destroy/{session}")
            it.want(database=False, role=None)

            async def taken_back() -> bool:
                return not it._serves

            await made.until(taken_back, "it was seen that the key is gone")
            it.want(database=True, role="replica")
            await asyncio.sleep(0.1)
            assert await told() == (["master"], "passing", "passing")
            it.want(database=False, role=None)
        it.hurry()
        await it.reached()
        assert await told() == ([], "critical" if crashes else "passing", "critical")


async def _stranger(made: World, member: Member) -> ConsulClient:
    """Who has `service:write` for a service of its own, and no more."""
    await made.consul.put("/v1/acl/policy", {"Name": "web", "Rules": 'service "web" { policy = "write" }'})
    token = await made.consul.put("/v1/acl/token", {"Policies": [{"Name": "web"}]})
    return ConsulClient(Secret(str(token["SecretID"])), port=member.http)


async def _write_foreign_checks(attacker: ConsulClient, member: Member) -> None:
    """Fault B2: with `service:write` for a service of its own, anybody replaces checks of another's node."""
    for name in ("member", "database", "proxy"):
        check_id = f"{member.service_id}:{name}"
        check = {"CheckID": check_id, "Name": "x", "ServiceID": "web-1", "Status": "critical"}
        body = {
            "Node": member.peer_id, "Address": member.address, "SkipNodeUpdate": True,
            "Service": {"ID": "web-1", "Service": "web", "Port": 1}, "Check": check,
        }  # fmt: skip
        assert await attacker.put("/v1/catalog/register", body) is True


async def test_checks_that_a_stranger_replaced_move_no_route_and_come_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Fault B2: the member stays listed and keeps its key, writes its checks again, and says so."""
    monkeypatch.setattr(publisher, "BEAT_SECONDS", 0.2)
    async with agents(1) as made, publishing(made) as it:
        member = made.members[0]
        it.want(member=True, database=True, role="replica")
        await _listed(made)
        session = await made.until(lambda: _session(member, "postgres-0"), "a session holds the key")
        it.want(role="master")
        await made.until(lambda: made.tagged("master"), "it is published")
        attacker = await _stranger(made, member)

        async def noticed() -> bool:
            # Once is not enough: the agent may still be about to write the checks of the registration before.
            await _write_foreign_checks(attacker, member)
            assert await made.tagged("master") == ["postgres-0"]
            await asyncio.sleep(2 * publisher.BEAT_SECONDS)
            return "checks were replaced or are missing" in caplog.text

        await made.until(noticed, "the publisher says so")
        await attacker.close()

        async def repaired() -> bool:
            _, checks = await made.consul.get(f"/v1/health/node/{member.peer_id}")
            ours = {c["CheckID"]: c for c in checks if c["CheckID"].startswith(member.service_id)}
            return len(ours) == 2 and all(
                c["ServiceID"].startswith(member.service_id) and c["Status"] == "passing" for c in ours.values()
            )

        await made.until(repaired, "the checks are its own again")
        assert await made.tagged("master") == ["postgres-0"]
        assert (await _key(made))[0]["Session"] == session


async def test_a_promise_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that is known when a promise is made is told at once, not at the next beat."""
    monkeypatch.setattr(publisher, "BEAT_SECONDS", 600.0)
    async with agents(1) as made, publishing(made) as it:
        it.want(member=True, database=True, role="replica")
        it.promise()
        async with asyncio.timeout(60):
            await it.reached()
        await made.until(lambda: made.tagged("replica"), "it is published")


async def test_a_placeholder_over_the_registration_is_replaced() -> None:
    """The sidecar's placeholder that came in after ours, as it can when the agent restarts, does not stay."""
    async with agents(1) as made, publishing(made) as it:
        it.want(member=True, database=True, role="replica")
        await made.until(lambda: made.tagged("replica"), "it is published")
        member = made.members[0]
        await member.consul.put("/v1/agent/service/register", placeholder(member))

        async def published() -> bool:
            _, service = await member.consul.get(f"/v1/agent/service/{member.service_id}")
            return service["Tags"] == ["replica"] and await made.tagged("replica") == ["postgres-0"]

        await made.until(published, "it is published again")


async def test_lost_agent_is_told_again() -> None:
    """An agent that comes back on empty state learns everything anew, also where the placeholder is back."""
    async with agents(1) as made, publishing(made) as it:
        it.want(member=True, database=True, role="replica")
        await made.until(lambda: made.tagged("replica"), "it is published")
        member = made.members[0]
        member.stop_agent()
        shutil.rmtree(member.folder / f"data-{member.peer_id}")
        await restart_agent(made, member)

        async def published() -> bool:
            _, service = await member.consul.get(f"/v1/agent/service/{member.service_id}")
            return service["Tags"] == ["replica"] and await made.tagged("replica") == ["postgres-0"]

        await made.until(published, "it is published again")


async def test_registration_that_the_servers_refused_is_written_anew() -> None:
    """Servers that came back on empty disks do not know the token yet; the agent then takes its registration for done,
    and the same one again for no change.
    """
    async with agents(1) as made, publishing(made) as it:
        it.want(member=True, database=True, role="replica")
        await made.until(lambda: made.tagged("replica"), "it is published")
        member = made.members[0]
        _, tokens = await made.consul.get("/v1/acl/tokens")
        mine = next(t for t in tokens if any(member.peer_id in p["Name"] for p in t.get("Policies") or ()))
        await made.consul.delete(f"/v1/acl/token/{mine['AccessorID']}")
        await made.consul.put("/v1/catalog/deregister", {"Node": member.peer_id})
        # Another token makes the agent look at everything; it may do nothing with this one.
        await member.consul.put("/v1/agent/token/default", {"Token": str(uuid.uuid4())})
        log = member.folder / f"consul-{member.peer_id}.log"
        await made.until(
            lambda: asyncio.sleep(0, "registration blocked by ACLs" in log.read_text(errors="replace")),
            "the servers refuse the registration",
        )
        it._consul.use_token(Secret(await new_token(made, member.peer_id)))
        await made.until(lambda: made.tagged("replica"), "it is published again")
        _, found = await made.consul.get(f"/v1/catalog/service/{CLUSTER}")
        assert [int(entry["ServiceMeta"]["registration"]) > 0 for entry in found] == [True]
        await _listed(made)
