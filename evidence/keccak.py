"""Keccak-256 with the original padding, as dstack's `mr_config_id` form 2 and its key signatures use it. Pure.

It differs from SHA3-256 in one padding byte; neither hashlib nor `cryptography` offers it.
"""

from __future__ import annotations


def keccak256(data: bytes) -> bytes:
    """The 32-byte digest of `data`."""
    # On first use: it loads a C parser (some 5 MiB), and most evidence needs no such digest.
    from Crypto.Hash import keccak

    return keccak.new(digest_bits=256, data=data).digest()
