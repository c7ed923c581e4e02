"""What breaks parsers, whatever they read: given to every harness, with each beginning that chooses something."""

from __future__ import annotations

import json
from collections.abc import Iterator

LARGE = 1 << 20
"""Bytes: what most boundaries take at most."""
NUMBERS = (
    "NaN",
    "2001-99-99",
    "Infinity",
    "-Infinity",
    "1e999",
    "-0",
    "1" * 5000,
    "0." + "1" * 5000,
    str(1 << 64),
    "-1",
    "true",
)
TEXTS = ('"\\ud800"', '"\\u0000"', '"' + "a" * 10_000 + '"', '"\u00b2"', '"\u0661"', '"\\n"', '""')
DEPTHS = (900, 940, 960, *range(970, 1000, 3), 10_000)
"""Around 1,000 is where Python ends: one reader goes a step further down than the next one."""
MOST_PLACES = 24
"""In which one input is bent. The fuzzer reaches the others."""

PLAIN: dict[str, bytes] = {
    "nothing": b"",
    "a zero": b"\0",
    "no UTF-8": b'{"a": "\xff\xfe"}',
    "cut in a character": '{"a": "\u20ac'.encode()[:-1],
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a key twice": b'{"a": 1, "a": 2}',
    "lists, deep": b"[" * 10_000,
    "objects, deep": b'{"a":' * 10_000,
    "a list": b"[]",
    "null": b"null",
    "an object": b"{}",
    "list of null": b"[null]",
    "list of a list": b"[[]]",
    "list of objects": b"[{}]",
    "white space": b" \t\r\n\v\f" * 100,
    "lines": b"\n" * 10_000,
}
ONE_BYTE: dict[str, bytes] = {
    f"1 MiB of {bytes((each,))!r}": bytes((each,)) * LARGE for each in b'\0\xff[{("a1.#:-\n/=%'
}


def short() -> Iterator[tuple[str, bytes]]:
    """What is so short, or refused so soon, that a boundary may take milliseconds a KiB."""
    yield from PLAIN.items()
    yield from ((name, data) for name, data in known_bad() if name not in PLAIN and len(data) < 1000)


def known_bad() -> Iterator[tuple[str, bytes]]:
    """What is short enough for every harness, by name."""
    yield from PLAIN.items()
    for depth in DEPTHS:
        yield f"whole lists, {depth} deep", b"[" * depth + b"]" * depth
        yield f"whole objects, {depth} deep", b'{"a":' * depth + b"1" + b"}" * depth
    for value in (*NUMBERS, *TEXTS):
        yield f"the value {value[:20]}", value.encode("utf-8", "surrogatepass")
        yield f"a list of {value[:20]}", f"[{value}]".encode("utf-8", "surrogatepass")


def bent(good: bytes) -> Iterator[tuple[str, bytes]]:
    """A good input with one value of its JSON replaced by each that is bad, or with one key left out, there twice, or
    deep: what a partner sends that is wrong in one place only.
    """
    try:
        tree = json.loads(good)
    except (ValueError, RecursionError):
        return
    mark = "\u00a7here\u00a7"
    paths = list(_paths(tree))
    for where, path in enumerate(paths[:: 1 + len(paths) // MOST_PLACES]):
        text = json.dumps(_replaced(tree, path, mark), ensure_ascii=False)
        for value in (*NUMBERS, *TEXTS, "null", "[]", "{}", "[null]", "[" * 950 + "]" * 950):
            yield f"{where}: {value[:20]}", text.replace(f'"{mark}"', value, 1).encode("utf-8", "surrogatepass")


def _paths(tree: object, *before: str | int) -> Iterator[tuple[str | int, ...]]:
    if before:
        yield before
    entries: list[tuple[str | int, object]] = (
        list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree[:2])) if isinstance(tree, list) else []
    )
    for key, value in entries:
        yield from _paths(value, *before, key)


def _replaced(tree: object, path: tuple[str | int, ...], value: object) -> object:
    if not path:
        return value
    first, *rest = path
    if isinstance(tree, dict):
        return {key: _replaced(each, tuple(rest), value) if key == first else each for key, each in tree.items()}
    assert isinstance(tree, list)
    return [_replaced(each, tuple(rest), value) if at == first else each for at, each in enumerate(tree)]
