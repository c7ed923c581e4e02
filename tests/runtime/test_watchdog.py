from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from runtime.watchdog import CODE
from tests.project import sources
from tests.support import ROOT, popen, unread_pipe

PROGRAM = """
import asyncio, os, re, signal, sys, time
from runtime import output, watchdog

def stands():
    {stands}

async def main():
    with watchdog.watching(seconds={seconds}, step=0.05):
        await asyncio.sleep(0.2)
        print("up", flush=True)
        {then}
        stands()

{begin}
asyncio.run(main())
"""


def start(stands: str, *, seconds: float = 0.5, then: str = "", begin: str = "output.begin()") -> subprocess.Popen[str]:
    script = PROGRAM.format(stands=stands, seconds=seconds, then=then, begin=begin)
    return popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("begin", ["output.begin()", ""], ids=["with an output queue", "without"])
@pytest.mark.parametrize("stands", ["time.sleep(3600)", "while True: pass", "os.read(os.pipe()[0], 1)"])
def test_a_loop_that_stands_still_ends_its_process(stands: str, begin: str) -> None:
    """With an exit code of its own, and the place where it stood on stderr."""
    process = start(stands, begin=begin)
    _, told = process.communicate(timeout=60)
    assert process.returncode == CODE
    assert "the event loop has stood still for 0.5 s" in told
    assert "in stands" in told


def test_computing_in_c_without_an_end_ends_it_too() -> None:
    """A regular expression keeps the interpreter's lock, so no thread of ours has a turn."""
    process = start("re.match('(a+)+$', 'a' * 60 + 'b')")
    _, told = process.communicate(timeout=120)
    assert process.returncode == signal.SIGPROF
    assert "in stands" in told


def test_the_first_process_of_a_container_ends_too() -> None:
    """The kernel spares it from signals that nothing handles."""
    inner = PROGRAM.format(stands="re.match('(a+)+$', 'a' * 60 + 'b')", seconds=0.5, then="", begin="output.begin()")
    line = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", inner]
    if os.geteuid() != 0 or subprocess.run([*line[:4], "true"], check=False, capture_output=True).returncode:
        pytest.skip("makes a PID namespace: run as root, or through ./mesh test")
    with popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        assert process.wait(timeout=120) == signal.SIGPROF


def test_a_process_that_was_stopped_goes_on() -> None:
    """For far longer than its loop may stand still; neither is long work that lets the loop have its turns."""
    process = start("sys.exit(3)", seconds=0.4, then="await asyncio.sleep(2)\n        print('ends', flush=True)")
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    for _ in range(8):
        process.send_signal(signal.SIGSTOP)
        # How long it is stopped is what this is about. Several times: either thread may be the first to go on.
        time.sleep(0.5)
        process.send_signal(signal.SIGCONT)
    out, told = process.communicate(timeout=60)
    assert (process.returncode, out, told) == (3, "ends\n", "")


def test_a_reader_of_stderr_that_stands_still_keeps_nothing_alive() -> None:
    """What nobody reads is not waited for."""
    for stands, code in (("time.sleep(3600)", CODE), ("re.match('(a+)+$', 'a' * 60 + 'b')", signal.SIGPROF)):
        script = PROGRAM.format(stands=stands, seconds=0.5, then="", begin="output.begin()")
        with unread_pipe() as log, popen([sys.executable, "-c", script], cwd=ROOT, stdout=log, stderr=log) as process:
            assert process.wait(timeout=120) == code


def test_every_program_with_a_loop_is_watched() -> None:
    """Whoever puts a process's output behind a queue has its loop watched, too."""
    texts = {path: (ROOT / path).read_text(encoding="utf-8") for path in sources()}
    programs = [path for path, text in texts.items() if re.search(r"^ +output\.begin\(", text, re.MULTILINE)]
    assert len(programs) >= 4
    assert [str(path) for path in programs if "watchdog.watching()" not in texts[path]] == []
