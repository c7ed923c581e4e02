"""What a CVM is handed when it is admitted, and again while it stays: Consul tokens, workload secrets, its certificate.
Pure.

Which rights a token has is for `coordinator.tokens`; who is admitted for `coordinator.broker`.
"""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from admission.protocol import LeaseRequest
from coordinator.authority import Window, authorities, issue, issue_public, mesh_ca
from coordinator.keys import ClusterKeys, agent_certificate, agent_due, workload_secret
from coordinator.slots import Holder
from coordinator.tokens import TOKEN_SECONDS, token_body, workload_backends, workload_token_body
from runtime.secret import Secret
from topology.envelope import Signed
from topology.manifest import Manifest

LEAF_SPREAD = 0.1
"""Share of half a leaf's life by which CVMs renew earlier and later than half of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A Consul token. Both IDs are chosen here, so that the slot's record names the token in the same write."""

    secret: Secret
    accessor: str

    def body(self, rights: Mapping[str, object]) -> dict[str, object]:
        """The token with `rights` as `PUT /v1/acl/token` wants it."""
        return {**rights, "AccessorID": self.accessor, "SecretID": self.secret.reveal()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The tokens of one CVM."""

    node: Token
    """The sidecar's, for the CVM as a node."""
    workload: Token | None
    """The workload's; None where no backend is the workload's."""
    expires_at: float
    """Unix seconds; for both."""

    def noted(self, holder: Holder) -> Holder:
        """`holder` with these tokens in place of those before."""
        return holder.with_tokens(self.node.accessor, self.workload.accessor if self.workload else "", self.expires_at)

    def bodies(self, manifest: Manifest, peer_id: str, group: str) -> tuple[dict[str, object], ...]:
        """What has to be written to Consul."""
        entry = manifest.groups[group]
        bodies = [self.node.body(token_body(peer_id, group, entry, manifest.cluster))]
        rights = workload_token_body(peer_id, group, entry)
        if self.workload is not None and rights is not None:
            bodies.append(self.workload.body(rights))
        return tuple(bodies)


def new_tokens(manifest: Manifest, group: str, random: Callable[[int], bytes], now: float) -> Tokens:
    """Fresh tokens for a CVM of `group`."""
    return Tokens(
        node=_token(random),
        workload=_token(random) if workload_backends(manifest.groups[group]) else None,
        expires_at=now + TOKEN_SECONDS,
    )


def due(holder: Holder, manifest: Manifest, now: float) -> bool:
    """Whether `holder` needs fresh tokens: its own are past half their life, or the manifest gave its group a workload
    to have one for, or took it away.
    """
    wanted = bool(workload_backends(manifest.groups[holder.group]))
    return holder.token_expires_at - now < TOKEN_SECONDS / 2 or bool(holder.workload_accessor) != wanted


def leaf_due(asked: LeaseRequest, signed: Signed, peer_id: str, now: float) -> bool:
    """Whether the CVM that says that it holds this is to have a new leaf: of the manifest that counts now, and in time
    for two failures of everything (half a life is hours).

    At half of a life, LEAF_SPREAD sooner or later, which follows from the peer: CVMs that a new manifest gave their
    leaves together do not renew them together.
    """
    share = int.from_bytes(hashlib.sha256(peer_id.encode()).digest()[:2], "big") / 0xFFFF
    left = signed.manifest.leaf_hours * 3600 / 2 * (1 + LEAF_SPREAD * (2 * share - 1))
    # A number without end is no float, and can be compared with one.
    return asked.leaf_digest != signed.digest or asked.leaf_expires_at < now + left


def leaf(keys: ClusterKeys, signed: Signed, holder: Holder, now: float) -> str:
    """The certificate of `holder` for the key that it attested, PEM with its chain."""
    return issue(
        mesh_ca(keys, signed.manifest.epoch, signed.digest),
        base64.b64decode(holder.leaf_key),
        group=holder.group,
        peer_id=holder.peer_id,
        hours=signed.manifest.leaf_hours,
        now=now,
    )


def agent(keys: ClusterKeys, cluster: str, peer_id: str, key: str, now: float) -> str:
    """The RPC certificate (PEM) of the Consul agent of `peer_id`, for its attested `key` (SubjectPublicKeyInfo, DER in
    base64).
    """
    spki = base64.b64decode(key)
    return agent_certificate(keys, spki, node=peer_id, datacenter=cluster, server=False, now=now)


def agent_renewed(keys: ClusterKeys, manifest: Manifest, holder: Holder, asked: LeaseRequest, now: float) -> str | None:
    """Likewise a new one for `holder`, where what it says that it has is past half its life; else None.

    It goes with fresh tokens only, so that nobody has one made with each renewal, and the agent reads its files again
    in the same moment.
    """
    expires_at = asked.agent_expires_at
    if expires_at is None or not holder.agent_key or not agent_due(expires_at, now):
        return None
    return agent(keys, manifest.cluster, holder.peer_id, holder.agent_key, now)


def public(keys: ClusterKeys, signed: Signed, holder: Holder, now: float) -> dict[str, str]:
    """The certificates of `holder`'s public listeners for the key that it attested for them, by backend, PEM with their
    chain: the names are those that the manifest has for its group. None for a CVM that attested no such key.
    """
    group = signed.manifest.groups.get(holder.group)
    if group is None or not holder.public_key:
        return {}
    return {
        name: issue_public(
            mesh_ca(keys, signed.manifest.epoch, signed.digest),
            base64.b64decode(holder.public_key),
            sans=backend.public.sans,
            hours=signed.manifest.leaf_hours,
            now=now,
        )
        for name, backend in sorted(group.backends.items())
        if backend.public is not None
    }


def trusted(keys: ClusterKeys, signed: Signed, windows: tuple[Window, ...], now: float) -> str:
    """Whom a CVM is to trust, PEM; see `coordinator.authority.authorities`."""
    return authorities(keys, signed.manifest.epoch, signed.digest, windows, now)


def secrets(keys: ClusterKeys, manifest: Manifest, group: str) -> dict[str, str]:
    """The workload secrets that `manifest` grants to `group`, by name."""
    turns = manifest.rotate.secrets
    return {
        name: workload_secret(keys, manifest.secrets[name].owner, name, turns.get(name, 0)).reveal()
        for name in manifest.secrets_of(group)
    }


def _token(random: Callable[[int], bytes]) -> Token:
    return Token(
        secret=Secret(str(uuid.UUID(bytes=random(16), version=4))),
        accessor=str(uuid.UUID(bytes=random(16), version=4)),
    )
