"""`evidence.binding`: the 64 bytes that tie a statement to a nonce."""

from __future__ import annotations

import hashlib

from evidence.binding import report_data


def test_report_data_is_the_template_familys() -> None:
    """SHA-256 over binding and nonce, then zeros."""
    assert report_data(b'{"a":1}', b"n" * 32) == hashlib.sha256(b'{"a":1}' + b"n" * 32).digest() + bytes(32)


def test_another_nonce_gives_other_report_data() -> None:
    """An answer to one challenge is none to another."""
    assert report_data(b"x", b"1" * 32) != report_data(b"x", b"2" * 32)
