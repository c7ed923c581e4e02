"""`evidence.json_once`."""

from __future__ import annotations

import json

import pytest

from evidence.json_once import once


def test_a_name_counts_once() -> None:
    """An object without repetition is read as ever; with one it is refused, wherever it stands, by name."""
    assert json.loads('{"a":1,"b":{"a":2}}', object_pairs_hook=once) == {"a": 1, "b": {"a": 2}}
    for text in ('{"a":1,"a":1}', '[{"b":{"a":1,"a":2}}]'):
        with pytest.raises(ValueError, match="'a' is there twice"):
            json.loads(text, object_pairs_hook=once)
