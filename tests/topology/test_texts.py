"""What a terminal would obey is no text of a manifest."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from topology.texts import TextsError, check, shown


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Some value."""

    name: str
    free: dict[str, str]
    numbers: tuple[int, ...] = (1,)


@dataclass(frozen=True, kw_only=True)
class Outer:
    """A value with values."""

    inner: tuple[Inner, ...] = ()
    named: dict[str, Inner] | None = None


def outer(name: str = "ü 漢", key: str = "k", free_key: str = "f", free: str = "") -> Outer:
    """A value with these texts."""
    inner = Inner(name=name, free={free_key: free})
    return Outer(inner=(inner,), named={key: inner})


@pytest.mark.parametrize("text", ["\x1b[2K", "a\n", "\r", "\t", "\u202e", "\u200b", "\x7f", "\u2028", "\x9b2K"])
def test_a_text_that_acts_is_refused_where_it_stands(text: str) -> None:
    """As a value and as a key, at any depth; it is quoted, so that the message does not act."""
    check(outer(), frozenset({"free"}))
    check(outer(free=text), frozenset({"free"}))
    for wrong, entry in (
        (outer(name=text), ".inner[0].name"),
        (outer(key=text), ".named."),
        (outer(free_key=text), ".inner[0].free."),
    ):
        with pytest.raises(TextsError) as caught:
            check(wrong, frozenset({"free"}))
        assert str(caught.value).startswith(entry)
        assert str(caught.value).isprintable()
    with pytest.raises(TextsError, match="free"):
        check(outer(free=text))


def test_lines_end_where_they_may() -> None:
    """As in a certificate; nothing else that acts is in them."""
    check(outer(name="a\nb"), frozenset({"free"}), frozenset({"name"}))
    for text in ("a\x1b[2K\nb", "a\r\nb"):
        with pytest.raises(TextsError, match="printed"):
            check(outer(name=text), frozenset({"free"}), frozenset({"name"}))


def test_a_name_is_shown_by_its_beginning() -> None:
    """And does not act."""
    assert shown("x" * 200) == "x" * 80
    assert shown("a\x1b[2K") == "a\\x1b[2K"
