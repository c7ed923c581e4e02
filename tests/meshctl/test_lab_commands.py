"""Options of the lab's commands; the commands themselves are driven end to end in tests/e2e."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from meshctl import lab_commands
from meshctl.errors import UserError


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
    log = tmp_path / "api-0.sidecar.log"
    log.write_bytes(b"one\ntw")
    place = lab_commands._print_new(log, 0)
    assert capsys.readouterr().out == "api-0.sidecar | one\n"
    log.write_bytes(b"one\ntwo\n")
    assert lab_commands._print_new(log, place) == 8
    assert capsys.readouterr().out == "api-0.sidecar | two\n"


def test_unknown_nat_is_refused() -> None:
    """The kinds of NAT are a closed list."""
    result = CliRunner().invoke(lab_commands.up, ["clusters/starter", "--nat", "cone"])
    assert result.exit_code == 2
    assert "preserving" in result.output
