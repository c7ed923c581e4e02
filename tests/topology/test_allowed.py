"""What a newer manifest ends."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.coordinator.world import cvm, make_manifest, make_reference
from topology.allowed import Admitted, image_id, why_not_allowed
from topology.manifest import COORDINATORS, Manifest
from topology.references import OsImage, TcbPolicy
from topology.revocation import Revocation

MANIFEST = make_manifest()
[REFERENCE] = MANIFEST.references
API = MANIFEST.groups["api"]
OWN, (IMAGE, *OTHERS) = API.compose_hashes[0], REFERENCE.os_images
HERE, ELSEWHERE = "ab" * 16, "cd" * 16


def id_of(image: OsImage) -> str:
    """As a record has it."""
    return image_id(image.mrtd, image.rtmr0, image.rtmr1, image.rtmr2)


ADMITTED = Admitted(
    peer_id="api-0", group="api", address=API.peers[0].address, app_id=API.app_id, compose_hash=OWN,
    image=id_of(IMAGE), instance_id="ef" * 20, device=HERE,
)  # fmt: skip
"""The CVM in the first slot of api."""


def why(manifest: Manifest = MANIFEST, **changes: Any) -> str | None:
    """Why `manifest` does not allow that CVM with these changes."""
    return why_not_allowed(manifest, dataclasses.replace(ADMITTED, **changes))


def test_a_newer_manifest_ends_what_it_does_not_have() -> None:
    """Peer, compose hash or OS image gone: no longer allowed, and named."""
    assert why() is None
    assert "has no api-9" in str(why(peer_id="api-9"))
    assert "compose hash" in str(why(compose_hash=cvm('{"name":"old"}', "s").compose_hash))
    assert "OS image" in str(why(image=id_of(dataclasses.replace(IMAGE, rtmr2="00" * 48))))
    without = dataclasses.replace(MANIFEST, references=(make_reference(os_images=tuple(OTHERS)),))
    assert "OS image" in str(why(without))
    assert "OS image" in str(why(image=""))
    leads = MANIFEST.coordinators
    own = {"peer_id": "coordinator-0", "group": COORDINATORS, "address": leads.peers[0].address, "app_id": leads.app_id}
    assert why(**own) is not None, "another app's compose hash"
    assert why(**own, compose_hash=leads.compose_hashes[0]) is None


def moved(**changes: Any) -> Manifest:
    """The manifest with these changes of the group api."""
    return dataclasses.replace(MANIFEST, groups={**MANIFEST.groups, "api": dataclasses.replace(API, **changes)})


def test_a_slot_in_another_place_is_held_by_nobody_of_before() -> None:
    """Another app in the group, another group with the same compose file, another mesh address: each is named."""
    assert why(moved(app_id="99" * 20)) == (
        f"the manifest gives api-0 the app {'99' * 20}, and it was admitted with {API.app_id!r}"
    )
    groups = {"client": MANIFEST.groups["client"], "web": API}
    assert "the group web, and it was admitted with 'api'" in str(why(dataclasses.replace(MANIFEST, groups=groups)))
    first = dataclasses.replace(API.peers[0], address="100.96.0.77")
    assert "the mesh address 100.96.0.77" in str(why(moved(peers=(first, *API.peers[1:]))))


def test_what_the_one_who_judges_does_not_know_is_not_judged() -> None:
    """A peer's entry has neither group nor machine. An app that is not known is none that a manifest has."""
    assert why(group=None, device=None, instance_id="") is None
    assert why(app_id="") is not None
    assert why(moved(app_id="99" * 20), group=None, device=None) is not None


@pytest.mark.parametrize(
    "what", [{"peer_id": "api-0"}, {"instance_id": "ef" * 20}, {"compose_hash": OWN}, {"device": HERE}]
)
def test_what_is_revoked_is_not_allowed(what: dict[str, str]) -> None:
    """Whatever of it is."""
    assert "revokes" in str(why(dataclasses.replace(MANIFEST, revoked=(Revocation(**what),))))


def test_an_image_is_allowed_while_any_reference_has_it_for_that_machine() -> None:
    """The machine where it is known; a development image where the reference with it allows such."""
    other = make_reference(name="other", os_images=tuple(OTHERS))
    here = make_reference(name="here", os_images=(IMAGE,), devices=(HERE,))
    manifest = dataclasses.replace(MANIFEST, references=(other, here))
    assert why(manifest, device=None) is None
    assert why(manifest) is None
    assert why(manifest, device=ELSEWHERE) is not None
    assert why(manifest, device="") is not None
    assert why(manifest, image=id_of(OTHERS[0]), device=ELSEWHERE) is None
    [development] = [image for image in OTHERS if image.development]
    lax = make_reference(name="lax", os_images=(IMAGE,), tcb=TcbPolicy(allow_development_images=True))
    assert why(dataclasses.replace(MANIFEST, references=(other, lax)), image=id_of(development)) is not None
    lax = dataclasses.replace(lax, os_images=(development,))
    assert why(dataclasses.replace(MANIFEST, references=(other, lax)), image=id_of(development)) is None
