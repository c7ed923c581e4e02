"""Parsers of environment values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import values

PARSERS: tuple[Callable[[str], object], ...] = (
    values.text, values.flag, values.path, values.level, values.base64_bytes, values.https_urls,
    values.http_url,
)  # fmt: skip


def test_good_values_become_types() -> None:
    """Each shape gives its type."""
    assert values.flag("1") is True
    assert values.path("/x") == Path("/x")
    assert values.base64_bytes("AAE=") == b"\0\1"
    assert values.https_urls('["https://a/", "https://b:1"]') == ("https://a", "https://b:1")
    assert values.http_url("http://x/") == "http://x"


@pytest.mark.parametrize("text", ["[]", "{}", "[1]", '["http://a"]', '["https://a/b"]', '["https://["]', "["])
def test_what_is_no_list_of_urls_is_refused(text: str) -> None:
    """Empty, not a list, not https, with a path, malformed."""
    with pytest.raises(ValueError, match="expected"):
        values.https_urls(text)


@pytest.mark.parametrize("parse", PARSERS)
@given(text=st.text())
def test_anything_is_parsed_or_refused(parse: Callable[[str], object], text: str) -> None:
    """No input raises anything but ValueError."""
    with contextlib.suppress(ValueError):
        parse(text)
