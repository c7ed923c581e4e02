from __future__ import annotations

import pytest

from sidecar import process
from sidecar.process import OPERATOR, run


def test_configuration_problems_end_with_the_operators_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    """run() does not raise for a bad environment: it explains and returns 2."""
    assert run({"MESH_CLUSTER": "demo"}) == OPERATOR
    assert "MESH_GROUP: is not set" in capsys.readouterr().err


def test_errors_are_found_in_nested_groups() -> None:
    """Scopes nest, and so do their exception groups."""
    first, second = ValueError("1"), OSError("2")
    assert process._leaves(ExceptionGroup("outer", [first, ExceptionGroup("inner", [second])])) == [first, second]
