"""What this coordinator states to the outside about itself, at one moment: a bundle without quote and nonce. Pure."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.hazmat.primitives.serialization import Encoding

from coordinator import authority
from coordinator.keys import ClusterKeys
from coordinator.slots import Holder
from evidence.bundle import VERSION, Bundle
from evidence.statement import HeadName, Member, Statement, members_digest
from topology.envelope import Signed

RECENT = 256 << 10
"""Characters of envelopes in a bundle, the last ones: 80 manifests of the starter. Anyone may ask, and up to 64 at a
time hold a copy (`coordinator.attest`). Whoever lacks those before asks for them (`GET /v1/manifest/history`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """Who this coordinator is."""

    peer_id: str
    app_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """A statement, and what it is about."""

    statement: Statement
    root_ca: str
    """PEM, as the next two."""
    mesh_ca: str
    mesh_ca_by_root: str
    history: tuple[str, ...]
    """The last envelopes, as many as there is room for."""
    documents: dict[str, str]
    members: tuple[Member, ...]

    def bundle(self, *, quote: bytes, event_log: str, vm_config: str, collateral: dict[str, str]) -> Bundle:
        """The bundle with that quote; without a nonce yet."""
        return Bundle(
            version=VERSION,
            nonce="",
            merkle_path=(),
            statement=self.statement,
            quote=quote.hex(),
            event_log=event_log,
            vm_config=vm_config,
            collateral=collateral,
            root_ca=self.root_ca,
            mesh_ca=self.mesh_ca,
            mesh_ca_by_root=self.mesh_ca_by_root,
            history=self.history,
            documents=self.documents,
            members=self.members,
        )


def contents(
    own: Own,
    keys: ClusterKeys,
    signed: Signed,
    history: tuple[str, ...],
    documents: dict[str, str],
    holders: Iterable[Holder],
    now: float,
) -> Contents:
    """What `own` states at `now` (Unix seconds): it enforces `signed`, the last manifest of `history` (envelopes), and
    `holders` are admitted. `documents`: app-compose texts by compose hash.
    """
    root = authority.root(keys)
    mesh = authority.mesh_ca(keys, signed.manifest.epoch, signed.digest)
    members = tuple(_member(holder) for holder in sorted(holders, key=lambda holder: holder.peer_id))
    statement = Statement(
        cluster=signed.manifest.cluster,
        peer_id=own.peer_id,
        app_id=own.app_id,
        head=HeadName(epoch=signed.manifest.epoch, digest=signed.digest),
        root_sha256=_sha256(root.public_bytes(Encoding.DER)),
        mesh_ca_sha256=_sha256(mesh.certificate.public_bytes(Encoding.DER)),
        members_sha256=members_digest(members),
        issued_at=int(now),
    )
    return Contents(
        statement=statement,
        root_ca=root.public_bytes(Encoding.PEM).decode(),
        mesh_ca=mesh.pem,
        mesh_ca_by_root=mesh.cross.public_bytes(Encoding.PEM).decode(),
        history=history,
        documents=documents,
        members=members,
    )


def _member(holder: Holder) -> Member:
    return Member(
        peer_id=holder.peer_id,
        group=holder.group,
        compose_hash=holder.compose_hash,
        leaf_key_sha256=_sha256(base64.b64decode(holder.leaf_key)) if holder.leaf_key else "",
        evidence_sha256=holder.evidence,
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
