"""The shipped process in a network namespace of its own, without coordinators: what starts, is told, and is left."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from admission.client import CoordinatorError, Greeting
from admission.offers import Offers
from runtime.init import Init
from runtime.tasks import TaskScope
from sidecar import kept
from sidecar.config import parse
from sidecar.desired import World
from sidecar.supervisor import Supervisor
from tests.sidecar.world import OWNER, OWNERS, environment, manifest, route
from tests.support import ROOT, network_namespace, popen, process_runs, tool, unread_pipe
from tests.topology.support import after, opened
from topology.envelope import Signed
from topology.manifest import GroupEntry

ENTER = (
    "import ctypes, os, sys; netns = os.open('/var/run/netns/' + sys.argv[1], os.O_RDONLY)\n"
    "ctypes.CDLL(None).setns(netns, 0x40000000) and os._exit(125)\n"
    "os.execvp(sys.argv[2], sys.argv[2:])\n"
)
ADDRESSES = (
    "from pyroute2 import IPRoute\n"
    "with IPRoute() as link: print(*[m.get_attr('IFA_LOCAL') for m in link.get_addr(family=2)])\n"
)
LOOKUP = (
    "from dnslib import DNSRecord as R\nprint(R.parse(R.question('api').send('127.10.0.53', 53, timeout=5)).a.rdata)\n"
)
HOLD = (
    "import socket, time; s = socket.socket(); s.bind(('127.10.0.53', 53)); s.listen()\n"
    "print('bound', flush=True); time.sleep(60)\n"
)


class Sidecar:
    """`python -m sidecar` in the namespace `name`."""

    def __init__(self, name: str, folder: Path, output: int | None = None, **changes: str | None) -> None:
        """Its log is a file, or what `output` leads to."""
        self._enter = (sys.executable, "-S", "-c", ENTER, name)
        self.folder = folder
        self.state = folder / "private"
        self._env = {
            "PATH": os.environ["PATH"],
            **environment(
                MESH_STATE_DIR=str(self.state),
                MESH_RUN_DIR=str(folder / "run"),
                MESH_GUEST_AGENT=str(folder / "dstack.sock"),
                MESH_ENVOY=tool("envoy"),
                MESH_CONSUL=tool("consul"),
                MESH_WIREGUARD_GO=tool("wireguard-go"),
                **changes,
            ),
        }
        with (folder / "log").open("wb") as log:
            self.process = popen(
                [*self._enter, sys.executable, "-m", "sidecar"],
                cwd=ROOT,
                env=self._env,
                stdout=log if output is None else output,
                stderr=log if output is None else output,
            )

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Python with `argv` in the same namespace, with the same environment."""
        command = [*self._enter, sys.executable, *argv]
        return subprocess.run(command, cwd=ROOT, env=self._env, capture_output=True, text=True, timeout=30)

    def status(self) -> dict[str, Any]:
        """The status document; empty while nobody answers."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            try:
                connection.connect(str(self.state / "status.sock"))
                connection.sendall(b"GET /status HTTP/1.1\r\n\r\n")
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
            except OSError:
                return {}
        found: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
        return found

    def wait(self, condition: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """The first status that fits."""
        end = time.monotonic() + 20
        while True:
            now = self.status()
            if now and condition(now):
                return now
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.log()}"
            assert time.monotonic() < end, f"not in 20 s: {what}; {now}\n{self.log()}"
            time.sleep(0.02)

    def children(self) -> dict[str, dict[str, Any]]:
        """Both children, once they run."""
        found: dict[str, dict[str, Any]] = self.wait(both_run, "both children")["children"]
        return found

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def addresses(self) -> list[str]:
        return self.run("-c", ADDRESSES).stdout.split()


def both_run(status: dict[str, Any]) -> bool:
    """Whether Envoy and wireguard-go have PIDs (there is no Consul agent before an admission)."""
    return len([1 for child in status["children"].values() if child["pid"]]) == 2


@contextlib.contextmanager
def sidecar(held: Signed | None = None, output: int | None = None, **changes: str | None) -> Iterator[Sidecar]:
    """`held`: what an earlier process of its boot has taken."""
    with network_namespace() as name, tempfile.TemporaryDirectory(prefix="mesh-test-") as folder:
        if held is not None:
            kept.keep(Path(folder) / "private", held)
        it = Sidecar(name, Path(folder), output, **changes)
        try:
            yield it
        finally:
            if it.process.poll() is None:
                it.process.kill()
            it.process.wait()


def wait_gone(*pids: int) -> None:
    end = time.monotonic() + 5
    while any(process_runs(pid) for pid in pids):
        assert time.monotonic() < end, f"of {pids} some are still there"
        time.sleep(0.01)


ROUTES = json.dumps(
    [{"name": "api", "vip": "127.10.0.1", "port": 8080, "role": None, "backend": "api", "service": "api"}]
)


@pytest.mark.netns
def test_a_restarted_sidecar_has_its_routes_while_no_coordinator_answers() -> None:
    """By the newest manifest that this boot has taken; where the environment differs, status says so."""
    newest = opened(after(opened(manifest(), OWNER), routes=(route("api", "api", vip="127.10.0.9"),)), OWNER)
    with sidecar(newest, MESH_ROUTES_JSON=ROUTES) as it:
        now = it.wait(lambda s: both_run(s) and s["manifest_epoch"] == 4, "it goes by what it has kept")
        assert it.addresses() == ["127.0.0.1", "127.10.0.9"]
        assert [one["name"] for one in now["routes"]] == ["api"]
        assert (it.folder / "run/environment").read_text() == ""
        assert [text for text in now["problems"] if "127.10.0.1:8080" in text and "MESH_ROUTES_JSON: " in text]
        assert not any(reason.startswith("names: ") for reason in now["reasons"])


@pytest.mark.netns
def test_names_work_before_anyone_admits_and_a_clean_stop_leaves_nothing() -> None:
    """Without a guest agent, VIP, DNS, files and Envoy are up by the routes of the environment, and status says what is
    missing; SIGTERM undoes it.
    """
    with sidecar(MESH_ROUTES_JSON=ROUTES) as it:
        now = it.wait(lambda s: both_run(s) and "guest agent" in str(s["reasons"]), "names up, identity waits")
        assert (now["phase"], now["ready"]) == ("identity", False)
        assert it.addresses() == ["127.0.0.1", "127.10.0.1"]
        assert it.run("-c", LOOKUP).stdout.strip() == "127.10.0.1"
        assert "127.10.0.1 api" in (it.folder / "run/hosts").read_text()
        assert not (it.folder / "run/ready").exists()
        assert not (it.folder / "run/environment").exists(), "which variables are signed is not known yet"
        assert "names: no coordinator has shown the mesh's manifest yet" in now["reasons"]
        assert it.state.stat().st_mode & 0o777 == 0o700
        health = it.run("-m", "sidecar", "health")
        assert health.returncode == 1
        assert "identity: guest agent" in health.stderr
        it.process.send_signal(signal.SIGTERM)
        assert it.process.wait(20) == 0, it.log()
        wait_gone(*(child["pid"] for child in now["children"].values()))
        assert it.addresses() == ["127.0.0.1"]
        assert not (it.state / "status.sock").exists()


async def test_programs_are_told_the_variables_of_the_newest_manifest(tmp_path: Path) -> None:
    """With the manifest itself, not with the next wish; a manifest without the group leaves what the first one says."""
    run = tmp_path / "run"
    run.mkdir()
    first = manifest(groups=with_env({"MODE": "first"}))
    it = Supervisor(parse(environment(MESH_RUN_DIR=str(run), MESH_STATE_DIR=str(tmp_path))), Init())
    signed = opened(first, OWNER)
    it._world = World(signed=signed, own=first.groups["api"], group="api")
    for groups, told in (
        (with_env({"MODE": "newest", "A": "1"}), "A=1\nMODE=newest\n"),
        (with_env({}), ""),
        ({"client": first.groups["client"]}, "MODE=first\n"),
    ):
        it.see(dataclasses.replace(it.world, signed=opened(after(it.world.signed, groups=groups), OWNER)))
        assert (run / "environment").read_text() == told


def test_a_first_manifest_has_to_be_this_cvms(tmp_path: Path) -> None:
    """Of its cluster and with its group; where the coordinators lead elsewhere, both are named."""
    it = Supervisor(parse(environment(MESH_STATE_DIR=str(tmp_path))), Init())
    assert it._misfit(manifest()) is None
    other = it._misfit(manifest(cluster="staging")) or ""
    assert other == "it is of cluster 'staging', and MESH_CLUSTER is 'demo'"
    groups = {"client": manifest().groups["client"]}
    assert it._misfit(manifest(groups=groups)) == "MESH_GROUP is 'api', and its groups are client"


DROPPED = opened(after(opened(manifest(), OWNER), groups={"client": manifest().groups["client"]}), OWNER)
"""A manifest without the group `api`."""


async def test_a_cvm_whose_group_was_dropped_is_not_led_back(tmp_path: Path) -> None:
    """After a restart the manifest that dropped it is the one by which coordinators are judged, and an older one that
    has its group is not carried out.
    """
    kept.keep(tmp_path, DROPPED)
    it = Supervisor(parse(environment(MESH_STATE_DIR=str(tmp_path))), Init())
    it._floor = kept.read(tmp_path, "demo")
    offers = Offers(OWNERS, lambda: it._newest, it._misfit)
    older = Greeting(
        url="https://one.test", certificate=b"", envelope=opened(manifest(), OWNER).envelope, reason="", ask=no_answer
    )
    assert await offers.judge(older) == DROPPED
    with pytest.raises(CoordinatorError, match="MESH_GROUP is 'api', and its groups are client"):
        await it.take(DROPPED)
    newer = opened(after(DROPPED), OWNER)
    with pytest.raises(CoordinatorError):
        await it.take(newer)
    assert kept.read(tmp_path, "demo") == newer
    assert await offers.judge(older) == newer
    assert it._envelope() == newer.envelope
    assert it._named() == ("https://one.test",)


async def no_answer(path: str) -> Mapping[str, Any]:
    """Of a coordinator that has no history."""
    raise CoordinatorError(path)


@pytest.mark.netns
def test_a_restarted_sidecar_says_that_its_group_was_dropped() -> None:
    """And sets no names by that manifest."""
    with sidecar(DROPPED) as it:
        now = it.wait(lambda s: both_run(s) and "is not for it" in str(s["reasons"]), "it says why it waits")
        assert "MESH_GROUP is 'api', and its groups are client" in str(now["reasons"])
        assert it.addresses() == ["127.0.0.1"]


async def test_a_stop_ends_every_task(tmp_path: Path) -> None:
    """Also one that the order of the stop does not name: a process that waited for it would never start anew."""
    it = Supervisor(parse(environment(MESH_STATE_DIR=str(tmp_path), MESH_DRAIN_SECONDS="0")), Init())
    async with asyncio.timeout(20), TaskScope() as it._scope:
        it.run("nobody's", asyncio.sleep(3600))
        await it._stop_in_order()


def with_env(env: dict[str, str]) -> dict[str, GroupEntry]:
    """The manifest's groups, whose applications have `env` in the group `api`."""
    groups = manifest().groups
    return {**groups, "api": dataclasses.replace(groups["api"], env=env)}


