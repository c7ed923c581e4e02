"""What environment variables hold, as types: one parser a shape. Pure; ValueError says what was expected."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

LEVELS = ("debug", "info", "warning", "error")


def text(value: str) -> str:
    """Printable text without spaces around it."""
    if value != value.strip() or not value.isprintable():
        raise ValueError(f"is {value!r:.100}, expected printable text without spaces around it")
    return value


def flag(value: str) -> bool:
    """`0` or `1`."""
    if value not in ("0", "1"):
        raise ValueError(f"is {value!r:.100}, expected 0 or 1")
    return value == "1"


def path(value: str) -> Path:
    """An absolute path."""
    if not value.startswith("/"):
        raise ValueError(f"is {value!r:.100}, expected an absolute path")
    return Path(value)


def level(value: str) -> str:
    """A log level."""
    if value not in LEVELS:
        raise ValueError(f"is {value!r:.100}, expected debug, info, warning or error")
    return value


def base64_bytes(value: str) -> bytes:
    """Bytes in base64."""
    try:
        return base64.b64decode(value, validate=True)
    except ValueError:  # binascii.Error is one, and text that is not ASCII gives another
        raise ValueError(f"is {value[:20]!r}..., expected base64") from None


def json_list(value: str, what: str) -> list[Any]:
    """A JSON list of `what` (for the message); the items are the caller's to check."""
    try:
        tree = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error}), expected a list of {what}") from None
    if not isinstance(tree, list):
        raise ValueError(f"is {value[:40]!r}, expected a JSON list of {what}")
    return tree


def https_urls(value: str) -> tuple[str, ...]:
    """A JSON list of https URLs without a path, one at least."""
    urls = json_list(value, "https URLs")
    for url in urls:
        if not isinstance(url, str) or not _is_https_base(url):
            raise ValueError(f"holds {url!r:.100}, expected https URLs without a path")
    if not urls:
        raise ValueError("is empty, expected one https URL at least")
    return tuple(url.rstrip("/") for url in urls)


def http_url(value: str) -> str:
    """An http or https URL."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"is {value!r:.100}, expected an http or https URL")
    return value.rstrip("/")


def _is_https_base(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme == "https" and bool(parts.hostname) and parts.path in ("", "/") and parts.port != 0
    except ValueError:
        return False
