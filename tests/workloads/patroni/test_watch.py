"""How a standby watches, with Patroni's own client and a real Consul; test_supervisor.py has the whole."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from runtime import leader_key
from runtime.tasks import TaskScope
from tests.workloads.patroni.client import Place, place
from tests.workloads.patroni.world import CLUSTER
from workloads.patroni import watch
from workloads.patroni.config import NAMESPACE

pytestmark = pytest.mark.timeout(600)

LEADER = f"/v1/kv/{NAMESPACE}/{CLUSTER}/leader"
QUICKLY = 20.0
"""Seconds that a watch may take when nothing ends it: those that end end by what happened."""


@asynccontextmanager
async def watching() -> AsyncIterator[tuple[Place, str, TaskScope]]:
    """A standby that knows its leader, and the leader's session."""
    async with place(lambda dcs, _: watch.hasten(dcs)) as it, TaskScope() as scope:
        session = (await it.made.consul.put("/v1/session/create", {"LockDelay": "0s", "Behavior": "delete"}))["ID"]
        await it.made.consul.put(LEADER, b"postgres-9", params={"acquire": session})
        # The first pause after a new session is none.
        assert await it.run(lambda: it.dcs.watch(None, 0.01)) is True
        await it.run(it.dcs.get_cluster)
        it.asked.clear()
        yield it, session, scope


async def _watch(it: Place, scope: TaskScope, seconds: float = QUICKLY) -> asyncio.Task[tuple[bool, Any]]:
    """Begins to watch, and loads the cluster after it; returns once the question is asked."""

    def work() -> tuple[bool, Any]:
        changed = it.dcs.watch(1, seconds)
        return changed, it.dcs.get_cluster()

    async def asked() -> bool:
        return bool(it.asked)

    task = scope.start("watch", it.run(work))
    await it.made.until(asked, "the question is asked")
    return task


async def test_the_answer_that_wakes_is_the_next_cluster() -> None:
    """The key's end wakes at once, and nothing is asked for what there is then."""
    async with watching() as (it, session, scope):
        future = await _watch(it, scope)
        await it.write("members/postgres-1", '{"state":"running"}')
        await it.made.consul.put(f"/v1/session/destroy/{session}")
        changed, cluster = await asyncio.wait_for(future, QUICKLY)
        assert changed
        assert cluster.leader is None
        assert sorted(member.name for member in cluster.members) == ["postgres-0", "postgres-1"]
        assert set(it.asked) == {f"GET kv/{NAMESPACE}/{CLUSTER}/"}
        asked = len(it.asked)
        await it.run(it.dcs.get_cluster)
        assert len(it.asked) == asked + 1, "an answer is used once"


async def test_other_keys_and_what_the_leader_says_do_not_wake() -> None:
    """The pause lasts, and its last answer is the next cluster: with all that happened meanwhile."""
    async with watching() as (it, _, scope):
        began = time.monotonic()
        future = await _watch(it, scope, 1.5)
        await it.write("status", '{"optime":7}')
        flags = str(leader_key.flags(serves=True))
        await it.made.consul.put(LEADER, b"postgres-9", params={"flags": flags})
        changed, cluster = await future
        assert not changed
        assert time.monotonic() - began >= 1.5
        assert cluster.status.last_lsn == 7
        assert cluster.leader.name == "postgres-9"
        assert set(it.asked) == {f"GET kv/{NAMESPACE}/{CLUSTER}/"}


async def test_a_short_pause_is_watched_for_a_second() -> None:
    """Patroni would sleep. A member that knows no leader, or leads, pauses as it would."""
    async with watching() as (it, _, scope):
        began = time.monotonic()
        assert (await (await _watch(it, scope, 0.1)))[0] is False
        assert time.monotonic() - began >= watch.SECONDS
        asked = len(it.asked)
        assert await it.run(lambda: it.dcs.watch(None, 0.01)) is False
        assert len(it.asked) == asked


async def test_another_threads_load_is_no_answer_to_who_watches() -> None:
    """REST asks for the cluster as well: what it was told must not be taken for seen."""
    async with watching() as (it, session, scope):
        await it.made.consul.put(f"/v1/session/destroy/{session}")
        await asyncio.to_thread(it.dcs.get_cluster)
        it.asked.clear()
        changed, _ = await asyncio.wait_for(await _watch(it, scope), QUICKLY)
        assert changed


async def test_without_consul_patroni_watches_as_ever() -> None:
    """It tries until the pause is over; then the cluster cannot be loaded, and that is said."""
    async with watching() as (it, _, _):
        it.made.members[0].stop_agent()
        assert await it.run(lambda: it.dcs.watch(7, 1.2)) is False
        error = importlib.import_module("patroni.exceptions").DCSError
        with pytest.raises(error):
            await it.run(it.dcs.get_cluster)
        assert await it.run(lambda: it.dcs.watch(None, 0.01)) is False


def test_patroni_has_what_is_changed() -> None:
    """Each thing that is relied on, in Patroni's own source."""
    importlib.import_module("patroni.postgresql")
    module = importlib.import_module("patroni.dcs.consul")
    source = inspect.getsource(module.Consul.watch)
    assert "self._last_session_refresh = 0\n        if self.__do_not_watch" in source
    assert "while timeout >= 1:" in source
    assert "timeout = float(params['wait'][:-1])" in inspect.getsource(module.HTTPClient)
    loader = inspect.getsource(module.Consul._postgresql_cluster_loader)
    assert "self.retry(self._client.kv.get, path, recurse=True, consistency=self._consistency)" in loader
    assert "(node['Value'] or b'').decode('utf-8')" in loader
    ha = importlib.import_module("patroni.ha").Ha
    assert "self.cluster.leader.version if self.cluster.leader else None" in inspect.getsource(ha.watch)
