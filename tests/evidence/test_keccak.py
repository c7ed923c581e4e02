"""`evidence.keccak` against published digests."""

from __future__ import annotations

import hashlib

import pytest

from evidence.keccak import keccak256


@pytest.mark.parametrize(
    ("data", "digest"),
    [
        (b"", "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"),
        (b"abc", "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45"),
    ],
)
def test_published_digests(data: bytes, digest: str) -> None:
    """The two digests that everybody knows."""
    assert keccak256(data).hex() == digest


def test_it_is_not_sha3() -> None:
    """The standard's padding gives another digest; dstack uses the original one."""
    assert keccak256(b"abc") != hashlib.sha3_256(b"abc").digest()
