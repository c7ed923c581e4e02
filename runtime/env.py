"""Reads typed values from environment variables and reports every problem at once. Pure: it is given a mapping."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

UNKNOWN = "is not a known variable"
"""How the message of a variable that nobody reads begins."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the configuration: the variable, what was expected and what to try."""

    variable: str
    message: str

    def __str__(self) -> str:
        return f"{self.variable}: {self.message}"


class ConfigError(Exception):
    """The operator's mistake. Carries all problems; ends the process with exit code 2."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class EnvReader:
    """Takes variables out of `environ`; `finish()` raises ConfigError with all that went wrong, unknown names too."""

    def __init__(self, environ: Mapping[str, str], prefix: str = "MESH_") -> None:
        self._environ = environ
        self._prefix = prefix
        self._known: set[str] = set()
        self._hints: dict[str, str] = {}
        self.problems: list[Problem] = []

    def optional(self, name: str, parse: Callable[[str], T], default: T) -> T:
        """The parsed value, or `default` when unset or empty. `parse` raises ValueError(what was expected)."""
        self._known.add(name)
        text = self._environ.get(name, "")
        if text == "":
            return default
        try:
            return parse(text)
        except ValueError as error:
            self.problems.append(Problem(name, str(error)))
            return default

    def required(self, name: str, parse: Callable[[str], T], default: T, wanted: str) -> T:
        """As `optional`, but unset is a problem that says what is `wanted`. `default` only fills the type."""
        if self._environ.get(name, "") == "":
            self._known.add(name)
            self.problems.append(Problem(name, f"is not set; expected {wanted}"))
            return default
        return self.optional(name, parse, default)

    def hint(self, name: str, advice: str) -> None:
        """`advice` for whoever sets `name`, which nobody reads but many may expect."""
        self._hints[name] = advice

    def finish(self) -> None:
        """Adds a problem for each unknown variable with our prefix, then raises ConfigError if there is any problem."""
        for name in sorted(self._environ):
            if name.startswith(self._prefix) and name not in self._known:
                # The prefix that all share would make everything look alike.
                bare = [known.removeprefix(self._prefix) for known in self._known]
                close = difflib.get_close_matches(name.removeprefix(self._prefix), bare, n=1)
                hint = self._hints.get(name) or (
                    f"did you mean {self._prefix}{close[0]}?"
                    if close
                    else "see docs/configuration.md for the names that exist"
                )
                self.problems.append(Problem(name, f"{UNKNOWN}; {hint}"))
        if self.problems:
            raise ConfigError(self.problems)
