"""Progress on and off a terminal, and running programs."""

from __future__ import annotations

import io
import sys

import pytest

from meshctl.console import PLAIN_WIDTH, Console, elapsed, fit, stream


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_progress_is_rare() -> None:
    """Off a terminal, updates within the interval of the last line are dropped and the rest are plain lines."""
    now = [0.0]
    out = io.StringIO()
    console = Console(out, clock=lambda: now[0])
    for second in range(45):
        now[0] = float(second)
        console.update(f"at {second}")
    console.line("done")
    assert out.getvalue().splitlines() == ["at 0", "at 20", "at 40", "done"]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_progress_line_that_is_cut_says_so(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fits is whole; what is kept is never cut."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(PLAIN_WIDTH + 1))
    out = _Terminal() if terminal else io.StringIO()
    for text, wanted in (("x" * PLAIN_WIDTH, "x" * PLAIN_WIDTH), ("x" * 999, "x" * (PLAIN_WIDTH - 1) + "…")):
        Console(out).update(text)
        assert out.getvalue().strip("\n").endswith(wanted)
    Console(out).line("x" * 999)
    assert out.getvalue().endswith("x" * 999 + "\n")


def test_a_line_is_cut_between_words() -> None:
    """Half a word may be another one; a single long word is cut all the same."""
    assert fit("all of it", 9) == "all of it"
    assert fit("api-0: route worker waits", 22) == "api-0: route worker …"
    assert fit("api-0: route worker waits", 21) == "api-0: route worker …"
    assert fit("api-0: route worker waits", 20) == "api-0: route …"
    assert fit("see " + "x" * 99, 20) == "see " + "x" * 15 + "…"
    assert [len(fit("a bc", width)) for width in (1, 2, 3)] == [1, 2, 3]


def test_terminal_line_is_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, an update replaces the one before it, and a kept line replaces the last update."""
    monkeypatch.setenv("TERM", "xterm")
    out = _Terminal()
    console = Console(out)
    console.update("one")
    console.update("two")
    console.line("done")
    assert out.getvalue() == "\r\x1b[Kone\r\x1b[Ktwo\r\x1b[Kdone\n"


def test_stream_reports_lines_and_code() -> None:
    """Each line arrives once, stdout and stderr together; a carriage return ends a line; the exit code is kept."""
    code = "import sys; sys.stderr.write('a\\rb\\n'); sys.stderr.flush(); print('c', end='', flush=True); sys.exit(3)"
    seen: list[str] = []
    log = io.StringIO()
    outcome = stream([sys.executable, "-c", code], on_tick=lambda line, _: seen.append(line), log=log)
    assert [line for line in seen if line] == ["a", "b", "c"]
    assert (outcome.code, outcome.tail, log.getvalue()) == (3, ("a", "b", "c"), "a\nb\nc\n")


def test_stream_kills_the_program_when_it_is_left() -> None:
    """An exception in the middle (an interrupt) does not leave the program running."""

    def stop(line: str, seconds: float) -> None:
        raise KeyboardInterrupt

    code = "import time; print('up', flush=True); time.sleep(600)"
    with pytest.raises(KeyboardInterrupt):
        stream([sys.executable, "-c", code], on_tick=stop)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.9, "59 s"), (187, "3 min 07 s")])
def test_elapsed_reads_well(seconds: float, text: str) -> None:
    """Durations are shown in seconds, then minutes and seconds."""
    assert elapsed(seconds) == text
