"""Whom a manifest allows: its coordinators, and whether what was admitted under an older one still is. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from topology.manifest import CoordinatorPeer, Coordinators, GroupEntry, Manifest
from topology.revocation import why_revoked


def image_id(mrtd: str, rtmr0: str, rtmr1: str, rtmr2: str) -> str:
    """A short name for what an OS image measures (hex each): what a record keeps of it."""
    return hashlib.sha256(f"{mrtd} {rtmr0} {rtmr1} {rtmr2}".lower().encode()).hexdigest()


def coordinators(manifest: Manifest) -> tuple[CoordinatorPeer, ...]:
    """The coordinators of the manifest, without those that it revokes by peer ID: whoever asks coordinators, has links
    to them or counts them takes these.
    """
    return tuple(
        peer for peer in manifest.coordinators.peers if not why_revoked(manifest.revoked, peer_id=peer.peer_id)
    )


def withdrawn(manifest: Manifest, earlier: Iterable[Manifest]) -> bool:
    """Whether `manifest` refuses some coordinator that one of `earlier` allowed and that it lists: by compose hash, by
    OS image, or because it revokes an instance or a machine. So one of which nothing is known may be meant.
    """
    before = tuple(earlier)
    hashes = {item for each in before for item in each.coordinators.compose_hashes}
    images = {image for each in before for image in _images(each, None)}
    return bool(
        hashes - set(manifest.coordinators.compose_hashes)
        or images - set(_images(manifest, None))
        or any(each.instance_id or each.compose_hash or each.device for each in manifest.revoked)
    )


def allowed(manifest: Manifest, peer_id: str, compose_hash: str, image: str, device: str | None = None) -> bool:
    """True while the manifest still has the peer, its compose hash and its OS image (as `image_id`), and revokes
    neither peer nor compose hash; an admission ends otherwise.

    `device` is the machine that it attested on, which the reference with that image then has to have, too; None: only
    coordinators know it, and they judge it.
    """
    if why_revoked(manifest.revoked, peer_id=peer_id, compose_hash=compose_hash):
        return False
    return image in _images(manifest, device) and compose_hash in _compose_hashes(manifest, peer_id)


def _images(manifest: Manifest, device: str | None) -> Iterator[str]:
    for reference in manifest.references:
        if device is not None and reference.devices and device not in reference.devices:
            continue
        for item in reference.os_images:
            if reference.tcb.allow_development_images or not item.development:
                yield image_id(item.mrtd, item.rtmr0, item.rtmr1, item.rtmr2)


def _compose_hashes(manifest: Manifest, peer_id: str) -> set[str]:
    entries: tuple[Coordinators | GroupEntry, ...] = (manifest.coordinators, *manifest.groups.values())
    for entry in entries:
        if any(peer.peer_id == peer_id for peer in entry.peers):
            return {item.lower() for item in entry.compose_hashes}
    return set()
