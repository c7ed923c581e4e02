"""The three-way merge behind `./mesh generate`: hand edits stay, computed changes are taken, both is a conflict."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from topology.merge import ABSENT, Conflict, differences, merge, shared

LABELS = st.sampled_from(["a", "b", "c", "d"])
SCALARS = st.none() | st.booleans() | st.integers(0, 3) | LABELS
NAMED = st.lists(
    st.fixed_dictionaries({"name": LABELS}, optional={"port": st.integers(0, 2), "role": SCALARS}),
    max_size=3, unique_by=lambda item: item["name"],
)  # fmt: skip
TREES = st.recursive(
    SCALARS | st.lists(LABELS, max_size=3, unique=True) | NAMED | st.lists(st.integers(0, 2), max_size=3),
    lambda inner: st.dictionaries(LABELS, inner, max_size=3),
    max_leaves=12,
)
OBJECTS = st.dictionaries(LABELS, TREES, max_size=4)


def text(tree: object) -> str:
    """A tree's one form."""
    return json.dumps(tree, sort_keys=True)


@given(OBJECTS, OBJECTS)
def test_generated_twice_changes_nothing(generated: Any, edited: Any) -> None:
    """The same is computed again: every edit stays, byte for byte."""
    found = merge(generated, edited, copy.deepcopy(generated))
    assert (text(found.tree), found.conflicts) == (text(edited), ())


@given(OBJECTS, OBJECTS)
def test_what_nobody_edited_is_taken(generated: Any, computed: Any) -> None:
    """Also what is no longer there."""
    found = merge(generated, copy.deepcopy(generated), computed)
    assert (text(found.tree), found.conflicts) == (text(computed), ())


@given(OBJECTS, OBJECTS)
def test_the_same_change_on_both_sides_is_none(generated: Any, both: Any) -> None:
    """Somebody wrote by hand what is computed now."""
    found = merge(generated, both, copy.deepcopy(both))
    assert (text(found.tree), found.conflicts) == (text(both), ())


@given(OBJECTS, OBJECTS, OBJECTS)
def test_a_run_after_a_run_changes_nothing(generated: Any, edited: Any, computed: Any) -> None:
    """What a merge wrote is the edited one of the next run, and what was computed is the generated one."""
    first = merge(generated, edited, computed)
    if not first.conflicts:
        again = merge(computed, first.tree, copy.deepcopy(computed))
        assert (text(again.tree), again.conflicts) == (text(first.tree), ())


@given(OBJECTS, OBJECTS, OBJECTS)
def test_every_value_is_somebodys(generated: Any, edited: Any, computed: Any) -> None:
    """Where there is no conflict, each top entry that only one side changed has that side's value."""
    found = merge(generated, edited, computed)
    for key in {*generated, *edited, *computed}:
        was, mine, new = (each.get(key, ABSENT) for each in (generated, edited, computed))
        if any(conflict.path.startswith(key) for conflict in found.conflicts):
            continue
        got = found.tree.get(key, ABSENT)
        if repr(was) == repr(new):
            assert repr(got) == repr(mine)
        elif repr(was) == repr(mine):
            assert repr(got) == repr(new)


@given(OBJECTS, OBJECTS)
def test_differences_are_all_there(before: Any, after: Any) -> None:
    """None where trees are alike, and some where they are not."""
    assert bool(differences(before, after)) == (text(before) != text(after))


def test_both_changed_one_value() -> None:
    """The conflict has the place and both values; nothing is chosen silently."""
    was = {"groups": {"api": {"port": 1}}, "leaf_hours": 8}
    found = merge(
        was, {"groups": {"api": {"port": 2}}, "leaf_hours": 9}, {"groups": {"api": {"port": 3}}, "leaf_hours": 8}
    )
    assert found.conflicts == (Conflict(path="groups.api.port", generated=1, edited=2, computed=3),)
    assert str(found.conflicts[0]) == "groups.api.port: by hand 2, computed now 3"


