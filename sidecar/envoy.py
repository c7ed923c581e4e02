"""The local Envoy as a child: its files, its health, its connections. What it does is told by `xds`."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterable
from pathlib import Path

from runtime.children import ChildSpec
from runtime.consul import write_private
from xds.bootstrap import argv, bootstrap

ADMIN_SECONDS = 1.0
DRAIN_POLL_SECONDS = 0.05
NEWS_SECONDS = 1.0
"""Without a new caller, until a CVM that stops closes its listeners: by then the others know that its services are
gone. That news takes some 20 ms; 0.4 s were seen on two processors with six times as much to do."""
HANG_SECONDS = 6.0
"""A live Envoy answers its admin socket within milliseconds; its main thread does nothing that takes seconds."""
ROOTS_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
"""Where distributions put the certificates of public authorities: Debian and Arch, Fedora, openSUSE, Alpine (Go looks
there too: crypto/x509, root_linux.go). In the sidecar's image, which is measured."""
STOP_SECONDS = 1.0
"""Connections were waited for before; Envoy itself then has nothing left to finish."""


class Envoy:
    """Paths of one Envoy in `state_dir`, and questions to its admin socket."""

    def __init__(self, program: Path, state_dir: Path, node_id: str, cluster: str) -> None:
        self._program = program
        self._node_id = node_id
        self._cluster = cluster
        self._bootstrap = state_dir / "envoy.yaml"
        self._admin = state_dir / "envoy-admin.sock"
        self.xds_socket = state_dir / "xds.sock"

    def spec(self) -> ChildSpec:
        """Writes the bootstrap and says how to run it. JSON is YAML, which the file's name promises."""
        write_private(
            self._bootstrap,
            bootstrap(
                node_id=self._node_id,
                cluster=self._cluster,
                xds_socket=str(self.xds_socket),
                admin_socket=str(self._admin),
            ),
        )
        return ChildSpec(
            name="envoy",
            argv=argv(str(self._program), str(self._bootstrap)),
            env={},
            log=None,
            healthy=self.healthy,
            hang_seconds=HANG_SECONDS,
            stop_seconds=STOP_SECONDS,
        )

    async def healthy(self) -> bool:
        """Whether the admin socket answers. "Not initialised" is an answer too."""
        return bool(await self._admin_get("/ready"))

    async def drain(self, seconds: float) -> int:
        """Waits until other CVMs connect no more, stops accepting, waits until no connection is open; `seconds` at most
        for all of it. Connections that were left.
        """
        now = asyncio.get_running_loop().time()
        end = now + seconds
        with contextlib.suppress(OSError, TimeoutError):
            # Half of it at most: who connects again and again leaves the other half to what is open.
            async with asyncio.timeout_at(now + seconds / 2):
                await self._until_unused()
        with contextlib.suppress(OSError, TimeoutError):
            await self._admin_get("/drain_listeners", method="POST")
        left = 0
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout_at(end):
                while (left := await self._connections()) > 0:  # noqa: ASYNC110 - Envoy does not tell by itself
                    await asyncio.sleep(DRAIN_POLL_SECONDS)
        return left

    async def _until_unused(self) -> None:
        """Returns when nobody has called for NEWS_SECONDS; at once where there is nothing to call."""
        loop = asyncio.get_running_loop()
        calls, since = await self._calls(), loop.time()
        while calls is not None and loop.time() - since < NEWS_SECONDS:
            await asyncio.sleep(DRAIN_POLL_SECONDS)
            before, calls = calls, await self._calls()
            if calls != before:
                since = loop.time()

    async def _calls(self) -> int | None:
        """Connections of other CVMs so far; None where no backend can be called."""
        text = (await self._admin_get("/stats?filter=^cluster.local/.*upstream_cx_total$")).decode(errors="replace")
        return count_connections(text) if "upstream_cx_total" in text else None

    async def _connections(self) -> int:
        """Open connections of local programs and of other CVMs."""
        # By what is behind them: a listener also counts those that wait for an endpoint.
        text = await self._admin_get("/stats?filter=^cluster.(egress|outside|local)/.*upstream_cx_active$")
        return count_connections(text.decode(errors="replace"))

    async def _admin_get(self, path: str, method: str = "GET") -> bytes:
        async with asyncio.timeout(ADMIN_SECONDS):
            reader, writer = await asyncio.open_unix_connection(self._admin)
            try:
                head = (f"{method} {path} HTTP/1.1", "Host: envoy", "Connection: close", "Content-Length: 0", "", "")
                writer.write("\r\n".join(head).encode())
                return await reader.read(-1)
            finally:
                writer.close()


def machines_roots(files: Iterable[str] = ROOTS_FILES) -> str | None:
    """The first of `files` that is there; None where none is. No variable is asked: the environment is the host's."""
    return next((file for file in files if Path(file).is_file()), None)


def count_connections(stats: str) -> int:
    """The sum of the gauges in Envoy's statistics text, its admin interface left out."""
    lines = re.findall(r"^([\w.:\-/]+): (\d+)$", stats, re.MULTILINE)
    return sum(int(number) for name, number in lines if not name.startswith("http.admin."))
