"""Bytes that are whole fields, and others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds.framing import FramingError, check


@pytest.mark.parametrize(
    "data",
    [b"", b"\x08\x01", b"\x0a\x02ab", b"\x0d1234", b"\x0912345678", b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"],
    ids=["nothing", "number", "text", "32 bits", "64 bits", "the greatest number"],
)
def test_whole_fields(data: bytes) -> None:
    """Of each kind."""
    check(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x08", "byte 1: a number is cut off"),
        (b"\x88", "byte 0: a number is cut off"),
        (b"\x08\x01\x0a\x03ab", "byte 2: field 1 has 3 bytes, 2 are left"),
        (b"\x0d123", "byte 0: field 1 is cut off"),
        (b"\x091234567", "byte 0: field 1 is cut off"),
        (b"\x00\x01", "byte 0: field number 0"),
        (b"\x80\x80\x80\x80\x10\x01", "field number 536870912"),
        (b"\x0b\x0c", "wire type 3"),
        (b"\x0e", "wire type 6"),
        (b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", "more than 64 bits"),
        (b"\x08" + b"\x80" * 10 + b"\x01", "more than 64 bits"),
    ],
)
def test_what_is_none_is_said_by_place(data: bytes, reason: str) -> None:
    """Where it begins, and what was expected."""
    with pytest.raises(FramingError) as caught:
        check(data)
    assert reason in str(caught.value)


def test_messages_within_are_looked_at_too() -> None:
    """Where they are declared; what is not may be a text with any bytes."""
    inner = b"\x0a\x03a"
    outer = b"\x12" + bytes([len(inner)]) + inner
    check(outer)
    with pytest.raises(FramingError):
        check(outer, {2: {}})
    with pytest.raises(FramingError, match="expected 2: a message"):
        check(b"\x10\x01", {2: {}})


@given(st.binary(max_size=200))
def test_any_bytes_are_judged(data: bytes) -> None:
    """And what is whole stays so in front of more that is."""
    try:
        check(data, {2: {}})
    except FramingError:
        return
    check(data + b"\x08\x01", {2: {}})
