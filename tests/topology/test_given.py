"""Whose signatures count, out of the environment."""

from __future__ import annotations

import pytest

from runtime.env import ConfigError, EnvReader
from tests.topology.test_render import OWNER_KEY, OWNERS
from topology import given, owners

GOOD = {"MESH_OWNERS": OWNER_KEY}
UNSIGNED = {"MESH_INSECURE_UNSIGNED_MANIFEST": "1"}


def read(environ: dict[str, str]) -> tuple[given.Given, list[str]]:
    """What is read, and the variables with problems."""
    reader = EnvReader(environ)
    return given.read(reader), [problem.variable for problem in reader.problems]


def test_the_owners_are_read() -> None:
    """And nothing about it is insecure."""
    found, problems = read(GOOD)
    assert (found.owners, found.insecure, problems) == (OWNERS, (), [])


def test_unsigned_manifests_have_to_be_asked_for() -> None:
    """It keeps being told, and contradicts owners."""
    found, problems = read(UNSIGNED)
    assert (found.owners, len(found.insecure), problems) == (None, 1, [])
    assert read(UNSIGNED | {"MESH_OWNERS": OWNER_KEY})[1] == ["MESH_INSECURE_UNSIGNED_MANIFEST"]


@pytest.mark.parametrize(
    ("environ", "problems"),
    [
        ({}, ["MESH_OWNERS"]),
        (GOOD | {"MESH_OWNERS": owners.OWNER_KEY_PLACEHOLDER}, ["MESH_OWNERS"]),
        (GOOD | {"MESH_OWNERS": f"2 of {OWNER_KEY}"}, ["MESH_OWNERS"]),
    ],
    ids=["nothing", "placeholder", "threshold"],
)
def test_each_problem_is_told(environ: dict[str, str], problems: list[str]) -> None:
    """By the variable's name."""
    assert read(environ)[1] == problems


@pytest.mark.parametrize("value", ["", "a.b"])
def test_a_manifest_of_the_environment_is_refused_with_what_to_do(value: str) -> None:
    """Also an empty one, as an older compose file passes it on: who set it expects that it counts."""
    reader = EnvReader(GOOD | {"MESH_MANIFEST": value})
    given.read(reader)
    with pytest.raises(ConfigError, match=r"MESH_MANIFEST: is not a known variable; .* \./mesh set gives it"):
        reader.finish()
