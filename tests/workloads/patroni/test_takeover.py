"""How a standby takes over; test_supervisor.py has the real one."""

from __future__ import annotations

import importlib
import inspect
import struct
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from workloads.patroni import control, takeover


class _Dcs:
    """Consul as Patroni sees it: what a watch says, and what was asked."""

    def __init__(self) -> None:
        self._last_session_refresh = 0.0
        self.changed = True
        self.cleaned = threading.Event()
        self.gate = threading.Event()
        self.asked: list[tuple[Any, ...]] = []
        self.cluster: Any = SimpleNamespace(failover=SimpleNamespace(version=7))

    def watch(self, leader_version: int | None, timeout: float) -> bool:  # noqa: ARG002
        self._last_session_refresh = 0.0
        return self.changed

    def manual_failover(self, leader: str, candidate: str, scheduled_at: Any = None, version: Any = None) -> bool:
        self.gate.wait(5)
        self.asked.append((leader, candidate, scheduled_at, version))
        self.cleaned.set()
        return False


class _Postgresql:
    """Knows the timelines that it is asked about, one connection each."""

    role, state = "replica", "running"
    data_dir = "/nonexistent"

    def __init__(self, timeline: int) -> None:
        self.timeline = timeline
        self.commands: list[tuple[str, ...]] = []
        self.asked: list[int] = []

    def pg_ctl(self, *command: str) -> bool:
        self.commands.append(command)
        return True

    def replica_cached_timeline(self, primary_timeline: int) -> int:
        self.asked.append(primary_timeline)
        return self.timeline


def _made(timeline: int = 7) -> tuple[_Dcs, _Postgresql, Any]:
    dcs, postgresql, ha = _Dcs(), _Postgresql(timeline), SimpleNamespace(cluster=SimpleNamespace(timeline=7))
    takeover.hasten(dcs, postgresql, ha)
    return dcs, postgresql, ha


@pytest.mark.parametrize(
    ("version", "changed", "renewed"),
    [(12, True, 99.0), (12, False, 0.0), (None, True, 0.0)],
    ids=["woken", "nothing happened", "a leader's pause"],
)
def test_a_session_is_kept_when_something_woke_it(version: int | None, changed: bool, renewed: float) -> None:
    """It was renewed a moment ago; after a whole pause it is renewed as ever."""
    dcs, _, _ = _made()
    dcs._last_session_refresh, dcs.changed = 99.0, changed
    assert dcs.watch(version, 2.0) is changed
    assert dcs._last_session_refresh == renewed


def test_the_timeline_is_learned_in_quiet_moments() -> None:
    """Once it is known nobody is asked any more, until there is another one; a leader does not ask at all."""
    dcs, postgresql, ha = _made()
    dcs.watch(12, 2.0)
    assert postgresql.asked == [], "there is something else to do"
    dcs.changed = False
    for _ in range(3):
        dcs.watch(12, 2.0)
    assert postgresql.asked == [7]
    ha.cluster.timeline = postgresql.timeline = 8
    postgresql.role = "primary"
    dcs.watch(12, 2.0)
    assert postgresql.asked == [7]
    postgresql.role = "replica"
    dcs.watch(12, 2.0)
    assert postgresql.asked == [7, 8]


def test_a_timeline_that_is_not_reached_is_given_up() -> None:
    """Each question is a connection; one that has no end would be one each two seconds."""
    dcs, postgresql, _ = _made(timeline=6)
    dcs.changed = False
    for _ in range(10):
        dcs.watch(12, 2.0)
    assert postgresql.asked == [7] * takeover.TRIES


def test_cleaning_up_is_waited_for_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a new leader clears is cleared after its promotion; what anybody else asks is answered."""
    monkeypatch.setattr(takeover, "CLEAN_UP_SECONDS", 0.01)
    dcs, _, _ = _made()
    assert dcs.manual_failover("", "") is True
    assert not dcs.cleaned.is_set()
    dcs.gate.set()
    assert dcs.cleaned.wait(5)
    assert dcs.asked == [("", "", None, 7)], "what was asked for since is another version, and stays"
    assert dcs.manual_failover("", "", version=3) is False
    assert dcs.manual_failover("a", "", None) is False
    assert dcs.asked[1:] == [("", "", None, 3), ("a", "", None, None)]


def test_a_promotion_is_asked_for_until_it_is_done(tmp_path: Path) -> None:
    """A signal that the startup process sleeps over costs half a second, before it takes the request or after."""
    code = """
import pathlib, signal, struct, sys
data = pathlib.Path(sys.argv[1])
heard = []
def hear(*_):
    heard.append(1)
    if len(heard) == 3: (data / 'promote').unlink()
def wake(*_):
    heard.append(2)
    if len(heard) == 5: (data / 'global' / 'pg_control').write_bytes(struct.pack('@QIIi', 7, 1300, 1, 6))
signal.signal(signal.SIGUSR1, hear)
signal.signal(signal.SIGHUP, wake)
print('listens', flush=True)
sys.stdin.read()
print(heard)
"""
    argv = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as postmaster:
        assert postmaster.stdout is not None
        assert postmaster.stdout.readline() == "listens\n"
        (tmp_path / "postmaster.pid").write_text(f"{postmaster.pid}\n")
        (tmp_path / "global").mkdir()
        (tmp_path / "global" / "pg_control").write_bytes(struct.pack("@QIIi", 7, 1300, 1, control.IN_RECOVERY))
        _, postgresql, _ = _made()
        postgresql.data_dir = str(tmp_path)
        (tmp_path / "promote").touch()
        assert postgresql.pg_ctl("reload") is True
        takeover.nudge(tmp_path)
        assert not (tmp_path / "promote").exists()
        assert control.state(tmp_path) == 6
        takeover.nudge(tmp_path)
        told, _ = postmaster.communicate()
    assert told == "[1, 1, 1, 2, 2]\n"
    (tmp_path / "promote").touch()
    takeover.nudge(tmp_path)
    assert postgresql.commands == [("reload",)]


def test_a_promotion_is_followed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a thread, and nothing else is."""
    nudged = threading.Event()
    monkeypatch.setattr(takeover, "nudge", lambda data: nudged.set() if data == Path("/nonexistent") else None)
    _, postgresql, _ = _made()
    assert postgresql.pg_ctl("promote", "-W") is True
    assert nudged.wait(5)
    assert postgresql.commands == [("promote", "-W")]


def test_patroni_has_what_is_changed() -> None:
    """Each thing that is relied on, in Patroni's own source."""
    importlib.import_module("patroni.postgresql")
    consul = inspect.getsource(importlib.import_module("patroni.dcs.consul").Consul)
    assert "self._last_session_refresh + self._loop_wait > time.time()" in consul
    assert "        self._last_session_refresh = 0\n        if self.__do_not_watch" in consul
    assert "except InvalidSession:" in consul
    ha = inspect.getsource(importlib.import_module("patroni.ha").Ha)
    assert ha.count("self.dcs.manual_failover('', '')") == 1
    assert "self.state_handler.replica_cached_timeline(cluster_timeline)" in ha
    postgresql = importlib.import_module("patroni.postgresql")
    assert "!= primary_timeline" in inspect.getsource(postgresql.Postgresql.replica_cached_timeline)
    assert "except Exception:" in inspect.getsource(postgresql.Postgresql.get_replica_timeline)
    misc = importlib.import_module("patroni.postgresql.misc")
    assert misc.PostgresqlRole.REPLICA == "replica"
    assert misc.PostgresqlState.RUNNING == "running"
