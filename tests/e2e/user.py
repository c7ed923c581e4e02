"""What a user of a mesh does: the shipped command, and calls from inside and outside."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from meshctl import runs
from meshctl import status as statuses
from tests.support import ROOT, need_root_or_userns

FETCH = "import sys, urllib.request as r; sys.stdout.write(r.urlopen(sys.argv[1], timeout=5).read().decode())"


def run_mesh(
    *args: str, timeout: float = 60, given: str | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`./mesh ARGS`, as a person would type it; `given` is its standard input."""
    return subprocess.run(
        [str(ROOT / "mesh"), *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=ROOT,
        input=given,
        env={**(env or os.environ), "COLUMNS": "200"},
    )


@dataclass(frozen=True, slots=True)
class Mesh:
    """A running mesh, by its name."""

    name: str
    up_output: str

    def run(
        self,
        command: str,
        *args: str,
        timeout: float = 60,
        given: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """`./mesh COMMAND --name NAME ARGS`; `given` is its standard input."""
        return run_mesh(command, "--name", self.name, *args, timeout=timeout, given=given, env=env)

    def status(self) -> dict[str, Any]:
        """What `./mesh status --json` prints, by its own code in this process. Whoever waits asks again and again: two
        processes for each answer took most of a processor from the mesh that is waited for.
        """
        document: dict[str, Any] = json.loads(
            json.dumps(statuses.contract(statuses.collect(runs.find(self.name), holders=True)))
        )
        return document

    def printed_status(self) -> dict[str, Any]:
        """What `./mesh status --json` prints."""
        done = self.run("status", "--json")
        assert done.returncode == 0, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def peer(self, peer_id: str) -> dict[str, Any]:
        """One peer of the status document."""
        return next(peer for peer in self.status()["peers"] if peer["peer_id"] == peer_id)

    def fetch(self, peer_id: str, url: str) -> str:
        """The body of `url`, asked inside the application container of `peer_id`."""
        done = self.run("exec", peer_id, "--", "python3", "-c", FETCH, url)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def signal(self, peer_id: str, number: int) -> None:
        """Sends the sidecar of that peer a signal, by the lab."""
        runs.run_of(self.name).call("POST", f"/machines/{peer_id}/signal?process=sidecar&number={number}")

    def public(self, path: str) -> str:
        """The body of `path` at the public entry."""
        match = re.search(r"public entry of api: (http://127\.0\.0\.1:\d+)", self.up_output)
        assert match, self.up_output
        with urllib.request.urlopen(match[1] + path, timeout=10) as answer:
            return str(answer.read().decode())

    def wait_whole(self, seconds: float = 60) -> dict[str, Any]:
        """Waits until every peer is ready and every route has both its endpoints everywhere."""
        document: dict[str, Any] = {}

        def whole() -> bool:
            document.clear()
            document.update(self.status())
            return all(
                peer["ready"] and all(len(route["endpoints"]) == 2 for route in peer["routes"])
                for peer in document["peers"]
            )

        wait_for(whole, "the mesh is whole again", seconds)
        return document


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Waits (bounded) until `condition()` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.1)


@contextmanager
def running(label: str, *args: str, timeout: float = 300) -> Iterator[Mesh]:
    """A mesh of its own, started by `./mesh ARGS`."""
    need_root_or_userns()
    name = f"{label}-{os.getpid()}"
    up = run_mesh(*args, "--name", name, timeout=timeout)
    try:
        assert up.returncode == 0, up.stdout + up.stderr
        yield Mesh(name=name, up_output=up.stdout)
    finally:
        run_mesh("down", "--name", name, timeout=60)
