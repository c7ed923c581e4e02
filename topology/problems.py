"""What is wrong with a cluster: `ClusterError` carries every problem at once, `Problems` collects them. Pure.

Each problem is one sentence that names the place (file and line), the entry, what was expected and what to try.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class ClusterError(ValueError):
    """The cluster as written cannot be deployed. `problems` holds every reason, in the order of the files."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems: list[str] = list(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """A place that a person can open."""

    file: str
    """A path, or words such as `override replicas.worker` for a value that no file holds."""
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


class Problems:
    """Collects problems so that one run reports all of them. A problem said twice is kept once."""

    def __init__(self) -> None:
        self._found: dict[str, None] = {}

    def add(self, where: Where, entry: str, message: str) -> None:
        """Notes that `entry` at `where` is wrong; `message` has the input, the expectation and the remedy."""
        self._found.setdefault(f"{where}: {entry}: {message}")

    def extend(self, error: ClusterError) -> None:
        """Takes over the problems of another reader."""
        for problem in error.problems:
            self._found.setdefault(problem)

    def __bool__(self) -> bool:
        return bool(self._found)

    def finish(self) -> None:
        """Raises ClusterError when anything was collected."""
        if self._found:
            raise ClusterError(list(self._found))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the closest known one, else the list of all."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"expected one of {', '.join(names)}" if names else "nothing is allowed here"
