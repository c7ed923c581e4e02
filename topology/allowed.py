"""Whom a manifest allows: its coordinators, and whether what was admitted under an older one still is. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from topology.manifest import COORDINATORS, CoordinatorPeer, Coordinators, GroupEntry, Manifest
from topology.revocation import why_revoked


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """What a CVM was admitted with, as far as the one who judges it knows."""

    peer_id: str
    address: str | None
    """Mesh address. None: not known, and not judged; so with the others that may be None."""
    app_id: str | None
    """Hex, as the next."""
    compose_hash: str
    image: str | None
    """As `image_id`. None: as of a coordinator that says who it is itself."""
    group: str | None = None
    """COORDINATORS for a coordinator."""
    instance_id: str = ""
    """Empty: not known."""
    device: str | None = None
    """The machine that it attested on, which the reference with its image has to have, too. None: only coordinators
    know it, and they judge it."""


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


def why_not_allowed(manifest: Manifest, it: Admitted) -> str | None:
    """Why `manifest` does not allow a CVM with what it was admitted with, as a sentence; None when it does. Its
    admission ends then.
    """
    reason = why_revoked(
        manifest.revoked,
        peer_id=it.peer_id,
        instance_id=it.instance_id,
        compose_hash=it.compose_hash,
        device=it.device or "",
    )
    return reason or _why_another(manifest, it)


def _why_another(manifest: Manifest, it: Admitted) -> str | None:
    place = _place(manifest, it)
    if place is None:
        return f"the manifest has no {it.peer_id} any more"
    group, address, app = place
    compared = (("group", it.group, group), ("mesh address", it.address, address), ("app", it.app_id, app.app_id))
    for what, admitted_with, wanted in compared:
        if admitted_with is not None and admitted_with != wanted:
            return f"the manifest gives {it.peer_id} the {what} {wanted}, and it was admitted with {admitted_with!r}"
    if it.compose_hash not in {item.lower() for item in app.compose_hashes}:
        return f"the manifest no longer allows {it.peer_id} the compose hash {it.compose_hash!r}"
    if it.image is not None and it.image not in _images(manifest, it.device):
        return f"no reference of the manifest has the OS image of {it.peer_id} for its machine"
    return None


def _images(manifest: Manifest, device: str | None) -> Iterator[str]:
    for reference in manifest.references:
        if device is not None and reference.devices and device not in reference.devices:
            continue
        for item in reference.os_images:
            if reference.tcb.allow_development_images or not item.development:
                yield image_id(item.mrtd, item.rtmr0, item.rtmr1, item.rtmr2)


def _place(manifest: Manifest, it: Admitted) -> tuple[str, str, Coordinators | GroupEntry] | None:
    """Group, mesh address and app of its slot; None when the manifest lacks it."""
    entries: dict[str, Coordinators | GroupEntry] = {COORDINATORS: manifest.coordinators, **manifest.groups}
    # Its own group first: a mesh may have a thousand CVMs, and all are judged at once.
    for group in dict.fromkeys((*((it.group,) if it.group in entries else ()), *entries)):
        entry = entries[group]
        for peer in entry.peers:
            if peer.peer_id == it.peer_id:
                return group, peer.address, entry
    return None
