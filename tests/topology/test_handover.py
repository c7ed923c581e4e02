"""What a manifest may say of a move to another coordinators' app."""

from __future__ import annotations

import dataclasses

import pytest

from topology.handover import MAX_URLS, Handover, HandoverError, apps, check
from topology.places import PlacesError

OWN, FORMER = "bb" * 20, "aa" * 20
URL = "https://former.example:8787"
GOOD = Handover(from_app_id=FORMER, until=2_000_000_000, urls=(URL,))


def test_a_handover_names_the_app_before_and_where_it_answers() -> None:
    """None is no handover, and fits any manifest."""
    check(GOOD, OWN, ("https://new.example",), 2)
    check(None, OWN, (), 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"from_app_id": "AA" * 20}, "40 hex digits"),
        ({"from_app_id": OWN}, "the app that the manifest names"),
        ({"until": 0}, "until is 0"),
        ({"until": 253_402_300_800}, "expected Unix seconds"),
        ({"urls": ()}, "has 0 entries"),
        ({"urls": (URL,) * (MAX_URLS + 1)}, f"has {MAX_URLS + 1} entries"),
        ({"urls": ("https://new.example",)}, "itself answers"),
    ],
)
def test_what_cannot_be_carried_out_is_refused_by_name(changes: dict[str, object], words: str) -> None:
    """Before an owner signs it."""
    with pytest.raises(HandoverError, match=words):
        check(dataclasses.replace(GOOD, **changes), OWN, ("https://new.example",), 2)  # type: ignore[arg-type]


def test_former_coordinators_are_asked_by_https() -> None:
    """As all are."""
    with pytest.raises(PlacesError, match=r"handover.urls\[0\]"):
        check(dataclasses.replace(GOOD, urls=("http://former",)), OWN, (), 2)


def test_a_first_manifest_takes_nothing_over() -> None:
    """Nobody has a mesh before it."""
    with pytest.raises(HandoverError, match="first manifest"):
        check(GOOD, OWN, (), 1)


def test_a_manifest_speaks_of_its_app_and_of_the_former() -> None:
    """By which manifests of one mesh are known."""
    assert apps(OWN, None) == {OWN}
    assert apps(OWN, GOOD) == {OWN, FORMER}
