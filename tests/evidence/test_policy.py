"""`evidence.policy`: genuine evidence of the wrong CVM."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from evidence.errors import EvidenceError
from evidence.policy import check
from evidence.verify import Evidence
from lab.tee import CvmIdentity, DevTee
from tests.evidence.world import boot, expected, rule, submission, verifier, verify


@pytest.fixture(scope="module")
def facts(tee: DevTee, cvm: CvmIdentity) -> Evidence:
    """What honest evidence proves."""
    return verify(verifier(tee), submission(tee, cvm))


def test_the_expected_cvm_passes(tee: DevTee, cvm: CvmIdentity, facts: Evidence) -> None:
    """Every field agrees, in whatever case the manifest writes hex."""
    check(facts, expected(tee, cvm))
    shouted = replace(
        rule(cvm.os_image), mrtd=cvm.os_image.mrtd.upper(), os_image_hash=cvm.os_image.os_image_hash.upper()
    )
    check(facts, expected(tee, cvm, app_id=cvm.app_id.upper(), os_images=(shouted,)))


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
        check(facts, expected(tee, cvm, **changes))
    assert (caught.value.code, word in caught.value.reason) == (code, True)


@pytest.mark.parametrize("field", ["os_image_hash", "mrtd", "rtmr0", "rtmr1", "rtmr2"])
def test_every_measurement_of_the_image_counts(tee: DevTee, cvm: CvmIdentity, facts: Evidence, field: str) -> None:
    """One register off is another image."""
    off = replace(rule(cvm.os_image), **{field: "ab" * (32 if field == "os_image_hash" else 48)})
    with pytest.raises(EvidenceError, match="OS image"):
        check(facts, expected(tee, cvm, os_images=(off,)))


def test_an_unlogged_image_hash_leaves_the_registers(tee: DevTee, cvm: CvmIdentity, facts: Evidence) -> None:
    """Where the OS logs no hash, MRTD and RTMR0 to RTMR2 still decide."""
    check(replace(facts, os_image_hash=None), expected(tee, cvm))


def test_development_images_need_the_manifests_word(tee: DevTee) -> None:
    """A listed image with a root login is refused until the manifest allows such images."""
    cvm = boot(tee, development=True)
    facts = verify(verifier(tee), submission(tee, cvm))
    with pytest.raises(EvidenceError, match="development image") as caught:
        check(facts, expected(tee, cvm))
    assert caught.value.code == "ADMISSION_REJECTED"
    check(facts, expected(tee, cvm, allow_development_images=True))


def test_an_image_listed_both_ways_counts_as_development(tee: DevTee, cvm: CvmIdentity, facts: Evidence) -> None:
    """A contradictory manifest is read the safe way."""
    both = (rule(cvm.os_image), replace(rule(cvm.os_image), development=True))
    with pytest.raises(EvidenceError, match="development image"):
        check(facts, expected(tee, cvm, os_images=both))


@pytest.mark.parametrize("name", ["instance_id", "compose_hash", "device"])
def test_what_is_revoked_is_refused_though_all_else_holds(
    tee: DevTee, cvm: CvmIdentity, facts: Evidence, name: str
) -> None:
    """With a code of its own and by name; another value revokes nobody here."""
    value = getattr(facts, name)
    with pytest.raises(EvidenceError) as caught:
        check(facts, expected(tee, cvm, revoked=frozenset({f"{name} {value}"})))
    assert caught.value.code == "REVOKED"
    assert caught.value.reason == f"the manifest revokes {name} {value}"
    check(facts, expected(tee, cvm, revoked=frozenset({f"{name} {'9' * len(value)}", f"peer_id {value}"})))
