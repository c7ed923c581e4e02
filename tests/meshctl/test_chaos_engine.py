"""The rounds' order and their bounds, on a cluster of values; real clusters are broken in tests/e2e/test_chaos.py."""

from __future__ import annotations

from typing import Any

import pytest

from meshctl import chaos_engine
from meshctl.chaos_cluster import ChaosError, Hit
from meshctl.chaos_engine import Engine, Evidence
from meshctl.console import Silent
from meshctl.probes import ProbeError


class FakeClients:
    """Clients that are served by timeline 1 until the cluster is hit, and by timeline 2 afterwards."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster

    def do(self, command: str, **fields: Any) -> Any:
        """Answers as `workloads.dbprobe` does."""
        cluster = self._cluster
        cluster.said.append(command)
        hit = "hit" in cluster.said
        if command == "hold":
            return {name: {"timeline": 1, "peer": "pg-0", "closed": None} for name in ("idle", "talking")}
        if command == "state":
            served = not hit or cluster.recovers
            closed = {"timeline": 1, "peer": "pg-0", "closed": 10.1 if hit and cluster.closes else None}
            return {
                "now": 10.5 if cluster.recovers else 1000.0,
                "acks": 100 if served else 0,
                "beyond": 100 if hit and served and cluster.moves else 0,
                "timeline": 2 if hit else 1,
                "last": 10.4,
                "held": {"idle": closed, "talking": closed},
                "reads": 5,
                "last_failure": None,
            }
        if command == "stop":
            acks = [[0, 1, 9.0, 9.1, 1, "pg-0"], [0, 2, 10.2, 10.3, 2, "pg-1"]]
            held = {"idle": {"closed": 10.1}, "talking": {"closed": 10.05}}
            return {
                "acks": acks, "unknown": [[0, 3]], "failures": [], "attempts_failed": 1, "read_failures": 0,
                "reads": [[9.0, True, "pg-1"], [9.5, True, "pg-1"]], "held": held,
            }  # fmt: skip
        if command == "rows":
            cluster.runs.append(fields["run"])
            return [] if fields["run"].endswith("-w") else cluster.rows
        if command == "write" and cluster.refusals:
            cluster.refusals -= 1
            raise ProbeError("no leader at this moment")
        return None


class FakeCluster:
    """A cluster that does as it is told, and notes in which order."""

    members = ("pg-0", "pg-1")

    def __init__(self) -> None:
        self.said: list[str] = []
        self.clients = FakeClients(self)
        self.rows = [[0, 1], [0, 2], [0, 3]]
        self.runs: list[str] = []
        self.refusals = 0
        self.recovers = self.closes = True
        self.missing_text = ""
        self.digests = {"pg-0": 3, "pg-1": 3}
        self.moves = True
        self.stands = {"pg-0": "", "pg-1": ""}
        self.notes: list[str] = []
        self.on_wait: Any = None

    def wait_whole(self, **_: Any) -> None:
        """Whole, or not."""
        self.said.append("missing")
        if self.missing_text:
            raise ChaosError(f"the cluster is not whole after 1 s: {self.missing_text}")

    def standing(self, peer: str) -> str:
        """What the member says of itself."""
        return self.stands[peer]

    def leader(self) -> str:
        """pg-0 until the fault, and after one that moves nothing."""
        return "pg-1" if "hit" in self.said and self.moves else "pg-0"

    def target(self, route: str) -> dict[str, Any]:
        """Where."""
        return {"host": route}

    def ask(self, peer: str, command: str, **_: Any) -> Any:
        """The programs beside the databases."""
        self.said.append(f"{command} at {peer}")
        if command == "digest":
            return {"count": self.digests[peer], "sum": "0"}
        if command == "stop":
            raise ProbeError("gone with its CVM")
        return None

    def hit(self, _fault: str, leader: str, _number: int) -> Hit:
        """The fault."""
        self.said.append("hit")
        return Hit(victim=leader, at=10.0, over=10.2)

    def finish(self, _hit: Hit) -> str:
        """Nothing to wait for."""
        return ""

    def decided(self, _leader: str, _after: float) -> float:
        """The caller's sidecar."""
        return 10.08

    def mend(self) -> None:
        """The end of the fault."""
        self.said.append("mend")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POLL", "CLOSE_SECONDS", "EQUAL_SECONDS"):
        monkeypatch.setattr(chaos_engine, name, 0.001 if name == "POLL" else 0.05)


