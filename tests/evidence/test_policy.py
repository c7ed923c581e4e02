"""`evidence.policy`: genuine evidence of the wrong CVM."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evidence.errors import EvidenceError
from evidence.policy import ReferenceRule, TcbRules, check
from evidence.verify import Evidence
from lab.tee import CvmIdentity, DevTee
from tests.evidence.world import NOW, boot, expected, reference, rule, submission, verifier, verify


@pytest.fixture(scope="module")
def facts(tee: DevTee, cvm: CvmIdentity) -> Evidence:
    """What honest evidence proves."""
    return verify(verifier(tee), submission(tee, cvm))


def test_the_expected_cvm_passes(tee: DevTee, cvm: CvmIdentity, facts: Evidence) -> None:
    """Every field agrees, in whatever case the manifest writes hex."""
    check(facts, expected(tee, cvm), NOW)
    shouted = replace(
        rule(cvm.os_image), mrtd=cvm.os_image.mrtd.upper(), os_image_hash=cvm.os_image.os_image_hash.upper()
    )
    check(facts, expected(tee, cvm, app_id=cvm.app_id.upper(), os_images=(shouted,)), NOW)


@pytest.mark.parametrize(
    ("changes", "code", "word"),
    [
        ({"key_provider_name": "local-sgx"}, "KMS_POLICY_MISMATCH", "key provider"),
        ({"key_provider_id": "30" * 91}, "KMS_POLICY_MISMATCH", "key provider"),
        ({"app_id": "ab" * 20}, "ADMISSION_REJECTED", "the app is"),
        ({"compose_hashes": ("ab" * 32,)}, "ADMISSION_REJECTED", "compose hash"),
        ({"compose_hashes": ()}, "ADMISSION_REJECTED", "compose hash"),
        ({"os_images": ()}, "ADMISSION_REJECTED", "OS image"),
    ],
)
def test_each_difference_has_its_code(
    tee: DevTee, cvm: CvmIdentity, facts: Evidence, changes: dict[str, Any], code: str, word: str
) -> None:
    """A wrong key provider, app, compose hash or image is refused and named."""
    with pytest.raises(EvidenceError) as caught:
        check(facts, expected(tee, cvm, **changes), NOW)
    assert (caught.value.code, word in caught.value.reason) == (code, True)


@pytest.mark.parametrize("field", ["os_image_hash", "mrtd", "rtmr0", "rtmr1", "rtmr2"])
def test_every_measurement_of_the_image_counts(tee: DevTee, cvm: CvmIdentity, facts: Evidence, field: str) -> None:
    """One register off is another image."""
    off = replace(rule(cvm.os_image), **{field: "ab" * (32 if field == "os_image_hash" else 48)})
    with pytest.raises(EvidenceError, match="OS image"):
        check(facts, expected(tee, cvm, os_images=(off,)), NOW)


def test_an_unlogged_image_hash_leaves_the_registers(tee: DevTee, cvm: CvmIdentity, facts: Evidence) -> None:
    """Where the OS logs no hash, MRTD and RTMR0 to RTMR2 still decide."""
    check(replace(facts, os_image_hash=None), expected(tee, cvm), NOW)


def test_development_images_need_the_manifests_word(tee: DevTee) -> None:
    """A listed image with a root login is refused until the manifest allows such images."""
    cvm = boot(tee, development=True)
    facts = verify(verifier(tee), submission(tee, cvm))
    with pytest.raises(EvidenceError, match="development image") as caught:
        check(facts, expected(tee, cvm), NOW)
    assert caught.value.code == "ADMISSION_REJECTED"
    check(facts, expected(tee, cvm, allow_development_images=True), NOW)


def test_an_image_listed_both_ways_counts_as_development(tee: DevTee, cvm: CvmIdentity, facts: Evidence) -> None:
    """A contradictory manifest is read the safe way."""
    both = (rule(cvm.os_image), replace(rule(cvm.os_image), development=True))
    with pytest.raises(EvidenceError, match="development image"):
        check(facts, expected(tee, cvm, os_images=both), NOW)


@pytest.mark.parametrize("name", ["instance_id", "compose_hash", "device"])
def test_what_is_revoked_is_refused_though_all_else_holds(
    tee: DevTee, cvm: CvmIdentity, facts: Evidence, name: str
) -> None:
    """With a code of its own and by name; another value revokes nobody here."""
    value = getattr(facts, name)
    with pytest.raises(EvidenceError) as caught:
        check(facts, expected(tee, cvm, revoked=frozenset({f"{name} {value}"})), NOW)
    assert caught.value.code == "REVOKED"
    assert caught.value.reason == f"the manifest revokes {name} {value}"
    check(facts, expected(tee, cvm, revoked=frozenset({f"{name} {'9' * len(value)}", f"peer_id {value}"})), NOW)


def fault(
    facts: Evidence, tee: DevTee, cvm: CvmIdentity, *references: ReferenceRule, now: float = NOW
) -> EvidenceError:
    """With what `facts` are refused by `references`."""
    with pytest.raises(EvidenceError) as caught:
        check(facts, expected(tee, cvm, references=references), now)
    return caught.value


@pytest.mark.parametrize("rejected", ["INTEL-SA-00001", "intel-sa-00001", " Intel-SA-00001 "])
def test_advisories_are_rejected_however_they_are_written(
    tee: DevTee, cvm: CvmIdentity, facts: Evidence, rejected: str
) -> None:
    """Evidence names advisories in upper case; a policy may have another case."""
    risky = replace(facts, advisory_ids=("INTEL-SA-00001",))
    error = fault(risky, tee, cvm, reference(tee, cvm, tcb=TcbRules(rejected_advisories=(rejected,))))
    assert "INTEL-SA-00001" in error.reason


def test_tcb_status_and_advisories_are_policy(tee: DevTee, cvm: CvmIdentity, facts: Evidence) -> None:
    """Anything but UpToDate is refused unless policy lists it, and a rejected advisory all the same."""
    risky = replace(facts, tcb_status="SWHardeningNeeded", advisory_ids=("INTEL-SA-00001",))
    error = fault(risky, tee, cvm, reference(tee, cvm))
    assert error.code == "ADMISSION_REJECTED"
    assert error.reason == (
        "the platform's TCB status is 'SWHardeningNeeded' ['INTEL-SA-00001'], allowed are: UpToDate"
    )
    rules = TcbRules(allowed_statuses=("SWHardeningNeeded",))
    check(risky, expected(tee, cvm, tcb=rules), NOW)
    error = fault(risky, tee, cvm, reference(tee, cvm, tcb=replace(rules, rejected_advisories=("INTEL-SA-00001",))))
    assert (error.code, "INTEL-SA-00001" in error.reason) == ("ADMISSION_REJECTED", True)


def test_old_tcb_data_is_our_failure(tee: DevTee, cvm: CvmIdentity, facts: Evidence) -> None:
    """A host that serves old TCB data does not make the platform good, nor the CVM bad."""
    check(facts, expected(tee, cvm, tcb=TcbRules(min_evaluation_data_number=20)), NOW)
    error = fault(facts, tee, cvm, reference(tee, cvm, tcb=TcbRules(min_evaluation_data_number=21)))
    assert (error.code, error.reason) == ("VERIFIER_FAILED", "TCB data number 20 is too old, policy wants 21 or newer")


GRACE = TcbRules(grace_until=int(NOW))


@pytest.mark.parametrize(
    ("status", "allowed", "good"),
    [
        ("OutOfDate", ("UpToDate",), True),
        ("OutOfDate", ("SWHardeningNeeded",), False),
        ("OutOfDateConfigurationNeeded", ("UpToDate", "ConfigurationNeeded"), True),
        ("OutOfDateConfigurationNeeded", ("UpToDate",), False),
        ("TDRelaunchAdvised", ("UpToDate",), True),
        ("TDRelaunchAdvisedConfigurationNeeded", ("UpToDate", "ConfigurationNeeded"), True),
        ("TDRelaunchAdvisedConfigurationNeeded", ("UpToDate",), False),
        ("ConfigurationNeeded", ("UpToDate",), False),
        ("SWHardeningNeeded", ("UpToDate",), False),
        ("Revoked", ("UpToDate",), False),
    ],
)
def test_grace_is_for_platforms_that_are_only_out_of_date(
    tee: DevTee, cvm: CvmIdentity, facts: Evidence, status: str, allowed: tuple[str, ...], good: bool
) -> None:
    """Until its very end, and for those that would be allowed once they are updated; then it is over, and said so."""
    found, rules = replace(facts, tcb_status=status), replace(GRACE, allowed_statuses=allowed)
    one = reference(tee, cvm, tcb=rules)
    if good:
        check(found, expected(tee, cvm, tcb=rules), NOW - 1)
        assert "the grace for it ended at 2027-01-15 08:00:00 UTC" in fault(found, tee, cvm, one).reason
    else:
        assert "grace" not in fault(found, tee, cvm, one, now=NOW - 1).reason
    bare = fault(found, tee, cvm, reference(tee, cvm, tcb=replace(rules, grace_until=0)), now=0.0)
    assert (bare.code, bare.reason) == (
        "ADMISSION_REJECTED", f"the platform's TCB status is {status!r} [], allowed are: {', '.join(allowed)}"
    )  # fmt: skip


def test_grace_is_for_the_status_alone(tee: DevTee, cvm: CvmIdentity, facts: Evidence) -> None:
    """Rejected advisories and the least data number hold in it, too."""
    late = replace(facts, tcb_status="OutOfDate", advisory_ids=("INTEL-SA-00001",))
    check(late, expected(tee, cvm, tcb=GRACE), NOW - 1)
    rejecting = replace(GRACE, rejected_advisories=("INTEL-SA-00001",))
    assert "INTEL-SA-00001" in fault(late, tee, cvm, reference(tee, cvm, tcb=rejecting), now=NOW - 1).reason
    newer = replace(GRACE, min_evaluation_data_number=21)
    assert fault(late, tee, cvm, reference(tee, cvm, tcb=newer), now=NOW - 1).code == "VERIFIER_FAILED"


def test_a_machine_that_is_not_listed_is_refused(tee: DevTee, cvm: CvmIdentity, facts: Evidence) -> None:
    """By its platform ID, where the reference lists machines at all."""
    check(facts, expected(tee, cvm, devices=("ab" * 16, facts.device)), NOW)
    error = fault(facts, tee, cvm, reference(tee, cvm, devices=("ab" * 16,)))
    assert (error.code, facts.device in error.reason) == ("ADMISSION_REJECTED", True)


FAULTS: dict[str, dict[str, Any]] = {
    "keys": {"key_provider_id": "30" * 91},
    "image": {"os_images": ()},
    "status": {"tcb": TcbRules(allowed_statuses=())},
    "machine": {"devices": ("ab" * 16,)},
    "data": {"tcb": TcbRules(min_evaluation_data_number=99)},
}
"""Each a way in which a reference does not hold."""
SAID = {
    "keys": "the key provider is",
    "image": "OS image",
    "status": "the platform's TCB status",
    "machine": "the machine is",
    "data": "TCB data number",
}


@pytest.mark.parametrize("one", FAULTS)
@pytest.mark.parametrize("other", FAULTS)
def test_halves_of_two_references_make_no_whole(
    tee: DevTee, cvm: CvmIdentity, facts: Evidence, one: str, other: str
) -> None:
    """What the one has wrong the other has right, and still none holds. Each is named with what it has wrong."""
    two = (reference(tee, cvm, name="old", **FAULTS[one]), reference(tee, cvm, name="new", **FAULTS[other]))
    error = fault(facts, tee, cvm, *two)
    assert error.reason.startswith("none of the manifest's 2 references holds: old: ")
    old, new = error.reason.split("; new: ")
    assert SAID[one] in old
    assert SAID[other] in new
    code = "VERIFIER_FAILED" if "data" in (one, other) else "ADMISSION_REJECTED"
    assert error.code == ("KMS_POLICY_MISMATCH" if one == other == "keys" else code)
    good = reference(tee, cvm, name="good")
    for found in ((*two, good), (good, *two)):
        check(facts, expected(tee, cvm, references=found), NOW)


def test_without_a_reference_nobody_is_let_in(tee: DevTee, cvm: CvmIdentity, facts: Evidence) -> None:
    """No manifest says so; code that forgot them must not admit everybody."""
    assert fault(facts, tee, cvm).code == "ADMISSION_REJECTED"


WAYS = st.sets(st.sampled_from(sorted(FAULTS)))


@given(ways=st.lists(WAYS, min_size=1, max_size=4), more=WAYS, place=st.integers(0, 4))
def test_one_more_reference_never_refuses_who_was_admitted(
    tee: DevTee, cvm: CvmIdentity, facts: Evidence, ways: list[set[str]], more: set[str], place: int
) -> None:
    """Wherever it stands and whatever it wants; and who is admitted fits one of them in everything."""
    rules = [bent(tee, cvm, faults) for faults in ways]
    found = admits(facts, tee, cvm, rules)
    assert found == (set() in ways)
    assert admits(facts, tee, cvm, [*rules[:place], bent(tee, cvm, more), *rules[place:]]) == (found or not more)


def bent(tee: DevTee, cvm: CvmIdentity, faults: set[str]) -> ReferenceRule:
    """A reference with all of `faults`."""
    changes: dict[str, Any] = {}
    for name in sorted(faults):
        changes |= FAULTS[name]
    return reference(tee, cvm, **changes)


def admits(facts: Evidence, tee: DevTee, cvm: CvmIdentity, rules: list[ReferenceRule]) -> bool:
    """Whether `facts` are good by `rules`."""
    try:
        check(facts, expected(tee, cvm, references=tuple(rules)), NOW)
    except EvidenceError:
        return False
    return True