def test_one_took_away_what_the_other_changed() -> None:
    """Both ways are conflicts."""
    was = {"routes": [{"name": "a", "port": 1}]}
    changed = {"routes": [{"name": "a", "port": 2}]}
    assert str(merge(was, {"routes": []}, changed).conflicts[0]).startswith(
        "routes[a]: by hand nothing, computed now {"
    )
    assert str(merge(was, changed, {"routes": []}).conflicts[0]).endswith("computed now nothing")


def test_lists_are_merged_by_what_names_an_entry() -> None:
    """A peer added by hand, and one that was computed; an edit within an entry whose place has changed."""
    was = {"peers": [{"peer_id": "a", "address": "1"}, {"peer_id": "b", "address": "2"}]}
    mine = {"peers": [*was["peers"], {"peer_id": "hand", "address": "9"}]}
    new = {"peers": [{"peer_id": "b", "address": "2"}, {"peer_id": "c", "address": "3"}]}
    found = merge(was, mine, new)
    assert [peer["peer_id"] for peer in found.tree["peers"]] == ["b", "c", "hand"]
    assert not found.conflicts


def test_lists_of_texts_are_merged_as_sets() -> None:
    """A hash that was added by hand, one that was taken away by hand, and one that was measured anew."""
    found = merge({"h": ["old", "bad"]}, {"h": ["old", "hand"]}, {"h": ["new", "old", "bad"]})
    assert (found.tree, found.conflicts) == ({"h": ["new", "old", "hand"]}, ())


def test_without_what_was_generated_everything_that_differs_is_a_conflict() -> None:
    """A manifest that nobody generated here: nothing of it is overwritten; what is only in it stays."""
    found = merge(ABSENT, {"a": 1, "b": 1, "hand": 1}, {"a": 1, "b": 2})
    assert [conflict.path for conflict in found.conflicts] == ["b"]
    assert found.tree == {"a": 1, "b": 1, "hand": 1}


@given(OBJECTS, OBJECTS)
def test_what_is_shared_adds_nothing(tree: Any, other: Any) -> None:
    """Merged without a base, it leaves out what the other one lacks; with all of itself, it is itself."""
    assert text(shared(tree, tree)) == text(tree)
    both = shared(tree, other)
    assert set(both) == set(tree) & set(other)
    assert set(merge(ABSENT, other, both).tree) == set(other)


def test_what_means_something_as_a_whole_is_one_value() -> None:
    """A threshold from one hand and keys from another are owners that nobody chose; so is half of a key provider."""
    owners = {"keys": [{"alg": "ed25519", "key": "a"}, {"alg": "ed25519", "key": "b"}], "threshold": 1}
    mine = {**owners, "threshold": 2}
    new = {"keys": [*owners["keys"], {"alg": "ed25519", "key": "c"}], "threshold": 1}
    found = merge({"owners": owners}, {"owners": mine}, {"owners": new})
    assert [(it.path, it.edited, it.computed) for it in found.conflicts] == [("owners", mine, new)]
    kms = [
        {"name": "r", "key_provider": {"name": name, "id": key}} for name, key in (("k", "1"), ("l", "1"), ("k", "2"))
    ]
    was, ours, theirs = ({"references": [each]} for each in kms)
    assert [it.path for it in merge(was, ours, theirs).conflicts] == ["references[r].key_provider"]


def test_everybody_stands_alone_among_callers() -> None:
    """Where the person says everybody and the cluster names groups, or the other way round, one of them has to go."""
    for mine, new in ((["*"], ["api", "web"]), (["api", "web"], ["*"])):
        found = merge({"callers": ["api"]}, {"callers": mine}, {"callers": new})
        assert str(found.conflicts[0]) == f"callers: by hand {json.dumps(mine)}, computed now {json.dumps(new)}"
    assert merge({"callers": ["*"]}, {"callers": ["*"]}, {"callers": ["api"]}).tree == {"callers": ["api"]}


def test_true_is_not_one() -> None:
    """JSON tells them apart, Python does not."""
    assert [it.path for it in differences({"a": True}, {"a": 1})] == ["a"]
    assert merge({"a": 1}, {"a": True}, {"a": 1}).tree == {"a": True}
