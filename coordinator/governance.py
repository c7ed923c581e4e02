"""What the manifest makes of Consul: policies, intentions, and the manifest itself in the KV, where every CVM finds
the newest.

Runs once when the servers have a leader and again whenever a newer manifest is taken. Every step may be repeated,
and several coordinators may do it at once.
"""

from __future__ import annotations

import base64
import logging
from typing import Any

from coordinator.protocol import MANIFEST_KEY, PEERS_PREFIX, MeshPeer
from coordinator.registry import encode_peer
from coordinator.tokens import intention_entries, policy_bodies
from runtime.consul import ConsulClient, ConsulError
from topology.manifest import Manifest, ManifestError, open_envelope

log = logging.getLogger(__name__)


async def establish(consul: ConsulClient, manifest: Manifest) -> None:
    """Writes policies and intentions as `manifest` says and takes intentions away that it no longer has.
    ConsulError.
    """
    _, existing = await consul.get("/v1/acl/policies")
    ids = {entry["Name"]: entry["ID"] for entry in existing or ()}
    for body in policy_bodies(manifest):
        known = ids.get(str(body["Name"]))
        try:
            await consul.put(f"/v1/acl/policy/{known}" if known else "/v1/acl/policy", body)
        except ConsulError as error:
            # Another coordinator made it between the list and our write; both write the same.
            if known or "already exists" not in error.reason:
                raise
    await _establish_intentions(consul, manifest)


async def _establish_intentions(consul: ConsulClient, manifest: Manifest) -> None:
    wanted = intention_entries(manifest)
    _, existing = await consul.get("/v1/config/service-intentions")
    for entry in existing or ():
        if entry["Name"] not in wanted:
            await consul.delete(f"/v1/config/service-intentions/{entry['Name']}")
    for intention in wanted.values():
        await consul.put("/v1/config", intention)


async def publish_manifest(consul: ConsulClient, manifest: Manifest, envelope: str, owner_key: bytes | None) -> str:
    """The newest envelope: the one in the KV where its epoch is greater, else ours, which is then written.
    ConsulError.
    """
    while True:
        _, entries = await consul.get(f"/v1/kv/{MANIFEST_KEY}", params={"consistent": ""})
        stored, index = held(entries)
        if stored is not None and (stored == envelope or newer(stored, manifest, owner_key) is not None):
            return stored
        if await consul.put(f"/v1/kv/{MANIFEST_KEY}", envelope.encode(), params={"cas": str(index)}):
            return envelope


def newer(envelope: str, manifest: Manifest, owner_key: bytes | None) -> Manifest | None:
    """The manifest in `envelope` when it is signed by the owner, of the same cluster and of a greater epoch; None
    otherwise.
    """
    try:
        found = open_envelope(envelope, owner_key)
    except ManifestError as error:
        log.warning("manifest ignored", extra={"reason": str(error)})
        return None
    return found if found.cluster == manifest.cluster and found.epoch > manifest.epoch else None


async def publish_peer(consul: ConsulClient, peer: MeshPeer) -> None:
    """Writes a coordinator's own entry of the registry. ConsulError."""
    await consul.put(f"/v1/kv/{PEERS_PREFIX}{peer.peer_id}", encode_peer(peer))


def held(entries: Any) -> tuple[str | None, int]:
    """Envelope and index in an answer of the KV for the manifest's key."""
    if not entries:
        return None, 0
    return base64.b64decode(entries[0]["Value"] or "").decode("ascii", "replace"), int(entries[0]["ModifyIndex"])
