from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from runtime.consul import ConsulError
from runtime.tasks import TaskScope
from sidecar.registrar import Registrar, listens
from tests.sidecar.world import backend
from tests.support import eventually


class FakeAgent:
    """Keeps what is registered; refuses as often as told."""

    def __init__(self) -> None:
        self.services: dict[str, dict[str, Any]] = {}
        self.registrations = 0
        self.refuse = 0

    async def put(self, path: str, body: Any = None, *, params: Any = None) -> None:
        if self.refuse:
            self.refuse -= 1
            raise ConsulError(403, "ACL not found")
        action, _, name = path.removeprefix("/v1/agent/service/").partition("/")
        if action == "register":
            assert params == {"replace-existing-checks": "true"}
            self.services[body["ID"]] = body
            self.registrations += 1
        else:
            self.services.pop(name, None)

    async def get(self, path: str) -> tuple[int, Any]:
        name = path.removeprefix("/v1/agent/service/")
        if name not in self.services:
            raise ConsulError(404, "unknown service")
        return 1, self.services[name]

    def status(self, name: str) -> str | None:
        body = self.services.get(name)
        return body["Checks"][0]["Status"] if body else None


@contextlib.asynccontextmanager
async def running(registrar: Registrar) -> AsyncIterator[None]:
    async with TaskScope() as scope:
        task = scope.start("registrar", registrar.run())
        try:
            yield
        finally:
            task.cancel()


@contextlib.asynccontextmanager
async def server(port: int = 0) -> AsyncIterator[int]:
    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    it = await asyncio.start_server(close, "127.0.0.1", port)
    try:
        yield it.sockets[0].getsockname()[1]
    finally:
        it.close()
        await it.wait_closed()


async def test_backend_passes_the_moment_it_listens_and_envoy_serves() -> None:
    """Critical first, so that the app's wait for us is no deadlock; passing only when both sides are there."""
    async with server() as port:
        pass
    agent, serving = FakeAgent(), asyncio.Event()
    registrar = Registrar(agent, (backend("api", port=port),), "api-0", "100.96.0.10", serving)  # type: ignore[arg-type]
    async with running(registrar):
        await eventually(lambda: registrar.complete, "registered")
        assert agent.status("api-api-0") == "critical"
        async with server(port):
            assert await listens(port)
            assert agent.status("api-api-0") == "critical"
            serving.set()
            await eventually(lambda: agent.status("api-api-0") == "passing", "passing")


async def test_restarted_agent_is_told_everything_again_under_a_new_check() -> None:
    """A check that the agent knows keeps its status there; ours is a new one, passing at once."""
    agent, serving = FakeAgent(), asyncio.Event()
    async with server() as port:
        registrar = Registrar(agent, (backend("api", port=port),), "api-0", "100.96.0.10", serving)  # type: ignore[arg-type]
        serving.set()
        async with running(registrar):
            await eventually(lambda: agent.status("api-api-0") == "passing", "passing")
            first = agent.services.pop("api-api-0")
            registrar.restarted()
            assert not registrar.complete
            await eventually(lambda: agent.status("api-api-0") == "passing", "passing again")
            again = agent.services["api-api-0"]
            assert again["Checks"][0]["CheckID"] != first["Checks"][0]["CheckID"]
            assert agent.registrations == 2


async def test_refusals_are_retried() -> None:
    """A token that the servers have not seen yet is refused for a moment."""
    agent, serving = FakeAgent(), asyncio.Event()
    agent.refuse = 2
    registrar = Registrar(agent, (backend("api"),), "api-0", "100.96.0.10", serving)  # type: ignore[arg-type]
    async with running(registrar):
        await eventually(lambda: registrar.complete, "registered")


async def test_stub_never_replaces_what_the_workload_wrote() -> None:
    """The stub is written once; after the workload's update, a restarted agent that still has it is left alone."""
    agent, serving = FakeAgent(), asyncio.Event()
    registrar = Registrar(agent, (backend("pg", owner="workload"),), "pg-0", "100.96.0.10", serving)  # type: ignore[arg-type]
    async with running(registrar):
        await eventually(lambda: registrar.complete, "stub")
        assert agent.status("pg-pg-0") == "critical"
        agent.services["pg-pg-0"] = {"ID": "pg-pg-0", "Tags": ["master"], "Meta": {}}
        registrar.restarted()
        await eventually(lambda: registrar.complete, "seen again")
        assert agent.services["pg-pg-0"]["Tags"] == ["master"]
        assert agent.registrations == 1


async def test_clean_stop_takes_the_services_away() -> None:
    """deregister() removes every backend, and does not mind an agent that is gone."""
    agent, serving = FakeAgent(), asyncio.Event()
    backends = (backend("api"), backend("pg", owner="workload"))
    registrar = Registrar(agent, backends, "api-0", "100.96.0.10", serving)  # type: ignore[arg-type]
    async with running(registrar):
        await eventually(lambda: registrar.complete, "registered")
    await registrar.deregister()
    assert agent.services == {}
    agent.refuse = 2
    await registrar.deregister()


async def test_a_newer_manifest_moves_the_registration_without_a_restart() -> None:
    """Another port is looked at, another service takes the place of the one that went; other callers change nothing."""
    agent, serving = FakeAgent(), asyncio.Event()
    serving.set()
    async with server() as port, server() as other:
        registrar = Registrar(agent, (backend("api", port=port),), "api-0", "100.96.0.10", serving)  # type: ignore[arg-type]
        async with running(registrar):
            await eventually(lambda: agent.status("api-api-0") == "passing", "passing")
            registrar.use((backend("api", port=port, callers=()),))
            registrar.use((backend("web", port=other), backend("late", port=1)))
            assert not registrar.complete
            await eventually(lambda: registrar.complete, "registered")
            assert {name: agent.status(name) for name in agent.services} == {
                "web-api-0": "passing", "late-api-0": "critical",
            }  # fmt: skip
            assert agent.registrations == 3
            await registrar.deregister()
            assert agent.services == {}
