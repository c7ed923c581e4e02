"""Patroni's daemon as a member runs it."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import ROOT
from workloads.patroni import daemon
from workloads.patroni.daemon import MeshHa, ask_twice, consul_address, has_failed

Failsafe = importlib.import_module("patroni.ha").Failsafe


@pytest.mark.parametrize(
    ("checks", "failed"),
    [
        ([{"CheckID": "serfHealth", "Status": "critical"}, "nonsense"], True),
        ([{"CheckID": "serfHealth", "Status": "passing"}, {"CheckID": "x:member", "Status": "critical"}], False),
        ([], False),
    ],
)
def test_gossip_says_who_has_failed(checks: list[object], failed: bool) -> None:
    """Only gossip's own check counts: a member whose Patroni has just ended is asked as any other."""
    assert has_failed(checks) is failed


def test_agent_is_found_before_and_after_patroni_took_its_address_apart() -> None:
    """Patroni's own client does so, to the very section that is read here."""
    section: dict[str, object] = {"host": "127.0.0.1:8511", "token": "t", "ttl": 20, "retry_timeout": 5, "loop_wait": 2}
    assert consul_address(section) == "127.0.0.1:8511"
    importlib.import_module("patroni.postgresql")
    source = inspect.getsource(importlib.import_module("patroni.dcs.consul").Consul.__init__)
    assert "config['host'] = host" in source
    assert "config['port'] = int(port)" in source
    assert consul_address({"host": "127.0.0.1", "port": 8511}) == "127.0.0.1:8511"


@pytest.mark.parametrize(
    ("answers_within", "gone", "asked", "answered"),
    [
        (0.1, False, [0.3], True),
        (1.0, False, [0.3, 1.7], True),
        (9.0, False, [0.3, 1.7], False),
        (9.0, True, [0.3], False),
    ],
)
def test_only_who_is_late_is_looked_up(answers_within: float, gone: bool, asked: list[float], answered: bool) -> None:
    """Who answers at once costs no other question; who does not gets the rest of the time unless gossip gave it up."""
    limits: list[float] = []
    looked_up: list[bool] = []

    def ask(seconds: float) -> bool:
        limits.append(seconds)
        if answers_within > seconds:
            raise TimeoutError
        return True

    def failed() -> bool:
        looked_up.append(gone)
        return gone

    if answered:
        assert ask_twice(ask, 2.0, failed) is True
    else:
        with pytest.raises(TimeoutError):
            ask_twice(ask, 2.0, failed)
    assert limits == pytest.approx(asked)
    assert len(looked_up) == (answers_within > 0.3)


def test_another_error_is_handed_on_at_once() -> None:
    """A refusal says enough: nobody is asked again, nor Consul at all."""

    def refuse(seconds: float) -> None:
        raise ConnectionRefusedError(seconds)

    with pytest.raises(ConnectionRefusedError, match=r"0\.3"):
        ask_twice(refuse, 2.0, lambda: pytest.fail("nobody needs to be looked up"))


def test_patroni_asks_as_expected() -> None:
    """The question that is asked twice is told from the others by its arguments."""
    importlib.import_module("patroni.postgresql")
    ha = importlib.import_module("patroni.ha")
    assert "self.patroni.request(member, timeout=2, retries=0)" in inspect.getsource(ha.Ha.fetch_node_status)


class Standby(MeshHa):
    """A member that follows `leader`, as Consul said last (None: it said nothing lately)."""

    def __init__(self, leader: str | None) -> None:
        found = None if leader is None else SimpleNamespace(leader=SimpleNamespace(name=leader))
        self.dcs = SimpleNamespace(cluster=found, ttl=20)
        self.state_handler = SimpleNamespace(state="running", role="replica")
        self._failsafe = Failsafe(self.dcs)
        self._last_wal_lsn = 4711


@pytest.mark.parametrize(
    ("leader", "answer"), [("db-1", "db-1 leads"), ("db-0", 4711), (None, 4711)], ids=["another", "itself", "unknown"]
)
def test_former_leader_may_not_go_on_without_consul(leader: str | None, answer: int | str) -> None:
    """Who knows of another leader refuses the former one, and does not hold it for the leader afterwards."""
    it = Standby(leader)
    asker = {"name": "db-0", "conn_url": "postgres://x", "api_url": "http://x"}
    assert it.update_failsafe(asker) == answer
    assert it.failsafe_is_active() is isinstance(answer, int)


def test_nothing_of_patroni_is_assigned() -> None:
    """Our code assigns attributes of its own objects and classes only: no patch of Patroni at run time."""
    foreign = []
    for path in sorted((ROOT / "workloads" / "patroni").glob("*.py")):
        tree = ast.parse(path.read_text())
        own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)} | {"self", "process"}
        for node in ast.walk(tree):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr"
            targets = node.targets if isinstance(node, ast.Assign) else []
            named = [t.value for t in targets if isinstance(t, ast.Attribute)]
            if called or any(not isinstance(value, ast.Name) or value.id not in own for value in named):
                foreign.append(f"{path.name}:{getattr(node, 'lineno', 0)}")
    assert foreign == []


def test_parts_are_the_meshs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Patroni assigns in its constructor is replaced by the mesh's subclass; the client that Patroni makes for
    itself is one of its command line, which opens no session.
    """
    made: list[Any] = []

    class Recorded:
        def __init__(self, config: dict[str, Any], mpp: Any, **parts: Any) -> None:
            made.append((config, mpp, parts))

    monkeypatch.setattr(daemon, "MeshConsul", Recorded)
    it = object.__new__(daemon.MeshPatroni)
    it.config = {"consul": {"host": "127.0.0.1", "patronictl": True}, "postgresql": {"data_dir": "/pg"}}
    it.dcs = SimpleNamespace(mpp="mpp")
    ((config, mpp, parts),) = made
    assert isinstance(it.dcs, Recorded)
    assert (config["patronictl"], mpp, parts["data"]) == (False, "mpp", Path("/pg"))
    it.request = "Patroni's"
    assert isinstance(it.request, daemon.Request)
