"""Which texts a value may have: such as a terminal shows, and does not obey. Pure.

Owners read a manifest that somebody else has written, before they sign or set it. A text that moves the cursor, turns
the direction of writing or is not seen would show them another manifest than the one that they sign.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

_MAX_NAME = 80
"""Characters of a name that a message shows: a stranger's may have as many as a body holds."""


class TextsError(ValueError):
    """A text that is not to be shown as it is. The message is the end of a sentence that begins with the value."""


def check(value: object, free: frozenset[str] = frozenset(), lines: frozenset[str] = frozenset()) -> None:
    """TextsError unless every text in `value`, nested dataclasses, tuples and mappings (keys, too), is printable.

    `free` are the names of dataclass fields whose values may be any text; their keys are judged all the same. In the
    fields `lines`, such as certificates, lines may end.
    """
    for entry, text in _texts(value, "", free, lines):
        if not text.isprintable():
            raise TextsError(f"{entry} is {text!r:.80}, expected characters that can be printed")


def shown(name: str) -> str:
    """`name` for a message: its beginning, with what a terminal would obey escaped."""
    # `meshctl.errors.printable` does so for the command line, which sets this package up and so cannot need it.
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in name[:_MAX_NAME])


def _texts(value: object, entry: str, free: frozenset[str], lines: frozenset[str]) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield entry, value
    elif isinstance(value, tuple):
        for n, item in enumerate(value):
            yield from _texts(item, f"{entry}[{n}]", free, lines)
    elif isinstance(value, dict):
        for key, item in value.items():
            below = f"{entry}.{shown(key)}"
            yield below, key
            yield from _texts(item, below, free, lines)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            below, item = f"{entry}.{field.name}", getattr(value, field.name)
            if field.name in free and isinstance(item, dict):
                yield from ((f"{below}.{shown(key)}", key) for key in item)
            elif field.name in free:
                continue
            elif field.name in lines and isinstance(item, str):
                yield below, item.replace("\n", "")
            else:
                yield from _texts(item, below, free, lines)
