"""What a harness is: a boundary as a function of bytes, and the errors that it may end in."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

MAX_REASON = 4096
"""Characters of an error's text. It goes into logs, the status and answers, whoever caused it: 1 MiB of a stranger's
bytes must not come along. Most reasons stay below 400; some quote two or three values of 300 each."""


class UnboundedError(AssertionError):
    """A boundary's reason grows with the input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Harness:
    """A boundary. Calling it is one run."""

    read: Callable[[bytes], object]
    """Gives the input to the boundary."""
    foreseen: tuple[type[Exception], ...] = ()
    """The errors that its docstring names. Any other is a finding."""
    most: int = 4096
    """Bytes of an input that the fuzzer makes: as much as the boundary has to decide about."""
    slow: bool = False
    """One run takes milliseconds, so the catalogue's large inputs are given to it in part."""

    longest: int = MAX_REASON
    """Characters of a reason."""

    def __call__(self, data: bytes) -> bool:
        """Whether the boundary took `data`; False where it refused it as it says."""
        try:
            self.read(data)
        except self.foreseen as error:
            if len(str(error)) > self.longest:
                raise UnboundedError(f"a reason of {len(str(error))} characters: {str(error)[:200]!r}") from error
            return False
        return True


def text(data: bytes) -> str:
    """`data` as text; bytes that are no UTF-8 become lone surrogates, which JSON can name, too."""
    return data.decode("utf-8", "surrogateescape")


def part(data: bytes, names: tuple[str, ...]) -> tuple[str, bytes]:
    """Which of `names` the first byte chooses, and the rest."""
    return names[data[0] % len(names) if data else 0], data[1:]


def driven(work: Coroutine[Any, Any, T]) -> T:
    """What `work`, which waits for nothing, comes to: without an event loop it is some ten times faster."""
    try:
        work.send(None)
    except StopIteration as end:
        found: T = end.value
        return found
    work.close()
    raise AssertionError("it waits for something")
