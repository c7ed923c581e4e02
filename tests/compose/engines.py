"""The Docker engine of these tests: the one that is there, else a private one for as long as they run."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from meshctl import engine
from meshctl.errors import UserError
from tests.support import popen

START_SECONDS = 90.0
STOP_SECONDS = 60.0


@contextmanager
def any_engine() -> Iterator[engine.Engine]:
    """An engine that answers; skips with the reason where there can be none."""
    try:
        found = engine.find()
    except UserError as error:
        missing = _cannot_start()
        if missing:
            pytest.skip(f"{error.message}; a private engine cannot be started: {missing}")
    else:
        yield found
        return
    with _private() as own:
        yield own


def _cannot_start() -> str | None:
    """Why this process cannot start an engine of its own; None when it can try."""
    if shutil.which("docker") is None:
        return "no docker command on PATH"
    if _dockerd() is None:
        return "no dockerd (Debian, Ubuntu: apt-get install docker.io)"
    if os.geteuid() != 0 or _in_user_namespace():
        return "that needs root of the machine"
    return None


def _dockerd() -> str | None:
    return shutil.which("dockerd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _in_user_namespace() -> bool:
    return Path("/proc/self/uid_map").read_text(encoding="ascii").split() != ["0", "0", "4294967295"]


@contextmanager
def _private() -> Iterator[engine.Engine]:
    program = _dockerd()
    assert program is not None
    folder = Path(tempfile.mkdtemp(prefix="cvm-mesh-engine-"))
    keys = Path("/etc/docker")
    had_keys = keys.exists()
    group = f"/cvm-mesh-engine-{os.getpid()}"
    host = f"unix://{folder}/docker.sock"
    argv = [
        program, "--data-root", str(folder / "data"), "--exec-root", str(folder / "exec"),
        "--pidfile", str(folder / "pid"), "--host", host, "--cgroup-parent", group,
        # Containers here have the networks of CVMs or of the machine; the machine's rules stay as they are.
        "--bridge=none", "--iptables=false", "--ip6tables=false",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        # It ends its containers then, as a kill would not.
        daemon = popen(argv, death=signal.SIGTERM, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield _answering(daemon, host, folder)
    finally:
        _end(daemon)
        _unmount_below(folder)
        _remove_cgroups(group)
        shutil.rmtree(folder, ignore_errors=True)
        if not had_keys:
            shutil.rmtree(keys, ignore_errors=True)


def _answering(daemon: subprocess.Popen[bytes], host: str, folder: Path) -> engine.Engine:
    end = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(UserError):
            return engine.find(host)
        said = (folder / "log").read_text(encoding="utf-8", errors="replace").splitlines()
        if daemon.poll() is not None:
            pytest.skip(f"a private dockerd ended with {daemon.returncode}: {' / '.join(said[-2:])}")
        assert time.monotonic() < end, "\n".join(said[-10:])
        time.sleep(0.2)


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.send_signal(signal.SIGTERM)
    try:
        daemon.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _unmount_below(folder: Path) -> None:
    """A killed engine leaves the mounts of its containers behind."""
    lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    for place in sorted((line.split()[1] for line in lines), reverse=True):
        if place.startswith(f"{folder}/"):
            subprocess.run(["umount", "-l", place], check=False)


def _remove_cgroups(group: str) -> None:
    """The parent of the containers' control groups, in whichever hierarchies there are."""
    root = Path("/sys/fs/cgroup")
    for place in (root, *(path for path in root.iterdir() if path.is_dir())):
        top = place / group.lstrip("/")
        folders = sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True) if top.exists() else []
        for path in (*folders, top):
            with contextlib.suppress(OSError):
                path.rmdir()