def one(cluster: FakeCluster, fault: Any = "partition-both") -> Evidence:
    """One round of `fault`."""
    kept: list[Evidence] = []
    Engine(cluster, Silent(), synchronous=True, name="t").rounds([fault], 1, kept.append)  # type: ignore[arg-type]
    return kept[0]


def test_a_round_breaks_mends_waits_and_compares() -> None:
    """In that order; the figures are those of the clients' record."""
    cluster = FakeCluster()
    result = one(cluster).result
    wanted = ["hit", "mend", "missing", "stop", "rows", "digest at pg-0"]
    places = [cluster.said.index(word, cluster.said.index("hit")) for word in wanted]
    assert places == sorted(places), cluster.said
    assert (result.leader, result.new_leader, result.victim) == ("pg-0", "pg-1", "pg-0")
    assert result.rto == pytest.approx(0.3)
    assert result.closed == {"idle": pytest.approx(0.1), "talking": pytest.approx(0.05)}
    assert (result.acknowledged, result.unknown, result.lost, result.problem) == (2, 1, (), "")
    assert result.read_gap == 0.5
    assert result.decided == pytest.approx(0.08)
    assert "write at pg-0" in cluster.said


def test_clients_that_cannot_start_are_started_again_with_rows_of_their_own() -> None:
    """A leader that is away for a moment before anything is broken costs an attempt, not the run."""
    cluster = FakeCluster()
    cluster.refusals = 2
    assert one(cluster, "crash-postgres").result.problem == ""
    assert cluster.runs == ["t-0.3"]


def test_a_row_that_is_gone_is_lost() -> None:
    """An acknowledged write that the leader does not have afterwards is in the result, whole."""
    cluster = FakeCluster()
    cluster.rows = [[0, 1]]
    assert [ack.row for ack in one(cluster, "crash-postgres").result.lost] == [(0, 2)]


def test_no_recovery_is_a_problem_and_is_mended_all_the_same() -> None:
    """Clients that are never served again: the round says so, after the fault was ended."""
    cluster = FakeCluster()
    cluster.recovers = False
    assert "no write was acknowledged" in one(cluster).result.problem
    assert "mend" in cluster.said


def test_a_connection_that_stays_open_is_a_problem() -> None:
    """It is waited for, bounded."""
    cluster = FakeCluster()
    cluster.closes = False
    assert one(cluster).result.problem == "a connection to the old leader was not closed"


def test_members_that_differ_are_a_problem() -> None:
    """Rows that are not everywhere after the bound: whoever differs from the leader counts as forked."""
    cluster = FakeCluster()
    cluster.digests["pg-0"] = 2
    result = one(cluster).result
    assert "the members differ" in result.problem
    assert result.forked == ("pg-0",)


def test_a_member_that_says_it_forked_is_one() -> None:
    """Also with the same rows."""
    cluster = FakeCluster()
    cluster.stands["pg-0"] = "fork: its timeline 2 is another one"
    result = one(cluster).result
    assert result.forked == ("pg-0",)
    assert "another one" in result.problem


def test_a_fault_that_moves_nothing_is_a_pause() -> None:
    """The leader stays and what is held stays open: the figure is the longest pause of writes."""
    cluster = FakeCluster()
    cluster.moves = cluster.closes = False
    cluster.notes = ["the attack was refused"]
    evidence = one(cluster, "rest-attack")
    assert evidence.result.problem == ""
    assert evidence.result.rto == pytest.approx(1.2)
    assert evidence.result.closed == {}
    assert evidence.notes["fault"] == ["the attack was refused"]
    assert cluster.notes == []


@pytest.mark.parametrize(
    ("moves", "closes", "words"), [(True, True, "the leadership moved"), (False, True, "were closed: idle, talking")]
)
def test_what_such_a_fault_moves_or_closes_is_a_problem(*, moves: bool, closes: bool, words: str) -> None:
    """An attack, or a restart of coordinators, is no reason for either."""
    cluster = FakeCluster()
    cluster.moves, cluster.closes = moves, closes
    assert words in one(cluster, "check-attack").result.problem


def test_a_cluster_that_is_not_whole_ends_the_run() -> None:
    """With what is missing; nothing is broken in it."""
    cluster = FakeCluster()
    cluster.missing_text = "pg-1 is starting"
    with pytest.raises(ChaosError, match=r"not whole.*pg-1 is starting"):
        one(cluster)
    assert "hit" not in cluster.said


def test_an_interrupt_is_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the fault is on: the fault is ended before the interrupt goes on."""
    cluster = FakeCluster()

    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "_wait_served", interrupted)
    with pytest.raises(KeyboardInterrupt):
        one(cluster)
    assert cluster.said[-1] == "mend"
