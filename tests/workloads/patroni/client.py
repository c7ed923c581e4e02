"""Patroni's own client of Consul, as a member has it, against a real Consul."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeVar

from tests.workloads.patroni.world import CLUSTER, World, agents
from workloads.patroni.config import NAMESPACE

T = TypeVar("T")
STANDBY = '{"leader":"postgres-9","quorum":0,"sync_standby":"postgres-0"}'


@dataclass
class Place:
    """A member's client of Consul, changed, and what it asks."""

    dcs: Any
    ha: Any
    made: World
    thread: ThreadPoolExecutor
    """Patroni's main thread."""
    asked: list[str] = field(default_factory=list)

    async def run(self, work: Callable[[], T]) -> T:
        """Has it done by Patroni's main thread."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, work)

    def note(self) -> None:
        """From now on each request is noted."""
        http = self.dcs._client.http.http
        request = http.request

        def noting(method: str, url: str, **kwargs: Any) -> Any:
            self.asked.append(f"{method} {url.partition('/v1/')[2].partition('?')[0]}")
            return request(method, url, **kwargs)

        http.request = noting

    async def key(self, name: str) -> Any:
        """A key of the cluster: value and session."""
        _, found = await self.made.consul.get(f"/v1/kv/{NAMESPACE}/{CLUSTER}/{name}")
        return found and (base64.b64decode(found[0]["Value"]).decode(), found[0].get("Session"))

    async def write(self, name: str, value: str) -> None:
        """Writes a key of the cluster."""
        await self.made.consul.put(f"/v1/kv/{NAMESPACE}/{CLUSTER}/{name}", value.encode())


@contextlib.asynccontextmanager
async def place(change: Callable[[Any, Any], None], *, synchronous: bool = True) -> AsyncIterator[Place]:
    """A standby of a cluster that has lost its leader, whose `dcs` and `ha` were changed."""
    importlib.import_module("patroni.postgresql")
    consul = importlib.import_module("patroni.dcs.consul")
    mpp = importlib.import_module("patroni.postgresql.mpp")
    async with agents(1) as made:
        thread = ThreadPoolExecutor(1)
        member = made.members[0]
        config = {
            "name": "postgres-0", "scope": CLUSTER, "namespace": f"/{NAMESPACE}/", "ttl": 20, "loop_wait": 2,
            "retry_timeout": 5, "host": "127.0.0.1", "port": member.http, "token": member.token,
            "register_service": False,
        }  # fmt: skip
        dcs = consul.Consul(config, mpp.get_mpp({}))
        ha = SimpleNamespace(
            state_handler=SimpleNamespace(role="replica"),
            is_paused=lambda: False, is_standby_cluster=lambda: False,
            sync_mode_is_active=lambda: synchronous, is_quorum_commit_mode=lambda: False,
        )  # fmt: skip
        it = Place(dcs, ha, made, thread)
        await it.write("sync", STANDBY)
        await it.write("members/postgres-0", '{"state":"running"}')

        def prepare() -> None:
            change(dcs, ha)
            ha.cluster = dcs.get_cluster()
            dcs.refresh_session()

        await it.run(prepare)
        it.note()
        try:
            yield it
        finally:
            thread.shutdown(wait=False, cancel_futures=True)
