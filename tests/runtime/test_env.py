from __future__ import annotations

import pytest

from runtime.env import ConfigError, EnvReader, Problem


def test_values_are_parsed_and_defaults_used() -> None:
    """Unset and empty mean the default."""
    reader = EnvReader({"MESH_A": "5", "MESH_B": "", "OTHER": "x"})
    assert reader.optional("MESH_A", int, 1) == 5
    assert reader.optional("MESH_B", int, 1) == 1
    assert reader.optional("MESH_C", int, 2) == 2
    reader.finish()


def test_all_problems_come_at_once() -> None:
    """A bad value, a missing variable and an unknown one are reported together, each by name."""

    def port(text: str) -> int:
        raise ValueError(f"is {text!r}, expected a port")

    reader = EnvReader({"MESH_PORT": "x", "MESH_CLUSTR": "a"})
    reader.required("MESH_CLUSTER", str, "", "the cluster's name")
    reader.optional("MESH_PORT", port, 0)
    with pytest.raises(ConfigError) as caught:
        reader.finish()
    assert caught.value.problems == [
        Problem("MESH_CLUSTER", "is not set; expected the cluster's name"),
        Problem("MESH_PORT", "is 'x', expected a port"),
        Problem("MESH_CLUSTR", "is not a known variable; did you mean MESH_CLUSTER?"),
    ]
    assert str(caught.value).splitlines()[0] == "MESH_CLUSTER: is not set; expected the cluster's name"


def test_unknown_variable_without_a_neighbour_points_to_the_reference() -> None:
    """A name like no other refers to the documentation."""
    with pytest.raises(ConfigError, match=r"see docs/configuration\.md"):
        EnvReader({"MESH_ZZZZZZ": "1"}).finish()
