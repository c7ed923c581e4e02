"""Policy: the manifest and the binding held against what a quote proved. Pure.

Every field of a binding is compared here, with the evidence or with the manifest; none is only carried along.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from admission.binding import BINDING_VERSION
from admission.clocks import MAX_SKEW
from admission.protocol import Binding, BootKeys, Code
from coordinator.authority import load_p256
from coordinator.refusal import RefusalError
from evidence.errors import EvidenceError
from evidence.manifest import expected
from evidence.policy import check
from evidence.verify import Evidence
from topology.allowed import coordinators
from topology.manifest import COORDINATORS, Manifest
from topology.revocation import why_revoked

_FIELD = 2**255 - 19
"""X25519's field (RFC 7748)."""
_ANY_KEY = X25519PrivateKey.from_private_bytes(bytes(range(32)))
"""No secret: points of small order give zero with any key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One peer of the manifest."""

    peer_id: str
    group: str
    """COORDINATORS for a coordinator."""
    address: str
    """Mesh address."""

    @property
    def kind(self) -> str:
        """As MeshPeer says it."""
        return "coordinator" if self.group == COORDINATORS else "workload"


def find_slot(manifest: Manifest, peer_id: str) -> Slot:
    """The manifest's entry for `peer_id`; RefusalError ADMISSION_REJECTED when there is none."""
    for lead in manifest.coordinators.peers:
        if lead.peer_id == peer_id:
            return Slot(peer_id=peer_id, group=COORDINATORS, address=lead.address)
    for group, entry in manifest.groups.items():
        for peer in entry.peers:
            if peer.peer_id == peer_id:
                return Slot(peer_id=peer_id, group=group, address=peer.address)
    raise RefusalError(Code.ADMISSION_REJECTED, f"the manifest has no peer {peer_id!r:.80}")


def peer_ids(manifest: Manifest, group: str) -> tuple[str, ...]:
    """The peer IDs of `group`, without revoked ones; RefusalError ADMISSION_REJECTED when there is no such group."""
    if group != COORDINATORS and group not in manifest.groups:
        raise RefusalError(Code.ADMISSION_REJECTED, f"the manifest has no group {group!r:.80}")
    if group == COORDINATORS:
        return tuple(peer.peer_id for peer in coordinators(manifest))
    revoked = {each.peer_id for each in manifest.revoked}
    return tuple(peer.peer_id for peer in manifest.groups[group].peers if peer.peer_id not in revoked)


def check_revoked(manifest: Manifest, peer_id: str) -> None:
    """RefusalError REVOKED when the manifest revokes that slot. What evidence shows is `evidence.policy.check`'s."""
    if (reason := why_revoked(manifest.revoked, peer_id=peer_id)) is not None:
        raise RefusalError(Code.REVOKED, reason)


def identities(manifest: Manifest, group: str) -> tuple[str, ...]:
    """The SPIFFE identities that a CVM of `group` is admitted as. A coordinator serves no backend: it has the node's
    only.
    """
    return (f"spiffe://{manifest.cluster}/node",) if group == COORDINATORS else manifest.identities(group)


def check_binding(binding: Binding, slot: Slot, manifest: Manifest, evidence: Evidence, now: float) -> None:
    """Returns when every field of `binding` agrees with the evidence, the manifest or the clock; RefusalError names the
    one that does not.
    """
    compared: tuple[tuple[str, object, object], ...] = (
        ("version", binding.version, BINDING_VERSION),
        ("cluster", binding.cluster, manifest.cluster),
        ("peer_id", binding.peer_id, slot.peer_id),
        ("identities", binding.identities, identities(manifest, slot.group)),
        ("app_id", binding.app_id, evidence.app_id),
        ("instance_id", binding.instance_id, evidence.instance_id),
        ("compose_hash", binding.compose_hash, evidence.compose_hash),
        ("boot.leaf that is empty", not binding.boot.leaf, slot.group == COORDINATORS),
        # A CVM has one key for each purpose: what clients outside see is not who it is in the mesh.
        ("boot.public that is boot.leaf", bool(binding.boot.leaf) and binding.boot.public == binding.boot.leaf, False),
    )
    for name, said, wanted in compared:
        if said != wanted:
            raise RefusalError(Code.ADMISSION_REJECTED, f"binding.{name} is {said!r:.200}, expected {wanted!r:.200}")
    if not binding.instance_id:
        raise RefusalError(
            Code.ADMISSION_REJECTED, "the app runs without instance IDs; deploy it with no_instance_id unset"
        )
    if abs(binding.issued_at - now) > MAX_SKEW:
        raise RefusalError(
            Code.ADMISSION_REJECTED,
            f"binding.issued_at is {binding.issued_at - now:+.0f} s from our clock, allowed are "
            f"{MAX_SKEW:g} s either way; set the CVM's clock",
        )


def judged(manifest: Manifest, binding: Binding, evidence: Evidence, now: float) -> Slot:
    """The slot that `manifest` gives to the CVM with that evidence, which is genuine. RefusalError."""
    try:
        slot = find_slot(manifest, binding.peer_id)
        check(evidence, expected(manifest, slot.group), now)
    except EvidenceError as error:
        raise RefusalError(Code[error.code], error.reason) from error
    check_revoked(manifest, slot.peer_id)
    check_binding(binding, slot, manifest, evidence, now)
    return slot


def allows(manifest: Manifest, binding: Binding, evidence: Evidence, now: float) -> bool:
    """Whether it gives that CVM a slot."""
    try:
        judged(manifest, binding, evidence, now)
    except RefusalError:
        return False
    return True


def check_boot_keys(boot: BootKeys) -> None:
    """RefusalError BAD_REQUEST unless the keys are well-formed. That there is one for the leaf is `check_binding`'s."""
    try:
        wireguard = base64.b64decode(boot.wireguard, validate=True)
        tls = base64.b64decode(boot.tls, validate=True)
        leaf = base64.b64decode(boot.leaf, validate=True)
        public = base64.b64decode(boot.public, validate=True)
    except (binascii.Error, ValueError):
        raise RefusalError(Code.BAD_REQUEST, "binding.boot must hold base64") from None
    if len(wireguard) != 32 or base64.b64encode(wireguard).decode() != boot.wireguard:
        raise RefusalError(Code.BAD_REQUEST, "binding.boot.wireguard is not a WireGuard public key (32 bytes, base64)")
    try:
        # Points of small order agree with every private key in the same way: X25519 refuses them, here rather than in
        # each peer that would have to compute with this one. A second spelling of a point would be a second key.
        _ANY_KEY.exchange(X25519PublicKey.from_public_bytes(wireguard))
        if int.from_bytes(wireguard, "little") >= _FIELD:
            raise ValueError
    except ValueError:
        raise RefusalError(Code.BAD_REQUEST, "binding.boot.wireguard is no key that X25519 agrees with") from None
    for name, key in (("tls", tls), *((name, key) for name, key in (("leaf", leaf), ("public", public)) if key)):
        try:
            load_p256(key)
        except ValueError as error:
            raise RefusalError(Code.BAD_REQUEST, f"binding.boot.{name} {error}") from None
