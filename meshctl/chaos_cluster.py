"""The database cluster that chaos is made in: who leads, whether it is whole, what breaks and mends it. IO: the lab's
control API, programs inside CVMs.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlencode

from meshctl import chaos_faults, runs, status
from meshctl.chaos_figures import Fault, decision
from meshctl.errors import UserError
from meshctl.lab_commands import exec_argv
from meshctl.probes import Probe, ProbeError

PROBE = "workloads.dbprobe"
ROUTES = ("postgres-master", "postgres-replica")
PORT = 5432
REST_PORT = 8008
REST = f"http://127.0.0.1:{REST_PORT}"
"""Patroni's REST API, for whoever is in its CVM."""
COMMAND_SECONDS = 60.0
WHOLE_SECONDS = 180.0
LEADER_SECONDS = 120.0
"""A fresh cluster makes its first database in some 10 s."""


class ChaosError(Exception):
    """The run cannot go on; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A cluster that chaos knows how to use."""

    name: str
    cluster: str
    """Folder below `clusters/`."""
    application: str
    """Group in which the clients run."""
    user: str
    """Role and database that they use."""
    password_file: str
    patroni: str
    """What Patroni's process is called."""
    configuration: str
    """Patroni's file, inside a database CVM."""


SCENARIOS = {
    "patroni": Scenario(
        name="patroni",
        cluster="patroni-demo",
        application="webdemo",
        user="webdemo",
        password_file="/run/mesh/secrets/db-webdemo",
        patroni="workloads.patroni.member",
        configuration="/run/patroni/patroni.yml",
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A fault that was made."""

    victim: str
    at: float
    """Just before."""
    over: float = 0.0
    """Just after its last step, where it has several."""
    process: subprocess.Popen[bytes] | None = None
    """A command that goes on meanwhile."""


class Cluster:
    """The running mesh of a scenario."""

    def __init__(self, run: runs.Run, scenario: Scenario) -> None:
        self.run = run
        self.scenario = scenario
        document, group = self._wait_leader()
        self.members = tuple(p["peer_id"] for p in document["peers"] if p["group"] == group)
        found = [p["peer_id"] for p in document["peers"] if p["group"] == scenario.application]
        if not found or len(self.members) < 2:
            raise UserError(
                f"mesh {run.name!r} has {len(found)} CVMs of the group {scenario.application!r} and {len(self.members)}"
                " of a database; chaos needs one and two at least",
                f"./mesh up clusters/{scenario.cluster}, or leave out --name",
            )
        self.application = found[0]
        self.clients = Probe(run, self.application, PROBE)
        self._inside: dict[str, Probe] = {}
        self.notes: list[str] = []
        """What the round's fault has to say; the engine takes it."""
        self.on_wait: Callable[[str], None] = lambda _: None
        """Is told what `wait_whole` waits for."""

    def document(self) -> dict[str, Any]:
        """The status contract, with PIDs as the lab sees them: quicker than the host's view."""
        return status.contract(self.run.call("GET", "/status"))

    def _wait_leader(self) -> tuple[dict[str, Any], str]:
        """The status document once the leader's route leads to somebody, and that group."""
        end = time.monotonic() + LEADER_SECONDS
        while time.monotonic() < end:
            document = self.document()
            leads = {
                e for p in document["peers"] for r in p["routes"] if r["name"] == ROUTES[0] for e in r["endpoints"]
            }
            groups = {p["group"] for p in document["peers"] if p["peer_id"] in leads}
            if len(groups) == 1:
                return document, str(groups.pop())
            time.sleep(0.1)
        raise UserError(
            f"mesh {self.run.name!r} has no leader behind {ROUTES[0]!r}",
            "./mesh status shows what is missing",
            exit_code=1,
        )

    def target(self, route: str) -> dict[str, Any]:
        """Where clients of the application log in."""
        return {
            "host": route,
            "port": PORT,
            "user": self.scenario.user,
            "database": self.scenario.user,
            "password_file": self.scenario.password_file,
        }

    def inside(self, peer: str) -> Probe:
        """A probe beside the database of `peer`; a new one when the last has ended."""
        if peer not in self._inside:
            self._inside[peer] = Probe(self.run, peer, PROBE)
        return self._inside[peer]

    def forget(self, peer: str) -> None:
        """Ends the probe of `peer`, whose container may be another one now."""
        probe = self._inside.pop(peer, None)
        if probe is not None:
            probe.close()

    def ask(self, peer: str, command: str, **fields: Any) -> Any:
        """One command beside the database of `peer`. ProbeError when it cannot be asked."""
        try:
            return self.inside(peer).do(command, **fields)
        except UserError as error:
            raise ProbeError(str(error)) from error
        except ProbeError:
            self.forget(peer)
            raise

    def leader(self) -> str | None:
        """Where the application's CVM sends those who dial the leader now."""
        endpoints = self._endpoints(self.document(), self.application, ROUTES[0])
        return endpoints[0] if len(endpoints) == 1 else None

    def _endpoints(self, document: dict[str, Any], peer: str, route: str) -> list[str]:
        own = next((p for p in document["peers"] if p["peer_id"] == peer), None)
        return next((r["endpoints"] for r in own["routes"] if r["name"] == route), []) if own else []

    def missing(self, *, synchronous: bool) -> str:
        """What keeps the cluster from being whole; empty when it is."""
        document = self.document()
        for peer in document["peers"]:
            if not peer["ready"]:
                return f"{peer['peer_id']}: {'; '.join(peer['reasons']) or 'starting'}"
        leaders = self._endpoints(document, self.application, ROUTES[0])
        if len(leaders) != 1:
            return f"{ROUTES[0]} leads to {leaders or 'nobody'}"
        for peer in (p["peer_id"] for p in document["peers"] if p["kind"] == "workload"):
            if self._endpoints(document, peer, ROUTES[0]) != leaders:
                return f"{peer} does not see {leaders[0]} as the leader"
            replicas = self._endpoints(document, peer, ROUTES[1])
            missing = [member for member in self.members if member not in (*leaders, *replicas)]
            if missing:
                return f"{ROUTES[1]} lacks {', '.join(missing)} in {peer}"
            if set(replicas) != set(self.members) - set(leaders):
                return f"{peer} sees {', '.join(replicas) or 'nobody'} behind {ROUTES[1]}"
        return self._replication(leaders[0], synchronous=synchronous)

    def _replication(self, leader: str, *, synchronous: bool) -> str:
        """What Patroni says that is not in order."""
        try:
            answer = self.ask(leader, "http", url=f"{REST}/cluster")
            members = json.loads(answer["body"])["members"]
            roles = {member["name"]: (member["role"], member["state"]) for member in members}
        except (ProbeError, ValueError, KeyError, TypeError) as error:
            return f"Patroni of {leader} does not say how its cluster is: {error}"
        if sorted(roles) != sorted(self.members):
            return f"Patroni knows {', '.join(sorted(roles)) or 'nobody'}"
        if roles[leader] != ("leader", "running"):
            return f"Patroni calls {leader} {' '.join(roles[leader])}"
        for name, (role, state) in roles.items():
            if name != leader and state != "streaming":
                return f"{name} ({role}) is {state}"
        if synchronous and not any(role in ("sync_standby", "quorum_standby") for role, _ in roles.values()):
            return "there is no synchronous standby"
        return ""

    def timeline(self) -> int:
        """The leader's, through the mesh: the highest timeline so far."""
        state = self.clients.do("hold", target=self.target(ROUTES[0]), pause=0.005)
        return int(state["idle"]["timeline"])

    def decided(self, leader: str, after: float) -> float | None:
        """When the caller's sidecar took the route away from `leader`, after the moment `after` (CLOCK_MONOTONIC)."""
        # Its log has the time of day; what lies between the two clocks does not change within a round.
        between = time.time() - time.monotonic()
        log = runs.log_of_peer(self.run, self.application, "sidecar")
        with contextlib.suppress(OSError):
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            found = decision(lines, ROUTES[0], leader, after + between)
            return None if found is None else found - between
        return None

    def hit(self, fault: Fault, leader: str, number: int) -> Hit:
        """Makes the fault; one of several steps is over when this returns."""
        if fault in chaos_faults.MADE_HERE:
            at = chaos_faults.make(self, fault, leader, number)
            return Hit(victim=leader, at=at, over=time.monotonic())
        if fault == "switchover":
            argv = self._patronictl(leader, "switchover", "--leader", leader, "--force")
            at = time.monotonic()
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=runs.CHECKOUT,
                start_new_session=True,
            )  # fmt: skip
            return Hit(victim=leader, at=at, process=process)
        # The caller's Envoy and the leader's in turns.
        victim = self.application if fault == "crash-envoy" and number % 2 else leader
        asked: dict[Fault, tuple[str, dict[str, str]]] = {
            "crash-postgres": ("signal", {"process": "postgres"}),
            "crash-patroni": ("signal", {"process": self.scenario.patroni}),
            "crash-envoy": ("signal", {"process": "envoy"}),
            "crash-sidecar": ("signal", {"process": "sidecar"}),
            "cvm-loss": ("kill", {}),
            "partition-both": ("cut", {"direction": "both"}),
            "partition-in": ("cut", {"direction": "in"}),
            "partition-out": ("cut", {"direction": "out"}),
        }
        action, query = asked[fault]
        return Hit(victim=victim, at=float(self.act(victim, action, query)["at"]))

    def act(self, peer: str, action: str, query: dict[str, str] | None = None) -> dict[str, Any]:
        """One action of the lab on a CVM."""
        suffix = f"?{urlencode(query)}" if query else ""
        answer: dict[str, Any] = self.run.call("POST", f"/machines/{peer}/{action}{suffix}", seconds=COMMAND_SECONDS)
        return answer

    def machines(self) -> dict[str, str]:
        """Peer ID → the lab's name of that CVM now: the name that stays with it when it boots."""
        return {called: machine for machine, called in self.run.names().items()}

    def coordinators(self) -> list[str]:
        """Peer IDs of the coordinators."""
        return [p["peer_id"] for p in self.document()["peers"] if p["kind"] == "coordinator"]

    def addresses(self, peers: Sequence[str]) -> list[str]:
        """The mesh addresses of `peers`, as far as they are known now."""
        return [p["address"] for p in self.document()["peers"] if p["peer_id"] in peers and p["address"]]

    def rest_routes(self) -> list[tuple[str, int]]:
        """Name and port of every route that leads to a member's REST interface."""
        found = {
            r["name"]: int(r["port"])
            for p in self.document()["peers"]
            for r in p["routes"]
            if int(r["port"]) == REST_PORT
        }
        return sorted(found.items())

    def note(self, text: str) -> None:
        """Keeps `text` for the round's evidence."""
        self.notes.append(text)

    def wait_whole(self, *, synchronous: bool = True) -> None:
        """Returns when every member and every CVM is as it should be. ChaosError when that takes too long."""
        end = time.monotonic() + WHOLE_SECONDS
        missing = "nothing was asked yet"
        while time.monotonic() < end:
            try:
                missing = self.missing(synchronous=synchronous)
            except (ProbeError, UserError) as error:
                missing = str(error)
            if not missing:
                return
            self.on_wait(missing)
            time.sleep(0.1)
        raise ChaosError(f"the cluster is not whole after {WHOLE_SECONDS:.0f} s: {missing}")

    def standing(self, peer: str) -> str:
        """Why the data of `peer` are not the leader's, as the member itself says; empty when it says nothing such."""
        state, reason = self.ask(peer, "standing", folder=str(PurePosixPath(self.scenario.configuration).parent))
        return "" if state == "whole" else f"{state}: {reason}"

    def mend(self) -> None:
        """Ends every cut and starts every CVM that does not run."""
        for machine in self.run.call("GET", "/status")["machines"]:
            if machine["cut"]:
                self.act(machine["peer_id"], "heal")
            if machine["state"] in ("killed", "stopped"):
                self.forget(machine["peer_id"])
                self.act(machine["peer_id"], "start")

    def finish(self, hit: Hit) -> str:
        """Waits for the command of a fault; what it said when it failed."""
        if hit.process is None:
            return ""
        try:
            said, _ = hit.process.communicate(timeout=COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            hit.process.kill()
            said, _ = hit.process.communicate()
        return "" if hit.process.returncode == 0 else said.decode(errors="replace").strip()[-500:]

    def synchronous(self) -> bool:
        """Whether the cluster runs in synchronous mode."""
        return self.configuration().get("synchronous_mode") in (True, "on", "quorum")

    def configuration(self) -> dict[str, Any]:
        """Patroni's cluster-wide configuration."""
        end = time.monotonic() + COMMAND_SECONDS
        while True:
            leader = self.leader() or self.members[0]
            try:
                answer = self.ask(leader, "http", url=f"{REST}/config")
                tree: dict[str, Any] = json.loads(answer["body"])
            except (ProbeError, ValueError) as error:
                if time.monotonic() > end:
                    raise ChaosError(f"Patroni of {leader} does not tell its configuration: {error}") from error
                time.sleep(0.2)
            else:
                return tree

    def set_synchronous(self, on: bool) -> None:
        """Switches synchronous mode."""
        leader = self.leader() or self.members[0]
        argv = self._patronictl(
            leader, "edit-config", "--force", "--quiet", "--set", f"synchronous_mode={'true' if on else 'false'}"
        )
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=runs.CHECKOUT, check=False,
            timeout=COMMAND_SECONDS,
        )  # fmt: skip
        if done.returncode != 0:
            raise ChaosError(f"patronictl in {leader} failed: {(done.stdout + done.stderr).strip()[-500:]}")

    def _patronictl(self, peer: str, *arguments: str) -> list[str]:
        return exec_argv(self.run, peer, None, ("patronictl", "-c", self.scenario.configuration, *arguments))

    def close(self) -> None:
        """Ends every probe; the mesh is the caller's."""
        with contextlib.suppress(ProbeError):
            self.clients.do("clear", target=self.target(ROUTES[0]))
        self.clients.close()
        for peer in list(self._inside):
            self.forget(peer)
