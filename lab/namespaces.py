"""Linux namespaces and mounts by system call, with the standard library alone.

`os.unshare` and `os.setns` came with Python 3.12 and `mount` never did, so they are called through ctypes. Nothing here
decides anything: each function is one system call that raises OSError naming what it was asked to do.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
"""Flags of unshare(2) and setns(2), from <linux/sched.h>."""

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    16384,
    1 << 18,
)
"""Flags of mount(2), from <linux/mount.h>."""

_PR_SET_PDEATHSIG = 1
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Moves the calling thread into new namespaces; NEWPID takes effect for its next child."""
    _check(_libc.unshare(flags), f"unshare({flags:#x})")


def setns(path: str | Path, kind: int = 0) -> None:
    """Moves the calling thread into the namespace at `path` (for example /proc/1/ns/net)."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(handle, kind), f"setns({path})")
    finally:
        os.close(handle)


def mount(source: str, target: str | Path, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(
        source.encode(), os.fsencode(target), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None
    )
    _check(result, f"mount({source} on {target}, type {kind or 'none'}, flags {flags:#x})")


def bind(source: str | Path, target: str | Path, *, read_only: bool = False) -> None:
    """Binds `source` (with what is mounted below it) on `target`, which must exist."""
    mount(str(source), target, flags=MS_BIND | MS_REC)
    if read_only:
        # A bind mount takes its flags only in a second step; flags that the source's mount locks have to be repeated
        # when the mount belongs to a more privileged user namespace (mount_namespaces(7)).
        locked = os.statvfs(target).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
        mount("", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY | locked)


def pivot(new_root: Path) -> None:
    """Makes `new_root` (a mount point) the root of this mount namespace and lets go of the old root."""
    number = _PIVOT_ROOT.get(platform.machine())
    if number is None:
        raise OSError(f"pivot_root: unknown machine {platform.machine()!r}, expected one of {sorted(_PIVOT_ROOT)}")
    os.chdir(new_root)
    # pivot_root(".", ".") stacks the old root on the new one, so no directory is needed for it (pivot_root(2)).
    _check(_libc.syscall(number, b".", b"."), f"pivot_root({new_root})")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount(old root)")
    os.chdir("/")


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Asks the kernel to send signal `number` to this process when its parent thread ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def set_hostname(name: str) -> None:
    """sethostname(2)."""
    data = name.encode()
    _check(_libc.sethostname(data, len(data)), f"sethostname({name})")


def become_root_of_user_namespace() -> None:
    """Enters a new user namespace in which the caller's uid and gid are 0."""
    uid, gid = os.geteuid(), os.getegid()
    unshare(NEWUSER)
    # An unprivileged process may map its group only after it has given up setgroups (user_namespaces(7)).
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1", encoding="ascii")


@contextmanager
def inside_network(path: str | Path) -> Iterator[None]:
    """The calling thread is in the network namespace at `path` within the block: sockets made there stay there.

    Await nothing inside: every other coroutine of the thread would be moved as well.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(path, NEWNET)
        try:
            yield
        finally:
            _check(_libc.setns(home, NEWNET), "setns(back home)")
    finally:
        os.close(home)
