"""Decoded JSON ↔ dataclasses: what a tree has to be is what the type's annotations say. Pure.

It is of the manifest first, and of all else that parties of a mesh send one another.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import reprlib
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Union, get_args, get_origin, get_type_hints

from topology import texts

MAX_UNKNOWN = 32
"""How many entries that this program does not know are named. More than a format gains between two programs."""


class ManifestError(ValueError):
    """The manifest, or its envelope, is not what it must be. The message names the entry."""


def field_names(kind: Any) -> frozenset[str]:
    """The names of all fields of the (nested) dataclass `kind`, those of nested ones with dots; list positions and keys
    of mappings are left out.
    """
    found: set[str] = set()
    for name, hint in _hints(kind).items():
        found.add(name)
        for inner in _dataclasses_in(hint):
            found |= {f"{name}.{deeper}" for deeper in field_names(inner)}
    return frozenset(found)


def _dataclasses_in(hint: Any) -> list[Any]:
    if dataclasses.is_dataclass(hint):
        return [hint]
    return [found for arg in get_args(hint) for found in _dataclasses_in(arg)]


def from_tree(kind: Any, tree: object, where: str, unknown: list[str] | None = None) -> Any:
    """Builds the (nested, frozen) dataclass `kind` from decoded JSON; ManifestError names the entry that is wrong.

    An entry that `kind` does not have is refused, or added to `unknown` where that is given, MAX_UNKNOWN at most. Names
    are cut, so that what is said of a tree stays small whoever wrote it.
    """
    return _reader(kind)(tree, where, unknown)


Reader = Callable[[object, str, list[str] | None], Any]
"""`from_tree` of one type."""


@functools.cache
def _reader(kind: Any) -> Reader:
    """How a `kind` is read. Once a type: to look at annotations costs more than the rest of a decode."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        inner = _reader(next(arg for arg in get_args(kind) if arg is not type(None)))
        return lambda tree, where, unknown: None if tree is None else inner(tree, where, unknown)
    if origin is tuple:
        return _list(_reader(get_args(kind)[0]))
    if origin is dict:
        return _mapping(_reader(get_args(kind)[1]))
    if dataclasses.is_dataclass(kind):
        return _object(typing.cast("type[Any]", kind))
    return _scalar(kind)


def _list(inner: Reader) -> Reader:
    def read(tree: object, where: str, unknown: list[str] | None) -> Any:
        if not isinstance(tree, list):
            raise ManifestError(f"{where} must be a list, not {reprlib.repr(tree)}")
        return tuple([inner(item, f"{where}[{index}]", unknown) for index, item in enumerate(tree)])

    return read


def _mapping(inner: Reader) -> Reader:
    def read(tree: object, where: str, unknown: list[str] | None) -> Any:
        if not isinstance(tree, dict):
            raise ManifestError(f"{where} must be an object, not {reprlib.repr(tree)}")
        return {key: inner(item, _below(where, key), unknown) for key, item in tree.items()}

    return read


def _scalar(kind: type[Any]) -> Reader:
    def read(tree: object, where: str, _: list[str] | None) -> Any:
        # bool is an int in Python; a manifest that says `true` for a port is wrong.
        if not isinstance(tree, kind) or (kind is int and isinstance(tree, bool)):
            raise ManifestError(f"{where} must be {kind.__name__}, not {reprlib.repr(tree)}")
        return tree

    return read


def _object(kind: type[Any]) -> Reader:
    fields, hints, none = dataclasses.fields(kind), _hints(typing.cast("Any", kind)), dataclasses.MISSING
    # With each type, which nearly every value of a simple one has exactly.
    readers = {it.name: (hints[it.name], _reader(hints[it.name])) for it in fields}
    required = [it.name for it in fields if it.default is none and it.default_factory is none]

    def read(tree: object, where: str, unknown: list[str] | None) -> Any:
        if not isinstance(tree, dict):
            raise ManifestError(f"{where} must be an object, not {reprlib.repr(tree)}")
        if not tree.keys() <= readers.keys():
            foreign = sorted(tree.keys() - readers.keys())
            if unknown is None:
                raise ManifestError(f"{where} has unknown entries {shown_names(foreign)}; {_meant(foreign, readers)}")
            unknown += [_below(where, name) for name in foreign[: MAX_UNKNOWN - len(unknown)]]
            tree = {name: value for name, value in tree.items() if name in readers}
        if missing := [name for name in required if name not in tree]:
            raise ManifestError(f"{where} lacks {missing}")
        values = {}
        for name, value in tree.items():
            exact, inner = readers[name]
            values[name] = value if type(value) is exact else inner(value, f"{where}.{name}", unknown)
        return kind(**values)

    return read


def _meant(foreign: list[str], known: Iterable[str]) -> str:
    """The nearest of `known` names, or all of them."""
    close = (difflib.get_close_matches(texts.shown(name), known, n=1) for name in foreign[:MAX_UNKNOWN])
    meant = ", ".join(dict.fromkeys(repr(name) for names in close for name in names))
    return f"did you mean {meant}?" if meant else f"expected {sorted(known)}"


def _below(where: str, name: str) -> str:
    return f"{where}.{texts.shown(name)}"


def shown_names(names: list[str]) -> str:
    """`names` for a message: the first ones, each cut."""
    found = [texts.shown(name) for name in names[:MAX_UNKNOWN]]
    return f"{found} and {len(names) - len(found)} more" if len(found) < len(names) else f"{found}"


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)
