"""Real members: Patroni and PostgreSQL under supervisors, with real Consul agents and the rights of a workload."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from runtime.guest import GuestAgent
from runtime.secret import Secret
from tests.support import process_runs
from tests.workloads.patroni.world import APP_PASSWORD, CLUSTER, Member, World, new_token, world, write_secret
from workloads.patroni import passwords

pytestmark = [pytest.mark.netns, pytest.mark.timeout(900)]


async def _write(made: World, value: int) -> bool:
    """One row through the master's route; True once it is acknowledged."""
    async with await made.connect(made.master_port) as connection:
        await connection.execute("INSERT INTO t VALUES (%s)", (value,))
    return True


async def _rows(made: World) -> list[int]:
    async with await made.connect(made.master_port) as connection:
        cursor = await connection.execute("SELECT i FROM t ORDER BY i")
        return [row[0] for row in await cursor.fetchall()]


async def _kill_and_write(made: World, value: int, victim: str) -> tuple[Member, Member]:
    """Kills a process of the leader; (old, new) leader once the next write is acknowledged."""
    old = await made.settled(1)
    family = old.pids("postgres")
    os.kill(old.patroni() if victim == "patroni" else old.postmaster(), signal.SIGKILL)

    async def taken_over() -> bool:
        return await made.tagged("master") not in ([], [old.peer_id])

    await made.until(taken_over, "the standby leads")
    # The order that makes it safe: when somebody else leads, nothing of the old leader is left to acknowledge a write.
    assert [pid for pid in family if process_runs(pid)] == []
    await made.until(lambda: _write(made, value), "a write is acknowledged again")
    new = await made.master()
    assert new is not old
    return old, new


async def test_killed_leaders_hand_over_and_come_back() -> None:
    """Patroni's death, PostgreSQL's, a clean stop: the standby leads, nothing acknowledged is lost, the old follows."""
    async with world(2) as made:
        await made.settled(1)
        async with await made.connect(made.master_port) as connection:
            await connection.execute("CREATE TABLE t (i int)")
        await _write(made, 1)
        first, second = await _kill_and_write(made, 2, "patroni")
        assert "critical" not in await _checks(made, second)
        # Back through pg_rewind or as it was, following the new leader through the route.
        await _kill_and_write(made, 3, "postmaster")
        await made.settled(1)
        assert await _rows(made) == [1, 2, 3]
        assert await made.dcs("leader") == first.peer_id
        assert await made.sql(second.port, "SELECT pg_is_in_recovery()") is True
        assert await made.sql(second.port, "SELECT count(*) FROM t") == 3
        await _no_secret_leaks(made)
        await _clean_stop(made)


async def _clean_stop(made: World) -> None:
    """SIGTERM of the leader's container: PostgreSQL shuts down, the standby leads, and the container ends with 0."""
    leader = await made.settled(1)
    assert leader.container is not None
    leader.container.terminate()
    await made.until(lambda: _is_ended(leader), "the container ends")
    assert leader.container.returncode == 0
    assert "database system is shut down" in leader.log()
    assert await made.master() is not leader


async def _checks(made: World, member: Member) -> str:
    _, checks = await made.consul.get(f"/v1/health/node/{member.peer_id}")
    return " ".join(check["Status"] for check in checks)


async def _no_secret_leaks(made: World) -> None:
    """No password or token is in a command line, an environment, a log or Consul."""
    async with GuestAgent(made.members[0].folder / "dstack.sock") as guest:
        derived = await passwords.fetch(guest, CLUSTER)
    secrets = [APP_PASSWORD, *(getattr(derived, name).reveal() for name in derived.__slots__)]
    secrets += [member.token for member in made.members]
    _, keys = await made.consul.get(f"/v1/kv/service/{CLUSTER}/", params={"recurse": "", "raw": ""})
    places = {"Consul": str([(await made.dcs(k["Key"].split("/", 2)[2])) for k in keys])}
    for member in made.members:
        places[f"log of {member.peer_id}"] = member.log()
        for pid in member.pids():
            for name in ("cmdline", "environ"):
                places[f"{name} of {pid}"] = Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
    assert [(where, text[:80]) for where, text in places.items() if any(s in text for s in secrets)] == []


async def _is_ended(member: Member) -> bool:
    assert member.container is not None
    return member.container.poll() is not None


async def test_lone_member_through_a_new_token_and_a_killed_supervisor() -> None:
    """A new token is taken in place: nothing restarts when the old one is gone. A killed supervisor leaves nothing."""
    async with world(1) as made:
        member = await made.settled(0)
        patroni, postmaster = member.patroni(), member.postmaster()
        assert await made.until(lambda: made.sql(made.master_port, "SELECT 7"), "the application logs in") == 7
        assert await made.sql(made.master_port, "SHOW mesh.peer_id") == member.peer_id
        stored = "SELECT rolpassword FROM pg_authid WHERE rolname = 'app'"
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await made.sql(made.master_port, stored)
        fresh = await new_token(made, member.peer_id)
        write_secret(member, "consul-token", fresh)
        await made.until(lambda: _said(member, "token renewed"), "the supervisor takes the token")
        old, member.token = member.token, fresh
        _, listed = await made.consul.get("/v1/acl/tokens")
        accessor = await _accessor(made, old, listed)
        # Patroni reads its configuration again after its current cycle: the second one from now on has the new token.
        await _cycles(made, member, 2)
        await made.consul.delete(f"/v1/acl/token/{accessor}")
        await _cycles(made, member, 3)
        assert (member.patroni(), member.postmaster()) == (patroni, postmaster)
        assert await made.tagged("master") == [member.peer_id]
        await _kill_supervisor(made, member)


async def _said(member: Member, *texts: str) -> bool:
    return any(text in member.log() for text in texts)


async def _accessor(made: World, secret: str, listed: list[dict[str, Any]]) -> str:
    for token in listed:
        _, whole = await made.consul.get(f"/v1/acl/token/{token['AccessorID']}")
        if whole["SecretID"] == secret:
            return str(whole["AccessorID"])
    raise AssertionError("the old token is not listed")


async def _cycles(made: World, member: Member, count: int) -> None:
    """Waits for so many cycles of Patroni as a leader that reached Consul."""
    before = member.log().count("the leader with the lock")

    async def passed() -> bool:
        return member.log().count("the leader with the lock") >= before + count

    await made.until(passed, f"{count} cycles of Patroni as the leader")


async def _kill_supervisor(made: World, member: Member) -> None:
    """The container dies as a whole; the next one first lets the old key go, then leads again on the same data."""
    async with await made.connect(made.master_port) as connection:
        await connection.execute("CREATE TABLE t AS SELECT 5 AS i")
    family = member.pids()
    os.kill(member.first_pid(), signal.SIGKILL)
    await made.until(lambda: _is_ended(member), "the container ends")
    assert [pid for pid in family if process_runs(pid)] == []
    made.start_member(member)
    assert await made.until(lambda: made.sql(made.master_port, "SELECT i FROM t"), "it leads again") == 5


def test_secret_type_is_used() -> None:
    """What is derived does not print itself."""
    assert "***" in repr(passwords.derive(Secret("00" * 32)))
