"""A member's client of Consul, against a real Consul.

Long because it is a list: each method that the client overrides is a case of its own, on one pair of agent and server.
"""

from __future__ import annotations

import asyncio
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from runtime import leader_key
from runtime.tasks import TaskScope
from tests.workloads.patroni.client import Place, place
from tests.workloads.patroni.world import CLUSTER, World, restart_server
from workloads.patroni import control
from workloads.patroni.dcs import ConsulError

pytestmark = pytest.mark.timeout(600)

LSN, TIMELINE = 0x5000028, 3
LOG_ENTRIES, ENTRY_KEYS = 12000, 64
"""Of a log that a server takes some 2 s to apply; Consul takes 64 operations in a transaction at most."""
WHOLE = {"role": "replica", "timeline": TIMELINE, "xlog": {"received_location": LSN + 120, "replayed_location": LSN}}


def shut_down(data: Path, state: int = control.SHUT_DOWN) -> None:
    """A control file as a primary leaves it behind."""
    head = struct.pack("@QIIiqQQI", 7, 1300, 202209061, state, 1_700_000_000, LSN, LSN, TIMELINE)
    (data / "global" / "pg_control").write_bytes(head)


async def flag(it: Place) -> None:
    """Says in the leader key that its holder serves, as the supervisor does."""
    found = await it.entry("leader")
    params = {"cas": str(found["ModifyIndex"]), "flags": str(leader_key.SERVES)}
    assert await it.write("leader", "postgres-0", **params)


async def another_session(made: World, name: str = "x") -> str:
    """A session on the server's own node."""
    session = await made.consul.put("/v1/session/create", {"Name": name, "LockDelay": "1ms", "Behavior": "delete"})
    return str(session["ID"])


async def test_leader_gives_a_key_away_into_which_the_supervisor_wrote() -> None:
    """The version that Patroni read is outdated by the flags; the session is its own, so the key goes."""
    async with place() as it:
        leader = await it.lead()
        await flag(it)
        assert await it.run(lambda: it.dcs.delete_leader(leader)) is True
        assert await it.entry("leader") is None


async def test_leader_does_not_give_away_the_key_of_another() -> None:
    """A key that somebody else has taken meanwhile stays, also where it names this member."""
    async with place() as it:
        leader = await it.lead()
        _, own = await it.made.consul.get(f"/v1/session/node/{it.member.peer_id}")
        await it.made.consul.put(f"/v1/session/destroy/{own[0]['ID']}")
        session = await another_session(it.made)
        await it.acquire("leader", "postgres-0", session)
        assert await it.run(lambda: it.dcs.delete_leader(leader)) is False
        assert (await it.entry("leader"))["Session"] == session


@pytest.mark.parametrize(("state", "goes"), [(6, False), (control.SHUT_DOWN, True)])
async def test_killed_postgresql_gives_nothing_away(state: int, goes: bool) -> None:
    """A PID file is left and the control file does not say *shut down*: processes may live, and acknowledge."""
    async with place() as it:
        leader = await it.lead()
        shut_down(it.data, state)
        (it.data / "postmaster.pid").write_text("77\n")
        assert await it.run(lambda: it.dcs.delete_leader(leader)) is goes
        assert (await it.entry("leader") is None) is goes
        (it.data / "postmaster.pid").unlink()
        assert await it.run(lambda: it.dcs.delete_leader(leader)) is True


async def test_session_of_patroni_names_no_check() -> None:
    """Fault B2: what no session names, nobody can take the session away with."""
    async with place() as it:
        _, found = await it.made.consul.get(f"/v1/session/node/{it.member.peer_id}")
        assert [(s["Name"], s["NodeChecks"], s["ServiceChecks"]) for s in found] == [
            (f"{CLUSTER}-postgres-0", [], None)
        ]


