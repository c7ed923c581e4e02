"""A member's client of Consul, `MeshConsul`, against a real Consul."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.workloads.patroni.world import CLUSTER, Member, World, agents
from workloads.patroni.config import NAMESPACE

T = TypeVar("T")


@dataclass
class Place:
    """A member's client, and what is around it."""

    dcs: Any
    made: World
    member: Member
    data: Path
    """PostgreSQL's data directory."""
    says: dict[str, Any]
    """What the REST API of each member says; the others are silent."""
    thread: ThreadPoolExecutor
    """Patroni's main thread."""

    async def run(self, work: Callable[[], T]) -> T:
        """Has it done by Patroni's main thread."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, work)

    async def entry(self, name: str) -> Any:
        """A key of the cluster as Consul has it; None without one."""
        _, found = await self.made.consul.get(f"/v1/kv/{NAMESPACE}/{CLUSTER}/{name}")
        return found[0] if found else None

    async def value(self, name: str) -> str | None:
        """The text of a key."""
        found = await self.entry(name)
        return base64.b64decode(found["Value"]).decode() if found else None

    async def write(self, name: str, value: str, **params: str) -> bool:
        """Writes a key of the cluster with the management token."""
        return bool(await self.made.consul.put(f"/v1/kv/{NAMESPACE}/{CLUSTER}/{name}", value.encode(), params=params))

    async def acquire(self, name: str, value: str, session: str) -> None:
        """Has `session` take a key, once the lock delay (1 ms) of the session before has passed."""
        await self.made.until(lambda: self.write(name, value, acquire=session), f"{session} holds {name}")

    async def lead(self) -> Any:
        """Takes the leader key; the leader as Patroni has it then."""
        assert await self.run(self.dcs.attempt_to_acquire_leader) is True
        return (await self.run(self.dcs.get_cluster)).leader


@contextlib.asynccontextmanager
async def place(guard: Any = None) -> AsyncIterator[Place]:
    """The client of `postgres-0`, with the token of a workload and no more."""
    modules = {name: importlib.import_module(name) for name in ("patroni.postgresql.mpp", "workloads.patroni.dcs")}
    ours = modules["workloads.patroni.dcs"]
    async with agents(1) as made:
        thread = ThreadPoolExecutor(1)
        member = made.members[0]
        data, says = made.folder / "data", dict[str, Any]()
        (data / "global").mkdir(parents=True)
        config = {
            "name": "postgres-0", "scope": CLUSTER, "namespace": f"/{NAMESPACE}/", "ttl": 20, "loop_wait": 2,
            "retry_timeout": 5, "host": "127.0.0.1", "port": member.http, "token": member.token,
            "register_service": False, "checks": [], "consistency": "consistent",
        }  # fmt: skip

        def make() -> Any:
            return ours.MeshConsul(
                config, modules["patroni.postgresql.mpp"].get_mpp({}), data=data,
                ask=lambda it: says[it.name], guard=guard or ours.OpenGuard(),
            )  # fmt: skip

        dcs = await asyncio.get_running_loop().run_in_executor(thread, make)
        try:
            yield Place(dcs, made, member, data, says, thread)
        finally:
            thread.shutdown(wait=False, cancel_futures=True)
