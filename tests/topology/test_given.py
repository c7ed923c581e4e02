"""The manifest and its owners out of the environment."""

from __future__ import annotations

import pytest

from runtime.env import EnvReader
from tests.topology.test_render import KEY, OWNER_KEY, OWNERS, deployment, starter
from topology import given, render
from topology.envelope import seal

MADE = render.manifest(starter(), deployment())
GOOD = {"MESH_MANIFEST": seal(MADE, KEY), "MESH_OWNERS": OWNER_KEY}
UNSIGNED = {"MESH_MANIFEST": seal(MADE), "MESH_INSECURE_UNSIGNED_MANIFEST": "1"}


def read(environ: dict[str, str]) -> tuple[given.Given, list[str]]:
    """What is read, and the variables with problems."""
    reader = EnvReader(environ)
    return given.read(reader), [problem.variable for problem in reader.problems]


def test_a_signed_manifest_is_opened_with_its_owners() -> None:
    """And nothing about it is insecure."""
    found, problems = read(GOOD)
    assert found.signed is not None
    assert (found.signed.manifest, found.owners, found.insecure, problems) == (MADE, OWNERS, (), [])


def test_an_unsigned_one_has_to_be_asked_for() -> None:
    """It keeps being told, and contradicts owners."""
    found, problems = read(UNSIGNED)
    assert found.signed is not None
    assert (found.owners, len(found.insecure), problems) == (None, 1, [])
    assert read(UNSIGNED | {"MESH_OWNERS": OWNER_KEY})[1] == ["MESH_INSECURE_UNSIGNED_MANIFEST"]


@pytest.mark.parametrize(
    ("environ", "problems"),
    [
        ({}, ["MESH_MANIFEST", "MESH_OWNERS"]),
        (GOOD | {"MESH_MANIFEST": seal(MADE)}, ["MESH_MANIFEST"]),
        (GOOD | {"MESH_MANIFEST": "garbage"}, ["MESH_MANIFEST"]),
        (GOOD | {"MESH_OWNERS": render.OWNER_KEY_PLACEHOLDER}, ["MESH_OWNERS"]),
        (GOOD | {"MESH_OWNERS": f"2 of {OWNER_KEY}"}, ["MESH_OWNERS"]),
    ],
    ids=["nothing", "unsigned", "garbage", "placeholder", "threshold"],
)
def test_each_problem_is_told(environ: dict[str, str], problems: list[str]) -> None:
    """By the variable's name; there is no manifest then."""
    found, told = read(environ)
    assert told == problems
    assert found.signed is None
