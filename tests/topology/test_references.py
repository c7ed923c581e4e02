"""The list of reference values: what it must be. What holds by one: tests/evidence/test_policy.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.topology.support import REFERENCE
from topology.references import Reference, ReferencesError, check


def test_references_have_names_of_their_own() -> None:
    """One is enough; two may say the same under two names."""
    check((REFERENCE,))
    check((REFERENCE, replace(REFERENCE, name="next", devices=("ab" * 16,))))


@pytest.mark.parametrize(
    ("references", "said"),
    [
        ((), "is empty, so no CVM could be admitted"),
        ((REFERENCE, REFERENCE), "as that of another one"),
        ((replace(REFERENCE, name="Next"),), r"\[0\].name is 'Next'"),
        ((replace(REFERENCE, devices=("AB" * 16,)),), r"\[0\].devices has 'ABAB"),
        ((replace(REFERENCE, os_images=()),), r"\[0\].os_images is empty"),
        ((REFERENCE, replace(REFERENCE, name="b", os_images=REFERENCE.os_images * 2)), r"\[1\].os_images has .* twice"),
        ((replace(REFERENCE, tcb=replace(REFERENCE.tcb, grace_until=-1)),), "grace_until is -1"),
        ((replace(REFERENCE, tcb=replace(REFERENCE.tcb, grace_until=10**12)),), "grace_until is 1000000000000"),
    ],
)
def test_what_could_never_hold_is_refused(references: tuple[Reference, ...], said: str) -> None:
    """The message names the entry."""
    with pytest.raises(ReferencesError, match=said):
        check(references)
