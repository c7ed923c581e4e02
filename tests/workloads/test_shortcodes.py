"""The emoji that there are."""

from __future__ import annotations

import re

from workloads.shortcodes import EMOJI


def test_each_has_a_shortcode_and_a_character() -> None:
    """Read as they are written: none is lost to another of the same name."""
    assert len(EMOJI) == len(set(EMOJI.values())) == 78
    assert EMOJI[":taco:"] == "🌮"
    assert [code for code in EMOJI if not re.fullmatch(r":[a-z0-9_]+:", code)] == []
