"""Containers of the lab, with real namespaces."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.container import ContainerSpec, Mount
from tests.support import ROOT, need_root_or_userns, popen, process_runs

ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


def write_spec(folder: Path, *argv: str, mounts: tuple[Mount, ...] = (), env: dict[str, str] | None = None) -> Path:
    """A spec file for `argv` below `folder`."""
    (folder / "root").mkdir(exist_ok=True)
    spec = ContainerSpec(
        name="t",
        hostname="t-0",
        netns="",
        argv=argv,
        env={"PATH": "/usr/bin:/bin", **(env or {})},
        mounts=mounts,
        keep=(str(folder),),
        root=str(folder / "root"),
    )
    path = folder / "spec.json"
    path.write_text(spec.to_json(), encoding="utf-8")
    return path


def launch(path: Path) -> subprocess.Popen[str]:
    """The launcher, running."""
    return popen(
        [sys.executable, "-S", "-m", "lab.container", "run", str(path)],
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_spec_survives_json() -> None:
    """A spec that went through JSON is the same spec."""
    spec = ContainerSpec(
        name="a",
        hostname="h",
        netns="/run/netns/x",
        argv=("a", "b"),
        env={"K": "v"},
        mounts=(Mount(source="/a", target="/b"),),
        keep=("/tmp/x",),
        root="/r",
    )
    assert ContainerSpec.from_json(spec.to_json()) == spec


def test_container_has_its_own_view_and_passes_its_exit_code_on(tmp_path: Path) -> None:
    """The first process is PID 1 with its own host name, mounts and /run, and its exit code is the launcher's."""
    need_root_or_userns()
    names = tmp_path / "names"
    names.write_text("127.10.9.9 worker\n", encoding="ascii")
    script = "echo $$; hostname; cat /etc/hosts; ls /run; exit 7"
    done = launch(
        write_spec(tmp_path, "/bin/sh", "-c", script, mounts=(Mount(source=str(names), target="/etc/hosts"),))
    )
    out, _ = done.communicate(timeout=20)
    assert (out.split("\n"), done.returncode) == (["1", "t-0", "127.10.9.9 worker", ""], 7)


def test_read_only_mount_refuses_writes(tmp_path: Path) -> None:
    """What is mounted read-only cannot be written, even by root."""
    need_root_or_userns()
    (tmp_path / "mesh").mkdir()
    mounts = (Mount(source=str(tmp_path / "mesh"), target="/run/mesh", read_only=True),)
    done = launch(write_spec(tmp_path, "/bin/sh", "-c", "echo x > /run/mesh/x", mounts=mounts))
    _, err = done.communicate(timeout=20)
    assert done.returncode != 0
    assert "Read-only" in err


def test_missing_program_is_named(tmp_path: Path) -> None:
    """A program that does not exist ends the container with 127 and its name."""
    need_root_or_userns()
    done = launch(write_spec(tmp_path, "/no/such/program"))
    _, err = done.communicate(timeout=20)
    assert done.returncode == 127
    assert "'/no/such/program'" in err


def test_killing_the_launcher_ends_everything_inside(tmp_path: Path) -> None:
    """SIGKILL to the launcher takes the container's processes with it."""
    need_root_or_userns()
    marker = tmp_path / "pids"
    script = f"sleep 300 & echo $! > {marker}; wait"
    launcher = launch(write_spec(tmp_path, "/bin/sh", "-c", script))
    try:
        _wait(lambda: marker.exists() and marker.read_text() != "")
        inside = _children(launcher.pid)
        assert inside
    finally:
        launcher.kill()
        launcher.communicate(timeout=20)
    _wait(lambda: not any(process_runs(pid) for pid in inside))


def test_enter_joins_the_running_container(tmp_path: Path) -> None:
    """A command entered later sees the container's environment and name, and its exit code passes through."""
    need_root_or_userns()
    ready = tmp_path / "ready"
    launcher = launch(
        write_spec(tmp_path, "/bin/sh", "-c", f"echo up > {ready}; exec sleep 300", env={"COLOUR": "blue"})
    )
    try:
        _wait(ready.exists)
        pid = _children(launcher.pid)[0]
        argv = [
            sys.executable,
            "-S",
            "-m",
            "lab.container",
            "enter",
            str(pid),
            "same",
            "--",
            "/bin/sh",
            "-c",
            "echo $COLOUR; hostname; exit 5",
        ]
        done = subprocess.run(argv, env=ENV, capture_output=True, text=True, timeout=20, check=False)
        assert (done.stdout.split(), done.returncode) == (["blue", "t-0"], 5)
        missing = subprocess.run(
            [*argv[:8], "no-such-thing"], env=ENV, capture_output=True, text=True, timeout=20, check=False
        )
        assert missing.returncode == 127
    finally:
        launcher.send_signal(signal.SIGKILL)
        launcher.communicate(timeout=20)


def test_usage_error_exits_with_2() -> None:
    """A call that makes no sense says how to call it."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", "lab.container", "dance"],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 2
    assert "usage" in done.stderr


def test_bad_spec_is_refused() -> None:
    """A spec with an unknown entry is refused rather than half understood."""
    with pytest.raises(TypeError):
        ContainerSpec.from_json(json.dumps({"mounts": [], "argv": [], "keep": [], "colour": "blue"}))


def _children(pid: int) -> list[int]:
    return [int(part) for part in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


def _wait(condition: object, seconds: float = 10.0) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "condition did not come true"
        time.sleep(0.01)
