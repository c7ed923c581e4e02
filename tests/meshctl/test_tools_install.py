"""Installing tools into the cache, with a `go` that is a script and no site."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests.meshctl.test_tools_build import environ, wait_until
from tests.support import ROOT, popen

__all__ = ["environ"]


@pytest.fixture
def alone(environ: dict[str, str]) -> dict[str, str]:
    """A cache and a `go`, and no archive."""
    return {**environ, "MESH_CONSUL_RELEASES": "off"}


def test_two_processes_build_once(tmp_path: Path, alone: dict[str, str]) -> None:
    """Two builders at the same time leave one build behind."""
    code = "from meshctl import tools_install; raise SystemExit(tools_install.main())"
    running = [popen([sys.executable, "-c", code], cwd=ROOT, env=alone) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    assert (tmp_path / "calls").read_text().count("build -v") == 2  # consul and wireguard-go, once each


def test_terminated_builder_ends_the_compiler(tmp_path: Path, alone: dict[str, str]) -> None:
    """SIGTERM ends the background builder and the compiler that it runs; what Go was working on is removed."""
    go = tmp_path / "bin" / "go"
    go.write_text(
        "#!/bin/sh\n[ $1 = version ] && echo go version go1.26.6 && exit\n[ $1 = list ] && echo a && exit\n"
        f'touch "${{GOTMPDIR:?}}/half" || exit 1\necho $$ > {tmp_path}/pid\nexec sleep 600\n'
    )
    code = "from meshctl import tools_install; raise SystemExit(tools_install.main())"
    with popen([sys.executable, "-c", code], cwd=ROOT, env=alone) as builder:
        pid_file = tmp_path / "pid"
        wait_until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"))
        builder.terminate()
        assert builder.wait(10) == 128 + signal.SIGTERM
    assert not Path(f"/proc/{pid_file.read_text().strip()}").exists()
    assert [path.name for path in (tmp_path / "cache" / "tools").iterdir()] == [".lock"]
