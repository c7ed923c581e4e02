"""`Secret`: text that must not be printed. Alone here, so that any package can hold secrets and import no more."""

from __future__ import annotations

import hmac
from typing import final


@final
class Secret:
    """A piece of text that only shows itself to a caller who says `reveal()`.

    `repr`, `str` and formatting give `Secret(***)`, so a secret in a log line, an f-string or a dataclass dump stays
    hidden. Comparison takes constant time. Not hashable: a secret is no key for a dictionary.
    """

    __slots__ = ("_value",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The text itself. Call it at the edge that needs it, never to build a message."""
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value.encode(), other._value.encode())

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "Secret(***)"

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a Secret is not pickled or copied: pass the object itself, or reveal() it at the edge")
