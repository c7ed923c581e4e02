"""A three-way merge of JSON trees: what was generated last, what a person made of it, and what is computed now. Pure.

What only the person changed stays, what only the computation changed is taken, and what both changed differently is a
conflict. Objects are merged by key, but those that mean something only as a whole (`WHOLE`); lists of objects by what
names an entry (`NAMES`); lists of texts as sets: a compose hash that was added by hand and one that was computed are
both there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

NAMES: tuple[tuple[str, ...], ...] = (
    ("peer_id",),
    ("name",),
    ("public_key",),
    ("alg", "key"),
    ("os_image_hash", "mrtd", "rtmr0", "rtmr1", "rtmr2"),
)
"""Fields that name an entry of a list of objects, the first that all entries have."""


WHOLE = frozenset({"owners", "key_provider"})
"""Objects that are one value: a threshold of one hand and the keys of another, or one KMS's name and another's key,
would be what neither wrote."""
ALONE = "*"
"""A text that is a list by itself, as the callers of a backend: beside names it would mean nothing."""


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


ABSENT = _Absent()
"""In the place of a value where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One place where two trees differ."""

    path: str
    """As `groups.api.compose_hashes`; an entry of a list by its name, `routes[worker].port`."""
    before: Any
    """ABSENT where there is none; so is `after`."""
    after: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """One place that the person and the computation changed, each in their own way."""

    path: str
    generated: Any
    edited: Any
    computed: Any

    def __str__(self) -> str:
        return f"{self.path}: by hand {_text(self.edited)}, computed now {_text(self.computed)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What came of it."""

    tree: Any
    """With the person's value where there is a conflict."""
    conflicts: tuple[Conflict, ...]


def merge(generated: Any, edited: Any, computed: Any) -> Merged:
    """Merges three trees; each may be ABSENT."""
    conflicts: list[Conflict] = []
    return Merged(tree=_merge("", generated, edited, computed, conflicts), conflicts=tuple(conflicts))


def differences(before: Any, after: Any) -> tuple[Difference, ...]:
    """Every place where `after` differs from `before`, the smallest parts that a person thinks of."""
    return tuple(_differences("", before, after))


def shared(tree: Any, other: Any) -> Any:
    """`tree` without the entries that `other` lacks, of whatever value."""
    if isinstance(tree, dict) and isinstance(other, dict):
        return {key: shared(value, other[key]) for key, value in tree.items() if key in other}
    if isinstance(tree, list) and isinstance(other, list):
        if _texts(tree) and _texts(other):
            return [item for item in tree if item in other]
        if (names := _names(tree, other)) is not None:
            own, theirs = (_by_name(each, names) for each in (tree, other))
            return [shared(item, theirs[name]) for name, item in own.items() if name in theirs]
    return tree


def _is_whole(path: str) -> bool:
    return path.rpartition(".")[2] in WHOLE


def _merge(path: str, base: Any, mine: Any, new: Any, conflicts: list[Conflict]) -> Any:
    if _same(mine, new) or _same(new, base):
        return mine
    if _same(mine, base):
        return new
    if isinstance(mine, dict) and isinstance(new, dict) and not _is_whole(path):
        return _merge_objects(path, base if isinstance(base, dict) else {}, mine, new, conflicts)
    if isinstance(mine, list) and isinstance(new, list):
        old = base if isinstance(base, list) else []
        if all(_texts(each) for each in (old, mine, new)) and ALONE not in (*mine, *new):
            return _merge_sets(old, mine, new)
        if (names := _names(old, mine, new)) is not None:
            was, ours, theirs = (_by_name(each, names) for each in (old, mine, new))
            merged = _merge_objects(path, was, ours, theirs, conflicts, entries=True)
            return [merged[name] for name in dict.fromkeys([*theirs, *ours]) if name in merged]
    conflicts.append(Conflict(path=path or "all of it", generated=base, edited=mine, computed=new))
    return mine


def _merge_objects(
    path: str,
    base: Mapping[str, Any],
    mine: Mapping[str, Any],
    new: Mapping[str, Any],
    conflicts: list[Conflict],
    *,
    entries: bool = False,
) -> dict[str, Any]:
    found = {}
    for key in dict.fromkeys([*mine, *new]):
        was, ours, theirs = (each.get(key, ABSENT) for each in (base, mine, new))
        value = _merge(_inner(path, key, entries=entries), was, ours, theirs, conflicts)
        if value is not ABSENT:
            found[key] = value
    return found


def _merge_sets(base: list[Any], mine: list[Any], new: list[Any]) -> list[Any]:
    """What is computed, without what the person took away, and with what the person added."""
    taken_away = [item for item in base if item not in mine]
    kept = [item for item in new if item not in taken_away]
    return [*kept, *(item for item in mine if item not in base and item not in kept)]


def _differences(path: str, before: Any, after: Any) -> Iterator[Difference]:
    if _same(before, after):
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            yield from _differences(_inner(path, key), before.get(key, ABSENT), after.get(key, ABSENT))
        return
    if isinstance(before, list) and isinstance(after, list) and (names := _names(before, after)) is not None:
        old, new = (_by_name(each, names) for each in (before, after))
        found = [
            difference
            for key in dict.fromkeys([*old, *new])
            for difference in _differences(_inner(path, key, entries=True), old.get(key, ABSENT), new.get(key, ABSENT))
        ]
        if found:
            yield from found
            return
    yield Difference(path=path or "all of it", before=before, after=after)


def _inner(path: str, key: str, *, entries: bool = False) -> str:
    if entries:
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def _same(one: Any, other: Any) -> bool:
    """As JSON: 1 is not true, and not 1.0."""
    if one is ABSENT or other is ABSENT:
        return one is other
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _texts(items: list[Any]) -> bool:
    return all(isinstance(item, str) for item in items) and len(set(items)) == len(items)


def _names(*lists: list[Any]) -> tuple[str, ...] | None:
    """The fields that name each entry of all `lists`, once in each; None where there are none."""
    for fields in NAMES:
        if all(isinstance(item, dict) and all(isinstance(item.get(it), str) for it in fields)
               for each in lists for item in each) and all(
                   len(_by_name(each, fields)) == len(each) for each in lists):  # fmt: skip
            return fields
    return None


def _by_name(items: list[Any], fields: tuple[str, ...]) -> dict[str, Any]:
    return {" ".join(item[field] for field in fields): item for item in items}


def _text(value: Any) -> str:
    return repr(value) if value is ABSENT else json.dumps(value, sort_keys=True, ensure_ascii=False)