async def test_consul_without_a_leader_is_no_lost_key() -> None:
    """Servers that are away, and ones that refuse the token: the leader is told that Consul is not there."""
    async with place() as it:
        leader = await it.lead()
        cluster = await it.run(it.dcs.get_cluster)
        await it.write("failsafe", json.dumps({"postgres-0": "http://x"}))
        await it.run(it.dcs.get_cluster)
        _, tokens = await it.made.consul.get("/v1/acl/tokens")
        accessor = next(
            t["AccessorID"] for t in tokens if any("postgres-0" in p["Name"] for p in t.get("Policies") or ())
        )
        await it.made.consul.delete(f"/v1/acl/token/{accessor}")

        async def refused() -> bool:
            try:
                return bool(await it.run(lambda: it.dcs.update_leader(cluster, None, None, None))) and False
            except ConsulError as error:
                return "403" in str(error) or "ACL" in str(error) or "Permission" in str(error)

        await it.made.until(refused, "the token is refused")
        assert it.dcs.failsafe == {"postgres-0": "http://x"}
        assert (await it.entry("leader"))["Session"] == leader.session
        it.made.server.kill()
        it.made.server.wait(20)
        with pytest.raises(ConsulError):
            await it.run(lambda: it.dcs.update_leader(cluster, None, None, None))


async def test_leader_takes_its_key_with_a_new_session() -> None:
    """Its session is gone and nobody else leads: it goes on. Somebody else leads: it does not."""
    async with place() as it:
        await it.lead()
        cluster = await it.run(it.dcs.get_cluster)
        await it.made.consul.put(f"/v1/session/destroy/{cluster.leader.session}")
        assert await it.entry("leader") is None
        assert await it.run(lambda: it.dcs.update_leader(cluster, None, None, None)) is True
        mine = await it.entry("leader")
        assert mine["Session"] != cluster.leader.session
        await it.made.consul.put(f"/v1/session/destroy/{mine['Session']}")
        session = await another_session(it.made)
        await it.acquire("leader", "postgres-1", session)
        before = cluster.leader._replace(session=mine["Session"])
        assert await it.run(lambda: it.dcs._update_leader(before)) is False
        assert await it.value("leader") == "postgres-1"


async def test_key_of_an_earlier_session_is_taken_in_one_step_with_what_is_in_it() -> None:
    """No replica sees a free key, and would take it; what the supervisor wrote into it stays."""
    async with place() as it:
        await it.lead()
        await flag(it)
        cluster = await it.run(it.dcs.get_cluster)
        asked = {"Name": "x", "Node": it.member.peer_id, "LockDelay": "1ms", "Behavior": "release", "NodeChecks": []}
        earlier = str((await it.made.consul.put("/v1/session/create", asked))["ID"])
        path = f"/v1/kv/{it.dcs.leader_path.lstrip('/')}"
        await it.made.consul.put(path, b"postgres-0", params={"release": cluster.leader.session})
        await it.acquire("leader", "postgres-0", earlier)
        assert await it.write("leader", "postgres-0", flags=str(leader_key.SERVES))
        seen: list[Any] = []

        async def look() -> None:
            index = 0
            while True:
                index, found = await it.made.consul.get(path, index=index, wait=10)
                seen.append(found)

        async with TaskScope() as scope:
            watching = scope.start("look", look())
            await it.made.until(lambda: asyncio.sleep(0, bool(seen)), "the key is watched")
            assert await it.run(lambda: it.dcs._update_leader(cluster.leader._replace(session="gone"))) is True
            mine = await it.entry("leader")
            await it.made.until(lambda: asyncio.sleep(0, seen[-1][0]["Session"] == mine["Session"]), "it is seen")
            watching.cancel()
        assert mine["Session"] not in (earlier, None)
        assert mine["Flags"] == leader_key.SERVES
        assert all(found and found[0].get("Session") for found in seen)


