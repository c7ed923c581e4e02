"""Admitted keys."""

from __future__ import annotations

import base64
import contextlib
from typing import Any

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
    tree = {"version": 3, "peers": [{"public_key": ONE, "address": "100.96.0.9"}]}
    assert decode_keys(tree, POOL) == KeySet(version=3, peers=(AdmittedKey(public_key=ONE, address="100.96.0.9"),))


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"version": "1", "peers": []},
        {"version": 1, "peers": 5},
        {"version": 1, "peers": [{"public_key": "x", "address": "100.96.0.9"}]},
        {"version": 1, "peers": [{"public_key": ONE, "address": "10.0.0.1"}]},
        {"version": 1, "peers": [{"public_key": ONE, "address": 5}]},
    ],
)
def test_bad_answers(tree: dict[str, Any]) -> None:
    """One bad entry refuses the whole set: the last good one stays."""
    with pytest.raises(LinkError):
        decode_keys(tree, POOL)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["public_key", "address", "x"]), inner),
    max_leaves=8,
)


@given(st.fixed_dictionaries({}, optional={"version": JSON, "peers": JSON}))
def test_garbage(tree: dict[str, Any]) -> None:
    """Nothing but LinkError leaves the decoder."""
    with contextlib.suppress(LinkError):
        assert decode_keys(tree, POOL).peers == ()


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
