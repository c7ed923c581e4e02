"""The first process of a lab: everything that belongs to one mesh lives and dies with it.

`python -S -m lab.init RUN_DIR COMMAND…` detaches, enters fresh namespaces (user too when the caller is not root),
mounts a private /run and /proc, runs COMMAND as its only child and reaps everything else. It is PID 1 of its process
namespace, so the kernel ends every process, mount and network namespace of the mesh when it ends, however it ends.
Standard library only.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from lab import namespaces as ns


def start_time(pid: int) -> int:
    """Start of process `pid` in clock ticks since boot (proc(5), field 22 of stat): tells a reused PID from ours.

    ProcessLookupError for a zombie: it has ended, and nobody may ever reap it where PID 1 does not.
    """
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    if fields[0] == "Z":
        raise ProcessLookupError(f"process {pid} has ended")
    return int(fields[19])


def launch(run_dir: Path, command: list[str]) -> int:
    """Starts the lab's first process and records it in `run_dir`/lab.json; returns the exit code of the launcher."""
    os.setsid()
    own_user_namespace = os.geteuid() != 0
    if own_user_namespace:
        ns.become_root_of_user_namespace()
    ns.unshare(ns.NEWNS | ns.NEWPID | ns.NEWNET | ns.NEWUTS | ns.NEWIPC)
    recorded, ready = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ready)
        # Do nothing that would need cleaning up before lab.json names us; never, when the launcher died before that.
        os._exit(_first(command) if os.read(recorded, 1) else 1)
    record = {"pid": child, "start_time": start_time(child), "user_namespace": own_user_namespace}
    temporary = run_dir / "lab.json.new"
    temporary.write_text(json.dumps(record), encoding="utf-8")
    temporary.replace(run_dir / "lab.json")
    os.write(ready, b"x")
    return 0


def _first(command: list[str]) -> int:
    """PID 1: mounts, one child, reaping. Returns the child's exit code."""
    ns.mount("none", "/", flags=ns.MS_REC | ns.MS_PRIVATE)
    ns.mount("proc", "/proc", "proc", ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC)
    ns.mount("tmpfs", "/run", "tmpfs", ns.MS_NOSUID, "mode=755")
    child = os.fork()
    if child == 0:
        os.execvp(command[0], command)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda _received, _frame: os.kill(child, signal.SIGTERM))
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(launch(Path(sys.argv[1]), sys.argv[2:]))