async def _fill_log(made: World) -> None:
    """Makes the servers' log long: applying it is to take longer than the first questions take to arrive."""
    sets = [{"KV": {"Verb": "set", "Key": f"filler/{n}", "Value": "YQ=="}} for n in range(ENTRY_KEYS)]
    for _ in range(LOG_ENTRIES // 10):
        await asyncio.gather(*(made.consul.put("/v1/txn", sets) for _ in range(10)))


async def test_server_that_replays_its_log_shows_no_earlier_leader() -> None:
    """It leads at once, where it is alone, and answers ordinary reads from what it has applied so far."""
    async with place() as it:
        before = await another_session(it.made)
        await it.acquire("leader", "postgres-1", before)
        await _fill_log(it.made)
        await it.made.consul.put(f"/v1/session/destroy/{before}")
        await it.made.until(lambda: it.run(it.dcs.attempt_to_acquire_leader), "the member leads")

        async def leader() -> str:
            try:
                return str((await it.run(it.dcs.get_cluster)).leader.name)
            except ConsulError:
                return ""

        it.made.server.kill()
        it.made.server.wait(20)
        async with TaskScope() as scope:
            scope.start("restart", restart_server(it.made, keeps=True))
            assert await it.made.until(leader, "Consul answers the member") == "postgres-0"


async def test_leader_key_of_another_node_with_the_same_name_is_not_taken() -> None:
    """A CVM that lost its slot has the name of the one that holds it now: that one's leader key stays, or a stale
    database would be promoted without an election. A key of an earlier session of its own node is taken.
    """
    async with place() as it:
        await it.lead()
        cluster = await it.run(it.dcs.get_cluster)
        await it.made.consul.put(f"/v1/session/destroy/{cluster.leader.session}")
        session = await another_session(it.made)
        await it.acquire("leader", "postgres-0", session)
        with pytest.raises(ConsulError, match="not of this node"):
            await it.run(lambda: it.dcs.update_leader(cluster, None, None, None))
        assert (await it.entry("leader"))["Session"] == session
        await it.made.consul.put(f"/v1/session/destroy/{session}")
        asked = {"Name": "x", "Node": it.member.peer_id, "LockDelay": "1ms", "Behavior": "delete", "NodeChecks": []}
        earlier = str((await it.made.consul.put("/v1/session/create", asked))["ID"])
        await it.acquire("leader", "postgres-0", earlier)
        assert await it.run(lambda: it.dcs.update_leader(cluster, None, None, None)) is True
        assert (await it.entry("leader"))["Session"] not in (session, earlier)


async def _lead_alone(it: Place, standby: str | None) -> Any:
    """Leads with `standby` in the `sync` key, two replicas listed, and PostgreSQL shut down."""
    leader = await it.lead()
    await it.write("sync", json.dumps({"leader": "postgres-0", "quorum": 0, "sync_standby": standby}))
    for name in ("postgres-0", "postgres-1", "postgres-2"):
        await it.write(f"members/{name}", json.dumps({"state": "running", "api_url": f"http://{name}/patroni"}))
    shut_down(it.data)
    return leader


@pytest.mark.parametrize(
    ("standby", "says", "named"),
    [
        (None, {"postgres-2": WHOLE}, "postgres-2"),
        ("postgres-1", {"postgres-2": WHOLE}, "postgres-2"),
        ("postgres-1", {"postgres-1": WHOLE, "postgres-2": WHOLE}, "postgres-1"),
        (None, {"postgres-1": {**WHOLE, "timeline": 2}, "postgres-2": {"role": "replica"}}, None),
        (None, {}, None),
    ],
    ids=["none yet", "a dead one", "one that has everything", "nobody has everything", "nobody answers"],
)
async def test_leader_that_shuts_down_names_who_has_its_last_lsn(
    standby: str | None, says: dict[str, Any], named: str | None
) -> None:
    """Fault A6: in its first seconds it has named nobody yet, or who it named is dead; then nobody might lead."""
    async with place() as it:
        leader = await _lead_alone(it, standby)
        it.says.update(says)
        assert await it.run(lambda: it.dcs.delete_leader(leader, LSN)) is True
        assert await it.entry("leader") is None
        assert json.loads(await it.value("sync") or "")["sync_standby"] == named


async def test_nobody_is_named_without_a_clean_end() -> None:
    """The end of the log is not known before the control file says *shut down*, and in asynchronous mode nobody has
    to be named.
    """
    async with place() as it:
        leader = await _lead_alone(it, None)
        it.says["postgres-1"] = WHOLE
        shut_down(it.data, 6)
        assert await it.run(lambda: it.dcs.delete_leader(leader, LSN)) is True
        assert json.loads(await it.value("sync") or "")["sync_standby"] is None
        leader = await _lead_alone(it, None)
        await it.write("sync", json.dumps({"leader": None, "sync_standby": None}))
        assert await it.run(lambda: it.dcs.delete_leader(leader, LSN)) is True
        assert json.loads(await it.value("sync") or "")["sync_standby"] is None


class No:
    """A guard that allows nothing."""

    def may_lead(self, cluster: Any) -> bool:  # noqa: ARG002 -- the contract's argument
        """No."""
        return False

    def may_initialize(self, cluster: Any) -> bool:  # noqa: ARG002 -- the contract's argument
        """No."""
        return False

    def claimed(self) -> bool:
        """Never asked."""
        raise AssertionError

    won = claimed


class Full:
    """A guard whose disk is full."""

    def may_lead(self, cluster: Any) -> bool:  # noqa: ARG002 -- the contract's argument
        """Yes."""
        return True

    may_initialize = may_lead

    def won(self) -> bool:
        """No."""
        return False

    claimed = won


async def test_guard_is_asked_before_the_key_is_taken() -> None:
    """Without its word neither the leader key nor the bootstrap is claimed."""
    async with place(No()) as it:
        assert await it.run(it.dcs.attempt_to_acquire_leader) is False
        assert await it.run(lambda: it.dcs.initialize(create_new=True)) is False
        assert await it.entry("leader") is None
        assert await it.entry("initialize") is None
        assert await it.run(lambda: it.dcs.initialize(create_new=False, sysid="7")) is True


async def test_bootstrap_is_claimed_though_the_answer_was_lost() -> None:
    """An empty `initialize` key that nobody's lock stands for is a claim of ours whose answer came too late, or of a
    process that is gone; all members would wait for it for ever. A claim that another one holds stays."""
    async with place() as it:
        session = await another_session(it.made)
        await it.acquire("bootstrap", "postgres-1", session)
        assert await it.write("initialize", "")
        assert await it.run(lambda: it.dcs.initialize(create_new=True)) is False
        await it.made.consul.put(f"/v1/session/destroy/{session}")
        await it.made.until(lambda: it.run(lambda: it.dcs.initialize(create_new=True)), "the bootstrap is claimed")


async def test_claim_of_a_member_that_is_gone_says_nothing() -> None:
    """Patroni waits for whoever makes the cluster. Where nobody holds the lock, there is nobody to wait for."""
    async with place() as it:
        session = await another_session(it.made)
        await it.acquire("bootstrap", "postgres-1", session)
        assert await it.write("initialize", "")
        assert (await it.run(it.dcs.get_cluster)).initialize == ""
        await it.made.consul.put(f"/v1/session/destroy/{session}")
        assert (await it.run(it.dcs.get_cluster)).initialize is None
        assert await it.write("initialize", "77")
        assert (await it.run(it.dcs.get_cluster)).initialize == "77"


async def test_bootstrap_is_given_up_where_its_mark_cannot_be_written() -> None:
    """The claim and its lock go at once: another member may have a disk."""
    async with place(Full()) as it:
        assert await it.run(lambda: it.dcs.initialize(create_new=True)) is False
        assert await it.entry("initialize") is None
        assert not (await it.entry("bootstrap")).get("Session")


async def test_key_is_given_back_where_the_claim_cannot_be_written() -> None:
    """Without the claim of its term on the disk the member must not promote: the key goes back at once."""
    async with place(Full()) as it:
        assert await it.run(it.dcs.attempt_to_acquire_leader) is False
        assert await it.entry("leader") is None


class Cut:
    """A guard whose claim finds Consul's server dead; later ones are as `later` says."""

    def __init__(self, later: bool) -> None:
        self.later = later
        self.server: Any = None

    def may_lead(self, cluster: Any) -> bool:  # noqa: ARG002 -- the contract's argument
        """Yes."""
        return True

    may_initialize = may_lead

    def won(self) -> bool:
        """Kills the server the first time."""
        if self.server is None:
            return self.later
        self.server.kill()
        self.server.wait(20)
        self.server = None
        raise ConsulError("the claim was not written")

    claimed = won


@pytest.mark.parametrize("later", [True, False])
async def test_key_without_a_claim_is_claimed_before_anything_else(later: bool) -> None:
    """Consul is lost between the key and the claim, so the key cannot go back either. Patroni finds it in its next
    round and would promote: the claim is tried again first, and without it the key goes."""
    guard = Cut(later)
    async with place(guard) as it:
        guard.server = it.made.server
        with pytest.raises(ConsulError):
            await it.run(it.dcs.attempt_to_acquire_leader)
        await restart_server(it.made, keeps=True)

        async def updated() -> list[bool]:
            try:
                cluster = await it.run(it.dcs.get_cluster)
                assert cluster.leader.name == "postgres-0"
                return [await it.run(lambda: it.dcs.update_leader(cluster, None, None, None))]
            except ConsulError:
                return []

        assert await it.made.until(updated, "Consul answers the member") == [later]
        assert (await it.entry("leader") is not None) is later


async def test_terms_are_written_once() -> None:
    """The list of terms is replaced only as it was read."""
    async with place() as it:
        assert await it.run(it.dcs.read_terms) == (0, "")
        assert await it.run(lambda: it.dcs.write_terms("[1]", 0)) is True
        assert await it.run(lambda: it.dcs.write_terms("[2]", 0)) is False
        index, text = await it.run(it.dcs.read_terms)
        assert (index > 0, text) == (True, "[1]")


async def test_servers_that_lost_everything_are_believed_once_they_take_a_session() -> None:
    """Before that the failsafe topology stays as it was, so that a leader may go on; a new cluster is just empty."""
    async with place() as it:
        assert (await it.run(it.dcs.get_cluster)).is_empty()
        await it.lead()
        await it.write("failsafe", json.dumps({"postgres-0": "http://x"}))
        await it.run(it.dcs.get_cluster)
        await it.made.consul.delete(f"/v1/kv/service/{CLUSTER}/", params={"recurse": ""})
        _, found = await it.made.consul.get(f"/v1/session/node/{it.member.peer_id}")
        await it.made.consul.put(f"/v1/session/destroy/{found[0]['ID']}")
        # A node that the servers do not know can have no session: what they answer before its agent has told them.
        it.member.stop_agent()
        await it.made.consul.put("/v1/catalog/deregister", {"Node": it.member.peer_id})
        with pytest.raises(ConsulError):
            await it.run(it.dcs.get_cluster)
        assert it.dcs.failsafe == {"postgres-0": "http://x"}


async def test_consul_forgets_one_database_and_no_other() -> None:
    """What it knows goes, but for members and settings; a system identifier that is not the asked one stays."""
    async with place() as it:
        keys = ("initialize", "terms", "claim", "history", "sync", "status", "failsafe")
        for key in (*keys, "config"):
            assert await it.write(key, "8")
        assert await it.run(lambda: it.dcs.forget("7")) is False
        assert await it.value("terms") == "8"
        assert await it.run(lambda: it.dcs.forget("8")) is True
        assert [await it.entry(key) for key in keys] == [None] * len(keys)
        assert await it.value("config") == "8"
        assert await it.run(lambda: it.dcs.forget("8")) is False


async def test_claim_is_the_last_one() -> None:
    """Who wins the leader key says so in one write."""
    async with place() as it:
        assert await it.run(it.dcs.read_claim) == ""
        await it.run(lambda: it.dcs.write_claim("a" * 32))
        assert await it.run(it.dcs.read_claim) == "a" * 32
