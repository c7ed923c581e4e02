"""What chaos asks of a mesh, and when it calls a cluster whole."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshctl import chaos_cluster
from meshctl.chaos_cluster import SCENARIOS, ChaosError, Cluster
from meshctl.chaos_faults import MADE_HERE
from meshctl.chaos_figures import FAULTS
from meshctl.errors import UserError

MEMBERS = ("postgres-0", "postgres-1", "postgres-2")


class FakeProbe:
    """A program in a CVM; Patroni's REST API answers what `patroni` says."""

    patroni: Any = None

    def __init__(self, _run: object, peer: str, _module: str) -> None:
        self.peer = peer

    def do(self, command: str, **fields: Any) -> Any:
        """Only `http` says something."""
        if command != "http":
            return None
        name = fields["url"].rpartition("/")[2]
        return {"status": 200, "body": json.dumps({"members": self.patroni} if name == "cluster" else self.patroni)}

    def close(self) -> None:
        """Nothing to end."""


class FakeRun:
    """A lab with a coordinator, an application and three members, of whom the first leads."""

    name = "t"

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.machines: dict[str, dict[str, Any]] = {}
        for peer in ("coordinator-0", "webdemo-0", *MEMBERS):
            group = peer.rpartition("-")[0]
            kind = "coordinator" if group == "coordinator" else "workload"
            routes = [
                {"name": "postgres-master", "endpoints": ["postgres-0"]},
                {"name": "postgres-replica", "endpoints": ["postgres-1", "postgres-2"]},
            ]
            self.machines[peer] = {
                "peer_id": peer, "group": group, "kind": kind, "state": "running", "cut": None, "containers": [],
                "sidecar": {"ready": True, "address": "100.96.0.9", "routes": routes if kind == "workload" else []},
            }  # fmt: skip

    def names(self) -> dict[str, str]:
        """Machines are called what they are named."""
        return {peer: peer for peer in self.machines}

    def call(self, _method: str, path: str, seconds: float = 10.0) -> Any:
        """The control API."""
        if path == "/status":
            return {"cluster": "patroni-demo", "machines": list(self.machines.values())}
        self.asked.append(path)
        return {"at": seconds}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    """The lab; its programs are fakes too."""
    monkeypatch.setattr(chaos_cluster, "Probe", FakeProbe)
    roles = ("leader", "sync_standby", "replica")
    states = ("running", "streaming", "streaming")
    members = [{"name": n, "role": r, "state": s} for n, r, s in zip(MEMBERS, roles, states, strict=True)]
    monkeypatch.setattr(FakeProbe, "patroni", members)
    return FakeRun()


def cluster(run: FakeRun) -> Cluster:
    """The cluster in that lab."""
    return Cluster(run, SCENARIOS["patroni"])  # type: ignore[arg-type]


def test_members_are_the_group_behind_the_leaders_route(run: FakeRun) -> None:
    """Leader, members and the application's CVM are found by the routes."""
    found = cluster(run)
    assert (found.members, found.application, found.leader()) == (MEMBERS, "webdemo-0", "postgres-0")
    assert found.missing(synchronous=True) == ""


def test_a_mesh_without_the_application_is_refused(run: FakeRun) -> None:
    """One message that says what chaos needs."""
    del run.machines["webdemo-0"]
    with pytest.raises(UserError, match="0 CVMs of the group 'webdemo'"):
        cluster(run)


