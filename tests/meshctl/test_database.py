"""`./mesh database`, without a mesh."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from meshctl import database, readiness, runs
from meshctl.database import members_of, report
from meshctl.errors import UserError
from meshctl.readiness import Check, Outcome

CHECKS = {"postgres": {"patroni": (database.PROGRAM, "health")}, "api": {"api": ("/app/api", "health")}}
SLOTS = {"api": ("api-0",), "postgres": ("postgres-0", "postgres-1", "postgres-2")}


def machine(peer: str, state: str = "running") -> dict[str, Any]:
    """A CVM of the lab's raw status."""
    group = peer.partition("-")[0]
    containers = [{"name": "patroni" if group == "postgres" else group, "is_sidecar": False}]
    return {"peer_id": peer, "group": group, "state": state, "containers": containers}


RAW = {"machines": [machine("api-0"), machine("postgres-0"), machine("postgres-1"), machine("postgres-cvm1", "killed")]}
"""The killed CVM had a slot that another one has by now."""


def test_coordinators_that_are_down_are_named_too() -> None:
    """Nobody leads for long without them; they are no members."""
    raw = {"machines": [machine("coordinator-0", "killed"), *map(machine, SLOTS["postgres"])]}
    found = members_of(raw, SLOTS, CHECKS)
    assert (found.down, found.vacant) == ({}, ())
    assert report([], found) == ["coordinator-0: killed", "Start what is down: ./mesh start coordinator-0"]


def outcome(peer: str, said: str) -> Outcome:
    """What a member said."""
    return Outcome(check=Check(peer=peer, container="patroni", argv=()), passed=False, said=said)


def test_each_slot_of_the_group_is_found() -> None:
    """CVMs that run, CVMs that are down by what they are called now, and slots that nobody has."""
    found = members_of(RAW, SLOTS, CHECKS)
    assert [check.peer for check in found.running] == ["postgres-0", "postgres-1"]
    assert (found.down, found.vacant, found.others) == ({"postgres-cvm1": "killed"}, ("postgres-2",), ("api-0",))


def test_what_can_be_started_is_named() -> None:
    """Each member's lines, then who is missing, and the command that boots it; the same advice once."""
    advice = "Start the missing members.\nOr allow one to lead."
    said = [
        outcome("postgres-0", f"postgres-0: not ready: it waits\n  replica, stopped, empty\n{advice}"),
        outcome("postgres-1", f"starting: there is no configuration\n{advice}"),
    ]
    assert report(said, members_of(RAW, SLOTS, CHECKS)) == [
        "postgres-0: not ready: it waits",
        "  replica, stopped, empty",
        "postgres-1: starting: there is no configuration",
        "postgres-cvm1: killed",
        "postgres-2: not there: a CVM of the group that starts gets this slot",
        "Start what is down: ./mesh start postgres-cvm1",
        advice,
    ]


class FakeRun:
    """A mesh that runs, or some of it."""

    name = "x"

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw

    def call(self, method: str, path: str) -> Any:
        """The lab's status."""
        assert (method, path) == ("GET", "/status")
        return self.raw

    def names(self) -> dict[str, str]:
        """One machine is another peer than its number says."""
        return {"postgres-cvm2": "postgres-0"}


class FakeGroup:
    """A group as the cluster has it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def peers(self) -> tuple[str, ...]:
        """Its slots."""
        return SLOTS[self.name]


class FakeCluster:
    """Two groups."""

    groups = (FakeGroup("api"), FakeGroup("postgres"))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    """The only running mesh; its members say that all is well."""
    fake = FakeRun(RAW)
    monkeypatch.setattr(runs, "find", lambda _name: fake)
    monkeypatch.setattr(readiness, "cluster_of", lambda _run: FakeCluster)
    monkeypatch.setattr(readiness, "by_group", lambda _cluster: CHECKS)

    def ask(_run: Any, checks: list[Check]) -> list[Outcome]:
        assert all(check.argv == (database.PROGRAM, "status", "--own") for check in checks)
        return [Outcome(check=check, passed=True, said=f"{check.peer}: ready") for check in checks]

    monkeypatch.setattr(readiness, "ask", ask)
    return fake


def test_exit_code_says_that_a_member_is_missing(run: FakeRun) -> None:
    """Two of three that could fail over are not what the owner ordered."""
    assert CliRunner().invoke(database.command, ["status"]).exit_code == 1
    run.raw = {"machines": [machine(peer) for peer in ("api-0", *SLOTS["postgres"])]}
    whole = CliRunner().invoke(database.command, ["status"])
    assert (whole.exit_code, whole.output) == (0, "postgres-0: ready\npostgres-1: ready\npostgres-2: ready\n")
    run.raw = {"machines": [machine(peer, "killed") for peer in SLOTS["postgres"]]}
    none = CliRunner().invoke(database.command, ["status"])
    assert none.exit_code == 1
    assert none.output.endswith("Start what is down: ./mesh start postgres-0 postgres-1 postgres-2\n")


@pytest.mark.parametrize(
    ("peer", "said"),
    [
        ("api-0", "api-0 runs no database"),
        ("postgres-7", "there is no CVM 'postgres-7'"),
        ("postgres-2", "there is no CVM 'postgres-2'"),
        ("postgres-cvm1", "postgres-cvm1 is killed"),
    ],
)
def test_who_cannot_lead_is_told_why(run: FakeRun, peer: str, said: str) -> None:
    """A CVM of another group, one that is not there, and one that is down are three things; nothing is done."""
    result = CliRunner().invoke(database.command, ["lead", peer, "--accept-loss"])
    assert isinstance(result.exception, UserError)
    assert said in result.exception.message
    expected = "./mesh start postgres-cvm1" if "killed" in said else "postgres-0, postgres-1, postgres-cvm1"
    assert expected in result.exception.remedy


def test_mesh_without_a_database_says_so(run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no group is a database there is nothing to show."""
    monkeypatch.setattr(readiness, "by_group", lambda _cluster: {"api": CHECKS["api"]})
    result = CliRunner().invoke(database.command, ["status"])
    assert isinstance(result.exception, UserError)
    assert "has no database" in result.exception.message
