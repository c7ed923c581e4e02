"""`./mesh coordinators`, without a mesh."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from meshctl import coordinators, runs
from meshctl import status as statuses
from meshctl.errors import UserError


@pytest.mark.parametrize("peer", ["coordinator-7", "api-0"])
def test_whoever_is_no_coordinator_is_named(monkeypatch: pytest.MonkeyPatch, peer: str) -> None:
    """Only a coordinator can be told anything; nothing is done for another name, and the right ones are said."""
    machines = [{"peer_id": "api-0", "group": "api"}, {"peer_id": "coordinator-0", "group": "coordinator"}]
    monkeypatch.setattr(runs, "find", lambda name: runs.run_of(name or "x"))
    monkeypatch.setattr(statuses, "collect", lambda _run: {"machines": machines})
    result = CliRunner().invoke(coordinators.command, ["recover", peer, "--accept-loss"])
    assert isinstance(result.exception, UserError)
    assert peer in result.exception.message
    assert "coordinator-0" in result.exception.remedy
