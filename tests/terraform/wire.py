"""The two encodings of Terraform's provider protocol, as far as a stand-in needs them: protobuf and MessagePack."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any


class Unknown:
    """A value that is known after apply only."""


UNKNOWN = Unknown()


def fields(data: bytes) -> dict[int, list[bytes | int]]:
    """A protobuf message: field number to its values, in order."""
    found: dict[int, list[bytes | int]] = {}
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
            found.setdefault(key >> 3, []).append(value)
        else:
            assert key & 7 == 2, f"wire type {key & 7}"
            size, at = _varint(data, at)
            found.setdefault(key >> 3, []).append(data[at : at + size])
            at += size
    return found


def blob(message: Mapping[int, list[bytes | int]], *path: int) -> bytes:
    """The bytes at `path` of a message, empty where there are none."""
    value = message.get(path[0], [b""])[-1]
    assert isinstance(value, bytes)
    return blob(fields(value), *path[1:]) if len(path) > 1 else value


def message(*parts: tuple[int, bytes | str | int | bool]) -> bytes:
    """A protobuf message of (field number, value)."""
    made = b""
    for number, value in parts:
        if isinstance(value, int):
            made += _as_varint(number << 3) + _as_varint(int(value))
        else:
            raw = value.encode() if isinstance(value, str) else value
            made += _as_varint(number << 3 | 2) + _as_varint(len(raw)) + raw
    return made


def pack(value: object) -> bytes:
    """MessagePack of a value of JSON's kinds, or UNKNOWN."""
    if value is UNKNOWN:
        return b"\xd4\x00\x00"
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return b"\xd3" + struct.pack(">q", value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        raw = value.encode()
        return b"\xdb" + struct.pack(">I", len(raw)) + raw
    if isinstance(value, Mapping):
        pairs: Iterable[object] = (part for pair in value.items() for part in pair)
        return b"\xdf" + struct.pack(">I", len(value)) + b"".join(map(pack, pairs))
    assert isinstance(value, list | tuple), value
    return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(pack, value))


def unpack(data: bytes) -> Any:
    """The value of MessagePack `data`."""
    value, end = _unpack(data, 0)
    assert end == len(data)
    return value


_FIXED = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i",
    0xD3: ">q",
}  # fmt: skip
_SIZES = {
    0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xD9: ">B", 0xDA: ">H", 0xDB: ">I", 0xDC: ">H", 0xDD: ">I", 0xDE: ">H",
    0xDF: ">I", 0xC7: ">B", 0xC8: ">H", 0xC9: ">I",
}  # fmt: skip


def _unpack(data: bytes, at: int) -> tuple[Any, int]:
    head, at = data[at], at + 1
    if head < 0x80 or head >= 0xE0:
        return (head if head < 0x80 else head - 256), at
    if head in _FIXED:
        return _FIXED[head], at
    if head in _NUMBERS:
        size = struct.calcsize(_NUMBERS[head])
        return struct.unpack_from(_NUMBERS[head], data, at)[0], at + size
    if 0xD4 <= head <= 0xD8:
        return UNKNOWN, at + 1 + (1 << head - 0xD4)
    if head < 0xC0:
        kind, count = ("map", head & 15) if head < 0x90 else ("list", head & 15) if head < 0xA0 else ("text", head & 31)
    else:
        count = struct.unpack_from(_SIZES[head], data, at)[0]
        at += struct.calcsize(_SIZES[head])
        if 0xC7 <= head <= 0xC9:
            return UNKNOWN, at + 1 + count
        kind = "text" if head in (0xD9, 0xDA, 0xDB) else "bytes" if head < 0xC7 else "list" if head < 0xDE else "map"
    if kind in ("text", "bytes"):
        raw = data[at : at + count]
        return (raw.decode() if kind == "text" else raw), at + count
    items = []
    for _ in range(count * (2 if kind == "map" else 1)):
        item, at = _unpack(data, at)
        items.append(item)
    return (dict(zip(items[::2], items[1::2], strict=True)) if kind == "map" else items), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return value, at


def _as_varint(value: int) -> bytes:
    made = b""
    while value > 127:
        made += bytes([value & 127 | 128])
        value >>= 7
    return made + bytes([value])
