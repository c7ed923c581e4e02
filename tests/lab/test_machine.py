"""Boots, stops and deaths of a simulated CVM, with real containers."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from lab.machine import Machine, MachinePlan, named_volume
from runtime.tasks import TaskScope
from tests.support import ROOT, eventually, need_root_or_userns, process_runs
from topology.compose import Service
from topology.health import HealthCheck


class SilentAgent:
    """A guest agent that only notes that it was started and stopped."""

    def __init__(self) -> None:
        self.running = False

    async def start(self, path: Path) -> None:
        """Leaves a file where the socket would be."""
        path.touch()
        self.running = True

    async def stop(self) -> None:
        """Notes the end."""
        self.running = False


_DAY = HealthCheck(interval=2, retries=150, start_period=86400)


def machine(
    folder: Path, script: str, application: str = "exec sleep 300", health: HealthCheck | None = _DAY
) -> Machine:
    """A CVM whose sidecar runs `script` and has the health check `health`, and whose application runs `application`."""
    need_root_or_userns()
    services = (
        Service(name="sidecar", image="x", is_sidecar=True, health=health),
        Service(name="app", image="x", waits_healthy=("sidecar",)),
    )
    env = {"PATH": "/usr/bin:/bin"}
    (folder / "logs").mkdir()
    (folder / "app").mkdir()
    plan = MachinePlan(
        name="t-cvm0",
        peer_id=None,
        group="t",
        kind="workload",
        services=services,
        environment={"sidecar": env, "app": env},
        programs={"sidecar": ("/bin/sh", "-c", script), "app": ("/bin/sh", "-c", application)},
        keep=(str(folder),),
        app_folder=folder / "app",
        volumes=folder / "volumes",
        resolver="192.0.2.1",
    )
    return Machine(plan, folder=folder / "machine", logs=folder / "logs", python=sys.executable)


@pytest.fixture(autouse=True)
def _python_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


async def test_application_waits_for_the_sidecars_health(tmp_path: Path) -> None:
    """The application starts once the sidecar says that it is ready, not before."""
    own = machine(
        tmp_path, "while [ ! -e /run/mesh-private/go ]; do sleep 0.02; done; echo > /run/mesh/ready; exec sleep 300"
    )
    async with TaskScope() as scope:
        await own.boot(scope, "", SilentAgent())
        await eventually(lambda: own.containers["sidecar"].first_pid() is not None, "the sidecar runs")
        assert own.containers["app"].state.startswith("waiting")
        (tmp_path / "machine" / "private" / "go").touch()
        await eventually(lambda: own.containers["app"].first_pid() is not None, "the application runs")
        await own.kill()


@pytest.mark.parametrize(
    ("health", "words"),
    [(HealthCheck(interval=0.1, retries=3), "unhealthy after 0.3 s"), (None, "no health check")],
)
async def test_an_application_whose_sidecar_is_unhealthy_is_never_started(
    tmp_path: Path, health: HealthCheck | None, words: str
) -> None:
    """As with Compose, which dstack runs once a boot: it gives up, and a later success starts nothing."""
    own = machine(tmp_path, "exec sleep 300", health=health)
    async with TaskScope() as scope:
        await own.boot(scope, "", SilentAgent())
        await eventually(lambda: own.containers["app"].state.startswith("not started"), "the lab gives up")
        assert words in own.containers["app"].state
        (tmp_path / "machine" / "mesh" / "ready").touch()
        assert own.containers["app"].first_pid() is None
        await own.kill()
        assert own.containers["app"].launcher is None


async def test_a_sidecar_that_starts_again_is_given_its_time_again(tmp_path: Path) -> None:
    """Docker's count of failures begins anew with each start of the container."""
    # Ready 6 s after the first start, and 3 s after the second: between them is what the check allows.
    script = "test -e /run/mesh-private/second && sleep 3 && echo > /run/mesh/ready && exec sleep 300; "
    script += "touch /run/mesh-private/second; sleep 3; exit 1"
    own = machine(tmp_path, script, health=HealthCheck(interval=1, retries=5))
    async with TaskScope() as scope:
        await own.boot(scope, "", SilentAgent())
        await eventually(lambda: own.containers["app"].first_pid() is not None, "the application runs", 30.0)
        assert own.containers["sidecar"].restarts >= 1
        await own.kill()


async def test_container_that_ends_is_started_again(tmp_path: Path) -> None:
    """A container with restart policy unless-stopped comes back, and the restart is counted."""
    own = machine(tmp_path, "exit 3")
    async with TaskScope() as scope:
        await own.boot(scope, "", SilentAgent())
        await eventually(lambda: own.containers["sidecar"].restarts >= 2, "two restarts")
        await own.kill()


