"""The meshes that run on this machine for this checkout: their run folders, how one is started, found, asked and ended.

Standard library only: `./mesh status` imports nothing heavier.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.init import start_time
from meshctl.errors import UserError

CHECKOUT = Path(__file__).resolve().parent.parent
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
CONTROL_SOCKET = "control.sock"
_SOCKET_PATH_BYTES = 107
"""unix(7): sun_path, without the final null byte."""
_END_SECONDS = 30.0
"""What a clean end may take: two rounds of container grace (10 s each) and some."""


@dataclass(frozen=True, slots=True)
class Run:
    """One mesh of this checkout, running or left over."""

    name: str
    folder: Path

    def record(self) -> dict[str, Any] | None:
        """What `lab.init` recorded: pid, start_time, user_namespace; None before that or when the lab is gone."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            record: dict[str, Any] = json.loads((self.folder / "lab.json").read_text(encoding="utf-8"))
            if start_time(record["pid"]) == record["start_time"]:
                return record
        return None

    @property
    def alive(self) -> bool:
        """True while the lab's first process lives."""
        return self.record() is not None

    def call(self, method: str, path: str, seconds: float = 10.0) -> Any:
        """One request to the lab's control API; UserError when the lab does not answer."""
        connection = _UnixConnection(str(self.folder / CONTROL_SOCKET), seconds)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            document = json.loads(answer.read() or b"{}")
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise UserError(
                f"mesh {self.name!r} does not answer ({error})",
                f"./mesh logs --lab shows why; ./mesh down --name {self.name} clears it away",
            ) from error
        finally:
            connection.close()
        if answer.status >= 400:
            raise UserError(str(document.get("error", f"the lab answered {answer.status}")))
        return document

    def names(self) -> dict[str, str]:
        """Each machine of the lab and what it is called now: its peer ID once it was admitted (`lab.names`)."""
        found: dict[str, str] = self.call("GET", "/names")
        return found

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of the lab's own log."""
        with contextlib.suppress(OSError):
            return "\n".join(
                (self.folder / "lab.log").read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
            )
        return ""


def log_file(run: Run, machine: str, container: str) -> Path:
    """Where the lab writes what a container of a machine says, from one boot to the next."""
    return run.folder / "logs" / f"{machine}.{container}.log"


def log_of_peer(run: Run, peer_id: str, container: str) -> Path:
    """`log_file` of the CVM that is called `peer_id` now."""
    machines = {called: machine for machine, called in run.names().items()}
    return log_file(run, machines.get(peer_id, peer_id), container)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, seconds: float) -> None:
        super().__init__("lab", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        """Connects to the socket's path."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def base_folder() -> Path:
    """Where run folders are: short, because the path of a unix socket has room for 107 bytes (unix(7))."""
    return Path(tempfile.gettempdir()) / f"cvm-mesh-{os.getuid()}"


def run_of(name: str) -> Run:
    """The run called `name`, existing or not."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is no name for a mesh: expected lower-case letters, digits and dashes, at most 32",
            "--name my-mesh",
        )
    key = hashlib.sha256(str(CHECKOUT).encode()).hexdigest()[:8]
    return Run(name, base_folder() / f"{key}-{name}")


def all_runs() -> list[Run]:
    """Every run folder of this checkout."""
    prefix = run_of("x").folder.name.removesuffix("x")
    folders = sorted(base_folder().glob(f"{prefix}*")) if base_folder().exists() else []
    return [Run(folder.name.removeprefix(prefix), folder) for folder in folders]


def find(name: str | None) -> Run:
    """The running mesh called `name`, or the only one that runs."""
    alive = [run for run in all_runs() if run.alive]
    if name is not None:
        run_of(name)  # what can be no name is answered with the rule
        chosen = [run for run in alive if run.name == name]
        if not chosen:
            known = ", ".join(run.name for run in alive) or "none"
            raise UserError(
                f"no mesh called {name!r} is running; running: {known}", "./mesh up clusters/starter --name " + name
            )
        return chosen[0]
    if not alive:
        raise UserError("no mesh is running in this checkout", "./mesh demo, or ./mesh up clusters/starter")
    if len(alive) > 1:
        raise UserError(
            f"several meshes are running: {', '.join(run.name for run in alive)}", f"add --name {alive[0].name}"
        )
    return alive[0]


