"""What the commands that break a CVM ask of the lab; they break real ones in tests/e2e/test_faults.py."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from meshctl import fault_commands, runs
from meshctl.errors import UserError


class FakeRun:
    """A lab with two CVMs that notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.before = "before"

    def call(self, method: str, path: str, **_: Any) -> Any:
        """Answers as the control API does."""
        self.asked.append((method, path))
        return {"state": "done", "before": self.before, "cut": "in", "pids": [1]}

    def names(self) -> dict[str, str]:
        """Two machines; one is another peer than its number says."""
        return {"a-cvm3": "a-0", "b-cvm0": "b-0"}


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    """The only running mesh."""
    run = FakeRun()
    monkeypatch.setattr(runs, "find", lambda _name: run)
    return run


@pytest.mark.parametrize(
    ("command", "arguments", "path"),
    [
        ("kill", [], "kill"),
        ("kill", ["--process", "a b"], "signal?process=a+b"),
        ("stop", [], "stop"),
        ("start", [], "start"),
        ("cut", [], "cut?direction=both"),
        ("cut", ["--direction", "in"], "cut?direction=in"),
        ("heal", [], "heal"),
    ],
)
def test_each_command_asks_once_per_peer(lab: FakeRun, command: str, arguments: list[str], path: str) -> None:
    """Every peer is met, in the order given."""
    done = CliRunner().invoke(getattr(fault_commands, command), ["b-0", "a-0", *arguments])
    assert done.exit_code == 0, done.output
    assert lab.asked == [("POST", f"/machines/b-0/{path}"), ("POST", f"/machines/a-0/{path}")]


def test_a_typo_in_the_last_peer_breaks_nothing(lab: FakeRun) -> None:
    """All names are checked before the first CVM is met."""
    done = CliRunner().invoke(fault_commands.cut, ["a-0", "b-1"])
    assert isinstance(done.exception, UserError)
    assert "did you mean b-0? this mesh has a-0, b-0" in str(done.exception)
    assert lab.asked == []


def test_directions_are_a_closed_list(lab: FakeRun) -> None:
    """Anything but in, out and both is refused."""
    done = CliRunner().invoke(fault_commands.cut, ["a-0", "--direction", "sideways"])
    assert done.exit_code == 2
    assert lab.asked == []


@pytest.mark.parametrize("command", ["kill", "stop", "start"])
def test_what_was_so_before_is_said(lab: FakeRun, command: str) -> None:
    """Who starts a CVM that runs, or kills one that is killed, reads that nothing changed. It is no failure."""
    assert CliRunner().invoke(getattr(fault_commands, command), ["a-0"]).output == "a-0 is done\n"
    lab.before = "done"
    done = CliRunner().invoke(getattr(fault_commands, command), ["a-0"])
    assert (done.exit_code, done.output) == (0, "a-0 is done already\n")


def test_a_cvm_loses_its_disk_after_it_was_killed(lab: FakeRun) -> None:
    """The lab wipes no disk of a CVM that runs. One program has no disk, so nothing is done then."""
    done = CliRunner().invoke(fault_commands.kill, ["a-0", "--disk"])
    assert done.output == "a-0 is done\nthe disk of a-0 is empty\n"
    assert lab.asked == [("POST", "/machines/a-0/kill"), ("POST", "/machines/a-0/wipe")]
    refused = CliRunner().invoke(fault_commands.kill, ["a-0", "--disk", "--process", "envoy"])
    assert isinstance(refused.exception, UserError)
    assert len(lab.asked) == 2
