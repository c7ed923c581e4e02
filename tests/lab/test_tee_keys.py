"""`lab.tee_keys` against dstack's own test vector and an independent secp256k1."""

from __future__ import annotations

from eth_keys.datatypes import Signature
from hypothesis import given, settings
from hypothesis import strategies as st

from evidence.keccak import keccak256
from lab.tee_keys import hkdf, k256_public, k256_sign

APP_KEY = bytes.fromhex("1a2b3c4d5e6f7a8b9c0d1e2f3a4b5c6d7e8f9a0b1c2d3e4f5a6b7c8d9e0f1a2b")


def test_derivation_is_dstacks() -> None:
    """The expected value comes from dstack's repository."""
    assert hkdf(APP_KEY, b"vms").hex() == "9db79b3fefe69f2a7b7efbc908c854bf845a629023361f2c9cb3db09fb99010f"


@settings(max_examples=20, deadline=None)
@given(st.binary(max_size=100))
def test_signatures_recover_to_their_key(message: bytes) -> None:
    """Another implementation finds our public key in the signature, so r, s and the recovery id are all right."""
    recovered = Signature(k256_sign(APP_KEY, message)).recover_public_key_from_msg_hash(keccak256(message))
    assert recovered.to_compressed_bytes() == k256_public(APP_KEY)
