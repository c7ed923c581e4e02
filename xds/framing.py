"""Whether bytes are fields of Protocol Buffers, whole ones. Pure.

`betterproto2` reads a field that is cut off as far as it goes, and a field of another kind as whatever it finds
(0.9.1). What is no message must not be read as one, so it is looked at first. The encoding:
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

Nested = Mapping[int, "Nested"]
"""The fields that are messages themselves, by number, each with its own."""
NONE: Final[Nested] = {}
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}
_VARINT_BYTES = 10
"""The most that a 64-bit number takes, seven bits a byte."""


class FramingError(ValueError):
    """The bytes are no message."""


def check(data: bytes, nested: Nested = NONE) -> None:
    """Returns when `data` is a message of whole fields, and those in `nested` are such messages. FramingError."""
    position = 0
    while position < len(data):
        start = position
        tag, position = _varint(data, position)
        number, kind = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise FramingError(f"byte {start}: field number {number}, expected 1 to {(1 << 29) - 1}")
        if number in nested and kind != _LENGTH:
            raise FramingError(f"byte {start}: field {number} has wire type {kind}, expected {_LENGTH}: a message")
        if kind == _VARINT:
            _, position = _varint(data, position)
        elif kind == _LENGTH:
            size, position = _varint(data, position)
            if size > len(data) - position:
                raise FramingError(f"byte {start}: field {number} has {size} bytes, {len(data) - position} are left")
            if number in nested:
                check(data[position : position + size], nested[number])
            position += size
        elif kind in _FIXED:
            position += _FIXED[kind]
            if position > len(data):
                raise FramingError(f"byte {start}: field {number} is cut off")
        else:
            raise FramingError(f"byte {start}: field {number} has wire type {kind}, which no message here has")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at `position`, and where it ends."""
    value = 0
    for index in range(_VARINT_BYTES):
        if position + index >= len(data):
            raise FramingError(f"byte {position}: a number is cut off")
        byte = data[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, position + index + 1
    raise FramingError(f"byte {position}: a number of more than 64 bits")
