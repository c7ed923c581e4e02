"""What a CVM's quote says about its admission: the report data that binds one statement to one nonce. Pure."""

from __future__ import annotations

import hashlib


def report_data(binding: bytes, nonce: bytes) -> bytes:
    """64 bytes: SHA-256(binding || nonce), then 32 zero bytes (the template family's convention)."""
    return hashlib.sha256(binding + nonce).digest() + bytes(32)
