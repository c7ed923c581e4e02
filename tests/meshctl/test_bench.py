"""`./mesh bench`: what it refuses, what it does when a figure cannot be had, and one whole quick run."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from meshctl import bench
from meshctl.bench_report import Row, figure
from meshctl.console import Console
from meshctl.errors import UserError
from tests.support import ROOT, need_root_or_userns


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    """`./mesh bench speed` says what can be measured."""
    result = CliRunner().invoke(bench.command, ["speed"])
    assert isinstance(result.exception, UserError)
    assert "'speed'" in result.exception.message
    assert "path" in result.exception.remedy


def test_a_figure_that_fails_becomes_a_row_that_says_why() -> None:
    """One failure does not take the other figures with it, and is not hidden."""

    def fails() -> list[Row]:
        raise RuntimeError("the moon is in the way")

    rows = bench._guarded("dns", "DNS", fails, Console(io.StringIO()))
    assert [(row.name, row.ours, row.note) for row in rows] == [("DNS", None, "RuntimeError: the moon is in the way")]


def test_the_report_is_written_by_a_whole_run_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A named group, --quick and --no-anchor print, and leave docs/benchmarks.md as it is."""
    whole = [Row(name="x", group="dns", unit="ms", ours=figure([1.0]))]
    monkeypatch.setattr(bench, "measure", lambda *_args, **_kwargs: whole)
    monkeypatch.setattr(bench, "CHECKOUT", tmp_path)
    monkeypatch.setattr(bench, "REPORT", tmp_path / "benchmarks.md")
    for arguments in (["dns"], ["--quick"], ["--no-anchor"]):
        assert CliRunner().invoke(bench.command, arguments, catch_exceptions=False).exit_code == 0
        assert not (tmp_path / "benchmarks.md").exists()
    assert CliRunner().invoke(bench.command, [], catch_exceptions=False).exit_code == 0
    assert "| x | ms | 1 / 1 / 1 |" in (tmp_path / "benchmarks.md").read_text(encoding="utf-8")


def test_the_machine_is_named() -> None:
    """The report says what it ran on, with which software, and how."""
    assert set(bench.machine()) == {"machine", "software", "load before the run", "command"}


def test_events_of_a_watch_give_first_and_last() -> None:
    """The first answer counts from connections that began after the change; the last from any."""
    from benchmarks.changes import failed, first, last

    events = [(0.0, 0.1, "0"), (0.1, 0.3, "1"), (0.2, 0.4, "!TimeoutError"), (0.5, 0.6, "1"), (0.7, 0.8, "0")]
    assert first(events, "1", after=0.15) == 0.6
    assert first(events, "2", after=0.0) is None
    assert last(events, "1") == 0.6
    assert last(events, "2") is None
    assert failed(events) == 1


def test_phases_are_read_from_the_log() -> None:
    """The start row's note says how long each phase took, as the sidecar logged it."""
    from benchmarks.starts import where_it_goes

    log = (
        "time=2026-01-01T00:00:00.000Z level=info event=hello\n"
        "time=2026-01-01T00:00:00.250Z level=info event=phase phase=admission\n"
        "a line of a child\n"
        "time=2026-01-01T00:00:01.000Z level=info event=phase phase=ready\n"
        "time=2026-01-01T00:00:01.001Z level=info event=ready seconds=1.0 cpu_seconds=0.5\n"
    )
    assert where_it_goes([log]).endswith(
        "before the first phase 250, admission 750; CPU time of the sidecar process 500"
    )
    assert where_it_goes(["nothing\n"]) == ""


