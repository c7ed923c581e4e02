"""What a newer manifest ends."""

from __future__ import annotations

import dataclasses

from tests.coordinator.world import cvm, make_manifest
from topology.allowed import allowed, image_id

MANIFEST = make_manifest()


def test_a_newer_manifest_ends_what_it_does_not_have() -> None:
    """Peer, compose hash or OS image gone: no longer allowed."""
    own, image = MANIFEST.groups["api"].compose_hashes[0], MANIFEST.os_images[0]
    known = image_id(image.mrtd, image.rtmr0, image.rtmr1, image.rtmr2)
    assert allowed(MANIFEST, "api-0", own, known)
    assert not allowed(MANIFEST, "api-9", own, known)
    assert not allowed(MANIFEST, "api-0", cvm('{"name":"old"}', "s").compose_hash, known)
    assert not allowed(MANIFEST, "api-0", own, image_id(image.mrtd, image.rtmr0, image.rtmr1, "00" * 48))
    assert not allowed(dataclasses.replace(MANIFEST, os_images=MANIFEST.os_images[1:]), "api-0", own, known)
    assert not allowed(MANIFEST, "api-0", own, "")
    assert not allowed(MANIFEST, "coordinator-0", own, known), "another app's"
    assert allowed(MANIFEST, "coordinator-0", MANIFEST.coordinators.compose_hashes[0], known)
