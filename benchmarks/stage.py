"""The stage of the bench: a lab of `benchmarks/cluster`, and a helper process in each CVM's namespaces."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.backend import PORT
from meshctl import bring_up, runs, status
from meshctl.chaos_figures import decision
from meshctl.console import Progress, Silent
from meshctl.errors import UserError
from meshctl.lab_commands import exec_argv

CLUSTER = Path(__file__).parent / "cluster"
CLIENT, ECHOES = "client-0", ("echo-0", "echo-1")
COORDINATOR = "coordinator-0"
MASTER, REPLICA, PLAIN = "echo-master", "echo-replica", "plain"
READY_SECONDS = 90.0


class BenchError(Exception):
    """A measurement that could not be made, and why."""


class Helper:
    """A `benchmarks.inside` (or `benchmarks.veth`) in a CVM's container."""

    def __init__(self, run: runs.Run, peer: str, module: str = "benchmarks.inside") -> None:
        argv = exec_argv(run, peer, None, ("python3", "-m", module))
        self._name = f"{module} in {peer}"
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "PYTHONPATH": str(runs.CHECKOUT)},
        )

    def do(self, command: str, _seconds: float = 60.0, **fields: Any) -> Any:
        """One command; its answer. BenchError when it failed or took longer than `_seconds`."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"do": command, **fields}) + "\n")
        except OSError as error:
            raise BenchError(f"{self._name} is gone") from error
        if not select.select([process.stdout], [], [], _seconds)[0]:
            raise BenchError(f"{self._name}: {command} took longer than {_seconds:g} s")
        line = process.stdout.readline()
        if not line:
            raise BenchError(f"{self._name} ended during {command}")
        answer = json.loads(line)
        if "error" in answer:
            raise BenchError(f"{self._name}: {command}: {answer['error']}")
        return answer["ok"]

    def http(self, method: str, url: str, body: object = None) -> dict[str, Any]:
        """One HTTP request that has to succeed."""
        answer: dict[str, Any] = self.do("http", method=method, url=url, body=body)
        if answer["status"] != 200:
            raise BenchError(f"{self._name}: {method} {url} answers {answer['status']}: {answer['body'][:200]}")
        return answer

    def processes(self) -> list[psutil.Process]:
        """What it started, as the machine sees it."""
        return psutil.Process(self._process.pid).children(recursive=True)

    def close(self) -> None:
        """Ends it and all that it started."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Stage:
    """The running mesh and its helpers."""

    def __init__(self, run: runs.Run, started: float, ready: float) -> None:
        self.run = run
        self.started = started
        """When the lab was launched (CLOCK_MONOTONIC)."""
        self.ready = ready
        """When every CVM was ready."""
        self.peers = {peer["peer_id"]: peer for peer in self.document()["peers"]}
        self.replaced: set[str] = set()
        """CVMs that were started anew: what the bench had started there is gone."""
        self.helpers = {peer: _helper(run, peer) for peer in (COORDINATOR, CLIENT, *ECHOES)}
        self.vips = {route["name"]: (route["vip"], route["port"]) for route in self.peers[CLIENT]["routes"]}

    @property
    def client(self) -> Helper:
        """The helper beside the caller."""
        return self.helpers[CLIENT]

    def address(self, peer: str) -> str:
        """Mesh address."""
        return str(self.peers[peer]["address"])

    def document(self) -> dict[str, Any]:
        """The status contract, now."""
        return status.contract(status.collect(self.run))

    def child(self, peer: str, name: str) -> psutil.Process:
        """A child process of a CVM's sidecar, as the machine sees it."""
        found = next(p for p in self.document()["peers"] if p["peer_id"] == peer)["children"][name]["pid"]
        if found is None:
            raise BenchError(f"{peer} has no running {name}")
        return psutil.Process(found)

    def sidecar(self, peer: str) -> psutil.Process:
        """The Python process of a CVM's sidecar."""
        machine = next(m for m in status.collect(self.run)["machines"] if m["peer_id"] == peer)
        return psutil.Process(next(c["host_pid"] for c in machine["containers"] if c["is_sidecar"]))

    def decided(self, route: str, leader: str, after: float) -> float | None:
        """When the caller's sidecar took `route` away from `leader`, after a moment; None when it did not. By its log,
        whose milliseconds are cut off: up to one too early.
        """
        between = time.time() - time.monotonic()
        log = runs.log_of_peer(self.run, CLIENT, "sidecar")
        found = decision(log.read_text(encoding="utf-8").splitlines(), route, leader, after + between)
        return None if found is None else found - between

    def machine_action(self, peer: str, action: str) -> None:
        """Kills, stops or starts a CVM."""
        self.run.call("POST", f"/machines/{peer}/{action}", seconds=60.0)

    def replace_helper(self, peer: str) -> None:
        """A new helper, after its CVM was started anew."""
        self.helpers[peer].close()
        self.helpers[peer] = _helper(self.run, peer)

    def close(self) -> None:
        """Ends the helpers; the lab is the caller's."""
        for helper in self.helpers.values():
            helper.close()


def _helper(run: runs.Run, peer: str) -> Helper:
    """A helper in the peer's application container, which starts once its sidecar is ready."""
    found: list[Helper] = []

    def entered() -> bool:
        with contextlib.suppress(UserError):
            found.append(Helper(run, peer))
        return bool(found)

    wait_until(entered, READY_SECONDS, f"the application container of {peer} runs")
    # The raw path leads there beside the mesh's Envoys.
    found[0].do("open_ports", tcp=[PORT], udp=[])
    return found[0]


def wait_until(condition: Callable[[], bool], seconds: float, what: str, pause: float = 0.01) -> float:
    """When `condition` first held, asked every `pause` seconds. BenchError after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return time.monotonic()
        time.sleep(pause)
    raise BenchError(f"not within {seconds:g} s: {what}")


def readiness(run: runs.Run) -> dict[str, bool]:
    """Per CVM whether its sidecar says that it is ready; cheaper than the whole status document."""
    try:
        machines = run.call("GET", "/status")["machines"]
    except Exception:  # noqa: BLE001 -- the lab may not listen yet; the caller's limit decides
        return {}
    return {m["peer_id"]: bool((m["sidecar"] or {}).get("ready")) for m in machines if m["kind"] != "host"}


def _all_ready(run: runs.Run) -> float:
    """When every CVM was ready. BenchError names what is missing."""
    try:
        return wait_until(
            lambda: len(found := readiness(run)) == 4 and all(found.values()), READY_SECONDS, "every CVM is ready"
        )
    except BenchError as error:
        missing = "; ".join(bring_up.missing(status.contract(status.collect(run))))
        raise BenchError(f"{error}: {missing}") from None


@contextlib.contextmanager
def mesh(progress: Progress | None = None, name: str = "") -> Iterator[Stage]:
    """A mesh of `benchmarks/cluster`, up within the block and gone after it."""
    run = runs.run_of(name or f"bench-{os.getpid()}")
    stage: Stage | None = None
    try:
        started = time.monotonic()
        bring_up.bring_up(run, CLUSTER, {}, "preserving", progress or Silent())
        ready = _all_ready(run)
        stage = Stage(run, started, ready)
        yield stage
    finally:
        if stage is not None:
            stage.close()
        if run.folder.exists():
            runs.end(run)
