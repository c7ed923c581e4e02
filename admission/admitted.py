"""An entry of the peer registry as what a manifest is held against. Pure."""

from __future__ import annotations

from admission.protocol import MeshPeer
from topology.allowed import Admitted
from topology.manifest import COORDINATORS


def admitted_as(peer: MeshPeer) -> Admitted:
    """What `peer` was admitted with, as far as the registry says it."""
    leads = peer.kind == "coordinator"
    return Admitted(
        peer_id=peer.peer_id,
        address=peer.address,
        app_id=peer.app_id,
        compose_hash=peer.compose_hash,
        # A coordinator writes its own entry, and does not measure itself.
        image=(peer.image or None) if leads else peer.image,
        group=COORDINATORS if leads else None,
    )
