"""Whether this process may make network namespaces, and how an ordinary user comes to be allowed to.

Root with full capabilities goes ahead. Everyone else re-executes the command inside an unprivileged user namespace,
where the caller's user is mapped to 0, with a mount namespace of its own and a tmpfs on /run (named network namespaces
live there). The network and the process IDs stay the host's: what the mesh publishes is reachable, and PIDs are true.
"""

from __future__ import annotations

import ctypes
import functools
import os
import pwd
import stat
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from meshctl import tools
from meshctl.errors import UserError

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
"""<linux/sched.h>; `os.unshare` exists from Python 3.12 on only."""
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
"""<linux/mount.h>."""
TUN = Path("/dev/net/tun")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why the mesh cannot run here."""

    message: str
    """What is missing."""
    remedy: str
    """The setting or package that gives it."""


def check() -> Reason | None:
    """Why this process can make no mesh, not even inside a user namespace; None when it can."""
    problem = None if _trial("root") is None else _namespaces_reason()
    return problem or _wireguard_reason()


def require() -> None:
    """Returns when this process may make namespaces; else re-executes the command line in a user namespace.

    UserError when neither is possible. Call it before any thread is started: the kernel refuses user namespaces to a
    process with threads.
    """
    reason = check()
    if reason is not None:
        raise UserError(reason.message, reason.remedy)
    if _trial("root") is not None:
        enter([sys.executable, "-P", "-m", "meshctl", *sys.argv[1:]])


def enter(argv: Sequence[str]) -> NoReturn:
    """Moves this process into a user and a mount namespace of its own and executes `argv` there."""
    _keep_the_name(os.geteuid())
    try:
        _unshare_as_user()
    except OSError as error:
        raise UserError(f"cannot enter a user namespace: {error}", "run it as root") from error
    os.execv(argv[0], list(argv))


def _keep_the_name(user: int) -> None:
    """Programs name temporary folders after the user; without a name, everyone inside would be `root`."""
    if not (os.environ.get("LOGNAME") or os.environ.get("USER")):
        try:
            os.environ["LOGNAME"] = pwd.getpwuid(user).pw_name
        except KeyError:
            os.environ["LOGNAME"] = f"user-{user}"


def _unshare_as_user() -> None:
    user, group = os.geteuid(), os.getegid()
    _call("unshare", CLONE_NEWUSER | CLONE_NEWNS)
    # The kernel demands this before an unprivileged gid_map.
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1", encoding="ascii")
    _private_run()


def _private_run() -> None:
    """A tmpfs on /run; what a program may still need of the old one stays visible."""
    _mount("none", "/", None, MS_REC | MS_PRIVATE, None)
    kept = [
        path for path in (_resolver_folder(), os.environ.get("XDG_RUNTIME_DIR")) if path and path.startswith("/run/")
    ]
    handles = {path: os.open(path, os.O_PATH) for path in kept if Path(path).is_dir()}
    _mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    for path, handle in handles.items():
        Path(path).mkdir(parents=True, exist_ok=True)
        _mount(f"/proc/self/fd/{handle}", path, None, MS_BIND | MS_REC, None)
        os.close(handle)


def _resolver_folder() -> str:
    """The folder of the real resolv.conf, which systemd-resolved keeps under /run."""
    return os.path.dirname(os.path.realpath("/etc/resolv.conf"))  # noqa: PTH120 (one string in, one out)


def _call(function: str, *arguments: object) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind, data)]
    _call("mount", encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])


@functools.cache
def _trial(how: str) -> str | None:
    """Tries it in a child, which leaves nothing behind: None, or what the kernel answered.

    `how` is `root` (as we are) or `user` (inside a user namespace).
    """
    answer = subprocess.run(
        [sys.executable, "-P", "-m", "meshctl.userns", how], capture_output=True, text=True, check=False, timeout=30
    )
    return (
        None
        if answer.returncode == 0
        else answer.stderr.strip().splitlines()[-1]
        if answer.stderr.strip()
        else "failed"
    )


def _namespaces_reason() -> Reason | None:
    refusal = _trial("user")
    if refusal is None:
        return None
    return explain(refusal, root=os.geteuid() == 0, settings=_settings())


def _settings() -> dict[str, str]:
    found = {}
    for name in (
        "kernel/unprivileged_userns_clone",
        "kernel/apparmor_restrict_unprivileged_userns",
        "user/max_user_namespaces",
    ):
        with suppress(OSError):
            found[name.replace("/", ".")] = (Path("/proc/sys") / name).read_text(encoding="ascii").strip()
    return found


def explain(refusal: str, *, root: bool, settings: dict[str, str]) -> Reason:
    """The one sentence for what the kernel answered, given the machine's `settings` (sysctl names and values). Pure."""
    needed = "the mesh makes network namespaces, which this process may not"
    if root:
        return Reason(
            message=f"{needed}, although it is root ({refusal})",
            remedy="start the container with --privileged, or --cap-add SYS_ADMIN,NET_ADMIN and no seccomp profile",
        )
    culprits = {
        "kernel.unprivileged_userns_clone": ("0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        "user.max_user_namespaces": ("0", "sysctl -w user.max_user_namespaces=15000"),
        "kernel.apparmor_restrict_unprivileged_userns": (
            "1",
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    }
    for name, (bad, command) in culprits.items():
        if settings.get(name) == bad:
            return Reason(
                message=f"{needed}: {name} is {bad}, which forbids user namespaces to ordinary users",
                remedy=f"run it as root, or once as root: {command}",
            )
    return Reason(message=f"{needed} ({refusal})", remedy="run it as root")


def _wireguard_reason() -> Reason | None:
    if tools.kernel_wireguard():
        return None
    try:
        os.close(os.open(TUN, os.O_RDWR))
    except OSError as error:
        problem = error.strerror
    else:
        return None
    if os.geteuid() == 0 and _make_tun():
        return None
    commands = f"modprobe tun; mkdir -p /dev/net; mknod -m 0666 {TUN} c 10 200"
    if TUN.exists():
        commands = f"chmod 0666 {TUN}"
    return Reason(
        message=f"the kernel has no WireGuard, and wireguard-go cannot open {TUN} ({problem})",
        remedy=f"as root: {commands}",
    )


def _make_tun() -> bool:
    """Root's attempt to provide the device; True when it opens afterwards."""
    with suppress(OSError):
        subprocess.run(["modprobe", "tun"], capture_output=True, check=False)
    with suppress(OSError):
        TUN.parent.mkdir(parents=True, exist_ok=True)
        if not TUN.exists():
            os.mknod(TUN, 0o666 | stat.S_IFCHR, os.makedev(10, 200))
        os.close(os.open(TUN, os.O_RDWR))
        return True
    return False


def _attempt(how: str) -> int:
    """What the child of `_trial` does."""
    try:
        if how == "user":
            _unshare_as_user()
        _call("unshare", CLONE_NEWNET | CLONE_NEWNS)
    except OSError as error:
        sys.stderr.write(f"{error.strerror}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_attempt(sys.argv[1]))
