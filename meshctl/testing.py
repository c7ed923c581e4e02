"""`./mesh test`: the tools, the right namespaces, then pytest with the caller's arguments. Lint and types are tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from meshctl.errors import UserError
from meshctl.info import ROOT

MOST_WORKERS = 4
"""Processes that share the whole suite, at most; one for each processor, and two at least. Tests mostly wait, for
elections and time limits: one process keeps a third of a processor busy (measured with /proc/stat). With three on two
processors a test of a database's leader, which has to answer within seconds, was too late once. Above four the longest
group, the tests on a Docker engine, decides how long the run takes.
"""


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> int:
    """Run every test, from pure to end-to-end; ARGUMENTS go to pytest (./mesh test tests/dns -k NAME).

    Exit code: pytest's own.
    """
    from meshctl import tools, userns
    from meshctl.console import Console

    tools.ensure(progress=Console())
    if shutil.which("docker") and (not arguments or any("compose" in text for text in arguments)):
        # Minutes, once: better here, where it is seen, than inside a test. Without it those tests say why they skip.
        with contextlib.suppress(UserError):
            tools.ensure(("docker-compose",), Console())
    userns.require()
    chosen = absolute(arguments, Path.cwd())
    argv = [sys.executable, "-P", "-m", "pytest", *workers(chosen, os.cpu_count() or 1), *chosen]
    # A child, not exec: pytest must find the checkout as its working directory, and Ctrl-C must come back to us.
    with subprocess.Popen(argv, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        return wait(process)


def workers(arguments: Sequence[str], processors: int) -> list[str]:
    """Pytest's options that run the whole suite in several processes; none where `arguments` name tests or say how.

    `arguments` as `absolute` returns them.
    """
    if any(a.startswith(("/", "-n", "--numprocesses", "-s", "--pdb", "--capture")) for a in arguments):
        return []
    return ["-n", str(min(max(processors, 2), MOST_WORKERS)), "--dist", "loadfile", "--no-loadscope-reorder"]


def wait(process: subprocess.Popen[bytes]) -> int:
    """Waits for pytest, through an interrupt as well: it gets the same signal and still has to clean up and report."""
    while True:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            continue
        return code if code >= 0 else 128 - code


def absolute(arguments: Sequence[str], here: Path) -> list[str]:
    """`arguments` with those that name something relative to `here` made absolute, for pytest runs in the checkout.

    `tests/test_x.py::test_y` keeps its part after the colons; anything that names no file is left alone.
    """
    result = []
    for argument in arguments:
        path, colons, rest = argument.partition("::")
        exists = not path.startswith("-") and path != "" and (here / path).exists()
        result.append(f"{(here / path).resolve()}{colons}{rest}" if exists else argument)
    return result
