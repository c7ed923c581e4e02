"""How a standby takes the key, with Patroni's own client and a real Consul; test_supervisor.py has the whole."""

from __future__ import annotations

import importlib
import inspect
import threading
from typing import Any

import pytest

from tests.workloads.patroni.client import STANDBY, Place, place
from tests.workloads.patroni.world import CLUSTER
from workloads.patroni import acquire
from workloads.patroni.config import NAMESPACE

pytestmark = pytest.mark.timeout(600)

ALONE = '{"leader":"postgres-0","quorum":0,"sync_standby":null}'


def _goes_on(it: Place) -> tuple[Any, bool]:
    """What Patroni does with the key: loads the cluster, and says that it leads alone."""
    cluster = it.dcs.get_cluster()
    return cluster, bool(it.dcs.write_sync_state("postgres-0", None, 0, version=cluster.sync.version))


async def test_one_transaction_takes_the_key() -> None:
    """Key, `sync` and the cluster as it is then, in one request; the next load asks again."""
    async with place(acquire.hasten) as it:

        def take() -> Any:
            assert it.dcs.attempt_to_acquire_leader() is True
            return _goes_on(it)

        cluster, alone = await it.run(take)
        assert it.asked == ["PUT txn"]
        assert alone
        assert (cluster.leader.name, cluster.sync.leader, cluster.sync.sync_standby) == (
            "postgres-0",
            "postgres-0",
            None,
        )
        assert [member.name for member in cluster.members] == ["postgres-0"]
        assert await it.key("leader") == ("postgres-0", it.dcs._session)
        assert await it.key("sync") == (ALONE, None)
        again = await it.run(it.dcs.get_cluster)
        assert len(it.asked) == 2
        assert (again.leader, again.sync, again.members) == (cluster.leader, cluster.sync, cluster.members)


async def test_without_synchronous_replication_only_the_key_is_taken() -> None:
    """And still nothing is loaded twice."""
    async with place(acquire.hasten, synchronous=False) as it:

        def take() -> Any:
            assert it.dcs.attempt_to_acquire_leader() is True
            return it.dcs.get_cluster()

        cluster = await it.run(take)
        assert it.asked == ["PUT txn"]
        assert cluster.leader.name == "postgres-0"
        assert await it.key("sync") == (STANDBY, None)


async def test_a_changed_sync_key_is_found_out_by_patroni() -> None:
    """Somebody else made another standby of it meanwhile: nothing is promoted on what is outdated."""
    async with place(acquire.hasten) as it:
        other = STANDBY.replace("postgres-0", "postgres-1")
        await it.write("sync", other)

        def take() -> Any:
            assert it.dcs.attempt_to_acquire_leader() is True
            return it.dcs.write_sync_state("postgres-0", None, 0, version=it.ha.cluster.sync.version)

        assert not await it.run(take)
        assert await it.key("sync") == (other, None)


async def test_a_key_that_is_taken_stays_its_holders() -> None:
    """And the `sync` key with it."""
    async with place(acquire.hasten) as it:
        session = (await it.made.consul.put("/v1/session/create", {}))["ID"]
        await it.made.consul.put(f"/v1/kv/{NAMESPACE}/{CLUSTER}/leader", b"postgres-9", params={"acquire": session})
        assert not await it.run(it.dcs.attempt_to_acquire_leader)
        assert await it.key("leader") == ("postgres-9", session)
        assert await it.key("sync") == (STANDBY, None)


async def test_a_session_that_has_ended_is_made_anew() -> None:
    """At once: Patroni's own way is to try with the old one for five seconds."""
    async with place(acquire.hasten) as it:
        ended = it.dcs._session
        await it.made.consul.put(f"/v1/session/destroy/{ended}")
        assert await it.run(it.dcs.attempt_to_acquire_leader) is True
        assert it.asked == ["PUT txn", "PUT session/create", "PUT txn"]
        assert it.dcs._session != ended
        assert await it.key("leader") == ("postgres-0", it.dcs._session)


@pytest.mark.parametrize("role", ["primary", "demoted"])
async def test_only_a_standby_is_hastened(role: str) -> None:
    """A primary that takes its key back has a standby, which must stay one."""
    async with place(acquire.hasten) as it:
        it.ha.state_handler.role = role
        assert await it.run(it.dcs.attempt_to_acquire_leader) is True
        assert await it.key("sync") == (STANDBY, None)


async def test_what_the_transaction_gave_is_for_who_took_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread, or the same one later, asks for itself."""
    async with place(acquire.hasten) as it:

        def take() -> int:
            it.dcs.attempt_to_acquire_leader()
            thread = threading.Thread(target=it.dcs.get_cluster)
            thread.start()
            thread.join()
            return len(it.asked)

        assert await it.run(take) == 2
        monkeypatch.setattr(acquire, "FRESH_SECONDS", 0.0)

        def later() -> Any:
            it.dcs.attempt_to_acquire_leader()
            return _goes_on(it)

        cluster, alone = await it.run(later)
        assert alone
        assert cluster.sync.leader == "postgres-0"
        assert len(it.asked) > 4


def test_patroni_has_what_is_changed() -> None:
    """Each thing that is relied on, in Patroni's own source."""
    importlib.import_module("patroni.postgresql")
    module = importlib.import_module("patroni.dcs.consul")
    consul = inspect.getsource(module.Consul)
    assert "self._do_attempt_to_acquire_leader, retry, retry=None)" in consul
    assert "nodes[node['Key'][len(path):]] = node" in consul
    assert "acquire=self._session" in consul
    assert "def set_sync_state_value(self, value: str, version: Optional[int] = None)" in consul
    assert "self._session = self._client.session.create(" in inspect.getsource(module.Consul._do_refresh_session)
    abstract = inspect.getsource(importlib.import_module("patroni.dcs").AbstractDCS)
    assert "self.set_sync_state_value(json.dumps(sync_value, separators=(',', ':')), version)" in abstract
    ha = importlib.import_module("patroni.ha").Ha
    taking = inspect.getsource(ha.process_unhealthy_cluster)
    assert taking.index("self.acquire_lock()") < taking.index("self.load_cluster_from_dcs()")
    alone = "self.dcs.write_sync_state(self.state_handler.name, None, 0, version=self.cluster.sync.version)"
    assert alone in inspect.getsource(ha.process_sync_replication_prepromote)
