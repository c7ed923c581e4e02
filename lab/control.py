"""The lab's control API: HTTP on a unix socket that only its owner can open.

`GET /status`, with `?holders=yes` also which process has each backend's port; `GET /names`: machine → what it is called
(`lab.names`); `GET /deployment`: what CVMs measure (`lab.deployment`); `POST /machines/<peer_id>/{start,stop,kill,
heal,redeploy}`, `…/{wipe,fill,free}` (of its disk), `…/cut?direction={in,out,both}`,
`…/signal?process=<name>&number=<signal>`; `POST /end`. A machine's own name will do for `<peer_id>`, too. What is done
to a CVM is answered with `state` and `before`, its state now and before that, and `at`: the moment (of CLOCK_MONOTONIC,
one clock for all namespaces) just before it was done.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import aiohttp
from aiohttp import web

from lab.holders import holders
from lab.machine import Machine
from lab.nat import Direction
from topology.model import COORDINATOR

if TYPE_CHECKING:
    from lab.host import Host

ACTIONS = "start|stop|kill|cut|heal|signal|wipe|fill|free|redeploy"
"""What can be done to a CVM, as the router's pattern."""
_STATUS_SECONDS = 2.0
"""A sidecar that does not answer within this is shown as not answering."""


class ControlServer:
    """Serves the API for one Host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        application = web.Application()
        application.router.add_get("/status", self._status)
        application.router.add_get("/names", self._names)
        application.router.add_get("/deployment", self._deployment)
        application.router.add_post(f"/machines/{{peer_id}}/{{action:{ACTIONS}}}", self._act)
        application.router.add_post("/end", self._end)
        self._runner = web.AppRunner(application, access_log=None)

    async def start(self, path: Path) -> None:
        """Serves on a unix socket at `path`, whose folder only the owner can enter."""
        await self._runner.setup()
        await web.UnixSite(self._runner, str(path)).start()

    async def stop(self) -> None:
        """Stops serving."""
        await self._runner.cleanup()

    async def _status(self, request: web.Request) -> web.Response:
        names = self._host.called()
        documents = await asyncio.gather(*(self._document(self._host.machines[own], names[own]) for own in names))
        if request.query.get("holders") == "yes":
            # From a thread: it looks through the open files of every container's processes.
            await asyncio.to_thread(_name_holders, documents)
        return web.json_response(
            {
                "name": self._host.request.name,
                "cluster": self._host.request.cluster,
                "public": [
                    {"group": item.group, "port": item.port}
                    for item in self._host.request.listeners
                    if item.group != COORDINATOR
                ],
                "machines": documents,
            }
        )

    async def _names(self, _request: web.Request) -> web.Response:
        return web.json_response(self._host.called())

    async def _deployment(self, _request: web.Request) -> web.Response:
        try:
            return web.json_response(self._host.deployment())
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=503)

    async def _document(self, machine: Machine, peer_id: str) -> dict[str, Any]:
        return {
            "peer_id": peer_id,
            "machine": machine.plan.name,
            "group": machine.plan.group,
            "kind": machine.plan.kind,
            "state": machine.state,
            "cut": self._host.cut_of(machine.plan.name) if machine.state == "running" else None,
            "containers": [
                {
                    "name": container.name,
                    "pid": container.first_pid(),
                    "restarts": container.restarts,
                    "exit_code": container.exit_code,
                    "state": container.state,
                    "uptime_s": container.uptime(),
                    "is_sidecar": service.is_sidecar,
                }
                for service in machine.plan.services
                for container in [machine.containers.get(service.name)]
                if container is not None
            ],
            "sidecar": await ask(machine.status_socket) if machine.state == "running" else None,
        }

    async def _act(self, request: web.Request) -> web.Response:
        peer_id, action = request.match_info["peer_id"], request.match_info["action"]
        names = self._host.called()
        found = {called: own for own, called in names.items()}
        name = found.get(peer_id, peer_id)
        if name not in names:
            known = ", ".join(sorted(found))
            return web.json_response({"error": f"there is no CVM {peer_id!r}; this mesh has {known}"}, status=404)
        before, at = self._host.machines[name].state, time.monotonic()
        try:
            more = await self._do(name, action, request.query)
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        document = {"peer_id": peer_id, "state": self._host.machines[name].state, "before": before, "at": at}
        return web.json_response(document | more)

    async def _do(self, name: str, action: str, query: Mapping[str, str]) -> dict[str, Any]:
        """Does it; what else there is to say. ValueError for what cannot be."""
        if action == "signal":
            return self._signal(name, query)
        if action in ("cut", "heal"):
            await self._host.cut(name, _direction(query) if action == "cut" else None)
            return {"cut": self._host.cut_of(name)}
        if action in ("wipe", "fill", "free"):
            changes: dict[str, Literal["wipe", "fill", "free"]] = {"wipe": "wipe", "fill": "fill", "free": "free"}
            await self._host.change_disk(name, changes[action])
            return {}
        if action == "redeploy":
            return {"compose_hash": await self._host.redeploy(name)}
        act = {"start": self._host.boot, "stop": self._host.stop, "kill": self._host.kill}[action]
        await act(name)
        return {}

    def _signal(self, name: str, query: Mapping[str, str]) -> dict[str, Any]:
        process, number = query.get("process", ""), query.get("number", str(int(signal.SIGKILL)))
        if not number.isdigit() or int(number) not in set(signal.Signals):
            raise ValueError(f"there is no signal {number!r}")
        machine = self._host.machines[name]
        pids, at = machine.signal(process, int(number)) if process else ([], 0.0)
        if not pids:
            names = machine.processes()
            running = ", ".join(names) or f"nothing: the CVM is {machine.state}"
            close = difflib.get_close_matches(process, names, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"no process {process!r} runs in {self._host.called()[name]}; there is {running}{hint}")
        return {"pids": pids, "at": at}

    async def _end(self, _request: web.Request) -> web.Response:
        self._host.ending.set()
        return web.json_response({})


def _name_holders(documents: list[dict[str, Any]]) -> None:
    """Adds `container` and `process` to each listener of each backend, where one of the CVM's processes has it."""
    for document in documents:
        listeners = [
            listener for backend in (document["sidecar"] or {}).get("backends", ()) for listener in backend["listeners"]
        ]
        first = {item["name"]: item["pid"] for item in document["containers"] if item["pid"] is not None}
        found = holders(first, {listener["inode"] for listener in listeners})
        for listener in listeners:
            listener["container"], listener["process"] = found.get(listener["inode"], (None, None))


def _direction(query: Mapping[str, str]) -> Direction:
    directions: dict[str, Direction] = {"in": "in", "out": "out", "both": "both"}
    asked = query.get("direction", "both")
    if asked not in directions:
        raise ValueError(f"direction {asked!r} is none of in, out, both")
    return directions[asked]


async def ask(status_socket: Path) -> dict[str, Any] | None:
    """The status document that a sidecar or coordinator serves at `status_socket`; None when it does not answer."""
    if not status_socket.exists():
        return None
    timeout = aiohttp.ClientTimeout(total=_STATUS_SECONDS)
    with contextlib.suppress(OSError, aiohttp.ClientError, TimeoutError, ValueError):
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(status_socket)), timeout=timeout) as session,
            session.get("http://sidecar/status") as answer,
        ):
            document: dict[str, Any] = await answer.json()
            return document
    return None
