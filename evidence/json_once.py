"""JSON objects in which no name is there twice. Pure."""

from __future__ import annotations


def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An `object_pairs_hook`. ValueError for a name that is there twice: readers differ in which of the two counts."""
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r:.80} is there twice in one object")
        found[name] = value
    return found
