"""Consul's transactions through Patroni's own client, and entries as Patroni's loader has them."""

from __future__ import annotations

import base64
from typing import Any

Nodes = dict[str, dict[str, Any]]
"""Key below the cluster's path to entry, its value as text."""


def call(verb: str, key: str, value: str | None = None, **fields: Any) -> dict[str, Any]:
    """One operation on a key."""
    given = {} if value is None else {"Value": base64.b64encode(value.encode()).decode()}
    return {"KV": {"Verb": verb, "Key": key, **given, **fields}}


def commit(client: Any, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries that the calls gave, in order. Raises, whatever it is, where the servers did nothing."""
    answer = client.txn.put(calls)
    if answer["Errors"]:
        raise ValueError(answer["Errors"])
    return [result["KV"] for result in answer["Results"] or ()]


def nodes(path: str, entries: Any) -> Nodes:
    """Of entries below `path` whose values are bytes, or base64 as a transaction gives them, or missing."""
    return {entry["Key"][len(path) :]: {**entry, "Value": _text(entry["Value"])} for entry in entries or ()}


def _text(value: bytes | str | None) -> str:
    return (base64.b64decode(value) if isinstance(value, str) else value or b"").decode()
