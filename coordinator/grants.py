"""What a CVM is handed when it is admitted, and again while it stays: Consul tokens and workload secrets. Pure.

Which rights a token has is for `coordinator.tokens`; who is admitted for `coordinator.broker`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from coordinator.keys import ClusterKeys, workload_secret
from coordinator.slots import Holder
from coordinator.tokens import TOKEN_SECONDS, token_body, workload_backends, workload_token_body
from runtime.secret import Secret
from topology.manifest import Manifest


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


def secrets(keys: ClusterKeys, manifest: Manifest, group: str) -> dict[str, str]:
    """The workload secrets that `manifest` grants to `group`, by name."""
    return {
        name: workload_secret(keys, manifest.secrets[name].owner, name).reveal() for name in manifest.secrets_of(group)
    }


def _token(random: Callable[[int], bytes]) -> Token:
    return Token(
        secret=Secret(str(uuid.UUID(bytes=random(16), version=4))),
        accessor=str(uuid.UUID(bytes=random(16), version=4)),
    )
