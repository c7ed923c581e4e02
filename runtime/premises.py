"""What a process needs of the machine before it starts anything: rights and programs. All problems in one answer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from runtime.env import Problem

SETPRIV = Path("/usr/bin/setpriv")
"""What child processes are started through (`runtime.children`). Of util-linux, which Debian, Fedora and Arch always
have."""
_CAP_NET_ADMIN = 12
"""<linux/capability.h>."""


def problems(programs: Mapping[str, Path], status: Path = Path("/proc/self/status")) -> list[Problem]:
    """What is missing: the right to set up the network, and those of `programs` (by variable) that cannot be run."""
    missing = [
        Problem(variable, f"is {str(path)!r}, expected a program that can be run; correct it or use the image's")
        for variable, path in programs.items()
        if not os.access(path, os.X_OK) or path.is_dir()
    ]
    if not os.access(SETPRIV, os.X_OK):
        missing.append(Problem("setpriv", f"{SETPRIV} is missing; install the package util-linux"))
    if not _capabilities(status) >> _CAP_NET_ADMIN & 1:
        remedy = "docker compose: `cap_add: [NET_ADMIN]`; docker run: `--cap-add NET_ADMIN`"
        missing.insert(0, Problem("NET_ADMIN", f"this process lacks the capability; {remedy}"))
    return missing


def _capabilities(status: Path) -> int:
    for line in status.read_text(encoding="utf-8").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0
