"""Whether a coordinator takes a manifest that is brought to it to be set. Pure.

Anybody may bring one. The head's owners decide by their signatures, and the head's digest by `previous`: of two that
follow one head the first counts, and who brings the other is told the head. What would leave this coordinator, or every
running CVM, behind is refused before it is in force, for afterwards nobody could take it back here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from admission.protocol import MAX_BODY, MAX_HANDOVERS, Code, ManifestHead, MeshPeer
from coordinator.refusal import RefusalError
from runtime.guest import GuestInfo
from topology.allowed import coordinators
from topology.envelope import Signed, claims, open_envelope
from topology.manifest import Manifest
from topology.owners import Owners
from topology.revocation import why_revoked
from topology.succession import Fault, SuccessionError, follow, led, unproven
from topology.trees import ManifestError

MAX_STORED = 512 << 10
"""Bytes of an envelope: what Consul's KV takes in one value (`kv_max_value_size`, by default)."""
ROOM_BESIDE = MAX_BODY - MAX_STORED - (4 << 10)
"""Characters of further envelopes that a request holds beside the greatest one."""
_CODES: Mapping[Fault, Code] = {
    Fault.FORKED: Code.MANIFEST_STALE,
    Fault.GAP: Code.MANIFEST_STALE,
    Fault.INVALID: Code.MANIFEST_NOT_SIGNED,
    Fault.OLDER: Code.MANIFEST_REFUSED,
    Fault.FOREIGN: Code.MANIFEST_REFUSED,
    Fault.TURNED_BACK: Code.MANIFEST_REFUSED,
    Fault.UNREADABLE: Code.MANIFEST_REFUSED,
    Fault.WRONG: Code.MANIFEST_REFUSED,
}
"""What each fault is answered with. An identical manifest is none."""


def misfit(manifest: Manifest, info: GuestInfo) -> str | None:
    """Why `manifest` is not about the coordinator that `info` describes; None when it is."""
    own = manifest.coordinators
    if hands_over(manifest, info):
        return f"the owners have handed the mesh over to the coordinators' app {own.app_id}; this CVM is of the former"
    if own.app_id.lower() != info.app_id.lower():
        return f"the manifest is of the coordinators' app {own.app_id}, and this CVM is of app {info.app_id}"
    if info.compose_hash.lower() not in {known.lower() for known in own.compose_hashes}:
        allowed = ", ".join(own.compose_hashes)
        return f"the manifest allows coordinators the compose hashes {allowed}, and this CVM has {info.compose_hash}"
    return why_revoked(manifest.revoked, compose_hash=info.compose_hash)


def hands_over(manifest: Manifest, info: GuestInfo) -> bool:
    """Whether `manifest` takes the mesh from the coordinator that `info` describes, for another app."""
    given = manifest.coordinators.handover
    return given is not None and given.from_app_id == info.app_id.lower()


def judge(head: Signed, envelope: str, info: GuestInfo, own: MeshPeer, *, signed: bool) -> Signed | None:
    """The manifest in `envelope`, which takes the place of `head`; None when it is the head. RefusalError says why not.

    `info` and `own` are of the coordinator that judges. `signed=False` skips signatures.
    """
    _check_form(envelope)
    try:
        found = follow(head, envelope, signed=signed)
    except SuccessionError as error:
        if error.fault is Fault.IDENTICAL:
            return None
        if (code := _CODES[error.fault]) is Code.MANIFEST_STALE:
            raise stale(head, str(error)) from error
        raise RefusalError(code, str(error)) from error
    reason = None if hands_over(found.manifest, info) else _drops(head.manifest, found.manifest, own, info)
    reason = reason or why_not(head, found, info, signed=signed)
    if reason is not None:
        raise RefusalError(Code.MANIFEST_REFUSED, reason)
    return found


def first(
    envelope: str, cluster: str, owners: Owners | None, info: GuestInfo, handovers: tuple[str, ...] = ()
) -> Signed:
    """The manifest in `envelope`, with which a coordinator begins that has none. RefusalError says why not.

    `owners` are those of the measured compose file: a CVM that starts believes these only, and those to whom
    `handovers` lead from them. None skips signatures.
    """
    _check_form(envelope)
    if len(handovers) > MAX_HANDOVERS:
        raise RefusalError(
            Code.BAD_REQUEST, f"handovers has {len(handovers)} entries, expected {MAX_HANDOVERS} at most"
        )
    try:
        found = open_envelope(envelope, None) if owners is None else led(owners, (*handovers, envelope))
    except SuccessionError as error:
        code = Code.MANIFEST_NOT_SIGNED if error.fault is Fault.INVALID else Code.MANIFEST_REFUSED
        raise RefusalError(code, str(error)) from error
    except ManifestError as error:
        raise RefusalError(Code.MANIFEST_REFUSED, f"the manifest {error}") from error
    reason = misfit(found.manifest, info)
    if owners is not None and found.manifest.previous is None:
        reason = reason or unproven(owners, found)
    if found.manifest.cluster != cluster:
        reason = f"the manifest is of cluster {found.manifest.cluster!r}, and this coordinator of {cluster!r}"
    if reason is not None:
        raise RefusalError(Code.MANIFEST_REFUSED, reason)
    return found


