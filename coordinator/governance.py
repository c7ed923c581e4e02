"""What the manifest makes of Consul: policies, and the manifest itself in the KV, where every CVM finds the newest.

Runs once when the servers have a leader and again whenever a newer manifest is taken. Every step may be repeated,
and several coordinators may do it at once.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from admission.protocol import MANIFEST_KEY, PEERS_PREFIX, MeshPeer
from coordinator.registry import encode_peer
from coordinator.tokens import policy_bodies
from runtime.consul import ConsulClient, ConsulError, reading
from topology.envelope import Signed, claims, open_envelope
from topology.manifest import MANIFEST_VERSION, Manifest
from topology.owners import Owners
from topology.succession import SuccessionError, overruled, overtake
from topology.trees import ManifestError


class StandoffError(Exception):
    """The records and this coordinator have manifests of which neither follows the other, as far as it can judge."""


async def freeze(consul: ConsulClient, manifest: Manifest) -> None:
    """Takes the right to write any key from the groups of `manifest`: what they write from here on would be lost, for
    other coordinators take over what there is now. ConsulError.
    """
    await establish(consul, manifest, "read")


async def establish(consul: ConsulClient, manifest: Manifest, keys: str = "write") -> None:
    """Writes the policies as `manifest` says; `keys` as `coordinator.tokens.policy_bodies`. ConsulError."""
    _, existing = await consul.get("/v1/acl/policies")
    with reading("the list of policies"):
        ids = {entry["Name"]: entry["ID"] for entry in existing or ()}
    for body in policy_bodies(manifest, keys):
        known = ids.get(str(body["Name"]))
        try:
            await consul.put(f"/v1/acl/policy/{known}" if known else "/v1/acl/policy", body)
        except ConsulError as error:
            # Another coordinator made it between the list and our write; both write the same.
            if known or "already exists" not in error.reason:
                raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """The manifest's entry in the KV."""

    envelope: str | None
    """None: there is no entry."""
    index: int = 0
    """Consul's, for compare-and-set; 0 where there is no entry."""
    adopted_at: float = 0.0
    """Unix seconds at which a coordinator wrote this manifest first: the entry's flags, which are written with it. So a
    coordinator that restarts does not begin the window of the predecessor anew."""

    def adopted(self, signed: Signed, now: float) -> float:
        """When `signed`, which is written `now`, was adopted: other signatures under the same manifest are no news."""
        same = self.envelope is not None and _same(self.envelope, signed)
        return self.adopted_at if same else now


async def publish_manifest(
    consul: ConsulClient, signed: Signed, owners: Owners | None, now: float, chain: Sequence[Signed] = ()
) -> tuple[Signed, float]:
    """The manifest that counts, of `signed` and the one in the KV, and when it was adopted (Unix seconds); `signed` is
    written where it does. ConsulError; StandoffError as `weigh`.
    """
    while True:
        stored = await stored_manifest(consul)
        counts = weigh(stored.envelope, signed, owners, chain)
        if counts is not signed or stored.envelope == signed.envelope:
            return counts, stored.adopted_at
        adopted_at = int(stored.adopted(signed, now))
        params = {"cas": str(stored.index), "flags": str(adopted_at)}
        if await consul.put(f"/v1/kv/{MANIFEST_KEY}", signed.envelope.encode(), params=params):
            return signed, adopted_at


async def stored_manifest(consul: ConsulClient) -> Stored:
    """What the KV holds. ConsulError."""
    _, entries = await consul.get(f"/v1/kv/{MANIFEST_KEY}", params={"consistent": ""})
    with reading("the manifest's entry"):
        return held(entries)


def weigh(stored: str | None, signed: Signed, owners: Owners | None, chain: Sequence[Signed] = ()) -> Signed:
    """Which counts: `signed` itself, or the manifest in the envelope `stored` of the KV, which is in force.

    A newer one counts, and of two of one epoch the one in force. `owners` are those of the measured compose file; None
    skips signatures. `chain` is the history that they began, as far as it is known: its newest stands for a `signed`
    that is no part of it and does not follow it, and what it overrules counts nothing in the KV either. StandoffError
    when `signed` does not follow what is in force, and when what is in force may be newer, or is the word of owners
    whom the history does not know: neither may be passed over, so the KV stays as it is.
    """
    if owners is not None and chain and not _belongs(signed, chain):
        signed = chain[-1]
    if owners is not None and stored is not None and _is_overruled(stored, chain, owners):
        return signed
    found = claims(stored) if stored is not None and stored != signed.envelope else None
    if stored is None or found is None or found.cluster != signed.manifest.cluster or found.version < MANIFEST_VERSION:
        return signed
    try:
        newer = overtake(signed, stored, settled=False, signed=owners is not None)
    except SuccessionError as error:
        if found.epoch >= signed.manifest.epoch:
            raise StandoffError(
                f"the records hold a manifest of epoch {found.epoch}, which this coordinator, with {signed.name}, "
                f"cannot take: {error}"
            ) from error
        newer = None
    if newer is not None:
        return newer
    before = _opened(stored, signed, owners)
    if before is None and chain and not any(_same(stored, each) for each in chain):
        raise StandoffError(
            f"the records hold a manifest of epoch {found.epoch} by owners whom the history of this coordinator, which "
            f"has {signed.name}, does not know"
        )
    if before is not None and before.digest != signed.digest:
        try:
            overtake(before, signed.envelope, settled=True, gaps=True, signed=owners is not None)
        except SuccessionError as error:
            raise StandoffError(f"the manifest that this coordinator began with is refused: {error}") from error
    return signed


def _belongs(signed: Signed, chain: Sequence[Signed]) -> bool:
    """Whether `signed` is part of `chain`, or may come after it."""
    if any(each.digest == signed.digest for each in chain):
        return True
    try:
        return overtake(chain[-1], signed.envelope, settled=True, gaps=True) is not None
    except SuccessionError:
        return False


def _same(stored: str, signed: Signed) -> bool:
    """Whether `stored` is that manifest, under whatever signatures."""
    return stored.partition(".")[0] == signed.envelope.partition(".")[0]


def _is_overruled(stored: str, chain: Sequence[Signed], owners: Owners) -> bool:
    try:
        return overruled(chain, (open_envelope(stored, None),), owners)
    except ManifestError:
        return False


def _opened(stored: str, signed: Signed, owners: Owners | None) -> Signed | None:
    """The manifest before `signed`, by its own owners or by those of the measured compose file."""
    for trusted in (signed.manifest.owners, owners) if owners is not None else (None,):
        with contextlib.suppress(ManifestError):
            return open_envelope(stored, trusted)
    return None


async def publish_peer(consul: ConsulClient, peer: MeshPeer) -> None:
    """Writes a coordinator's own entry of the registry. ConsulError."""
    await consul.put(f"/v1/kv/{PEERS_PREFIX}{peer.peer_id}", encode_peer(peer))


def held(entries: Any) -> Stored:
    """What an answer of the KV for the manifest's key says."""
    if not entries:
        return Stored(envelope=None)
    entry = entries[0]
    envelope = base64.b64decode(entry["Value"] or "").decode("ascii", "replace")
    return Stored(envelope=envelope, index=int(entry["ModifyIndex"]), adopted_at=float(entry["Flags"] or 0))
