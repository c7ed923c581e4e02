"""Makes `.venv` in the checkout: what `./mesh` does on a first run, before it hands over.

Runs on the system's Python with the standard library only. One process sets up at a time; an interrupted set-up is
noticed by its mark (`meshctl.stamp`) and started afresh. The Go tools are built in the background while pip works.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from meshctl import requirements, stamp
from meshctl.console import Console, Outcome, Progress, elapsed, stream
from meshctl.ending import Ended, catching
from meshctl.errors import USAGE_EXIT_CODE, UserError, render
from meshctl.locks import exclusive

NEEDS_TOOLS = frozenset({"bench", "chaos", "demo", "test", "tools", "up"})
"""Commands that want the Go tools, so their build starts beside pip's downloads."""
POINTER = "cvm-mesh.pth"
"""In site-packages; one line, the checkout: an editable installation, without a build back-end to fetch."""
_INTERRUPTED = "mesh: interrupted; the next ./mesh makes the set-up afresh"
_WORTH_SHOWING = ("Collecting", "Downloading", "Using cached", "Installing", "Building", "WARNING")
_OFFLINE_SIGNS = (
    "NewConnectionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "Temporary failure in name resolution",
    "Name or service not known",
    "Network is unreachable",
    "Cannot connect to proxy",
)
_OTHER_FILE = "DO NOT MATCH THE HASHES"
"""In pip's words when a file has none of the hashes in the list."""


def run(root: str, argv: Sequence[str]) -> int:
    """Brings the environment of the checkout `root` up to date; 0, or the exit code after the problem was printed."""
    progress = Console()

    def waiting(seconds: float) -> None:
        progress.update(f"another ./mesh sets up this checkout; waiting for it ({elapsed(seconds)})")

    try:
        _check_writable(Path(root))
        with catching(), exclusive(Path(root) / ".mesh" / "setup.lock", waiting):
            # Whoever held the lock before us may have done the work.
            if not stamp.is_current(root):
                _install(Path(root), argv, progress)
    except UserError as error:
        progress.line(render(error))
        return USAGE_EXIT_CODE
    except OSError as error:
        progress.line(
            render(UserError(f"the set-up in {root} failed: {error}", "free the path that is named, then run it again"))
        )
        return USAGE_EXIT_CODE
    except KeyboardInterrupt:
        progress.line(_INTERRUPTED)
        return 130
    except Ended as ended:
        # The terminal may be gone.
        with contextlib.suppress(OSError):
            progress.line(_INTERRUPTED)
        return 128 + ended.number
    return 0


def _check_writable(root: Path) -> None:
    if not os.access(root, os.W_OK):
        raise UserError(
            f"{root} is read-only for this user, and the first run makes .venv there",
            "make the checkout writable, or clone it where you may write",
        )


def _install(root: Path, argv: Sequence[str], progress: Progress) -> None:
    progress.line("first run, or its inputs changed: setting up .venv (this happens once)")
    venv = root / ".venv"
    mark = Path(stamp.mark_path(str(root)))
    _make_venv(root, venv, progress)
    mark.write_text(stamp.INCOMPLETE + "\n", encoding="ascii")
    builder = _install_tools_in_background(root) if argv and argv[0] in NEEDS_TOOLS else None
    try:
        _install_packages(root, progress)
    except BaseException:
        if builder is not None:
            builder.terminate()
        raise
    _point_at(root)
    mark.write_text(stamp.key(str(root)) + "\n", encoding="ascii")


def _make_venv(root: Path, venv: Path, progress: Progress) -> None:
    """An environment with pip at `venv`; one that was interrupted or whose Python is gone is replaced."""
    if venv.exists():
        if _works(root) and stamp.installed(str(root)) != stamp.INCOMPLETE:
            return
        if not (venv / "pyvenv.cfg").exists() and any(venv.iterdir()):
            raise UserError(f"{venv} exists and is not a virtual environment", f"move {venv} away")
        shutil.rmtree(venv)
    _need_ensurepip(progress)

    def tick(_: str, seconds: float) -> None:
        progress.update(f"making .venv with Python {sys.version.split()[0]} ({elapsed(seconds)})")

    outcome = stream([sys.executable, "-m", "venv", str(venv)], on_tick=tick)
    if outcome.code != 0:
        shutil.rmtree(venv, ignore_errors=True)
        raise UserError("\n".join(("python -m venv failed:", *outcome.tail[-6:])), f"install {_venv_package()}")


