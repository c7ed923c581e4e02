"""How a leader that shuts down gives its key away; test_supervisor.py has the real one."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import struct
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from workloads.patroni import handover

IN_PRODUCTION, SHUT_DOWN = 6, 1


def _control(data: Path, state: int) -> None:
    (data / "global").mkdir(exist_ok=True)
    (data / "global" / "pg_control").write_bytes(struct.pack("@QIIi", 7, 1300, 202209061, state) + bytes(400))


class _Postgresql:
    """Stops as Patroni's does, with its control file for a program that was never started."""

    def __init__(self, data: Path) -> None:
        self.data_dir = str(data)
        self.started = 0

    def controldata(self) -> dict[str, str]:
        self.started += 1
        return {"Database cluster state": "shut down", "Latest checkpoint location": "0/20"}

    def stop(self, mode: str, *, checkpoint: bool = False, on_shutdown: Any = None) -> str:
        if on_shutdown is None:
            return f"{mode} {checkpoint}"
        assert self.controldata() == {}
        _control(Path(self.data_dir), SHUT_DOWN)
        on_shutdown(*self.latest_checkpoint_locations(self.controldata()))  # type: ignore[attr-defined]
        return "handed over"


class _Dcs:
    """Where keys are kept: a leader key with its version, and a status."""

    leader_path, status_path = "service/pg/leader", "service/pg/status"

    def __init__(self, now: Any = None, answer: Any = None) -> None:
        self.now = now
        self.story: list[Any] = []
        self._answer = answer
        self._client = SimpleNamespace(txn=self)

    def get_cluster(self) -> Any:
        return SimpleNamespace(leader=self.now)

    def _delete_leader(self, leader: Any) -> bool:
        self.story.append(("delete", leader.version))
        return bool(leader == self.now)

    def _write_status(self, value: str) -> bool:
        self.story.append(("status", value))
        return True

    def delete_leader(self, leader: Any, last_lsn: int | None = None) -> bool:
        """As Patroni's."""
        if last_lsn:
            self._write_status(str(last_lsn))
        return bool(leader) and self._delete_leader(leader)

    def put(self, payload: Any) -> Any:
        """A transaction."""
        calls = [call["KV"] for call in payload]
        self.story.append([(call["Verb"], call["Key"].rpartition("/")[2]) for call in calls])
        assert calls[0]["Value"] == "NDI="
        if isinstance(self._answer, Exception):
            raise self._answer
        errors = self._answer if calls[1]["Index"] == self.now.version else ["it has another version"]
        return {"Errors": errors, "Results": []}


class _Ha:
    def __init__(self, ready_after: int) -> None:
        self.asked: list[int] = []
        self._ready_after = ready_after
        self.leads = True

    def is_failover_possible(self, *, cluster_lsn: int = 0, exclude_failover_candidate: bool = False) -> bool:  # noqa: ARG002
        self.asked.append(cluster_lsn)
        return len(self.asked) > self._ready_after

    def touch_member(self) -> bool:
        self.asked.append(-1)
        return True

    def has_lock(self, info: bool = True) -> bool:
        return not info and self.leads

    def recover(self) -> str:
        return "recovered"


