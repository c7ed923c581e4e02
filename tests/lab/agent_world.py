"""A running simulated agent, and plain HTTP to it: what the agent's tests share."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from lab.agent import GuestAgentServer
from lab.tee import CvmIdentity, DevTee, make_cvm

NOW = 1_800_000_000.0
TEE = DevTee(b"agent tests")


def boot(os_version: str) -> CvmIdentity:
    """The CVM whose agent is asked."""
    return make_cvm(TEE, app_compose='{"name":"api"}', app_id="ab" * 20, instance_seed=b"1", os_version=os_version)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One HTTP answer."""

    status: int
    headers: list[tuple[str, str]]
    """As they came over the wire."""
    body: bytes

    @property
    def error(self) -> str:
        """The text of a JSON error, which must be printed as the real agent prints it."""
        text = json.loads(self.body)["error"]
        assert self.body.decode() == json.dumps({"error": text}, indent=2, ensure_ascii=False)
        assert isinstance(text, str)
        return text


@dataclass(frozen=True, kw_only=True)
class Agent:
    """Where the agent listens."""

    path: Path
    cvm: CvmIdentity

    async def send(
        self, method: str, target: str, body: bytes | None = None, content_type: str | None = "application/json"
    ) -> Answer:
        """One request over a connection of its own."""
        connector = aiohttp.UnixConnector(str(self.path))
        headers = {"Content-Type": content_type} if content_type and method == "POST" else {}
        skipped = [] if content_type else ["Content-Type"]
        async with (
            aiohttp.ClientSession(connector=connector, skip_auto_headers=skipped) as session,
            session.request(
                method, f"http://agent{target}", data=None if body is None else io.BytesIO(body), headers=headers
            ) as response,
        ):
            sent = [(name.decode(), value.decode()) for name, value in response.raw_headers]
            return Answer(status=response.status, headers=sent, body=await response.read())

    async def post(self, target: str, tree: Any) -> Answer:
        """A JSON request."""
        return await self.send("POST", target, json.dumps(tree, separators=(",", ":")).encode())

    async def ask(self, target: str, tree: Any) -> dict[str, Any]:
        """A JSON request that must succeed."""
        answer = await self.post(target, tree)
        assert answer.status == 200, answer.body
        found = json.loads(answer.body)
        assert isinstance(found, dict)
        return found


@asynccontextmanager
async def running(folder: Path, os_version: str) -> AsyncIterator[Agent]:
    """An agent of a CVM with that OS."""
    cvm = boot(os_version)
    server = GuestAgentServer(TEE, cvm, clock=lambda: NOW)
    path = folder / "dstack.sock"
    await server.start(path)
    try:
        yield Agent(path=path, cvm=cvm)
    finally:
        await server.stop()
