"""Keys as dstack's KMS derives them, and its recoverable secp256k1 signatures. For the lab: nothing here is
hardened."""

from __future__ import annotations

import hashlib
import hmac

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from evidence.keccak import keccak256

_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
"""Order of the secp256k1 group."""


def hkdf(key: bytes, info: bytes) -> bytes:
    """32 bytes: HKDF-SHA256 with dstack's salt."""
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=b"RATLS", info=info).derive(key)


def k256(key: bytes) -> ec.EllipticCurvePrivateKey:
    """The secp256k1 key whose scalar is `key` (32 bytes)."""
    return ec.derive_private_key(int.from_bytes(key, "big"), ec.SECP256K1())


def k256_public(key: bytes) -> bytes:
    """The compressed public key, 33 bytes."""
    return k256(key).public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)


def k256_sign(key: bytes, message: bytes) -> bytes:
    """65 bytes: r || s || recovery id over Keccak-256 of `message`."""
    return k256_sign_digest(key, keccak256(message))


def k256_sign_digest(key: bytes, digest: bytes) -> bytes:
    """65 bytes: r || s || recovery id over a 32-byte digest, the same ones every time.

    `cryptography` does not tell the nonce's point, which the recovery id comes from; so the nonce is chosen here.
    """
    secret, hashed = int.from_bytes(key, "big"), int.from_bytes(digest, "big")
    nonce = int.from_bytes(hmac.digest(key, b"nonce" + digest, hashlib.sha512), "big") % (_ORDER - 1) + 1
    point = ec.derive_private_key(nonce, ec.SECP256K1()).public_key().public_numbers()
    r = point.x % _ORDER
    s = pow(nonce, -1, _ORDER) * (hashed + r * secret) % _ORDER
    recovery = (point.y & 1) | (2 if point.x >= _ORDER else 0)
    if s > _ORDER // 2:
        s, recovery = _ORDER - s, recovery ^ 1
    return r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes([recovery])
