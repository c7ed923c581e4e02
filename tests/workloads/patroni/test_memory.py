"""Members whose Consul forgot the cluster, and members whose data are a fork: real Consul, Patroni, PostgreSQL.

Long because each way to lose and find the cluster's memory is a story of its own, told on one kind of cluster.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from tests.workloads.patroni.world import CLUSTER, Member, World, restart_server, world
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
    """Ends the container, as a power cut does, and waits for the end of all its processes.

    Its first process is the last of them. A PostgreSQL that outlives its container for a moment would take a row.
    """
    assert member.container is not None
    first = os.pidfd_open(member.first_pid())
    try:
        member.container.send_signal(number)
        member.container.wait(60)
        assert select.select([first], [], [], 60)[0], f"{member.peer_id}: a process of the container lives"
    finally:
        os.close(first)


def _standing(member: Member) -> dict[str, Any]:
    text = Path(f"/proc/{member.first_pid()}/root/run/patroni/{standing.FILE}").read_text()
    found: dict[str, Any] = json.loads(text)
    return found


async def _waits(member: Member, *others: Member) -> bool:
    """Whether the member waits because of just these: they are missing, or one of them has more."""
    found = _standing(member)
    wanted = (f"missing: {', '.join(sorted(m.peer_id for m in others))}", f"{others[0].peer_id} has more")
    return found["state"] == "waiting" and any(text in found["reason"] for text in wanted)


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
        await restart_server(made, keeps=False)
        made.start_member(stale)
        await made.until(lambda: _waits(stale, *others), "the stale member waits for both others")
        made.start_member(others[0])
        # Patroni itself keeps the stale member from asking once it sees somebody ahead; that one asks, and waits.
        await made.until(lambda: _waits(others[0], others[1]), "the member that is ahead waits for the other one")
        assert await made.dcs("leader") is None
        assert await made.dcs("initialize") is None
        made.start_member(others[1])
        await made.settled(2)
        for member in made.members:
            assert await _rows(made, member) == list(range(1, 30)), member.peer_id


def _command(member: Member, *arguments: str) -> str:
    """What a command of the member's container prints; it has to end with 0."""
    done = _ended(member, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _ended(member: Member, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of the member's container, which may end with another code: `status` does while all is not well."""
    argv = [sys.executable, "-S", "-m", "lab.container", "enter", str(member.first_pid()), "same", "--"]
    argv += [sys.executable, "-m", "workloads.patroni", *arguments]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


async def _only_the_leaders_rows(made: World, member: Member, rows: list[int]) -> bool:
    """Whether the member serves readers; where it does, it has the leader's rows and nothing else."""
    if member.peer_id not in await made.tagged("replica"):
        return False
    assert await _rows(made, member) == rows
    return True


async def test_fork_is_shown_and_mended() -> None:
    """Two members are promoted to one timeline number, the second by an operator's word. Those that followed the first
    are a fork: they say so, serve no reader with their rows, and become copies of the leader; the lost data are kept.
    """
    async with world(3) as made:
        first = await _begin(made, 2)
        await _write(made, 1, 2)
        _stop(first)
        await made.until(lambda: _leads_elsewhere(made, first), "another one leads")
        second = await made.settled(1)
        await _write(made, 10, 11)
        third = next(m for m in made.members if m not in (first, second))
        _stop(third)
        _stop(second)
        await restart_server(made, keeps=False)
        made.start_member(first)
        made.start_member(second)
        await made.until(lambda: _waits(second, third), "the second leader waits for the third member")
        await made.until(lambda: _waits(first, second), "the first leader waits for the second one")
        assert f"{second.peer_id} has" in _command(first, "lead", "--accept-loss", "--yes")
        assert (await made.settled(1)).peer_id == first.peer_id
        rows = [1, 2, 20]
        await _write(made, 20)
        await made.until(lambda: _only_the_leaders_rows(made, second, rows), "the second one follows")
        made.start_member(third)
        await made.until(lambda: _only_the_leaders_rows(made, third, rows), "the third one follows")
        assert await _rows(made, first) == rows
        for member in (second, third):
            assert "this member is fork now: timeline 2 was begun here by" in member.log()
            assert (member.folder / "pgdata" / "data.fork" / "PG_VERSION").exists()
            assert _standing(member)["state"] == "whole"
        await made.until(lambda: _is_ready(first), "the status says that all is well")


async def _is_ready(member: Member) -> bool:
    done = await asyncio.to_thread(_ended, member, "status")
    return done.returncode == 0 and f"{member.peer_id}: ready" in done.stdout


async def _leads_elsewhere(made: World, old: Member) -> bool:
    return await made.tagged("master") not in ([], [old.peer_id])


async def test_primary_goes_on_when_consul_comes_back_empty() -> None:
    """Consul loses its data while the members run: the leader leads on, the same PostgreSQL process, and tells the new
    Consul its term; a failover works as before."""
    async with world(2) as made:
        leader = await _begin(made, 1)
        await _write(made, 1)
        postmaster, terms = leader.postmaster(), await made.dcs("terms")
        await restart_server(made, keeps=False)
        assert (await made.settled(1)).peer_id == leader.peer_id
        await made.until(lambda: _has(made, terms), "the list of terms is back")
        await _write(made, 2)
        assert leader.postmaster() == postmaster
        # The routes were cut while Consul knew no master: the standby connects anew once all is written there again.
        await made.until(lambda: _published(made), "every member has its checks again")
        await made.settled(1)
        _stop(leader)
        await made.until(lambda: _leads_elsewhere(made, leader), "the standby leads")
        # The tag of the killed one stays until its checks run out.
        standby = next(m for m in made.members if m is not leader)
        assert standby.peer_id in await made.tagged("master")
        assert await _rows(made, standby) == [1, 2]


async def test_paused_primary_asks_before_it_leads_an_emptied_consul() -> None:
    """Patroni keeps it without a leader key while nobody answers: it takes none, and no route leads to it. Once the
    other member has said what it has, it leads again.
    """
    async with world(2) as made:
        leader = await _begin(made, 1)
        await _write(made, 1)
        config = await made.dcs("config")
        await made.consul.put(f"/v1/kv/service/{CLUSTER}/config", {**config, "pause": True})
        await made.until(lambda: _said(leader, "PAUSE: "), "the cluster is paused")
        postmaster, other = leader.postmaster(), next(m for m in made.members if m is not leader)
        _stop(other)
        await restart_server(made, keeps=False)
        await made.until(lambda: _waits(leader, other), "the primary waits for the other member")
        assert await made.dcs("leader") is None
        assert leader.postmaster() == postmaster
        made.start_member(other)
        await made.until(lambda: _leads(made, leader), "it leads again")
        assert leader.postmaster() == postmaster
        assert await _rows(made, leader) == [1]


async def _said(member: Member, words: str) -> bool:
    return words in member.log()


async def _leads(made: World, member: Member) -> bool:
    return await made.tagged("master") == [member.peer_id]


async def _published(made: World) -> bool:
    _, found = await made.consul.get(f"/v1/health/service/{CLUSTER}", params={"passing": ""})
    checks = {check["CheckID"] for entry in found or () for check in entry["Checks"]}
    return all(f"{m.service_id}:{name}" in checks for m in made.members for name in ("member", "database"))


async def _has(made: World, terms: Any) -> bool:
    return await made.dcs("terms") == terms


@pytest.mark.parametrize("killed", [False, True], ids=["fails", "is killed"])
async def test_data_are_kept_where_pg_rewind_does_not_succeed(killed: bool) -> None:
    """A leader was lost with rows that its asynchronous standby did not have. It comes back as a fork, and `pg_rewind`
    fails halfway, or is killed there with the whole member: the member becomes a copy of the new leader, and its data
    are kept."""
    async with world(2, POSTGRES_SYNCHRONOUS="off") as made:
        old = await made.master()
        new = next(m for m in made.members if m is not old)
        await made.until(lambda: made.tagged("replica"), "there is a standby")
        async with await made.connect(made.master_port) as connection:
            await connection.execute("CREATE TABLE t AS SELECT 1 AS i")
        await made.until(lambda: _has_rows(made, new, [1]), "the standby has the row")
        receiver = new.pids("walreceiver")[0]
        os.kill(receiver, signal.SIGSTOP)
        await _write(made, 2, 3)
        _stop(old)
        # It would read on what has come already; the standby's PostgreSQL starts again without it.
        os.kill(receiver, signal.SIGKILL)
        insert = "INSERT INTO t VALUES (10) RETURNING i"
        await made.until(lambda: made.sql(made.master_port, insert), "the standby leads")
        # A file there and none here: pg_rewind ends in the midst of its work, or waits for a reader of the pipe.
        # PostgreSQL looks at none of it. Files are taken in the order of their names.
        for name in ("a-first-one", "in-the-way"):
            (new.folder / "pgdata" / "data" / name).touch()
        obstacle = old.folder / "pgdata" / "data" / "in-the-way"
        if killed:
            os.mkfifo(obstacle)
        else:
            obstacle.mkdir()
        made.start_member(old)
        if killed:
            await made.until(lambda: _exists(obstacle.with_name("a-first-one")), "pg_rewind is in the midst of it")
            assert old.pids("pg_rewind", "--source-server")
            _stop(old)
            obstacle.unlink()
            made.start_member(old)
        # What was on its way to the standby may have reached it after all; the log that came after it has not.
        rows = await _rows(made, new)
        await made.until(lambda: _only_the_leaders_rows(made, old, rows), "the old leader follows")
        assert (old.folder / "pgdata" / "data.fork" / "PG_VERSION").exists()
        assert "this member is fork now: a pg_rewind of the data did not succeed" in old.log()


async def _exists(path: Path) -> bool:
    return path.exists()


async def _has_rows(made: World, member: Member, rows: list[int]) -> bool:
    return await _rows(made, member) == rows


async def _half_made(made: World) -> None:
    """What a power cut in the midst of the first bootstrap leaves behind, in Consul and on one member's disk."""
    await made.consul.put(f"/v1/kv/service/{CLUSTER}/initialize", b"")
    volume = made.members[0].folder / "pgdata"
    (volume / "data" / "base").mkdir(parents=True, mode=0o700)
    (volume / "data" / "PG_VERSION").write_text("15\n")
    (volume / "data.making").touch()


async def test_bootstrap_that_was_cut_off_is_made_anew() -> None:
    """Nobody holds the lock of the claim in Consul, and half a database is none: the members make the cluster."""
    async with world(2, before=_half_made) as made:
        await made.settled(1)
        assert not (made.members[0].folder / "pgdata" / "data.making").exists()
        assert "making a new cluster did not come to its end here" in made.members[0].log()


async def test_leader_that_died_before_it_was_recorded_leads_again() -> None:
    """A leader was killed in the first moments of its term, which Consul's list does not have yet, and the leader
    before it is gone for good. It comes back and leads: its claim is in Consul, and nobody has claimed a term since."""
    async with world(3) as made:
        first = await _begin(made, 2)
        before = await made.dcs("terms")
        _stop(first)
        await made.until(lambda: _leads_elsewhere(made, first), "another one leads")
        second = await made.settled(1)
        assert len(await made.dcs("terms")) == len(before) + 1
        third = next(m for m in made.members if m not in (first, second))
        _stop(third)
        _stop(second)
        await made.consul.put(f"/v1/kv/service/{CLUSTER}/terms", json.dumps(before).encode())
        made.start_member(second)
        made.start_member(third)
        assert (await made.settled(1)).peer_id == second.peer_id
        assert "this member is waiting now" not in second.log()


async def test_new_disks_under_a_consul_that_remembers() -> None:
    """Every disk of the database is new, and Consul knows the old one: the members say so and wait. A person's word
    makes a new database."""
    async with world(2) as made:
        await made.settled(1)
        known = await made.dcs("initialize")
        for member in made.members:
            _stop(member)
            shutil.rmtree(member.folder / "pgdata")
            (member.folder / "pgdata").mkdir()
        for member in made.members:
            made.start_member(member)
        one = made.members[0]

        async def waits() -> bool:
            return "every member's disk is new" in _standing(one)["reason"]

        await made.until(waits, "the member says what it waits for")
        assert known in _standing(one)["reason"]
        # The routes between the members are in this very process.
        done = await asyncio.to_thread(_ended, one, "status")
        assert (done.returncode, "No member has a database" in done.stdout) == (1, True), done.stdout
        said = await asyncio.to_thread(_command, one, "lead", "--accept-loss", "--yes")
        assert "every write there ever was" in said
        await made.settled(1)
        assert await made.dcs("initialize") not in (None, "", known)


async def _keep_little_log(made: World) -> None:
    """As with `patronictl edit-config`: the leader keeps no slot of a member that is away, and 16 MB of log. In
    operation that takes half an hour (`member_slots_ttl`) and 256 MB."""
    config = await made.dcs("config")
    config["member_slots_ttl"] = 0
    config["postgresql"]["parameters"] |= {"wal_keep_size": "16MB", "min_wal_size": "2MB", "max_wal_size": "4MB"}
    await made.consul.put(f"/v1/kv/service/{CLUSTER}/config", json.dumps(config).encode())

    async def takes() -> bool:
        return bool(await made.sql(made.master_port, "SHOW wal_keep_size") == "16MB")

    await made.until(takes, "the leader has its new configuration")


async def test_member_whose_log_is_gone_becomes_a_copy() -> None:
    """A replica comes back after the leader has removed the log that it needs. It does not ask for ever, with old rows
    for its readers: it says so, and becomes a copy of the leader."""
    async with world(2) as made:
        leader = await _begin(made, 1)
        other = next(m for m in made.members if m is not leader)
        await _keep_little_log(made)
        _stop(other)
        segment = await made.sql(made.master_port, "SELECT pg_walfile_name(pg_current_wal_lsn())")
        await made.sql(made.master_port, "CREATE TABLE filling (t text)")
        await _write(made, 1)

        async def removed() -> bool:
            filling = "INSERT INTO filling SELECT repeat('x', 1000) FROM generate_series(1, 6000)"
            await made.sql(made.master_port, filling)
            return not (leader.folder / "pgdata" / "data" / "pg_wal" / segment).exists()

        await made.until(removed, "the leader has removed the log")
        made.start_member(other)
        kept = other.folder / "pgdata" / "data.fork" / "PG_VERSION"
        await made.until(lambda: _exists(kept), "the old data are out of the way")
        assert "this member is behind now: the log reaches" in other.log()
        await made.until(lambda: _only_the_leaders_rows(made, other, [1]), "it follows")

        async def whole() -> bool:
            return bool(_standing(other)["state"] == "whole")

        await made.until(whole, "it is whole")


async def test_third_member_leads_by_an_operators_word() -> None:
    """Leader and synchronous standby are lost at once. The third member may not lead, and says who may; a person's word
    lets it lead, and one that comes back follows it."""
    async with world(3) as made:
        leader = await _begin(made, 2)
        await _write(made, 1)
        named = (await made.dcs("sync"))["sync_standby"]
        standby = next(m for m in made.members if m.peer_id == named)
        third = next(m for m in made.members if m not in (leader, standby))
        await asyncio.gather(*(asyncio.to_thread(_stop, m) for m in (leader, standby)))

        async def waits() -> bool:
            return "nobody leads, and only" in _standing(third)["reason"]

        await made.until(waits, "the third member says who may lead")
        assert leader.peer_id in _standing(third)["reason"]
        said = await asyncio.to_thread(_command, third, "lead", "--accept-loss", "--yes")
        assert f"every write that only {leader.peer_id} has" in said
        await made.until(lambda: made.sql(third.port, "INSERT INTO t VALUES (2) RETURNING i"), "the third one leads")
        assert await _rows(made, third) == [1, 2]
        made.start_member(leader)
        await made.until(lambda: _only_the_leaders_rows(made, leader, [1, 2]), "the old leader follows")


async def test_member_of_another_database_says_so() -> None:
    """A disk of another database is mounted: the member does not end in a loop, and says what is wrong. Without those
    data it becomes a copy of the leader."""
    async with world(2) as made:
        leader = await _begin(made, 1)
        other = next(m for m in made.members if m is not leader)
        _stop(other)
        data = other.folder / "pgdata" / "data"
        control = data / "global" / "pg_control"
        # It begins with the system identifier; Patroni believes it although the checksum does not fit any more.
        control.write_bytes(bytes([control.read_bytes()[0] ^ 1]) + control.read_bytes()[1:])
        made.start_member(other)

        async def says() -> bool:
            return bool(_standing(other)["state"] == "foreign")

        await made.until(says, "it says what is wrong")
        assert "patroni ended" not in other.log()
        data.rename(data.with_name("moved"))
        await made.until(lambda: _only_the_leaders_rows(made, other, []), "it follows")
