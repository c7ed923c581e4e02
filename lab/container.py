"""Runs one program as a container: own process, mount and host-name namespaces in the network namespace of its CVM.

`python -S -m lab.container run SPEC.json` starts one and stays as its parent; `… enter PID USERNS -- ARGV` runs a
command inside a running one, with the environment that its first process had. Standard library only, so that it
starts in a few milliseconds.

The container's root is a tmpfs with the machine's own top folders bound into it: the machine's programs are there, but
`/run`, `/tmp` and every mount of the spec belong to the container, and nothing is written to the machine's disk.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from lab import namespaces as ns

_OWN = ("proc", "run", "tmp", "sys", "dev", "lost+found")
"""Top folders that a container does not take over from the machine as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One bind mount of a container."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """What to run and what it sees. Serialised as JSON for the launcher, in a file only its owner can read."""

    name: str
    hostname: str
    netns: str
    """Path of the network namespace; empty keeps the caller's."""
    argv: tuple[str, ...]
    env: dict[str, str]
    mounts: tuple[Mount, ...]
    keep: tuple[str, ...]
    """Paths under /tmp or /run that stay visible (checkout, tools)."""
    root: str
    """An empty folder on which the container's root is mounted."""

    def to_json(self) -> str:
        """The JSON text that `run` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ContainerSpec:
        """The inverse of `to_json`."""
        tree = json.loads(text)
        tree["mounts"] = tuple(Mount(**item) for item in tree["mounts"])
        return cls(**{**tree, "argv": tuple(tree["argv"]), "keep": tuple(tree["keep"])})


def build_root(spec: ContainerSpec) -> None:
    """Mounts the container's root on `spec.root` and pivots into it. The caller is in a fresh mount namespace."""
    root = Path(spec.root)
    ns.mount("none", "/", flags=ns.MS_REC | ns.MS_PRIVATE)
    ns.mount("tmpfs", root, "tmpfs", ns.MS_NOSUID, "mode=755,size=64m")
    for entry in sorted(Path("/").iterdir()):
        place = root / entry.name
        if entry.is_symlink():
            place.symlink_to(entry.readlink())
        elif entry.name not in _OWN and entry.is_dir():
            place.mkdir()
            ns.bind(entry, place)
    for name, mode in (("run", 0o755), ("tmp", 0o1777), ("proc", 0o555), ("sys", 0o555), ("dev", 0o755)):
        (root / name).mkdir(mode=mode)
        (root / name).chmod(mode)
    ns.bind("/dev", root / "dev")
    ns.bind("/sys", root / "sys")
    for path in spec.keep:
        if path.startswith(("/tmp/", "/run/")):
            _bind_at(root, Mount(source=path, target=path))
    for item in spec.mounts:
        _bind_at(root, item)
    # /proc has to be mounted while the machine's own is in sight: in a user namespace the kernel allows a fresh one
    # only where a complete one is in sight (mount_namespaces(7), "locked").
    ns.mount("proc", root / "proc", "proc", ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC)
    ns.pivot(root)


def _bind_at(root: Path, item: Mount) -> None:
    target = _inside(root, item.target)
    if Path(item.source).is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            target.touch()
    ns.bind(item.source, target, read_only=item.read_only)


def _inside(root: Path, target: str) -> Path:
    """`target` below `root`, its symbolic links followed as seen from inside (/etc/resolv.conf often is one)."""
    path = Path(target)
    for _ in range(8):
        place = root / path.relative_to("/")
        resolved = place.parent.resolve() / place.name
        if not resolved.is_symlink():
            return resolved
        link = resolved.readlink()
        inner = Path("/") / resolved.parent.relative_to(root)
        path = Path(os.path.normpath(inner / link))
    return root / Path(target).relative_to("/")


def run(spec: ContainerSpec) -> int:
    """Starts the container, passes SIGTERM and SIGINT on to it and returns its exit code (128 + n after signal n)."""
    ns.die_with_parent()
    if spec.netns:
        ns.setns(spec.netns, ns.NEWNET)
    ns.unshare(ns.NEWNS | ns.NEWPID | ns.NEWUTS | ns.NEWIPC)
    # Signals stay blocked over the fork, so none is lost between it and the handlers.
    passed = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, passed)
    child = os.fork()
    if child == 0:
        _become(spec)
    for number in passed:
        signal.signal(number, lambda received, _frame: _pass_on(child, received))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, passed)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def _pass_on(child: int, number: int) -> None:
    try:
        os.kill(child, number)
    except ProcessLookupError:
        return


def _become(spec: ContainerSpec) -> None:
    """The rest of the container's first process: never returns."""
    try:
        ns.die_with_parent()
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        ns.set_hostname(spec.hostname)
        build_root(spec)
        os.setsid()
        os.execvpe(spec.argv[0], spec.argv, spec.env)
    except OSError as error:
        print(f"container {spec.name}: cannot start {spec.argv[0]!r}: {error}", file=sys.stderr, flush=True)
    os._exit(127)


def enter(pid: int, user: bool, argv: list[str]) -> int:
    """Runs `argv` in the namespaces of process `pid`, with its environment; returns the exit code.

    `user`: join its user namespace first (needed when the caller is not root there).
    """
    environ = dict(
        item.split("=", 1)
        for item in Path(f"/proc/{pid}/environ").read_text(errors="surrogateescape").split("\0")
        if "=" in item
    )
    environ |= {name: os.environ[name] for name in ("TERM", "COLUMNS", "LINES") if name in os.environ}
    kinds = {"user": ns.NEWUSER} if user else {}
    kinds |= {"net": ns.NEWNET, "uts": ns.NEWUTS, "ipc": ns.NEWIPC, "pid": ns.NEWPID, "mnt": ns.NEWNS}
    # Opened before the first move: afterwards /proc may be another one. What we share already needs no right to join.
    handles = [
        (os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC), kind)
        for name, kind in kinds.items()
        if Path(f"/proc/{pid}/ns/{name}").readlink() != Path(f"/proc/self/ns/{name}").readlink()
    ]
    for handle, kind in handles:
        ns.setns(f"/proc/self/fd/{handle}", kind)
    child = os.fork()
    if child == 0:
        try:
            os.chdir("/")
            os.execvpe(argv[0], argv, environ)
        except OSError as error:
            print(f"cannot run {argv[0]!r} here: {error.strerror}", file=sys.stderr, flush=True)
            os._exit(127 if isinstance(error, FileNotFoundError) else 126)
    # The terminal sends ^C to the command as well as to us: the command decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda received, _frame: _pass_on(child, received))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def main(argv: list[str]) -> int:
    """Entry point of the launcher; see the module's docstring."""
    if argv[:1] == ["run"] and len(argv) == 2:
        return run(ContainerSpec.from_json(Path(argv[1]).read_text(encoding="utf-8")))
    if argv[:1] == ["enter"] and len(argv) > 4 and argv[3] == "--":
        return enter(int(argv[1]), argv[2] == "userns", argv[4:])
    print("usage: lab.container run SPEC.json | enter PID userns|same -- COMMAND…", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
