"""Which processes of a container a name means."""

from __future__ import annotations

import os

import pytest

from lab.processes import Process, below, called, names, snapshot
from tests.support import popen


@pytest.mark.parametrize(
    ("comm", "argv", "expected"),
    [
        ("envoy", ["/opt/tools/envoy", "-c", "envoy.yaml"], {"envoy"}),
        ("wireguard-go", ["/opt/wireguard-go", "-f", "mesh0"], {"wireguard-go"}),
        ("postgres", ["postgres: checkpointer "], {"postgres"}),
        ("python3.11", ["/venv/bin/python3.11", "-m", "sidecar"], {"python3.11", "sidecar"}),
        ("patroni", ["/venv/bin/python", "/venv/bin/patroni", "p.yml"], {"patroni", "python"}),
        ("python", ["python", "-X", "dev", "-u", "/app/run.py", "-m", "x"], {"python", "run.py"}),
        ("kworker", [""], {"kworker"}),
    ],
)
def test_names_are_what_a_person_would_say(comm: str, argv: list[str], expected: set[str]) -> None:
    """A program is called by its command and its file, a Python program also by its module or script."""
    assert set(names(comm, argv)) == expected


def process(pid: int, parent: int, name: str) -> Process:
    """A process with one name."""
    return Process(pid=pid, parent=parent, names=frozenset({name}))


TABLE = {
    each.pid: each
    for each in (
        process(1, 0, "init"),
        process(10, 1, "sh"),
        process(11, 10, "patroni"),
        process(12, 11, "postgres"),
        process(13, 12, "postgres"),
        process(20, 1, "postgres"),
    )
}


def test_only_the_container_and_only_the_topmost_are_meant() -> None:
    """The postmaster and not its children, and nothing of another container."""
    assert below(10, TABLE) == {10, 11, 12, 13}
    assert called("postgres", 10, TABLE) == [12]
    assert called("postgres", 1, TABLE) == [12, 20]
    assert called("envoy", 10, TABLE) == []
    assert called("postgres", 99, TABLE) == []


def test_snapshot_shows_what_runs_and_not_what_ended() -> None:
    """A child of ours is in it with its parent and its name; once it has ended it is not, reaped or not."""
    with popen(["sleep", "60"]) as child:
        try:
            # Popen returns once the exec has succeeded.
            assert "sleep" in snapshot()[child.pid].names
            assert snapshot()[child.pid].parent == os.getpid()
            assert called("sleep", os.getpid(), snapshot()) == [child.pid]
        finally:
            child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert child.pid not in snapshot()
