"""The app-compose texts that were measured: who has one can read what a compose hash of the manifest stands for. Pure.

A text proves itself. Its SHA-256 is the compose hash that the owners signed and that each CVM's quote has.
Source: dstack measures `compose-hash` as the SHA-256 of app-compose.json's bytes (Dstack-TEE/dstack, dstack-util).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from topology.manifest import Manifest

MAX_DOCUMENT = 256 << 10
"""Bytes of one text. Consul's KV takes 512 KiB in one value, and real ones have a few KiB."""


class DocumentError(ValueError):
    """A text that is none of those that the manifest names. The message says which."""


def named(manifest: Manifest) -> dict[str, str]:
    """The compose hashes that the manifest names (lower-case hex), each with its group or `coordinator`."""
    found = {item.lower(): "coordinator" for item in manifest.coordinators.compose_hashes}
    for group, entry in manifest.groups.items():
        found.update((item.lower(), group) for item in entry.compose_hashes)
    return found


def digest(text: str) -> str:
    """The compose hash of `text`."""
    return hashlib.sha256(text.encode()).hexdigest()


def check(documents: Mapping[str, str], hashes: Iterable[str]) -> None:
    """DocumentError unless each of `documents` (by its compose hash) is the text of one of `hashes`."""
    wanted = frozenset(hashes)
    for name, text in documents.items():
        if name not in wanted:
            raise DocumentError(f"the manifest names no compose hash {name:.64}")
        try:
            size, found = len(text.encode()), digest(text)
        except UnicodeEncodeError as error:
            raise DocumentError(f"the text given for {name} is no UTF-8: {error.reason}") from error
        if size > MAX_DOCUMENT:
            raise DocumentError(f"the text of {name} has {size} bytes, expected {MAX_DOCUMENT} at most")
        if found != name:
            raise DocumentError(f"the text given for {name} has the compose hash {found}")
