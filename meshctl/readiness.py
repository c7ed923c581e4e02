"""Whether applications are ready, by the health checks of their compose files. IO: compose files, the lab's containers.

The mesh is ready when every route leads somewhere. An application may need more: a database that has a leader and no
standby yet serves, and could not fail over. What an application means by ready, it says by its health check.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from meshctl import runs
from meshctl.console import Progress
from meshctl.errors import UserError

if TYPE_CHECKING:
    from topology.cluster import Cluster

READY_SECONDS = 180.0
"""For applications to become ready after the mesh is. A new database takes some 15 s on an idle machine: initdb, then
a copy of it for each standby."""
CHECK_SECONDS = 20.0
"""For one run of a check. On a busy machine Python alone needs a second to start."""
LOOK_SECONDS = 0.5
"""Between two rounds of checks."""
MAX_SAID = 2000
"""Characters of what a check printed that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The health check of one application container of one CVM."""

    peer: str
    container: str
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a check said."""

    check: Check
    passed: bool
    said: str

    def line(self) -> str:
        """For a person."""
        return f"{self.check.peer}: {self.check.container} is {'ready' if self.passed else 'not ready'}: {self.said}"


def commands(compose: str) -> dict[str, tuple[str, ...]]:
    """The health check's command of each service of a compose file that has one in exec form (`CMD`). Pure.

    The cluster was loaded from the same text: what is no compose file has been refused.
    """
    services = (yaml.safe_load(compose) or {}).get("services") or {}
    found: dict[str, tuple[str, ...]] = {}
    for name, body in services.items():
        test = ((body or {}).get("healthcheck") or {}).get("test")
        if isinstance(test, list) and len(test) > 1 and test[0] == "CMD":
            found[str(name)] = tuple(str(word) for word in test[1:])
    return found


def checks(raw: Mapping[str, Any], of_group: Mapping[str, Mapping[str, tuple[str, ...]]]) -> list[Check]:
    """The checks of the application containers of all running CVMs, by the lab's raw status. Pure."""
    return [
        Check(peer=machine["peer_id"], container=container["name"], argv=of_group[machine["group"]][container["name"]])
        for machine in raw["machines"]
        if machine["state"] == "running"
        for container in machine["containers"]
        if not container["is_sidecar"] and container["name"] in of_group.get(machine["group"], {})
    ]


def cluster_of(run: runs.Run) -> Cluster:
    """The cluster that a mesh on this machine was brought up from."""
    from topology.cluster import load

    request = json.loads((run.folder / "request.json").read_text(encoding="utf-8"))
    return load(Path(request["cluster"]), request["overrides"])


def by_group(cluster: Cluster) -> dict[str, dict[str, tuple[str, ...]]]:
    """Command of the health check by container, by group."""
    return {
        group.name: commands((cluster.folder / group.compose).read_text(encoding="utf-8")) for group in cluster.groups
    }


def of_run(run: runs.Run) -> list[Check]:
    """The checks of a mesh on this machine."""
    return checks(run.call("GET", "/status"), by_group(cluster_of(run)))


def ask(run: runs.Run, wanted: Sequence[Check]) -> list[Outcome]:
    """Runs the checks in their containers, all at once."""
    if not wanted:
        return []
    with ThreadPoolExecutor(min(len(wanted), 16)) as threads:
        return list(threads.map(lambda check: _run(run, check), wanted))


def _run(run: runs.Run, check: Check) -> Outcome:
    from meshctl.lab_commands import exec_argv

    try:
        argv = exec_argv(run, check.peer, check.container, check.argv)
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=CHECK_SECONDS, cwd=runs.CHECKOUT, check=False
        )
    except UserError as error:
        return Outcome(check=check, passed=False, said=error.message)
    except subprocess.TimeoutExpired:
        return Outcome(check=check, passed=False, said=f"its check took longer than {CHECK_SECONDS:g} s")
    said = (done.stdout.strip() or done.stderr.strip() or f"exit code {done.returncode}")[:MAX_SAID]
    return Outcome(check=check, passed=done.returncode == 0, said=said)


def wait(run: runs.Run, progress: Progress, seconds: float = READY_SECONDS) -> list[Outcome]:
    """Waits until every application is ready; what each said. UserError names those that are not in time."""
    started = time.monotonic()
    wanted = of_run(run)
    while True:
        outcomes = ask(run, wanted)
        waiting = [outcome.line() for outcome in outcomes if not outcome.passed]
        if not waiting:
            if outcomes:
                progress.line(
                    f"all {len(outcomes)} checked applications ready after {time.monotonic() - started:.1f} s"
                )
            return outcomes
        if time.monotonic() - started > seconds:
            raise UserError(
                f"not ready after {seconds:.0f} s; the mesh goes on:\n" + "\n".join(waiting), "./mesh logs shows why"
            )
        progress.update(waiting[0])
        time.sleep(LOOK_SECONDS)