@pytest.fixture
def _modules(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The fakes' modules have what Patroni's have."""
    own = sys.modules[__name__]
    monkeypatch.setattr(own, "time", time)
    monkeypatch.setattr(own, "STOP_POLLING_INTERVAL", 1, raising=False)
    monkeypatch.setattr(own, "parse_lsn", lambda text: int(text.partition("/")[2], 16), raising=False)
    return own


@pytest.mark.usefixtures("_modules")
def test_key_goes_when_a_standby_has_the_end(tmp_path: Path) -> None:
    """No pause, no program before the file says so, and whoever may follow is asked until it has everything."""
    _control(tmp_path, IN_PRODUCTION)
    postgresql, ha = _Postgresql(tmp_path), _Ha(ready_after=2)
    handover.hasten(_Dcs(), postgresql, ha)
    story: list[object] = []

    def on_shutdown(checkpoint: int, previous: int) -> None:
        # As Patroni's own: a pause, then the question.
        before = len(ha.asked)
        sys.modules[__name__].time.sleep(3600)
        story.append((checkpoint, previous, ha.is_failover_possible(cluster_lsn=checkpoint), before))

    assert postgresql.stop("fast", checkpoint=True, on_shutdown=on_shutdown) == "handed over"
    assert story == [(0x20, 0x20, True, 0)]
    assert ha.asked == [0x20] * 3
    assert postgresql.started == 1
    # Elsewhere a pause is one, and a question is asked once.
    assert ha.is_failover_possible() is True
    assert postgresql.stop("immediate") == "immediate False"
    assert postgresql.controldata()


@pytest.mark.usefixtures("_modules")
def test_nobody_has_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then Patroni waits for the process' end, as ever: the answer is no after a bounded time."""
    monkeypatch.setattr(handover, "PATIENCE_SECONDS", 0.05)
    ha = _Ha(ready_after=1 << 30)
    handover.hasten(_Dcs(), _Postgresql(tmp_path), ha)
    assert ha.is_failover_possible(cluster_lsn=5) is False
    assert len(ha.asked) > 1


@pytest.mark.usefixtures("_modules")
def test_a_pause_elsewhere_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the one within a hand-over is left out."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    handover.hasten(_Dcs(), _Postgresql(tmp_path), _Ha(0))
    sys.modules[__name__].time.sleep(2)
    assert slept == [2]


@pytest.mark.usefixtures("_modules")
@pytest.mark.parametrize(("leads", "killed", "waits"), [(True, True, True), (True, False, False), (False, True, False)])
def test_a_killed_leader_is_left_to_the_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leads: bool, killed: bool, waits: bool
) -> None:
    """Patroni would give the key away while processes of PostgreSQL may live: it waits for its own end instead."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    ha = _Ha(0)
    ha.leads = leads
    if killed:
        (tmp_path / "postmaster.pid").touch()
    handover.hasten(_Dcs(), _Postgresql(tmp_path), ha)
    assert ha.recover() == "recovered"
    assert slept == [handover.KILLED_SECONDS] * waits


@dataclasses.dataclass
class Lead:
    """A leader key as Patroni read it."""

    version: int
    session: str = "ours"


@pytest.mark.parametrize(
    ("now", "deleted", "calls"),
    [
        (Lead(7), True, [7]),
        (Lead(9), True, [7, 9]),
        (Lead(9, "another's"), False, [7]),
        (None, False, [7]),
    ],
    ids=["as it was read", "written to", "taken", "gone"],
)
def test_key_is_given_away_also_when_it_was_written_to(now: Lead | None, deleted: bool, calls: list[int]) -> None:
    """Only the version that is there can be deleted, and only while the same session holds it."""
    dcs = _Dcs(now)
    handover._Deletion(dcs)
    assert dcs.delete_leader(Lead(7)) is deleted
    assert dcs.story == [("delete", version) for version in calls]
    source = inspect.getsource(importlib.import_module("patroni.dcs.consul").Consul)
    assert "cas=int(leader.version)" in source
    assert "Leader(leader['ModifyIndex'], leader.get('Session'), member)" in source
    abstract = inspect.getsource(importlib.import_module("patroni.dcs").AbstractDCS)
    assert (
        "self.write_status({self._OPTIME: last_lsn})\n        return bool(leader) and self._delete_leader(leader)"
        in abstract
    )
    assert "self._write_status(json.dumps(value" in abstract


BOTH = [("set", "status"), ("delete-cas", "leader")]


@pytest.mark.parametrize(
    ("leader", "answer", "deleted", "story"),
    [
        (Lead(7), None, True, [BOTH]),
        (Lead(6), None, True, [BOTH, ("status", "42"), ("delete", 6), ("delete", 7)]),
        (Lead(7), OSError("no answer"), True, [BOTH, ("status", "42"), ("delete", 7)]),
        (None, None, False, [("status", "42")]),
    ],
    ids=["at once", "written to", "Consul is away", "no leader"],
)
def test_the_end_of_the_log_goes_with_the_key(
    leader: Lead | None, answer: Any, deleted: bool, story: list[Any]
) -> None:
    """In one transaction; where that fails one after the other, the log's end first. Writes elsewhere stay."""
    dcs = _Dcs(Lead(7), answer)
    handover._Deletion(dcs)
    assert dcs.delete_leader(leader, 42) is deleted
    assert dcs.story == story
    dcs.story.clear()
    dcs._delete_leader(Lead(9))
    dcs.story.clear()
    assert dcs._write_status("43") is True
    assert dcs.story == [("status", "43")]


@pytest.mark.usefixtures("_modules")
def test_a_leader_that_hands_over_says_no_more_about_itself(tmp_path: Path) -> None:
    """Each write wakes everybody; it says so in its next round."""
    postgresql, ha = _Postgresql(tmp_path), _Ha(0)
    _control(tmp_path, IN_PRODUCTION)
    handover.hasten(_Dcs(), postgresql, ha)
    postgresql.stop("fast", on_shutdown=lambda *_: ha.touch_member())
    assert ha.asked == []
    assert ha.touch_member() is True
    assert ha.asked == [-1]


def test_patroni_is_as_expected() -> None:
    """Everything of Patroni that is replaced or relied upon is there under its name."""
    importlib.import_module("patroni.postgresql")
    postgresql, ha = sys.modules["patroni.postgresql"], importlib.import_module("patroni.ha")
    assert postgresql.STOP_POLLING_INTERVAL == 1
    assert postgresql.parse_lsn("0/20") == 0x20
    assert "on_shutdown" in inspect.signature(postgresql.Postgresql.stop).parameters
    assert list(inspect.signature(postgresql.Postgresql.latest_checkpoint_locations).parameters) == ["self", "data"]
    assert list(inspect.signature(postgresql.Postgresql.controldata).parameters) == ["self"]
    stop = inspect.getsource(postgresql.Postgresql._do_stop)
    assert "data = self.controldata()" in stop
    assert "self.latest_checkpoint_locations(data)" in stop
    assert list(inspect.signature(ha.Ha.is_failover_possible).parameters) == [
        "self", "cluster_lsn", "exclude_failover_candidate",
    ]  # fmt: skip
    release = inspect.getsource(ha.Ha.release_leader_key_voluntarily)
    assert release.index("self._delete_leader(last_lsn)") < release.index("self.touch_member()")
    assert list(inspect.signature(ha.Ha.recover).parameters) == ["self"]
    assert "return self.recover()" in inspect.getsource(ha.Ha._run_cycle)
    for method in (ha.Ha.demote, ha.Ha.shutdown):
        source = inspect.getsource(method)
        assert "time.sleep(1)" in source
        assert "self.is_failover_possible(cluster_lsn=checkpoint_location)" in source


def test_clock_is_whole() -> None:
    """What stands in for `time` has all of it."""
    clock: SimpleNamespace = handover._Clock().namespace
    assert clock.time is time.time
    assert clock.monotonic is time.monotonic
