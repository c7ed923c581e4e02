"""The bundle: everything that one needs to verify a coordinator, as one JSON object. Strictly decoded, not verified.
Pure.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace

from evidence.merkle import Step
from evidence.statement import NONCE_BYTES, Member, Statement
from runtime.jsons import once
from topology.envelope import claims
from topology.trees import ManifestError, from_tree

VERSION = 1
MAX_BUNDLE = 64 << 20
"""Bytes that a reader takes: 300 manifests of 1,000 CVMs."""
MAX_HISTORY = 1 << 16
"""Envelopes."""
MAX_MEMBERS = 1 << 16


class BundleError(ValueError):
    """The text is no bundle. The message says where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationRequest:
    """`POST /v1/attest`."""

    nonce: str
    """32 bytes, hex: the asker's, random and for one use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """The answer."""

    version: int
    nonce: str
    """32 bytes, hex."""
    merkle_path: tuple[Step, ...]
    """From `nonce` to the root that the quote covers."""
    statement: Statement
    quote: str
    """Hex."""
    event_log: str
    """JSON text."""
    vm_config: str
    """JSON text: the host's word."""
    collateral: dict[str, str] = field(repr=False)
    """Intel's signed statements about the platform, with the names of `dcap_qvl`'s JSON."""
    root_ca: str
    """PEM."""
    mesh_ca: str
    """PEM: self-signed."""
    mesh_ca_by_root: str
    """PEM: the same name and key, certified by the root."""
    history: tuple[str, ...] = field(repr=False)
    """Signed envelopes, the last one that which is enforced. Complete, from the cluster's first on, once `whole` has
    put those before them that a coordinator left out.
    """
    documents: dict[str, str] = field(repr=False)
    """App-compose texts of the enforced manifest's compose hashes, by hash: those that its owner handed over."""
    members: tuple[Member, ...]


def encode(bundle: Bundle) -> bytes:
    """JSON."""
    return json.dumps(asdict(bundle), separators=(",", ":")).encode()


def lacks(bundle: Bundle) -> int:
    """The epoch up to which manifests are missing at the beginning of the history; 0 where it begins with the first."""
    first = claims(bundle.history[0]) if bundle.history else None
    return first.epoch - 1 if first is not None else 0


def whole(bundle: Bundle, before: tuple[str, ...]) -> Bundle:
    """`bundle` with the envelopes `before` in front of those that it has. Whether all fit together, verifying shows."""
    return replace(bundle, history=(*before, *bundle.history))


def with_path(common: bytes, nonce: bytes, path: tuple[Step, ...]) -> bytes:
    """The bundle whose other entries are the JSON object `common`: they are the same for all who are answered by one
    quote, and are many bytes.
    """
    own = {"nonce": nonce.hex(), "merkle_path": [asdict(step) for step in path]}
    return json.dumps(own, separators=(",", ":")).encode()[:-1] + b"," + common[1:]


def common_part(bundle: Bundle) -> bytes:
    """`common` of `with_path`."""
    tree = asdict(bundle)
    del tree["nonce"], tree["merkle_path"]
    return json.dumps(tree, separators=(",", ":")).encode()


def decode(data: bytes) -> Bundle:
    """The bundle in `data`. BundleError for unknown, missing, repeated and mistyped entries, and for too many."""
    if len(data) > MAX_BUNDLE:
        raise BundleError(f"the bundle has {len(data)} bytes, expected {MAX_BUNDLE} at most")
    try:
        tree = json.loads(data, object_pairs_hook=once)
        found = tree.get("version") if isinstance(tree, dict) else None
        if type(found) is int and found != VERSION:
            raise BundleError(f"the bundle is of version {found}, expected {VERSION}; use a newer program")
        bundle: Bundle = from_tree(Bundle, tree, "bundle")
    except (ManifestError, ValueError, RecursionError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"the bundle cannot be read: {error!s:.300}") from error
    if len(bundle.history) > MAX_HISTORY or len(bundle.members) > MAX_MEMBERS:
        raise BundleError(
            f"the bundle has {len(bundle.history)} manifests and {len(bundle.members)} members, expected "
            f"{MAX_HISTORY} and {MAX_MEMBERS} at most"
        )
    parse_nonce(bundle.nonce)
    return bundle


def parse_nonce(text: str) -> bytes:
    """The nonce in `text`, which has one form: lower-case hex. BundleError."""
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != NONCE_BYTES or found.hex() != text:
        raise BundleError(f"the nonce is {text[:80]!r}, expected {NONCE_BYTES} bytes in lower-case hex")
    return found
