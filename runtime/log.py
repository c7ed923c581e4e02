"""Logging set-up: one line per event on stderr, `key=value` pairs, secrets hidden.

Code everywhere uses the standard `logging` module: a constant text as message, the particulars in `extra={...}`.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

_STANDARD = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {"message", "asctime", "taskName"}
_HIDDEN = ("token", "secret", "password", "lease", "private", "gossip")
"""Parts of field names whose values are never shown. `Secret` values hide themselves under any name."""
_HARMLESS = frozenset({"lease_seconds", "token_expires_at"})
LEVELS = ("debug", "info", "warning", "error")


def configure(level: str = "info") -> None:
    """Sends all logging of this process to stderr. `level` is one of LEVELS."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(KeyValueFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # aiohttp and asyncio tell of every slow callback and access at info; ours is the story to read.
    for name in ("asyncio", "aiohttp", "grpc"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


class KeyValueFormatter(logging.Formatter):
    """`time=2026-11-23T01:02:03.456Z level=info logger=sidecar.admission event="admitted" peer_id=api-0`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the record holds."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        pairs: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        for key, value in record.__dict__.items():
            if key not in _STANDARD:
                pairs[key] = redact(key, value)
        if record.exc_info:
            pairs["exception"] = self.formatException(record.exc_info)
        return " ".join(f"{key}={_value(value)}" for key, value in pairs.items() if value is not None)


def redact(name: str, value: Any) -> Any:
    """`value`, or `***` when the field's name says that it is a secret."""
    if value is None or name in _HARMLESS or not any(part in name.lower() for part in _HIDDEN):
        return value
    return "***"


def _value(value: Any) -> str:
    text = str(value)
    plain = text.isprintable() and not any(c in text for c in ' "=') and text != ""
    return text if plain else json.dumps(text)
