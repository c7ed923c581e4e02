"""What a name may be: of clusters, groups, routes and hosts. Pure."""

from __future__ import annotations

import re

MAX_HOST = 253
"""Characters of a host name (RFC 1035 2.3.4, without the dot at the end)."""
_LABEL = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_HOST_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"{_HOST_LABEL}(\.{_HOST_LABEL})*")


def why_no_label(name: str) -> str | None:
    """Why `name` is no DNS label, as the end of a sentence; None when it is one."""
    if _LABEL.fullmatch(name):
        return None
    return f"is {name!r:.80}, expected a DNS label: a-z, 0-9 and '-', at most 63, first a letter, last no '-'"


def why_no_host(name: str) -> str | None:
    """Why `name` is no host name, as the end of a sentence; None when it is one."""
    if len(name) <= MAX_HOST and _HOST.fullmatch(name) and not name.rpartition(".")[2].isdigit():
        return None
    return (
        "expected a host name of a-z, 0-9, '-' and '_' with dots between its parts: each of at most 63, the last one "
        f"not a number, {MAX_HOST} in all, no dot at the end"
    )
