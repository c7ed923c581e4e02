"""What counts as generated at the next run."""

from __future__ import annotations

from typing import Any

from meshctl.generate_base import base, not_below
from topology.manifest import Rotate
from topology.merge import ABSENT

A, B, HAND = ("a" * 64, "b" * 64, "c" * 64)


def tree(*hashes: str) -> dict[str, Any]:
    """A manifest's part that has compose hashes."""
    return {"coordinators": {"compose_hashes": ["d" * 64]}, "groups": {"api": {"compose_hashes": list(hashes)}}}


def test_a_hash_that_a_person_added_stays_the_persons() -> None:
    """Though it stands in the manifest in force, and is kept for an update; one of an earlier revision does not."""
    found = base(tree(B, A, HAND), {"api": (A, HAND)}, tree(A, HAND), tree(A))
    assert found == tree(B, A)


def test_without_what_was_generated_every_hash_of_the_draft_is_the_persons() -> None:
    """Nothing that may be an edit is taken away later without a word. Without a draft there is no edit."""
    assert base(tree(B, A), {"api": (A,)}, tree(A), ABSENT) == tree(B)
    assert base(tree(B, A), {"api": (A,)}, ABSENT, ABSENT) == tree(B, A)


def test_what_is_measured_is_generated() -> None:
    """Also where a person wrote it before it ran."""
    assert base(tree(B), {"api": ()}, tree(A, B), tree(A)) == tree(B)


def test_a_draft_that_was_spoilt_adds_nothing() -> None:
    """What is wrong with it is said elsewhere."""
    for spoilt in ([], {"groups": []}, {"groups": {"api": 1}}, 1):
        assert base(tree(A), {"api": (A,)}, spoilt, spoilt) == tree(A)


def test_no_count_falls_below_the_one_in_force() -> None:
    """A secret that the tree lacks has no count, a greater count stays, and what is no manifest is left alone."""
    force = Rotate(gossip=3, secrets={"database": 2, "gone": 1})
    own = {"secrets": {"database": {}}, "rotate": {"gossip": 0, "secrets": {}}}
    assert not_below(own, force)["rotate"] == {"gossip": 3, "secrets": {"database": 2}}
    greater = {"secrets": {"database": {}}, "rotate": {"gossip": 4, "secrets": {"database": 7}}}
    assert not_below(greater, force) == greater
    spoilt: list[Any] = [
        None, [], {"rotate": 1}, {"secrets": {}, "rotate": {"gossip": "x", "secrets": {}}}
    ]  # fmt: skip
    for tree in spoilt:
        assert not_below(tree, force) == tree
