from __future__ import annotations

import io
import logging
from collections.abc import Callable

import pytest

from runtime import log
from runtime.log import BY_STRANGERS, NOT_WRITTEN, OWN, STRANGERS, KeyValueFormatter, LimitedHandler
from runtime.secret import Secret


def line(message: str, **extra: object) -> str:
    record = logging.LogRecord("sidecar.it", logging.INFO, "", 0, message, (), None)
    record.created, record.msecs = 1_700_000_000.25, 250.0
    record.__dict__.update(extra)
    return KeyValueFormatter().format(record)


def test_line_is_time_level_logger_event_and_fields() -> None:
    """Fields follow the event in the order in which they were given."""
    assert line("child started", child="envoy", pid=7) == (
        'time=2023-11-14T22:13:20.250Z level=info logger=sidecar.it event="child started" child=envoy pid=7'
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [("two words", '"two words"'), ("a\nb", '"a\\nb"'), ('say "x"', '"say \\"x\\""'), ("", '""'), ("k=v", '"k=v"')],
)
def test_awkward_values_stay_on_one_line(value: str, shown: str) -> None:
    """Spaces, quotes, equals signs and line breaks are quoted, so a peer cannot forge a log line."""
    assert line("it", value=value).endswith(f" value={shown}")


def test_secrets_are_hidden_by_type_and_by_name() -> None:
    """A Secret hides itself; a field named like a secret is hidden whatever it holds; None fields are left out."""
    text = line("it", a=Secret("s3cret"), token="s3cret", Lease="s3cret", lease_seconds=45, b=None)
    assert "s3cret" not in text
    assert text.endswith("a=Secret(***) token=*** Lease=*** lease_seconds=45")


def test_configure_writes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """configure() sets the level and the one handler; exceptions stay on the event's line."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        log.configure("warning")
        logging.getLogger("it").info("not shown")
        try:
            raise ValueError("boom")
        except ValueError:
            logging.getLogger("it").exception("failed")
    finally:
        root.handlers[:], root.level = before
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "event=failed" in lines[0]
    assert "ValueError: boom" in lines[0]


class Limited:
    """A logger of its own with a limited handler, and a clock."""

    def __init__(self, name: str = "it.limited") -> None:
        self.now = 0.0
        self.text = io.StringIO()
        self.handler = LimitedHandler(self.text, lambda: self.now)
        self.handler.setFormatter(KeyValueFormatter())
        # Not one of the process's, which other tests' handlers are on.
        self.log = logging.Logger(name)  # noqa: LOG001
        self.log.addHandler(self.handler)

    def lines(self) -> list[str]:
        """Since the last call."""
        found = self.text.getvalue().splitlines()
        self.text.seek(0)
        self.text.truncate()
        return found


def refuse(it: Limited, code: str = "BAD") -> None:
    it.log.warning("refused", extra={**BY_STRANGERS, "code": code})


def test_what_strangers_cause_is_limited_and_the_rest_is_counted() -> None:
    """By the place in the code and the refusal's code: a flood of one hides no other."""
    it = Limited()
    for _ in range(1_000):
        refuse(it)
    assert len(it.lines()) == STRANGERS.at_once
    refuse(it, "OTHER")
    it.log.warning("ours")
    assert [" unsaid=" in line for line in it.lines()] == [False, False]
    it.now = STRANGERS.seconds
    refuse(it)
    assert it.lines()[0].endswith(f"code=BAD unsaid={1_000 - STRANGERS.at_once}")
    assert it.handler.unsaid == 1_000 - STRANGERS.at_once


def test_a_count_is_told_when_the_flood_has_ended() -> None:
    """In a line of its own, that names event and code."""
    it = Limited()
    for _ in range(STRANGERS.at_once + 7):
        refuse(it)
    it.lines()
    it.now = STRANGERS.seconds
    it.handler.tell()
    (line,) = it.lines()
    assert f'logger=it.limited event="{NOT_WRITTEN}" unsaid=7 of=refused code=BAD' in line
    it.handler.tell()
    assert it.lines() == []


def test_a_library_of_connections_speaks_of_strangers() -> None:
    """Also where it puts the particulars into the message."""
    it = Limited("asyncio")
    for number in range(1_000):
        it.log.error("SSL error in data received, connection %d" % number)  # noqa: UP031 - as libraries do
    assert len(it.lines()) == STRANGERS.at_once


def test_our_own_lines_have_room_for_a_large_mesh() -> None:
    """A thousand at once; an endless circle is held all the same."""
    it = Limited()

    def many(say: Callable[[], None]) -> int:
        for _ in range(OWN.at_once * 3):
            say()
        return len(it.lines())

    assert many(lambda: it.log.info("slot freed")) == OWN.at_once


def test_an_unfinished_count_is_told_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to log anything for that."""
    monkeypatch.setattr(log, "STRANGERS", log.Allowance(at_once=1, seconds=0.01))
    it = Limited()
    refuse(it)
    refuse(it)
    timer = it.handler._timer
    assert timer is not None
    it.now = 0.01
    timer.join(30)
    assert "unsaid=1" in it.lines()[-1]