@pytest.mark.netns
def test_killed_envoy_is_replaced_and_its_sibling_keeps_its_pid() -> None:
    """SIGKILL of Envoy: a new one; wireguard-go is not touched."""
    with sidecar() as it:
        old = it.children()
        os.kill(old["envoy"]["pid"], signal.SIGKILL)
        new = it.wait(lambda s: s["children"]["envoy"]["pid"] not in (None, old["envoy"]["pid"]), "replaced")[
            "children"
        ]
        assert new["envoy"]["restarts"] == 1
        assert new["envoy"]["last_exit"] == "SIGKILL"
        assert new["wireguard"]["pid"] == old["wireguard"]["pid"]


@pytest.mark.netns
def test_a_log_that_nobody_reads_stops_nothing() -> None:
    """From the first line on, its own and Envoy's at their most: names are answered, a killed Envoy is replaced, and a
    stop is clean.
    """
    with unread_pipe() as log, sidecar(output=log, MESH_LOG_LEVEL="debug", MESH_ROUTES_JSON=ROUTES) as it:
        old = it.children()["envoy"]["pid"]
        os.kill(old, signal.SIGKILL)
        it.wait(lambda s: s["children"]["envoy"]["pid"] not in (None, old), "replaced")
        assert it.run("-c", LOOKUP).stdout.strip() == "127.10.0.1"
        it.process.send_signal(signal.SIGTERM)
        assert it.process.wait(timeout=30) == 0


