"""`./mesh database`, without a mesh."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from meshctl import database, readiness, runs
from meshctl.errors import UserError
from meshctl.readiness import Check

MEMBER = Check(peer="postgres-0", container="patroni", argv=(database.PROGRAM, "health"))
OTHER = Check(peer="api-0", container="api", argv=("/app/api", "health"))


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    """The checks of a mesh that runs."""
    checks = [MEMBER, OTHER]
    monkeypatch.setattr(runs, "find", lambda name: runs.run_of(name or "x"))
    monkeypatch.setattr(readiness, "of_run", lambda _run: checks)
    return checks


def test_member_is_named_that_does_not_run(found: list[Check]) -> None:
    """Only a member that runs can be told to lead: anything else is named, and nothing is done."""
    result = CliRunner().invoke(database.command, ["lead", "api-0", "--accept-loss"])
    assert isinstance(result.exception, UserError)
    assert "api-0" in result.exception.message


def test_mesh_without_a_database_says_so(found: list[Check]) -> None:
    """Where no container is a member there is nothing to show."""
    found.remove(MEMBER)
    result = CliRunner().invoke(database.command, ["status"])
    assert isinstance(result.exception, UserError)
    assert "no member" in result.exception.message
