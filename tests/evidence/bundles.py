"""A coordinator that can be verified from outside, and its owners' history: what tests of bundles bend."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.contents import Contents, Own, contents
from coordinator.keys import ClusterKeys, derive
from coordinator.slots import Holder
from evidence.bundle import Bundle, common_part, decode, with_path
from evidence.documents import digest
from evidence.merkle import tree
from evidence.outside import Seen, Trusted, Verified, verify
from evidence.statement import report_data
from lab.agent_tls import event_items
from lab.tee import CvmIdentity, DevTee
from runtime.secret import Secret
from tests.coordinator.world import API_COMPOSE, COORDINATOR_COMPOSE, OWNER, TEE, cvm, make_manifest, tls_key
from tests.topology.support import after, opened
from topology.envelope import Signed

NOW = 1_800_000_000.0
NONCE = bytes(range(32))
KEYS = derive(Secret("22" * 32), "tests")


def signed_chain(length: int, *owners: Ed25519PrivateKey) -> tuple[Signed, ...]:
    """The first `length` manifests of the cluster, each with other lives of its certificates."""
    keys = owners or (OWNER,)
    found = [opened(make_manifest(), *keys)]
    while len(found) < length:
        found.append(opened(after(found[-1], leaf_hours=1 + len(found)), *keys))
    return tuple(found)


def holder(peer_id: str, group: str) -> Holder:
    """An admitted CVM."""
    [measured] = make_manifest().groups[group].compose_hashes
    return Holder(
        peer_id=peer_id, group=group, instance_id="ab" * 20, boot_key="k", leaf_key=tls_key(), compose_hash=measured,
        evidence="ef" * 32, renewed_at=NOW,
    )  # fmt: skip


DOCUMENTS = {digest(text): text for text in (API_COMPOSE, COORDINATOR_COMPOSE)}
HOLDERS = (holder("api-1", "api"), holder("api-0", "api"), holder("client-0", "client"))


@dataclass(frozen=True, kw_only=True)
class Coordinator:
    """One that answers, honest unless told otherwise."""

    chain: tuple[Signed, ...] = field(default_factory=lambda: signed_chain(3))
    who: CvmIdentity = field(default_factory=lambda: cvm(COORDINATOR_COMPOSE, "coordinator-0"))
    tee: DevTee = field(default_factory=lambda: TEE)
    keys: ClusterKeys = field(default_factory=lambda: KEYS)
    peer_id: str = "coordinator-0"
    now: float = NOW

    @property
    def trusted(self) -> Trusted:
        """A reader who has the newest manifest."""
        head = self.chain[-1]
        return Trusted(manifest=head.manifest, digest=head.digest, development_root=self.tee.root_der)

    def contents(self) -> Contents:
        """What it states."""
        own = Own(peer_id=self.peer_id, app_id=self.who.app_id)
        envelopes = tuple(each.envelope for each in self.chain)
        return contents(own, self.keys, self.chain[-1], envelopes, DOCUMENTS, HOLDERS, self.now)

    def answer(self, *nonces: bytes, stated: Contents | None = None) -> tuple[bytes, ...]:
        """The bundles for all `nonces`, by one quote, as it sends them."""
        found = stated or self.contents()
        root, paths = tree(nonces)
        bundle = found.bundle(
            quote=self.tee.quote(self.who.measurements, report_data(found.statement, root)),
            event_log=json.dumps(event_items(self.who.boot_events, stripped=True)),
            vm_config=self.who.vm_config,
            collateral=self.tee.collateral(self.now),
        )
        common = common_part(bundle)
        return tuple(with_path(common, nonce, path) for nonce, path in zip(nonces, paths, strict=True))

    def bundle(self, nonce: bytes = NONCE, **changes: Any) -> Bundle:
        """One bundle; `changes` are made to it afterwards."""
        return dataclasses.replace(decode(self.answer(nonce)[0]), **changes)


def check(
    bundle: Bundle,
    trusted: Trusted,
    *,
    nonce: bytes | None = NONCE,
    seen: Seen | None = None,
    now: float = NOW,
) -> Verified:
    """What a reader makes of `bundle`."""
    return asyncio.run(verify(bundle, trusted, nonce=nonce, seen=seen, now=now))


def envelopes(chain: Sequence[Signed]) -> tuple[str, ...]:
    """Those of `chain`."""
    return tuple(each.envelope for each in chain)
