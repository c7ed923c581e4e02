"""Dataclasses as JSON text, and objects of JSON whose names are there once. Pure.

`dataclasses.asdict` copies whatever it finds before the text is made, which takes longer than the text.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any


def text(value: object) -> str:
    """The JSON text of `value`: nested dataclasses are objects, tuples are lists. TypeError for what JSON has no form
    for, a `Secret` among it.
    """
    return json.dumps(value, default=_fields)


def canonical(value: object) -> bytes:
    """Likewise, in the one form that equal values have: names sorted, no spaces."""
    return _CANONICAL.encode(value).encode()


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook`. ValueError for a name that is there twice: readers differ in which of the two counts, and
    what is signed must not depend on that.
    """
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r:.80} is there twice in one object")
        found[name] = value
    return found


def _fields(value: object) -> dict[str, object]:
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise TypeError(f"{type(value).__name__} has no form in JSON")
    return {name: getattr(value, name) for name in _names(type(value))}


@functools.cache
def _names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=_fields)
