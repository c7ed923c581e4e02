"""A member's workload port as a program: `python -m tests.workloads.patroni.port SETTINGS` (JSON).

Not a thread of the tests' process: that one is busy with routes and checks, and the database's supervisor would wait
for it. Each line of the input is the workload's token from then on; each is answered with a line.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

from runtime.secret import Secret
from runtime.tasks import TaskScope
from sidecar.workload_api import WorkloadApi
from sidecar.workload_rights import Rights
from tests.support import ROOT, popen


class Port:
    """The running program. `close()` it."""

    def __init__(self, agent: Path, own: Rights, port: int) -> None:
        """Serves what `own` has of the agent at the socket `agent` on the loopback `port`."""
        settings = {
            "agent": str(agent), "port": port, "peer_id": own.peer_id, "services": dict(own.services),
            "ports": sorted(own.ports), "prefixes": own.prefixes, "sessions": own.sessions,
        }  # fmt: skip
        self._process = popen(
            [sys.executable, "-m", "tests.workloads.patroni.port", json.dumps(settings)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def use(self, token: str) -> None:
        """Returns when the port takes this token."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{token}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "taken\n"

    def close(self) -> None:
        """Ends it. Safe to repeat."""
        self._process.kill()
        self._process.wait(20)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


async def _serve(settings: dict[str, object]) -> None:
    own = Rights(
        peer_id=str(settings["peer_id"]),
        services=settings["services"],  # type: ignore[arg-type]
        ports=frozenset(settings["ports"]),  # type: ignore[arg-type]
        prefixes=tuple(settings["prefixes"]),  # type: ignore[arg-type]
        sessions=bool(settings["sessions"]),
    )
    api = WorkloadApi(Path(str(settings["agent"])), lambda: own, int(str(settings["port"])))
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with TaskScope() as scope:
        serving = scope.start("serve", api.run())
        while line := await lines.readline():
            api.use(Secret(line.decode().strip()))
            print("taken", flush=True)
        serving.cancel()


if __name__ == "__main__":
    asyncio.run(_serve(json.loads(sys.argv[1])))
