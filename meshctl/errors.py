"""`UserError`: what the command line prints as one message and answers with exit code 2. Standard library only."""

from __future__ import annotations

USAGE_EXIT_CODE = 2
"""What a mistake of the operator, or of the machine's set-up, ends a command with."""


class UserError(Exception):
    """Something that the person at the keyboard can put right.

    `message` names the input and what was expected; `remedy` says what to do about it (several steps: one line each).
    `exit_code` is 1 instead of 2 where neither input nor set-up is known to be at fault.
    """

    def __init__(self, message: str, remedy: str = "", *, exit_code: int = USAGE_EXIT_CODE) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message}\n{self.remedy}" if self.remedy else self.message


def render(error: UserError) -> str:
    """The text for a terminal: the message after `mesh:`, then the remedy, indented.

    Messages quote what others said. It is shown, and never carried out by the terminal: what cannot be printed is
    escaped.
    """
    first, *rest = [printable(line) for line in error.message.splitlines()] or [""]
    remedy = [
        f"  try: {line}" if number == 0 else f"       {line}" for number, line in enumerate(error.remedy.splitlines())
    ]
    return "\n".join([f"mesh: {first}", *(f"  {line}" for line in rest), *remedy])


def printable(line: str) -> str:
    """`line` with what a terminal would obey escaped."""
    kept = (each if each.isprintable() or each == "\t" else each.encode("unicode_escape").decode() for each in line)
    return "".join(kept)
