"""`./mesh coordinators`, without a mesh."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from meshctl import coordinators, runs
from meshctl import status as statuses
from meshctl.errors import UserError


def test_coordinator_that_does_not_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a coordinator that runs can be told anything; nothing is done for another name."""
    monkeypatch.setattr(runs, "find", lambda name: runs.run_of(name or "x"))
    monkeypatch.setattr(statuses, "collect", lambda _run: {"machines": []})
    result = CliRunner().invoke(coordinators.command, ["recover", "coordinator-7", "--accept-loss"])
    assert isinstance(result.exception, UserError)
    assert "coordinator-7" in result.exception.message
