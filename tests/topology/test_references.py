"""What a manifest's references must be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.topology.support import REFERENCE
from topology.references import STATUSES, OsImage, Reference, ReferencesError, TcbPolicy, check

[IMAGE] = REFERENCE.os_images
NAMED = replace(IMAGE, mrtd="aa")


def complaint(*references: Reference) -> str:
    """With what the list is refused."""
    with pytest.raises(ReferencesError) as caught:
        check(references)
    return str(caught.value)


def test_each_has_a_name_of_its_own() -> None:
    """And there is one: without any nobody could be admitted."""
    check((REFERENCE, replace(REFERENCE, name="next")))
    assert complaint() == " is empty, so no CVM could be admitted; expected at least one"
    assert "[1].name is 'measured', as that of another one" in complaint(REFERENCE, REFERENCE)
    for name in ("", "Two Words", "a" * 64, "1st"):
        assert complaint(replace(REFERENCE, name=name)).startswith(f"[0].name is {name!r}"[:80])


@pytest.mark.parametrize(
    "again",
    [NAMED, replace(NAMED, mrtd="AA"), replace(NAMED, development=True)],
    ids=["the same", "in capitals", "as a development image"],
)
def test_an_image_is_listed_once(again: OsImage) -> None:
    """Two entries of one image could contradict each other; in another reference it is another matter."""
    first = replace(REFERENCE, os_images=(NAMED,))
    assert "05 twice" in complaint(replace(first, os_images=(NAMED, again)))
    assert "os_images is empty" in complaint(replace(first, os_images=()))
    check((first, replace(first, name="next", os_images=(again,))))
    check((replace(first, os_images=(NAMED, replace(NAMED, rtmr0="ff"))),))


@pytest.mark.parametrize("device", ["AB" * 16, "ab" * 15, "ab" * 20, ""])
def test_a_machine_is_named_as_evidence_names_it(device: str) -> None:
    """32 hex digits in lower case, or no CVM would ever be on it."""
    check((replace(REFERENCE, devices=("ab" * 16,)),))
    assert f"[0].devices has {device!r}" in complaint(replace(REFERENCE, devices=("ab" * 16, device)))


def test_what_intel_does_not_say_is_refused() -> None:
    """A status or an advisory that is mistyped would allow, or reject, nothing; what is expected is named."""
    good = TcbPolicy(allowed_statuses=STATUSES, rejected_advisories=("INTEL-SA-00615",))
    check((replace(REFERENCE, tcb=good),))
    for status in ("upToDate", "UpToDate ", "Revoked", ""):
        told = complaint(replace(REFERENCE, tcb=TcbPolicy(allowed_statuses=("UpToDate", status))))
        assert told.startswith(
            f"[0].tcb.allowed_statuses[1] is {status!r}, expected one of UpToDate, SWHardeningNeeded"
        )
    for advisory in ("INTEL-SA-615", "intel-sa-00615", "CVE-2024-1", ""):
        told = complaint(replace(REFERENCE, tcb=TcbPolicy(rejected_advisories=(advisory,))))
        assert told.startswith(f"[0].tcb.rejected_advisories[0] is {advisory!r}, expected INTEL-SA- and 5 digits")


@pytest.mark.parametrize("moment", [-1, 1_900_000_000_000])
def test_grace_is_a_moment(moment: int) -> None:
    """In seconds: milliseconds would be a grace for ever."""
    check((replace(REFERENCE, tcb=TcbPolicy(grace_until=1_900_000_000)),))
    assert f"grace_until is {moment}" in complaint(replace(REFERENCE, tcb=TcbPolicy(grace_until=moment)))
