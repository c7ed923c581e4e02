"""An entry of the peer registry, held against a manifest."""

from __future__ import annotations

import dataclasses

from admission.admitted import admitted_as
from admission.protocol import MeshPeer
from tests.coordinator.world import make_manifest
from topology.allowed import image_id, why_not_allowed

MANIFEST = make_manifest()
IMAGE = MANIFEST.references[0].os_images[0]


def test_an_entry_is_judged_by_all_that_it_says() -> None:
    """A workload's and a coordinator's: each of its fields counts, and a coordinator's is not a workload's."""
    image = image_id(IMAGE.mrtd, IMAGE.rtmr0, IMAGE.rtmr1, IMAGE.rtmr2)
    for kind, app in (("workload", MANIFEST.groups["api"]), ("coordinator", MANIFEST.coordinators)):
        slot = app.peers[0]
        entry = MeshPeer(
            peer_id=slot.peer_id, public_key="k", address=slot.address, kind=kind, compose_hash=app.compose_hashes[0],
            image=image, app_id=app.app_id,
        )  # fmt: skip
        assert why_not_allowed(MANIFEST, admitted_as(entry)) is None
        for changes in ({"address": "127.0.0.9"}, {"compose_hash": "99" * 32}, {"image": "9"}, {"app_id": "99" * 20}):
            assert why_not_allowed(MANIFEST, admitted_as(dataclasses.replace(entry, **changes))) is not None
    unmeasured = dataclasses.replace(entry, image="")
    assert why_not_allowed(MANIFEST, admitted_as(unmeasured)) is None, "a coordinator writes its own entry"
    assert why_not_allowed(MANIFEST, admitted_as(dataclasses.replace(unmeasured, kind="workload"))) is not None
    workload = dataclasses.replace(entry, peer_id="api-0", address=MANIFEST.groups["api"].peers[0].address)
    assert "the group api" in str(why_not_allowed(MANIFEST, admitted_as(workload)))
