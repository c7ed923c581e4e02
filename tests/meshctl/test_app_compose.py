"""An app-compose.json held against the files. What the cloud measured of it: test_manifest_facts.py."""

from __future__ import annotations

from typing import Any

import pytest

from meshctl.app_compose import AppCompose
from tests.meshctl.test_manifest_facts import FILES

TREE: dict[str, Any] = {
    "runner": "docker-compose", "kms_enabled": True, "gateway_enabled": True, "name": "starter-api",
    "docker_compose_file": FILES["api"], "allowed_envs": ["MESH_CLUSTER"],
}  # fmt: skip


def of(**changes: Any) -> AppCompose:
    """The app `api`, whose CVMs are given MESH_CLUSTER."""
    return AppCompose(app="api", name="starter-api", environment=("MESH_CLUSTER",), tree={**TREE, **changes})


def problems(**changes: Any) -> list[str]:
    """What is wrong with it."""
    return list(of(**changes).problems(FILES["api"], frozenset()))


def test_what_is_as_it_should_be_has_no_problem() -> None:
    """Nor anything to look at."""
    assert problems() == []
    assert list(of().notes()) == []


@pytest.mark.parametrize("odd", [5, "MESH_CLUSTER", None, [5, ["x"]], {"MESH_CLUSTER": 1}])
def test_odd_names_of_variables_are_none(odd: Any) -> None:
    """The cloud may answer anything."""
    assert problems(allowed_envs=odd) == [
        "app 'api' measured no place for the variables MESH_CLUSTER; run terraform apply"
    ]


def test_a_script_has_to_be_read_first() -> None:
    """Its hash is what one accepts."""
    found = of(pre_launch_script="true")
    assert found.script == "true"
    (problem,) = found.problems(FILES["api"], frozenset())
    digest = problem.rpartition(" ")[2]
    assert list(found.problems(FILES["api"], frozenset({digest}))) == []
