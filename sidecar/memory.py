"""Gives back what only the start-up needed: garbage, freed heap, pages of libraries that were used once."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

SETTLE_SECONDS = 2.0
"""How long after the first ready: the links to the other CVMs and the backends' registrations are done by then."""
_MADV_DONTNEED = 4  # asm-generic/mman-common.h
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) r-([-x])p \S+ \S+ [1-9]\d* +/.*\n((?:[A-Z].*\n)*)", re.MULTILINE)


def begin() -> None:
    """To be called first: the imports to come make hundreds of thousands of objects that stay, and to collect among
    them only delays the start."""
    gc.disable()


def settle() -> None:
    """To be called when all is up. What lives by now lives for good, so the collector need not visit it again."""
    gc.collect()
    gc.freeze()
    gc.enable()
    libc = ctypes.CDLL(None)
    # glibc keeps what was freed.
    libc.malloc_trim(0)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, end in clean_ranges(Path("/proc/self/smaps").read_text()):
        # The kernel only forgets that we have these pages; what is still in use comes back from the page cache.
        libc.madvise(start, end - start, _MADV_DONTNEED)


def clean_ranges(smaps: str) -> list[tuple[int, int]]:
    """Mappings of files that cannot be written and have no page of our own: addresses (first, behind the last).

    `smaps` is the text of /proc/PID/smaps. A relocated page of a library (RELRO) is private and dirty, and must stay.
    """
    return [
        (int(start, 16), int(end, 16))
        for start, end, _, figures in _MAPPING.findall(smaps)
        if re.search(r"^Private_Dirty: +0 kB$", figures, re.MULTILINE)
        and re.search(r"^Swap: +0 kB$", figures, re.MULTILINE)
    ]
