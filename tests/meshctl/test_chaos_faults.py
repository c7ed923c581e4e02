"""Faults of several steps: what is done to whom, in which order."""

from __future__ import annotations

from typing import Any

import pytest

from meshctl import chaos_faults
from meshctl.chaos_faults import MADE_HERE, make, wait_ready
from meshctl.chaos_figures import FAULTS, Fault
from meshctl.errors import UserError
from meshctl.probes import ProbeError


class FakeClients:
    """Clients that note what they are asked for."""

    def __init__(self, done: list[str]) -> None:
        self._done = done
        self.refuses = False
        self.fields: dict[str, Any] = {}

    def do(self, command: str, **fields: Any) -> Any:
        """The attack, or the writes."""
        self._done.append(command)
        self.fields = fields
        if self.refuses:
            raise ProbeError("gone")
        return {"written": 0, "refused": 7, "checks": 3} if command == "poison" else {}


class FakeCluster:
    """Two coordinators and three members; every CVM that was started is ready."""

    members = ("pg-0", "pg-1", "pg-2")

    def __init__(self) -> None:
        self.done: list[str] = []
        self.clients = FakeClients(self.done)
        self.notes: list[str] = []
        self.ready = True

    def act(self, peer: str, action: str) -> dict[str, Any]:
        """The lab."""
        self.done.append(f"{action} {peer}")
        return {"at": 5.0}

    def coordinators(self) -> list[str]:
        """Both."""
        return ["coordinator-0", "coordinator-1"]

    def machines(self) -> dict[str, str]:
        """Peer ID to machine."""
        return {peer: f"m-{peer}" for peer in self.members}

    def document(self) -> dict[str, Any]:
        """The status."""
        peers = [{"peer_id": peer, "ready": self.ready, "reasons": ["phase consul"]} for peer in self.coordinators()]
        return {"peers": peers}

    def forget(self, peer: str) -> None:
        """Probes end with their container."""

    def target(self, route: str) -> dict[str, Any]:
        """Where clients log in."""
        return {"host": route}

    def wait_whole(self) -> None:
        """At once."""
        self.done.append("whole")

    def addresses(self, peers: tuple[str, ...]) -> list[str]:
        """Mesh addresses."""
        return [f"100.96.0.{peer[-1]}" for peer in peers]

    def rest_routes(self) -> list[tuple[str, int]]:
        """Names of the members' REST."""
        return [("patroni-0", 8008)]

    def note(self, text: str) -> None:
        """For the evidence."""
        self.notes.append(text)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("APART_SECONDS", "FULL_SECONDS", "POLL"):
        monkeypatch.setattr(chaos_faults, name, 0.001)


def done(fault: Fault, turn: int = 0) -> list[str]:
    """What `fault` does."""
    cluster = FakeCluster()
    make(cluster, fault, "pg-1", turn)  # type: ignore[arg-type]
    return cluster.done


def test_all_of_them_are_faults() -> None:
    """Each is one that a run knows."""
    assert set(MADE_HERE) <= set(FAULTS)


def test_coordinators_restart_at_once_and_in_turns() -> None:
    """All are gone before the first boots; in the next round one after the other."""
    both = ["kill coordinator-0", "kill coordinator-1", "start coordinator-0", "start coordinator-1"]
    assert done("coordinators-restart") == both
    assert done("coordinators-restart", 1) == [both[0], both[2], both[1], both[3]]


def test_lost_coordinators_have_empty_disks() -> None:
    """Every disk is emptied while its CVM is away."""
    found = done("coordinators-lost")
    assert [step.split()[0] for step in found] == ["kill"] * 2 + ["wipe"] * 2 + ["start"] * 2


def test_the_member_that_was_lost_first_boots_first() -> None:
    """The order in which acknowledged writes were lost once; with empty disks of the coordinators in turns."""
    steps = [
        "kill pg-0", "kill pg-1", "kill pg-2", "kill coordinator-0", "kill coordinator-1", "start coordinator-0",
        "start coordinator-1", "start m-pg-0", "start m-pg-1", "start m-pg-2",
    ]  # fmt: skip
    assert done("coordinator-and-members") == steps
    assert [step for step in done("coordinator-and-members", 1) if step not in steps] == [
        "wipe coordinator-0",
        "wipe coordinator-1",
    ]


def test_an_update_takes_the_leader_last() -> None:
    """One CVM at a time, each only when the cluster is whole again."""
    assert [step for step in done("rolling-update") if step != "whole"] == [
        "stop pg-0", "start m-pg-0", "stop pg-2", "start m-pg-2", "stop pg-1", "start m-pg-1",
    ]  # fmt: skip
    assert done("rolling-update").count("whole") == 3


def test_a_disk_is_given_back_whatever_happens() -> None:
    """Also when the clients end meanwhile."""
    assert done("disk-full") == ["fill pg-1", "burn", "free pg-1"]
    cluster = FakeCluster()
    cluster.clients.refuses = True
    with pytest.raises(UserError, match="could not write"):
        make(cluster, "disk-full", "pg-1", 0)  # type: ignore[arg-type]
    assert cluster.done[-1] == "free pg-1"


def test_attacks_reach_for_every_member() -> None:
    """By mesh address and by name; an attack of which nothing was taken is told."""
    cluster = FakeCluster()
    make(cluster, "rest-attack", "pg-1", 0)  # type: ignore[arg-type]
    assert cluster.clients.fields["targets"] == [
        ("100.96.0.0", 8008), ("100.96.0.1", 8008), ("100.96.0.2", 8008), ("patroni-0", 8008),
    ]  # fmt: skip
    make(cluster, "check-attack", "pg-1", 0)  # type: ignore[arg-type]
    assert cluster.clients.fields["nodes"] == ["pg-0", "pg-1", "pg-2"]
    assert cluster.notes == ["no write of the attack was taken: {'written': 0, 'refused': 7, 'checks': 3}"]


def test_coordinators_that_do_not_come_back_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what they wait for, after the bound."""
    monkeypatch.setattr(chaos_faults, "READY_SECONDS", 0.05)
    cluster = FakeCluster()
    cluster.ready = False
    with pytest.raises(UserError, match="coordinator-1: phase consul"):
        wait_ready(cluster, cluster.coordinators())  # type: ignore[arg-type]
