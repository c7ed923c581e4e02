"""A question to the person at the terminal. IO: standard input."""

from __future__ import annotations


def confirm(question: str) -> bool:
    """Whether the person answers yes; an end of input is no."""
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
