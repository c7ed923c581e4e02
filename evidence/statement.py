"""What a coordinator states about itself to anyone who asks, and the report data by which its quote covers it. Pure.

All digests are SHA-256 in lower-case hex. Canonical JSON is the manifest's: sorted keys, no spaces, UTF-8.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

CONTEXT = b"cvm-mesh attest v1\0"
"""Begins what is hashed into the report data: no binding of an admission, which is JSON, passes for it."""
NONCE_BYTES = 32
"""As long as a hash: nobody finds a nonce twice by chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadName:
    """The manifest that is enforced."""

    epoch: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One CVM that is admitted now. Everything in it was proven at its admission."""

    peer_id: str
    group: str
    """`coordinator` for a coordinator."""
    compose_hash: str
    leaf_key_sha256: str
    """Of the attested key (SubjectPublicKeyInfo, DER) that its certificates are for; empty for a coordinator, which
    has none."""
    evidence_sha256: str
    """See `evidence_digest`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What the quote covers beside the nonces."""

    cluster: str
    peer_id: str
    """The coordinator that states it."""
    app_id: str
    head: HeadName
    root_sha256: str
    """Of the cluster's root CA, DER."""
    mesh_ca_sha256: str
    """Of the mesh CA of `head`, self-signed, DER."""
    members_sha256: str
    """Of the canonical JSON of the list of members."""
    issued_at: int
    """Unix seconds, by the coordinator's clock."""


def encode(statement: Statement) -> bytes:
    """The bytes that are hashed."""
    return _canonical(asdict(statement))


def members_digest(members: Iterable[Member]) -> str:
    """`Statement.members_sha256` of `members`, in their order."""
    return hashlib.sha256(_canonical([asdict(member) for member in members])).hexdigest()


def report_data(statement: Statement, merkle_root: bytes) -> bytes:
    """64 bytes: SHA-256(context ‖ SHA-256(statement) ‖ root of the nonces' tree), then 32 zero bytes."""
    stated = hashlib.sha256(encode(statement)).digest()
    return hashlib.sha256(CONTEXT + stated + merkle_root).digest() + bytes(32)


def evidence_digest(*, binding: str, nonce: str, quote: str, event_log: str, vm_config: str) -> str:
    """The digest of what a CVM was admitted by: the SHA-256 of the canonical JSON of these texts, as it sent them."""
    texts = {"binding": binding, "nonce": nonce, "quote": quote, "event_log": event_log, "vm_config": vm_config}
    return hashlib.sha256(_canonical(texts)).hexdigest()


def _canonical(tree: object) -> bytes:
    # Lone surrogates, which JSON can name, have no UTF-8; so two texts never have the same bytes.
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
