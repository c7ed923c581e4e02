"""What the coordinators of a new app take over, as values: what is written into their records, and what they keep of
the former ones. Pure.

Who handed it out was verified, and is believed as far as a former coordinator of this mesh can be: it decided about all
of this until now. The form is checked all the same, and what is none of an estate refuses the whole of it.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from admission.protocol import PEERS_PREFIX, EstateAuthority, EstateEntry, EstatePage, EstateSecret
from coordinator.estate import is_estate
from coordinator.keys import Inherited
from coordinator.ledger import INSTANCES_PREFIX, SLOTS_PREFIX
from coordinator.registry import decode_peer
from coordinator.slots import Holder
from coordinator.tokens import LEDGER_PREFIX
from runtime.secret import Secret
from topology.trees import ManifestError, from_tree

INHERITANCE_KEY = LEDGER_PREFIX + "inheritance"
"""Consul KV key that is written last: these records have what the former coordinators had. Sealed."""
MAX_OPERATIONS = 60
"""In one transaction: Consul takes 64 (maxTxnOps in agent/txn_endpoint.go)."""
MAX_TRANSACTION = 256 << 10
"""Characters of values in one transaction: Consul takes 512 KiB of request (`txn_max_req_len`)."""
_NONCE_BYTES = 12


class InheritanceError(ValueError):
    """What was handed out is no estate. The message says what is wrong with it, and holds no value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """What is sealed."""

    secrets: tuple[EstateSecret, ...]
    authorities: tuple[EstateAuthority, ...]
    until: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One key of the new records."""

    key: str
    value: str
    """Base64."""
    flags: int = 0


def inherited(page: EstatePage, until: int) -> Inherited:
    """What is kept of the former coordinators, of any page of their estate."""
    return Inherited(
        secrets={(each.owner, each.name, each.rotation): Secret(each.text) for each in page.secrets},
        authorities={each.digest: each.pem for each in page.authorities},
        until=float(until),
    )


def seal(found: Inherited, key: bytes, nonce: bytes) -> bytes:
    """`found` as the records keep it: to be read by whoever has `key` alone. `nonce` is never used again."""
    kept = _Kept(
        secrets=tuple(
            EstateSecret(owner=owner, name=name, rotation=rotation, text=text.reveal())
            for (owner, name, rotation), text in found.secrets.items()
        ),
        authorities=tuple(EstateAuthority(digest=name, pem=pem) for name, pem in found.authorities.items()),
        until=int(found.until),
    )
    return nonce + AESGCM(key).encrypt(nonce, json.dumps(dataclasses.asdict(kept)).encode(), INHERITANCE_KEY.encode())


def unseal(sealed: bytes, key: bytes) -> Inherited:
    """What `seal` made. InheritanceError."""
    try:
        data = AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], INHERITANCE_KEY.encode())
        kept: _Kept = from_tree(_Kept, json.loads(data), "inheritance")
    except (InvalidTag, ManifestError, ValueError, RecursionError):
        raise InheritanceError(f"{INHERITANCE_KEY} cannot be read with this app's key") from None
    page = EstatePage(entries=(), more=False, secrets=kept.secrets, authorities=kept.authorities)
    return inherited(page, kept.until)


def writes(entries: Iterable[EstateEntry], now: float) -> Iterator[Write]:
    """What the new records have of `entries`. Whoever holds a slot has a lease from `now` (Unix seconds) to attest to
    the new coordinators. InheritanceError.
    """
    for entry in entries:
        try:
            value = base64.b64decode(entry.value, validate=True)
        except (binascii.Error, ValueError):
            raise InheritanceError(f"the value of {entry.key!r:.80} is not base64") from None
        if not is_estate(entry.key) or not 0 <= entry.flags < 1 << 64:
            raise InheritanceError(f"{entry.key!r:.80} is not handed over")
        if entry.key.startswith(SLOTS_PREFIX):
            yield from _slot(entry.key, value, now)
            continue
        if entry.key.startswith(PEERS_PREFIX):
            peer = decode_peer(entry.key, value)
            if peer is None or peer.kind != "workload":
                continue
        yield Write(key=entry.key, value=entry.value, flags=entry.flags)


def _slot(key: str, value: bytes, now: float) -> Iterator[Write]:
    """A slot without what belongs to the former coordinators' Consul: tokens, and that its node is alive there."""
    try:
        holder: Holder = from_tree(Holder, json.loads(value), "slot")
    except (ManifestError, ValueError, RecursionError):
        # As the ledger: one that cannot be read is one that nobody holds.
        return
    if key != SLOTS_PREFIX + holder.peer_id:
        return
    kept = replace(
        holder, renewed_at=now, accessor="", workload_accessor="", token_expires_at=0.0, former=(), joined=False
    )
    yield Write(key=key, value=_b64(json.dumps(dataclasses.asdict(kept), sort_keys=True, separators=(",", ":"))))
    if not holder.released:
        yield Write(key=INSTANCES_PREFIX + holder.instance_id, value=_b64(holder.peer_id))


def transactions(found: Iterable[Write]) -> Iterator[list[dict[str, object]]]:
    """`found` as bodies of `PUT /v1/txn`. Each fails where these records have an inheritance already: then others have
    changed what they took over.
    """
    operations: list[dict[str, object]] = []
    room = MAX_TRANSACTION
    for each in found:
        room -= len(each.value) + len(each.key)
        if operations and (room < 0 or len(operations) == MAX_OPERATIONS):
            yield [_unless_taken(), *operations]
            operations, room = [], MAX_TRANSACTION - len(each.value) - len(each.key)
        operations.append({"KV": {"Verb": "set", "Key": each.key, "Value": each.value, "Flags": each.flags}})
    if operations:
        yield [_unless_taken(), *operations]


def _unless_taken() -> dict[str, object]:
    return {"KV": {"Verb": "check-not-exists", "Key": INHERITANCE_KEY}}


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