async def test_killed_cvm_leaves_no_process_and_boots_afresh(tmp_path: Path) -> None:
    """After a kill nothing of the CVM runs and what it kept in memory is gone; it can boot again."""
    agent = SilentAgent()
    own = machine(tmp_path, "echo 1 >> /run/mesh-private/boots; exec sleep 300")
    boots = tmp_path / "machine" / "private" / "boots"
    async with TaskScope() as scope:
        await own.boot(scope, "", agent)
        await eventually(boots.exists, "the sidecar runs")
        pid = own.containers["sidecar"].first_pid()
        await own.kill()
        assert (own.state, agent.running) == ("killed", False)
        await eventually(lambda: pid is not None and not process_runs(pid), "the process is gone")
        await own.boot(scope, "", agent)
        await eventually(lambda: boots.exists() and boots.read_text() == "1\n", "the second boot starts from nothing")
        await own.kill()


async def test_stop_gives_containers_their_grace(tmp_path: Path) -> None:
    """A clean stop sends SIGTERM and waits."""
    own = machine(
        tmp_path, f"trap 'echo bye > {tmp_path}/bye; exit 0' TERM; echo > /run/mesh/up; while :; do sleep 0.02; done"
    )
    async with TaskScope() as scope:
        await own.boot(scope, "", SilentAgent())
        await eventually((tmp_path / "machine" / "mesh" / "up").exists, "the sidecar runs")
        await own.stop()
    assert (tmp_path / "bye").exists()
    assert own.state == "stopped"


async def test_spec_file_is_private(tmp_path: Path) -> None:
    """The file that carries a container's environment is readable by its owner alone."""
    own = machine(tmp_path, "exec sleep 300")
    async with TaskScope() as scope:
        await own.boot(scope, "", SilentAgent())
        spec = tmp_path / "machine" / "container-sidecar" / "spec.json"
        await eventually(spec.exists, "the spec is written")
        assert spec.stat().st_mode & 0o077 == 0
        await own.kill()


async def test_one_process_of_a_cvm_is_killed(tmp_path: Path) -> None:
    """A signal meets the processes of that name in this CVM's containers and nothing else."""
    own = machine(tmp_path, "sleep 301 & echo > /run/mesh/ready; wait; exec sleep 302")
    async with TaskScope() as scope:
        await own.boot(scope, "", SilentAgent())
        await eventually(lambda: "sleep" in own.processes(), "the sidecar's child runs", 30.0)
        before = own.containers["sidecar"].first_pid()
        assert own.signal("envoy", signal.SIGKILL)[0] == []
        killed, _ = own.signal("sleep", signal.SIGKILL)
        assert killed
        await eventually(lambda: not any(process_runs(pid) for pid in killed), "they ended", 30.0)
        assert own.containers["sidecar"].first_pid() == before
        await own.kill()
        assert own.signal("sleep", signal.SIGKILL)[0] == []


@pytest.mark.parametrize(
    ("volume", "named"),
    [
        ("pgdata:/pgdata", ("pgdata", "/pgdata")),
        ("pgdata:/pgdata:ro", ("pgdata", "/pgdata")),
        ("/var/run/dstack.sock:/var/run/dstack.sock", None),
        ("./data:/data", None),
        ("pgdata", None),
        ("../x:/y", None),
    ],
)
def test_named_volumes_are_told_from_folders(volume: str, named: tuple[str, str] | None) -> None:
    """Only a bare name is a volume of its own."""
    assert named_volume(volume) == named


async def test_a_cvm_is_the_peer_that_its_sidecar_says_or_said(tmp_path: Path) -> None:
    """Nobody before the first admission; what it said also while it is down and while it boots again."""
    own = machine(tmp_path, "exec sleep 300")
    identity = tmp_path / "machine" / "mesh" / "identity.json"
    assert (own.seen().peer_id, own.seen().current) == (None, False)
    async with TaskScope() as scope:
        await own.boot(scope, "", SilentAgent())
        identity.write_text("{")
        assert own.seen().peer_id is None
        identity.write_text('{"peer_id": "t-1"}')
        await own.kill()
        assert (own.seen().peer_id, own.seen().current) == ("t-1", False)
        await own.boot(scope, "", SilentAgent())
        assert (own.seen().peer_id, own.seen().current) == ("t-1", False)
        identity.write_text('{"peer_id": "t-0"}')
        assert (own.seen().peer_id, own.seen().current) == ("t-0", True)
        await own.kill()


async def test_a_wiped_disk_is_empty_and_a_running_machine_keeps_its_own(tmp_path: Path) -> None:
    """Only a CVM that does not run can lose its disk."""
    own = machine(tmp_path, "exec sleep 300")
    kept = tmp_path / "volumes" / "data"
    kept.mkdir(parents=True)
    (kept / "file").touch()
    async with TaskScope() as scope:
        await own.boot(scope, "", SilentAgent())
        with pytest.raises(ValueError, match="runs"):
            own.wipe()
        assert (kept / "file").exists()
        await own.kill()
    own.wipe()
    assert list((tmp_path / "volumes").iterdir()) == []
