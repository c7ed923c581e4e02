"""Ours and the anchor behind one interface, so that each measurement is written once and taken from both in turns."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.anchor import UPSTREAMS, Anchor, put_check, put_roles, service
from benchmarks.stage import CLIENT, ECHOES, MASTER, REPLICA, BenchError, Stage
from runtime import leader_key

API = "http://127.0.0.1:8500"
ROLE_SECONDS = 10.0
FOLLOW_SECONDS = 0.5
"""Until tags that followed are known everywhere: nobody's next measurement is to be disturbed."""
LEADER_KEY = "service/bench/leader"
"""What the manifest names as the leader key of the route `echo-master` (topology.render)."""


class Side(Protocol):
    """One of the two meshes."""

    name: str
    master: tuple[str, int]
    """What the caller dials for the instance with the tag `master`."""
    replica: tuple[str, int]
    """And for those with the tag `replica`."""

    def set_roles(self, roles: dict[str, str]) -> tuple[float, float]:
        """Gives each peer its role, in this order, through its local agent; before the first call and after the last
        that a caller has to wait for."""

    def follow(self) -> None:
        """Does what a workload does later, when no caller waits for it any more."""

    def set_check(self, peer: str, verdict: str) -> tuple[float, float]:
        """`pass` or `fail` for a peer's check through its local agent; moments before and after."""


class Ours:
    """Our mesh: what a workload does that owns its registration."""

    name = "ours"

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.master, self.replica = stage.vips[MASTER], stage.vips[REPLICA]
        services = json.loads(stage.helpers[ECHOES[0]].http("GET", f"{API}/v1/agent/services")["body"])
        self._sidecar_port = int(services["echo-echo-0"]["Port"])
        self._sessions: dict[str, str] = {}
        self._holder: str | None = None
        self._later: dict[str, dict[str, Any]] = {}
        """Registrations whose tags are to follow."""

    def body(self, peer: str, tag: str) -> dict[str, Any]:
        """The registration of the instance in `peer`."""
        own, place = f"echo-{peer}", self._stage.address(peer)
        return service("echo", own, address=place, port=self._sidecar_port, tags=[tag])

    def set_roles(self, roles: dict[str, str]) -> tuple[float, float]:
        """As `Side`. A leader that serves already takes the leader key and says so in one write; tags change nothing
        more for a caller, and follow later, as a database's do (`workloads.patroni.publisher`)."""
        return self._set(roles, promotes=False)

    def fail_over(self, roles: dict[str, str]) -> tuple[float, float]:
        """As `set_roles`, for a leader that is promoted when it has the key: it says later that it serves."""
        return self._set(roles, promotes=True)

    def _set(self, roles: dict[str, str], *, promotes: bool) -> tuple[float, float]:
        bodies = {peer: self.body(peer, tag) for peer, tag in roles.items()}
        leader = next((peer for peer, role in roles.items() if role == "master"), None)
        if leader is None:
            return put_roles(self._stage, API, bodies)
        took = self._take_key(leader, serves=not promotes)
        returned = self._serve(leader, took) if promotes else float(took["end"])
        self._later = bodies
        return took["start"], returned

    def follow(self) -> None:
        """As `Side`: the tags."""
        bodies, self._later = self._later, {}
        if bodies:
            put_roles(self._stage, API, bodies)
            time.sleep(FOLLOW_SECONDS)

    def _take_key(self, peer: str, *, serves: bool) -> dict[str, Any]:
        """Moves the leader key to `peer` in one transaction; the answer."""
        helper = self._stage.helpers[peer]
        if peer not in self._sessions:
            made = helper.http("PUT", f"{API}/v1/session/create", {"LockDelay": "0s", "Behavior": "delete"})
            self._sessions[peer] = json.loads(made["body"])["ID"]
        flags = leader_key.flags(serves=serves)
        lock = {"Verb": "lock", "Key": LEADER_KEY, "Value": _base64(peer), "Session": self._sessions[peer]}
        calls = [lock | {"Flags": flags}]
        if self._holder is not None:
            calls.insert(0, {"Verb": "unlock", "Key": LEADER_KEY, "Session": self._sessions[self._holder]})
        answer = helper.http("PUT", f"{API}/v1/txn", [{"KV": call} for call in calls])
        self._holder = peer
        return answer

    def _serve(self, peer: str, took: dict[str, Any]) -> float:
        """Says in the leader key that its holder serves; when that was done."""
        index = int(json.loads(took["body"])["Results"][-1]["KV"]["ModifyIndex"])
        call = {"Verb": "cas", "Key": LEADER_KEY, "Value": _base64(peer), "Index": index}
        call["Flags"] = leader_key.flags(serves=True)
        returned: float = self._stage.helpers[peer].http("PUT", f"{API}/v1/txn", [{"KV": call}])["end"]
        return returned

    def set_check(self, peer: str, verdict: str) -> tuple[float, float]:
        """As `Side`."""
        return put_check(self._stage, API, peer, f"echo-{peer}:ttl", verdict)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class Theirs:
    """The anchor."""

    name = "anchor"

    def __init__(self, anchor: Anchor) -> None:
        self.anchor = anchor
        self.master, self.replica = UPSTREAMS["anchor-master"], UPSTREAMS["anchor-replica"]
        self.set_roles, self.set_check = anchor.set_roles, anchor.set_check

    def follow(self) -> None:
        """As `Side`: nothing is left to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What the measurements of the running mesh work on."""

    stage: Stage
    ours: Ours
    theirs: Theirs | None
    """None: the anchor could not be started; its figures are missing."""
    quick: bool

    @property
    def sides(self) -> tuple[Side, ...]:
        """Ours first, then the anchor where it runs."""
        return (self.ours, self.theirs) if self.theirs else (self.ours,)

    def n(self, full: int, quick: int) -> int:
        """A number of samples."""
        return quick if self.quick else full

    def settle(self, side: Side, roles: dict[str, str]) -> None:
        """Sets roles and waits until the caller's view agrees. The first peer of a role is the one waited for."""
        side.set_roles(roles)
        side.follow()
        for role, target in (("master", side.master), ("replica", side.replica)):
            wanted = [peer[-1] for peer, has in roles.items() if has == role]
            for answer in wanted:
                host, port = target
                if self.stage.client.do("until", host=host, port=port, answer=answer, seconds=ROLE_SECONDS) is None:
                    raise BenchError(f"{side.name}: {role} never reached {answer} from {CLIENT}")
