"""Processes of a running container by name: which ones they are, from /proc. Standard library only.

A name is what a person would call the program: `envoy`, `consul`, `postgres`; for Python programs also the module or
script that runs (`sidecar`, `patroni`). IO: /proc.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process, as this PID namespace sees it."""

    pid: int
    parent: int
    names: frozenset[str]
    """What it may be called."""


def snapshot(proc: Path = PROC) -> dict[int, Process]:
    """Every process in sight that has not ended."""
    found = {}
    for entry in proc.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
                comm = stat[stat.index("(") + 1 : stat.rindex(")")]
                state, parent = stat.rpartition(")")[2].split()[:2]
                argv = (entry / "cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
                if state != "Z":
                    found[int(entry.name)] = Process(
                        pid=int(entry.name), parent=int(parent), names=frozenset(names(comm, argv))
                    )
    return found


def names(comm: str, argv: list[str]) -> Iterator[str]:
    """What a process with this command name and command line may be called. Pure."""
    yield comm
    program = Path(argv[0]).name
    if program:
        # PostgreSQL and others rewrite their command line: `postgres: checkpointer`.
        yield program.split(":")[0]
    if program.startswith("python"):
        rest = iter(argv[1:])
        for word in rest:
            if word == "-m":
                yield next(rest, "")
                return
            if word in ("-X", "-W"):
                next(rest, "")
            elif not word.startswith("-"):
                yield Path(word).name
                return


def below(first: int, processes: Mapping[int, Process]) -> set[int]:
    """`first` and everything that descends from it. Pure."""
    children: dict[int, list[int]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process.pid)
    found: set[int] = set()
    waiting = [first] if first in processes else []
    while waiting:
        pid = waiting.pop()
        found.add(pid)
        waiting += [child for child in children.get(pid, ()) if child not in found]
    return found


def called(name: str, first: int, processes: Mapping[int, Process]) -> list[int]:
    """PIDs of the processes called `name` in the container with first process `first`, without their own children.

    Of PostgreSQL that is the postmaster, whose end is the end of the others. Pure.
    """
    inside = below(first, processes)
    chosen = {pid for pid in inside if name in processes[pid].names}
    return sorted(pid for pid in chosen if not (_ancestors(pid, processes) & chosen))


def _ancestors(pid: int, processes: Mapping[int, Process]) -> set[int]:
    found: set[int] = set()
    parent = processes[pid].parent
    while parent in processes and parent not in found:
        found.add(parent)
        parent = processes[parent].parent
    return found
