"""What only the cloud says of a platform, and what a person has said of it."""

from __future__ import annotations

from typing import Any

import pytest

from meshctl.generate_platform import Word, judge
from tests.topology.support import REFERENCE


def before(**changes: Any) -> dict[str, Any]:
    """A manifest that has what is reported, or something else."""
    image = {"mrtd": "01", "rtmr0": "02", "rtmr1": "03", "rtmr2": "04"}
    return {"references": [{"key_provider": {"name": "kms", "id": "30aa"}, "os_images": [image], **changes}]}


@pytest.mark.parametrize("nothing", [None, [], {}, {"references": 1}, {"references": [1]}])
def test_the_first_time_the_provider_is_pinned_or_taken(nothing: object) -> None:
    """In so many words; a pinned one has to be the one that is reported."""
    assert "is the cloud's word" in judge(REFERENCE, nothing, Word()).problems[0]
    taken = judge(REFERENCE, nothing, Word(take_provider=True))
    assert (taken.problems, len(taken.notes)) == ((), 1)
    assert judge(REFERENCE, nothing, Word(key_provider="30AA")).problems == ()
    assert "--key-provider says …30bb" in judge(REFERENCE, nothing, Word(key_provider="30bb")).problems[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"key_provider": {"name": "kms", "id": "30bb"}}, "key provider: kms …30bb → kms …30aa"),
        ({"key_provider": {"name": "local", "id": "30aa"}}, "key provider: local …30aa → kms …30aa"),
        ({"key_provider": 1}, "→ kms …30aa"),
        ({"os_images": []}, "OS image 05"),
        ({"os_images": [{"mrtd": "99"}, 1]}, "OS image 05"),
    ],
)
def test_a_change_is_a_decision_of_its_own(change: dict[str, Any], words: str) -> None:
    """What was taken the first time is no leave for it."""
    found = judge(REFERENCE, before(**change), Word(take_provider=True))
    assert [words in each for each in found.problems] == [True]
    accepted = judge(REFERENCE, before(**change), Word(change=True))
    assert accepted.problems == ()
    assert [words in each for each in accepted.notes] == [True]


def test_what_is_pinned_needs_no_leave() -> None:
    """It is the person's own; and what is as before is no change."""
    assert judge(REFERENCE, before(), Word()).problems == ()
    pinned = Word(key_provider="30aa", images_pinned=True)
    found = judge(REFERENCE, before(key_provider={"name": "x", "id": "y"}, os_images=[]), pinned)
    assert (found.problems, found.notes) == ((), ())