@pytest.mark.netns
def test_sidecar_that_dies_takes_its_children_along() -> None:
    """SIGKILL of the sidecar leaves no Envoy and no WireGuard behind that nobody supervises."""
    with sidecar() as it:
        children = it.children()
        it.process.kill()
        it.process.wait()
        wait_gone(*(child["pid"] for child in children.values()))


@pytest.mark.netns
def test_taken_dns_address_exits_2_and_leaves_nothing_half_up() -> None:
    """One message with address and remedy, exit code 2, VIPs taken back."""
    with network_namespace() as name, tempfile.TemporaryDirectory(prefix="mesh-test-") as folder:
        command = [sys.executable, "-S", "-c", ENTER, name, sys.executable, "-S", "-c", HOLD]
        with popen(command, stdout=subprocess.PIPE, text=True) as holder:
            try:
                assert holder.stdout is not None
                assert holder.stdout.readline() == "bound\n"
                it = Sidecar(name, Path(folder))
                assert it.process.wait(20) == 2, it.log()
            finally:
                holder.kill()
        assert "127.10.0.53" in it.log()
        assert "Traceback" not in it.log()
        assert it.addresses() == ["127.0.0.1"]


@pytest.mark.netns
def test_second_signal_cuts_a_stop_short() -> None:
    """Two SIGTERMs end the process at once, its children too."""
    with sidecar(MESH_DRAIN_SECONDS="3600") as it:
        children = it.children()
        it.process.send_signal(signal.SIGTERM)
        it.process.send_signal(signal.SIGTERM)
        assert it.process.wait(10) in (0, 1), it.log()
        wait_gone(*(child["pid"] for child in children.values()))
