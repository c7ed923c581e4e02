"""The bundle's form: what is decoded and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from evidence import bundle as module
from evidence.bundle import BundleError, decode, encode, parse_nonce
from tests.evidence.bundles import NONCE, Coordinator


@pytest.fixture(scope="module")
def data() -> bytes:
    """What a coordinator answers."""
    return Coordinator().answer(NONCE)[0]


def test_what_is_sent_is_what_is_read(data: bytes) -> None:
    """The parts of a bundle put together are the bundle."""
    assert decode(encode(decode(data))) == decode(data)
    assert decode(data).nonce == NONCE.hex()


NESTED = "members", "statement", "merkle_path"


def test_every_entry_is_needed_and_none_is_added(data: bytes) -> None:
    """Missing, unknown, mistyped."""
    tree = json.loads(data)
    for name in tree:
        for change in ({}, {name: None}, {name: 7.5}):
            with pytest.raises(BundleError):
                decode(json.dumps({key: value for key, value in tree.items() if key != name} | change).encode())
    with pytest.raises(BundleError, match="unknown"):
        decode(json.dumps(tree | {"more": 1}).encode())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"version": 1, "version": 1}', "twice"),
        (b'{"version": 2}', "version 2"),
        (b'{"version": true}', "lacks"),
        (b"[]", "object"),
        (b"", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b'{"version": ' + b"1" * 5000 + b"}", "cannot be read"),
        (b'{"version": "\xff"}', "cannot be read"),
    ],
)
def test_what_is_no_bundle_is_refused(text: bytes, words: str) -> None:
    """By name, whatever is wrong."""
    with pytest.raises(BundleError, match=words):
        decode(text)


@pytest.mark.parametrize(("limit", "value"), [("MAX_BUNDLE", 100), ("MAX_HISTORY", 2), ("MAX_MEMBERS", 2)])
def test_a_bundle_is_not_without_end(data: bytes, limit: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes, manifests, members."""
    monkeypatch.setattr(module, limit, value)
    with pytest.raises(BundleError, match="at most"):
        decode(data)


@pytest.mark.parametrize("text", ["", "00", "AB" * 32, " " + "00" * 32, "zz" * 32, "00" * 33])
def test_a_nonce_has_one_form(text: str) -> None:
    """32 bytes in lower-case hex."""
    assert parse_nonce("ab" * 32) == b"\xab" * 32
    with pytest.raises(BundleError, match="32 bytes"):
        parse_nonce(text)
