from __future__ import annotations

import logging

import pytest

from runtime import log
from runtime.log import KeyValueFormatter
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
