"""The lab's first process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from lab.init import start_time
from tests.support import ROOT, need_root_or_userns, process_runs


def start(folder: Path, script: str) -> int:
    """Starts a lab whose only child runs `script`; returns the PID of its first process."""
    subprocess.run(
        [sys.executable, "-S", "-m", "lab.init", str(folder), "/bin/sh", "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=20,
        stdout=subprocess.DEVNULL,
    )
    record = json.loads((folder / "lab.json").read_text(encoding="utf-8"))
    assert start_time(record["pid"]) == record["start_time"]
    return int(record["pid"])


def gone(pid: int) -> bool:
    """Waits (bounded) for the process to end. A zombie has ended: who reaps it is not the lab's business."""
    end = time.monotonic() + 10
    while process_runs(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not process_runs(pid)


def test_killing_the_first_process_ends_all_descendants(tmp_path: Path) -> None:
    """However a lab ends, its processes end with it."""
    need_root_or_userns()
    marker = tmp_path / "up"
    pid = start(tmp_path, f"setsid sleep 300 & echo > {marker}; wait")
    while not marker.exists():
        time.sleep(0.01)
    inside = str(Path(f"/proc/{pid}/ns/pid").readlink())
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)
    alive = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit() and process_runs(int(entry.name))]
    assert inside not in {_namespace(entry) for entry in alive}


def test_term_reaches_the_command_and_ends_the_lab(tmp_path: Path) -> None:
    """SIGTERM is passed on, and the lab ends when its command does."""
    need_root_or_userns()
    marker = tmp_path / "up"
    pid = start(
        tmp_path, f"trap 'echo bye > {tmp_path}/bye; exit 0' TERM; echo > {marker}; while :; do sleep 0.05; done"
    )
    while not marker.exists():
        time.sleep(0.01)
    os.kill(pid, signal.SIGTERM)
    assert gone(pid)
    assert (tmp_path / "bye").exists()


def _namespace(entry: Path) -> str:
    try:
        return str((entry / "ns" / "pid").readlink())
    except OSError:
        return ""
