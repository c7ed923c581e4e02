"""Leases: bearer texts that name a slot and its holder, good at every coordinator of the cluster. Pure.

`<payload>.<mac>` in base64url; the HMAC key is derived from GetKey. A lease has one text: base64 has several for the
same bytes, and whoever counts by texts would be counted out. A lease says who asks; whether that one still
holds the slot is for `coordinator.slots`.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from dataclasses import dataclass

from runtime import jsons
from runtime.secret import Secret
from topology.trees import ManifestError, from_tree


class LeaseError(ValueError):
    """The text is not a lease of this cluster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Who may renew and release which slot."""

    peer_id: str
    group: str
    instance_id: str
    boot_key: str
    """WireGuard public key, base64."""


def seal(lease: Lease, key: bytes) -> Secret:
    """The bearer text of `lease`."""
    payload = jsons.canonical(lease)
    return Secret(_text(payload, _mac(payload, key)))


def unseal(text: str, key: bytes) -> Lease:
    """The lease in `text`; LeaseError when it was not sealed with `key`."""
    payload_text, _, mac_text = text.partition(".")
    try:
        payload, mac = _unb64(payload_text), _unb64(mac_text)
    except (binascii.Error, ValueError):
        raise LeaseError("the lease is not one that a coordinator of this cluster gave out") from None
    if not hmac.compare_digest(mac, _mac(payload, key)):
        raise LeaseError("the lease is not one that a coordinator of this cluster gave out")
    try:
        lease: Lease = from_tree(Lease, json.loads(payload), "lease")
    except (ManifestError, ValueError, RecursionError):
        raise LeaseError("the lease is of another version of this program; attest again") from None
    if text != _text(payload, mac) or payload != jsons.canonical(lease):
        raise LeaseError("the lease is not as the coordinator that gave it out wrote it")
    return lease


def _text(payload: bytes, mac: bytes) -> str:
    return f"{_b64(payload)}.{_b64(mac)}"


def _mac(payload: bytes, key: bytes) -> bytes:
    return hmac.digest(key, b"cvm-mesh lease\0" + payload, "sha256")


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _unb64(text: str) -> bytes:
    return base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
