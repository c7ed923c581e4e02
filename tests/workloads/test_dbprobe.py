"""The remote control of the database clients, as a process, on a real PostgreSQL."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, popen
from tests.workloads.postgres import Server, postgres


class Remote:
    """A running probe."""

    def __init__(self) -> None:
        self.process = popen(
            [sys.executable, "-m", "workloads.dbprobe"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def do(self, command: str, **fields: Any) -> Any:
        """One command and its whole answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": command, **fields}) + "\n")
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server."""
    with postgres(tmp_path_factory.mktemp("pg")) as running:
        yield running


@pytest.fixture
def remote() -> Iterator[Remote]:
    """A probe, which ends by itself when its input ends."""
    made = Remote()
    try:
        yield made
        assert made.process.stdin is not None
        made.process.stdin.close()
        assert made.process.wait(30) == 0
    finally:
        made.process.kill()
        made.process.wait()
        assert made.process.stdout is not None
        made.process.stdout.close()


def test_what_was_acknowledged_is_what_is_there(server: Server, remote: Remote) -> None:
    """Writers, reader and held connections run until they are stopped; the record agrees with the database."""
    target = server.target
    assert remote.do("create", target=target) == {"ok": None}
    remote.do("write", target=target, run="r1", writers=2, pause=0.002)
    remote.do("read", target=target, pause=0.002)
    held = remote.do("hold", target=target, pause=0.002)["ok"]
    assert {state["peer"] for state in held.values()} == {"postgres-7"}
    end = time.monotonic() + 30
    state: dict[str, Any] = {}
    while state.get("acks", 0) < 20 or state["reads"] < 5:
        assert time.monotonic() < end, state
        state = remote.do("state", after=0.0, timeline=0)["ok"]
    assert state["timeline"] == 1
    assert state["beyond"] == state["acks"]
    assert remote.do("state", after=time.monotonic() + 60, timeline=1)["ok"]["acks"] == 0
    record = remote.do("stop")["ok"]
    assert sorted([ack[0], ack[1]] for ack in record["acks"]) == sorted(
        remote.do("rows", target=target, run="r1")["ok"]
    )
    assert {ack[0] for ack in record["acks"]} == {0, 1}
    assert (record["unknown"], record["failures"], record["read_failures"]) == ([], [], 0)
    assert all(state["closed"] is None for state in record["held"].values())
    digest = remote.do("digest", target=target)["ok"]
    assert (digest["count"], digest["in_recovery"]) == (len(record["acks"]), False)
    assert remote.do("stop")["ok"]["acks"] == []
    assert remote.do("clear", target=target) == {"ok": None}
    assert "UndefinedTable" in remote.do("digest", target=target)["error"]


def test_what_fails_is_an_answer(server: Server, remote: Remote, tmp_path: Path) -> None:
    """A database or an address that is not there ends one command, not the probe."""
    nowhere = {**server.target, "port": 1}
    assert "OperationalError" in remote.do("rows", target=nowhere, run="x")["error"]
    assert "FileNotFoundError" in remote.do("create", target=nowhere | {"password_file": str(tmp_path / "no")})["error"]
    assert remote.do("http", url="http://127.0.0.1:1/")["ok"]["status"] == 0