def nearest(peer: str, known: Iterable[str]) -> str:
    """What to try instead of a CVM that this mesh does not have: the nearest name, and all there are. Pure."""
    names = sorted(known)
    close = difflib.get_close_matches(peer, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}this mesh has {', '.join(names)}"


@contextlib.contextmanager
def claim(run: Run) -> Iterator[None]:
    """Inside, no other process of this user starts a mesh of that name. UserError when one does, or one is running."""
    # An abstract name: the kernel frees it with its holder, and no file is left behind.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as lock:
        try:
            lock.bind(f"\0cvm-mesh-{os.getuid()}-{run.folder.name}")
        except OSError as error:
            raise UserError(
                f"another ./mesh is starting a mesh called {run.name!r} right now",
                "wait for it, or choose another --name",
            ) from error
        _check_new(run)
        yield


def _check_new(run: Run) -> None:
    if run.alive:
        raise UserError(
            f"a mesh called {run.name!r} is running already", f"./mesh down --name {run.name}, or choose another --name"
        )
    longest = str(run.folder / CONTROL_SOCKET)
    if len(os.fsencode(longest)) > _SOCKET_PATH_BYTES:
        raise UserError(
            f"{longest!r} is too long: the path of a unix socket has room for {_SOCKET_PATH_BYTES} bytes",
            "set TMPDIR to a shorter folder, such as /tmp, or choose a shorter --name",
        )


def _make_base() -> Path:
    """Makes the folder of all runs, private to its owner."""
    base = base_folder()
    base.mkdir(mode=0o700, exist_ok=True)
    if base.stat().st_uid != os.getuid() or base.is_symlink():
        raise UserError(f"{base} belongs to somebody else", "set TMPDIR to a folder of your own")
    return base


def files_of(run: Run) -> Path:
    """Where a demo has the files of the cluster that it brings up as `run`: beside the run folder, which is empty until
    the lab begins. It goes with the mesh.
    """
    return base_folder() / f"files-{run.folder.name}"


def create_files(run: Run) -> Path:
    """`files_of`, new and empty. UserError when that mesh runs."""
    _check_new(run)
    folder = _make_base() / files_of(run).name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return folder


def create_folder(run: Run) -> None:
    """Makes the run folder, private to its owner; clears what a crashed mesh of that name left."""
    _check_new(run)
    _make_base()
    shutil.rmtree(run.folder, ignore_errors=True)
    (run.folder / "logs").mkdir(parents=True, mode=0o700)
    run.folder.chmod(0o700)


def launch(run: Run, request: Path, inherited: tuple[int, ...], module: str = "lab.host") -> None:
    """Starts the lab of `run`; returns when its first process is recorded, or raises UserError with what it said."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-S", "-m", "lab.init", str(run.folder), sys.executable, "-m", module, str(request)]
    with (run.folder / "lab.log").open("ab") as log:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=CHECKOUT,
            pass_fds=inherited,
            check=False,
        )
    if done.returncode != 0 or not run.alive:
        raise UserError(
            f"the lab could not start:\n{run.log_tail()}",
            "namespaces need root, or unprivileged user namespaces (see README)",
        )


def end(run: Run, *, at_once: bool = False) -> None:
    """Ends a mesh and removes everything that belongs to it; also what a crashed one left.

    `at_once`: without letting its CVMs shut down, as befits a mesh that never served.
    """
    record = run.record()
    if record is not None:
        pid = record["pid"]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        if at_once or not _gone(run, _END_SECONDS):
            # The first process takes every process, mount and namespace of the lab with it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            if not _gone(run, 5.0):
                raise UserError(f"process {pid} of mesh {run.name!r} does not end", f"look at /proc/{pid}/status")
    for folder in (run.folder, files_of(run)):
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        base_folder().rmdir()


def _gone(run: Run, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while run.alive:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