def test_what_is_missing_is_named(run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CVM that is not ready, a view that differs, a member that lags, a missing standby: the first one found."""
    found = cluster(run)
    sidecar = run.machines["postgres-2"]["sidecar"]
    sidecar["ready"], sidecar["reasons"] = False, ["link"]
    assert found.missing(synchronous=True) == "postgres-2: link"
    sidecar["ready"], sidecar["reasons"] = True, []
    sidecar["routes"][0]["endpoints"] = ["postgres-1"]
    assert found.missing(synchronous=True) == "postgres-2 does not see postgres-0 as the leader"
    sidecar["routes"][0]["endpoints"] = ["postgres-0"]
    sidecar["routes"][1]["endpoints"] = ["postgres-1"]
    assert found.missing(synchronous=True) == "postgres-replica lacks postgres-2 in postgres-2"
    sidecar["routes"][1]["endpoints"] = ["postgres-0", "postgres-1", "postgres-2"]
    assert (
        found.missing(synchronous=True) == "postgres-2 sees postgres-0, postgres-1, postgres-2 behind postgres-replica"
    )
    sidecar["routes"][1]["endpoints"] = ["postgres-2", "postgres-1"]
    members = [dict(member) for member in FakeProbe.patroni]
    members[1]["state"] = "starting"
    monkeypatch.setattr(FakeProbe, "patroni", members)
    assert found.missing(synchronous=True) == "postgres-1 (sync_standby) is starting"
    members[1] |= {"state": "streaming", "role": "replica"}
    assert found.missing(synchronous=True) == "there is no synchronous standby"
    assert found.missing(synchronous=False) == ""
    monkeypatch.setattr(FakeProbe, "patroni", members[:2])
    assert found.missing(synchronous=False) == "Patroni knows postgres-0, postgres-1"
    monkeypatch.setattr(FakeProbe, "patroni", 7)
    assert "Patroni of postgres-0 does not say" in found.missing(synchronous=False)


def test_each_fault_is_one_action_of_the_lab(run: FakeRun) -> None:
    """What is asked of whom; Envoy's is the leader's and the caller's in turns."""
    found = cluster(run)
    for fault in FAULTS:
        if fault != "switchover" and fault not in MADE_HERE:
            assert found.hit(fault, "postgres-0", 0).victim == "postgres-0"
    assert found.hit("crash-envoy", "postgres-0", 1).victim == "webdemo-0"
    assert run.asked == [
        "/machines/postgres-0/signal?process=postgres",
        "/machines/postgres-0/signal?process=workloads.patroni.member",
        "/machines/postgres-0/signal?process=envoy",
        "/machines/postgres-0/signal?process=sidecar",
        "/machines/postgres-0/kill",
        "/machines/postgres-0/cut?direction=both",
        "/machines/postgres-0/cut?direction=in",
        "/machines/postgres-0/cut?direction=out",
        "/machines/webdemo-0/signal?process=envoy",
    ]


def test_mending_ends_what_there_is_and_nothing_else(run: FakeRun) -> None:
    """Cuts are healed, CVMs that do not run are started; a whole mesh is left alone."""
    found = cluster(run)
    found.mend()
    assert run.asked == []
    run.machines["postgres-0"]["cut"] = "in"
    run.machines["postgres-1"]["state"] = "killed"
    found.mend()
    assert run.asked == ["/machines/postgres-0/heal", "/machines/postgres-1/start"]


def test_synchronous_mode_is_what_patroni_says(run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """On as `true`, `on` or `quorum`."""
    found = cluster(run)
    for value, expected in ((True, True), ("quorum", True), (False, False), (None, False)):
        monkeypatch.setattr(FakeProbe, "patroni", {"synchronous_mode": value})
        assert found.synchronous() is expected


def test_waiting_for_a_whole_cluster_is_bounded(run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is told while it is waited for, and named when that takes too long."""
    monkeypatch.setattr(chaos_cluster, "WHOLE_SECONDS", 0.3)
    found, told = cluster(run), list[str]()
    found.on_wait = told.append
    found.wait_whole()
    assert told == []
    run.machines["postgres-2"]["sidecar"] |= {"ready": False, "reasons": ["link"]}
    with pytest.raises(ChaosError, match=r"not whole.*postgres-2: link"):
        found.wait_whole()
    assert set(told) == {"postgres-2: link"}


def test_rest_routes_and_addresses_are_what_the_mesh_says(run: FakeRun) -> None:
    """Each name once, whoever sees it; addresses of the members that have one."""
    routes = [{"name": f"patroni-{n}", "port": 8008, "endpoints": []} for n in (1, 0)]
    for peer in ("webdemo-0", "postgres-0"):
        run.machines[peer]["sidecar"]["routes"] = [*run.machines[peer]["sidecar"]["routes"], *routes]
    for machine in run.machines.values():
        for route in machine["sidecar"]["routes"]:
            route.setdefault("port", 5432)
    run.machines["postgres-1"]["sidecar"]["address"] = None
    found = cluster(run)
    assert found.rest_routes() == [("patroni-0", 8008), ("patroni-1", 8008)]
    assert found.addresses(MEMBERS) == ["100.96.0.9"] * 2
    assert found.coordinators() == ["coordinator-0"]
