"""Admitted keys."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.keys import AdmittedKey, KeySet, decode_keys, unite
from peer.spec import LinkError

POOL = "100.96.0.0/16"
ONE, OTHER = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2))


def _set(*peers: tuple[str, str]) -> KeySet:
    return KeySet(version=1, peers=tuple(AdmittedKey(public_key=key, address=address) for key, address in peers))


def test_an_answer_is_read() -> None:
    """The coordinator's JSON."""
    body = b'{"version": 3, "peers": [{"public_key": "%s", "address": "100.96.0.9"}]}' % ONE.encode()
    assert decode_keys(body, POOL) == KeySet(version=3, peers=(AdmittedKey(public_key=ONE, address="100.96.0.9"),))


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[]",
        b'{"version": "1", "peers": []}',
        b'{"version": 1, "peers": [{"public_key": "x", "address": "100.96.0.9"}]}',
        b'{"version": 1, "peers": [{"public_key": "%s", "address": "10.0.0.1"}]}' % ONE.encode(),
        b'{"version": 1, "peers": [{"public_key": "%s", "address": 5}]}' % ONE.encode(),
    ],
)
def test_bad_answers(body: bytes) -> None:
    """One bad entry refuses the whole set: the last good one stays."""
    with pytest.raises(LinkError):
        decode_keys(body, POOL)


@given(st.binary(max_size=100))
def test_garbage(body: bytes) -> None:
    """Nothing but LinkError leaves the decoder."""
    with pytest.raises(LinkError):
        decode_keys(body, POOL)


def test_sets_unite() -> None:
    """A key that any coordinator admits is admitted."""
    assert unite([_set((ONE, "100.96.0.2")), _set((OTHER, "100.96.0.3"))], "100.96.0.1") == {
        ONE: "100.96.0.2",
        OTHER: "100.96.0.3",
    }


def test_newer_news_wins_an_address() -> None:
    """A CVM that booted anew has a new key; the coordinator that has not heard yet does not matter."""
    assert unite([_set((ONE, "100.96.0.2")), _set((OTHER, "100.96.0.2"))], "100.96.0.1") == {ONE: "100.96.0.2"}


def test_nobody_gets_the_rendezvous_address() -> None:
    """Else an admitted CVM could speak as the rendezvous."""
    assert unite([_set((ONE, "100.96.0.1"))], "100.96.0.1") == {}
