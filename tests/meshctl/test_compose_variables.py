"""The mesh's own variables in compose files."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from meshctl import compose_variables, plan
from meshctl.errors import UserError
from tests.support import ROOT
from tests.topology.support import COMPOSE, group, write
from topology.cluster import load
from topology.problems import ClusterError

OWNERS = "      MESH_OWNERS:"


def refused(folder: Path, new: str) -> list[str]:
    """The problems of a cluster whose sidecar has the lines `new` too."""
    made = write(folder, group("api"), compose=COMPOSE.replace(OWNERS, f"{new}\n{OWNERS}", 1))
    with pytest.raises(ClusterError) as caught:
        compose_variables.check(load(made))
    return caught.value.problems


@pytest.mark.parametrize("folder", sorted(path.parent for path in (ROOT / "clusters").glob("*/cluster.tf")), ids=str)
def test_our_own_clusters_have_known_variables(folder: Path) -> None:
    """What is in this checkout starts."""
    compose_variables.check(load(folder))


def test_unknown_name_is_refused_with_its_line_and_the_nearest(tmp_path: Path) -> None:
    """Also one whose value only the deployment knows: the name stands in the file."""
    found = refused(tmp_path, "      MESH_GRUOP: ${MESH_GROUP}")
    line = COMPOSE.splitlines().index(next(text for text in COMPOSE.splitlines() if text.startswith(OWNERS))) + 1
    of_app = next(problem for problem in found if "app.yaml" in problem)
    assert f"app.yaml:{line}: services.sidecar.environment.MESH_GRUOP: " in of_app
    assert "did you mean MESH_GROUP?" in of_app


def test_literal_that_the_program_would_refuse_is_refused(tmp_path: Path) -> None:
    """By the parser of the program that reads it; a value with a variable in it is not known yet."""
    assert any("MESH_LOG_LEVEL: " in problem for problem in refused(tmp_path / "a", "      MESH_LOG_LEVEL: loud"))
    good = COMPOSE.replace(OWNERS, f"      MESH_LOG_LEVEL: ${{LEVEL:-loud}}\n{OWNERS}", 1)
    compose_variables.check(load(write(tmp_path / "b", group("api"), compose=good)))


@pytest.mark.parametrize("text", ["nokey", "2 of nokey, nokey"])
def test_owners_that_are_no_key_are_refused(tmp_path: Path, text: str) -> None:
    """A CVM would believe nobody; the placeholder is for a key that is not made yet, and a variable is refused
    elsewhere.
    """
    made = write(tmp_path, group("api"), compose=COMPOSE.replace("REPLACE_WITH_YOUR_OWNER_KEY", text))
    with pytest.raises(ClusterError) as caught:
        compose_variables.check(load(made))
    found = [problem for problem in caught.value.problems if "app.yaml" in problem]
    assert len(found) == 1
    assert "app.yaml:7: services.sidecar.environment.MESH_OWNERS: " in found[0]
    assert "./mesh keygen" in found[0]


def test_plan_refuses_them(tmp_path: Path) -> None:
    """A person hears of it before anything is measured."""
    write(tmp_path, group("api"), compose=COMPOSE.replace(OWNERS, f"      MESH_GRUOP: x\n{OWNERS}", 1))
    result = CliRunner().invoke(plan.command, [str(tmp_path)])
    assert isinstance(result.exception, UserError)
    assert "MESH_GRUOP" in result.exception.message
