"""How a standby stands by; test_supervisor.py has the real one."""

from __future__ import annotations

import importlib
import inspect
from types import SimpleNamespace
from typing import Any

import pytest

from workloads.patroni import standby


class _Dcs:
    """What Consul said last."""

    def __init__(self) -> None:
        self.cluster: Any = None


class _Ha:
    """A member in a cluster; loading it shows what there is by then."""

    def __init__(self, **changes: Any) -> None:
        values = {"role": "replica", "state": "running", "primary": False, "leader": None, "paused": False} | changes
        self.holder = values["leader"]
        self.said: str | None = None
        self._paused = values["paused"]
        self.cluster = SimpleNamespace(is_unlocked=lambda: pytest.fail("it is loaded first"))
        self.state_handler = SimpleNamespace(
            name="pg-2", role=values["role"], state=values["state"], is_primary=lambda: values["primary"]
        )
        self.members = {"pg-2"}
        self.reached = True
        """What it says reaches Consul."""
        self.story: list[str] = []
        self.failsafe: str | None = None
        self._failsafe = self
        self._rewind = SimpleNamespace(trigger_check_diverged_lsn=lambda: self.story.append("check"))

    def load_cluster_from_dcs(self) -> None:
        self.story.append("load")
        name, data = self.holder or self.failsafe, {"role": self.said}
        self.cluster = SimpleNamespace(
            is_unlocked=lambda: self.holder is None,
            leader=name and SimpleNamespace(name=name, data=data),
            has_member=lambda name: name in self.members,
        )

    @property
    def leader(self) -> Any:
        return self.failsafe and SimpleNamespace(name=self.failsafe)

    def set_is_active(self, value: float) -> None:
        assert value == 0
        self.failsafe = None

    def touch_member(self) -> bool:
        self.story.append("touch")
        return self.reached

    def update_failsafe(self, data: dict[str, Any]) -> int:
        self.failsafe = data["name"]
        return 7

    def is_paused(self) -> bool:
        return bool(self._paused)

    def is_standby_cluster(self) -> bool:
        return False

    def follow(self, demote_reason: str, follow_reason: str, refresh: bool = True) -> str:
        self.story.append(f"follow {refresh}")
        return f"{demote_reason}/{follow_reason}"


def test_a_replica_goes_on_following_the_name() -> None:
    """Nothing is configured anew while nobody leads."""
    ha = _Ha()
    standby.steady(_Dcs(), ha)
    assert ha.follow("d", "f") == "waiting for the next leader"
    assert ha.story == ["load"]


@pytest.mark.parametrize("said", ["primary", "master"])
def test_whether_its_log_went_another_way_is_looked_at_once_the_next_leader_is_the_primary(said: str) -> None:
    """Not before, and once."""
    ha = _Ha()
    standby.steady(_Dcs(), ha)
    ha.follow("d", "f")
    ha.holder, ha.said = "pg-1", "replica"
    assert ha.follow("d", "f") == "d/f"
    assert "check" not in ha.story
    ha.said = said
    ha.story.clear()
    for _ in range(2):
        assert ha.follow("d", "f") == "d/f"
    assert ha.story == ["load", "check", "follow False", "load", "follow False"]


@pytest.mark.parametrize(
    "changes",
    [{"leader": "pg-1"}, {"primary": True}, {"role": "demoted"}, {"state": "starting"}, {"paused": True}],
    ids=["there is a leader", "a primary", "a demoted one", "not running", "paused"],
)
def test_everybody_else_follows_as_ever(changes: dict[str, Any]) -> None:
    """The cluster is not loaded twice for it."""
    ha = _Ha(**changes)
    standby.steady(_Dcs(), ha)
    assert ha.follow("d", "f") == "d/f"
    assert ha.story == ["load", "follow False"]


class _Quiet:
    """A member of a cluster that `pg-0` has led for long, and a clock."""

    def __init__(self) -> None:
        self.time = 100.0
        self.ha = _Ha(leader="pg-0")
        standby.steady(_Dcs(), self.ha, lambda: self.time)
        assert self.says("pg-0")
        self.time += standby.QUIET_SECONDS
        assert self.says("pg-0")

    def says(self, leader: str | None) -> bool:
        """Whether it says what it is, with this leader."""
        self.ha.holder = leader
        self.ha.load_cluster_from_dcs()
        self.ha.story.clear()
        self.ha.touch_member()
        return self.ha.story == ["touch"]


