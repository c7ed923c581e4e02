from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runtime import output
from runtime.output import LOST, Outlet
from tests.project import sources
from tests.support import ROOT, eventually, popen

LINES = 40_000
"""Of 101 bytes: more than queue and pipes take together."""
WRITE = f"def write():\n  for _ in range({LINES}):\n    print('x' * 100, flush=True)\n"


@contextmanager
def program(script: str, *argv: str, stderr: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """One that has begun; nobody reads its stdout, which its stderr is too."""
    begun = f"import os, signal, subprocess, sys\nfrom runtime import output\noutput.begin()\n{script}"
    read, write = os.pipe()
    process = popen([sys.executable, "-c", begun, *argv], cwd=ROOT, stdout=write, stderr=stderr or write)
    os.close(write)
    process.stdout = os.fdopen(read, "rb")
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def told_lost(text: str) -> int:
    return sum(int(count) for count in re.findall(rf"{re.escape(LOST)}\" count=(\d+)", text))


@pytest.mark.parametrize(
    "writes",
    ["write()", "subprocess.run([sys.executable, '-S', '-c', WRITE + 'write()'], check=True)"],
    ids=["itself", "a child"],
)
async def test_a_stopped_reader_stops_nobody_and_costs_lines(writes: str, tmp_path: Path) -> None:
    """A process and its children write as if somebody read; what is read later and what is counted is all."""
    done = tmp_path / "done"
    script = f"WRITE = {WRITE!r}\nexec(WRITE)\n{writes}\nopen({str(done)!r}, 'w').close()\nsignal.pause()\n"
    with program(script) as process:
        await eventually(done.exists, "it has written all")
        process.kill()
        assert process.stdout is not None
        seen = process.stdout.read().decode()
    assert 0 < seen.count("x" * 100) < LINES


async def test_what_is_lost_is_counted_once_somebody_reads_again(tmp_path: Path) -> None:
    """Lines that came and lines that are said to be lost add up."""
    done = tmp_path / "done"
    script = f"{WRITE}write()\nopen({str(done)!r}, 'w').close()\nsignal.pause()\n"
    with program(script) as process:
        await eventually(done.exists, "it has written all")
        assert process.stdout is not None
        seen = lost = 0
        while seen + lost < LINES:
            line = process.stdout.readline().decode()
            seen += line.startswith("x")
            lost += told_lost(line)
    assert seen + lost == LINES
    assert lost > 0


def test_the_last_words_come_out(tmp_path: Path) -> None:
    """An uncaught error's trace, and a line without an end, are there when the process has ended."""
    with program("print('half', end='', flush=True)\nraise ValueError('at the end')") as process:
        assert process.stdout is not None
        seen = process.stdout.read().decode()
    assert seen.startswith("half")
    assert "ValueError: at the end" in seen


def test_a_process_ends_though_nobody_reads() -> None:
    """It waits for its output for a moment only."""
    with program(f"{WRITE}write()\nraise SystemExit(3)") as process:
        assert process.wait(timeout=60) == 3


def test_stdout_and_stderr_stay_apart(tmp_path: Path) -> None:
    """What goes to two places still does."""
    script = "print('out')\nprint('err', file=sys.stderr)"
    with (tmp_path / "err").open("wb") as err, program(script, stderr=err.fileno()) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b"out\n"
        process.wait()
    assert (tmp_path / "err").read_bytes() == b"err\n"


async def test_a_full_disk_costs_lines_and_it_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is raised; the count is the first that is written afterwards."""
    monkeypatch.setattr(output, "AGAIN_SECONDS", 0.01)
    target, room = os.open("/dev/full", os.O_WRONLY), os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    outlet = Outlet(target)
    outlet.start()
    outlet.put(b"one\n")
    outlet.put(b"two\n")
    await eventually(lambda: outlet.lost == 2, "both are lost")
    os.dup2(room, target)
    outlet.put(b"three\n")
    assert outlet.drain(30)
    text = (tmp_path / "log").read_text()
    assert told_lost(text) == 2
    assert text.endswith("three\n") or text.startswith("three\n")


def test_many_short_lines_are_bounded_too() -> None:
    """By the memory that they take, not by their letters."""
    outlet = Outlet(2, most=10_000)
    for _ in range(1_000):
        outlet.put(b"\n")
    assert outlet.lost == 1_000 - 10_000 // (output.LINE_BYTES + 1)


def test_every_program_that_logs_begins_with_it() -> None:
    """Whoever sets up logging for a process puts its output behind a queue, too."""
    texts = {path: (ROOT / path).read_text(encoding="utf-8") for path in sources()}
    programs = [path for path, text in texts.items() if re.search(r"^ +(log\.)?configure\(", text, re.MULTILINE)]
    assert len(programs) >= 4
    assert [str(path) for path in programs if "output.begin()" not in texts[path]] == []
