"""A manifest's demands in the words of `evidence`."""

from __future__ import annotations

import dataclasses

import pytest

from evidence.manifest import expected
from evidence.policy import Expected, ImageRule, ReferenceRule, TcbRules
from tests.sidecar.world import manifest
from tests.topology.support import REFERENCE
from topology.manifest import COORDINATORS
from topology.references import TcbPolicy


def test_expectation_is_the_manifests_entry_word_by_word() -> None:
    """App, compose hashes, key provider and images are taken over; a group's app is the group's."""
    assert expected(manifest(), COORDINATORS) == Expected(
        app_id="ab" * 20,
        compose_hashes=("cd" * 32,),
        references=(
            ReferenceRule(
                name="measured",
                key_provider_name="kms",
                key_provider_id="30aa",
                os_images=(ImageRule(os_image_hash="05", mrtd="01", rtmr0="02", rtmr1="03", rtmr2="04"),),
                allow_development_images=False,
            ),
        ),
    )
    assert expected(manifest(), "api").app_id == manifest().groups["api"].app_id


def test_unknown_group_is_an_error() -> None:
    """A group that the manifest does not have has no expectation."""
    with pytest.raises(KeyError):
        expected(manifest(), "nobody")


def test_each_reference_has_its_own_rules() -> None:
    """What a TCB may be, until when it may be out of date, and the machines."""
    strict = TcbPolicy(
        allowed_statuses=("UpToDate", "SWHardeningNeeded"),
        rejected_advisories=("INTEL-SA-00001",),
        min_evaluation_data_number=5,
        allow_development_images=True,
        grace_until=7,
    )
    other = dataclasses.replace(REFERENCE, name="other", tcb=strict, devices=("ab" * 16,))
    first, second = expected(manifest(references=(REFERENCE, other)), "api").references
    assert (first.name, first.tcb, first.devices, first.allow_development_images) == ("measured", TcbRules(), (), False)
    assert (second.name, second.devices, second.allow_development_images) == ("other", ("ab" * 16,), True)
    assert second.tcb == TcbRules(
        allowed_statuses=("UpToDate", "SWHardeningNeeded"),
        rejected_advisories=("INTEL-SA-00001",),
        min_evaluation_data_number=5,
        grace_until=7,
    )
