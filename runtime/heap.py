"""Has the C library give large blocks back to the kernel when they are freed. IO: this process's heap."""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD = -3  # malloc.h of glibc
_BYTES = 128 << 10
"""glibc's own value at the start. It raises it to the size of whatever was freed last, up to 32 MiB, and then blocks of
that size come from a heap that only shrinks from its end. asyncio has a block of 256 KiB for each TLS connection."""


def give_back() -> bool:
    """Once, at the start of a process. False where the C library does not know it: musl needs no such word."""
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _BYTES))
    except AttributeError:
        return False