def why_not(head: Signed, found: Signed, info: GuestInfo, *, signed: bool) -> str | None:
    """Why `found`, which the head's owners signed, is not to take the place of `head` here: it would leave all
    coordinators, the CVMs that run or all owners behind. None when it may; also where it drops the coordinator that
    judges, and others stay, and where it hands the mesh over to another app. `signed=False` skips signatures.
    """
    lock_out = None if hands_over(found.manifest, info) else misfit(found.manifest, info)
    lock_out = lock_out or _lock_out(head.manifest, found.manifest)
    return lock_out or (unproven(head.manifest.owners, found) if signed else None)


def dropped(manifest: Manifest, own: MeshPeer, info: GuestInfo) -> str | None:
    """Why the coordinator `own`, which `info` describes, has no place in `manifest`; None when it has."""
    revoked = why_revoked(manifest.revoked, peer_id=own.peer_id, instance_id=info.instance_id)
    if revoked is not None:
        return revoked
    if (own.peer_id, own.address) in _places(manifest).items():
        return None
    return f"the manifest of epoch {manifest.epoch} does not list {own.peer_id} with mesh address {own.address}"


def stale(head: Signed, reason: str) -> RefusalError:
    """That a manifest does not follow `head`, which goes with it."""
    advice = "; take the head that comes with this answer, and sign one that follows it"
    return RefusalError(Code.MANIFEST_STALE, reason + advice, head=asdict(shown(head)))


def shown(head: Signed) -> ManifestHead:
    """`head` as everybody may see it."""
    return ManifestHead(epoch=head.manifest.epoch, digest=head.digest, envelope=head.envelope)


def _check_form(envelope: str) -> None:
    if len(envelope) > MAX_STORED:
        raise RefusalError(
            Code.MANIFEST_REFUSED, f"the envelope has {len(envelope)} characters, the records take {MAX_STORED}"
        )
    if claims(envelope) is None:
        raise RefusalError(Code.BAD_REQUEST, "envelope is no signed manifest; expected what ./mesh sign wrote")


def _places(manifest: Manifest) -> dict[str, str]:
    """Mesh addresses of the coordinators by peer ID, without those that are revoked by it."""
    return {peer.peer_id: peer.address for peer in coordinators(manifest)}


def _drops(head: Manifest, found: Manifest, own: MeshPeer, info: GuestInfo) -> str | None:
    """That `found` drops the coordinator `own`, at which it is to be set."""
    places = _places(found)
    if not places or (own.peer_id in places and not why_revoked(found.revoked, instance_id=info.instance_id)):
        return None
    only = "the only coordinator" if len(head.coordinators.peers) == 1 else "this coordinator"
    return f"the manifest drops {own.peer_id}, {only}; set it on one that stays ({', '.join(places)})"


def _lock_out(head: Manifest, found: Manifest) -> str | None:
    """Why `found` would leave all coordinators, or the CVMs that run, behind."""
    before, after = _places(head), _places(found)
    if not after:
        return "the manifest has no coordinator, so nobody could be admitted or take the next one"
    if found.coordinators.app_id != head.coordinators.app_id:
        return _why_not_beside(head, found) or _other_pools(head, found)
    for peer_id, address in before.items():
        if after.get(peer_id, address) != address:
            return (
                f"the manifest gives {peer_id} the mesh address {after[peer_id]}, and its Consul server has {address}; "
                "make a coordinator with the new address, and drop this one"
            )
    if not before.keys() & after.keys():
        return f"the manifest drops {', '.join(before)}, which have the records; let one of them stay"
    return _other_pools(head, found)


def _why_not_beside(head: Manifest, found: Manifest) -> str | None:
    """Why the coordinators of `found`, of another app, cannot take the mesh over while those of `head` run."""
    handover = found.coordinators.handover
    if handover is None or handover.from_app_id != head.coordinators.app_id:
        return None
    former = head.coordinators.peers
    for taken, own in (
        ({peer.peer_id for peer in former}, {peer.peer_id for peer in found.coordinators.peers}),
        ({peer.address for peer in former}, {peer.address for peer in found.coordinators.peers}),
    ):
        if both := taken & own:
            return (
                f"the manifest hands the mesh over to another app and gives its coordinators {min(both)}, which one of "
                "the former ones has until it ends; give them others"
            )
    return None


def _other_pools(head: Manifest, found: Manifest) -> str | None:
    if (found.vip_pool, found.mesh_pool) != (head.vip_pool, head.mesh_pool):
        return "the manifest has other address pools, which no CVM that runs can take; keep vip_pool and mesh_pool"
    return None
