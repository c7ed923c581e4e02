"""How the command line's errors look."""

from __future__ import annotations

from meshctl.errors import UserError, render


def test_message_and_remedy_are_told_apart() -> None:
    """The message comes first; each step of the remedy has a line of its own."""
    text = render(UserError("no cluster 'x'\nexpected a folder", "ls clusters\n./mesh list"))
    assert text.splitlines() == [
        "mesh: no cluster 'x'",
        "  expected a folder",
        "  try: ls clusters",
        "       ./mesh list",
    ]


def test_what_others_said_does_not_command_the_terminal() -> None:
    """An answer may hold anything: escape sequences and directions of writing are shown, letters of all kinds too."""
    text = render(UserError("refused: \x1b[2K\rverified\u202e; Größe 5 µs"))
    assert text == "mesh: refused: \\x1b[2K\n  verified\\u202e; Größe 5 µs"


def test_remedy_is_optional() -> None:
    """An error without a remedy is one line."""
    assert render(UserError("no")) == "mesh: no"
    assert str(UserError("no", "do")) == "no\ndo"