def _works(root: Path) -> bool:
    check = "import sys, pip; sys.exit(sys.version_info < (3, 11))"
    python = stamp.python_in(str(root))
    try:
        return subprocess.run([python, "-c", check], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _venv_package() -> str:
    """Debian and Ubuntu keep ensurepip out of python3; each Python has a package of its own for it."""
    return f"python3.{sys.version_info.minor}-venv"


def _need_ensurepip(progress: Progress) -> None:
    if _has_ensurepip():
        return
    package = _venv_package()
    missing = UserError(
        f"{sys.executable} lacks ensurepip, which makes virtual environments",
        f"as root: apt-get install {package}",
    )
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise missing
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for step in (["update"], ["install", "-y", "--no-install-recommends", package]):

        def tick(line: str, seconds: float, name: str = step[0]) -> None:
            progress.update(f"apt-get {name} for {package} ({elapsed(seconds)}) {line}")

        outcome = stream(["apt-get", *step], on_tick=tick, env=environ)
        # A failed update may only mean one broken third-party source; the installation decides.
        if outcome.code != 0 and step[0] == "install":
            raise UserError("\n".join((f"apt-get could not install {package}:", *outcome.tail[-4:])), missing.remedy)
    progress.line(f"installed {package} with apt-get")
    if not _has_ensurepip():
        raise missing


def _has_ensurepip() -> bool:
    importlib.invalidate_caches()
    spec = importlib.util.find_spec("ensurepip")
    # Without an origin it is an empty folder that some package left behind.
    return spec is not None and spec.origin is not None


def _install_packages(root: Path, progress: Progress) -> None:
    log_path = root / ".mesh" / "setup.log"
    environ = dict(os.environ)
    # The user's own PIP_RETRIES wins; pip's default of 5 makes a machine without network wait for minutes.
    environ.setdefault("PIP_RETRIES", "2")
    environ.setdefault("PIP_DISABLE_PIP_VERSION_CHECK", "1")

    shown = ""

    def tick(line: str, seconds: float) -> None:
        nonlocal shown
        if line.lstrip().startswith(_WORTH_SHOWING):
            shown = line.strip()
        progress.update(f"installing Python packages ({elapsed(seconds)}) {shown}")

    with tempfile.TemporaryDirectory() as scratch, log_path.open("w", encoding="utf-8") as log:
        # A pip that is killed leaves its work behind, in /tmp unless it is told where to have it.
        environ["TMPDIR"] = scratch
        pip = [stamp.python_in(str(root)), "-m", "pip", "install", "--progress-bar", "off"]
        # Wheels first: what is built from source is built with the setuptools among them.
        steps = (("setup", requirements.WHEELS), ("sources", requirements.BUILT))
        taken = 0.0
        for place, options in steps:
            listed = ["-r", str(requirements.path(root, place))]
            outcome = stream([*pip, *options, *listed], on_tick=tick, env=environ, log=log)
            if outcome.code != 0:
                raise _pip_error(outcome, log_path)
            taken += outcome.seconds
    progress.line(f"installed the Python packages in {elapsed(taken)}")


def _pip_error(outcome: Outcome, log_path: Path) -> UserError:
    if any(sign in line for line in outcome.tail for sign in _OFFLINE_SIGNS):
        return UserError(
            "pip cannot reach the Python package index, and the set-up needs it once",
            "connect this machine to the internet, or point pip at a mirror (PIP_INDEX_URL, PIP_PROXY)\n"
            f"pip's whole output is in {log_path}",
        )
    errors = [line for line in outcome.tail if line.startswith("ERROR")] or list(outcome.tail[-4:])
    if any(_OTHER_FILE in line for line in outcome.tail):
        return UserError(
            "\n".join(("the package index gave another file than the one that was tested, by its SHA-256:", *errors)),
            "use an index that passes the makers' files on unchanged (PIP_INDEX_URL); where they published another\n"
            "file under the same version, look at it before python -m meshctl.requirements takes it (CONTRIBUTING.md)\n"
            f"pip's whole output is in {log_path}",
        )
    return UserError("\n".join(("pip could not install the packages:", *errors)), f"read pip's output in {log_path}")


def _point_at(root: Path) -> None:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    place = subprocess.run(
        [stamp.python_in(str(root)), "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    (Path(place) / POINTER).write_text(f"{root}\n", encoding="utf-8")


def _install_tools_in_background(root: Path) -> subprocess.Popen[bytes]:
    """Starts the builder and leaves it alone: the command waits for it, under the builder's own lock."""
    return subprocess.Popen(
        [stamp.python_in(str(root)), "-P", "-m", "meshctl.tools_install"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