def test_chaos_rounds_become_rows() -> None:
    """Recovery times by fault, against their aims; what was held is counted from the decision to cut it."""
    from benchmarks.failover import rows
    from tests.meshctl.test_chaos_figures import result

    rounds = [
        result(rto=0.3),
        result(rto=0.9),
        result(fault="switchover", rto=0.2),
        result(fault="partition-both", rto=3.0, decided=2.0, closed={"idle": 2.004, "talking": 2.012}),
        result(fault="cvm-loss", rto=None, decided=None, closed={"idle": None, "talking": 2.0}),
    ]
    by_name = {row.name: row for row in rows(rounds)}
    crash = by_name["PostgreSQL of the leader killed → first acknowledged write"]
    assert crash.ours is not None
    assert (crash.ours.p50, crash.ours.max, crash.n, crash.met) == (300, 900, 2, True)
    assert by_name["CVM of the leader lost → first acknowledged write"].ours is None
    assert "0 of 500 acknowledged writes lost" in crash.note
    held = by_name["leader lost → connection held to it is closed, from the caller's sidecar's decision"]
    assert held.ours is not None
    assert held.ours.max == pytest.approx(12.0)
    assert (held.n, held.met) == (2, False)
    assert "2 of 4 closed" in held.note


@pytest.mark.e2e
@pytest.mark.netns
@pytest.mark.timeout(240)
def test_a_quick_run_measures_a_real_mesh_and_leaves_nothing(tmp_path: Path) -> None:
    """`./mesh bench change --quick --no-anchor` brings a mesh up, moves a role, and gives figures as JSON."""
    need_root_or_userns()
    out = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, str(ROOT / "mesh"), "bench", "change", "--quick", "--no-anchor", "--json", str(out)],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert rows
    assert all(row["ours"] is not None and row["anchor"] is None for row in rows), rows
    assert all(row["group"] == "change" and row["n"] > 0 for row in rows)


def test_the_owners_manifest_has_its_aims_as_rows() -> None:
    """Fewer sidecars than were aimed at are said; a lost call misses its aim."""
    from benchmarks import trust

    assert [trust.sidecars(gib << 30) for gib in (1, 2, 3, 64)] == [4, 8, 12, trust.SIDECARS]
    samples = trust.Samples(
        sets=[900.0, 1100.0], evictions=[80.0], verifications=[1500.0], starts=[1600.0], calls=5000, lost=1
    )
    rows = trust.rows(samples, 8)
    assert [row.met for row in rows] == [True, False, True, True, False]
    assert "this machine's memory holds 8" in rows[0].note
    assert "aimed at" not in trust.rows(samples, trust.SIDECARS)[0].note


def test_what_was_measured_before_a_failure_has_its_rows() -> None:
    """What was not says why; no call is no call lost."""
    from benchmarks import trust

    rows = trust.rows(trust.Samples(sets=[900.0], problem="UserError: has not come to api-1"), trust.SIDECARS)
    assert [row.ours is not None for row in rows] == [True, False, False, False, False]
    assert all("Ended early: UserError: has not come to api-1" in row.note for row in rows)


def test_the_public_listener_is_beside_a_plain_envoy() -> None:
    """Each measure has its ratio and its aim; what is too slow, misses it."""
    from benchmarks.parts import public_rows

    rates = {"ours": [960.0] * 3, "plain": [1000.0] * 3}
    found = {"connections per CPU second": rates, "connection, ms": {"ours": [2.0], "plain": [1.0]},
             "Gbit/s": rates, "gigabytes per CPU second": {"ours": [0.9], "plain": [1.0]}}  # fmt: skip
    rows = public_rows(found)
    assert [row.group for row in rows] == ["public"] * 4
    assert [row.ratio for row in rows] == [0.96, 2.0, 0.96, 0.9]
    assert [row.met for row in rows] == [True, False, True, False]


def test_the_plain_envoy_has_one_listener_and_one_server() -> None:
    """With the certificate that it is given."""
    from benchmarks.public_bench import config_of_plain

    tree = json.loads(config_of_plain(("127.0.0.1", 1), ("127.0.0.2", 2), "chain", "key"))["static_resources"]
    (listener,), (cluster,) = tree["listeners"], tree["clusters"]
    context = listener["filter_chains"][0]["transport_socket"]["typed_config"]["common_tls_context"]
    assert context["tls_certificates"][0]["certificate_chain"] == {"inline_string": "chain"}
    assert cluster["name"] == listener["filter_chains"][0]["filters"][0]["typed_config"]["cluster"]
