"""Image references become digests."""

from __future__ import annotations

import pytest

from meshctl import pins

DIGEST = "sha256:" + "a" * 64
TEXT = """services:
  a:
    image: ghcr.io/x/a:1  # the first
  b:
    image: "ghcr.io/x/b:2@sha256:%s"
  c:
    image: 'localhost:5000/c'
""" % ("0" * 64)


def test_references_are_found_as_written() -> None:
    """Quotes and comments are no part of a reference."""
    assert pins.references(TEXT) == ("ghcr.io/x/a:1", f"ghcr.io/x/b:2@sha256:{'0' * 64}", "localhost:5000/c")


def test_only_the_reference_changes() -> None:
    """Known names get their digest, also in place of an older one; every other byte stays."""
    changed = pins.pinned(TEXT, {"ghcr.io/x/a:1": DIGEST, "ghcr.io/x/b:2": DIGEST})
    assert changed == TEXT.replace("x/a:1 ", f"x/a:1@{DIGEST} ").replace("sha256:" + "0" * 64, DIGEST)
    assert pins.pinned(changed, {"ghcr.io/x/a:1": DIGEST}) == changed


@pytest.mark.parametrize(
    ("text", "digests", "words"),
    [
        ("    image: ${IMAGE}\n", {}, "has a variable"),
        ("    image: a:1\n", {"a:1": "sha256:12"}, "'a:1': 'sha256:12' is no digest"),
    ],
)
def test_what_cannot_be_pinned_is_refused(text: str, digests: dict[str, str], words: str) -> None:
    """A variable, or something that is no digest, is named."""
    with pytest.raises(pins.PinError, match=words):
        pins.pinned(text, digests)
