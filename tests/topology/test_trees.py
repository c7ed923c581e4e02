"""Trees of JSON that are read by a type's annotations, and others."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from topology.trees import MAX_UNKNOWN, ManifestError, field_names, from_tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """A part."""

    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    """One of each kind of field."""

    name: str
    on: bool = False
    parts: tuple[Inner, ...] = ()
    by_name: dict[str, Inner] = field(default_factory=dict)
    maybe: Inner | None = None


def test_what_the_annotations_say_is_built() -> None:
    """Lists become tuples; what is left out has its default."""
    tree = {"name": "a", "parts": [{"port": 1}], "by_name": {"x": {"port": 2}}, "maybe": None}
    assert from_tree(Outer, tree, "it") == Outer(name="a", parts=(Inner(port=1),), by_name={"x": Inner(port=2)})


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ([], "it must be an object, not []"),
        ({}, "it lacks ['name']"),
        ({"name": 1}, "it.name must be str, not 1"),
        ({"name": "a", "on": 1}, "it.on must be bool, not 1"),
        ({"name": "a", "parts": {}}, "it.parts must be a list, not {}"),
        ({"name": "a", "parts": [{"port": True}]}, "it.parts[0].port must be int, not True"),
        ({"name": "a", "by_name": {"x": 1}}, "it.by_name.x must be an object, not 1"),
        ({"name": "a", "maybe": {"prot": 1}}, "it.maybe has unknown entries ['prot']; did you mean 'port'?"),
        ({"name": "a", "colour": 1}, "it has unknown entries ['colour']; expected ['by_name', 'maybe', 'name'"),
    ],
)
def test_what_is_wrong_is_named_by_entry(tree: object, reason: str) -> None:
    """With what was expected there."""
    with pytest.raises(ManifestError) as caught:
        from_tree(Outer, tree, "it")
    assert str(caught.value).startswith(reason)


def test_unknown_entries_are_collected_where_that_is_asked_for() -> None:
    """A bounded number of them, with their places."""
    unknown: list[str] = []
    tree = {"name": "a", "maybe": {"port": 1, "new": 2}, **{f"n{n}": n for n in range(2 * MAX_UNKNOWN)}}
    assert from_tree(Outer, tree, "it", unknown) == Outer(name="a", maybe=Inner(port=1))
    assert len(unknown) == MAX_UNKNOWN
    assert unknown[0] == "it.n0"


def test_field_names_are_those_of_all_levels() -> None:
    """With dots, and without the names of a mapping."""
    names = {"name", "on", "parts", "parts.port", "by_name", "by_name.port", "maybe", "maybe.port"}
    assert field_names(Outer) == names
