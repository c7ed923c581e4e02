"""Options of the lab's commands; the commands themselves are driven end to end in tests/e2e."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from meshctl import lab_commands, runs
from meshctl.errors import UserError
from topology.cluster import MAX_COORDINATORS


def test_options_become_overrides() -> None:
    """Replicas, coordinators and variables reach the cluster under the names that it knows."""
    assert lab_commands.overrides_of(("worker=5",), 3, ("cluster_name=x",)) == {
        "cluster_name": "x",
        "replicas.worker": "5",
        "coordinators": "3",
    }


@pytest.mark.parametrize("text", ["worker", "=5", "worker=many"])
def test_malformed_replicas_are_refused(text: str) -> None:
    """A malformed option is refused with its form."""
    with pytest.raises(UserError):
        lab_commands.overrides_of((text,), None, ())


def test_new_log_lines_are_printed_once_and_only_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Following a log prints complete lines, and goes on where it stopped."""
    log = tmp_path / "api-cvm1.sidecar.log"
    log.write_bytes(b"one\ntw")
    place = lab_commands._print_new(log, "api-0.sidecar", 0)
    assert capsys.readouterr().out == "api-0.sidecar | one\n"
    log.write_bytes(b"one\ntwo\n")
    assert lab_commands._print_new(log, "api-0.sidecar", place) == 8
    assert capsys.readouterr().out == "api-0.sidecar | two\n"


def test_logs_are_found_by_what_a_cvm_is_called(tmp_path: Path) -> None:
    """The peer ID first; a machine's own name unless it is another's peer ID; all without a name."""
    for name in ("api-cvm0.app", "api-cvm0.sidecar", "api-cvm1.sidecar", "rendezvous.rendezvous"):
        (tmp_path / f"{name}.log").touch()
    names = {"api-cvm0": "api-1", "api-cvm1": "api-cvm1", "rendezvous": "rendezvous"}

    def found(peer: str | None) -> dict[str, str]:
        return {path.name: label for path, label in lab_commands.log_files(tmp_path, names, peer).items()}

    assert found("api-1") == {"api-cvm0.app.log": "api-1.app", "api-cvm0.sidecar.log": "api-1.sidecar"}
    assert found("api-cvm0") == found("api-1")
    assert found("api-cvm1") == {"api-cvm1.sidecar.log": "api-cvm1.sidecar"}
    assert found("api-0") == {}
    assert list(found(None).values()) == ["api-1.app", "api-1.sidecar", "api-cvm1.sidecar", "rendezvous.rendezvous"]


def test_unknown_nat_is_refused() -> None:
    """The kinds of NAT are a closed list."""
    result = CliRunner().invoke(lab_commands.up, ["clusters/starter", "--nat", "cone"])
    assert result.exit_code == 2
    assert "preserving" in result.output


@pytest.mark.parametrize(("state", "remedy"), [("running", "./mesh status"), ("killed", "./mesh start api-0")])
def test_what_to_do_about_a_container_that_does_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: str, remedy: str
) -> None:
    """A CVM that runs is not to be started: its container waits, and the status says for what."""
    container = {"name": "api", "is_sidecar": False, "host_pid": None, "state": "waiting for the sidecar's health"}
    machine = {"peer_id": "api-0", "machine": "api-cvm0", "state": state, "containers": [container]}
    monkeypatch.setattr(lab_commands.statuses, "collect", lambda _run: {"machines": [machine]})
    with pytest.raises(UserError, match="api-0 has no running container") as caught:
        lab_commands.container_pid(runs.Run("x", tmp_path), "api-0", None)
    assert caught.value.remedy.startswith(remedy)


def test_how_many_coordinators_there_may_be_is_said_by_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """The option passes on what the model takes, and what it refuses; it has no limit of its own but one."""
    asked: list[dict[str, str]] = []

    def refuse(_cluster: str, overrides: dict[str, str], *_: object, **__: object) -> None:
        asked.append(overrides)
        raise UserError("enough")

    monkeypatch.setattr(lab_commands, "start_mesh", refuse)
    for count in (str(MAX_COORDINATORS), str(MAX_COORDINATORS + 1)):
        CliRunner().invoke(lab_commands.up, ["clusters/starter", "--coordinators", count])
        assert asked.pop() == {"coordinators": count}
    assert CliRunner().invoke(lab_commands.up, ["clusters/starter", "--coordinators", "0"]).exit_code == 2
    assert not asked
