"""Logging set-up: one line per event on stderr, `key=value` pairs, secrets hidden.

Code everywhere uses the standard `logging` module: a constant text as message, the particulars in `extra={...}`.

How many lines there are of one kind is limited (`runtime.restraint`), and what is not written is counted. A kind is a
place in the code, and the refusal's code where there is one. What anybody can cause says `**BY_STRANGERS` in its
`extra`, and has a low limit. The libraries' lines have it too: they tell of connections.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

from runtime.restraint import Allowance, Restraint

_STANDARD = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {"message", "asctime", "taskName"}
_HIDDEN = ("token", "secret", "password", "lease", "private", "gossip")
"""Parts of field names whose values are never shown. `Secret` values hide themselves under any name."""
_HARMLESS = frozenset({"lease_seconds", "token_expires_at"})
LEVELS = ("debug", "info", "warning", "error")
BY_STRANGERS: Mapping[str, str] = {"cause": "stranger"}
"""For `extra`: whoever can reach a port decides how often this line is written."""
STRANGERS = Allowance(at_once=20, seconds=10.0)
"""Enough to see what is going on; a day of a flood is some 3 MB for each kind."""
OWN = Allowance(at_once=1000, seconds=0.1)
"""A thousand peers may each be the reason for a line at once. What goes on faster is an error's circle."""
_LIBRARIES = ("asyncio", "aiohttp", "grpc")
NOT_WRITTEN = "further lines of this kind were not written"


def configure(level: str = "info") -> None:
    """Sends all logging of this process to stderr. `level` is one of LEVELS."""
    handler = LimitedHandler(sys.stderr)
    handler.setFormatter(KeyValueFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # aiohttp and asyncio tell of every slow callback and access at info; ours is the story to read.
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def lines_unsaid() -> int:
    """How many lines this process has not written since it began, because there were too many of a kind."""
    return sum(each.unsaid for each in logging.getLogger().handlers if isinstance(each, LimitedHandler))


@dataclass(frozen=True, slots=True)
class _Kind:
    logger: str
    level: int
    place: tuple[str, int]
    code: str | None
    event: str = field(compare=False)


class LimitedHandler(logging.StreamHandler[TextIO]):
    """Writes the lines that their limits let pass, and sooner or later how many it has not written."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._clock = clock
        self._restraint = Restraint()
        self._timer: threading.Timer | None = None

    @property
    def unsaid(self) -> int:
        """Lines that were not written, ever."""
        return self._restraint.total

    def emit(self, record: logging.LogRecord) -> None:
        """Called with the handler's lock."""
        foreign = record.name.partition(".")[0] in _LIBRARIES
        stranger = foreign or getattr(record, "cause", None) == BY_STRANGERS["cause"]
        kind = _Kind(
            record.name,
            record.levelno,
            (record.pathname, record.lineno),
            # Ours, and so one of few; a stranger makes up none.
            getattr(record, "code", None),
            str(record.msg)[:80],
        )
        unsaid = self._restraint.passes(kind, STRANGERS if stranger else OWN, self._clock())
        if unsaid is None:
            if self._timer is None:
                self._tell_later()
            return
        if unsaid:
            record.unsaid = unsaid
        super().emit(record)

    def tell(self) -> None:
        """Writes the counts that are due, of kinds of which no line came meanwhile."""
        self.acquire()
        try:
            self._timer = None
            for kind, unsaid in self._restraint.due(self._clock()):
                extra = {"of": kind.event, "code": kind.code, "unsaid": unsaid} if isinstance(kind, _Kind) else {}
                told = {"name": getattr(kind, "logger", __name__), "msg": NOT_WRITTEN, "unsaid": unsaid, **extra}
                super().emit(logging.makeLogRecord({"levelname": "WARNING", **told}))
            if self._restraint.waits:
                self._tell_later()
        finally:
            self.release()

    def _tell_later(self) -> None:
        self._timer = threading.Timer(STRANGERS.seconds, self.tell)
        self._timer.daemon = True
        self._timer.start()


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
