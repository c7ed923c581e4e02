"""`./mesh chaos`: which mesh it uses, what it prints and writes, how it ends."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from meshctl import chaos, runs
from meshctl.chaos_cluster import SCENARIOS
from meshctl.chaos_engine import Evidence
from meshctl.chaos_figures import Spread, Summary
from meshctl.console import Silent
from meshctl.errors import UserError
from tests.meshctl.test_chaos_figures import ack, result

PATRONI = SCENARIOS["patroni"]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Runs the command on rounds that are given."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def run(rounds: list[Any], *arguments: str, problem: str = "") -> Any:
        def make(_run: object, _scenario: object, faults: Any, number: int, kept: Any, *_: Any, **__: Any) -> str:
            kept += [Evidence(result=each, acks=[ack(1, 1.0)], rows=[[0, 1]]) for each in rounds]
            return problem

        @contextlib.contextmanager
        def mesh(*_: object) -> Iterator[object]:
            (tmp_path / "logs").mkdir(exist_ok=True)
            (tmp_path / "logs" / "postgres-0.sidecar.log").write_text("line\n")
            yield SimpleNamespace(folder=tmp_path, name="t")

        monkeypatch.setattr(chaos, "make", make)
        monkeypatch.setattr(chaos, "mesh", mesh)
        return CliRunner().invoke(chaos.command, ["patroni", *arguments], standalone_mode=False)

    return run


def test_good_rounds_are_a_table_a_document_and_exit_code_0(invoke: Callable[..., Any], tmp_path: Path) -> None:
    """Nothing lost: the figures, and no evidence."""
    done = invoke([result(), result(fault="switchover")], "--json", str(tmp_path / "out.json"))
    assert done.return_value == 0, done.output
    assert "crash-postgres" in done.output
    assert "switchover" in done.output
    faults = json.loads((tmp_path / "out.json").read_text())["faults"]
    assert [(each["fault"], each["writes_lost"]) for each in faults] == [("crash-postgres", 0), ("switchover", 0)]
    assert list(tmp_path.glob("cvm-mesh-chaos-*")) == []


def test_a_lost_write_is_exit_code_1_with_its_evidence(invoke: Callable[..., Any], tmp_path: Path) -> None:
    """The round whole, and the logs; in asynchronous mode it is a figure."""
    bad = result(lost=(ack(1, 1.0),))
    assert invoke([bad], "--async").return_value == 0
    assert list(tmp_path.glob("cvm-mesh-chaos-*")) == []
    assert invoke([bad]).return_value == 1
    (folder,) = tmp_path.glob("cvm-mesh-chaos-*")
    evidence = json.loads((folder / "crash-postgres-0.json").read_text())
    assert evidence["round"]["lost"][0]["seq"] == 1
    assert evidence["acks"][0]["peer"] == "postgres-1"
    assert (folder / "logs" / "postgres-0.sidecar.log").read_text() == "line\n"


@pytest.mark.parametrize("bad", [{"demoted": (ack(1, 1.0),)}, {"problem": "a connection was not closed"}])
def test_a_demoted_leader_that_acknowledges_is_wrong_in_any_mode(invoke: Callable[..., Any], bad: Any) -> None:
    """And so is a round that did not end as it should."""
    assert invoke([result(**bad)], "--async").return_value == 1


def test_a_run_that_ends_early_still_reports(invoke: Callable[..., Any], tmp_path: Path) -> None:
    """The rounds so far are written, and the reason is the error."""
    done = invoke([result()], "--json", str(tmp_path / "out.json"), problem="the cluster is not whole")
    assert isinstance(done.exception, UserError)
    assert done.exception.exit_code == 1
    assert len(json.loads((tmp_path / "out.json").read_text())["faults"]) == 1


def test_options_that_cannot_be_are_refused_before_anything_starts(invoke: Callable[..., Any]) -> None:
    """An unknown fault, no rounds, a folder that is not there."""
    for arguments in (["--fault", "crash-everything"], ["--rounds", "0"], ["--json", "/nonexistent/x.json"]):
        done = CliRunner().invoke(chaos.command, ["patroni", *arguments])
        assert done.exit_code != 0
        assert "mesh" not in done.output or "Traceback" not in done.output
    assert CliRunner().invoke(chaos.command, ["mysql"]).exit_code == 2


def test_table_of_one_round_names_the_fault_and_each_figure_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 80 columns too: the fault's name is not broken, and one value is no spread."""
    one, none = Spread(median=1.5, p99=1.5, max=1.5), Spread(median=None, p99=None, max=None)
    counts = {"acknowledged": 7, "lost": 0, "demoted": 0, "unknown": 0, "never_closed": 0, "forked": 0}
    found = Summary(fault="coordinators-lost", rounds=1, rto=one, closed=none, read_gap=one, **counts)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(chaos.sys.stdout, "isatty", lambda: True)
    chaos.print_table([found], asynchronous=False)
    shown = capsys.readouterr().out
    assert "coordinators-lost" in shown
    assert shown.count("1.5") == 2


class FakeRun:
    """A mesh that runs."""

    alive = True

    def __init__(self, name: str, cluster: str) -> None:
        self.name = name
        self._cluster = cluster

    def call(self, _method: str, _path: str) -> Any:
        """Its status."""
        return {"cluster": f"/x/clusters/{self._cluster}"}


def test_a_running_mesh_of_the_cluster_is_used_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The only one of its cluster, or the one that is named; two of them are a question."""
    meshes = [FakeRun("a", "starter"), FakeRun("b", "patroni-demo")]
    monkeypatch.setattr(runs, "all_runs", lambda: meshes)
    with chaos.mesh(PATRONI, None, Silent()) as run:
        assert run.name == "b"
    with chaos.mesh(PATRONI, "a", Silent()) as run:
        assert run.name == "a"
    meshes.append(FakeRun("c", "patroni-demo"))
    with (
        pytest.raises(UserError, match="several meshes of patroni-demo are running: b, c"),
        chaos.mesh(PATRONI, None, Silent()),
    ):
        pass


def test_without_one_it_makes_its_own_and_takes_it_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """However the block ends."""
    from meshctl import lab_commands

    ended: list[str] = []
    monkeypatch.setattr(runs, "all_runs", list)
    monkeypatch.setattr(runs, "end", lambda run, **_: ended.append(run.name))
    monkeypatch.setattr(lab_commands, "start_mesh", lambda *a, **_: (FakeRun(a[3], "patroni-demo"), {}, ()))

    def interrupted() -> None:
        with chaos.mesh(PATRONI, "mine", Silent()) as run:
            assert run.name == "mine"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert ended == ["mine"]
