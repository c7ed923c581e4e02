"""What a newer manifest ends."""

from __future__ import annotations

import dataclasses

from tests.coordinator.world import cvm, make_manifest, make_reference
from topology.allowed import allowed, image_id
from topology.references import OsImage, TcbPolicy

MANIFEST = make_manifest()
[REFERENCE] = MANIFEST.references
OWN, (IMAGE, *OTHERS) = MANIFEST.groups["api"].compose_hashes[0], REFERENCE.os_images
HERE, ELSEWHERE = "ab" * 16, "cd" * 16


def id_of(image: OsImage) -> str:
    """As a record has it."""
    return image_id(image.mrtd, image.rtmr0, image.rtmr1, image.rtmr2)


def test_a_newer_manifest_ends_what_it_does_not_have() -> None:
    """Peer, compose hash or OS image gone: no longer allowed."""
    known = id_of(IMAGE)
    assert allowed(MANIFEST, "api-0", OWN, known)
    assert not allowed(MANIFEST, "api-9", OWN, known)
    assert not allowed(MANIFEST, "api-0", cvm('{"name":"old"}', "s").compose_hash, known)
    assert not allowed(MANIFEST, "api-0", OWN, id_of(dataclasses.replace(IMAGE, rtmr2="00" * 48)))
    without = dataclasses.replace(MANIFEST, references=(make_reference(os_images=tuple(OTHERS)),))
    assert not allowed(without, "api-0", OWN, known)
    assert not allowed(MANIFEST, "api-0", OWN, "")
    assert not allowed(MANIFEST, "coordinator-0", OWN, known), "another app's"
    assert allowed(MANIFEST, "coordinator-0", MANIFEST.coordinators.compose_hashes[0], known)


def test_an_image_is_allowed_while_any_reference_has_it_for_that_machine() -> None:
    """The machine where it is known; a development image where the reference with it allows such."""
    other = make_reference(name="other", os_images=tuple(OTHERS))
    here = make_reference(name="here", os_images=(IMAGE,), devices=(HERE,))
    manifest = dataclasses.replace(MANIFEST, references=(other, here))
    assert allowed(manifest, "api-0", OWN, id_of(IMAGE))
    assert allowed(manifest, "api-0", OWN, id_of(IMAGE), HERE)
    assert not allowed(manifest, "api-0", OWN, id_of(IMAGE), ELSEWHERE)
    assert not allowed(manifest, "api-0", OWN, id_of(IMAGE), "")
    assert allowed(manifest, "api-0", OWN, id_of(OTHERS[0]), ELSEWHERE)
    [development] = [image for image in OTHERS if image.development]
    lax = make_reference(name="lax", os_images=(IMAGE,), tcb=TcbPolicy(allow_development_images=True))
    assert not allowed(dataclasses.replace(MANIFEST, references=(other, lax)), "api-0", OWN, id_of(development))
    lax = dataclasses.replace(lax, os_images=(development,))
    assert allowed(dataclasses.replace(MANIFEST, references=(other, lax)), "api-0", OWN, id_of(development))
