"""`python -m tests.fuzz.run [NAME…] [--seconds N] [--keep FOLDER]`: coverage-guided fuzzing of each boundary in turn.

Each harness runs in a process of its own, for a finding ends it. Prints a line a harness: runs, branches reached
(libFuzzer's `cov`) at first and at last, inputs that reached new ones. A finding is written to `--keep`, and the exit
code is 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.registry import CORPUS, HARNESSES
from tests.project import PACKAGES
from tests.support import ROOT, popen

SECONDS = 60
RUN_SECONDS = 60
"""A single run that takes so long is a finding: an input that costs us a minute. Wide, for a busy machine."""
MEMORY = 2048
"""MiB of the process, its packages included, which alone have some 300."""
FINISH_SECONDS = 120.0
"""Beside the time of fuzzing: to load and instrument the packages, and to read the inputs."""
GUIDED = tuple(sorted(set(PACKAGES) - {"lab", "meshctl", "workloads"}))
"""Packages whose branches guide the fuzzer: those of the programs in a CVM."""
_LINE = re.compile(r"^#(\d+)\s+\S+\s+cov: (\d+) ft: \d+ corp: (\d+)", re.MULTILINE)
_RUNS = re.compile(r"^stat::number_of_executed_units:\s*(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one harness."""

    name: str
    runs: int
    first: int
    """Branches that the inputs reach by which it begins, as the next."""
    last: int
    inputs: int
    """How many it keeps, each of which reaches something that no other does."""
    finding: str
    """The end of what the fuzzer said; empty where all is well."""

    def __str__(self) -> str:
        end = "FOUND" if self.finding else "-"
        return f"{self.name:24} {self.runs:>10,} {self.first:>6} {self.last:>6} {self.inputs:>6}  {end}"


def available() -> bool:
    """Whether the fuzzer is installed: it is made for some platforms and Pythons only."""
    return importlib.util.find_spec("atheris") is not None


def fuzz(name: str, seconds: int, keep: Path) -> Outcome:
    """Fuzzes harness `name` for that long. What was found is in `keep`."""
    keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        found = Path(scratch) / "inputs"
        found.mkdir()
        argv = [
            *(sys.executable, "-m", "tests.fuzz.run", "--inside", name, str(found), str(CORPUS / name)),
            *(f"-max_len={HARNESSES[name].most}", f"-max_total_time={seconds}", f"-timeout={RUN_SECONDS}"),
            *(f"-rss_limit_mb={MEMORY}", f"-artifact_prefix={keep}/{name}-", "-print_final_stats=1"),
        ]
        environ = {**os.environ, "TMPDIR": scratch}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = popen(argv, cwd=ROOT, env=environ, **pipes)
        try:
            said = process.communicate(timeout=seconds + RUN_SECONDS + FINISH_SECONDS)[0].decode(errors="replace")
        finally:
            process.kill()
            process.wait()
    return outcome(name, said, process.returncode)


def outcome(name: str, said: str, code: int) -> Outcome:
    """What the fuzzer's output `said` and its exit code tell. Pure."""
    lines = [tuple(map(int, found.groups())) for found in _LINE.finditer(said)]
    runs = _RUNS.search(said)
    (_, first, _), (count, last, inputs) = (lines[0], lines[-1]) if lines else ((0, 0, 0), (0, 0, 0))
    finding = said[-4000:] if code else ""
    return Outcome(
        name=name, runs=int(runs[1]) if runs else count, first=first, last=last, inputs=inputs, finding=finding
    )


def _inside(name: str, arguments: Sequence[str]) -> None:
    """The fuzzer's own process: it ends in `atheris.Fuzz`."""
    import atheris

    for loaded in [each for each in sys.modules if each.partition(".")[0] in (*PACKAGES, "tests")]:
        del sys.modules[loaded]
    with atheris.instrument_imports(include=list(GUIDED)):
        from tests.fuzz import registry
    harness = registry.HARNESSES[name]
    logging.getLogger("coordinator").setLevel(logging.CRITICAL)

    def once(data: bytes) -> None:
        harness(data)

    atheris.Setup([sys.argv[0], *arguments], once)
    atheris.Fuzz()


def main(argv: Sequence[str]) -> int:
    """The command."""
    if argv[:1] == ["--inside"]:
        _inside(argv[1], argv[2:])
        return 0
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run")
    parser.add_argument("names", nargs="*", metavar="NAME", help="harnesses; all where none is named")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="for each")
    parser.add_argument("--keep", type=Path, default=Path(".mesh/fuzz"), help="folder for what is found")
    said = parser.parse_args(argv)
    if unknown := sorted(set(said.names) - set(HARNESSES)):
        parser.error(f"there is no harness {unknown[0]!r}; expected {', '.join(sorted(HARNESSES))}")
    if not available():
        print("atheris is not installed: it has no build for this Python or machine", file=sys.stderr)
        return 2
    print(f"{'harness':24} {'runs':>10} {'first':>6} {'last':>6} {'inputs':>6}  found")
    outcomes = []
    for name in said.names or sorted(HARNESSES):
        outcomes.append(fuzz(name, said.seconds, said.keep.absolute()))
        print(outcomes[-1], flush=True)
        if outcomes[-1].finding:
            print(outcomes[-1].finding, file=sys.stderr)
    return int(any(each.finding for each in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