def test_a_change_of_leader_is_not_the_time_to_say_what_one_is() -> None:
    """Each write of that kind wakes all others; it is made up for at the next look after that."""
    quiet = _Quiet()
    assert not quiet.says(None)
    quiet.time += standby.QUIET_SECONDS / 2
    assert not quiet.says("pg-1")
    quiet.time += standby.QUIET_SECONDS / 2
    assert not quiet.says("pg-1"), "counted from the last change"
    quiet.time += standby.QUIET_SECONDS / 2
    assert quiet.says("pg-1")


def test_leaders_that_change_for_ever_do_not_silence_a_member() -> None:
    """Its session would run out."""
    quiet = _Quiet()
    spoken = quiet.time
    for turn in range(40):
        quiet.time += standby.QUIET_SECONDS / 2
        if quiet.says(f"pg-{turn % 2}"):
            assert quiet.time - spoken <= standby.SILENT_SECONDS
            spoken = quiet.time
    assert quiet.time - spoken < standby.SILENT_SECONDS


def test_what_did_not_reach_consul_is_not_said() -> None:
    """The next one is tried, as Patroni would."""
    quiet = _Quiet()
    quiet.time += standby.SILENT_SECONDS
    quiet.ha.reached = False
    assert quiet.says(None)
    assert quiet.says(None)


def test_a_member_that_the_cluster_does_not_know_says_so_at_once() -> None:
    """It has to be there to be counted with."""
    quiet = _Quiet()
    quiet.ha.members.clear()
    assert quiet.says(None)


@pytest.mark.parametrize(
    ("known", "answer"),
    [("pg-1", "pg-1 leads"), ("pg-0", 7), (None, 7), ("nothing", 7)],
    ids=["another", "the same", "nobody", "Consul is away"],
)
def test_a_leader_without_consul_goes_on_unless_another_is_known(known: str | None, answer: int | str) -> None:
    """What Consul said last decides; without Consul there is nothing to go by but the leader's word."""
    dcs, ha = _Dcs(), _Ha()
    standby.steady(dcs, ha)
    if known != "nothing":
        dcs.cluster = SimpleNamespace(leader=known and SimpleNamespace(name=known))
    assert ha.update_failsafe({"name": "pg-0"}) == answer
    assert ha.failsafe == ("pg-0" if answer == 7 else None)


@pytest.mark.parametrize(("leader", "kept"), [("pg-1", None), ("pg-0", "pg-0"), (None, "pg-0")])
def test_a_word_of_before_is_forgotten_with_the_next_leader(leader: str | None, kept: str | None) -> None:
    """Else its death would be waited out for as long as that word counts."""
    ha = _Ha(leader=leader)
    standby.steady(_Dcs(), ha)
    ha.update_failsafe({"name": "pg-0"})
    ha.load_cluster_from_dcs()
    assert ha.failsafe == kept


def test_patroni_has_what_is_changed() -> None:
    """Each thing that is relied on, in Patroni's own source."""
    importlib.import_module("patroni.postgresql")
    ha = importlib.import_module("patroni.ha").Ha
    assert (
        str(inspect.signature(ha.follow))
        == "(self, demote_reason: str, follow_reason: str, refresh: bool = True) -> str"
    )
    source = inspect.getsource(ha.follow)
    assert "        if refresh:\n            self.load_cluster_from_dcs()\n" in source
    assert "check_recovery_conf(node_to_follow)" in source
    assert "ret = self.dcs.touch_member(data)" in inspect.getsource(ha.touch_member)
    consul = inspect.getsource(importlib.import_module("patroni.dcs.consul"))
    assert "create_member = self.refresh_session()" in consul
    assert "self._rewind.trigger_check_diverged_lsn()" in source
    rewind = importlib.import_module("patroni.postgresql.rewind").Rewind
    assert "leader.member.data.get('role') not in (PostgresqlRole.MASTER," in inspect.getsource(
        rewind._check_timeline_and_lsn
    )
    assert "self._failsafe.update(data)" in inspect.getsource(ha.update_failsafe)
    assert "self._failsafe.update_cluster(cluster)" in inspect.getsource(ha.load_cluster_from_dcs)
    failsafe = importlib.import_module("patroni.ha").Failsafe
    assert "if not value:\n                self._reset_state()" in inspect.getsource(failsafe.set_is_active)
    api = importlib.import_module("patroni.api")
    assert "message = ret if isinstance(ret, str)" in inspect.getsource(api.RestApiHandler)
    assert "if self._cluster_valid_till > time.time() else None" in inspect.getsource(
        importlib.import_module("patroni.dcs").AbstractDCS
    )
