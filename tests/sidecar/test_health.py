from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from runtime.status import StatusServer
from sidecar import health
from tests.support import ROOT


async def test_ready_is_0_and_anything_else_1_with_reasons(tmp_path: Path) -> None:
    """The exit code follows `ready`; the reasons are printed."""
    document = {"ready": False, "reasons": ["link: no tunnel"]}
    server = StatusServer(tmp_path / "status.sock", lambda: document)
    await server.start()
    assert await asyncio.to_thread(health.ask, tmp_path / "status.sock") == (1, "link: no tunnel")
    document["ready"] = True
    assert await asyncio.to_thread(health.ask, tmp_path / "status.sock") == (0, "ready")
    await server.stop()


def test_no_sidecar_is_1() -> None:
    """Where nothing listens, the command says so."""
    code, text = health.ask(Path("/does/not/exist/status.sock"))
    assert code == 1
    assert "does not answer" in text


def test_command_is_light(tmp_path: Path) -> None:
    """A health check runs every few seconds on every CVM: it loads neither asyncio nor anything of ours but itself."""
    code = (
        "import sys; from sidecar.__main__ import main; code = main(['health'])\n"
        "print(*sorted({'asyncio', 'ssl', 'sidecar.config', 'runtime', 'json'} & set(sys.modules))); sys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"MESH_STATE_DIR": str(tmp_path), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stdout.split() == []
