"""Transactions as values; test_acquire.py and test_handover.py have them with what they are for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from workloads.patroni import txn


def test_entries_are_text_whoever_gave_them() -> None:
    """A query's values are bytes, a transaction's base64; an empty one is none."""
    found = [{"Key": "a/b/c", "Value": b"x"}, {"Key": "a/b/d", "Value": "eQ=="}, {"Key": "a/b/e", "Value": None}]
    assert {key: node["Value"] for key, node in txn.nodes("a/b/", found).items()} == {"c": "x", "d": "y", "e": ""}
    assert txn.nodes("a/b/", None) == {}


def test_what_was_refused_raises() -> None:
    """And what was done gives its entries in order."""
    calls = [txn.call("set", "k", "x"), txn.call("get", "k"), txn.call("cas", "k", "x", Index=7)]
    assert calls[0] == {"KV": {"Verb": "set", "Key": "k", "Value": "eA=="}}
    assert calls[1] == {"KV": {"Verb": "get", "Key": "k"}}
    assert calls[2]["KV"]["Index"] == 7
    done = {"Errors": None, "Results": [{"KV": {"Key": "k"}}, {"KV": {"Key": "l"}}]}
    assert txn.commit(SimpleNamespace(txn=SimpleNamespace(put=lambda _: done)), calls) == [{"Key": "k"}, {"Key": "l"}]
    with pytest.raises(ValueError, match="stale"):
        txn.commit(SimpleNamespace(txn=SimpleNamespace(put=lambda _: {"Errors": ["stale"]})), calls)
