"""The lab's control API: HTTP on a unix socket that only its owner can open.

`GET /status`, `POST /machines/<peer_id>/{start,stop,kill}`, `POST /end`.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web

from lab.machine import Machine

if TYPE_CHECKING:
    from lab.host import Host

_STATUS_SECONDS = 2.0
"""A sidecar that does not answer within this is shown as not answering."""


class ControlServer:
    """Serves the API for one Host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        application = web.Application()
        application.router.add_get("/status", self._status)
        application.router.add_post("/machines/{peer_id}/{action:start|stop|kill}", self._act)
        application.router.add_post("/end", self._end)
        self._runner = web.AppRunner(application, access_log=None)

    async def start(self, path: Path) -> None:
        """Serves on a unix socket at `path`, whose folder only the owner can enter."""
        await self._runner.setup()
        await web.UnixSite(self._runner, str(path)).start()

    async def stop(self) -> None:
        """Stops serving."""
        await self._runner.cleanup()

    async def _status(self, _request: web.Request) -> web.Response:
        machines = list(self._host.machines.values())
        documents = await asyncio.gather(*(self._document(machine) for machine in machines))
        return web.json_response(
            {
                "name": self._host.request.name,
                "cluster": self._host.request.cluster,
                "public": [{"group": item.group, "port": item.port} for item in self._host.request.listeners],
                "machines": documents,
            }
        )

    async def _document(self, machine: Machine) -> dict[str, Any]:
        return {
            "peer_id": machine.plan.peer_id,
            "group": machine.plan.group,
            "kind": machine.plan.kind,
            "state": machine.state,
            "containers": [
                {
                    "name": container.name,
                    "pid": container.first_pid(),
                    "restarts": container.restarts,
                    "exit_code": container.exit_code,
                    "state": container.state,
                    "is_sidecar": service.is_sidecar,
                }
                for service in machine.plan.services
                for container in [machine.containers.get(service.name)]
                if container is not None
            ],
            "sidecar": await self._sidecar(machine),
        }

    async def _sidecar(self, machine: Machine) -> dict[str, Any] | None:
        path = machine.status_socket
        if machine.state != "running" or not path.exists():
            return None
        timeout = aiohttp.ClientTimeout(total=_STATUS_SECONDS)
        with contextlib.suppress(OSError, aiohttp.ClientError, TimeoutError, ValueError):
            async with (
                aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path)), timeout=timeout) as session,
                session.get("http://sidecar/status") as answer,
            ):
                document: dict[str, Any] = await answer.json()
                return document
        return None

    async def _act(self, request: web.Request) -> web.Response:
        peer_id, action = request.match_info["peer_id"], request.match_info["action"]
        if peer_id not in self._host.machines:
            known = ", ".join(sorted(self._host.machines))
            return web.json_response({"error": f"there is no CVM {peer_id!r}; this mesh has {known}"}, status=404)
        act = {"start": self._host.boot, "stop": self._host.stop, "kill": self._host.kill}[action]
        await act(peer_id)
        return web.json_response({"peer_id": peer_id, "state": self._host.machines[peer_id].state})

    async def _end(self, _request: web.Request) -> web.Response:
        self._host.ending.set()
        return web.json_response({})
