"""A manifest's demands in the words of `evidence`."""

from __future__ import annotations

import dataclasses

import pytest

from evidence.manifest import COORDINATORS, expected, tcb_rules
from evidence.policy import Expected, ImageRule
from tests.sidecar.world import manifest


def test_expectation_is_the_manifests_entry_word_by_word() -> None:
    """App, compose hashes, key provider and images are taken over; a group's app is the group's."""
    assert expected(manifest(), COORDINATORS) == Expected(
        app_id="ab" * 20,
        compose_hashes=("cd" * 32,),
        key_provider_name="kms",
        key_provider_id="30aa",
        os_images=(ImageRule(os_image_hash="05", mrtd="01", rtmr0="02", rtmr1="03", rtmr2="04"),),
        allow_development_images=False,
    )
    assert expected(manifest(), "api").app_id == manifest().groups["api"].app_id


def test_unknown_group_is_an_error() -> None:
    """A group that the manifest does not have has no expectation."""
    with pytest.raises(KeyError):
        expected(manifest(), "nobody")


def test_tcb_rules_are_the_manifests() -> None:
    """Statuses, advisories and the least evaluation number are taken over."""
    strict = dataclasses.replace(manifest().tcb, rejected_advisories=("INTEL-SA-1",), min_evaluation_data_number=5)
    rules = tcb_rules(manifest(tcb=strict))
    assert (rules.allowed_statuses, rules.rejected_advisories, rules.min_evaluation_data_number) == (
        ("UpToDate",),
        ("INTEL-SA-1",),
        5,
    )
